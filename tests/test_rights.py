"""Rights: what the words of --allow mean for objects, buckets and names."""

from __future__ import annotations

import pytest

from luthier.errors import SettingError, UserError
from luthier.rights import EVERYTHING, Rights


def test_without_words_everything_is_allowed() -> None:
    assert Rights.parse(()) == EVERYTHING
    assert EVERYTHING.allows_object("any", "key")
    assert EVERYTHING.allows_name("any")


@pytest.mark.parametrize(
    ("words", "bucket", "key", "allowed"),
    [
        (["s3://team"], "team", "a/b", True),
        (["s3://team"], "team-b", "a/b", False),
        (["s3://team/rows/"], "team", "rows/1.jsonl", True),
        (["s3://team/rows/"], "team", "rows", False),
        (["s3://team/rows/"], "team", "rows-old/1", False),
        (["s3://team/rows/"], "team", "", False),
        (["s3://team/rows"], "team", "rows-old/1", True),
        (["s3://team/rows/", "s3://other"], "other", "x", True),
        (["jobs:a"], "team", "x", False),
        (["read"], "team", "x", True),
    ],
)
def test_objects(words: list[str], bucket: str, key: str, allowed: bool) -> None:
    assert Rights.parse(words).allows_object(bucket, key) is allowed


@pytest.mark.parametrize(
    ("words", "name", "allowed"),
    [
        (["jobs:team-"], "team-a", True),
        (["jobs:team-"], "Team-a", True),
        (["jobs:team-"], "other", False),
        (["jobs:*"], "other", True),
        (["s3://team"], "other", False),
        (["read"], "other", True),
        (["read", "jobs:team-"], "other", False),
    ],
)
def test_names(words: list[str], name: str, allowed: bool) -> None:
    assert Rights.parse(words).allows_name(name) is allowed


@pytest.mark.parametrize("word", ["", "write", "s3://", "s3://B", "jobs:", "jobs:a*", "job:a", "s3:/team", "READ"])
def test_an_unknown_word_is_refused(word: str) -> None:
    with pytest.raises(SettingError, match="expected s3://BUCKET"):
        Rights.parse([word])


def test_an_address_is_checked_for_reading_and_for_writing() -> None:
    rights = Rights.parse(["read", "s3://team/rows/"])
    rights.check_address("s3://team/rows/train", write=False)
    with pytest.raises(UserError, match="may not write it"):
        rights.check_address("s3://team/rows/out/", write=True)
    with pytest.raises(UserError, match="may not read it"):
        rights.check_address("s3://other/rows/", write=False)
