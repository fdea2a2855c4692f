"""SageMaker SDK v2: a gated Llama, refused without its EULA, then tuned on rows with a template, deployed and asked.

usage: v2_llama.py FOLDER. Prints what it saw.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import boto3
import sagemaker
from botocore.exceptions import ClientError
from sagemaker.jumpstart.estimator import JumpStartEstimator

MODEL = "meta-textgeneration-llama-2-7b"
ROLE = "arn:aws:iam::123456789012:role/SageMakerExecutionRole"
client = boto3.client("sagemaker")
seen: dict[str, Any] = {}


def until(describe: Any, key: str, *ends: str) -> Any:
    while (answer := describe())[key] not in ends:
        time.sleep(0.5)
    return answer


def estimator_with(**more: Any) -> JumpStartEstimator:
    estimator = JumpStartEstimator(model_id=MODEL, role=ROLE, **more)
    estimator.set_hyperparameters(
        instruction_tuned="True", epoch="1", max_input_length="64", per_device_train_batch_size="4", max_steps="2"
    )
    return estimator


session = sagemaker.Session()
seen["bucket"] = session.default_bucket()  # named by the admin configuration
rows = session.upload_data(sys.argv[1], key_prefix="llama/rows")
try:
    estimator_with().fit({"training": rows}, wait=False)
except ClientError as error:
    seen["refused"] = error.response["Error"]
estimator = estimator_with(environment={"accept_eula": "true"})
estimator.fit({"training": rows}, wait=False)
name = estimator.latest_training_job.name
job = until(lambda: client.describe_training_job(TrainingJobName=name), "TrainingJobStatus",
            "Completed", "Failed", "Stopped")  # fmt: skip
seen["job"] = {key: job.get(key) for key in ("TrainingJobStatus", "FailureReason")}
seen["metrics"] = [item["MetricName"] for item in job.get("FinalMetricDataList", [])]
predictor = estimator.deploy(wait=False)
endpoint = predictor.endpoint_name
seen["endpoint"] = until(lambda: client.describe_endpoint(EndpointName=endpoint), "EndpointStatus",
                         "InService", "Failed")["EndpointStatus"]  # fmt: skip
question = {"inputs": "the cat", "parameters": {"max_new_tokens": 4}}
seen["answer"] = predictor.predict(question, custom_attributes="accept_eula=true")
predictor.delete_model()
predictor.delete_endpoint()
client.get_waiter("endpoint_deleted").wait(EndpointName=endpoint, WaiterConfig={"Delay": 1, "MaxAttempts": 300})
try:
    client.describe_endpoint(EndpointName=endpoint)
    seen["after"] = {}
except ClientError as error:
    seen["after"] = error.response["Error"]
print("\n" + json.dumps(seen, default=str))  # the SDK leaves its lines of dots open
