"""boto3 with an access key, with a wrong one and without: objects in parts, presigned addresses, refusals.

Prints what it saw.
"""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.request
from typing import Any

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

BUCKET = "wire-signed"
s3 = boto3.client("s3")
seen: dict[str, Any] = {"caller": boto3.client("sts").get_caller_identity()["Arn"]}


def code(call: Any) -> str:
    try:
        call()
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return "nothing was refused"


s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
large = b"0123456789abcdef" * 1_000_000
s3.upload_fileobj(io.BytesIO(large), BUCKET, "large.bin")
back = io.BytesIO()
s3.download_fileobj(BUCKET, "large.bin", back)
seen["large"] = back.getvalue() == large
for version in ("s3", "s3v4"):
    signer = boto3.client("s3", config=Config(signature_version=version))
    key = {"Bucket": BUCKET, "Key": f"folder a/ü {version}.txt"}
    typed = signer.generate_presigned_url("put_object", key | {"ContentType": "text/plain"})  # a part of what is signed
    put = urllib.request.Request(typed, b"by address", {"Content-Type": "text/plain"}, method="PUT")
    urllib.request.urlopen(put).close()
    with urllib.request.urlopen(signer.generate_presigned_url("get_object", key)) as answer:
        seen[version] = answer.read().decode()
    other = signer.generate_presigned_url("get_object", key).replace("folder", "holder")
    try:
        urllib.request.urlopen(other).close()
    except urllib.error.HTTPError as error:
        seen[version + "-changed"] = error.code
        error.close()
wrong = {"aws_access_key_id": "LKIANOBODYKNOWSTHIS0", "aws_secret_access_key": "x" * 40}
secret = {"aws_secret_access_key": "x" * 40, "aws_access_key_id": boto3.Session().get_credentials().access_key}
unsigned = {"config": Config(signature_version=UNSIGNED)}
for name, how in (("unknown", wrong), ("wrong", secret), ("unsigned", unsigned)):
    seen[name] = [code(boto3.client("s3", **how).list_buckets),
                  code(boto3.client("sagemaker", **how).list_training_jobs)]  # fmt: skip
print(json.dumps(seen))
