"""OpenVINO GenAI: optimum-intel's export in float32, then LLMPipeline on the CPU; adapters by its own AdapterConfig."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from bench.engine_programs.program import Answer, Request, before_stop, messages, run, run_converter

np: Any = importlib.import_module("numpy")
openvino: Any = importlib.import_module("openvino")
openvino_genai: Any = importlib.import_module("openvino_genai")


def answer_request(request: Request, answer: Answer) -> None:
    """Export the model, open it, tokenize, generate."""
    exported = Path(request["work"]) / "model"
    if answer.attempt("convert", lambda: export(request["model"], exported)) is None:
        return
    pipeline = None

    def open_pipeline() -> str:
        nonlocal pipeline
        pipeline = pipeline_of(request, exported)
        return "LLMPipeline"

    if answer.attempt("open", open_pipeline) is None:
        return
    tokenizer: Any = openvino_genai.Tokenizer(str(exported))
    answer.attempt("ids", lambda: [encode(tokenizer, text, True) for text in request["texts"]])
    answer.attempt("chat_ids", lambda: [chat_ids(tokenizer, text) for text in request["contents"]])
    answer.attempt("tokens", lambda: generate(pipeline, request))


def export(folder: str, out: Path) -> str:
    """Run `optimum-cli export openvino` without compressing weights."""
    command = [str(Path(sys.executable).parent / "optimum-cli"), "export", "openvino", "--model", folder, "--task",
               "text-generation-with-past", "--weight-format", "fp32", str(out)]  # fmt: skip
    run_converter(command)
    return "optimum-cli"


def pipeline_of(request: Request, exported: Path) -> Any:
    """The pipeline in float32, with the adapter where there is one."""
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32",
                                "INFERENCE_NUM_THREADS": request["threads"]}  # fmt: skip
    if request["adapter"]:
        adapter = openvino_genai.Adapter(str(Path(request["adapter"]) / "adapter_model.safetensors"))
        settings["adapters"] = openvino_genai.AdapterConfig(adapter)
    return openvino_genai.LLMPipeline(str(exported), "CPU", **settings)


def encode(tokenizer: Any, text: str, special: bool) -> list[int]:
    """The ids of a text by OpenVINO's own tokenizer."""
    found: list[int] = tokenizer.encode(text, add_special_tokens=special).input_ids.data[0].tolist()
    return found


def chat_ids(tokenizer: Any, content: str) -> list[int]:
    """The ids of a user's turn, as LLMPipeline.generate makes them of a text by default."""
    return encode(tokenizer, tokenizer.apply_chat_template(messages(content), True), False)


def generate(pipeline: Any, request: Request) -> list[list[int]]:
    """Greedy tokens of each prompt."""
    answers = []
    config = pipeline.get_generation_config()
    config.max_new_tokens, config.do_sample = request["tokens"], False
    for prompt in request["prompts"]:
        ids = openvino.Tensor(np.array([prompt], np.int64))
        mask = openvino.Tensor(np.ones((1, len(prompt)), np.int64))
        found = pipeline.generate(openvino_genai.TokenizedInputs(ids, mask), config)
        answers.append(before_stop(found.tokens[0], sorted(config.stop_token_ids)))
    return answers


if __name__ == "__main__":
    run(("openvino-genai", "optimum-intel", "transformers"), answer_request)
