"""The log: lines of JSON, a request's by its fields, and a file that is turned over."""

from __future__ import annotations

import json
import logging
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import UserError
from luthier.service import journal
from luthier.service.journal import configure_logging

log = logging.getLogger("luthier.test")


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """pytest's handlers are put back after each test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level = handlers, level


def written(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_a_request_is_told_by_its_fields(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "server.log"
    configure_logging(file)
    fields = {"request_id": "r-1", "service": "s3", "operation": "PutObject", "status": 200, "caller": "arn:x"}
    log.info("said for people", extra={**fields, "seconds": 0.01234, "authorization": "secret"})
    (line,) = written(file)
    assert line.pop("time").endswith("Z")
    assert line == {"level": "info", **fields, "ms": 12.3}


def test_anything_else_by_its_message_on_one_line(tmp_path: Path) -> None:
    file = tmp_path / "server.log"
    configure_logging(file)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("it went %s", "wrong")
    (line,) = written(file)
    assert (line["level"], line["logger"], line["message"]) == ("error", "luthier.test", "it went wrong")
    assert line["traceback"].endswith("ValueError: two\nlines")


def test_a_full_file_is_turned_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "FILE_BYTES", 2000)
    configure_logging(tmp_path / "server.log")
    for number in range(200):
        log.info("line %d", number)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["server.log", *(f"server.log.{number}" for number in range(1, 6))]
    assert max(file.stat().st_size for file in files) <= 2000
    assert written(tmp_path / "server.log")[-1]["message"] == "line 199"


def test_its_folder_is_its_owners_alone(tmp_path: Path) -> None:
    configure_logging(tmp_path / "logs" / "server.log")
    assert stat.S_IMODE((tmp_path / "logs").stat().st_mode) == 0o700


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--log .*expected a file that this user may write"):
        configure_logging(tmp_path / "file" / "server.log")


def test_without_a_file_it_is_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(None)
    log.warning("hello")
    assert json.loads(capsys.readouterr().err)["message"] == "hello"
