"""Storage against moto's real HTTP server on loopback, through boto3's own environment variables."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from child import Luthier
from moto.server import ThreadedMotoServer

from luthier import storage
from luthier.errors import ObjectStoreUnreachableError, UserError
from luthier.jobfolder import JobFolder


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A client of a bucket named `bucket`, emptied afterwards; the environment leads there too."""
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    yield client
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="bucket"):
        for item in page.get("Contents", []):
            client.delete_object(Bucket="bucket", Key=item["Key"])


def put(s3: Any, *keys: str) -> None:
    for key in keys:
        s3.put_object(Bucket="bucket", Key=key, Body=f"body of {key}".encode())


@pytest.mark.parametrize(("location", "remote"), [("s3://b/k", True), ("S3://b", True), ("a/b", False), ("C:x", False)])
def test_is_remote(location: str, remote: bool) -> None:
    assert storage.is_remote(location) is remote


def test_another_scheme_is_refused() -> None:
    with pytest.raises(UserError, match="gs:// is not supported"):
        storage.is_remote("gs://bucket/rows")


def test_a_prefix_is_downloaded_with_its_folders(s3: Any, tmp_path: Path) -> None:
    put(s3, "rows/training/a.jsonl", "rows/validation/b.jsonl", "rows-old/training/no.jsonl", "rows/training/")
    assert storage.names("s3://bucket/rows") == ["training/a.jsonl", "validation/b.jsonl"]
    for location in ("s3://bucket/rows", "s3://bucket/rows/"):
        folder = storage.download(location, tmp_path / str(len(location)))
        assert storage.names(str(folder)) == ["training/a.jsonl", "validation/b.jsonl"]
        assert (folder / "training" / "a.jsonl").read_text() == "body of rows/training/a.jsonl"


def test_a_prefix_may_end_inside_a_name(s3: Any, tmp_path: Path) -> None:
    put(s3, "data/train-1.jsonl", "data/train-2.jsonl", "data/test.jsonl")
    assert storage.names("s3://bucket/data/train") == ["train-1.jsonl", "train-2.jsonl"]
    folder = storage.download("s3://bucket/data/train-", tmp_path / "to")
    assert storage.names(str(folder)) == ["train-1.jsonl", "train-2.jsonl"]


def test_one_object_is_downloaded_under_its_name(s3: Any, tmp_path: Path) -> None:
    put(s3, "rows/a.jsonl", "rows/a.jsonl.bak")
    storage.download("s3://bucket/rows/a.jsonl", tmp_path / "to")
    assert storage.names(str(tmp_path / "to")) == ["a.jsonl"]


def test_more_than_one_page_of_objects(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")
    put(s3, *(f"many/{number}" for number in range(7)))
    assert s3.list_objects_v2(Bucket="bucket")["IsTruncated"]
    assert len(storage.names("s3://bucket/many")) == 7


@pytest.mark.parametrize("key", ["rows/../../out.txt", "rows//etc/x", "rows/a/../b", "rows/./a"])
def test_a_key_that_would_leave_the_folder_is_refused_before_anything_is_written(
    s3: Any, tmp_path: Path, key: str
) -> None:
    put(s3, "rows/a.jsonl", key)
    with pytest.raises(UserError, match="refusing the name"):
        storage.download("s3://bucket/rows/", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_upload_and_back(s3: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "x").write_text("x")
    (source / "y").write_text("y")
    storage.upload(source, "s3://bucket/out/")
    storage.upload(source / "y", "s3://bucket/out/single")
    assert storage.names("s3://bucket/out") == ["inner/x", "single/y", "y"]
    assert (storage.download("s3://bucket/out", tmp_path / "back") / "inner" / "x").read_text() == "x"


def test_local_folders_take_the_same_verbs(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "x").write_text("x")
    storage.download(str(source), tmp_path / "copy")
    storage.upload(source / "inner" / "x", str(tmp_path / "copy"))
    assert storage.names(str(tmp_path / "copy")) == ["inner/x", "x"]
    with pytest.raises(UserError, match="no such file or folder"):
        storage.names(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("s3://bucket/none", "no objects found"),
        ("s3://no-such-bucket/x", "NoSuchBucket"),
        ("s3://", "no bucket; expected"),
    ],
)
def test_faults_are_one_line_that_names_the_address(s3: Any, tmp_path: Path, location: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        storage.download(location, tmp_path / "to")
    assert str(caught.value).startswith(location)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_that_breaks_off_is_not_taken_for_an_empty_one(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Le")

        answering = threading.Thread(target=serve)
        answering.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ObjectStoreUnreachableError, match="incomplete list of s3://bucket/rows"):
            storage.names("s3://bucket/rows", url)
        answering.join()


def test_tune_copies_s3_data_into_the_run(s3: Any, luthier: Luthier, tmp_path: Path) -> None:
    put(s3, "rows/training/a.jsonl", "rows/validation/b.jsonl", "other/c.jsonl")
    # The rows are no JSON, so the engine refuses them: what counts here is where they lie by then.
    ended = luthier("tune", "s3://bucket/rows", "--validation", "s3://bucket/other", "--out", "run", timeout=120)
    assert ended.returncode != 0
    channels = JobFolder(tmp_path / "run").channels()
    assert storage.names(str(channels["training"])) == ["a.jsonl"]
    assert storage.names(str(channels["validation"])) == ["c.jsonl"]
    assert channels["training"].is_relative_to(tmp_path / "run" / "input")


def test_a_failed_copy_leaves_no_run_folder(s3: Any, luthier: Luthier, tmp_path: Path) -> None:
    ended = luthier("tune", "s3://bucket/none", "--out", "run")
    assert ended.returncode == 2
    assert "no objects found" in ended.stderr
    assert list(tmp_path.iterdir()) == []
