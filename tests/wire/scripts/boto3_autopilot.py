"""boto3: an Autopilot job deployed by ModelDeployConfig and by hand, asked, and everything deleted.

usage: boto3_autopilot.py ROWS.csv. Prints what it saw.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import boto3

ROLE = "arn:aws:iam::123456789012:role/SageMakerExecutionRole"
s3, sagemaker, runtime = (boto3.client(name) for name in ("s3", "sagemaker", "sagemaker-runtime"))
seen: dict[str, Any] = {}


def describe(name: str) -> Any:
    return sagemaker.describe_auto_ml_job_v2(AutoMLJobName=name)


def start(name: str, **more: Any) -> Any:
    channel = {
        "ChannelType": "training",
        "ContentType": "text/csv;header=present",
        "CompressionType": "None",
        "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://wire-boto3/rows/"}},
    }
    generation = {
        "BaseModelName": "FlanT5L",
        "TextGenerationHyperParameters": {"epochCount": "1", "batchSize": "4", "learningRate": "0.001"},
    }
    return sagemaker.create_auto_ml_job_v2(
        AutoMLJobName=name, AutoMLJobInputDataConfig=[channel], RoleArn=ROLE,
        OutputDataConfig={"S3OutputPath": "s3://wire-boto3/out"},
        AutoMLProblemTypeConfig={"TextGenerationJobConfig": generation},
        DataSplitConfig={"ValidationFraction": 0.25}, **more,
    )["AutoMLJobArn"]  # fmt: skip


def ended(name: str) -> Any:
    statuses = seen.setdefault("statuses", [])
    while True:
        job = describe(name)
        if job["AutoMLJobSecondaryStatus"] not in statuses:
            statuses.append(job["AutoMLJobSecondaryStatus"])
        if job["AutoMLJobStatus"] in ("Completed", "Failed", "Stopped"):
            return job
        time.sleep(0.5)


def ask(endpoint: str) -> Any:
    body = json.dumps({"inputs": "the cat", "parameters": {"max_new_tokens": 4}})
    answer = runtime.invoke_endpoint(EndpointName=endpoint, ContentType="application/json", Body=body)
    seen["variant"] = answer["InvokedProductionVariant"]
    return json.loads(answer["Body"].read())


def stream(endpoint: str) -> str:
    body = json.dumps({"inputs": "the cat", "parameters": {"max_new_tokens": 4}, "stream": True})
    answer = runtime.invoke_endpoint_with_response_stream(
        EndpointName=endpoint, ContentType="application/json", Body=body
    )
    parts = [event["PayloadPart"]["Bytes"] for event in answer["Body"]]
    seen["stream_parts"] = len(parts)
    return b"".join(parts).decode()


def deploy(name: str, containers: Any) -> None:
    sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, Containers=containers)
    variant = {"VariantName": "AllTraffic", "ModelName": name, "InstanceType": "ml.g5.12xlarge",
               "InitialInstanceCount": 1}  # fmt: skip
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    seen["endpoint_arn"] = sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)["EndpointArn"]
    # The waiter's own pause is 30 seconds.
    waiter = sagemaker.get_waiter("endpoint_in_service")
    waiter.wait(EndpointName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 300})


s3.create_bucket(Bucket="wire-boto3", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
s3.upload_file(sys.argv[1], "wire-boto3", "rows/train.csv")
seen["arn"] = start("boto3-one", ModelDeployConfig={"AutoGenerateEndpointName": True})
seen["queued_arn"] = start("boto3-two")
try:
    start("BOTO3-ONE")
except sagemaker.exceptions.ResourceInUse as error:
    seen["again"] = error.response["Error"]["Code"]
sagemaker.stop_auto_ml_job(AutoMLJobName="boto3-two")
first = ended("boto3-one")
seen["stopped"] = ended("boto3-two")["AutoMLJobStatus"]
seen["job"] = {name: first.get(name) for name in ("AutoMLJobStatus", "AutoMLJobSecondaryStatus", "FailureReason")}
seen["base_model"] = first["ResolvedAttributes"]["AutoMLProblemTypeResolvedAttributes"]
seen["candidate"] = first.get("BestCandidate", {})
step = seen["candidate"]["CandidateSteps"][0]["CandidateStepName"]
trained = sagemaker.describe_training_job(TrainingJobName=step)
seen["trained"] = [trained["TrainingJobStatus"], trained["ModelArtifacts"]["S3ModelArtifacts"], trained["AutoMLJobArn"]]
candidates = sagemaker.list_candidates_for_auto_ml_job(AutoMLJobName="boto3-one")["Candidates"]
seen["candidates"] = [candidate["CandidateName"] for candidate in candidates]
pages = sagemaker.get_paginator("list_auto_ml_jobs").paginate(NameContains="boto3-", PaginationConfig={"PageSize": 1})
seen["pages"] = [[job["AutoMLJobName"] for job in page["AutoMLJobSummaries"]] for page in pages]

auto = first["ModelDeployResult"]["EndpointName"]
sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=auto, WaiterConfig={"Delay": 1, "MaxAttempts": 300})
seen["answer"] = ask(auto)
sagemaker.delete_endpoint(EndpointName=auto)
deploy("boto3-by-hand", first["BestCandidate"]["InferenceContainers"])
seen["answer_by_hand"] = ask("boto3-by-hand")
seen["streamed"] = stream("boto3-by-hand")
sagemaker.delete_endpoint(EndpointName="boto3-by-hand")
sagemaker.get_waiter("endpoint_deleted").wait(
    EndpointName="boto3-by-hand", WaiterConfig={"Delay": 1, "MaxAttempts": 300}
)
sagemaker.delete_endpoint_config(EndpointConfigName="boto3-by-hand")
sagemaker.delete_model(ModelName="boto3-by-hand")
try:
    ask("boto3-by-hand")
except runtime.exceptions.ValidationError as error:
    seen["after"] = error.response["Error"]
seen["left"] = [item["EndpointName"] for item in sagemaker.list_endpoints(NameContains="boto3-")["Endpoints"]]
print(json.dumps(seen, default=str))
