"""A job folder as the engine finds it: rows below their channels, own weights ready to load."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from supervisor.supervisor_harness import Harness, supervisor_harness

from luthier.errors import UserError
from luthier.supervisor.folder import ServiceFolder
from luthier.supervisor.layout import lay_out


def laid_out(harness: Harness, uri: str) -> ServiceFolder:
    job = harness.create_job("tuned-again", model=uri)
    folder = ServiceFolder(harness.folder(job))
    folder.create(job.request)
    lay_out(folder, job.job, harness.objects, "cpu")
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_own_weights_may_be_an_archive_or_its_files(tmp_path: Path, packed: bool) -> None:
    with supervisor_harness(tmp_path) as harness:
        path = harness.objects.path("s3://models/first/output/model.tar.gz")
        path.parent.mkdir(parents=True)
        if packed:
            with tarfile.open(path, "w:gz") as tar:
                member = tarfile.TarInfo("config.json")
                member.size = 2
                tar.addfile(member, io.BytesIO(b"{}"))
        else:
            (path.parent / "config.json").write_text("{}")
        uri = "s3://models/first/output/model.tar.gz" if packed else "s3://models/first/output"
        folder = laid_out(harness, uri)
        assert [path.name for path in (folder.root / "input" / "base").iterdir()] == ["config.json"]
        assert folder.job.read_spec().model == str(folder.root / "input" / "base")
        assert [path.name for path in (folder.downloads / "training").iterdir()] == ["train.jsonl"]


def test_a_hostile_archive_is_refused_by_the_channels_name(tmp_path: Path) -> None:
    with supervisor_harness(tmp_path) as harness:
        path = harness.objects.path("s3://models/model.tar.gz")
        path.parent.mkdir(parents=True)
        with tarfile.open(path, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("../../evil"))
        with pytest.raises(UserError, match=r"failed for channel .model.: model\.tar\.gz: not a sound"):
            laid_out(harness, "s3://models/model.tar.gz")
        assert not list(tmp_path.rglob("evil"))


def manifest(harness: Harness, text: str) -> str:
    for name in ("one.jsonl", "sub/two.jsonl", "three.jsonl"):
        path = harness.objects.path(f"s3://data/listed/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    harness.objects.path("s3://data/list.json").write_text(text)
    return "manifest+s3://data/list.json"


def test_a_manifest_lists_the_rows(tmp_path: Path) -> None:
    with supervisor_harness(tmp_path) as harness:
        uri = manifest(harness, '[{"prefix": "s3://data/listed/"}, "one.jsonl", "sub/two.jsonl"]')
        job = harness.create_job("listed")
        folder = ServiceFolder(harness.folder(job))
        folder.create(job.request)
        lay_out(folder, replace(job.job, channels={"training": uri}), harness.objects, "cpu")
        rows = folder.job.channel("training").resolve()
        files = {path.relative_to(rows).as_posix(): path.read_text() for path in rows.rglob("*") if path.is_file()}
        assert files == {"one.jsonl": "one.jsonl", "sub/two.jsonl": "sub/two.jsonl"}


@pytest.mark.parametrize(
    ("text", "words"),
    [("{}", "not a manifest"), ("[]", "not a manifest"), ('["a"]', "not a manifest"), ("[", "not JSON"),
     ('[{"prefix": "s3://data/listed/"}]', "not a manifest"),
     ('[{"prefix": "s3://data/listed/"}, "../../evil"]', "leads out of the folder"),
     ('[{"prefix": "s3://data/listed/"}, "none.jsonl"]', "no objects found")],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with supervisor_harness(tmp_path) as harness:
        uri = manifest(harness, text)
        job = harness.create_job("listed")
        folder = ServiceFolder(harness.folder(job))
        folder.create(job.request)
        with pytest.raises(UserError, match=f"failed for channel 'training': .*{words}"):
            lay_out(folder, replace(job.job, channels={"training": uri}), harness.objects, "cpu")
