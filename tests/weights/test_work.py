"""What a row costs, told beforehand, against torch's own count of multiplications."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import network_of
from torch.utils.flop_counter import FlopCounterMode

from luthier.weights.model import Model


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma", "gpt_neox", "gpt2"])
def test_work_is_what_torch_counts(name: str) -> None:
    """Of the plain model, which has a logit at every token: as many labels as tokens."""
    network = network_of(name)
    model = Model(network, torch.float32, torch.device("cpu"))
    for tokens in (8, 48):
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            network(input_ids=torch.zeros(1, tokens, dtype=torch.long))
        found = model.estimate_multiplications(np.array([tokens]), np.array([tokens])).item()
        assert found == pytest.approx(counted.get_total_flops() / 2, rel=0.15)


def test_the_head_is_met_by_labels_alone() -> None:
    network = network_of("llama")
    model = Model(network, torch.float32, torch.device("cpu"))
    without, one, two = model.estimate_multiplications(np.array([9, 9, 9]), np.array([0, 1, 2]))
    assert one - without == two - one == network.get_output_embeddings().weight.numel()
