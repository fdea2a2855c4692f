"""Weights laid out once give what the bare layers give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from luthier.layers.linear import Linear, LoraMatrices, linear
from luthier.layers.projection import Projection, can_prepack

CPU = torch.device("cpu")
SIZES = (24, 8, 8)


def layers_of(biases: str, adapters: str, dtype: torch.dtype) -> list[Linear]:
    """Layers of SIZES outputs; `biases` and `adapters` name those that have one."""
    torch.manual_seed(0)

    def low(outputs: int) -> LoraMatrices:
        return LoraMatrices(torch.randn(4, 32), torch.randn(outputs, 4), 0.5)

    return [
        Linear(
            torch.randn(size, 32, dtype=dtype),
            torch.randn(size, dtype=dtype) if str(place) in biases else None,
            low(size) if str(place) in adapters else None,
        )
        for place, size in enumerate(SIZES)
    ]


def joined(found: list[Tensor]) -> Tensor:
    assert [len(part[0]) for part in found] == list(SIZES)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("biases", "adapters"), [("", ""), ("012", ""), ("0", "02"), ("", "012")])
def test_packed_layers_give_what_the_bare_ones_give(biases: str, adapters: str, dtype: torch.dtype) -> None:
    assert can_prepack(CPU, dtype) or dtype is torch.bfloat16
    layers = layers_of(biases, adapters, dtype)
    exact = [
        Linear(layer.weight_OI.double(), None if layer.bias_O is None else layer.bias_O.double(),
               layer.adapter and LoraMatrices(layer.adapter.a_RI.double(), layer.adapter.b_OR.double(), 0.5))
        for layer in layers
    ]  # fmt: skip
    x_TI = torch.randn(5, 32).to(dtype)
    expected = joined(linear(x_TI.double(), exact)[0])
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    for packed in {False, can_prepack(CPU, dtype)}:
        found = joined(Projection(layers, dtype, packed)(x_TI))
        assert found.dtype is dtype
        assert (found - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("onto", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapted", [False, True])
def test_what_it_is_added_to_keeps_its_type(onto: torch.dtype, adapted: bool) -> None:
    layer = layers_of("0", "0" if adapted else "", torch.bfloat16)[:1]
    x_TI, residual_TO = torch.randn(3, 32).bfloat16(), torch.randn(3, SIZES[0]).to(onto)
    expected = linear(x_TI, layer, residual_TO)[0][0]
    before = residual_TO.clone()
    for packed in {False, can_prepack(CPU, torch.bfloat16)}:
        (found,) = Projection(layer, torch.bfloat16, packed)(x_TI, residual_TO)
        assert found.dtype is onto
        assert torch.equal(residual_TO, before)
        assert (found - expected).norm() <= 1e-2 * expected.norm()


def test_weights_of_another_type_are_laid_out_in_the_compute_type() -> None:
    layers = layers_of("1", "", torch.float32)
    x_TI = torch.randn(3, 32).bfloat16()
    expected = joined(linear(x_TI, layers)[0])
    for packed in {False, can_prepack(CPU, torch.bfloat16)}:
        found = joined(Projection(layers, torch.bfloat16, packed)(x_TI))
        assert found.dtype is torch.bfloat16
        assert (found - expected).norm() <= 1e-2 * expected.norm()


def test_an_adapter_too_small_for_the_rounded_result_still_adds_up() -> None:
    """Half of the smallest step of a bf16 number of that size, a thousand times: it must not be lost each time."""
    torch.manual_seed(1)
    weight = torch.randn(512, 64)
    x_TI = torch.randn(32, 64).bfloat16()
    small = LoraMatrices(torch.randn(2, 64) * 0.02, torch.randn(512, 2) * 0.02, 1.0)
    exact = x_TI.double() @ weight.bfloat16().double().t()
    change = (x_TI.double() @ small.a_RI.double().t()) @ small.b_OR.double().t()
    for packed in {False, can_prepack(CPU, torch.bfloat16)}:
        (bare,) = Projection([Linear(weight)], torch.bfloat16, packed)(x_TI)
        (found,) = Projection([Linear(weight, None, small)], torch.bfloat16, packed)(x_TI)
        moved = found.double() - bare.double()
        assert (moved * change).sum().item() == pytest.approx((change * change).sum().item(), rel=0.1)
        assert (found.double() - exact - change).norm() <= 4e-3 * exact.norm()
