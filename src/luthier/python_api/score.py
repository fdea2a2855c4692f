"""`luthier.generate`, `luthier.evaluate` and `luthier.inspect`: answers, scores, and what a job would make of rows."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from luthier.cli.options import DEFAULT_MODEL, Kind
from luthier.errors import UserError
from luthier.python_api.program import command, run_program, set_options

Prompt = str | Mapping[str, Any]
"""A text, or the fields of one row."""


class TruncatedGenerationWarning(UserWarning):
    """A generation reached max_new_tokens before it ended."""


@overload
def generate(
    target: str | Path,
    prompt: Prompt,
    *,
    max_new_tokens: int = ...,
    beams: int = ...,
    raw: bool = ...,
    device: str = ...,
) -> str: ...
@overload
def generate(
    target: str | Path,
    prompt: list[Prompt],
    *,
    max_new_tokens: int = ...,
    beams: int = ...,
    raw: bool = ...,
    device: str = ...,
) -> list[str]: ...
def generate(
    target: str | Path,
    prompt: Prompt | list[Prompt],
    *,
    max_new_tokens: int = 128,
    beams: int = 1,
    raw: bool = False,
    device: str = "auto",
) -> str | list[str]:
    """Answers of a run or a base model: a text for one prompt, a list for several.

    A run renders each prompt with the template it was trained with, a base model a text as the user's message if it has
    a chat template; `raw` takes texts as whole prompts. Warns with
    TruncatedGenerationWarning where max_new_tokens cut answers short.
    """
    several = not isinstance(prompt, str | Mapping)
    prompts = list(prompt) if several else [prompt]
    if not prompts:
        return []
    if any(not isinstance(each, str | Mapping) for each in prompts):
        raise UserError("generate: expected a text, a dict of fields, or a list of them")
    program = command(
        "generate", target, "", max_new_tokens=max_new_tokens, beams=beams, raw=raw, device=device, json=True
    )
    assert program.request is not None
    program = replace(program, request={**program.request, "text": None, "prompts": prompts})
    answers = [json.loads(line) for line in run_program(program).splitlines()]
    truncated = sum(answer["truncated"] for answer in answers)
    if truncated:
        message = f"{truncated} of {len(answers)} generations reached max_new_tokens={max_new_tokens} before they ended"
        warnings.warn(message, TruncatedGenerationWarning, stacklevel=2)
    texts = [str(answer["generated_text"]) for answer in answers]
    return texts if several else texts[0]


def evaluate(
    target: str | Path,
    data: str | Path,
    *,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    kind: Kind = "auto",
    shots: int = 0,
    config: str | Path | None = None,
    device: str = "auto",
    score_rows: int | str = "200",
    out: str | Path | None = None,
    **hyperparameters: Any,
) -> dict[str, Any]:
    """Score a run or a base model on rows: loss, perplexity, token accuracy, ROUGE, exact match, F1.

    Arguments are the options of `luthier evaluate`; the dict is what its --json prints.
    """
    program = command(
        "evaluate", target, data, flags=set_options(hyperparameters), validation=validation, test=test, kind=kind,
        shots=shots, config=config, device=device, score_rows=score_rows, out=out, json=True,
    )  # fmt: skip
    metrics: dict[str, Any] = json.loads(run_program(program))
    return metrics


def inspect(
    data: str | Path,
    *,
    model: str | Path = DEFAULT_MODEL,
    kind: Kind = "auto",
    validation: str | Path | None = None,
    test: str | Path | None = None,
    config: str | Path | None = None,
    max_truncated: float | None = None,
    **hyperparameters: Any,
) -> dict[str, Any]:
    """What a job would make of the rows, without training: counts, warnings, template, examples.

    Arguments are the options of `luthier inspect`; the dict is what its --json prints. DataError where a job would
    refuse the rows; its `problems` name file and line.
    """
    program = command(
        "inspect", data, flags=set_options(hyperparameters), model=model, kind=kind, validation=validation, test=test,
        config=config, max_truncated=max_truncated, json=True,
    )  # fmt: skip
    counts: dict[str, Any] = json.loads(run_program(program))
    return counts
