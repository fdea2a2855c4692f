"""A model's spec, as SDK v2 reads it from a cache bucket: what to send for a training job and for an endpoint."""

from __future__ import annotations

from typing import Any

from luthier.api.jumpstart.offered import hyperparameters, is_pairs, metrics, name_base
from luthier.catalog.entry import Entry
from luthier.catalog.jumpstart import image_uri, object_key

MIN_SDK = "2.0.0"
JSON = "application/json"
PREDICTOR = {
    "default_content_type": JSON,
    "supported_content_types": [JSON],
    "default_accept_type": JSON,
    "supported_accept_types": [JSON],
}
# Instance types have no effect; the clients expect ones that they know.
FAMILIES = (
    "c5", "c5n", "c6i", "c7i", "g4dn", "g5", "g6", "g6e", "inf2", "m5", "m5d", "m6i", "m7i", "p2", "p3", "p3dn", "p4d",
    "p4de", "p5", "p5e", "p5en", "r5", "t3", "trn1",
)  # fmt: skip
INSTANCES = (
    "ml.g5.2xlarge", "ml.g5.4xlarge", "ml.g5.8xlarge", "ml.g5.12xlarge", "ml.g5.16xlarge", "ml.g5.24xlarge",
    "ml.g5.48xlarge", "ml.g4dn.12xlarge", "ml.p3.2xlarge", "ml.p3.8xlarge", "ml.p3.16xlarge", "ml.p3dn.24xlarge",
    "ml.p4d.24xlarge", "ml.p5.48xlarge", "ml.m5.xlarge", "ml.c5.2xlarge",
)  # fmt: skip
VOLUME_GB = 256


def default_instance(entry: Entry) -> str:
    """The instance that AWS's lists name for models of that size."""
    if entry.parameters > 30e9:
        return "ml.g5.48xlarge"
    return "ml.g5.12xlarge" if entry.parameters > 1e9 else "ml.g5.2xlarge"


def spec(entry: Entry, identity: str, version: str, region: str) -> dict[str, Any]:
    """The spec of one id in one version; its images are those of `region`."""
    written: dict[str, Any] = {
        "model_id": identity,
        "url": f"https://huggingface.co/{entry.source}" if "/" in entry.source else "",
        "version": version,
        "min_sdk_version": MIN_SDK,
        "training_supported": entry.is_tunable,
        "incremental_training_supported": False,
        "resource_name_base": name_base(entry),
        "gated_bucket": entry.licence.eula,
        "hosting_use_script_uri": False,
        "hosting_artifact_key": object_key(identity, version, "infer/"),
        "hosting_prepacked_artifact_key": object_key(identity, version, "infer/"),
        "default_inference_instance_type": default_instance(entry),
        "supported_inference_instance_types": list(INSTANCES),
        "hosting_instance_type_variants": _variants("inference", region),
        "inference_volume_size": VOLUME_GB,
        "inference_enable_network_isolation": False,
        "dynamic_container_deployment_supported": False,
        "predictor_specs": PREDICTOR,
        "default_payloads": {"example": payload(entry)},
    }
    if entry.licence.eula:
        written["hosting_eula_key"] = object_key(identity, version, "eula.txt")
    if not entry.is_tunable:
        return written | {"usage_info_message": entry.description}
    return written | _training(entry, identity, version, region)


def payload(entry: Entry) -> dict[str, Any]:
    """A request that the served model answers."""
    text = "Translate to German: Good morning." if is_pairs(entry) else "The capital of France is"
    return {
        "content_type": JSON,
        "prompt_key": "inputs",
        "output_keys": {"generated_text": "[0].generated_text"},
        "body": {"inputs": text, "parameters": {"max_new_tokens": 64}},
    }


def _training(entry: Entry, identity: str, version: str, region: str) -> dict[str, Any]:
    return {
        "training_artifact_key": object_key(identity, version, "train/"),
        "training_script_key": object_key(identity, version, "sourcedir.tar.gz"),
        "training_prepacked_script_key": object_key(identity, version, "sourcedir.tar.gz"),
        "default_training_instance_type": default_instance(entry),
        "supported_training_instance_types": list(INSTANCES),
        "training_instance_type_variants": _variants("training", region),
        "training_volume_size": VOLUME_GB,
        "training_enable_network_isolation": False,
        "hyperparameters": hyperparameters(entry, identity),
        "metrics": metrics(entry),
    }


def _variants(role: str, region: str) -> dict[str, Any]:
    return {
        "regional_aliases": {region: {"luthier": image_uri(role, region)}},
        "variants": {family: {"regional_properties": {"image_uri": "$luthier"}} for family in FAMILIES},
    }
