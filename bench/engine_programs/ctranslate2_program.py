"""CTranslate2: its converter for transformers' models, then its generator; it has no adapters and no chat templates."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from bench.engine_programs.program import Answer, Request, before_stop, run

ctranslate2: Any = importlib.import_module("ctranslate2")
transformers: Any = importlib.import_module("transformers")


def answer_request(request: Request, answer: Answer) -> None:
    """Convert, generate; texts are tokenized by transformers, as its documentation does."""
    folder = request["adapter"] or request["model"]
    converted = Path(request["work"]) / "model"
    tokenizer = answer.attempt("tokenizer", lambda: transformers.AutoTokenizer.from_pretrained(folder))
    answer.content["tokenizer"] = type(tokenizer).__name__
    if tokenizer is not None:
        answer.attempt("ids", lambda: [tokenizer(text)["input_ids"] for text in request["texts"]])
    if answer.attempt("convert", lambda: convert(folder, converted)) is not None:
        answer.attempt("tokens", lambda: generate(request, converted, tokenizer))


def convert(folder: str, out: Path) -> str:
    """Run the converter, in float32."""
    return str(ctranslate2.converters.TransformersConverter(folder).convert(str(out), force=True))


def generate(request: Request, converted: Path, tokenizer: Any) -> list[list[int]]:
    """Greedy tokens of each prompt; it ends at the end token of its own config.json."""
    generator = ctranslate2.Generator(
        str(converted), device="cpu", compute_type="float32", intra_threads=request["threads"]
    )
    answers = []
    for prompt in request["prompts"]:
        (found,) = generator.generate_batch(
            [tokenizer.convert_ids_to_tokens(prompt)], beam_size=1, sampling_topk=1, max_length=request["tokens"],
            include_prompt_in_result=False,
        )  # fmt: skip
        answers.append(before_stop(found.sequences_ids[0], request["stops"][:1]))
    return answers


if __name__ == "__main__":
    run(("ctranslate2", "transformers"), answer_request)
