"""Rows of an encoder-decoder: what its encoder reads, what its decoder learns, and what was cut of either."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data.row_files import write_jsonl, write_template
from tiny_models import write_tokenizer
from transformers import AutoTokenizer

from luthier.data.batches import Layout, collate
from luthier.data.ledger import lines
from luthier.data.prepare import Dataset, DataSettings, prepare
from luthier.data.tokenize import Tokenizer
from luthier.errors import DataError, SettingError

START, PAD = 3, 3
ROWS = [{"q": "the cat", "a": "red"}, {"q": "one two three question the dog sat on mat", "a": "blue green good bad"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that ends each text by itself, in the folder of an encoder-decoder."""
    place = tmp_path_factory.mktemp("t5")
    write_tokenizer(place, closing=True)
    (place / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    return place


def prepared(place: Path, folder: Path, **settings: object) -> Dataset:
    write_jsonl(place / "rows" / "train.jsonl", ROWS)
    write_template(place / "rows", "{q}", "{a}")
    chosen = {"kind": "instruction", "validation_split_ratio": 0.0, "demarcation": False} | settings
    return prepare(
        {"training": place / "rows"},
        DataSettings(**chosen),  # type: ignore[arg-type]
        Tokenizer.load(folder),
        place / "cache",
    )


def test_prompt_and_completion_are_what_the_tokenizer_itself_makes_of_them(tmp_path: Path, folder: Path) -> None:
    plain = AutoTokenizer.from_pretrained(folder)
    rows = prepared(tmp_path, folder).tokens
    for index, row in enumerate(ROWS):
        ids, trained = rows.row(index)
        assert ids[~trained].tolist() == plain(row["q"])["input_ids"]
        assert ids[trained].tolist() == plain(row["a"])["input_ids"]


def test_the_served_prompt_is_the_trained_prompt(tmp_path: Path, folder: Path) -> None:
    found = prepared(tmp_path, folder)
    tokenizer = Tokenizer.load(folder)
    for index, example in enumerate(found.examples(np.arange(2))):
        ids, trained = found.tokens.row(index)
        assert tokenizer.prompt_ids(example) == ids[~trained].tolist()


def test_what_is_cut_of_prompt_or_completion_is_accounted_for(tmp_path: Path, folder: Path) -> None:
    whole = prepared(tmp_path / "whole", folder).tokens
    found = prepared(tmp_path / "cut", folder, max_input_length=6, max_output_length=4)
    tokenizer = Tokenizer.load(folder)
    ids, trained = found.tokens.row(1)
    uncut, uncut_trained = whole.row(1)
    source, target = uncut[~uncut_trained], uncut[uncut_trained]
    assert ids[~trained].tolist() == [*source[:5], tokenizer.eos_id]  # the encoder's text still ends
    assert ids[trained].tolist() == target[:4].tolist()  # the decoder does not learn to stop there
    assert tokenizer.eos_id not in ids[trained]
    line = list(lines(found.table, found.split.row_splits))[1]
    assert (line["fate"], line["cut_prompt"]) == ("truncated", len(source) - 6)
    assert line["cut"] == len(source) - 6 + len(target) - 4
    assert line["tokens"] == 10
    assert line["completion_tokens"] == 4


@pytest.mark.parametrize("packed", [True, False])
def test_a_batch_shifts_each_target_by_one(tmp_path: Path, folder: Path, packed: bool) -> None:
    tokens = prepared(tmp_path, folder).tokens
    batch = collate(tokens, [0, 1], Layout(packed, PAD, START))
    assert batch.source is not None
    targets = [tokens.row(row)[0][tokens.row(row)[1]] for row in (0, 1)]
    sources = [tokens.row(row)[0][~tokens.row(row)[1]] for row in (0, 1)]
    assert batch.row_lengths == tuple(map(len, targets))
    assert batch.source.row_lengths == tuple(map(len, sources))
    assert batch.labels_N.tolist() == [*targets[0], *targets[1]]
    assert batch.row_of_label_N.tolist() == [0] * len(targets[0]) + [1] * len(targets[1])
    read = batch.input_ids_BT.flatten()[batch.positions_N].tolist()
    assert read == [START, *targets[0][:-1], START, *targets[1][:-1]]
    assert batch.tokens == sum(map(len, targets)) + sum(map(len, sources))
    if packed:
        assert batch.source.input_ids_BS.tolist() == [[*sources[0], *sources[1]]]
        assert batch.source.attention_mask_BS is None
    else:
        assert batch.source.attention_mask_BS is not None
        assert batch.source.attention_mask_BS.sum(1).tolist() == list(map(len, sources))


def test_padding_can_be_asked_to_a_width(tmp_path: Path, folder: Path) -> None:
    tokens = prepared(tmp_path, folder).tokens
    batch = collate(tokens, [0, 1], Layout(False, PAD, START, widths=(40, 30)))
    assert batch.source is not None
    assert (batch.source.input_ids_BS.shape[1], batch.input_ids_BT.shape[1]) == (40, 30)


def test_only_pairs_can_be_learned(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "domain").mkdir()
    (tmp_path / "domain" / "corpus.txt").write_text("the cat sat on the mat\n" * 50)
    settings = DataSettings(kind="domain")
    with pytest.raises(DataError, match="encoder-decoder"):
        prepare({"training": tmp_path / "domain"}, settings, Tokenizer.load(folder), tmp_path / "cache")
    with pytest.raises(SettingError, match="completion_only_loss=False"):
        prepared(tmp_path, folder, completion_only=False)
