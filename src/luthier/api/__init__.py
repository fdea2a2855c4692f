"""The operations of the API by service and name, except those of S3."""

from __future__ import annotations

from collections.abc import Mapping

from luthier.api import (
    automl_jobs,
    endpoint_configs,
    endpoints,
    hub,
    identity,
    logs,
    metrics,
    models,
    runtime,
    tags,
    training_jobs,
)
from luthier.api.service import Operations

OPERATIONS: Mapping[str, Operations] = {
    "sagemaker": {
        **automl_jobs.OPERATIONS,
        **training_jobs.OPERATIONS,
        **models.OPERATIONS,
        **endpoint_configs.OPERATIONS,
        **endpoints.OPERATIONS,
        **hub.OPERATIONS,
        **tags.OPERATIONS,
    },
    "sagemaker-runtime": runtime.OPERATIONS,
    "cloudwatch": metrics.OPERATIONS,
    "logs": logs.OPERATIONS,
    "sts": identity.STS,
    "iam": identity.IAM,
}
