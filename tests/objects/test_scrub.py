"""The check of the object store: what is missing, short, changed or left over, on both databases; it only reads."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from objects.live_objects import open_objects
from typer.testing import CliRunner

from luthier.cli.app import app
from luthier.cli.program import Program
from luthier.errors import UserError
from luthier.objects import scrub as scrub_module
from luthier.objects.queries import Attributes
from luthier.objects.reader import DamagedBlobError
from luthier.objects.scrub import scrub
from luthier.objects.store import EmbeddedObjectStore
from luthier.objects.uploads import CompletedPart, ExpectedObject, Uploads
from luthier.protocol.call import Principal

FIVE = 5 * 1024**2


def files(objects: EmbeddedObjectStore, key: str) -> list[Path]:
    stored = objects.segments(objects.head("room", key))
    return [objects.blobs.path(segment.blob) for segment in stored]


def filled(objects: EmbeddedObjectStore) -> None:
    objects.create_bucket("room", Principal().account, "us-east-1")
    for key in ("gone", "short", "flipped", "ünhurt"):
        objects.put("room", key, [key.encode() * 100])
    uploads = Uploads(objects)
    begun = uploads.begin("room", "parts", Attributes())
    listed = [CompletedPart(number, uploads.put_part(begun, number, [part]).etag)
              for number, part in ((1, b"a" * FIVE), (2, b"b" * 1000))]  # fmt: skip
    uploads.complete("room", "parts", begun.id, listed, ExpectedObject())


def damage(objects: EmbeddedObjectStore) -> None:
    files(objects, "gone")[0].unlink()
    os.truncate(files(objects, "short")[0], 10)
    changed = files(objects, "flipped")[0]
    changed.write_bytes(bytes([changed.read_bytes()[0] ^ 1]) + changed.read_bytes()[1:])
    files(objects, "parts")[1].write_bytes(b"c" * 1000)
    (objects.blobs.root / "blobs" / "ab" / ("ab" + "0" * 30)).write_bytes(b"x")


def test_what_is_damaged_is_named(database_url: str, tmp_path: Path) -> None:
    with open_objects(database_url, tmp_path) as objects:
        filled(objects)
        whole = scrub(objects.database.engine, objects.blobs)
        assert (whole.checked, whole.damaged, whole.orphans) == (5, [], [])
        assert whole.bytes == FIVE + 1000 + 400 + 500 + 700 + 700
        damage(objects)
        found = scrub(objects.database.engine, objects.blobs)
        assert {(one.key, one.problem) for one in found.damaged} == {
            ("gone", "missing"), ("short", "truncated"), ("flipped", "changed"), ("parts", "changed"),
        }  # fmt: skip
        assert next(one.file for one in found.damaged if one.key == "short") == str(files(objects, "short")[0])
        assert [Path(path).name for path in found.orphans] == ["ab" + "0" * 30]
        quick = scrub(objects.database.engine, objects.blobs, quick=True)
        assert {one.key for one in quick.damaged} == {"gone", "short"}
        assert quick.bytes == 0


def test_an_object_that_is_deleted_meanwhile_is_not_damaged(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_objects(database_url, tmp_path) as objects:
        filled(objects)
        files(objects, "gone")[0].unlink()
        check = scrub_module._check_content

        def deleting(*arguments: Any) -> Any:
            problem = check(*arguments)
            if problem:
                objects.put("room", "gone", [b"new"])
            return problem

        monkeypatch.setattr(scrub_module, "_check_content", deleting)
        assert scrub(objects.database.engine, objects.blobs).damaged == []


def test_many_objects_are_all_checked(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'luthier.sqlite'}"
    with open_objects(url, tmp_path) as objects:
        filled(objects)
        for number in range(1, 1102):
            objects.put("room", f"many/{number}", [b"x"])
        objects.create_bucket("another", Principal().account, "us-east-1")
        objects.put("another", "one", [b"x"])
        assert scrub(objects.database.engine, objects.blobs).checked == 1107


def test_a_missing_file_is_an_error_for_its_readers_at_once(database_url: str, tmp_path: Path) -> None:
    with open_objects(database_url, tmp_path) as objects:
        filled(objects)
        damage(objects)
        with pytest.raises(DamagedBlobError, match="s3://room/gone: its file is missing; run: luthier objects check"):
            objects.open("room", "gone")
        files(objects, "parts")[1].unlink()
        with objects.open("room", "parts") as stream, pytest.raises(DamagedBlobError, match="the file is missing"):
            list(stream)


def run_check(home: Path, *options: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    call = CliRunner().invoke(app, ["objects", "check", "--home", str(home), *options], standalone_mode=False)
    assert isinstance(call.return_value, Program)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO(json.dumps(call.return_value.request)))
        code = scrub_module.main()
    return code, capsys.readouterr().out


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with open_objects(f"sqlite:///{home / 'luthier.sqlite'}", home) as objects:
        filled(objects)
        root, sound = objects.blobs.root, run_check(home, capsys=capsys)
        damage(objects)
    assert root == home / "objects"
    assert sound == (0, "5 objects checked, 5,246,180 bytes read: 0 damaged\n")
    code, text = run_check(home, capsys=capsys)
    assert code == 1
    assert f"s3://room/gone: missing: {root}" in text
    assert "5 objects checked" in text
    assert "1 files belong to no object" in text
    code, text = run_check(home, "--json", capsys=capsys)
    assert (code, len(json.loads(text)["damaged"])) == (1, 4)


def test_a_folder_without_a_service_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no service with an object store"):
        run_check(tmp_path, capsys=capsys)


def test_a_server_ends_although_a_thread_works_on(tmp_path: Path) -> None:
    program = (
        "import threading, time\n"
        "from luthier import server\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "print('ending', flush=True)\n"
        "server._end_process()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ending\n", "")
