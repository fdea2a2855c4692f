"""JumpStart's names: ids of entries, and the buckets, keys and URIs of their artifacts.

s3://jumpstart-cache-prod-<region>/luthier/<id>/<version>/train/        the base model's artifact
s3://jumpstart-private-cache-prod-<region>/...                          the same for a gated one
arn:aws:sagemaker:<region>:aws:hub-content/SageMakerPublicHub/Model/<id>/<version>
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from luthier.catalog.entry import Entry, entries, find

# The same content: clients pin the major version (`model_version="2.*"`) of AWS's examples.
VERSIONS = ("1.0.0", "2.0.0", "3.0.0", "4.0.0", "5.0.0")
LATEST = VERSIONS[-1]
MAX_CONTENT_NAME = 63  # characters
HUB = "SageMakerPublicHub"
PUBLIC, PRIVATE = "jumpstart-cache-prod-", "jumpstart-private-cache-prod-"
ROOT = "luthier"
_JUMPSTART_ID = re.compile(r"(?:huggingface|meta|model)-[a-z0-9]+-[A-Za-z0-9-]+")
BUCKETS = rf"(?:{PUBLIC}|{PRIVATE})([a-z]{{2}}(?:-[a-z]+)+-[0-9])"
_BUCKET = re.compile(BUCKETS)
_URI = re.compile(r"s3://([^/]+)/?(.*)")
_AWS_KEY = re.compile(r"(?:train-|infer-)?(.+?)(?:\.tar\.gz)?")


def jumpstart_ids(entry: Entry) -> tuple[str, ...]:
    """Return the ids of an entry in JumpStart: AWS's, or its slug where AWS has none."""
    return tuple(alias for alias in entry.aliases if _JUMPSTART_ID.fullmatch(alias)) or (slug(entry),)


def slug(entry: Entry) -> str:
    """Return the entry's id with the characters allowed in a hub content's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", entry.id).strip("-")


def entries_by_id() -> Mapping[str, Entry]:
    """Return the entry of every JumpStart id."""
    return {identity: entry for entry in entries() for identity in jumpstart_ids(entry)}


def hub_contents() -> Mapping[str, Entry]:
    """Return the entry of every hub content's name: a JumpStart id, or the slug where the id is too long."""
    known = entries_by_id().items()
    return {(identity if len(identity) <= MAX_CONTENT_NAME else slug(entry)): entry for identity, entry in known}


def entry_of(name: str) -> Entry | None:
    """Return the entry with this JumpStart id or any other name, ignoring case."""
    return find(name) or next((entry for entry in entries() if slug(entry).lower() == name.lower()), None)


def region_of(bucket: str) -> str | None:
    """Return the region of a JumpStart cache bucket; None for other buckets."""
    match = _BUCKET.fullmatch(bucket)
    return match[1] if match else None


def is_private(bucket: str) -> bool:
    return bucket.startswith(PRIVATE)


def bucket_of(entry: Entry, region: str) -> str:
    return f"{PRIVATE if entry.licence.eula else PUBLIC}{region}"


def object_key(identity: str, version: str, rest: str) -> str:
    return f"{ROOT}/{identity}/{version}/{rest}"


def is_cache_uri(uri: str) -> bool:
    match = _URI.fullmatch(uri)
    return match is not None and region_of(match[1]) is not None


def base_model_of_key(uri: str) -> Entry | None:
    """Return the entry of an artifact's s3:// URI in a cache bucket, by Luthier's keys or AWS's; None for others."""
    match = _URI.fullmatch(uri)
    if match is None or region_of(match[1]) is None:
        return None
    for part in match[2].split("/"):
        name = _AWS_KEY.fullmatch(part)
        if name is not None and (entry := entry_of(name[1])) is not None:
            return entry
    return None


def content_name(arn: str) -> str:
    """Return the hub content's name from its ARN."""
    parts = arn.split("/")
    return parts[3] if len(parts) > 3 else arn


def content_arn(identity: str, version: str, region: str) -> str:
    return f"arn:aws:sagemaker:{region}:aws:hub-content/{HUB}/Model/{identity}/{version}"


def hub_arn(region: str) -> str:
    return f"arn:aws:sagemaker:{region}:aws:hub/{HUB}"


def image_uri(role: str, region: str) -> str:
    """Return the image URI of requests and responses; no image is pulled."""
    return f"763104351884.dkr.ecr.{region}.amazonaws.com/luthier-{role}:1"
