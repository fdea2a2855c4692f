"""Objects kept elsewhere: the same face as the embedded store's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from live_wire import KEY, SECRET
from objects.live_objects import LiveObjects, live_objects

from luthier.errors import UserError
from luthier.objects.remote_store import RemoteObjectStore


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveObjects]:
    """Another S3, for which the environment has credentials."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with live_objects(f"sqlite:///{tmp_path / 'elsewhere.sqlite'}", tmp_path) as running:
        running.objects.create_bucket("room", "123456789012", "us-east-1")
        yield running


def test_the_same_verbs(elsewhere: LiveObjects, tmp_path: Path) -> None:
    external = RemoteObjectStore(elsewhere.wire.url)
    path = tmp_path / "file"
    path.write_bytes(b"content")
    external.upload_file(path, "s3://room/out/sub/file.bin")
    external.upload_file(path, "s3://room/out/other")
    assert elsewhere.objects.read("s3://room/out/other", 100) == b"content"
    assert external.exists("s3://room/out/other")
    assert not external.exists("s3://room/out/no")
    assert external.read("s3://room/out/other", 7) == b"content"
    assert external.names("s3://room/out") == ["other", "sub/file.bin"]
    folder = external.download_prefix("s3://room/out", tmp_path / "in")
    assert (folder / "sub" / "file.bin").read_bytes() == b"content"
    with pytest.raises(UserError, match="expected at most that many"):
        external.read("s3://room/out/other", 6)
    with pytest.raises(UserError, match=r"s3://room/out/no: .*NoSuchKey"):
        external.read("s3://room/out/no", 6)
    with pytest.raises(UserError, match="s3://room/none: no objects found"):
        external.download_prefix("s3://room/none", tmp_path / "none")
