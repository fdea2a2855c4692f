"""The rules of CreateAutoMLJobV2 for text generation, beyond those of its shape.

Checked here: what the request says. The rows are checked when the job has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from luthier.catalog.hyperparameters import AUTOPILOT
from luthier.errors import did_you_mean
from luthier.jobs.automl import MAX_RUNTIME

PROBLEM = "TextGenerationJobConfig"
CSV, PARQUET = "text/csv;header=present", "x-application/vnd.amazon+parquet"
CONTENT_TYPES = {CSV: "csv", "text/csv": "csv", PARQUET: "parquet"}
_RUNTIMES = ("MaxRuntimePerTrainingJobInSeconds", "MaxAutoMLJobRuntimeInSeconds")
MAX_OUTPUT_PATH = 512
DEFAULT_FRACTION = 0.2


def faults(request: Mapping[str, Any]) -> list[str]:
    """Every rule that the request breaks, each as one sentence."""
    faults = list(_problem_faults(request))
    if faults:
        return faults  # of another problem type, whose rules are not known here
    config = request["AutoMLProblemTypeConfig"][PROBLEM]
    return [
        *_channel_faults(request["AutoMLJobInputDataConfig"]),
        *_split_faults(request),
        *_hyperparameter_faults(config.get("TextGenerationHyperParameters", {})),
        *_criteria_faults(config.get("CompletionCriteria", {})),
        *_deploy_faults(request.get("ModelDeployConfig")),
        *_output_faults(request["OutputDataConfig"]["S3OutputPath"]),
    ]


def fraction(request: Mapping[str, Any]) -> float | None:
    """The share of the training rows that is held out; None where a validation channel is given."""
    if len(request["AutoMLJobInputDataConfig"]) > 1:
        return None
    return float(request.get("DataSplitConfig", {}).get("ValidationFraction", DEFAULT_FRACTION))


def addresses(request: Mapping[str, Any]) -> dict[str, str]:
    """The address of each channel's rows, by its type."""
    channels = request["AutoMLJobInputDataConfig"]
    return {channel_type(channel): channel["DataSource"]["S3DataSource"]["S3Uri"] for channel in channels}


def max_runtime(criteria: Mapping[str, int]) -> tuple[float, str]:
    """The seconds that the training job may run, and the member of the request that sets them: the lower of two."""
    limits = {"MaxRuntimePerTrainingJobInSeconds": MAX_RUNTIME} | {
        name: criteria[name] for name in _RUNTIMES if name in criteria
    }
    name = min(limits, key=lambda name: limits[name])
    return float(limits[name]), f"CompletionCriteria.{name}"


def channel_type(channel: Mapping[str, Any]) -> str:
    return str(channel.get("ChannelType", "training"))


def _problem_faults(request: Mapping[str, Any]) -> Iterator[str]:
    problems = list(request["AutoMLProblemTypeConfig"])
    if problems != [PROBLEM]:
        names = ", ".join(problems) or "none"
        yield f"AutoMLProblemTypeConfig: problem type {names} is not supported; expected {PROBLEM}"
        return
    for name in ("AutoMLJobObjective", "AutoMLComputeConfig"):
        if request.get(name):
            yield f"{name} must not be set for problem type TextGeneration"


def _channel_faults(channels: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    kinds = [channel_type(channel) for channel in channels]
    if sorted(kinds) not in (["training"], ["training", "validation"]):
        names = " and ".join(kinds)
        yield f"AutoMLJobInputDataConfig: the channels are {names}; expected training, or training and validation"
    for channel in channels:
        yield from _one_channel_faults(f"AutoMLJobInputDataConfig, channel {channel_type(channel)}", channel)
    formats = {_format(channel) for channel in channels}
    if len(formats) > 1 and None not in formats:
        yield "AutoMLJobInputDataConfig: training and validation channel must have the same ContentType"


def _one_channel_faults(place: str, channel: Mapping[str, Any]) -> Iterator[str]:
    if _format(channel) is None:
        yield f"{place}: ContentType {channel['ContentType']} is not supported; expected {CSV} or {PARQUET}"
    if channel.get("CompressionType", "None") != "None":
        compression = channel["CompressionType"]
        yield f"{place}: CompressionType {compression} is not supported for TextGeneration; expected None"
    source = channel.get("DataSource", {}).get("S3DataSource")
    if source is None:
        yield f"{place}: no DataSource.S3DataSource is given"
        return
    if source["S3DataType"] != "S3Prefix":
        yield f"{place}: S3DataType {source['S3DataType']} is not supported for TextGeneration; expected S3Prefix"
    if not source["S3Uri"].startswith("s3://"):
        yield f"{place}: S3Uri {source['S3Uri']}: expected s3://BUCKET/PREFIX"


def _format(channel: Mapping[str, Any]) -> str | None:
    """csv or parquet; None for any other content type."""
    content_type = channel.get("ContentType") or CSV
    return CONTENT_TYPES.get(content_type.replace(" ", "").lower())


def _split_faults(request: Mapping[str, Any]) -> Iterator[str]:
    share = request.get("DataSplitConfig", {}).get("ValidationFraction")
    if share is None:
        return
    if any(channel_type(channel) == "validation" for channel in request["AutoMLJobInputDataConfig"]):
        yield "DataSplitConfig.ValidationFraction must not be set when a validation channel is given"
    if not 0 < share < 1:
        yield f"DataSplitConfig.ValidationFraction {share:g}: expected a number above 0 and below 1"


def _hyperparameter_faults(hyperparameters: Mapping[str, str]) -> Iterator[str]:
    for name in hyperparameters:
        if name not in AUTOPILOT:
            yield (
                f"TextGenerationHyperParameters: unknown hyperparameter {name!r}{did_you_mean(name, AUTOPILOT)}; "
                f"expected some of {', '.join(AUTOPILOT)}"
            )


def _criteria_faults(criteria: Mapping[str, int]) -> Iterator[str]:
    if criteria.get("MaxCandidates", 1) != 1:
        yield f"CompletionCriteria.MaxCandidates {criteria['MaxCandidates']}: must be 1 for problem type TextGeneration"


def _deploy_faults(deploy: Mapping[str, Any] | None) -> Iterator[str]:
    if deploy is None:
        return
    if deploy.get("AutoGenerateEndpointName"):
        if deploy.get("EndpointName"):
            yield "ModelDeployConfig.EndpointName must not be set when AutoGenerateEndpointName is true"
    elif not deploy.get("EndpointName"):
        yield "ModelDeployConfig.EndpointName must be set when AutoGenerateEndpointName is false"


def _output_faults(path: str) -> Iterator[str]:
    if not path.startswith("s3://"):
        yield f"OutputDataConfig.S3OutputPath {path}: expected s3://BUCKET/PREFIX"
    if len(path) > MAX_OUTPUT_PATH:
        yield f"OutputDataConfig.S3OutputPath has {len(path)} characters; expected at most {MAX_OUTPUT_PATH}"
