"""luthier/tiny as it is packaged: small, whole, and a working base model without a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.catalog import find
from luthier.catalog.locate import EMBEDDED, locate
from luthier.data.example import Example, Piece
from luthier.data.tokenize import Tokenizer
from luthier.weights.generate import generate
from luthier.weights.load import load_model

CPU = torch.device("cpu")
TEXT = (
    "Tom has 3 apples and buys 4 more. How many apples does Tom have now? Tom has 3 + 4 = 7 apples. "
    "It was a rainy day and the cat slept by the fire. The girl was happy because her friend came to visit."
)


def test_it_comes_with_luthier_and_is_small() -> None:
    assert locate("luthier/tiny").folder == EMBEDDED
    assert sum(file.stat().st_size for file in EMBEDDED.iterdir()) <= 12_000_000
    names = {file.name for file in EMBEDDED.iterdir()}
    assert names >= {"model.safetensors", "config.json", "tokenizer.json", "README.md"}


def test_plain_transformers_loads_it_as_the_catalogue_says() -> None:
    entry = find("luthier/tiny")
    assert entry is not None
    network = AutoModelForCausalLM.from_pretrained(EMBEDDED)
    assert type(network).__name__ == entry.architecture
    assert network.num_parameters() == entry.parameters
    assert network.config.max_position_embeddings == entry.context_length >= 2048
    assert AutoTokenizer.from_pretrained(EMBEDDED).chat_template


def test_every_text_survives_its_tokenizer() -> None:
    tokenizer = Tokenizer.load(EMBEDDED)
    for text in (TEXT, "naïve 猫 🙂\n\t\x00  <|endoftext|> </s> 12345"):
        assert tokenizer.decode(tokenizer.encode([Piece(text, True)])) == text


def test_it_has_learned_english() -> None:
    """Far better than chance (8.3 nats) on everyday sentences, in the first tokens and deep into its context."""
    tokenizer, network = Tokenizer.load(EMBEDDED), AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    ids = tokenizer.encode([Piece(TEXT, True)])
    with torch.no_grad():
        short = network(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
        filler = tokenizer.encode([Piece("The dog sat on the mat. " * 400, True)])[: 2000 - len(ids)]
        row = torch.tensor([[*filler, *ids]])
        labels = torch.tensor([[-100] * len(filler) + ids])
        deep = network(row, labels=labels).loss.item()
    assert short < 4.0
    assert deep < 5.0


def test_it_answers_and_stops(tmp_path: Path) -> None:
    tokenizer, model = Tokenizer.load(EMBEDDED), load_model(EMBEDDED, CPU, torch.float32, frozen=True)
    assert tokenizer.chat is not None
    task = Piece("Repeat the word three times.\n\n### Input:\nriver\n\n### Response:\n", trained=False)
    asked = [
        tokenizer.prompt_ids(Example("", (task,))),
        tokenizer.prompt_ids(tokenizer.chat.render_prompt([{"role": "user", "content": "Hello! How are you?"}])),
    ]
    found = generate(model, asked, stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id, max_new_tokens=96)
    assert np.all([not generation.truncated for generation in found])
    assert all(tokenizer.decode(generation.ids).strip() for generation in found)
