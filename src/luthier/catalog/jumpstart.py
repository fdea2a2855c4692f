"""JumpStart's names: the ids under which clients ask for an entry, and the buckets, keys and URIs that hold them.

s3://jumpstart-cache-prod-<region>/luthier/<id>/<version>/train/        the base model's artifact
s3://jumpstart-private-cache-prod-<region>/...                          the same for a gated one
arn:aws:sagemaker:<region>:aws:hub-content/SageMakerPublicHub/Model/<id>/<version>
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from luthier.catalog.entry import Entry, entries, find

# All alike: clients pin a major version (`model_version="2.*"`) that AWS's examples name.
VERSIONS = ("1.0.0", "2.0.0", "3.0.0", "4.0.0", "5.0.0")
LATEST = VERSIONS[-1]
LONGEST = 63  # letters of a hub content's name
HUB = "SageMakerPublicHub"
PUBLIC, PRIVATE = "jumpstart-cache-prod-", "jumpstart-private-cache-prod-"
ROOT = "luthier"
_JUMPSTART_ID = re.compile(r"(?:huggingface|meta|model)-[a-z0-9]+-[A-Za-z0-9-]+")
BUCKETS = rf"(?:{PUBLIC}|{PRIVATE})([a-z]{{2}}(?:-[a-z]+)+-[0-9])"
_BUCKET = re.compile(BUCKETS)
_URI = re.compile(r"s3://([^/]+)/?(.*)")
_AWS_KEY = re.compile(r"(?:train-|infer-)?(.+?)(?:\.tar\.gz)?")


def jumpstart_ids(entry: Entry) -> tuple[str, ...]:
    """The ids of an entry in JumpStart's lists: AWS's own, or its plain name where AWS has none."""
    return tuple(alias for alias in entry.aliases if _JUMPSTART_ID.fullmatch(alias)) or (slug(entry),)


def slug(entry: Entry) -> str:
    """The entry's id in the letters that a hub content's name may have."""
    return re.sub(r"[^A-Za-z0-9]+", "-", entry.id).strip("-")


def entries_by_id() -> Mapping[str, Entry]:
    """Every id of JumpStart's lists, with its entry."""
    return {identity: entry for entry in entries() for identity in jumpstart_ids(entry)}


def hub_contents() -> Mapping[str, Entry]:
    """Every name of the hub's contents, with its entry: an id, or the plain name where that is too long for the hub."""
    return {
        (identity if len(identity) <= LONGEST else slug(entry)): entry for identity, entry in entries_by_id().items()
    }


def entry_of(name: str) -> Entry | None:
    """The entry of a JumpStart id, or of any other of its names, in any case."""
    return find(name) or next((entry for entry in entries() if slug(entry).lower() == name.lower()), None)


def region_of(bucket: str) -> str | None:
    """The region of a cache bucket; None for any other bucket."""
    match = _BUCKET.fullmatch(bucket)
    return match[1] if match else None


def is_private(bucket: str) -> bool:
    return bucket.startswith(PRIVATE)


def bucket_of(entry: Entry, region: str) -> str:
    return f"{PRIVATE if entry.licence.eula else PUBLIC}{region}"


def object_key(identity: str, version: str, rest: str) -> str:
    """The key of something of a model's."""
    return f"{ROOT}/{identity}/{version}/{rest}"


def is_cache_uri(uri: str) -> bool:
    match = _URI.fullmatch(uri)
    return match is not None and region_of(match[1]) is not None


def base_model_of_key(uri: str) -> Entry | None:
    """The entry whose artifact an s3:// URI of a cache bucket names, by our keys or AWS's own; None for any other."""
    match = _URI.fullmatch(uri)
    if match is None or region_of(match[1]) is None:
        return None
    for part in match[2].split("/"):
        name = _AWS_KEY.fullmatch(part)
        if name is not None and (entry := entry_of(name[1])) is not None:
            return entry
    return None


def content_name(arn: str) -> str:
    """The hub content's name in its ARN."""
    parts = arn.split("/")
    return parts[3] if len(parts) > 3 else arn


def content_arn(identity: str, version: str, region: str) -> str:
    return f"arn:aws:sagemaker:{region}:aws:hub-content/{HUB}/Model/{identity}/{version}"


def hub_arn(region: str) -> str:
    return f"arn:aws:sagemaker:{region}:aws:hub/{HUB}"


def image_uri(role: str, region: str) -> str:
    """The image URI that requests carry; nothing is ever pulled."""
    return f"763104351884.dkr.ecr.{region}.amazonaws.com/luthier-{role}:1"
