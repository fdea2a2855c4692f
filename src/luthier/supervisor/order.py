"""What a stored request orders of the engine: which addresses hold its rows, which job, which hyperparameters.

One answer for CreateTrainingJob and CreateAutoMLJobV2. This module reads requests and facts; it downloads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.catalog.entry import Entry, find
from luthier.errors import UserError
from luthier.jobfolder import CHANNEL_ALIASES
from luthier.jobs import trial
from luthier.jobs.store import Resource
from luthier.jobspec import JobSpec
from luthier.launchers.launcher import CPU

NOT_DATA = frozenset({"model", "code", "sm_drivers"})
"""Channels that the SDKs add for SageMaker's containers."""

TRUNCATED = 0.6  # share of truncated rows above which Autopilot fails, as AWS documents
VALIDATION_SHARE = 0.2  # DataSplitConfig's default
MAX_RUNTIME = 86_400  # StoppingCondition's default, in seconds


@dataclass(frozen=True, slots=True)
class Limit:
    """The most seconds that a job may be worked on, and the member of the request that says so."""

    seconds: float
    member: str


def is_automl(resource: Resource) -> bool:
    return resource.kind == "automl-job"


def channels(resource: Resource) -> dict[str, str]:
    """The address of each channel of rows, by the engine's name for it. UserError for what cannot be read here."""
    found: dict[str, str] = {}
    for given, channel in _named(resource):
        name = CHANNEL_ALIASES.get(given)
        if name is None:
            raise UserError(f"channel {given!r} is not known; expected training, validation or test")
        if name in found:
            raise UserError(f"channel {given!r}: there is another for the {name} rows; leave one of them out")
        found[name] = _address(given, channel)
    if "training" not in found:
        raise UserError("there is no channel of training rows; name one of them training or train")
    return found


def _named(resource: Resource) -> list[tuple[str, Mapping[str, Any]]]:
    if is_automl(resource):
        given = resource.request.get("AutoMLJobInputDataConfig", [])
        return [(channel.get("ChannelType", "training"), channel) for channel in given]
    given = resource.request.get("InputDataConfig", [])
    return [(channel["ChannelName"], channel) for channel in given if channel["ChannelName"] not in NOT_DATA]


def _address(name: str, channel: Mapping[str, Any]) -> str:
    source = channel.get("DataSource", {}).get("S3DataSource")
    if source is None:
        raise UserError(f"channel {name!r}: only S3DataSource can be read; put the rows into a bucket")
    if source.get("S3DataType", "S3Prefix") != "S3Prefix":
        raise UserError(f"channel {name!r}: S3DataType {source['S3DataType']} cannot be read; use S3Prefix")
    if channel.get("CompressionType", "None") not in ("None", ""):
        raise UserError(f"channel {name!r}: only CompressionType None can be read; unpack the rows")
    return str(source["S3Uri"])


def entry_of(resource: Resource) -> Entry | None:
    """The catalogue's entry of the base model; None for a model that is not in it."""
    return find(str(resource.facts.get("base_model", "")))


def reads_pairs(entry: Entry | None) -> bool:
    """Whether the model reads a prompt and writes an answer (T5), rather than going on with one text."""
    return entry is not None and entry.shape.get("model_type") in ("t5", "mt5", "bart", "mbart", "longt5")


def job(resource: Resource, device: str, channels: Mapping[str, Any], model: str | None = None) -> JobSpec:
    """The engine's order; `model` stands in for the base model's name where its weights were downloaded."""
    facts, entry = resource.facts, entry_of(resource)
    limit = entry.autopilot.rows if is_automl(resource) and entry and entry.autopilot else None
    return JobSpec(
        model=model or str(facts["base_model"]),
        kind=str(facts.get("kind", "auto")),
        device="cpu" if device == CPU else "cuda",
        command=["CreateAutoMLJobV2" if is_automl(resource) else "CreateTrainingJob", resource.name],
        max_truncated=TRUNCATED if is_automl(resource) else None,
        max_rows=limit,
        hyperparameters=hyperparameters(resource, channels),
        eula=facts.get("eula"),
    )


def hyperparameters(resource: Resource, channels: Mapping[str, Any]) -> dict[str, str]:
    """The engine's hyperparameters; `channels` are those of the request. Autopilot's own rules become settings."""
    given = {name: str(value) for name, value in resource.facts.get("hyperparameters", {}).items()}
    if not is_automl(resource):
        return given
    settled: dict[str, str] = {}
    if "validation" not in channels:
        split = resource.request.get("DataSplitConfig", {})
        settled["validation_split_ratio"] = str(split.get("ValidationFraction", VALIDATION_SHARE))
    entry = entry_of(resource)
    if entry and entry.autopilot:
        settled["max_input_length"] = str(entry.autopilot.tokens)
        if reads_pairs(entry):
            settled["max_output_length"] = str(entry.autopilot.tokens)
    return settled | given


def limit(resource: Resource) -> Limit:
    """How long the job may be worked on."""
    if not is_automl(resource):
        asked = resource.request.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", MAX_RUNTIME)
        return Limit(float(asked), "StoppingCondition.MaxRuntimeInSeconds")
    config = resource.request.get("AutoMLProblemTypeConfig", {}).get("TextGenerationJobConfig", {})
    criteria = config.get("CompletionCriteria", {})
    limits = [
        Limit(float(criteria.get(name, default)), f"CompletionCriteria.{name}")
        for name, default in (
            ("MaxRuntimePerTrainingJobInSeconds", trial.MAX_RUNTIME), ("MaxAutoMLJobRuntimeInSeconds", float("inf"))
        )
    ]  # fmt: skip
    return min(limits, key=lambda one: one.seconds)


def output(resource: Resource) -> str:
    """The address below which the job's results go, ending in a slash."""
    path = str(resource.request["OutputDataConfig"]["S3OutputPath"]).rstrip("/")
    below = f"{trial.candidate_name(resource)}/" if is_automl(resource) else ""
    return f"{path}/{resource.name}/{below}output/"
