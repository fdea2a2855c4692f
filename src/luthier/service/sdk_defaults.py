"""The SageMaker SDKs' own defaults, from a bucket of ours: `luthier env` points SAGEMAKER_ADMIN_CONFIG_OVERRIDE at it.

With a default bucket and roles in it, the SDKs do not call STS, whose address is built in, for the account.
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
                # Their telemetry is a request to a bucket of AWS, and a traceback in the log where there is none.
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
    """The bucket with the one file."""

    def read(name: str, key: str) -> bytes | None:
        return CONFIG if key == KEY else None

    return VirtualBucket(pattern=BUCKET, read=read, keys=lambda name: [KEY], content_type="application/yaml")


class _Plain(yaml.SafeDumper):
    """Without anchors, which people find hard to read."""

    def ignore_aliases(self, data: object) -> bool:
        return True


CONFIG = yaml.dump(_CONTENT, Dumper=_Plain, sort_keys=False).encode()
