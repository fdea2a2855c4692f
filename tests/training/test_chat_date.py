"""A chat template that writes the date: a run's first day stays, when it is resumed, evaluated and served."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_models import CHAT_TEMPLATE, write_model
from training.job_folders import lay_out, run

from luthier.errors import Interrupted
from luthier.serving.model import ServedModel
from luthier.serving.requests import read_request
from luthier.training import job as job_module

TURNS = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "a dog"}]


@contextmanager
def day(number: int) -> Iterator[None]:
    """The given day of January 2026 is today."""

    class Today(datetime.date):
        @classmethod
        def today(cls) -> Today:
            return cls(2026, 1, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datetime, "date", Today)
        yield


@contextmanager
def stopped(console: object) -> Iterator[Callable[[], bool]]:
    yield lambda: True


def test_the_date_of_the_first_day_is_kept(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", "llama")
    (base / "chat_template.jinja").write_text("{{ strftime_now('%d.%m.%Y') }}" + CHAT_TEMPLATE, "utf-8")
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "train.jsonl").write_text((json.dumps({"messages": TURNS}) + "\n") * 12, "utf-8")
    folder = lay_out(tmp_path / "run", base, rows, max_steps=2)
    with day(5), pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_module, "stop_requests", stopped)
        with pytest.raises(Interrupted):
            run(folder)
    with day(6):
        assert "a run keeps that of its first day, 2026-01-05" in " ".join(run(folder, resume=True).split())
    assert json.loads((folder.root / "run.json").read_text("utf-8"))["chat_date"] == "2026-01-05"
    with day(7):
        served = ServedModel.load(str(folder.root), "cpu", lambda _: None)
        row = served.prepare_rows(read_request("application/json", json.dumps({"messages": TURNS[:1]}).encode()))[0]
        of_base = ServedModel.load(str(base), "cpu", lambda _: None)
    assert served.tokenizer.show(row.request.prompt_ids).startswith("05.01.2026<|im_start|>user\na cat<|im_end|>")
    assert of_base.tokenizer.chat_date == "2026-01-07"
