"""Request fields without effect on a local machine: stored, returned by Describe, and logged once.

The documentation prints this table. Encryption keys are not among them: they are refused, because data that should be
encrypted must not be stored in plain text.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from luthier.api.service import Service
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError

log = logging.getLogger(__name__)

_PLACEMENT = "jobs and endpoints use the devices of this machine (luthier serve --slots, --serve-on)"
_NETWORK = "processes use this machine's network"
_SPOT = "no instance is rented, so none can be reclaimed"
_SCRIPT = "Luthier's training program runs instead of a container"
_DEBUGGER = "SageMaker Debugger is not supported; see the job's log and metrics.jsonl"
_OWN_NAMES = ("HyperParameters", "Environment", "Tags")  # hold names of the caller's, not of the API
_MLFLOW = "no MLflow server is called"
_DEPLOYMENT = "all traffic switches to the new processes when all of them are ready"

_CONTAINER = {
    "Image": "Luthier's serving program runs instead of a container",
    "ImageConfig": "no image is pulled",
    "ContainerHostname": "no container is started",
    "ContainerMetricsConfig": "no container is started",
    "Environment": "Luthier's serving program does not read the variables of a container",
}
# Variables of a training job that have an effect.
_MEANT = ("LUTHIER_MODEL", "accept_eula")

# Operation -> path of the field -> why it has no effect.
WITHOUT_MEANING: Mapping[str, Mapping[str, str]] = {
    "CreateTrainingJob": {
        "AlgorithmSpecification.TrainingImage": _SCRIPT,
        "AlgorithmSpecification.AlgorithmName": _SCRIPT,
        "AlgorithmSpecification.TrainingInputMode": "rows are copied before the job starts, in every mode",
        "AlgorithmSpecification.ContainerEntrypoint": _SCRIPT,
        "AlgorithmSpecification.ContainerArguments": _SCRIPT,
        "AlgorithmSpecification.TrainingImageConfig": _SCRIPT,
        "AlgorithmSpecification.EnableSageMakerMetricsTimeSeries": "every step is in metrics.jsonl",
        "ResourceConfig.InstanceType": _PLACEMENT,
        "ResourceConfig.InstanceCount": _PLACEMENT,
        "ResourceConfig.InstanceGroups": _PLACEMENT,
        "ResourceConfig.InstancePlacementConfig": _PLACEMENT,
        "ResourceConfig.InstancePreferences": _PLACEMENT,
        "ResourceConfig.VolumeSizeInGB": "a job uses the disk of the server's home",
        "ResourceConfig.KeepAlivePeriodInSeconds": _PLACEMENT,
        "ResourceConfig.TrainingPlanArn": _PLACEMENT,
        "InputDataConfig.ContentType": "the kind of the rows is detected from the files",
        "InputDataConfig.InputMode": "rows are copied before the job starts, in every mode",
        "InputDataConfig.ShuffleConfig": "the hyperparameter seed shuffles the rows",
        "InputDataConfig.DataSource.S3DataSource.S3DataDistributionType": "every process reads the rows it needs",
        "InputDataConfig.DataSource.S3DataSource.AttributeNames": "only augmented manifests have attributes",
        "InputDataConfig.DataSource.S3DataSource.InstanceGroupNames": _PLACEMENT,
        "StoppingCondition.MaxWaitTimeInSeconds": _SPOT,
        "StoppingCondition.MaxPendingTimeInSeconds": "a job waits until a device is free",
        "RoleArn": "no role is assumed",
        "Environment": f"Luthier's training program reads only {' and '.join(_MEANT)}",
        "VpcConfig": _NETWORK,
        "EnableNetworkIsolation": _NETWORK,
        "EnableInterContainerTrafficEncryption": _NETWORK,
        "EnableManagedSpotTraining": _SPOT,
        "CheckpointConfig": "checkpoints stay in the job folder, and every interrupted job resumes from them",
        "RetryStrategy": "an interrupted job resumes from its checkpoint automatically",
        "DebugHookConfig": _DEBUGGER,
        "DebugRuleConfigurations": _DEBUGGER,
        "ProfilerConfig": _DEBUGGER,
        "ProfilerRuleConfigurations": _DEBUGGER,
        "TensorBoardOutputConfig": "TensorBoard's event files stay in the job folder",
        "ExperimentConfig": "experiments are not supported",
        "RemoteDebugConfig": "there is no container to connect to",
        "InfraCheckConfig": _PLACEMENT,
        "SessionChainingConfig": "no role is assumed",
        "MlflowConfig": _MLFLOW,
        "ModelPackageConfig": "model packages are not supported",
    },
    "CreateAutoMLJobV2": {
        "RoleArn": "no role is assumed",
        "SecurityConfig.EnableInterContainerTrafficEncryption": _NETWORK,
        "SecurityConfig.VpcConfig": _NETWORK,
    },
    "CreateModel": {
        **{f"{place}.{name}": why for place in ("PrimaryContainer", "Containers") for name, why in _CONTAINER.items()},
        "ExecutionRoleArn": "no role is assumed",
        "VpcConfig": _NETWORK,
        "EnableNetworkIsolation": _NETWORK,
        "InferenceExecutionConfig": "a model has one container",
    },
    "CreateEndpointConfig": {
        "ProductionVariants.InstanceType": _PLACEMENT,
        "ProductionVariants.InitialInstanceCount": "one process serves a variant",
        "ProductionVariants.InstancePools": _PLACEMENT,
        "ProductionVariants.VariantInstanceProvisionTimeoutInSeconds": _PLACEMENT,
        "ProductionVariants.AcceleratorType": _PLACEMENT,
        "ProductionVariants.CoreDumpConfig": "the endpoint's FailureReason reports a crash",
        "ProductionVariants.ServerlessConfig": "the endpoint's process runs all the time",
        "ProductionVariants.VolumeSizeInGB": "a model uses the disk of the server's home",
        "ProductionVariants.ModelDataDownloadTimeoutInSeconds": "the model is copied locally",
        "ProductionVariants.ContainerStartupHealthCheckTimeoutInSeconds": "a failed start is reported immediately",
        "ProductionVariants.EnableSSMAccess": "there is no container to connect to",
        "ProductionVariants.ManagedInstanceScaling": _PLACEMENT,
        "ProductionVariants.RoutingConfig": "one process serves a variant",
        "ProductionVariants.InferenceAmiVersion": _PLACEMENT,
        "ProductionVariants.CapacityReservationConfig": _PLACEMENT,
        "ProductionVariants.AcceleratorPartitionLayouts": _PLACEMENT,
        "ExecutionRoleArn": "no role is assumed",
        "VpcConfig": _NETWORK,
        "EnableNetworkIsolation": _NETWORK,
        "MetricsConfig": "see /_luthier/metrics",
        "CrossRegionTrafficConfig": _NETWORK,
    },
    "CreateEndpoint": {
        "DeploymentConfig": _DEPLOYMENT,
    },
    "UpdateEndpoint": {
        "DeploymentConfig": _DEPLOYMENT,
        "RetainDeploymentConfig": _DEPLOYMENT,
    },
    "UpdateEndpointWeightsAndCapacities": {
        "DesiredWeightsAndCapacities.DesiredInstanceCount": "one process serves a variant",
        "DesiredWeightsAndCapacities.ServerlessUpdateConfig": "the endpoint's process runs all the time",
    },
}


def note(call: Call, service: Service) -> None:
    """Log each field of the call that has no effect, once per field."""
    for path, why in WITHOUT_MEANING.get(call.operation, {}).items():
        said = f"{call.operation}.{path}"
        if said not in service.notes and any(map(_says, _at(call.parameters, path.split(".")))):
            service.notes.add(said)
            log.warning("%s: %s is stored but has no effect: %s", call.operation, path, why)


def refuse_keys(call: Call) -> None:
    """ValidationException for any KmsKeyId, because Luthier does not encrypt."""
    for path, key in _keys(call.parameters, ""):
        raise WireError(
            "ValidationException",
            f"{path}={key}: Luthier does not encrypt what it stores yet; leave it out, and keep the server's home on "
            "an encrypted disk",
        )


def _says(value: Any) -> bool:
    """Whether something is asked for: not what is empty, zero or False, and not a variable that has a meaning."""
    return bool(value.keys() - set(_MEANT)) if isinstance(value, Mapping) else bool(value)


def _at(found: Any, path: list[str]) -> Iterator[Any]:
    """The values at a path that goes through lists."""
    if isinstance(found, list):
        for item in found:
            yield from _at(item, path)
    elif not path:
        yield found
    elif isinstance(found, Mapping) and path[0] in found:
        yield from _at(found[path[0]], path[1:])


def _keys(found: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(found, list):
        for item in found:
            yield from _keys(item, path)
    elif isinstance(found, Mapping):
        for name, value in found.items():
            inner = f"{path}.{name}" if path else name
            if name in _OWN_NAMES:
                continue
            if name.endswith("KmsKeyId") and isinstance(value, str) and value:
                yield inner, value
            else:
                yield from _keys(value, inner)
