"""Fields of requests that have no meaning on one's own machine: kept, answered by Describe, and said once in the log.

The table is the only list of them; the documentation prints it. Encryption keys are no such field: what was to be
encrypted must not lie there in the clear, so they are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from luthier.api.service import Service
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError

log = logging.getLogger(__name__)

_PLACEMENT = "a job runs on the devices of this machine, as the server was told at its start"
_NETWORK = "the job's process is on this machine's network"
_SPOT = "no instance is rented, so there is none to be lost"
_SCRIPT = "Luthier's own program trains in place of a container's"
_DEBUGGER = "SageMaker Debugger is not part of Luthier; see the job's log and metrics.jsonl"
_OWN_NAMES = ("HyperParameters", "Environment", "Tags")  # hold names of the caller's, not of the API
_MLFLOW = "no MLflow server is called"
_DEPLOYMENT = "all traffic goes to the new processes at once, as soon as every one of them is ready"

_CONTAINER = {
    "Image": "Luthier's own program serves in place of a container's",
    "ImageConfig": "no image is pulled",
    "ContainerHostname": "no container is started",
    "ContainerMetricsConfig": "no container is started",
    "Environment": "Luthier's own program serves, and reads none of a container's variables",
}
# Variables of a training job that do have a meaning.
_MEANT = ("LUTHIER_MODEL", "accept_eula")

# Operation -> path of the field -> why it has no meaning here.
WITHOUT_MEANING: Mapping[str, Mapping[str, str]] = {
    "CreateTrainingJob": {
        "AlgorithmSpecification.TrainingImage": _SCRIPT,
        "AlgorithmSpecification.AlgorithmName": _SCRIPT,
        "AlgorithmSpecification.TrainingInputMode": "rows are copied before the job starts, whatever the mode",
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
        "InputDataConfig.ContentType": "the kind of the rows is found from the files",
        "InputDataConfig.InputMode": "rows are copied before the job starts, whatever the mode",
        "InputDataConfig.ShuffleConfig": "rows are shuffled by the hyperparameter seed",
        "InputDataConfig.DataSource.S3DataSource.S3DataDistributionType": "every process reads all the rows it needs",
        "InputDataConfig.DataSource.S3DataSource.AttributeNames": "only augmented manifests have attributes",
        "InputDataConfig.DataSource.S3DataSource.InstanceGroupNames": _PLACEMENT,
        "StoppingCondition.MaxWaitTimeInSeconds": _SPOT,
        "StoppingCondition.MaxPendingTimeInSeconds": "a job waits until a device is free",
        "RoleArn": "no role is assumed",
        "Environment": f"Luthier's own program trains, and reads of these variables {' and '.join(_MEANT)} only",
        "VpcConfig": _NETWORK,
        "EnableNetworkIsolation": _NETWORK,
        "EnableInterContainerTrafficEncryption": _NETWORK,
        "EnableManagedSpotTraining": _SPOT,
        "CheckpointConfig": "checkpoints stay in the job's folder, and every interrupted job goes on from them",
        "RetryStrategy": "an interrupted job goes on from its checkpoint without being asked",
        "DebugHookConfig": _DEBUGGER,
        "DebugRuleConfigurations": _DEBUGGER,
        "ProfilerConfig": _DEBUGGER,
        "ProfilerRuleConfigurations": _DEBUGGER,
        "TensorBoardOutputConfig": "TensorBoard's event files stay in the job's folder",
        "ExperimentConfig": "experiments are not part of Luthier",
        "RemoteDebugConfig": "there is no container to open a shell in",
        "InfraCheckConfig": _PLACEMENT,
        "SessionChainingConfig": "no role is assumed",
        "MlflowConfig": _MLFLOW,
        "ModelPackageConfig": "model packages are not part of Luthier",
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
        "ProductionVariants.CoreDumpConfig": "a crash is told in the endpoint's FailureReason",
        "ProductionVariants.ServerlessConfig": "the endpoint's process stays up",
        "ProductionVariants.VolumeSizeInGB": "a model uses the disk of the server's home",
        "ProductionVariants.ModelDataDownloadTimeoutInSeconds": "the model is copied on this machine",
        "ProductionVariants.ContainerStartupHealthCheckTimeoutInSeconds": "a start that fails is told at once",
        "ProductionVariants.EnableSSMAccess": "there is no container to open a shell in",
        "ProductionVariants.ManagedInstanceScaling": _PLACEMENT,
        "ProductionVariants.RoutingConfig": "one process serves a variant",
        "ProductionVariants.InferenceAmiVersion": _PLACEMENT,
        "ProductionVariants.CapacityReservationConfig": _PLACEMENT,
        "ProductionVariants.AcceleratorPartitionLayouts": _PLACEMENT,
        "ExecutionRoleArn": "no role is assumed",
        "VpcConfig": _NETWORK,
        "EnableNetworkIsolation": _NETWORK,
        "MetricsConfig": "see /metrics of the server",
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
        "DesiredWeightsAndCapacities.ServerlessUpdateConfig": "the endpoint's process stays up",
    },
}


def note(call: Call, service: Service) -> None:
    """Log each field of the call that has no meaning here, unless that was said before."""
    for path, why in WITHOUT_MEANING.get(call.operation, {}).items():
        said = f"{call.operation}.{path}"
        if said not in service.notes and any(map(_says, _at(call.parameters, path.split(".")))):
            service.notes.add(said)
            log.warning("%s %s is kept and has no effect: %s", call.operation, path, why)


def refuse_keys(call: Call) -> None:
    """ValidationException for any KmsKeyId: nothing is encrypted with it, and what asks for that must be told."""
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
