"""The prompt that is served is the prompt that was trained, token for token, for every kind of row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_runs import FinishedRuns
from tiny_models import ARCHITECTURES, write_model
from training.job_folders import lay_out, run

from luthier.data.cache import key_of
from luthier.data.prepare import prepare
from luthier.data.prompts import prompt_renderer
from luthier.data.settings import DataSettings
from luthier.data.template import Template
from luthier.data.tokenize import Tokenizer
from luthier.errors import UserError
from luthier.weights.resolved_model import ResolvedModel, resolve_model

HOSTILE = ["plain", "<|endoftext|> and <|im_end|>", "{response} {{x}}", "naïve 猫 🙂\n\n### Response:\n", " spaced "]
TEMPLATE = {"prompt": "<|im_start|>Q: {question}\nof {{braces}}", "completion": "{answer}"}


def rows_of(kind: str) -> list[dict[str, Any]]:
    if kind == "chat":
        return [
            {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"},
                          {"role": "user", "content": text}, {"role": "assistant", "content": "ok"}]}
            for text in HOSTILE
        ]  # fmt: skip
    names = {"default": ("instruction", "context", "response"), "template": ("question", "answer")}
    if kind == "autopilot":
        names["autopilot"] = ("input", "output")
    return [dict.fromkeys(names[kind], text) for text in HOSTILE]


def write_channel(folder: Path, kind: str) -> Path:
    folder.mkdir()
    if kind == "autopilot":
        quoted = [",".join('"' + row[name].replace('"', '""') + '"' for name in ("input", "output"))
                  for row in rows_of(kind)]  # fmt: skip
        (folder / "rows.csv").write_text("input,output\n" + "\n".join(quoted) + "\n", "utf-8")
        return folder
    lines = "".join(json.dumps(row) + "\n" for row in rows_of(kind))
    (folder / "rows.jsonl").write_text(lines, "utf-8")
    if kind == "template":
        (folder / "template.json").write_text(json.dumps(TEMPLATE))
    return folder


def asked_for(kind: str, row: dict[str, Any]) -> dict[str, Any]:
    """What a request brings: the row without its answer."""
    if kind == "chat":
        return {"messages": row["messages"][:-1]}
    return {name: value for name, value in row.items() if name not in ("response", "answer", "output")}


@pytest.mark.parametrize("demarcation", [True, False])
@pytest.mark.parametrize("kind", ["default", "template", "autopilot", "chat"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_served_prompt_is_trained_prompt(
    tmp_path: Path, finished: FinishedRuns, architecture: str, kind: str, demarcation: bool
) -> None:
    base = finished.base(architecture)
    tokenizer = Tokenizer.load(base)
    settings = DataSettings(kind="auto", max_input_length=-1, demarcation=demarcation, context_length=2048)
    prepared = prepare({"training": write_channel(tmp_path / "rows", kind)}, settings, tokenizer, tmp_path / "cache")
    stored = prepared.template.to_json() if prepared.template else None
    run = ResolvedModel(
        name="run", base=base, provenance={"kind": prepared.kind, "template": json.loads(json.dumps(stored))}
    )
    render = prompt_renderer(run.provenance, tokenizer, raw=False)

    assert len(prepared.tokens) == len(HOSTILE)
    for index, row in enumerate(rows_of(kind)):
        ids, trained = prepared.tokens.row(index)
        last_answer = np.flatnonzero(np.diff(np.concatenate([[0], trained.astype(np.int8)])) == 1)[-1]
        assert tokenizer.prompt_ids(render(asked_for(kind, row))) == ids[:last_answer].tolist()
    assert key_of(stored) == key_of(Template.from_json(stored).to_json() if stored else None)


def test_a_finished_run_serves_the_prompts_it_was_trained_on(finished: FinishedRuns) -> None:
    run = finished.get("llama", "lora")
    target = resolve_model(str(run.folder.root), lambda text: None)
    tokenizer = Tokenizer.load(target.base)
    render = prompt_renderer(target.provenance, tokenizer, raw=False)
    settings = DataSettings(kind="instruction", context_length=256)
    prepared = prepare({"training": run.rows}, settings, tokenizer, run.folder.root / "cache")
    for number, line in enumerate((run.rows / "train.jsonl").read_text("utf-8").splitlines()):
        ids, trained = prepared.tokens.row(number)
        prompt = tokenizer.prompt_ids(render(json.loads(line)))
        assert prompt == ids[: np.argmax(trained)].tolist()


def test_a_row_without_a_field_is_refused_by_name(finished: FinishedRuns) -> None:
    target = resolve_model(str(finished.get().folder.root), lambda text: None)
    render = prompt_renderer(target.provenance, Tokenizer.load(target.base), raw=False)
    with pytest.raises(UserError, match="requires the text fields 'context'"):
        render({"instruction": "a"})


LENT = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token + '\\n' }}{% endfor %}" + (
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize("method", ["lora", "none"])
def test_a_template_that_the_catalogue_lends_is_served_too(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chat model whose repository has no template: the run's artifact has it, wherever the catalogue is."""
    base = write_model(tmp_path / "models" / "org" / "talks", "llama")
    (base / "chat_template.jinja").unlink()
    entry = {
        "id": "talks", "name": "Talks", "source": "org/talks", "architecture": "LlamaForCausalLM", "parameters": 0,
        "context_length": 256, "licence": {"name": "MIT"}, "kinds": ["chat"], "chat_template": LENT,
    }  # fmt: skip
    (tmp_path / "entries").mkdir()
    (tmp_path / "entries" / "talks.yaml").write_text(json.dumps(entry))
    monkeypatch.setenv("LUTHIER_ENTRIES", str(tmp_path / "entries"))
    monkeypatch.setenv("LUTHIER_MODELS", str(tmp_path / "models"))
    job = lay_out(tmp_path / "run", "talks", write_channel(tmp_path / "rows", "chat"), max_steps=1, peft_type=method,
                  score_rows=0)  # fmt: skip
    run(job)
    assert (job.model / "chat_template.jinja").read_text("utf-8") == LENT
    monkeypatch.delenv("LUTHIER_ENTRIES")
    target = resolve_model(str(job.root), lambda text: None)
    assert target.chat_template == LENT
    tokenizer = Tokenizer.load(target.base, target.chat_template)
    prompt = prompt_renderer(target.provenance, tokenizer, raw=False)(
        {"messages": [{"role": "user", "content": "a cat"}]}
    )
    assert prompt.prompt == "user: a cat<|endoftext|>\nassistant: "
