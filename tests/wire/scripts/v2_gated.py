"""SageMaker SDK v2: a gated Llama is refused without its EULA; what the SDK's own probes of an endpoint are told.

usage: v2_gated.py FOLDER. Prints what it saw. With the EULA it is tuned in a notebook and in docs/clients.md.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import sagemaker
from botocore.exceptions import ClientError
from sagemaker.jumpstart.estimator import JumpStartEstimator

ROLE = "arn:aws:iam::123456789012:role/SageMakerExecutionRole"
session = sagemaker.Session()
seen: dict[str, Any] = {"bucket": session.default_bucket()}  # named by the admin configuration
rows = session.upload_data(sys.argv[1], key_prefix="llama/rows")
estimator = JumpStartEstimator(model_id="meta-textgeneration-llama-2-7b", role=ROLE)
estimator.set_hyperparameters(instruction_tuned="True", epoch="1")
try:
    estimator.fit({"training": rows}, wait=False)
except ClientError as error:
    seen["refused"] = error.response["Error"]
try:
    session.sagemaker_client.describe_endpoint(EndpointName="no-such-endpoint")
except ClientError as error:
    seen["unknown"] = error.response["Error"]
print("\n" + json.dumps(seen))
