"""Pretraining from nothing: tokenizer, phases, and a model folder that the rest of Luthier takes as a base model."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.data.tokenize import Tokenizer
from luthier.errors import SettingError, UserError
from luthier.training.pretrain import CONTROL_TOKENS, Recipe, pretrain

RECIPE = """
vocab_size: 400
model: {hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2,
        max_position_embeddings: 128, tie_word_embeddings: true}
phases:
  - {max_steps: 12, max_input_length: 32, per_device_train_batch_size: 4, learning_rate: 0.01}
  - {max_steps: 3, max_input_length: 64, per_device_train_batch_size: 2, learning_rate: 0.001}
"""


def corpus_at(path: Path) -> Path:
    animals = ("cat", "dog", "owl")
    texts = [f"the {animal} said {number} words to the {animal}" for animal in animals for number in range(40)]
    texts.append("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n")
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def recipe_at(path: Path, text: str = RECIPE) -> Recipe:
    path.write_text(text)
    return Recipe.read(path)


def test_phases_make_a_model_that_transformers_loads(tmp_path: Path) -> None:
    corpus, recipe = corpus_at(tmp_path / "corpus.jsonl"), recipe_at(tmp_path / "recipe.yaml")
    folder = pretrain(corpus, tmp_path / "out", recipe, {}, Console(file=io.StringIO()))
    network = AutoModelForCausalLM.from_pretrained(folder)
    assert network.config.vocab_size == 400
    assert network.generation_config.eos_token_id == [0, 2]
    assert AutoTokenizer.from_pretrained(folder).chat_template

    first, second = (
        [json.loads(line) for line in (tmp_path / "out" / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("phase-1", "phase-2")
    )
    losses = [line["loss"] for line in first if "loss" in line]
    assert losses[-1] < losses[0] - 0.5
    assert next(line["loss"] for line in second if "loss" in line) < losses[0] - 0.5  # it went on from phase 1


def test_control_tokens_of_the_corpus_are_learned_as_control_tokens(tmp_path: Path) -> None:
    corpus, recipe = corpus_at(tmp_path / "corpus.jsonl"), recipe_at(tmp_path / "recipe.yaml")
    pretrain(corpus, tmp_path / "out", recipe, {}, Console(file=io.StringIO()))
    run = json.loads((tmp_path / "out" / "phase-1" / "run.json").read_text())
    assert run["settings"]["parse_special_tokens"] is True
    tokenizer = Tokenizer.load(tmp_path / "out" / "start")
    assert tokenizer.control_tokens == sorted(CONTROL_TOKENS)
    vocabulary = json.loads((tmp_path / "out" / "start" / "tokenizer.json").read_text())["model"]["vocab"]
    assert not any("im_start" in piece for piece in vocabulary if piece not in CONTROL_TOKENS)


def test_a_second_call_does_not_repeat_finished_phases(tmp_path: Path) -> None:
    corpus, recipe = corpus_at(tmp_path / "corpus.jsonl"), recipe_at(tmp_path / "recipe.yaml")
    pretrain(corpus, tmp_path / "out", recipe, {}, Console(file=io.StringIO()))
    before = (tmp_path / "out" / "phase-1" / "metrics.jsonl").stat().st_mtime_ns
    screen = io.StringIO()
    pretrain(corpus, tmp_path / "out", recipe, {}, Console(file=screen))
    assert (tmp_path / "out" / "phase-1" / "metrics.jsonl").stat().st_mtime_ns == before
    assert "phase 1" not in screen.getvalue()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a mapping"),
        ("vocab: 3", "unknown field 'vocab'; did you mean"),
        ("vocab_size: 9", "model is missing"),
    ],
)
def test_a_bad_recipe_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        recipe_at(tmp_path / "recipe.yaml", text)


def test_a_corpus_that_is_not_jsonl_is_refused(tmp_path: Path) -> None:
    recipe = recipe_at(tmp_path / "recipe.yaml")
    with pytest.raises(UserError, match=r"expected a \.jsonl file"):
        pretrain(tmp_path / "corpus.txt", tmp_path / "out", recipe, {}, Console(file=io.StringIO()))
