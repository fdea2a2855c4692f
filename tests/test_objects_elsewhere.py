"""`luthier serve --objects URL`: a job whose rows and artifact lie in another S3, and what the service adds to it."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer
from server_process import ServerProcess, server
from wire.rows import instruction_folder

KEYS = {"AWS_ACCESS_KEY_ID": "elsewhere", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
ROLE = "arn:aws:iam::123456789012:role/AnyRole"
SECONDS = 180


@pytest.fixture
def elsewhere() -> Iterator[Any]:
    """A client of somebody else's S3."""
    running = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    client = boto3.client(
        "s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"], aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    yield client
    client.close()
    running.stop()


def test_a_job_with_rows_and_artifact_elsewhere(elsewhere: Any, tmp_path: Path) -> None:
    url = elsewhere.meta.endpoint_url
    with server(tmp_path / "home", "--objects", url, environment=KEYS) as running:
        job = train(running, instruction_folder(tmp_path / "rows"))
        assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
        artifact = job["ModelArtifacts"]["S3ModelArtifacts"]
        assert artifact == "s3://outside/out/far/output/model.tar.gz"
        body = elsewhere.get_object(Bucket="outside", Key="out/far/output/model.tar.gz")["Body"].read()
        with tarfile.open(fileobj=io.BytesIO(body)) as tar:
            assert "template.json" in {Path(name).name for name in tar.getnames()}
        beside = running.client("s3").list_objects_v2(Bucket="outside", Prefix="out/far/")["Contents"]
        assert {Path(one["Key"]).name for one in beside} >= {"model.tar.gz", "report.html", "metrics.json"}
        names = {one["Name"] for one in running.client("s3").list_buckets()["Buckets"]}
        assert names == {one["Name"] for one in elsewhere.list_buckets()["Buckets"]} >= {"outside"}
        check_made_up_buckets(running)
        assert not [path for path in (running.home / "objects").rglob("*") if path.is_file()]


def train(running: ServerProcess, rows: Path) -> Any:
    """A tiny job on rows that are sent through the server's own port."""
    s3, sagemaker = running.client("s3"), running.client("sagemaker")
    s3.create_bucket(Bucket="outside")
    for path in rows.iterdir():
        s3.upload_file(str(path), "outside", f"rows/{path.name}")
    source = {"S3DataType": "S3Prefix", "S3Uri": "s3://outside/rows/"}
    sagemaker.create_training_job(
        TrainingJobName="far", RoleArn=ROLE, Environment={"LUTHIER_MODEL": "luthier/tiny"},
        HyperParameters={"instruction_tuned": "True", "max_steps": "2", "max_input_length": "64"},
        InputDataConfig=[{"ChannelName": "training", "DataSource": {"S3DataSource": source}}],
        OutputDataConfig={"S3OutputPath": "s3://outside/out"},
    )  # fmt: skip
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        job = sagemaker.describe_training_job(TrainingJobName="far")
        if job["TrainingJobStatus"] not in ("InProgress", "Stopping"):
            break
        time.sleep(0.2)
    return job


def check_made_up_buckets(running: ServerProcess) -> None:
    """What the SDKs look for is there although the other S3 knows nothing of it."""
    s3 = running.client("s3")
    found = s3.get_object(Bucket="jumpstart-cache-prod-us-west-2", Key="models_manifest.json")["Body"]
    assert "meta-textgeneration-llama-2-7b" in {model["model_id"] for model in json.load(found)}
    defaults = s3.get_object(Bucket="local-sagemaker-config", Key="config.yaml")["Body"].read()
    assert b"DefaultS3Bucket" in defaults
