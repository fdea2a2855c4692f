"""Rows of random tokens in a real token store: what batches and likelihoods are tested on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from luthier.data.tokens import TokenStore, TokenWriter

VOCAB = 320


def write_store(folder: Path, lengths: list[int], seed: int = 0, completion_only: bool = True) -> TokenStore:
    """A row of each length; its last half carries loss, and in every third row so does a stretch before it."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    writer = TokenWriter(folder, VOCAB)
    for place, length in enumerate(lengths):
        spans = [(1, 2)] * (place % 3 == 0 and length > 5) + [(max(1, length // 2), length)]
        writer.append(generator.integers(4, VOCAB, length), spans)
    writer.close()
    return TokenStore(folder, VOCAB, completion_only)


def loss_alone(network: PreTrainedModel, store: TokenStore, row: int) -> tuple[float, int, int]:
    """Of one row by Hugging Face's own forward and loss: summed nats, labels, and labels that were the likeliest."""
    ids, trained = store.row(row)
    labels = torch.from_numpy(np.where(trained, ids, -100))[None]
    with torch.no_grad():
        found = network(input_ids=torch.from_numpy(ids)[None], labels=labels, use_cache=False)
    count = int(trained.sum())
    hits = (found.logits[0, :-1].argmax(-1) == labels[0, 1:]).sum()
    return float(found.loss) * count, count, int(hits)
