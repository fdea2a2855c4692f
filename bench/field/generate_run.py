"""Generation for scoring as a contender: 48 prompts answered once a step, in bf16.

`python -m bench.field.generate_run CASE`, a JSON file. Its `style` is luthier (`weights.generate`) or hf (transformers'
`generate` over batches of 16 prompts sorted by length). When ready, each says what it answers to the first prompts in
fp32, so that the coordinator can compare token for token.

Random weights know no end, so every 64th token of the vocabulary counts as a stop token: answers end after lengths as
different as real ones.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from bench.field.line import Line, Stopwatch, peak_rss
from luthier.weights.generate import generate
from luthier.weights.load import load_model

BATCH, CHECKED, CHECKED_TOKENS = 16, 6, 24
Answer = Callable[[list[list[int]], int], list[list[int]]]  # prompts, most new tokens -> new tokens


def _luthier(case: dict[str, Any], dtype: torch.dtype) -> Answer:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(Path(case["model"]), device, dtype, frozen=True)

    def answer(prompts: list[list[int]], most: int) -> list[list[int]]:
        found = generate(model, prompts, stop_ids=case["stop_ids"], pad_id=1, max_new_tokens=most, batch_size=BATCH)
        return [each.ids for each in found]

    return answer


def _hugging_face(case: dict[str, Any], dtype: torch.dtype) -> Answer:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(case["model"], dtype=dtype).to(device).eval()  # type: ignore[arg-type]

    def answer(prompts: list[list[int]], most: int) -> list[list[int]]:
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        answers: dict[int, list[int]] = {}
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            width = max(len(prompts[row]) for row in chosen)
            ids = torch.tensor([[1] * (width - len(prompts[row])) + prompts[row] for row in chosen])
            mask = torch.tensor([[0] * (width - len(prompts[row])) + [1] * len(prompts[row]) for row in chosen])
            found = model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), max_new_tokens=most, do_sample=False,
                eos_token_id=case["stop_ids"], pad_token_id=1,
            )  # fmt: skip
            answers |= {row: _ended(line[width:], set(case["stop_ids"]))
                        for row, line in zip(chosen, found.tolist(), strict=True)}  # fmt: skip
        return [answers[row] for row in range(len(prompts))]

    return answer


def _ended(ids: list[int], stops: set[int]) -> list[int]:
    return ids[: next((place for place, token in enumerate(ids) if token in stops), len(ids))]


STYLES: dict[str, Callable[[dict[str, Any], torch.dtype], Answer]] = {"luthier": _luthier, "hf": _hugging_face}


def main() -> None:
    """Answer all prompts once for each word, until the coordinator is done."""
    line = Line()
    case = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    made, prompts = STYLES[case["style"]], case["prompts"]
    with torch.no_grad():
        line.say(answers=made(case, torch.float32)(prompts[:CHECKED], CHECKED_TOKENS))
        answer, watch = made(case, torch.bfloat16), Stopwatch()
        while True:
            line.wait()
            watch.start()
            found = answer(prompts, case["most"])
            tokens = sum(map(len, found))
            line.say(**watch.read(), tokens=tokens, completion_tokens=tokens, loss=0.0, rss=peak_rss())


if __name__ == "__main__":
    main()
