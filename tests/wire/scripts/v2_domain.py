"""SageMaker SDK v2: domain adaptation of GPT-2, with S3Uploader and S3Downloader around it.

usage: v2_domain.py TEXT_FILE. Prints what it saw.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import sagemaker
from sagemaker.jumpstart.estimator import JumpStartEstimator
from sagemaker.s3 import S3Downloader, S3Uploader

ROLE = "arn:aws:iam::123456789012:role/SageMakerExecutionRole"
client = boto3.client("sagemaker")
seen: dict[str, Any] = {}
bucket = sagemaker.Session().default_bucket()
folder = f"s3://{bucket}/domain"
text = S3Uploader.upload(sys.argv[1], f"{folder}/rows")
seen["uploaded"] = text
S3Uploader.upload_string_as_file_body("said", f"{folder}/notes/note.txt")
seen["note"] = S3Downloader.read_file(f"{folder}/notes/note.txt")
seen["listed"] = S3Downloader.list(folder)

estimator = JumpStartEstimator(
    model_id="huggingface-textgeneration1-gpt-2-xl", role=ROLE, output_path=f"{folder}/out",
    hyperparameters={"instruction_tuned": "False", "epoch": "1", "max_input_length": "64", "max_steps": "2",
                     "per_device_train_batch_size": "2"},
)  # fmt: skip
estimator.fit({"train": f"{folder}/rows"}, wait=False)
name = estimator.latest_training_job.name
while (job := client.describe_training_job(TrainingJobName=name))["TrainingJobStatus"] == "InProgress":
    time.sleep(0.5)
seen["job"] = {key: job.get(key) for key in ("TrainingJobStatus", "FailureReason")}
seen["logs"] = len(boto3.client("logs").filter_log_events(
    logGroupName="/aws/sagemaker/TrainingJobs", logStreamNamePrefix=name + "/")["events"])  # fmt: skip
S3Downloader.download(estimator.model_data, "artifact")
seen["downloaded"] = sorted(path.name for path in Path("artifact").iterdir())
seen["attached"] = JumpStartEstimator.attach(name, model_id="huggingface-textgeneration1-gpt-2-xl").model_data
print(json.dumps(seen, default=str))
