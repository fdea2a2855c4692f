"""What `luthier generate` makes of a text: the user's message of a base with a chat template, or the prompt itself."""

from __future__ import annotations

import io
import json

import pytest
from finished_runs import FinishedRuns
from rich.console import Console

from luthier.errors import UserError
from luthier.evaluation.generate import print_generations

ASKED = "<|im_start|>user\ngood dog<|im_end|>\n<|im_start|>assistant\n"


def prompt_of(capsys: pytest.CaptureFixture[str], target: str, text: str, *, raw: bool = False) -> str:
    request = {"target": target, "text": text, "max_new_tokens": 2, "device": "cpu", "json": True, "raw": raw}
    print_generations(request, Console(file=io.StringIO()))
    return str(json.loads(capsys.readouterr().out)["prompt"])


def test_a_base_with_a_chat_template_is_asked_through_it(
    finished: FinishedRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(finished.base("llama"))
    assert prompt_of(capsys, base, "good dog") == ASKED
    assert prompt_of(capsys, base, "good dog", raw=True) == "good dog"


def test_a_conversation_is_a_text_as_json(finished: FinishedRuns, capsys: pytest.CaptureFixture[str]) -> None:
    base = str(finished.base("llama"))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert prompt_of(capsys, base, json.dumps({"messages": turns})) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert prompt_of(capsys, base, '{"a": 1}') == ASKED.replace("good dog", '{"a": 1}')  # a question about JSON
    with pytest.raises(UserError, match="the text: not JSON"):
        prompt_of(capsys, base, '{"messages": [')


def test_a_run_keeps_its_template(finished: FinishedRuns, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(finished.get().folder.root)
    assert "### Instruction:\ngood dog" in prompt_of(capsys, run, '{"instruction": "good dog", "context": ""}')
    assert prompt_of(capsys, run, "good dog", raw=True) == "good dog"
