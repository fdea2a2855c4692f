"""One training job, from its folder to its report.

    read the order -> prepare the data -> load the model -> score it -> train -> score again -> artifact -> report

Each stage leaves its result in the job folder before the next one starts, so a resumed job skips what is done.
"""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from luthier.data.batches import Plan
from luthier.data.ledger import check_truncated
from luthier.data.prepare import Prepared, prepare
from luthier.data.tokenize import Tokenizer, set_threads
from luthier.errors import Interrupted
from luthier.evaluation.held_out import HeldOut, ScoreSettings
from luthier.evaluation.report import write_report
from luthier.home import cache_root
from luthier.jobfolder import JobFolder, write_json
from luthier.training.announce import announce_data, announce_order, announce_result, shown
from luthier.training.checkpoint import Checkpoints, TrainingState
from luthier.training.forecast import check_room, forecast
from luthier.training.metrics import MetricsLog, TrainingBar
from luthier.training.order import Order, read_order
from luthier.training.outcome import write_metrics
from luthier.training.record import model_record, run_record
from luthier.training.train import Run, load_weights, train
from luthier.weights.artifact import pack, round_weights, save_artifact
from luthier.weights.load import load_model
from luthier.weights.lora import attach, resolve_targets
from luthier.weights.model import Model


@dataclass(slots=True)
class Stage:
    """What the stages share once the data is prepared."""

    folder: JobFolder
    order: Order
    tokenizer: Tokenizer
    prepared: Prepared
    record: dict[str, Any]
    console: Console
    score_seconds: float = 0.0
    earlier_seconds: float = 0.0  # training time of the processes that this one goes on from

    @property
    def resume_line(self) -> str:
        """The command that goes on with this run."""
        return f"luthier tune --resume --out {shlex.quote(shown(self.folder.root))}"

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)


def run_job(folder: JobFolder, resume: bool, console: Console) -> None:
    """Run the job in `folder` to its end. Raises a LuthierError when it cannot; Interrupted when it was stopped."""
    started = time.monotonic()
    with folder.locked():
        stage = _prepare(folder, console)
        model = _load(stage.order)
        checkpoints = Checkpoints(
            folder.checkpoints,
            stage.order.settings.validation.save_total_limit,
            stage.order.fingerprint(stage.prepared.fingerprint, stage.record["model"]["weights_sha256"]),
        )
        check_room(forecast(model, checkpoints.limit), folder.root, stage.order.device)
        sides = _held_out(stage)
        with stop_requests(console) as stop_asked:
            for side, held_out in sides.items():
                _score(stage, held_out, model, "base", side, stop_asked)
            state = _train(stage, model, checkpoints, resume, stop_asked)
            _take_best(stage, model, checkpoints, state)
            round_weights(model)
            for side, held_out in sides.items():
                (folder.scores / f"tuned.{side}.jsonl").unlink(missing_ok=True)
                _score(stage, held_out, model, "tuned", side, stop_asked)
        _finish(stage, model, state, list(sides), time.monotonic() - started)


def _prepare(folder: JobFolder, console: Console) -> Stage:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    order = read_order(folder, say)
    announce_order(console, order)
    set_threads(order.data.workers)  # loading already starts the threads
    tokenizer = Tokenizer.load(order.base)
    prepared = prepare(order.channels, order.data, tokenizer, cache_root(), say)
    folder.failure.unlink(missing_ok=True)
    prepared.write_ledger(folder.ledger)
    check_truncated(prepared.counts, order.data.kind, order.job.max_truncated)
    if folder.split.exists():
        prepared.split.verify(folder.split)
    else:
        prepared.split.save(folder.split)
    record = run_record(
        order.job, order.hyperparameters, model_record(order.location, order.base), prepared, str(order.device),
        str(order.dtype).removeprefix("torch."),
    )  # fmt: skip
    record["warnings"] += list(order.settings.idle)
    write_json(folder.root / "run.json", record)
    announce_data(console, prepared, record["warnings"])
    return Stage(folder, order, tokenizer, prepared, record, console)


def _load(order: Order) -> Model:
    method, run = order.settings.method, order.settings.run
    model = load_model(
        order.base, order.device, order.dtype, frozen=method.lora, from_scratch=run.from_scratch, seed=run.seed
    )
    if method.lora:
        family = order.entry.lora_targets if order.entry else ()
        targets = resolve_targets(method.targets, model.plain, family)
        model = attach(
            model, r=method.r, alpha=method.alpha, dropout=method.dropout, targets=targets, seed=run.seed
        )
    if run.gradient_checkpointing:
        model.recompute_activations()
    return model


def _held_out(stage: Stage) -> dict[str, HeldOut]:
    """The sides to score, the one that decides the verdict first."""
    values, job = stage.order.hyperparameters, stage.order.job
    settings = ScoreSettings(
        job.score_rows, int(values["train_data_split_seed"] or 0),
        stage.order.settings.run.eval_rows_per_batch, stage.order.settings.run.packing,
    )  # fmt: skip
    split = stage.prepared.split
    rows = {"test": split.test, "validation": split.validation}
    return {
        side: HeldOut(stage.prepared, stage.tokenizer, indices, settings)
        for side, indices in rows.items()
        if len(indices)
    }


def _score(
    stage: Stage, held_out: HeldOut, model: Model, name: str, side: str, stop_asked: Callable[[], bool]
) -> None:
    path = stage.folder.scores / f"{name}.{side}.jsonl"
    if path.exists():
        stage.say(f"{name} model on the {side} rows: scored before, kept")
        return
    bar = Progress(
        TextColumn(f"scoring the {name} model on {len(held_out.rows):,} {side} rows"), BarColumn(),
        MofNCompleteColumn(), TimeRemainingColumn(), console=stage.console, disable=not stage.console.is_terminal,
    )  # fmt: skip
    if not stage.console.is_terminal:
        stage.say(f"scoring the {name} model on {len(held_out.rows):,} {side} rows")
    started = time.monotonic()
    with bar:
        task = bar.add_task("", total=held_out.work)

        def advance(rows: int) -> None:
            bar.advance(task, rows)
            if stop_asked():
                raise Interrupted(f"stopped while scoring, nothing is lost; go on with: {stage.resume_line}")

        held_out.score(model, path, advance)
    stage.score_seconds += time.monotonic() - started


def _train(
    stage: Stage, model: Model, checkpoints: Checkpoints, resume: bool, stop_asked: Callable[[], bool]
) -> TrainingState:
    run = Run(
        model, stage.prepared.tokens, _plan(stage), stage.prepared.split.validation, stage.order.settings,
        stage.tokenizer.pad_id, checkpoints, stage.say,
    )  # fmt: skip
    if run.settings.run.packing and not model.packs:
        stage.say(f"rows are padded, not packed: {type(model.plain).__name__} was not proved to keep packed rows apart")
    state = _starting_state(stage, checkpoints, resume)
    stage.earlier_seconds = state.seconds
    log = MetricsLog(stage.folder.metrics_lines, stage.folder.events, state.step)
    try:
        with TrainingBar(stage.console, run.total_steps, state.step) as bar:
            train(run, state, log, bar, stop_asked)
    except Interrupted as stop:
        raise Interrupted(f"{stop}; go on with: {stage.resume_line}") from None
    finally:
        log.close()
    return state


def _plan(stage: Stage) -> Plan:
    run = stage.order.settings.run
    return Plan(stage.prepared.split.train, run.rows_per_batch, run.accumulation, run.seed)


def _starting_state(stage: Stage, checkpoints: Checkpoints, resume: bool) -> TrainingState:
    found = checkpoints.latest(stage.say) if resume else None
    if found:
        stage.say(f"resuming after step {found[0].step}")
        return found[0]
    if resume:
        stage.say("no checkpoint yet: starting from the first step")
    return TrainingState()


def _take_best(stage: Stage, model: Model, checkpoints: Checkpoints, state: TrainingState) -> None:
    if stage.order.settings.validation.best_at_end and state.best_step not in (None, state.step):
        assert state.best_step is not None
        load_weights(model, checkpoints.read(state.best_step)[1])
        stage.say(f"taking the best checkpoint: step {state.best_step}, validation loss {state.best_loss:.4f}")
    model.network.eval()


def _finish(stage: Stage, model: Model, state: TrainingState, sides: list[str], seconds: float) -> None:
    folder, template = stage.folder, stage.prepared.template
    as_file = {"prompt": template.prompt, "completion": template.completion} if template else None
    provenance = stage.record | {"steps": state.step, "best_step": state.best_step, "best_loss": state.best_loss}
    save_artifact(model, stage.order.base, folder.model, as_file, provenance)
    pack(folder.model, folder.artifact)
    plan = _plan(stage)
    spent = {
        "score_seconds": round(stage.score_seconds, 2),
        "total_seconds": round(seconds + stage.earlier_seconds, 2),
    }
    metrics = write_metrics(folder, stage.order, state, model, sides, plan.epoch_of(state.step), spent)
    write_report(folder)
    announce_result(stage.console, folder, metrics)


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
