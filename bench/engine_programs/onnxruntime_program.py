"""onnxruntime-genai: its model builder in float32 for the CPU, then its own tokenizer and generator."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from bench.engine_programs.program import Answer, Request, before_stop, messages, run, run_converter

og: Any = importlib.import_module("onnxruntime_genai")


def answer_request(request: Request, answer: Answer) -> None:
    """Build, open, tokenize, generate."""
    built = Path(request["work"]) / "model"
    if answer.attempt("convert", lambda: build(request, built)) is None:
        return
    opened: list[Any] = []

    def open_model() -> str:
        opened.append(og.Model(str(built)))
        opened.append(og.Tokenizer(opened[0]))
        return str(opened[0].type)

    if answer.attempt("open", open_model) is None:
        return
    model, tokenizer = opened
    answer.attempt("ids", lambda: [tokenizer.encode(text).tolist() for text in request["texts"]])
    answer.attempt("chat_ids", lambda: [chat_ids(tokenizer, text) for text in request["contents"]])
    stops = json.loads((built / "genai_config.json").read_text("utf-8"))["model"]["eos_token_id"]
    answer.attempt("tokens", lambda: generate(model, request, stops if isinstance(stops, list) else [stops]))


def build(request: Request, out: Path) -> str:
    """Run the model builder."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", request["model"], "-o", str(out),
               "-p", "fp32", "-e", "cpu", "-c", str(Path(request["work"]) / "cache")]  # fmt: skip
    if request["adapter"]:
        command += ["--extra_options", f"adapter_path={request['adapter']}"]
    run_converter(command)
    return "builder"


def chat_ids(tokenizer: Any, content: str) -> list[int]:
    """The ids of a user's turn by the chat template."""
    text = tokenizer.apply_chat_template(json.dumps(messages(content)), add_generation_prompt=True)
    found: list[int] = tokenizer.encode(text).tolist()
    return found


def generate(model: Any, request: Request, stops: list[int]) -> list[list[int]]:
    """Greedy tokens of each prompt."""
    answers = []
    for prompt in request["prompts"]:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(do_sample=False, max_length=len(prompt) + request["tokens"])
        generator = og.Generator(model, parameters)
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
        answers.append(before_stop(generator.get_sequence(0).tolist()[len(prompt) :], stops))
    return answers


if __name__ == "__main__":
    run(("onnxruntime-genai", "onnxruntime", "transformers"), answer_request)
