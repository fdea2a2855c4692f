"""One training job, from its folder to its report.

    read the order -> prepare the data -> load the model -> score it -> train -> score again -> artifact -> report

Each stage leaves its result in the job folder before the next one starts, so a resumed job skips what is done. Where
several ranks run the job, each goes through it; rank 0 prepares the data, which the others then open, and writes.
"""

from __future__ import annotations

import json
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from luthier.data.batches import BatchSampler, Layout
from luthier.data.ledger import check_rows, check_truncated
from luthier.data.prepare import Dataset, prepare
from luthier.data.tokenize import Tokenizer, set_threads
from luthier.errors import Interrupted
from luthier.evaluation.held_out import HeldOutScorer, ScoreSettings
from luthier.evaluation.report import write_report
from luthier.home import cache_root
from luthier.jobfolder import JobFolder, write_json
from luthier.training.capacity import check_capacity, estimate_resources
from luthier.training.checkpoint import Checkpoints, TrainingState
from luthier.training.console import print_data, print_job, print_result, shown
from luthier.training.final_metrics import peak_memory, write_final_metrics
from luthier.training.memory import RowLimits, row_limits, unfound
from luthier.training.metrics import MetricsLog, NullMetricsLog, TrainingProgress
from luthier.training.parallelize import ShardedModel, parallelize, remarks
from luthier.training.process_group import ProcessGroup
from luthier.training.provenance import model_provenance, run_provenance
from luthier.training.resolved_job import ResolvedJob, resolve_job
from luthier.training.train import Run, load_weights, train
from luthier.weights.artifact import pack, round_weights, save_artifact
from luthier.weights.load import load_model, weights_bytes
from luthier.weights.lora import Adapter, attach, resolve_targets
from luthier.weights.model import Model
from luthier.weights.quantize import describe
from luthier.weights.row_limit import needed_for, to_stderr

LOADING_FACTOR = 2  # memory for loading a model beside the bytes of its files: they may be widened to float32


@dataclass(slots=True)
class Stage:
    """What the stages share once the data is prepared."""

    folder: JobFolder
    order: ResolvedJob
    tokenizer: Tokenizer
    prepared: Dataset
    record: dict[str, Any]
    console: Console
    ranks: ProcessGroup = field(default_factory=ProcessGroup)
    limits: RowLimits = field(init=False)
    score_seconds: float = 0.0
    earlier_seconds: float = 0.0  # training time of the processes that this one goes on from

    def __post_init__(self) -> None:
        run = self.order.settings.run
        self.limits = row_limits(self.order.settings, run.fsdp and self.ranks.size > 1, self.heed)

    @property
    def resume_line(self) -> str:
        """The command that goes on with this run."""
        return f"luthier tune --resume --out {shlex.quote(shown(self.folder.root))}"

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    def heed(self, text: str) -> None:
        """Say what changed while the run went on, and keep it with what deserves a second look. Any rank may."""
        if self.ranks.leads:
            self.say(text)
            self.record["warnings"].append(text)
            write_json(self.folder.root / "run.json", self.record)
        else:
            to_stderr(f"rank {self.ranks.rank}: {text}")


def run_job(
    folder: JobFolder, resume: bool, console: Console, ranks: ProcessGroup | None = None, locked: bool = False
) -> None:
    """Run the job in `folder` to its end. Raises a LuthierError when it cannot; Interrupted when it was stopped.

    Each of several ranks calls this. `locked`: whoever started them holds the folder, and hears the user.
    """
    started = time.monotonic()
    ranks = ranks or ProcessGroup()
    with nullcontext() if locked or not ranks.leads else folder.locked():
        stage = _prepare_first(folder, resume, console, ranks)
        with needed_for("loading the model", "set peft_type=lora and bits=4, or take a smaller model"):
            model = _load(stage)
        checkpoints = Checkpoints(
            folder.checkpoints,
            stage.order.settings.validation.save_total_limit,
            stage.order.fingerprint(stage.prepared.fingerprint, stage.record["model"]["weights_sha256"]),
            ranks,
        )
        check_capacity(estimate_resources(model, checkpoints.limit), folder.root, stage.order.device, ranks.size)
        splits = _held_out(stage)
        with nullcontext(ranks.ask) if locked else stop_requests(console) as ranks.ask:
            for split, held_out in splits.items():
                _score(stage, held_out, model, "base", split)
            state = _train(stage, model, checkpoints, resume)
            _take_best(stage, model, checkpoints, state)
            model.round_shards() if isinstance(model, ShardedModel) else round_weights(model)
            for split, held_out in splits.items():
                if ranks.leads:
                    (folder.scores / f"tuned.{split}.jsonl").unlink(missing_ok=True)
                _score(stage, held_out, model, "tuned", split)
        _finish(stage, model, state, list(splits), time.monotonic() - started)


def _prepare_first(folder: JobFolder, resume: bool, console: Console, ranks: ProcessGroup) -> Stage:
    """Let rank 0 prepare, for as long as it takes; the other ranks then open what it left."""
    if ranks.leads:
        stage = _prepare(folder, resume, console, ranks)
        ranks.reached("prepared")
        return stage
    ranks.until("prepared")
    order = _own(resolve_job(folder, _say_nothing), ranks)
    tokenizer = Tokenizer.load(order.base, order.chat_template)
    prepared = prepare(order.channels, order.data, tokenizer, cache_root(), _say_nothing)
    record = json.loads((folder.root / "run.json").read_text("utf-8"))
    return Stage(folder, order, tokenizer, prepared, record, console, ranks)


def _say_nothing(text: str) -> None:
    """What the other ranks say of what rank 0 has said."""


def _own(order: ResolvedJob, ranks: ProcessGroup) -> ResolvedJob:
    return replace(order, device=ranks.device(order.device))


def _prepare(folder: JobFolder, resume: bool, console: Console, ranks: ProcessGroup) -> Stage:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    order = _own(resolve_job(folder, say), ranks)
    run = order.settings.run
    if not resume:  # a resumed run keeps its steps' rows, whatever its ranks
        run.accumulation_of(ranks.size)
    quantization = order.settings.method.quantization
    quantized = quantization.to_record() if quantization else None  # refused here, before any work, if it cannot be
    print_job(console, order, ranks.size)
    set_threads(order.data.workers)  # loading already starts the threads
    tokenizer = Tokenizer.load(order.base, order.chat_template)
    prepared = prepare(order.channels, order.data, tokenizer, cache_root(), say)
    folder.failure.unlink(missing_ok=True)
    prepared.write_ledger(folder.ledger)
    check_rows(prepared.counts, order.job.max_rows)
    check_truncated(prepared.counts, order.data.kind, order.job.max_truncated)
    if folder.split.exists():
        prepared.split.verify(folder.split)
    else:
        prepared.split.save(folder.split)
    run.check_rows(len(prepared.split.train))
    record = run_provenance(
        order.job, order.hyperparameters, model_provenance(order.location, order.base), prepared, str(order.device),
        str(order.dtype).removeprefix("torch."),
    )  # fmt: skip
    record["quantization"] = quantized
    record["ranks"] = ranks.size
    record["warnings"] += [*order.warnings, *remarks(run.fsdp, order.settings.method.bits, ranks.size)]
    record["warnings"] += unfound(order.settings, run.fsdp and ranks.size > 1)
    write_json(folder.root / "run.json", record)
    print_data(console, prepared, record["warnings"])
    return Stage(folder, order, tokenizer, prepared, record, console, ranks)


def _load(stage: Stage) -> Model:
    """The model as it will train; rank after rank where the machine's memory could not hold it once for each."""
    order, ranks = stage.order, stage.ranks
    needed = LOADING_FACTOR * weights_bytes(order.base) * ranks.size
    if ranks.size > 1 and ranks.first(needed > psutil.virtual_memory().available):
        return ranks.in_turn("loaded", lambda: parallelize(_load_one(stage), ranks, order.device, order.settings))
    return parallelize(_load_one(stage), ranks, order.device, order.settings)


def _load_one(stage: Stage) -> Model:
    order = stage.order
    method, run = order.settings.method, order.settings.run
    # One GPU need not have room for a model that is sharded: it is dealt out from the CPU's memory, layer by layer.
    on_cpu = run.fsdp and stage.ranks.size > 1 and not method.quantization
    model = load_model(
        order.base, torch.device("cpu") if on_cpu else order.device, order.dtype,
        frozen=method.lora, from_scratch=run.from_scratch, seed=run.seed, quantization=method.quantization,
        trained_in=torch.bfloat16 if order.settings.optimizer.in_bf16 else torch.float32,
    )  # fmt: skip
    if method.quantization:
        stage.say(f"base model in {method.quantization}: {describe(model.hf_model)}")
    if method.lora:
        family = order.entry.lora_targets if order.entry else ()
        targets = resolve_targets(method.targets, model.hf_model, family)
        adapter = Adapter(method.r, method.alpha, method.dropout, targets, method.rslora, method.dora)
        model = attach(model, adapter, run.seed)
    if run.gradient_checkpointing:
        model.enable_activation_checkpointing()
    return model


def _held_out(stage: Stage) -> dict[str, HeldOutScorer]:
    """The splits to score, the one that decides the verdict first."""
    values, job = stage.order.hyperparameters, stage.order.job
    settings = ScoreSettings(
        generation_rows=job.score_rows,
        seed=int(values["train_data_split_seed"] or 0),
        rows_per_batch=stage.order.settings.run.eval_rows_per_batch,
        packing=stage.order.settings.run.packing,
        scoring_limit=stage.limits.scoring,
        generation_limit=stage.limits.answering,
    )
    splits = stage.prepared.split
    rows = {"test": splits.test, "validation": splits.validation}
    return {
        split: HeldOutScorer(stage.prepared, stage.tokenizer, indices, settings)
        for split, indices in rows.items()
        if len(indices)
    }


def _score(stage: Stage, held_out: HeldOutScorer, model: Model, name: str, split: str) -> None:
    path = stage.folder.scores / f"{name}.{split}.jsonl"
    if stage.ranks.first(path.exists()):
        stage.say(f"{name} model on the {split} rows: scored before, kept")
        return
    bar = Progress(
        TextColumn(f"scoring the {name} model on {len(held_out.rows):,} {split} rows"), BarColumn(),
        MofNCompleteColumn(), TimeRemainingColumn(), console=stage.console, disable=not stage.console.is_terminal,
    )  # fmt: skip
    if not stage.console.is_terminal:
        stage.say(f"scoring the {name} model on {len(held_out.rows):,} {split} rows")
    started = time.monotonic()
    with bar:
        task = bar.add_task("", total=held_out.work)

        def advance(rows: int) -> None:
            bar.advance(task, rows)
            if stage.ranks.stopping:
                raise Interrupted(f"stopped while scoring, nothing is lost; go on with: {stage.resume_line}")

        held_out.score(model, path if stage.ranks.leads else None, advance)
    stage.score_seconds += time.monotonic() - started


def _train(stage: Stage, model: Model, checkpoints: Checkpoints, resume: bool) -> TrainingState:
    state = _starting_state(stage, checkpoints, resume)
    run = Run(
        model, stage.prepared.tokens, _plan(stage, model, state), stage.prepared.split.validation,
        stage.order.settings, _layout(stage, model), checkpoints, stage.ranks, stage.limits,
    )  # fmt: skip
    if run.settings.run.packing and not model.supports_packing:
        stage.say(
            f"packing is off: {type(model.hf_model).__name__} would mix packed rows; padding rows of similar length "
            "instead"
        )
    if run.layout.packed:
        stage.say(f"packed batches use {model.describe_layers()}")
    if run.layout.packed and run.settings.run.pad_to_max:
        stage.say("pad_to_max_length=True has no effect: rows are packed, none is padded (packing=False pads them)")
    stage.earlier_seconds = state.seconds
    log = (
        MetricsLog(stage.folder.metrics_lines, stage.folder.events, state.step)
        if stage.ranks.leads
        else NullMetricsLog()
    )
    try:
        with TrainingProgress(stage.console, run.total_steps, state.step) as bar:
            train(run, state, log, bar)
    except Interrupted as stop:
        raise Interrupted(f"{stop}; go on with: {stage.resume_line}") from None
    finally:
        log.close()
    return state


def _layout(stage: Stage, model: Model) -> Layout:
    run = stage.order.settings.run
    widths = (stage.prepared.max_length, stage.order.data.max_output_length if model.is_encoder_decoder else 0)
    return Layout(
        run.packing and model.supports_packing,
        stage.tokenizer.pad_id,
        model.decoder_start_token_id,
        widths if run.pad_to_max else (0, 0),
    )


def _plan(stage: Stage, model: Model, state: TrainingState) -> BatchSampler:
    run, rows = stage.order.settings.run, stage.prepared.split.train
    tokens = stage.prepared.tokens
    lengths = tokens.lengths[rows]
    padded, packed = (
        (None, model.estimate_multiplications(lengths, tokens.trained_counts[rows]))
        if model.supports_packing
        else (lengths, None)
    )
    return BatchSampler(rows, run.rows_per_batch, state.window, run.seed, padded, run.drop_last, packed)


def _starting_state(stage: Stage, checkpoints: Checkpoints, resume: bool) -> TrainingState:
    found = checkpoints.latest(stage.say) if resume else None
    run, size = stage.order.settings.run, stage.ranks.size
    if found:
        state = found[0]
        stage.say(f"resuming after step {state.step}")
        state.window = state.window or run.accumulation_of()
        if state.rows_at_once and not stage.limits.training.whole:
            stage.heed(f"training on at most {state.rows_at_once} rows at once: more did not fit in memory before")
        return state
    if resume:
        stage.say("no checkpoint yet: starting from the first step")
    return TrainingState(window=run.accumulation_of(size) * size)


def _take_best(stage: Stage, model: Model, checkpoints: Checkpoints, state: TrainingState) -> None:
    if stage.order.settings.validation.best_at_end and state.best_step not in (None, state.step):
        assert state.best_step is not None
        load_weights(model, checkpoints.read(state.best_step)[1])
        stage.say(f"taking the best checkpoint: step {state.best_step}, validation loss {state.best_loss:.4f}")
    model.network.eval()


def _finish(stage: Stage, model: Model, state: TrainingState, splits: list[str], seconds: float) -> None:
    if isinstance(model, ShardedModel):
        model.put_together()
    peaks = stage.ranks.gather(peak_memory(stage.order.device))
    if not stage.ranks.leads:
        return
    folder, template = stage.folder, stage.prepared.template
    as_file = {"prompt": template.prompt, "completion": template.completion} if template else None
    provenance = stage.record | {"steps": state.step, "best_step": state.best_step, "best_loss": state.best_loss}
    save_artifact(model, stage.order.base, folder.model, as_file, provenance, stage.tokenizer.default_chat_template)
    pack(folder.model, folder.artifact)
    plan = _plan(stage, model, state)
    spent = {
        "score_seconds": round(stage.score_seconds, 2),
        "total_seconds": round(seconds + stage.earlier_seconds, 2),
    }
    metrics = write_final_metrics(folder, stage.order, state, model, splits, plan.epoch_of(state.step), spent, peaks)
    write_report(folder)
    print_result(stage.console, folder, metrics)


@contextmanager
def stop_requests(console: Console) -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a question the loop asks; the second one stops at once."""
    asked = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        console.print("\nstopping; the run can be resumed (once more: stop at once)", markup=False)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
