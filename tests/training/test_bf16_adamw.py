"""AdamW in bf16: its rounding is fair, its update AdamW's, and every rank and resumed run draws the same noise."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import torch
from architectures.test_forward import batch_of, random_rows
from architectures.test_training_curves import network, rows_of
from tiny_models import SHAPES as SHAPES_OF
from tiny_models import network_of
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from training.job_folders import lines
from training.rank_harness import run_job_on_rank, run_on_ranks
from training.training_harness import TrainingHarness
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.training import bf16_adamw
from luthier.training.bf16_adamw import BF16_MAX, Bf16AdamW, Noise, round_stochastically
from luthier.training.config import OptimizerSettings
from luthier.training.optimizer import build_optimizer, optimizer_tensors, restore_optimizer
from luthier.training.process_group import ProcessGroup
from luthier.training.step import MicroBatches, take_step
from luthier.training.tensor_file import full_tensor
from luthier.weights.model import Model

CPU = torch.device("cpu")
BF16 = torch.bfloat16
SETTINGS = OptimizerSettings(
    learning_rate=1e-3, scheduler="constant", warmup_ratio=0.0, warmup_steps=0, weight_decay=0.1, betas=(0.9, 0.999),
    epsilon=1e-8, max_grad_norm=0.0, min_learning_rate=0.0, constant_steps=0, label_smoothing=0.0, in_bf16=True,
)  # fmt: skip
ULP = 2.0**-7  # distance between neighbours of bf16, at most, as a share of the number


def noises(count: int, seed: int = 3) -> list[Tensor]:
    """Noise for `count` numbers at 1,000 addresses, twice at each, as the optimizer draws it."""
    source = Noise(seed, CPU)
    return [noise for step in range(1000) for noise in source.draw(f"{step}:5:0", slice(7, 7 + count))]


# Rounding


def test_rounding_is_fair() -> None:
    """The mean of many roundings is the number itself; nearest numbers fail the same bound."""
    numbers = torch.randn(500, generator=torch.Generator().manual_seed(1)) * 10.0 ** torch.arange(-250, 250).div(25)
    drawn = noises(len(numbers))
    found = torch.stack([round_stochastically(numbers.clone(), noise) for noise in drawn]).double()
    below = torch.stack([round_stochastically(numbers.clone(), torch.zeros_like(drawn[0]))])[0].double()
    step = (found - below).abs().amax(0)
    assert bool(((found == below) | ((found - below).abs() == step)).all()), "one of two neighbours"
    bound = 5 * step / 2 / len(drawn) ** 0.5  # five standard deviations of the mean, of the widest coin there is
    assert bool(((found.mean(0) - numbers.double()).abs() <= bound).all())
    assert not bool(((numbers.bfloat16().double() - numbers.double()).abs() <= bound).all())
    assert torch.equal(found, found.to(BF16).double())


def test_what_bf16_has_stays() -> None:
    numbers = torch.randn(1000, generator=torch.Generator().manual_seed(2)).to(BF16).float()
    numbers[:4] = torch.tensor([0.0, -0.0, BF16_MAX, 2.0**-133])  # the last one is subnormal
    for noise in noises(1000)[:50]:
        found = round_stochastically(numbers.clone(), noise)
        assert torch.equal(found.view(torch.int32), numbers.view(torch.int32))


@pytest.mark.parametrize("noise", [0, 1, 0x8000, 0xFFFF])
def test_no_finite_number_becomes_infinite_and_no_other_finite(noise: int) -> None:
    endless, none = float("inf"), float("nan")
    numbers = torch.tensor([3.4e38, -3.4e38, BF16_MAX, endless, -endless, none, none, 1.0 + 2.0**-8, 1.0])
    numbers.view(torch.int32)[6] = 0x7FFFFFFF  # a carry would run through all of it
    found = round_stochastically(numbers.clone(), torch.full((9,), noise, dtype=torch.int32)).to(BF16)
    assert found[:5].tolist() == [BF16_MAX, -BF16_MAX, BF16_MAX, endless, -endless]
    assert bool(found[5:7].isnan().all())
    assert found[7:].tolist() == [1.0 + (2.0**-7 if noise >= 0x8000 else 0.0), 1.0]


def test_noise_is_even_and_of_its_address() -> None:
    drawn = torch.stack(noises(400)).double()
    assert (drawn.min(), drawn.max()) == (drawn.min().clamp(0), drawn.max().clamp(max=0xFFFF))
    spread = 65536 / 12**0.5
    for means, count in ((drawn.mean(0), len(drawn)), (drawn.mean(1), 400)):
        assert bool(((means - 32767.5).abs() < 6 * spread / count**0.5).all())
    for bit in range(16):
        assert (drawn.long() >> bit & 1).double().mean().item() == pytest.approx(0.5, abs=0.005)
    apart = torch.corrcoef(drawn[:300])
    assert (apart - torch.eye(300)).abs().max() < 6 / 400**0.5
    assert torch.equal(drawn, torch.stack(noises(400)).double())
    assert not torch.equal(drawn, torch.stack(noises(400, seed=4)).double())


# The update


def parameters_of(dtype: torch.dtype, *shapes: tuple[int, ...]) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    found = {f"p{number}": torch.randn(shape, generator=generator) for number, shape in enumerate(shapes)}
    return {name: nn.Parameter(value.to(BF16).to(dtype)) for name, value in found.items()}


def give_gradients(parameters: dict[str, nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(BF16).to(parameter.dtype)


SHAPES = ((37, 11), (64,), (5, 8, 3), (1,))


def test_an_update_is_adamws_but_for_the_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same weights and moments torch's own, in fp32, ends less than one step of bf16 away. In many pieces."""
    monkeypatch.setattr(bf16_adamw, "CPU_CHUNK", 64)
    own, plain = parameters_of(BF16, *SHAPES), parameters_of(torch.float32, *SHAPES)
    optimizer = build_optimizer(own, SETTINGS)
    assert isinstance(optimizer, Bf16AdamW)
    for step in range(3):
        give_gradients(own, step)
        optimizer.step()
    reference = build_optimizer(plain, replace(SETTINGS, in_bf16=False))
    assert isinstance(reference, torch.optim.AdamW)
    start = optimizer_tensors(optimizer, own)
    restore_optimizer(reference, plain, {name: value.float().clone() for name, value in start.items()})
    with torch.no_grad():
        for name, value in own.items():
            plain[name].copy_(value)
    for parameters, updated in ((own, optimizer), (plain, reference)):
        give_gradients(parameters, 3)
        for group in updated.param_groups:
            group["lr"] = 0.01
        updated.step()
    found, expected = optimizer_tensors(optimizer, own), optimizer_tensors(reference, plain)
    pairs = [(found[name], value) for name, value in expected.items()]
    pairs += [(own[name].detach(), value.detach()) for name, value in plain.items()]
    assert len(pairs) == 4 * len(SHAPES)
    for one, other in pairs:
        assert one.dtype is (BF16 if one.ndim else torch.float32)
        torch.testing.assert_close(one.float(), other, rtol=ULP, atol=1e-30)
    errors = torch.cat([((one.float() - other) / other).flatten() for one, other in pairs if one.ndim])
    assert errors.abs().max() > 0
    assert errors.mean().abs() < 6 * ULP / len(errors) ** 0.5


def test_the_second_moment_comes_down() -> None:
    """Without a gradient it halves in 693 steps; rounded to the nearest number, it never moves."""
    weight = nn.Parameter(torch.zeros(4096, dtype=BF16))
    optimizer = build_optimizer({"w": weight}, SETTINGS)
    weight.grad = torch.rand(4096).add_(0.5).to(BF16)
    optimizer.step()
    moment = optimizer.state[weight]["exp_avg_sq"]
    before = moment.clone()
    nearest = moment.clone()
    weight.grad = torch.zeros_like(weight)
    for _ in range(693):
        optimizer.step()
        nearest = (nearest.float() * 0.999).to(BF16)
    assert torch.equal(nearest, before)
    assert (moment.float() / before.float()).mean() == pytest.approx(0.5, rel=0.01)


def test_steps_too_small_for_bf16_add_up() -> None:
    """A thousand steps of 1e-4 take a weight of 1 down to 0.9; the nearest number to each is 1."""
    weight = nn.Parameter(torch.ones(4096, dtype=BF16))
    optimizer = build_optimizer({"w": weight}, replace(SETTINGS, learning_rate=1e-4))
    for _ in range(1000):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert weight.detach().float().mean().item() == pytest.approx(0.9, abs=0.001)


def test_what_is_not_bf16_is_updated_exactly() -> None:
    """A parameter that an architecture keeps in fp32."""
    own, plain = parameters_of(torch.float32, *SHAPES), parameters_of(torch.float32, *SHAPES)
    pair = (own, build_optimizer(own, SETTINGS)), (plain, build_optimizer(plain, replace(SETTINGS, in_bf16=False)))
    for parameters, optimizer in pair:
        for step in range(4):
            give_gradients(parameters, step)
            optimizer.step()
    for name, value in own.items():
        assert own[name].dtype is torch.float32
        torch.testing.assert_close(value, plain[name], rtol=1e-6, atol=1e-7)


def test_a_parameter_without_a_gradient_stays() -> None:
    parameters = parameters_of(BF16, (3, 4), (3, 4))
    before = parameters["p1"].detach().clone()
    optimizer = build_optimizer(parameters, SETTINGS)
    give_gradients(parameters, 0)
    parameters["p1"].grad = None
    optimizer.step()
    assert torch.equal(parameters["p1"], before)
    assert set(optimizer_tensors(optimizer, parameters)) == {"p0/step", "p0/exp_avg", "p0/exp_avg_sq"}


def test_a_restored_one_goes_on_bit_by_bit_and_leaves_torchs_numbers_alone() -> None:
    def course(stop: int | None) -> dict[str, nn.Parameter]:
        parameters = parameters_of(BF16, *SHAPES)
        optimizer = build_optimizer(parameters, SETTINGS, seed=8)
        for step in range(6):
            if step == stop:
                stored = {name: value.clone() for name, value in optimizer_tensors(optimizer, parameters).items()}
                optimizer = build_optimizer(parameters, SETTINGS, seed=8)
                restore_optimizer(optimizer, parameters, stored)
            give_gradients(parameters, step)
            optimizer.step()
        return parameters

    state = torch.get_rng_state()
    through, resumed = course(None), course(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, resumed[name]) for name, value in through.items())


@pytest.mark.parametrize("architecture", SHAPES_OF)
def test_every_architecture_learns(architecture: str) -> None:
    """Ten steps on the same rows take the loss down as far as fp32 masters do."""
    losses = []
    for in_bf16 in (True, False):
        plain = network_of(architecture)
        model = Model(plain.bfloat16() if in_bf16 else plain, BF16, CPU)
        model.network.train()
        batch = batch_of(plain, random_rows([9, 14, 30]), packed=model.supports_packing)
        optimizer = build_optimizer(model.trainable_parameters(), replace(SETTINGS, in_bf16=in_bf16))
        course = [
            take_step(model, optimizer, MicroBatches([batch], f"0:{step}", ProcessGroup()), 3e-3, 1.0)
            for step in range(10)
        ]
        losses.append((course[0].loss, course[-1].loss))
    (start, end), (expected_start, expected_end) = losses
    assert start == pytest.approx(expected_start, rel=0.01)
    assert start - end == pytest.approx(expected_start - expected_end, rel=0.1)
    assert expected_end < 0.9 * expected_start


# Several ranks


def updated(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], group: ProcessGroup
) -> dict[str, Tensor]:
    for step in range(3):
        give_gradients(parameters, step)
        for parameter in parameters.values() if group.world_size > 1 else ():
            assert parameter.grad is not None
            mesh = init_device_mesh("cpu", (group.world_size,))
            parameter.grad = distribute_tensor(parameter.grad, mesh, [Shard(0)])
        optimizer.step()
    everything = parameters | optimizer_tensors(optimizer, parameters)
    return {name: full_tensor(value.detach()) for name, value in everything.items()}


def update_shards(group: ProcessGroup) -> dict[str, Tensor]:
    bf16_adamw.CPU_CHUNK = 64
    mesh = init_device_mesh("cpu", (group.world_size,))
    whole_ones = parameters_of(BF16, *SHAPES)
    parameters = {name: nn.Parameter(distribute_tensor(value.detach(), mesh, [Shard(0)]))
                  for name, value in whole_ones.items()}  # fmt: skip
    return updated(build_optimizer(parameters, SETTINGS), parameters, group)


def test_shards_are_rounded_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that do not divide by the ranks, and a tensor of which only one rank has any."""
    monkeypatch.setattr(bf16_adamw, "CPU_CHUNK", 64)
    parameters = parameters_of(BF16, *SHAPES)
    expected = updated(build_optimizer(parameters, SETTINGS), parameters, ProcessGroup())
    for found in run_on_ranks(3, update_shards):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=2048, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(shape)


def four_steps(group: ProcessGroup) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and weights; a step has two micro-batches."""
    model = Model(tiny().bfloat16(), BF16, CPU)
    model.network.train()
    optimizer = build_optimizer(model.trainable_parameters(), SETTINGS, seed=1)
    losses = []
    for step in range(4):
        own = group.shard([batch_of(model.hf_model, rows_of(2 * step + part), packed=True) for part in range(2)])
        losses.append(take_step(model, optimizer, MicroBatches(own, f"0:{step}", group), 1e-2, 1.0).loss)
    return losses, {name: value.detach() for name, value in model.trainable_parameters().items()}


def test_two_ranks_do_what_one_does_bit_by_bit() -> None:
    losses, weights = four_steps(ProcessGroup())
    for found, theirs in run_on_ranks(2, four_steps):
        assert found == pytest.approx(losses, rel=1e-6)
        assert all(torch.equal(theirs[name], value) for name, value in weights.items())


def test_a_sharded_run_learns_what_one_rank_learns(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its layers are computed by others, in another order of sums: equal but for bf16's rounding."""
    harness = TrainingHarness(tmp_path_factory.mktemp("sharded"))
    settings = {"peft_type": "none", "bf16": True, "optim": "adamw_bf16"}
    folder = harness.lay_out(**settings, enable_fsdp=True, ranks=2)
    run_on_ranks(2, run_job_on_rank, str(folder.root))
    losses = [line["loss"] for line in lines(folder) if "loss" in line]
    expected = harness.run(**settings, gradient_accumulation_steps=2).losses
    assert losses == pytest.approx(expected, rel=0.01)


# Whole courses


def tail_loss(plain: LlamaForCausalLM, in_bf16: bool, seed: int, steps: int, tail: int) -> float:
    """Mean loss of the last steps; it must have come down."""
    model = Model(plain.bfloat16() if in_bf16 else plain, BF16, CPU)
    model.network.train()
    optimizer = build_optimizer(
        model.trainable_parameters(), replace(SETTINGS, weight_decay=0.0, in_bf16=in_bf16), seed
    )
    losses = []
    for step in range(steps):
        micro_batches = MicroBatches(
            [batch_of(plain, rows_of(seed * steps + step), packed=True)], f"{seed}:{step}", ProcessGroup()
        )
        losses.append(take_step(model, optimizer, micro_batches, 1e-3, 1.0).loss)
    assert statistics.mean(losses[-tail:]) < 0.95 * losses[0]
    return statistics.mean(losses[-tail:])


def test_forty_steps_learn_as_much() -> None:
    found, expected = (tail_loss(tiny(), in_bf16, 0, 40, 10) for in_bf16 in (True, False))
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.slow
def test_it_trains_as_fp32_masters_do() -> None:
    """300 steps of 10 million parameters, three seeds."""
    plain, found = ([tail_loss(network(), in_bf16, seed, 300, 20) for seed in range(3)] for in_bf16 in (False, True))
    gap = statistics.mean(a - b for a, b in zip(found, plain, strict=True))
    print(f"fp32 {plain}, bf16 {found}, gap {gap:+.5f}, seeds' deviation {statistics.stdev(plain):.5f}")
    assert abs(gap) <= max(2 * statistics.stdev(plain), 0.01 * statistics.mean(plain))
