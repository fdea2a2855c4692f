"""boto3: a training job over rows with a template.json, its logs and artifact; another one stopped while it trains.

usage: boto3_training.py FOLDER (train.jsonl and template.json). Prints what it saw.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError

ROLE = "arn:aws:iam::123456789012:role/SageMakerExecutionRole"
BUCKET = "wire-training"
s3, sagemaker, logs = (boto3.client(name) for name in ("s3", "sagemaker", "logs"))
seen: dict[str, Any] = {}


def start(name: str, settings: dict[str, str], model: str = "gpt2-xl", **more: Any) -> None:
    source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/rows/"}
    tuned = {"S3DataType": "S3Prefix", "S3Uri": model}
    channels = [{"ChannelName": "training", "DataSource": {"S3DataSource": source}}]
    by_channel = model.startswith("s3://")
    if by_channel:
        channels.append({"ChannelName": "model", "DataSource": {"S3DataSource": tuned}})
    sagemaker.create_training_job(
        TrainingJobName=name, RoleArn=ROLE, HyperParameters={"instruction_tuned": "True", **settings},
        AlgorithmSpecification={"TrainingImage": "luthier", "TrainingInputMode": "File"},
        InputDataConfig=channels, OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}/out"},
        Environment={} if by_channel else {"LUTHIER_MODEL": model},
        ResourceConfig={"InstanceType": "ml.g5.2xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
        StoppingCondition={"MaxRuntimeInSeconds": 3600}, **more,
    )  # fmt: skip


def reached(name: str, *wanted: str) -> Any:
    while True:
        job = sagemaker.describe_training_job(TrainingJobName=name)
        if job["TrainingJobStatus"] in wanted or job["SecondaryStatus"] in wanted:
            return job
        if job["TrainingJobStatus"] in ("Completed", "Failed", "Stopped"):
            raise SystemExit(f"{name}: {job['TrainingJobStatus']}, wanted {wanted}: {job.get('FailureReason')}")
        time.sleep(0.5)


def artifact(job: Any) -> list[str]:
    bucket, _, key = job["ModelArtifacts"]["S3ModelArtifacts"].removeprefix("s3://").partition("/")
    body = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        return sorted(tar.getnames())


s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
for path in Path(sys.argv[1]).iterdir():
    s3.upload_file(str(path), BUCKET, f"rows/{path.name}")
start("boto3-long", {"max_steps": "1000000", "epoch": "1000"}, Tags=[{"Key": "team", "Value": "wire"}])
start("boto3-short", {"max_steps": "2"})
reached("boto3-long", "Training")
while "ProgressInfo" not in sagemaker.describe_training_job(TrainingJobName="boto3-long"):
    time.sleep(0.5)  # before its first step a job has nothing to keep
sagemaker.stop_training_job(TrainingJobName="boto3-long")
stopped = reached("boto3-long", "Stopped")
seen["stopped"] = [item["Status"] for item in stopped["SecondaryStatusTransitions"]]
seen["stopped_artifact"] = artifact(stopped)
seen["tags"] = sagemaker.list_tags(ResourceArn=stopped["TrainingJobArn"])["Tags"]
done = reached("boto3-short", "Completed")
seen["transitions"] = [item["Status"] for item in done["SecondaryStatusTransitions"]]
seen["hyperparameters"] = done["HyperParameters"]
seen["metrics"] = {item["MetricName"]: item["Value"] for item in done["FinalMetricDataList"]}
seen["seconds"] = [done["TrainingTimeInSeconds"], done["BillableTimeInSeconds"]]
seen["artifact"] = artifact(done)
start("boto3-further", {"max_steps": "1"}, done["ModelArtifacts"]["S3ModelArtifacts"])
seen["further"] = {
    item["MetricName"]: item["Value"] for item in reached("boto3-further", "Completed")["FinalMetricDataList"]
}
group = "/aws/sagemaker/TrainingJobs"
streams = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix="boto3-short/")["logStreams"]
seen["streams"] = [item["logStreamName"] for item in streams]
page = logs.get_log_events(logGroupName=group, logStreamName=streams[0]["logStreamName"], startFromHead=True)
seen["log"] = [event["message"] for event in page["events"]]
found = sagemaker.list_training_jobs(NameContains="boto3-long", StatusEquals="Stopped")["TrainingJobSummaries"]
seen["listed"] = [item["TrainingJobName"] for item in found]
refusals: dict[str, str] = {}
for name, settings, model in (
    ("boto3-unknown", {}, "no-such-model"), ("boto3-epoch", {"epoch": "0"}, "gpt2-xl"),
    ("boto3-gated", {"max_steps": "1"}, "llama-2-7b"), ("boto3-short", {"max_steps": "2"}, "gpt2-xl"),
):  # fmt: skip
    try:
        start(name, settings, model)
    except ClientError as error:
        refusals[name] = "{Code}: {Message}".format(**error.response["Error"])
seen["refusals"] = refusals
print(json.dumps(seen, default=str))
