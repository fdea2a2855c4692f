"""One training job, from its folder to its report.

    resolve the job -> prepare the data -> load the model -> score it -> train -> score again -> artifact -> report

Each stage leaves its result in the job folder before the next one starts, so a resumed job skips what is done. Every
rank runs all stages; rank 0 prepares the data, which the others then open, and writes the results.
"""

from __future__ import annotations

import json
import logging
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any, cast

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
from luthier.training.config import MethodSettings
from luthier.training.console import print_data, print_job, print_result, relative_path
from luthier.training.final_metrics import TrainedPart, peak_memory, write_final_metrics
from luthier.training.memory import RowLimits, row_limits
from luthier.training.metrics import MetricsLog, NullMetricsLog, TrainingBar
from luthier.training.parallelize import ShardedModel, parallelize, sharding_warnings
from luthier.training.process_group import STOPPING, ProcessGroup
from luthier.training.provenance import run_provenance
from luthier.training.resolved_job import ResolvedJob, resolve_job
from luthier.training.train import TrainingRun, load_weights, train
from luthier.weights.artifact import round_weights, save_artifact, write_archive
from luthier.weights.export import merge_model
from luthier.weights.load import load_model, weights_bytes
from luthier.weights.lora import Adapter, attach_adapter, continue_adapter, merge_stored_adapter
from luthier.weights.lora_targets import LoraTargets, describe_adapted_layers, resolve_lora_targets
from luthier.weights.model import Model
from luthier.weights.quantize import count_weights, describe_quantization
from luthier.weights.row_limit import print_to_stderr, report_out_of_memory

LOADING_FACTOR = 2  # memory to load a model, relative to its files: weights may be widened to float32
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunReporter:
    """Prints on rank 0, and adds warnings to run.json."""

    folder: JobFolder
    provenance: dict[str, Any]
    console: Console
    group: ProcessGroup

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    def warn(self, text: str) -> None:
        """Print a warning that arose during the run, and store it; other ranks than 0 write it to stderr."""
        if self.group.is_main:
            self.say(text)
            self.provenance["warnings"].append(text)
            write_json(self.folder.root / "run.json", self.provenance)
        else:
            print_to_stderr(f"rank {self.group.rank}: {text}")


def run_job(
    folder: JobFolder, resume: bool, console: Console, group: ProcessGroup | None = None, locked: bool = False
) -> None:
    """Run the job in `folder` to its end. Raises LuthierError on failure, Interrupted on a stop request.

    Every rank calls this. `locked`: the launcher of the ranks holds the folder's lock and handles signals.
    """
    started = time.monotonic()
    group = group or ProcessGroup()
    with nullcontext() if locked or not group.is_main else folder.locked():
        job, tokenizer, dataset, provenance = _prepare_on_main(folder, resume, console, group)
        reporter = RunReporter(folder, provenance, console, group)
        limits = row_limits(job.settings, job.settings.run.fsdp and group.world_size > 1, reporter.warn)
        with report_out_of_memory("loading the model", "set peft_type=lora and bits=4, or use a smaller model"):
            model = _load_parallelized(job, group, reporter.say)
        fingerprint = job.fingerprint(dataset.fingerprint, provenance["model"]["weights_sha256"])
        checkpoints = Checkpoints(folder.checkpoints, job.settings.validation.save_total_limit, fingerprint, group)
        check_capacity(estimate_resources(model, checkpoints.limit), folder.root, job.device, group.world_size)
        held_out = _held_out_splits(job, tokenizer, dataset, limits)
        scorer = Scorer(folder, console, group)
        with nullcontext(group.poll_stop) if locked else stop_requests(console) as group.poll_stop:
            for split, rows in held_out.items():
                scorer.score(rows, model, "base", split)
            state = _initial_state(job, checkpoints, limits, reporter, resume)
            earlier_seconds = state.seconds
            run = TrainingRun(
                model=model, tokens=dataset.tokens, sampler=_sampler(job, dataset, model, state.micro_batches),
                validation_rows=dataset.split.validation, settings=job.settings,
                layout=_layout(job, tokenizer, dataset, model), checkpoints=checkpoints, group=group, limits=limits,
            )  # fmt: skip
            stops: list[Interrupted] = []
            with _finishing_early(folder, state, stops):
                _train(run, state, folder, reporter)
            _load_best(run, state, reporter.say)
            trained = TrainedPart.of(model)
            if job.merges_adapter and model.has_adapter:
                model = merge_model(model)
            model.round_shards() if isinstance(model, ShardedModel) else round_weights(model)
            with _finishing_early(folder, state, stops):
                for split, rows in () if stops else held_out.items():
                    scorer.score(rows, model, "tuned", split, again=True)
        seconds = {"score_seconds": round(scorer.seconds, 2),
                   "total_seconds": round(time.monotonic() - started + earlier_seconds, 2)}  # fmt: skip
        if isinstance(model, ShardedModel):
            model.gather_trained_weights()
        peaks = group.all_gather(peak_memory(job.device))
        if group.is_main:
            provenance |= {"steps": state.step, "best_step": state.best_step, "best_loss": state.best_loss}
            template = dataset.template
            texts = {"prompt": template.prompt, "completion": template.completion} if template else None
            save_artifact(model, job.base, folder.model, texts, provenance, tokenizer.default_chat_template)
            write_archive(folder.model, folder.artifact)
            epochs = run.sampler.epoch_of(state.step)
            splits = None if stops else list(held_out)
            metrics = write_final_metrics(folder, job, state, trained, splits, epochs, seconds, peaks)
            write_report(folder)
            print_result(console, folder, metrics)
        if stops:
            raise stops[0]


@contextmanager
def _finishing_early(folder: JobFolder, state: TrainingState, stops: list[Interrupted]) -> Iterator[None]:
    """Keep a stop in `stops`, so that the job goes on to its artifact, if its folder has the finish marker.

    A stop before the first step is raised: there is nothing to keep.
    """
    try:
        yield
    except Interrupted as stop:
        if not (folder.finish_marker.exists() and state.step):
            raise
        stops.append(stop)


def _prepare_on_main(
    folder: JobFolder, resume: bool, console: Console, group: ProcessGroup
) -> tuple[ResolvedJob, Tokenizer, Dataset, dict[str, Any]]:
    """The resolved job, its tokenizer, data and provenance. Rank 0 prepares them; the others wait, then open them."""
    if group.is_main:
        prepared = _prepare(folder, resume, console, group)
        group.signal("prepared")
        return prepared
    group.wait_for("prepared")
    job = resolve_job(folder, _log.debug).on_rank(group)
    provenance = json.loads((folder.root / "run.json").read_text("utf-8"))
    tokenizer = Tokenizer.load(job.base, job.chat_template, provenance["chat_date"])
    dataset = prepare(job.channels, job.data, tokenizer, cache_root(), _log.debug)
    return job, tokenizer, dataset, provenance


def _chat_date(folder: JobFolder) -> str | None:
    """The day that the chat template wrote when the run began; None if it wrote none."""
    path = folder.root / "run.json"
    return json.loads(path.read_text("utf-8")).get("chat_date") if path.exists() else None


def _prepare(
    folder: JobFolder, resume: bool, console: Console, group: ProcessGroup
) -> tuple[ResolvedJob, Tokenizer, Dataset, dict[str, Any]]:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    job = resolve_job(folder, say).on_rank(group)
    run, method = job.settings.run, job.settings.method
    if not resume:  # a resumed run keeps its micro-batches per step, whatever its number of ranks
        run.accumulation_steps(group.world_size)
    quantization = method.quantization.to_record() if method.quantization else None  # raises if unsupported
    print_job(console, job, group.world_size)
    set_threads(
        cast("int | None", job.hyperparameters["preprocessing_num_workers"])
    )  # before the tokenizer is loaded, which starts the threads
    tokenizer = Tokenizer.load(job.base, job.chat_template, _chat_date(folder) if resume else None)
    for note in tokenizer.notes:
        say(note)
    dataset = prepare(job.channels, job.data, tokenizer, cache_root(), say)
    folder.failure.unlink(missing_ok=True)
    dataset.write_ledger(folder.ledger)
    check_rows(dataset.counts, job.spec.max_rows)
    check_truncated(dataset.counts, job.data.kind, job.spec.max_truncated)
    if folder.split.exists():
        dataset.split.verify(folder.split)
    else:
        dataset.split.save(folder.split)
    run.check_drop_last(len(dataset.split.train))
    provenance = run_provenance(job, dataset, group.world_size, quantization)
    provenance["chat_date"] = tokenizer.chat_date
    provenance["warnings"] += [*job.warnings, *sharding_warnings(job.settings, group.world_size)]
    write_json(folder.root / "run.json", provenance)
    print_data(console, dataset, provenance["warnings"])
    return job, tokenizer, dataset, provenance


def _load_parallelized(job: ResolvedJob, group: ProcessGroup, say: Callable[[str], None]) -> Model:
    """The model as it will be trained; loaded rank by rank if memory is too small for all at once."""

    def load() -> Model:
        return parallelize(_load(job, group.world_size, say), group, job.device, job.settings)

    needed = LOADING_FACTOR * weights_bytes(job.base) * group.world_size
    if group.world_size > 1 and group.broadcast(needed > psutil.virtual_memory().available):
        return group.run_sequentially("loaded", load)
    return load()


def _load(job: ResolvedJob, world_size: int, say: Callable[[str], None]) -> Model:
    method, run = job.settings.method, job.settings.run
    # A model that is sharded may be larger than one GPU: it is loaded on the CPU and sharded from there, by layer.
    on_cpu = run.fsdp and world_size > 1 and not method.quantization
    model = load_model(
        job.base, torch.device("cpu") if on_cpu else job.device, job.dtype,
        frozen=method.lora, from_scratch=run.from_scratch, seed=run.seed, quantization=method.quantization,
        trained_in=torch.bfloat16 if job.settings.optimizer.in_bf16 else torch.float32,
    )  # fmt: skip
    if method.quantization:
        say(f"base model in {method.quantization}: {describe_quantization(model.hf_model)}")
    if job.adapter is not None and job.merges_adapter:
        model = merge_stored_adapter(model, job.adapter.folder)
        say(f"the adapter in {job.adapter.folder} is merged into its base model first; the result is a whole model")
    if job.adapter is not None and not job.merges_adapter:
        model = continue_adapter(model, job.adapter.folder, method.dropout)
        say(f"training the adapter in {job.adapter.folder} further: LoRA on {describe_adapted_layers(model)}")
    elif method.lora:
        targets = resolve_lora_targets(method.targets, model, job.entry.lora_targets if job.entry else ())
        model = attach_adapter(model, _adapter(method, targets), run.seed)
        if targets.parameters and method.dropout:
            say(f"adapters on {LoraTargets(parameters=targets.parameters)} take no dropout")
        say(f"LoRA on {targets}")
    trainable = sum(parameter.numel() for parameter in model.trainable_parameters().values())
    say(f"{trainable:,} trainable parameters beside {count_weights(model.hf_model) - trainable:,} frozen ones")
    if run.gradient_checkpointing:
        model.enable_activation_checkpointing()
    return model


def _adapter(method: MethodSettings, targets: LoraTargets) -> Adapter:
    return Adapter(
        r=method.r, alpha=method.alpha, dropout=method.dropout, target_modules=targets.modules,
        target_parameters=targets.parameters, use_rslora=method.rslora, use_dora=method.dora,
    )  # fmt: skip


def _held_out_splits(
    job: ResolvedJob, tokenizer: Tokenizer, dataset: Dataset, limits: RowLimits
) -> dict[str, HeldOutScorer]:
    """The splits to score; the first gives the headline figures."""
    run = job.settings.run
    settings = ScoreSettings(
        generation_rows=job.spec.score_rows, seed=int(job.hyperparameters["train_data_split_seed"] or 0),
        rows_per_batch=run.eval_batch_size, packing=run.packing, scoring_limit=limits.scoring,
        generation_limit=limits.generation,
    )  # fmt: skip
    rows = {"test": dataset.split.test, "validation": dataset.split.validation}
    return {
        split: HeldOutScorer(dataset, tokenizer, indices, settings) for split, indices in rows.items() if len(indices)
    }


@dataclass(slots=True)
class Scorer:
    """Scores held-out rows into the folder's score files; `seconds` is the time spent."""

    folder: JobFolder
    console: Console
    group: ProcessGroup
    seconds: float = 0.0

    def score(self, rows: HeldOutScorer, model: Model, name: str, split: str, again: bool = False) -> None:
        """Score the `name` model ("base" or "tuned") on a split; unless `again`, keep a file that exists already."""
        path = self.folder.scores / f"{name}.{split}.jsonl"
        if again and self.group.is_main:
            path.unlink(missing_ok=True)
        if self.group.broadcast(path.exists()):
            self.console.print(f"{name} model on the {split} rows: already scored", highlight=False, markup=False)
            return
        title = f"scoring the {name} model on {len(rows.rows):,} {split} rows"
        bar = Progress(
            TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=self.console,
            disable=not self.console.is_terminal,
        )  # fmt: skip
        if not self.console.is_terminal:
            self.console.print(title, highlight=False, markup=False)
        started = time.monotonic()
        with bar:
            task = bar.add_task("", total=rows.work)

            def advance(count: int) -> None:
                bar.advance(task, count)
                if self.group.should_stop:
                    raise Interrupted(f"stopped while scoring, nothing is lost; {_resume_advice(self.folder)}")

            rows.score(model, path if self.group.is_main else None, advance)
        self.seconds += time.monotonic() - started


def _resume_advice(folder: JobFolder) -> str:
    return f"resume with: luthier tune --resume --out {shlex.quote(relative_path(folder.root))}"


def _initial_state(
    job: ResolvedJob, checkpoints: Checkpoints, limits: RowLimits, reporter: RunReporter, resume: bool
) -> TrainingState:
    """The state of the newest checkpoint, or of a new run."""
    run, world_size = job.settings.run, checkpoints.group.world_size
    checkpoint = checkpoints.latest(reporter.say) if resume else None
    if checkpoint is None:
        if resume:
            reporter.say("no checkpoint yet: starting from the first step")
        return TrainingState(micro_batches=run.accumulation_steps(world_size) * world_size)
    state = checkpoint[0]
    reporter.say(f"resuming after step {state.step}")
    state.micro_batches = state.micro_batches or run.accumulation_steps()
    if state.rows_at_once and not limits.training.batch_setting:
        reporter.warn(f"training on at most {state.rows_at_once} rows at once: more did not fit in memory before")
    return state


def _sampler(job: ResolvedJob, dataset: Dataset, model: Model, micro_batches: int) -> BatchSampler:
    run, rows, tokens = job.settings.run, dataset.split.train, dataset.tokens
    lengths = tokens.lengths[rows]
    return BatchSampler(
        rows=rows, rows_per_batch=run.train_batch_size, accumulation=micro_batches, seed=run.seed,
        lengths=None if model.supports_packing else lengths, drop_last=run.drop_last,
        work=model.estimate_multiplications(lengths, tokens.trained_counts[rows]) if model.supports_packing else None,
    )  # fmt: skip


def _layout(job: ResolvedJob, tokenizer: Tokenizer, dataset: Dataset, model: Model) -> Layout:
    run = job.settings.run
    widths = (dataset.max_length, job.data.max_output_length if model.is_encoder_decoder else 0)
    return Layout(
        packed=run.packing and model.supports_packing, pad_id=tokenizer.pad_id, start_id=model.decoder_start_token_id,
        widths=widths if run.pad_to_max_length else (0, 0),
    )  # fmt: skip


def _train(run: TrainingRun, state: TrainingState, folder: JobFolder, reporter: RunReporter) -> None:
    """Train to the end; a run that was stopped for good before it was resumed only gets its checkpoint's weights."""
    if state.step and folder.finish_marker.exists():
        load_weights(run.model, run.checkpoints.read(state.step)[1])
        raise Interrupted(f"stopped after step {state.step} of {run.total_steps}")
    if run.settings.run.packing and not run.model.supports_packing:
        reporter.say(
            f"packing is off: {type(run.model.hf_model).__name__} would mix packed rows; padding rows of similar "
            "length instead"
        )
    if run.layout.packed:
        reporter.say(f"packed batches use {run.model.describe_layers()}")
    if run.layout.packed and run.settings.run.pad_to_max_length:
        reporter.say("pad_to_max_length=True has no effect: rows are packed, not padded (packing=False pads them)")
    log = MetricsLog(folder.metrics_lines, folder.events, state.step) if run.group.is_main else NullMetricsLog()
    try:
        with TrainingBar(reporter.console, run.total_steps, state.step) as bar:
            train(run, state, log, bar)
    except Interrupted as stop:
        raise Interrupted(f"{stop}; {_resume_advice(folder)}") from None
    finally:
        log.close()


def _load_best(run: TrainingRun, state: TrainingState, say: Callable[[str], None]) -> None:
    """Load the weights of the best checkpoint, if load_best_model_at_end is set."""
    if run.settings.validation.load_best_at_end and state.best_step not in (None, state.step):
        assert state.best_step is not None
        load_weights(run.model, run.checkpoints.read(state.best_step)[1])
        say(f"loading the best checkpoint: step {state.best_step}, validation loss {state.best_loss:.4f}")
    run.model.network.eval()


@contextmanager
def stop_requests(console: Console) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGINT or SIGTERM was received; a second signal stops at once."""
    is_requested = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal is_requested
        if is_requested:
            raise KeyboardInterrupt
        is_requested = True
        console.print(STOPPING, markup=False)

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: is_requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
