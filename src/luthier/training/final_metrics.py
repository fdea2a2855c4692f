"""metrics.json: scores before and after training and the cost of the run, computed from the folder's score files."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from luthier.errors import NoGeneratedTextError
from luthier.evaluation.advice import advise_next_run
from luthier.evaluation.compare import compare
from luthier.evaluation.curves import read_curves
from luthier.jobfolder import FORMAT_VERSION, JobFolder, write_json
from luthier.training.checkpoint import TrainingState
from luthier.training.resolved_job import ResolvedJob
from luthier.weights.lora_targets import describe_adapted_layers
from luthier.weights.model import Model
from luthier.weights.quantize import count_weights


def write_final_metrics(
    folder: JobFolder,
    job: ResolvedJob,
    state: TrainingState,
    trained: TrainedPart,
    splits: Sequence[str] | None,
    epochs: float,
    seconds: Mapping[str, float],
    peaks: Sequence[PeakMemory],
) -> dict[str, Any]:
    """Write and return metrics.json.

    `splits`: the scored ones, first that of the headline figures, None for a run that was stopped; `epochs`: passes
    over the training rows; `seconds`: "score_seconds" and "total_seconds"; `peaks`: each rank's peak memory.
    NoGeneratedTextError, which names the artifact, if the trained model generated nothing.
    """
    seed = int(job.hyperparameters["train_data_split_seed"] or 0)
    pattern = str(job.hyperparameters["answer_pattern"] or "")
    scores = folder.scores
    try:
        comparisons = {split: compare(scores / f"base.{split}.jsonl", scores / f"tuned.{split}.jsonl", seed, pattern)
                       for split in splits or ()}  # fmt: skip
    except NoGeneratedTextError as error:
        raise NoGeneratedTextError(
            f"no report: {error}; the trained model is kept in {folder.artifact}, the rows in {scores}"
        ) from None
    headline = splits[0] if splits else None
    stopped = "interrupted" if splits is None else _stop_reason(job, state)
    metrics: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "split": headline,
        **(comparisons[headline] if headline else {"base": None, "tuned": None, "difference": None}),
        "validation": comparisons.get("validation") if headline == "test" else None,
        "best": {"step": state.best_step, "eval_loss": state.best_loss},
        "steps": state.step,
        "epochs": round(epochs, 4),
        "stopped": stopped,
        "next_steps": advise_next_run(read_curves(folder.metrics_lines), stopped, job.hyperparameters),
        "adapted_layers": trained.adapted_layers,
        "cost": _cost(folder, state, trained, peaks) | dict(seconds),
        "notes": (comparisons[headline]["notes"] if headline else []) + _notes(headline, stopped, job, state),
    }
    write_json(folder.metrics, metrics)
    return metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedPart:
    """What a run trains of a model: the layers under its adapter in words (None: all weights), and the parameters."""

    adapted_layers: str | None
    trainable_parameters: int
    parameters: int

    @classmethod
    def of(cls, model: Model) -> TrainedPart:
        return cls(
            adapted_layers=describe_adapted_layers(model) if model.has_adapter else None,
            trainable_parameters=sum(parameter.numel() for parameter in model.trainable_parameters().values()),
            parameters=count_weights(model.network),
        )


def _stop_reason(job: ResolvedJob, state: TrainingState) -> str:
    if state.stopped_early:
        return "early_stopping"
    return "max_steps" if job.settings.run.max_steps > 0 else "completed"


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """A process's peak memory in bytes; `gpu`: what torch allocated on its GPU."""

    memory: int
    gpu: int | None


def peak_memory(device: torch.device) -> PeakMemory:
    """The peak memory of this process so far."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return PeakMemory(memory, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None)


def _cost(folder: JobFolder, state: TrainingState, trained: TrainedPart, peaks: Sequence[PeakMemory]) -> dict[str, Any]:
    earlier = json.loads(folder.metrics.read_text("utf-8")).get("cost", {}) if folder.metrics.exists() else {}
    on_gpu = [peak.gpu for peak in peaks if peak.gpu is not None]
    return {
        "train_seconds": round(state.seconds, 2),
        "train_tokens": state.tokens,
        "completion_tokens": state.completion_tokens,
        "tokens_per_second": round(state.tokens / state.seconds, 1) if state.seconds else None,
        "ranks": len(peaks),
        "rows_at_once": state.rows_at_once,
        "peak_memory_bytes": max(*(peak.memory for peak in peaks), earlier.get("peak_memory_bytes") or 0),
        "peak_gpu_memory_bytes": max(on_gpu, default=None),
        "trainable_parameters": trained.trainable_parameters,
        "parameters": trained.parameters,
    }


def _notes(headline: str | None, stopped: str, job: ResolvedJob, state: TrainingState) -> list[str]:
    if stopped == "interrupted":
        is_best = state.best_step is not None and job.settings.validation.load_best_at_end
        chosen = f"the best checkpoint, step {state.best_step}" if is_best else "the last step"
        return [f"the run was stopped after step {state.step}: the artifact is {chosen}, and was not scored"]
    if headline is None:
        return ["no held-out rows: nothing was scored; the artifact is the last checkpoint"]
    if headline == "validation":
        return [
            "the scored rows are the validation rows, which also chose the checkpoint; set test_split_ratio or give a "
            "test/ folder to score rows that chose nothing"
        ]
    return []
