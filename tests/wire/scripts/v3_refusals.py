"""SageMaker SDK v3 under `luthier env --proxy`: what ModelTrainer says of a gated and of an unknown model.

Prints what it saw. The whole way, from rows to an endpoint, is in docs/clients.md.
"""

from __future__ import annotations

import json
from typing import Any

from sagemaker.core.helper.session_helper import get_execution_role
from sagemaker.core.jumpstart import JumpStartConfig
from sagemaker.core.resources import TrainingJob
from sagemaker.train import ModelTrainer

seen: dict[str, Any] = {"role": get_execution_role()}
for model in ("meta-textgeneration-llama-2-7b", "no-such-model"):
    try:
        ModelTrainer.from_jumpstart_config(jumpstart_config=JumpStartConfig(model_id=model))
    except Exception as error:  # the SDK's own kinds are not promised
        seen[model] = f"{type(error).__name__}: {error}"
try:
    TrainingJob.get(training_job_name="no-such-job")
except Exception as error:
    seen["no-such-job"] = f"{type(error).__name__}: {error}"
print(json.dumps(seen))
