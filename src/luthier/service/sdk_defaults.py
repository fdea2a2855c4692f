"""A bucket with the SageMaker SDKs' defaults, to which `luthier env` points SAGEMAKER_ADMIN_CONFIG_OVERRIDE.

With a default bucket and roles in it, the SDKs do not ask STS, whose address is built in, for the account.
"""

from __future__ import annotations

import yaml

from luthier.objects.virtual import VirtualBucket
from luthier.protocol.call import ACCOUNT, ROLE

BUCKET, KEY = "local-sagemaker-config", "config.yaml"
DEFAULT_BUCKET = f"sagemaker-local-{ACCOUNT}"

_ROLE = {"RoleArn": ROLE}
_CONTENT = {
    "SchemaVersion": "1.0",
    "SageMaker": {
        "PythonSDK": {
            "Modules": {
                "Session": {"DefaultS3Bucket": DEFAULT_BUCKET},
                # The SDKs' telemetry sends a request to an AWS bucket, and logs a traceback when that fails.
                "TelemetryOptOut": True,
            }
        },
        "AutoMLJob": _ROLE,
        "AutoMLJobV2": _ROLE,
        "TrainingJob": _ROLE,
        "Model": {"ExecutionRoleArn": ROLE},
    },
}


def bucket() -> VirtualBucket:
    """The bucket, which holds one file."""

    def read(name: str, key: str) -> bytes | None:
        return CONFIG if key == KEY else None

    return VirtualBucket(pattern=BUCKET, read=read, keys=lambda name: [KEY], content_type="application/yaml")


class _NoAliasDumper(yaml.SafeDumper):
    """Writes no anchors and aliases, for readability."""

    def ignore_aliases(self, data: object) -> bool:
        return True


CONFIG = yaml.dump(_CONTENT, Dumper=_NoAliasDumper, sort_keys=False).encode()
