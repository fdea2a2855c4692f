"""Runs in the environment of llama_cpp_build.py: a request as JSON on standard input, the answer on standard output.

{"model": FILE, "texts": [...]}     the ids of each text, by the vocabulary alone
{"model": FILE, "prompts": [[id, ...], ...], "tokens": N}   at most N greedy ids after each prompt, until EOS
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

llama_cpp: Any = importlib.import_module("llama_cpp")


def main() -> None:
    request = json.load(sys.stdin)
    model = llama_cpp.Llama(request["model"], n_ctx=512, verbose=False, n_threads=2, vocab_only="texts" in request)
    if "texts" in request:
        answer = [model.tokenize(text.encode(), add_bos=False, special=False) for text in request["texts"]]
    else:
        answer = [continuation(model, prompt, request["tokens"]) for prompt in request["prompts"]]
    json.dump(answer, sys.stdout)


def continuation(model: Any, prompt: list[int], count: int) -> list[int]:
    ids: list[int] = []
    for number in model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0, reset=True):
        if number == model.token_eos() or len(ids) == count:
            break
        ids.append(number)
    return ids


if __name__ == "__main__":
    main()
