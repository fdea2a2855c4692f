"""SageMaker SDK v2: AutoMLV2 on a gated Llama, refused without its EULA, then tuned.

usage: v2_autopilot.py ROWS.csv. Prints what it saw. The way to an endpoint is in docs/clients.md.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from botocore.exceptions import ClientError
from sagemaker.automl.automlv2 import AutoMLTextGenerationConfig, AutoMLV2, LocalAutoMLDataChannel

ROLE = "arn:aws:iam::123456789012:role/SageMakerExecutionRole"
seen: dict[str, Any] = {}
channel = LocalAutoMLDataChannel(
    data_type="S3Prefix", path=sys.argv[1], channel_type="training", content_type="text/csv;header=present"
)


def automl_with(**more: Any) -> AutoMLV2:
    config = AutoMLTextGenerationConfig(
        base_model_name="Llama2-7B", **more,
        text_generation_hyper_params={"epochCount": "1", "batchSize": "4", "learningRate": "0.001"},
    )  # fmt: skip
    return AutoMLV2(problem_config=config, base_job_name="v2tg", role=ROLE, validation_fraction=0.25)


try:
    automl_with().fit(inputs=[channel], wait=False)
except ClientError as error:
    seen["refused"] = error.response["Error"]
automl = automl_with(accept_eula=True)
automl.fit(inputs=[channel], wait=False)
name = automl.current_job_name
while (job := automl.describe_auto_ml_job(name))["AutoMLJobStatus"] == "InProgress":
    time.sleep(0.5)
seen["job"] = {key: job.get(key) for key in ("AutoMLJobStatus", "FailureReason")}
best = automl.best_candidate()
seen["metrics"] = [item["StandardMetricName"] for item in best["CandidateProperties"]["CandidateMetrics"]]
seen["candidates"] = [candidate["CandidateName"] for candidate in automl.list_candidates()]
seen["attached"] = AutoMLV2.attach(auto_ml_job_name=name).current_job_name
print("\n" + json.dumps(seen, default=str))  # the SDK leaves its lines of dots open
