"""Pretraining from scratch: a tokenizer, new weights, and the ordinary training job on running text, phase by phase.

    corpus.jsonl --BPE--> tokenizer ----.
    recipe.yaml  --shape--> config.json -+--> phase 1 (new weights) --> phase 2 --> ... --> model folder

A phase is a domain-adaptation job over the whole corpus with its own hyperparameters; each starts from the weights of
the previous one. This is how `luthier/tiny` was made (pretraining/README.md). Run as
``python -m luthier.training.pretrain`` with a JSON request on standard input.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import yaml
from rich.console import Console
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig

from luthier import entrypoint
from luthier.errors import SettingError, UserError, did_you_mean
from luthier.jobfolder import JobFolder, write_json
from luthier.jobspec import JobSpec
from luthier.training.job import run_job
from luthier.weights.artifact import save_weights
from luthier.weights.load import find_device, load_model

END_OF_TEXT, TURN_START, TURN_END, PAD = CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe file. `model` are LlamaConfig's fields; `phases` are sets of hyperparameters, run in order."""

    vocab_size: int
    model: Mapping[str, Any]
    phases: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read and check a YAML recipe; SettingError names what is unknown or missing."""
        stored = yaml.safe_load(path.read_text("utf-8"))
        known = ("vocab_size", "model", "phases")
        if not isinstance(stored, dict):
            raise SettingError(f"{path}: expected a mapping with {', '.join(known)}")
        for name in stored:
            if name not in known:
                raise SettingError(f"{path}: unknown field {name!r}{did_you_mean(name, known)}")
        for name in known:
            if not stored.get(name):
                raise SettingError(f"{path}: {name} is missing")
        return cls(int(stored["vocab_size"]), stored["model"], tuple(stored["phases"]))


def pretrain(corpus: Path, out: Path, recipe: Recipe, overrides: Mapping[str, str], console: Console) -> Path:
    """Pretrain and return the model folder (`out`/model). A second call resumes an interrupted one."""
    if not corpus.is_file() or corpus.suffix != ".jsonl":
        raise UserError(f'{corpus}: expected a .jsonl file of {{"text": ...}} lines')
    start = out / "start"
    if not (start / "tokenizer.json").exists():
        console.print(f"training a tokenizer of {recipe.vocab_size:,} pieces")
        write_tokenizer(corpus, start, recipe.vocab_size)
        write_config(start, recipe)
    base = start
    for number, phase in enumerate(recipe.phases, 1):
        folder = JobFolder(out / f"phase-{number}")
        if not folder.artifact.exists():
            console.print(f"[bold]phase {number} of {len(recipe.phases)}[/]")
            resume = folder.config.exists()
            if not resume:
                fixed = {"peft_type": "none", "parse_special_tokens": True, "train_from_scratch": number == 1}
                settings = {name: str(value) for name, value in (dict(phase) | fixed | dict(overrides)).items()}
                spec = JobSpec(
                    model=str(base), kind="domain", score_rows=0, hyperparameters=settings,
                    command=["luthier", "pretrain", str(corpus)],
                )  # fmt: skip
                folder.create(spec, {"training": corpus})
            run_job(folder, resume, console)
        base = folder.model
    return publish(base, out / "model")


def write_tokenizer(corpus: Path, folder: Path, vocab_size: int) -> None:
    """Train a byte-level BPE (digits one by one) on the corpus and write it in transformers' layout."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(CONTROL_TOKENS), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(_plain_texts(corpus), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,  # as in GPT-2: named for converters, and put before no text
            "eos_token": END_OF_TEXT,
            "unk_token": END_OF_TEXT,
            "pad_token": PAD,
            "model_max_length": 2048,
            "clean_up_tokenization_spaces": False,
        },
    )
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")


def _plain_texts(corpus: Path) -> Iterator[str]:
    """The texts without control-token strings, which must not become pieces of their own."""
    with open(corpus, encoding="utf-8") as lines:
        for line in lines:
            text = json.loads(line)["text"]
            for control in CONTROL_TOKENS:
                text = text.replace(control, "\n")
            yield text


def write_config(folder: Path, recipe: Recipe) -> None:
    """config.json and generation_config.json of the shape in the recipe."""
    config = LlamaConfig(
        **recipe.model, vocab_size=recipe.vocab_size, architectures=["LlamaForCausalLM"], bos_token_id=None,
        eos_token_id=CONTROL_TOKENS.index(END_OF_TEXT), pad_token_id=CONTROL_TOKENS.index(PAD),
    )  # fmt: skip
    config.save_pretrained(str(folder))
    ends = [CONTROL_TOKENS.index(END_OF_TEXT), CONTROL_TOKENS.index(TURN_END)]
    write_json(folder / "generation_config.json", {"eos_token_id": ends, "pad_token_id": CONTROL_TOKENS.index(PAD)})


def publish(trained: Path, folder: Path) -> Path:
    """Write the finished model in bf16, ready to be named by --model."""
    model = load_model(trained, find_device("cpu"), torch.bfloat16, frozen=True)
    save_weights(model, trained, folder)
    return folder


def main() -> None:
    """Read the request, pretrain, and print the model folder."""
    request = json.load(sys.stdin)
    console = Console()
    recipe = Recipe.read(Path(request["config"]))
    overrides = request.get("hyperparameters") or {}
    folder = pretrain(Path(request["corpus"]), Path(request["out"]), recipe, overrides, console)
    console.print(f"model  {folder}", highlight=False)


if __name__ == "__main__":
    entrypoint.run(main)
