"""llama.cpp through llama-cpp-python: its converters' GGUF files in float32, its own tokenizer and decoder.

The bench hands over `converter`: the folder of llama.cpp's sources and the interpreter that its converters run in.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.engine_programs.program import Answer, Request, messages, run

llama_cpp: Any = importlib.import_module("llama_cpp")
chat_format: Any = importlib.import_module("llama_cpp.llama_chat_format")


def answer_request(request: Request, answer: Answer) -> None:
    """Convert, open, tokenize, generate."""
    work = Path(request["work"])
    model, adapter = work / "model.gguf", work / "adapter.gguf"
    if answer.attempt("convert", lambda: convert(request, answer, model)) is None:
        return
    if request["adapter"] and answer.attempt("convert_adapter", lambda: convert_adapter(request, adapter)) is None:
        return
    opened: list[Any] = []

    def open_model() -> str:
        opened.append(llama_cpp.Llama(
            str(model), lora_path=str(adapter) if request["adapter"] else None, n_ctx=1024, n_batch=1024,
            verbose=False, n_threads=request["threads"], n_threads_batch=request["threads"],
        ))  # fmt: skip
        return str(opened[0].metadata["general.architecture"])

    if answer.attempt("open", open_model) is None:
        return
    (llama,) = opened
    answer.attempt("ids", lambda: [llama.tokenize(text.encode(), special=True) for text in request["texts"]])
    answer.attempt("chat_ids", lambda: [chat_ids(llama, text) for text in request["contents"]])
    answer.attempt("tokens", lambda: [generate(llama, prompt, request["tokens"]) for prompt in request["prompts"]])


def convert(request: Request, answer: Answer, out: Path) -> str:
    """Run convert_hf_to_gguf.py; for a tokenizer that it does not know, once more under GPT-2's name."""
    reason = convert_by(request, "convert_hf_to_gguf.py", request["model"], out)
    if "BPE pre-tokenizer was not recognized" in reason or "FileNotFoundError" in reason:
        answer.note(f"convert_hf_to_gguf.py refuses the tokenizer ({reason}); converted under GPT-2's name")
        reason = convert_by(request, request["converter"]["any_tokenizer"], request["model"], out)
    if reason:
        raise RuntimeError(reason)
    return "convert_hf_to_gguf.py"


def convert_adapter(request: Request, out: Path) -> str:
    """Run convert_lora_to_gguf.py."""
    reason = convert_by(request, "convert_lora_to_gguf.py", request["adapter"], out, "--base", request["model"])
    if reason:
        raise RuntimeError(reason)
    return "convert_lora_to_gguf.py"


def convert_by(request: Request, program: str, folder: str, out: Path, *options: str) -> str:
    """Run one of llama.cpp's converters; its last line where it fails."""
    sources = Path(request["converter"]["sources"])
    command = [sys.executable, str(sources / program), folder, "--outfile", str(out), "--outtype",
               "f32", *options]  # fmt: skip
    path = os.pathsep.join([str(sources / "gguf-py"), str(sources)])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return "" if out.is_file() and not done.returncode else (lines or [f"{program} failed"])[-1]


def chat_ids(llama: Any, content: str) -> list[int]:
    """The ids of a user's turn by the chat template in the file's metadata."""
    formatter = chat_format.Jinja2ChatFormatter(
        template=llama.metadata["tokenizer.chat_template"], eos_token="", bos_token=""
    )
    text = formatter(messages=messages(content)).prompt
    found: list[int] = llama.tokenize(text.encode(), add_bos=False, special=True)
    return found


def generate(llama: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens of a prompt, until one that the file's vocabulary marks as an end of generation."""
    ids: list[int] = []
    vocabulary = llama_cpp.llama_model_get_vocab(llama.model)
    for token in llama.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0, reset=True):
        if llama_cpp.llama_vocab_is_eog(vocabulary, token) or len(ids) == count:
            break
        ids.append(token)
    return ids


if __name__ == "__main__":
    run(("llama-cpp-python",), answer_request)
