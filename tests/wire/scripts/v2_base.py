"""A base model of JumpStart deployed as it is, as in the first cell of AWS's notebooks; prints facts as JSON."""

import json
import sys

from sagemaker.jumpstart.model import JumpStartModel
from sagemaker.jumpstart.notebook_utils import list_jumpstart_models

MODEL = sys.argv[1]
listed = list_jumpstart_models()
predictor = JumpStartModel(model_id=MODEL).deploy()
answer = predictor.predict({"inputs": "a cat", "parameters": {"max_new_tokens": 4}})
predictor.delete_model()
predictor.delete_endpoint()
print(
    "\n" + json.dumps({"listed": MODEL in listed, "count": len(listed), "answer": answer})
)  # the SDK leaves its lines of dots open
