"""Held-out rows: scores equal to those of transformers, and generation for a seeded sample."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import ARCHITECTURES, write_model, write_rows
from transformers import AutoModelForCausalLM

from luthier.data.prepare import Dataset, prepare
from luthier.data.settings import DataSettings
from luthier.data.tokenize import Tokenizer
from luthier.errors import SettingError
from luthier.evaluation.few_shot import FewShotRows, draw_few_shot_examples
from luthier.evaluation.held_out import MAX_NEW_TOKENS, HeldOutScorer, ScoreSettings
from luthier.weights.load import load_model

CPU = torch.device("cpu")


def prepared_at(tmp_path: Path, tokenizer: Tokenizer, count: int = 12) -> Dataset:
    rows = write_rows(tmp_path / "rows" / "train.jsonl", count).parent
    settings = DataSettings(kind="instruction", validation_split_ratio=0, context_length=256)
    return prepare({"training": rows}, settings, tokenizer, tmp_path / "cache")


def settings(sample: int, packing: bool = True) -> ScoreSettings:
    return ScoreSettings(generation_rows=sample, seed=1, rows_per_batch=5, packing=packing)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_row_scores_as_in_transformers_alone(tmp_path: Path, architecture: str, packing: bool) -> None:
    base = write_model(tmp_path / "model", architecture)
    tokenizer = Tokenizer.load(base)
    prepared = prepared_at(tmp_path, tokenizer)
    scorer = HeldOutScorer(prepared, tokenizer, prepared.split.train, settings(3, packing))
    path = tmp_path / "scores.jsonl"
    done: list[int] = []
    scorer.score(load_model(base, CPU, torch.float32, frozen=True), path, done.append)
    assert sum(done) == scorer.work == 15

    network = AutoModelForCausalLM.from_pretrained(base)
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert len({line["row"] for line in lines}) == 12
    assert sum(line["prediction"] is not None for line in lines) == 3
    for index, line in zip(prepared.split.train.tolist(), lines, strict=True):
        ids, trained = prepared.tokens.row(index)
        labels = torch.from_numpy(np.where(trained, ids, -100))[None]
        with torch.no_grad():
            output = network(torch.from_numpy(ids)[None], labels=labels, use_cache=False)
        assert line["tokens"] == int(trained.sum())
        assert line["loss_sum"] / line["tokens"] == pytest.approx(output.loss.item(), rel=1e-5)
        likeliest = output.logits[0, :-1].argmax(-1).numpy()
        assert line["correct"] == int((likeliest == ids[1:])[trained[1:]].sum())


def test_the_sample_is_seeded_and_bounded(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_model(tmp_path / "model", "llama"))
    prepared = prepared_at(tmp_path, tokenizer)
    rows = prepared.split.train
    first, again = (HeldOutScorer(prepared, tokenizer, rows, settings(4)).sample for _ in range(2))
    assert first == again
    assert len(first) == 4
    assert len(HeldOutScorer(prepared, tokenizer, rows, settings(-1)).sample) == 12
    assert HeldOutScorer(prepared, tokenizer, rows, settings(0)).sample == set()
    longest = int(prepared.tokens.trained_counts.max())
    room = HeldOutScorer(prepared, tokenizer, rows, settings(-1)).max_new_tokens
    assert longest <= room <= MAX_NEW_TOKENS


def test_examples_in_the_prompt_are_before_the_row_and_carry_no_loss(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_model(tmp_path / "model", "llama", positions=2048))
    prepared = prepared_at(tmp_path, tokenizer)
    pool, rows = prepared.split.train[:4], prepared.split.train[4:]
    shots = draw_few_shot_examples(prepared, pool, 2, seed=0)
    (tmp_path / "shots").mkdir()
    with_shots = FewShotRows(prepared, tokenizer, rows, shots, tmp_path / "shots", context=2048)
    scored = {example.source for example in prepared.examples(rows)}
    assert not scored & {shot.source for shot in shots}
    before = "".join(piece.text for shot in shots for piece in shot.pieces[:1]) != ""
    assert before
    for place, row in enumerate(rows.tolist()):
        ids, trained = with_shots.tokens.row(place)
        alone, alone_trained = prepared.tokens.row(row)
        assert ids[-len(alone) :].tolist() == alone.tolist()
        assert trained.sum() == alone_trained.sum()
        assert not trained[: -len(alone)].any()
    example = next(with_shots.examples(with_shots.rows[:1]))
    ids, trained = with_shots.tokens.row(0)
    assert tokenizer.prompt_ids(example) == ids[: np.argmax(trained)].tolist()


def test_more_examples_than_there_are_is_one_line(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_model(tmp_path / "model", "llama"))
    prepared = prepared_at(tmp_path, tokenizer)
    with pytest.raises(SettingError, match="--shots 9: only 4 rows are available"):
        draw_few_shot_examples(prepared, prepared.split.train[:4], 9, seed=0)
    shots = draw_few_shot_examples(prepared, prepared.split.train[:4], 4, seed=0)
    (tmp_path / "shots").mkdir()
    with pytest.raises(SettingError, match="the model's context of 256; use a smaller number"):
        FewShotRows(prepared, tokenizer, prepared.split.train[4:], shots, tmp_path / "shots", context=256)
