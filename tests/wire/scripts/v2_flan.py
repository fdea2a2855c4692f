"""SageMaker SDK v2, wholly unmodified under `luthier env --proxy`: FLAN-T5 tuned on rows with a template, and asked.

usage: v2_flan.py FOLDER. Prints what it saw. The SDK's own waits, of half a minute each, are in the notebooks.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import boto3
import sagemaker
from sagemaker import hyperparameters
from sagemaker.analytics import TrainingJobAnalytics
from sagemaker.jumpstart.estimator import JumpStartEstimator

MODEL = "huggingface-text2text-flan-t5-base"
client = boto3.client("sagemaker")
seen: dict[str, Any] = {}


def until(describe: Any, key: str, *ends: str) -> Any:
    while (answer := describe())[key] not in ends:
        time.sleep(0.5)
    return answer


session = sagemaker.Session()
role = sagemaker.get_execution_role()
seen["role"], seen["account"] = role, session.account_id()
rows = session.upload_data(sys.argv[1], key_prefix="flan/rows")
settings = hyperparameters.retrieve_default(model_id=MODEL, model_version="*")
seen["defaults"] = {name: settings[name] for name in ("epochs", "batch_size", "learning_rate")}
settings |= {"epochs": "1", "max_steps": "2", "batch_size": "4"}
hyperparameters.validate(model_id=MODEL, model_version="*", hyperparameters=settings)

estimator = JumpStartEstimator(
    model_id=MODEL, hyperparameters=settings, role=role, sagemaker_session=session, output_path=f"{rows}/../out"
)  # fmt: skip
estimator.fit({"training": rows}, wait=False)
name = estimator.latest_training_job.name
job = until(lambda: client.describe_training_job(TrainingJobName=name), "TrainingJobStatus",
            "Completed", "Failed", "Stopped")  # fmt: skip
seen["job"] = {key: job.get(key) for key in ("TrainingJobStatus", "FailureReason", "HyperParameters")}
seen["artifact"] = estimator.model_data
seen["curve"] = TrainingJobAnalytics(name, sagemaker_session=session, period=1).dataframe().to_dict("list")
predictor = estimator.deploy(wait=False)
endpoint = predictor.endpoint_name
seen["endpoint"] = until(lambda: client.describe_endpoint(EndpointName=endpoint), "EndpointStatus",
                         "InService", "Failed")["EndpointStatus"]  # fmt: skip
seen["answer"] = predictor.predict({"inputs": "the cat", "parameters": {"max_new_tokens": 4}})
predictor.delete_model()
predictor.delete_endpoint()
print("\n" + json.dumps(seen, default=str))  # the SDK leaves its lines of dots open
