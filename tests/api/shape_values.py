"""Values that an operation's input shape allows, for hypothesis: right in form, of any meaning."""

from __future__ import annotations

from typing import Any

import regex
from hypothesis import strategies as st

# Texts of which some pass each of the shapes' patterns, and some mean something to the operations.
WORDS = (
    "a", "job", "auto", "1", "0.5", "s3://bucket/rows/", "s3://jumpstart-private-cache-prod-us-east-1/luthier/x/1.0.0/",
    "arn:aws:iam::123456789012:role/r", "arn:aws:sagemaker:us-east-1:123456789012:training-job/job", "text/csv",
    "arn:aws:sagemaker:us-east-1:aws:hub-content/SageMakerPublicHub/Model/luthier-tiny/1.0.0", "LUTHIER_MODEL",
    "luthier/tiny", "FlanT5L", "SageMakerPublicHub", "luthier-tiny", "training", "validation", "model", "1.0.0", "True",
    "/aws/sagemaker/TrainingJobs", "job/algo-1-1", "W10=", "ml.g5.xlarge", "sagemaker-sdk:jumpstart-model-id", "epoch",
    "/aws/sagemaker/Endpoints/a", "sg-1", "subnet-1", "None", "x" * 70, "?", "\"", "f/00000000000000000000",
    "epochCount", "ü\ud800\0",
    # of S3
    "bucket", "rows/train.jsonl", "deep/../../x", "bucket/rows/train.jsonl", "jumpstart-cache-prod-us-east-1",
    "models_manifest.json", "CRC32", "AAAAAA==", "d41d8cd98f00b204e9800998ecf8427e", "*", "bytes=0-3", "a=b&c=d",
    "AES256",
)  # fmt: skip


def anything(shape: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    """Values that the shape allows."""
    kind = shape.type_name
    if kind == "structure":
        required = {name: anything(shape.members[name], depth + 1) for name in shape.required_members}
        others = {name: anything(member, depth + 1) for name, member in shape.members.items() if name not in required}
        if depth > 4 or not others:
            return st.fixed_dictionaries(required)
        if getattr(shape, "is_tagged_union", False):
            return st.one_of(*(st.fixed_dictionaries({name: value}) for name, value in others.items()))
        chosen = st.sets(st.sampled_from(sorted(others)), max_size=4 if depth else 7)
        return chosen.flatmap(
            lambda names: st.fixed_dictionaries(required | {name: others[name] for name in sorted(names)})
        )
    if kind == "list":
        low, high = shape.metadata.get("min", 0), min(shape.metadata.get("max", 3), 3)
        return st.lists(anything(shape.member, depth + 1), min_size=low, max_size=max(low, high))
    if kind == "map":
        return st.dictionaries(anything(shape.key), anything(shape.value), max_size=3)
    if kind == "string":
        return st.sampled_from(tuple(shape.enum) or _texts(shape))
    if kind in ("integer", "long"):
        return st.integers(shape.metadata.get("min", -5), min(shape.metadata.get("max", 10_000), 10_000))
    if kind == "blob":
        return st.binary(max_size=60)
    if kind in ("float", "double"):
        return st.floats(0, 1e300) | st.sampled_from((0.0, 0.5, 1.0))
    return st.floats(0, 4e9) if kind == "timestamp" else st.booleans()


def _texts(shape: Any) -> tuple[str, ...]:
    low, high = shape.metadata.get("min", 0), shape.metadata.get("max", 10_000)
    pattern = shape.metadata.get("pattern")
    found = tuple(
        word for word in WORDS
        if low <= len(word) <= high and (pattern is None or regex.fullmatch(_python(pattern), word))
    )  # fmt: skip
    return found or ("x" * max(low, 1),)


def _python(pattern: str) -> str:
    return pattern.replace(r"\p{ASCII}", r"[\x00-\x7f]")
