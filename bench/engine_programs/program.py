"""What every engine's program does: reads a request, answers it in stages, and says at which one the engine refused.

`python -m bench.engine_programs.ENGINE_program REQUEST.json ANSWER.json`, run by the interpreter of the engine's own
venv; the programs import the engine, the standard library and this file.

    request   model (folder in Hugging Face layout), adapter (folder in PEFT's, or null), work (empty folder),
              prompts (ids), texts, contents (of a user's turn), tokens (the most per prompt), threads
    answer    versions, ids and chat_ids (of texts and contents), tokens (the new ones of each prompt, without the stop
              token), errors (stage -> the engine's own words), notes
"""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

Request = dict[str, Any]


class Answer:
    """What an engine answered so far."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.content: dict[str, Any] = {
            "versions": {name: version(name) for name in packages}, "errors": {}, "notes": [],
        }  # fmt: skip

    def attempt(self, stage: str, compute: Callable[[], Any]) -> Any:
        """Store what `compute` returns under the stage's name; None, and the reason, where it raises."""
        try:
            self.content[stage] = compute()
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            words = [line.strip() for line in str(error).splitlines() if line.strip()]
            self.content["errors"][stage] = f"{type(error).__name__}: {words[0] if words else ''}".rstrip(": ")
            return None
        return self.content[stage]

    def note(self, text: str) -> None:
        """Say something that the engine did otherwise."""
        self.content["notes"].append(text)


def run(packages: Sequence[str], answer_request: Callable[[Request, Answer], None]) -> None:
    """Read the request, answer it, write the answer."""
    request = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    answer = Answer(packages)
    answer_request(request, answer)
    Path(sys.argv[2]).write_text(json.dumps(answer.content), "utf-8")


def run_converter(command: Sequence[str]) -> None:
    """Run a converter; RuntimeError with the last line that it printed when it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(lines[-1] if lines else f"{Path(command[0]).name} ended with code {done.returncode}")


def messages(content: str) -> list[dict[str, str]]:
    """A conversation of one user turn."""
    return [{"role": "user", "content": content}]


def before_stop(ids: Sequence[int], stops: Sequence[int]) -> list[int]:
    """The ids before the first stop token."""
    return list(ids[: next((place for place, token in enumerate(ids) if token in stops), len(ids))])
