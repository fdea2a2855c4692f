"""The base model that a request names: an entry of the catalogue, a repository of the Hub, or weights in a bucket.

    CreateTrainingJob       tag sagemaker-sdk:jumpstart-model-id     set by the SageMaker SDK's JumpStartEstimator
                            channel `model`                          a JumpStart artifact, a hub content, or own weights
                            Environment LUTHIER_MODEL                for other clients
    CreateAutoMLJobV2       BaseModelName

With own weights the tag names the model that they were tuned from, whose licence and hyperparameters apply.

The engine checks that the weights exist; this module only whether the licence was accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.catalog import jumpstart
from luthier.catalog.entry import REPOSITORY, Entry, check_tunable, entries
from luthier.errors import UserError, did_you_mean

TAG = "sagemaker-sdk:jumpstart-model-id"
VARIABLE = "LUTHIER_MODEL"
AUTOPILOT_DEFAULT = "Falcon7BInstruct"
_HOW = (
    f"name one by the tag {TAG} (the SDK's JumpStartEstimator sets it), by a channel `model` that points at a "
    f"JumpStart artifact or at a folder in Hugging Face layout, or by Environment {VARIABLE}"
)


@dataclass(frozen=True, slots=True)
class BaseModel:
    """`name` is what the engine gets: an entry's id, ORG/NAME, or the s3:// prefix of the weights.

    `entry` is None if the catalogue has none for the model.
    """

    name: str
    entry: Entry | None


def for_training_job(parameters: Mapping[str, Any], labels: Mapping[str, str]) -> BaseModel:
    """The base model of a CreateTrainingJob; UserError when none, two, or an unknown one is named."""
    named: dict[str, BaseModel] = {}
    if TAG in labels:
        named[f"tag {TAG}"] = BaseModel(*_find_entry(labels[TAG], f"tag {TAG}"))
    variable = parameters.get("Environment", {}).get(VARIABLE, "")
    if variable:
        named[f"Environment {VARIABLE}"] = _model_of_variable(variable)
    source = _model_source(parameters)
    weights = None
    if source is not None:
        base = _model_of_source(source)
        if base is not None:
            named["channel model"] = base
        elif jumpstart.is_cache_uri(source["S3Uri"]):
            if not named:
                uri = source["S3Uri"]
                raise UserError(f"channel model: {uri} is no artifact of a JumpStart model known here; {_HOW}")
        else:
            weights = source["S3Uri"]
    chosen = _only_model(named)
    if weights is not None and variable:
        raise UserError(
            f"CreateTrainingJob names two base models: {variable} (Environment {VARIABLE}) and the weights at "
            f"{weights} (channel model); leave one of them out"
        )
    if weights is not None:
        return BaseModel(weights, chosen.entry if chosen else None)
    if chosen is None:
        raise UserError(f"CreateTrainingJob names no base model; {_HOW}")
    check_tunable(chosen.entry)
    return chosen


def for_autopilot(name: str) -> Entry:
    """The entry of a BaseModelName, ignoring case; UserError for a model that Autopilot does not tune.

    The ids of other entries that support Autopilot's rows are accepted too.
    """
    known = autopilot_names()
    if name.lower() in known:
        return known[name.lower()][1]
    close = did_you_mean(name, (shown for shown, _ in known.values()))
    raise UserError(
        f"BaseModelName {name!r} is not supported{close}; expected one of "
        f"{', '.join(entry.autopilot.name for entry in entries() if entry.autopilot)}, or the JumpStart id of an entry "
        "that `luthier models --kind autopilot` lists"
    )


def autopilot_names() -> dict[str, tuple[str, Entry]]:
    """{name in lower case: (name as written, its entry)}"""
    names: dict[str, tuple[str, Entry]] = {}
    for entry in entries():
        if "autopilot" in entry.kinds:
            own = (entry.autopilot.name,) if entry.autopilot else ()
            for name in (*own, *jumpstart.jumpstart_ids(entry)):
                names[name.lower()] = (name, entry)
    return names


def eula_accepted(parameters: Mapping[str, Any]) -> bool:
    """Whether a CreateTrainingJob accepts the base model's licence."""
    source = _model_source(parameters) or {}
    variable = str(parameters.get("Environment", {}).get("accept_eula", ""))
    return bool(source.get("ModelAccessConfig", {}).get("AcceptEula")) or variable.lower() == "true"


def _model_source(parameters: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for channel in parameters.get("InputDataConfig", []):
        if channel["ChannelName"] == "model":
            source: Mapping[str, Any] | None = channel["DataSource"].get("S3DataSource")
            return source
    return None


def _model_of_source(source: Mapping[str, Any]) -> BaseModel | None:
    """The model of a hub content, or of a JumpStart artifact's key."""
    content = source.get("HubAccessConfig", {}).get("HubContentArn", "")
    if content:
        return BaseModel(*_find_entry(jumpstart.content_name(content), "channel model, HubContentArn"))
    entry = jumpstart.base_model_of_key(source["S3Uri"])
    return BaseModel(entry.id, entry) if entry else None


def _model_of_variable(name: str) -> BaseModel:
    """The model of LUTHIER_MODEL: an entry or a Hub repository; no path, so requests cannot read server folders."""
    entry = jumpstart.entry_of(name)
    if entry is None and REPOSITORY.fullmatch(name):
        return BaseModel(name, None)
    return BaseModel(*_find_entry(name, f"Environment {VARIABLE}"))


def _find_entry(name: str, where: str) -> tuple[str, Entry]:
    entry = jumpstart.entry_of(name)
    if entry is None:
        names = (known for entry in entries() for known in (*jumpstart.jumpstart_ids(entry), *entry.names))
        raise UserError(f"{where}: unknown model {name!r}{did_you_mean(name, names)}; `luthier models` lists them")
    return entry.id, entry


def _only_model(named: Mapping[str, BaseModel]) -> BaseModel | None:
    models = list(named.items())
    for where, other in models[1:]:
        if other.name != models[0][1].name:
            raise UserError(
                f"CreateTrainingJob names two base models: {models[0][1].name} ({models[0][0]}) and {other.name} "
                f"({where}); leave one of them out"
            )
    return models[0][1] if models else None
