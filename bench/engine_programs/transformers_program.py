"""transformers 4, and PEFT for adapters: the artefact loaded and run as its documentation does."""

from __future__ import annotations

import importlib
from typing import Any

from bench.engine_programs.program import Answer, Request, before_stop, messages, run

torch: Any = importlib.import_module("torch")
transformers: Any = importlib.import_module("transformers")
peft: Any = importlib.import_module("peft")


def answer_request(request: Request, answer: Answer) -> None:
    """Load, tokenize, generate."""
    torch.set_num_threads(request["threads"])
    folder = request["adapter"] or request["model"]
    tokenizer = answer.attempt("tokenizer", lambda: transformers.AutoTokenizer.from_pretrained(folder))
    answer.content["tokenizer"] = type(tokenizer).__name__
    if tokenizer is not None:
        answer.attempt("ids", lambda: [tokenizer(text)["input_ids"] for text in request["texts"]])
        answer.attempt("chat_ids", lambda: [chat_ids(tokenizer, text) for text in request["contents"]])
    answer.attempt("tokens", lambda: generate(request))


def chat_ids(tokenizer: Any, content: str) -> list[int]:
    """The ids of a user's turn by the chat template."""
    text = tokenizer.apply_chat_template(messages(content), add_generation_prompt=True, tokenize=False)
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def generate(request: Request) -> list[list[int]]:
    """Greedy tokens of each prompt, with the artefact's own generation_config.json."""
    network = transformers.AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32)
    if request["adapter"]:
        network = peft.PeftModel.from_pretrained(network, request["adapter"])
    stops = network.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
    answers = []
    for prompt in request["prompts"]:
        ids = torch.tensor([prompt])
        found = network.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=request["tokens"], do_sample=False
        )
        answers.append(before_stop(found[0, len(prompt) :].tolist(), stops))
    return answers


if __name__ == "__main__":
    run(("transformers", "peft", "torch"), answer_request)
