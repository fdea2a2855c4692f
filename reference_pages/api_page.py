"""docs/api.md: supported operations, and fields without effect, from the tables of both."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from luthier.api import OPERATIONS
from luthier.api.fields_without_effect import FIELDS as FIELDS_WITHOUT_EFFECT
from luthier.objects.bucket_operations import NOT_IMPLEMENTED
from luthier.objects.operations import OPERATIONS as S3_OPERATIONS
from luthier.protocol import model
from reference_pages.cell import NOTE

TITLES = {
    "sagemaker": "SageMaker", "sagemaker-runtime": "SageMaker Runtime", "logs": "CloudWatch Logs",
    "cloudwatch": "CloudWatch", "sts": "STS", "iam": "IAM", "s3": "S3",
}  # fmt: skip


def api_page() -> str:
    """Return docs/api.md."""
    offered = {**OPERATIONS, "s3": {name: do for name, do in S3_OPERATIONS.items() if name not in NOT_IMPLEMENTED}}
    rows = [
        f"| {TITLES[service]} | {len(model.load(service).operation_names)} | {', '.join(sorted(offered[service]))} |"
        for service in TITLES
    ]
    return "\n".join([
        NOTE,
        "# API: supported operations, and fields without effect\n",
        "Requests are validated against AWS's published service models: required fields, types, lengths, ranges, "
        "patterns, enumerations, unions. The error names every violation.\n",
        "## Operations\n",
        "Other operations are refused as AWS refuses unknown ones (`UnknownOperationException`, S3: "
        "`MethodNotAllowed`). Several of the S3 operations always return the response for a bucket without that "
        "configuration.\n",
        "\n".join(["| service | operations of AWS | supported |", "|---|---:|---|", *rows]) + "\n",
        "Refused with `NotImplemented`: " + ", ".join(sorted(NOT_IMPLEMENTED)) + ".\n",
        "## Fields without effect\n",
        "These fields are validated, stored, returned by Describe, and logged once. Any `KmsKeyId` is refused, because "
        "data that should be encrypted must not be stored in plain text.\n",
        *_fields(),
    ])  # fmt: skip


def _fields() -> Iterator[str]:
    for operation, fields in FIELDS_WITHOUT_EFFECT.items():
        rows = [
            f"| {', '.join(f'`{path}`' for path, _ in group)} | {why} |"
            for why, group in groupby(fields.items(), lambda item: item[1])
        ]
        yield f"### {operation}\n"
        yield "\n".join(["| field | reason |", "|---|---|", *rows]) + "\n"
