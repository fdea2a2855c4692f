"""A model's hub content document, as SDK v3 reads it from DescribeHubContent: the spec in the hub's own form.

Images and artifacts stand there as whole URIs: v3 sends an alias as it reads it.
"""

from __future__ import annotations

from typing import Any

from luthier.api.jumpstart import spec as specs
from luthier.api.jumpstart.offered import hyperparameters, is_pairs, metrics, name_base
from luthier.catalog.entry import Entry
from luthier.catalog.jumpstart import bucket_of, image_uri, object_key

_CAMEL = {"name": "Name", "type": "Type", "default": "Default", "scope": "Scope", "options": "Options"}
# The hub's schema has no exclusive bounds.
_BOUNDS = {"min": "Min", "exclusive_min": "Min", "max": "Max", "exclusive_max": "Max"}


def document(entry: Entry, identity: str, version: str, region: str) -> dict[str, Any]:
    """The document of one id in one version, for one region."""
    payload = specs.payload(entry)
    written: dict[str, Any] = {
        "ModelTypes": ["OPEN_WEIGHTS"],
        "Capabilities": ["FINE_TUNING", "TRAINING", "VALIDATION"] if entry.is_tunable else [],
        "Url": f"https://huggingface.co/{entry.source}",
        "MinSdkVersion": specs.MIN_SDK,
        "TrainingSupported": entry.is_tunable,
        "IncrementalTrainingSupported": False,
        "ResourceNameBase": name_base(entry),
        "GatedBucket": entry.licence.eula,
        "Task": "text2text generation" if is_pairs(entry) else "text generation",
        "Framework": "huggingface",
        "Provider": entry.source.split("/")[0],
        "DataType": "Text",
        "License": entry.licence.name,
        "DynamicContainerDeploymentSupported": False,
        "HostingEcrUri": image_uri("inference", region),
        "HostingArtifactS3DataType": "S3Prefix",
        "HostingArtifactCompressionType": "None",
        "HostingArtifactUri": _uri(entry, identity, version, region, "infer/"),
        "HostingUseScriptUri": False,
        "DefaultInferenceInstanceType": specs.default_instance(entry),
        "SupportedInferenceInstanceTypes": list(specs.INSTANCES),
        "HostingInstanceTypeVariants": _variants("inference", region),
        "InferenceVolumeSize": specs.VOLUME_GB,
        "InferenceEnableNetworkIsolation": False,
        "SageMakerSdkPredictorSpecifications": {
            "DefaultContentType": specs.JSON, "SupportedContentTypes": [specs.JSON],
            "DefaultAcceptType": specs.JSON, "SupportedAcceptTypes": [specs.JSON],
        },
        "DefaultPayloads": {"example": {"ContentType": specs.JSON, "PromptKey": "inputs", "Body": payload["body"],
                                        "OutputKeys": payload["output_keys"]}},
    }  # fmt: skip
    if entry.licence.eula:
        written["HostingEulaUri"] = _uri(entry, identity, version, region, "eula.txt")
        written["HostingEulaExternalLink"] = entry.licence.url
    return written | (_training(entry, identity, version, region) if entry.is_tunable else {})


def _training(entry: Entry, identity: str, version: str, region: str) -> dict[str, Any]:
    return {
        "TrainingEcrUri": image_uri("training", region),
        "TrainingArtifactS3DataType": "S3Prefix",
        "TrainingArtifactCompressionType": "None",
        "TrainingArtifactUri": _uri(entry, identity, version, region, "train/"),
        "TrainingScriptUri": _uri(entry, identity, version, region, "sourcedir.tar.gz"),
        "DefaultTrainingInstanceType": specs.default_instance(entry),
        "SupportedTrainingInstanceTypes": list(specs.INSTANCES),
        "TrainingInstanceTypeVariants": _variants("training", region),
        "TrainingVolumeSize": specs.VOLUME_GB,
        "TrainingEnableNetworkIsolation": False,
        "FineTuningSupported": True,
        "ValidationSupported": True,
        "TrainingMetrics": metrics(entry),
        "Hyperparameters": [
            {(_CAMEL | _BOUNDS)[name]: value for name, value in written.items()}
            for written in hyperparameters(entry, identity)
        ],
    }


def _uri(entry: Entry, identity: str, version: str, region: str, rest: str) -> str:
    return f"s3://{bucket_of(entry, region)}/{object_key(identity, version, rest)}"


def _variants(role: str, region: str) -> dict[str, Any]:
    uri = image_uri(role, region)
    return {"Variants": {family: {"Properties": {"ImageUri": uri}} for family in specs.FAMILIES}}
