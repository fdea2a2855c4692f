"""N ranks do what one does: the same rows in a step, the same losses, weights and scores, and the same way to stop."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import write_model, write_rows
from torch import Tensor
from training.job_folders import lay_out, lines, run
from training.rank_harness import run_job_on_rank, run_on_ranks

from luthier.data.prepare import prepare
from luthier.errors import SettingError
from luthier.jobfolder import JobFolder
from luthier.training import job as job_module
from luthier.training import process_group, shared_memory_reduce
from luthier.training.process_group import ProcessGroup, is_under_torchrun, timeout


def weights(folder: JobFolder) -> dict[str, Tensor]:
    return load_file(next(folder.model.glob("*.safetensors")))


def scores(folder: JobFolder, name: str) -> list[dict[str, Any]]:
    path = folder.scores / f"{name}.validation.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def assert_same_run(found: JobFolder, expected: JobFolder) -> None:
    """The same course, weights and scores, as far as sums in another order allow."""
    for line, other in zip(lines(found), lines(expected), strict=True):
        assert line == pytest.approx(other, rel=1e-5, abs=1e-6)
    for name in ("base", "tuned"):
        for row, other in zip(scores(found, name), scores(expected, name), strict=True):
            assert row["loss_sum"] == pytest.approx(other["loss_sum"], rel=1e-5)
            assert {**row, "loss_sum": 0} == {**other, "loss_sum": 0}
    resumed, whole = weights(found), weights(expected)
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        # Where a gradient is nothing but rounding (a bias that softmax cancels), Adam makes steps of it.
        torch.testing.assert_close(resumed[name], value, rtol=1e-4, atol=2e-3)


# What ranks tell each other


def test_one_rank_agrees_with_itself() -> None:
    group = ProcessGroup()
    assert (group.rank, group.world_size, group.is_main, group.should_stop) == (0, 1, True, False)
    assert group.all_reduce_values(2, 0.5) == (2, 0.5)
    assert group.all_gather("a") == ["a"]
    assert group.broadcast("a") == "a"
    assert list(group.map(str, [1, 2])) == ["1", "2"]
    assert group.shard([1, 2, 3]) == [1, 2, 3]
    assert group.run_sequentially("x", lambda: 5) == 5
    group.poll_stop = lambda: True
    assert group.should_stop


def exchange(group: ProcessGroup) -> dict[str, Any]:
    process_group.BUCKET_BYTES = 16
    tensors = [torch.full((2, 3), 1.0 + group.rank), torch.ones(5), torch.ones(3, dtype=torch.bfloat16)]
    group.all_reduce(tensors)
    computed: list[int] = []

    def work(item: int) -> tuple[int, int]:
        computed.append(item)
        return item, group.rank

    mapped = list(group.map(work, range(4)))
    before = group.should_stop
    group.poll_stop = lambda: group.rank == 2
    group.all_reduce_values(0)
    return {
        "sums": [tensor.tolist() for tensor in tensors], "total": group.all_reduce_values(0.5, group.rank),
        "gathered": group.all_gather(f"r{group.rank}"), "broadcast": group.broadcast(group.rank),
        "shard": list(group.shard([10, 11, 12, 13])), "largest": group.largest_shard(4),
        "mapped": mapped, "computed": computed,
        "stopping": (before, group.should_stop),
    }  # fmt: skip


def exchange_without_room(group: ProcessGroup) -> dict[str, Any]:
    shared_memory_reduce._SHARED_MEMORY = Path("/nowhere")
    return exchange(group)


def sums(group: ProcessGroup) -> list[bool]:
    """Whether large and small tensors of two types, in many chunks, come out as one process adds them; one is laid
    otherwise on one rank.
    """
    shared_memory_reduce.CHUNK_BYTES = 64 * 8
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(5)
        own = [torch.randn(group.world_size, *shape).to(dtype) for shape in ((1,), (40, 25), (257,), (64,))]
        mine = [each[group.rank].clone() for each in own]
        if group.rank == 1:
            mine[1] = mine[1].t().contiguous().t()
        for _ in range(2):
            group.all_reduce(mine)
            expected = [functools.reduce(torch.add, each.unbind()) for each in own]
            found += [torch.equal(one, other) for one, other in zip(mine, expected, strict=True)]
            own = [torch.stack([total] * group.world_size) for total in expected]
    return [*found, getattr(group, "_reducer", None) is not None]


def test_sums_through_shared_memory_are_the_sums_in_order() -> None:
    before = set(shared_memory_reduce._SHARED_MEMORY.glob("luthier-*"))
    for size in (2, 3):
        assert run_on_ranks(size, sums) == [[True] * 17] * size
    assert set(shared_memory_reduce._SHARED_MEMORY.glob("luthier-*")) <= before


@pytest.mark.parametrize("work", [exchange, exchange_without_room])
def test_exchanges(work: Any) -> None:
    found = run_on_ranks(3, work)
    for rank, said in enumerate(found):
        assert said["sums"] == [[[6.0] * 3] * 2, [3.0] * 5, [3.0] * 3]
        assert said["total"] == (1.5, 3.0)
        assert said["gathered"] == ["r0", "r1", "r2"]
        assert said["broadcast"] == 0
        assert said["shard"] == [[10, 13], [11], [12]][rank]
        assert said["largest"] == 2
        assert said["mapped"] == [(0, 0), (1, 1), (2, 2), (3, 0)]
        assert said["computed"] == [[0, 3], [1, 3], [2, 3]][rank]  # the last again: each works equally often
        assert said["stopping"] == (False, True)  # rank 2 alone was asked


def wait_long(group: ProcessGroup) -> float:
    started = time.monotonic()
    if group.is_main:
        time.sleep(4)
        group.signal("ready")
    group.wait_for("ready")
    waited = time.monotonic() - started
    order = group.run_sequentially("turn", time.monotonic)
    assert group.all_gather(order) == sorted(group.all_gather(order))
    return waited


def test_until_waits_longer_than_exchanges_may() -> None:
    assert min(run_on_ranks(2, wait_long, LUTHIER_RANK_TIMEOUT="2")) > 3


def stay_away(group: ProcessGroup) -> None:
    if group.is_main:
        group.all_reduce_values(1)
    time.sleep(30)


def test_an_exchange_that_nobody_joins_ends() -> None:
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r"(?i)timed out"):
        run_on_ranks(2, stay_away, LUTHIER_RANK_TIMEOUT="2")
    assert time.monotonic() - started < 25


@pytest.mark.parametrize("text", ["soon", "0", "-1", "inf", "nan"])
def test_a_limit_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("LUTHIER_RANK_TIMEOUT", text)
    with pytest.raises(SettingError, match=f"LUTHIER_RANK_TIMEOUT={text}: expected a number of seconds"):
        timeout()


def test_a_single_process_is_not_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_under_torchrun()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not is_under_torchrun()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert is_under_torchrun()


# N ranks = one rank


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "train.jsonl", 43).parent


def compare(tmp_path: Path, rows: Path, architecture: str, size: int = 2, **settings: Any) -> JobFolder:
    """Run a job on `size` ranks and on one with `size` times the accumulation; the runs must be the same one.

    35 rows in micro-batches of 3: the last step of an epoch has fewer than `size` of them.
    """
    model = write_model(tmp_path / "model", architecture, dropout=0.1)
    alone = {name: value for name, value in settings.items() if name != "enable_fsdp"}
    one = lay_out(tmp_path / "one", model, rows, gradient_accumulation_steps=size, **alone)
    several = lay_out(tmp_path / "several", model, rows, ranks=size, **settings)
    run(one)
    assert f"{size} ranks" in run_on_ranks(size, run_job_on_rank, str(several.root))[0]
    assert_same_run(several, one)
    return several


@pytest.mark.parametrize(
    ("architecture", "method", "fsdp"),
    [("llama", "lora", False), ("llama", "none", True), ("gpt_neox", "lora", True), ("gpt2", "none", True)],
)
def test_two_ranks_do_what_one_does(tmp_path: Path, rows: Path, architecture: str, method: str, fsdp: bool) -> None:
    compare(tmp_path, rows, architecture, peft_type=method, enable_fsdp=fsdp)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2", "mixtral", "gemma2", "falcon_40b", "t5"])
@pytest.mark.parametrize("method", ["lora", "none"])
@pytest.mark.parametrize("fsdp", [False, True])
def test_every_architecture(tmp_path: Path, rows: Path, architecture: str, method: str, fsdp: bool) -> None:
    compare(tmp_path, rows, architecture, peft_type=method, enable_fsdp=fsdp)


def test_a_rank_without_a_micro_batch_hangs_nobody(tmp_path: Path, rows: Path) -> None:
    """35 rows by 20 are two micro-batches for three ranks: one of them computes, and adds nothing."""
    folder = compare(
        tmp_path, rows, "llama", 3, enable_fsdp=True, per_device_train_batch_size=20, score_rows=-1,
        per_device_eval_batch_size=5, gradient_checkpointing=True,
    )  # fmt: skip
    record = json.loads((folder.root / "run.json").read_text())
    assert record["ranks"] == 3
    metrics = json.loads(folder.metrics.read_text())
    assert metrics["cost"]["ranks"] == 3
    assert metrics["steps"] == 2  # one for each epoch


# Stopping, and going on with other ranks


def test_a_checkpoint_of_two_ranks_goes_on_with_two_and_with_one(tmp_path: Path, rows: Path) -> None:
    go_on(tmp_path, rows, "none", fsdp=True, sizes=(2, 1))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "none"])
@pytest.mark.parametrize("fsdp", [False, True])
def test_a_checkpoint_goes_on_with_any_number_of_ranks(tmp_path: Path, rows: Path, method: str, fsdp: bool) -> None:
    go_on(tmp_path, rows, method, fsdp, sizes=(1, 2, 3))


def go_on(tmp_path: Path, rows: Path, method: str, fsdp: bool, sizes: tuple[int, ...]) -> None:
    """Stop a run of two ranks, resume it with each of `sizes`: every time it is the uninterrupted run of two ranks."""
    model = write_model(tmp_path / "model", "llama", dropout=0.1)
    settings = {
        "peft_type": method, "enable_fsdp": fsdp, "ranks": 2, "save_steps": 3, "eval_steps": 4, "max_steps": 9,
        "early_stopping_patience": -1,
    }  # fmt: skip
    whole = lay_out(tmp_path / "whole", model, rows, **settings)
    run_on_ranks(2, run_job_on_rank, str(whole.root))
    for size in sizes:
        broken = lay_out(tmp_path / f"on-{size}", model, rows, **settings)
        with pytest.raises(Exception, match=r"stopped after step [3-8] of 9; .*--resume"):
            run_on_ranks(2, run_job_on_rank, str(broken.root), False, 3)
        assert not broken.artifact.exists()
        said = run_on_ranks(size, run_job_on_rank, str(broken.root), True) if size > 1 else [run(broken, resume=True)]
        assert "resuming after step" in said[0]
        assert said[1:] == [""] * (size - 1)
        assert_same_run(broken, whole)
        if size == 2:
            assert lines(broken) == lines(whole)
            assert all(torch.equal(value, weights(broken)[name]) for name, value in weights(whole).items())


def slow_to_prepare(group: ProcessGroup, root: str) -> str:
    def slowly(*arguments: Any) -> Any:
        if group.is_main:
            time.sleep(6)
        return prepare(*arguments)

    vars(job_module)["prepare"] = slowly
    return run_job_on_rank(group, root)


def test_tokenizing_may_take_longer_than_ranks_wait_for_each_other(tmp_path: Path, rows: Path) -> None:
    model = write_model(tmp_path / "model", "llama")
    folder = lay_out(tmp_path / "run", model, rows, ranks=2, max_steps=1, score_rows=0)
    run_on_ranks(2, slow_to_prepare, str(folder.root), LUTHIER_RANK_TIMEOUT="4")
    assert folder.artifact.exists()
