"""Validates the channels of a training job and returns the addresses of their rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from luthier.catalog import jumpstart
from luthier.errors import UserError
from luthier.jobfolder import CHANNEL_ALIASES
from luthier.jobspec import MANIFEST

MODEL = "model"
CODE_FOLDER = "/opt/ml/input/data/code"  # where a container finds the channel
SCRIPTS = ("code", "sm_drivers")  # the SDKs' own, for a container; ignored


def resolve(channels: Sequence[Mapping[str, Any]], hyperparameters: Mapping[str, str]) -> dict[str, str]:
    """Return the address of each channel of rows by the engine's channel name; UserError for the first fault."""
    for fault in (*_faults(channels), *_script_faults(channels, hyperparameters)):
        raise UserError(fault)
    return {
        CHANNEL_ALIASES[channel["ChannelName"]]: _address(channel["DataSource"]["S3DataSource"])
        for channel in channels
        if channel["ChannelName"] in CHANNEL_ALIASES
    }


def _address(source: Mapping[str, Any]) -> str:
    return f"{MANIFEST if source['S3DataType'] == 'ManifestFile' else ''}{source['S3Uri']}"


def _faults(channels: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for channel in channels:
        name = channel["ChannelName"]
        place = f"InputDataConfig, channel {name}"
        canonical = CHANNEL_ALIASES.get(name, name)
        if name not in (*CHANNEL_ALIASES, MODEL, *SCRIPTS):
            yield f"{place}: no such channel; expected one of {', '.join((*CHANNEL_ALIASES, MODEL))}"
        if canonical in seen:
            yield f"{place}: given twice (as {seen[canonical]} and as {name}); keep one of them"
        seen[canonical] = name
        yield from _source_faults(place, channel)
    if "training" not in seen:
        yield "InputDataConfig: no channel training (or train) is given; it holds the rows to train on"


def _source_faults(place: str, channel: Mapping[str, Any]) -> Iterator[str]:
    source = channel["DataSource"].get("S3DataSource")
    if source is None:
        sources = ", ".join(channel["DataSource"]) or "nothing"
        yield f"{place}: DataSource holds {sources}; expected S3DataSource"
        return
    if source["S3DataType"] not in ("S3Prefix", "ManifestFile"):
        yield f"{place}: S3DataType {source['S3DataType']} is not supported; expected S3Prefix or ManifestFile"
    if source["S3DataType"] == "ManifestFile" and channel["ChannelName"] == MODEL:
        yield f"{place}: S3DataType ManifestFile is not supported for a model; expected S3Prefix"
    if not source["S3Uri"].startswith("s3://"):
        yield f"{place}: S3Uri {source['S3Uri']}: expected s3://BUCKET/PREFIX"
    if channel.get("RecordWrapperType", "None") != "None":
        yield f"{place}: RecordWrapperType {channel['RecordWrapperType']} is not supported; expected None"


def _script_faults(channels: Sequence[Mapping[str, Any]], hyperparameters: Mapping[str, str]) -> Iterator[str]:
    """Refuse a user's own script: it would not run, so the job would train something else.

    With network isolation the SDK gives the script as the channel `code`.
    """
    script = hyperparameters.get("sagemaker_submit_directory", "").strip('"')
    if script.startswith(CODE_FOLDER):
        sources = (channel["DataSource"] for channel in channels if channel["ChannelName"] == "code")
        source: Mapping[str, Any] = next(sources, {})
        script = source.get("S3DataSource", {}).get("S3Uri", script)
    if script and not jumpstart.is_cache_uri(script):
        yield (
            f"HyperParameters, sagemaker_submit_directory={script}: Luthier's own program trains, and runs no script "
            "of yours; leave entry_point and source_dir out"
        )
