"""mlx-lm on the CPU: loads the Hugging Face folder itself; adapters only in a format of its own."""

from __future__ import annotations

import importlib
from typing import Any

from bench.engine_programs.program import Answer, Request, before_stop, messages, run

mx: Any = importlib.import_module("mlx.core")
mlx_lm: Any = importlib.import_module("mlx_lm")
mlx_generate: Any = importlib.import_module("mlx_lm.generate")


def answer_request(request: Request, answer: Answer) -> None:
    """Load, tokenize, generate."""
    mx.set_default_device(mx.cpu)
    loaded: list[Any] = []

    def load() -> str:
        loaded.extend(mlx_lm.load(request["model"], adapter_path=request["adapter"]))
        loaded[0].set_dtype(mx.float32)
        return type(loaded[0]).__module__

    if answer.attempt("open", load) is None:
        return
    network, tokenizer = loaded
    answer.attempt("ids", lambda: [list(tokenizer.encode(text)) for text in request["texts"]])
    answer.attempt("chat_ids", lambda: [chat_ids(tokenizer, text) for text in request["contents"]])
    answer.attempt("tokens", lambda: generate(network, tokenizer, request))


def chat_ids(tokenizer: Any, content: str) -> list[int]:
    """The ids of a user's turn by the chat template."""
    return list(tokenizer.apply_chat_template(messages(content), add_generation_prompt=True, return_dict=False))


def generate(network: Any, tokenizer: Any, request: Request) -> list[list[int]]:
    """Greedy tokens of each prompt, until one of the tokenizer's end tokens."""
    answers = []
    for prompt in request["prompts"]:
        steps = mlx_generate.generate_step(mx.array(prompt), network, max_tokens=request["tokens"])
        ids: list[int] = []
        for token, _ in steps:
            if int(token) in tokenizer.eos_token_ids:
                break
            ids.append(int(token))
        answers.append(before_stop(ids, ()))
    return answers


if __name__ == "__main__":
    run(("mlx-lm", "mlx", "transformers"), answer_request)
