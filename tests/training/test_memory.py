"""A step that runs out of memory is computed again in smaller micro-batches, and is the same step."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import ARCHITECTURES, network_of, write_model, write_rows
from torch import Tensor
from training.job_folders import lay_out, lines, run
from training.rank_harness import run_job_on_rank, run_on_ranks
from transformers import GPT2LMHeadModel

from luthier.catalog.hyperparameters import parse
from luthier.data.batches import Layout, collate
from luthier.errors import CapacityError
from luthier.jobfolder import JobFolder
from luthier.layers.batch import Batch
from luthier.training.config import read_settings
from luthier.training.memory import BatchSplitter, row_limits
from luthier.training.process_group import ProcessGroup
from luthier.training.step import MicroBatches, StepResult, take_step
from luthier.weights.model import Model
from luthier.weights.row_limit import RowLimit

CPU = torch.device("cpu")
NO_ROOM = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8"


class Rows:
    """A token store of random rows of uneven length."""

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(index)
        length = int(generator.integers(8, 30))
        return generator.integers(4, 320, length), np.arange(length) >= generator.integers(1, length)


def build(rows: list[int], packed: bool = True) -> Batch:
    return collate(Rows(), rows, Layout(packed, 3))  # type: ignore[arg-type]


class Small:
    """A machine whose memory holds `room` rows: a larger micro-batch fails in its backward pass, near its end."""

    def __init__(self, patch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        self.tried: list[int] = []
        self.leaked: list[int] = []
        plain = Model.loss

        def loss(model: Model, batch: Batch, smoothing: float = 0.0) -> Tensor:
            self.tried.append(len(batch.rows))
            if len(batch.rows) <= self.room:
                return plain(model, batch, smoothing)
            embedding: Any = model.hf_model.get_input_embeddings()
            handle = embedding.register_forward_hook(self._fail_on_the_way_back(model))
            try:
                return plain(model, batch, smoothing)
            finally:
                handle.remove()

        patch.setattr(Model, "loss", loss)

    def _fail_on_the_way_back(self, model: Model) -> Callable[..., Tensor]:
        def fail(gradient: Tensor) -> Tensor:
            self.leaked.append(sum(each.grad is not None for each in model.trainable_parameters().values()))
            raise RuntimeError(NO_ROOM)

        def hook(module: Any, given: Any, output: Tensor) -> Tensor:
            found = output if output.requires_grad else output.detach().requires_grad_()
            found.register_hook(fail)
            return found

        return hook


def step_on(
    batches: list[Batch], room: int | None = None, architecture: str = "llama", dropout: float = 0.0
) -> tuple[StepResult, dict[str, Tensor], RowLimit]:
    """A step of plain SGD, so that the weights show the gradient itself; with room for so many rows."""
    network = network_of(architecture, dropout=dropout)
    network.train()
    model = Model(network, torch.float32, CPU)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    limit = RowLimit(work="training on", say=lambda _: None)
    packed = batches[0].attention_mask_BT is None
    micro_batches = MicroBatches(batches, "5:0", ProcessGroup(), BatchSplitter(limit, lambda rows: build(rows, packed)))
    with pytest.MonkeyPatch.context() as patch:
        small = Small(patch, room or 10**6)
        result = take_step(model, torch.optim.SGD(network.parameters(), lr=1.0), micro_batches, 1.0, 0.0)
    assert room is None or min(small.leaked) > 0, "a failed attempt left gradients behind"
    return result, {name: before[name] - value.detach() for name, value in network.named_parameters()}, limit


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("packed", [True, False])
def test_the_gradient_is_that_of_the_uncut_step(architecture: str, packed: bool) -> None:
    batches = [build([0, 1, 2, 3, 4, 5, 6, 7], packed), build([8, 9, 10], packed)]
    whole, expected, _ = step_on(batches, architecture=architecture)
    cut, found, limit = step_on(batches, room=3, architecture=architecture)
    assert limit.rows == 2
    assert cut.loss == pytest.approx(whole.loss, rel=1e-6)
    assert (cut.tokens, cut.completion_tokens) == (whole.tokens, whole.completion_tokens)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_failure_in_a_later_micro_batch_does_not_count_the_first_twice() -> None:
    batches = [build([0, 1]), build([2, 3, 4, 5])]
    _, expected, _ = step_on(batches)
    _, found, limit = step_on(batches, room=2)
    assert limit.rows == 2
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_dropout_is_that_of_the_rows_whether_or_not_something_failed_before() -> None:
    """The step that failed first is, bit for bit, the one that was cut so from the beginning."""
    _, failed_first, _ = step_on([build([0, 1, 2, 3])], room=2, architecture="gpt2", dropout=0.5)
    _, cut_before, _ = step_on([build([0, 1]), build([2, 3])], architecture="gpt2", dropout=0.5)
    _, uncut, _ = step_on([build([0, 1, 2, 3])], architecture="gpt2", dropout=0.5)
    assert all(torch.equal(failed_first[name], value) for name, value in cut_before.items())
    assert any(not torch.equal(uncut[name], value) for name, value in cut_before.items())


def test_one_row_that_does_not_fit_is_refused_with_the_weights_as_they_were() -> None:
    network = network_of("llama")
    network.train()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    micro_batches = MicroBatches(
        [build([0, 1])], "5:0", ProcessGroup(), BatchSplitter(RowLimit(work="training on", say=lambda _: None), build)
    )
    with pytest.MonkeyPatch.context() as patch:
        small = Small(patch, 0)
        with pytest.raises(CapacityError, match="out of memory while training on one row at a time"):
            take_step(
                Model(network, torch.float32, CPU), torch.optim.SGD(network.parameters(), lr=1), micro_batches, 1.0, 1.0
            )
    assert small.tried == [2, 1]
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())


def test_no_room_for_the_optimizer_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of("llama")
    optimizer = torch.optim.AdamW(network.parameters())

    def step() -> None:
        raise MemoryError

    monkeypatch.setattr(optimizer, "step", step)
    micro_batches = MicroBatches(
        [build([0, 1])], "5:0", ProcessGroup(), BatchSplitter(RowLimit(work="training on"), build)
    )
    with pytest.raises(CapacityError, match="out of memory while updating the weights; set peft_type=lora"):
        take_step(Model(network, torch.float32, CPU), optimizer, micro_batches, 1.0, 1.0)


# Whole jobs


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "gpt2", "gpt2", dropout=0.1)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 30)


LONG = {"per_device_train_batch_size": 8, "score_rows": 0, "max_steps": 6, "save_steps": 1, "save_total_limit": 99}


def test_a_run_goes_on_and_says_so(model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Small(monkeypatch, 3)
    folder = lay_out(tmp_path / "run", model, rows, **LONG)
    screen = run(folder)
    assert small.tried[:7] == [8, 4, 2, 2, 2, 2, 2], "what was found is kept"
    assert max(small.tried[3:]) == 2
    said = [
        f"out of memory while training on {tried} rows at once: {tried // 2} at once from now on, with the same result"
        for tried in (8, 4)
    ]
    init_process_group = " ".join(screen.split())
    assert all(init_process_group.count(line) == 1 for line in said)
    record = json.loads((folder.root / "run.json").read_text())
    assert record["warnings"][-2:] == said
    assert json.loads((folder.model / "luthier.json").read_text())["warnings"] == record["warnings"]
    assert json.loads(folder.metrics.read_text())["cost"]["rows_at_once"] == 2
    assert {line["rows_at_once"] for line in lines(folder) if "loss" in line} == {2}


def test_a_resumed_run_starts_with_what_it_had_found(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Small(monkeypatch, 3)
    whole = lay_out(tmp_path / "whole", model, rows, **LONG)
    run(whole)
    broken = JobFolder(shutil.copytree(whole.root, tmp_path / "broken", symlinks=True))
    for step in (4, 5, 6):
        shutil.rmtree(broken.checkpoints / f"step-{step:06d}")
    small.tried.clear()
    screen = " ".join(run(broken, resume=True).split())
    assert "resuming after step 3 training on at most 2 rows at once: more did not fit in memory before" in screen
    assert max(small.tried) == 2, "it did not fail again"
    assert lines(broken) == lines(whole)
    name = "adapter_model.safetensors"
    expected = load_file(whole.model / name)
    assert all(torch.equal(value, expected[key]) for key, value in load_file(broken.model / name).items())


def test_scoring_and_answering_take_fewer_rows_too(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"score_rows": 5, "per_device_eval_batch_size": 8, "max_steps": 2}
    roomy = lay_out(tmp_path / "roomy", model, rows, **settings)
    run(roomy)
    plain, generated = Model.scores, GPT2LMHeadModel.generate
    seen: dict[str, list[int]] = {"scored": [], "answered": []}

    def scores(model: Model, batch: Batch) -> Any:
        seen["scored"].append(len(batch.rows))
        if len(batch.rows) > 2:
            raise RuntimeError(NO_ROOM)
        return plain(model, batch)

    def generate(network: Any, **given: Any) -> Any:
        seen["answered"].append(len(given["input_ids"]))
        if len(given["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return generated(network, **given)

    monkeypatch.setattr(Model, "scores", scores)
    monkeypatch.setattr(GPT2LMHeadModel, "generate", generate)
    tight = lay_out(tmp_path / "tight", model, rows, **settings)
    screen = " ".join(run(tight).split())
    for name, work in (("scored", "scoring"), ("answered", "answering")):
        assert max(seen[name]) > 2
        assert screen.count(f"out of memory while {work}") == sum(size > 2 for size in seen[name])
        after = seen[name][next(at for at, size in enumerate(seen[name]) if size <= 2) :]
        assert max(after) <= 2, "what was found is kept"
    for name in ("base.validation.jsonl", "tuned.validation.jsonl"):
        found, expected = (
            [json.loads(line) for line in (folder.scores / name).read_text().splitlines()] for folder in (tight, roomy)
        )
        assert [line["prediction"] for line in found] == [line["prediction"] for line in expected]
        for one, other in zip(found, expected, strict=True):
            assert one["loss_sum"] == pytest.approx(other["loss_sum"], abs=1e-4)


def test_a_row_that_no_memory_holds_ends_the_run_in_one_line(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Small(monkeypatch, 0)
    folder = lay_out(tmp_path / "run", model, rows, evaluation_strategy="no", **LONG)
    with pytest.raises(CapacityError) as caught:
        run(folder)
    assert str(caught.value) == (
        "out of memory while training on one row at a time; lower max_input_length, set gradient_checkpointing=True, "
        "set bits=4, or use a smaller model"
    )
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("asked", "expected"),
    [({}, "set bits=4"), ({"peft_type": "none", "bf16": True}, "set optim=adamw_bf16, set peft_type=lora"),
     ({"peft_type": "none"}, "set optim=adamw_bf16 and bf16=True, set peft_type=lora"),
     ({"peft_type": "none", "bf16": True, "optim": "adamw_bf16"}, "set peft_type=lora")],
)  # fmt: skip
def test_what_is_advised_is_what_was_not_done(asked: dict[str, Any], expected: str) -> None:
    settings = read_settings(parse({"gradient_checkpointing": "True"} | {name: str(asked[name]) for name in asked}))
    limit = row_limits(settings, False, print).training
    assert limit.advice == f"lower max_input_length, {expected}, or use a smaller model"


# Several ranks


def short_of_memory(group: ProcessGroup, root: str, room: int) -> str:
    """The job on ranks of which rank 1 has room for so many rows; what it was refused with is left beside the job."""
    with pytest.MonkeyPatch.context() as patch:
        if group.rank == 1:
            Small(patch, room)
        try:
            return run_job_on_rank(group, root)
        except CapacityError as error:
            Path(root, f"refusal-{group.rank}").write_text(str(error))
            raise


RANKS = {"per_device_train_batch_size": 4, "score_rows": 0, "max_steps": 3, "lora_dropout": 0.0, "save_steps": 2}


def test_a_rank_that_cuts_its_rows_keeps_in_step_with_the_others(
    rows: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "model", "gpt2")
    roomy = lay_out(tmp_path / "roomy", model, rows, **RANKS)
    run_on_ranks(2, run_job_on_rank, str(roomy.root))
    tight = lay_out(tmp_path / "tight", model, rows, **RANKS)
    screen, _ = run_on_ranks(2, short_of_memory, str(tight.root), 2)
    assert "another rank ran out of memory: every rank now computes at most 2 rows at once" in " ".join(screen.split())
    assert "rank 1: out of memory while training on 4 rows at once: 2 at once" in capfd.readouterr().err
    for step in (2, 3):
        state = json.loads((tight.checkpoints / f"step-{step:06d}" / "state.json").read_text())["state"]
        assert state["rows_at_once"] == 2
    for line, other in zip(lines(tight), lines(roomy), strict=True):
        assert line.get("loss", 0.0) == pytest.approx(other.get("loss", 0.0), rel=1e-5)
        assert line.get("gradient_norm", 0.0) == pytest.approx(other.get("gradient_norm", 0.0), rel=1e-4)


def test_ranks_that_share_one_model_cannot_cut_and_say_what_to_lower(rows: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", "llama")
    folder = lay_out(tmp_path / "run", model, rows, enable_fsdp=True, auto_find_batch_size=True, **RANKS)
    with pytest.raises((CapacityError, RuntimeError)):
        run_on_ranks(2, short_of_memory, str(folder.root), 2)
    assert (folder.root / "refusal-1").read_text() == (
        "out of memory while training on 4 rows at once, and ranks that share one model must take the same steps: "
        "lower per_device_train_batch_size (gradient_accumulation_steps makes up for it), and resume from the last "
        "checkpoint"
    )
    warnings = json.loads((folder.root / "run.json").read_text())["warnings"]
    assert any("auto_find_batch_size has no effect with enable_fsdp on several ranks" in text for text in warnings)


CHILD = """
import json, resource, sys
from pathlib import Path
from luthier.jobfolder import JobFolder
from luthier.training import job

def used(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])

def bounded(run, state, log, bar):
    before = used("VmPeak")
    if sys.argv[2] != "0":
        resource.setrlimit(resource.RLIMIT_AS, (1024 * used("VmSize") + int(sys.argv[2]), -1))
    plain(run, state, log, bar)
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))  # what comes after is not what is shown
    print(json.dumps({"needed": 1024 * (used("VmPeak") - before)}))

plain, job.train = job.train, bounded
job.run_job(JobFolder(sys.argv[1]), False, job.Console(width=200))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of address space is Linux's")
def test_a_real_limit_on_a_real_process(tmp_path: Path) -> None:
    """With 70 % of the address space that its micro-batches need, a run halves them and learns the same."""
    model = write_model(tmp_path / "model", "llama", positions=512)
    words = "the cat sat on the mat " * 60
    text = [json.dumps({"text": words + f"{number} " * (number % 7)}) for number in range(70)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(text))
    settings = {
        "kind": "domain", "per_device_train_batch_size": 64, "max_input_length": 512, "max_steps": 2,
        "lora_dropout": 0.0, "peft_type": "none", "validation_split_ratio": 0, "learning_rate": 0.001,
    }  # fmt: skip

    def child(name: str, limit: int) -> tuple[JobFolder, int, str]:
        folder = lay_out(tmp_path / name, model, rows, **settings)
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(folder.root), str(limit)], capture_output=True, text=True, check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        needed = next(json.loads(line)["needed"] for line in done.stdout.splitlines() if line.startswith('{"needed"'))
        return folder, needed, done.stdout

    roomy, needed, _ = child("roomy", 0)
    assert needed > 50e6, "the micro-batch must be what needs the memory"
    tight, _, screen = child("tight", int(0.7 * needed))
    assert "out of memory while training on 64 rows at once: 32 at once from now on, with the same result" in screen
    found = json.loads(tight.metrics.read_text())["cost"]["rows_at_once"]
    assert 8 <= found <= 32
    steps, expected = ([line for line in lines(folder) if "loss" in line] for folder in (tight, roomy))
    assert len(steps) == len(expected) == 2
    for one, other in zip(steps, expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)
        assert (one["tokens"], one["completion_tokens"]) == (other["tokens"], other["completion_tokens"])
