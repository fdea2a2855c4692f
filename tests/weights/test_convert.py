"""Pickled weights become safetensors once, in a process that cannot be made to do anything else."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import write_model, write_rows
from torch import Tensor
from training.job_folders import lay_out, run

from luthier.errors import CapacityError, UserError
from luthier.home import cache_root
from luthier.weights import convert, unpickle
from luthier.weights.convert import convert_to_safetensors, pickled_files
from luthier.weights.converted_folder import RECORD, conversion_source
from luthier.weights.fingerprint import weights_hash
from luthier.weights.load import load_model
from luthier.weights.resolved_model import resolve_model

CPU = torch.device("cpu")
BIN = "pytorch_model.bin"
SOUND, SHARED = "model.safetensors", ("lm_head.weight", "transformer.wte.weight")


@dataclass
class Evil:
    """Unpickled the ordinary way it makes a file."""

    path: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def forget() -> None:
    """What a new process would not know."""
    convert._hashes.cache_clear()
    weights_hash.cache_clear()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own: what one converted, another must not find."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    forget()


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("sound") / "gpt2", "gpt2")


def pickled(sound: Path, folder: Path) -> Path:
    """The model of `sound` with pickled weights only, its tied ones under both names as PyTorch stored them."""
    shutil.copytree(sound, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    weights = load_file(sound / SOUND)
    network: Any = load_model(sound, CPU, torch.float32).hf_model
    tied = network.all_tied_weights_keys
    torch.save(weights | {name: weights[source] for name, source in tied.items() if source in weights}, folder / BIN)
    return folder


@pytest.fixture
def folder(gpt2: Path, tmp_path: Path) -> Path:
    return pickled(gpt2, tmp_path / "model")


def converted(folder: Path) -> tuple[Path, list[str]]:
    lines: list[str] = []
    return convert_to_safetensors(folder, lines.append), lines


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        convert_to_safetensors(folder, lambda _: None)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert len(message.splitlines()) == 1
    assert message.startswith(f"{folder}")
    assert not list(cache_root().glob("*")), "nothing half done may stay"
    return message


def state(folder: Path) -> dict[str, Tensor]:
    return dict(load_model(folder, CPU, torch.float32).network.state_dict())


# What comes out


@pytest.mark.parametrize(
    "architecture",
    ["llama", "t5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bloom", "mixtral", "gpt2"))],
)
def test_it_is_the_same_model(architecture: str, tmp_path: Path, own_cache: Path) -> None:
    sound = write_model(tmp_path / "sound", architecture)
    folder = pickled(sound, tmp_path / "model")
    found, said = converted(folder)
    assert found.parent == own_cache
    assert said == [
        f"converting pytorch_model.bin ({(folder / BIN).stat().st_size / 1e6:.1f} MB) to safetensors, once: {found}"
    ]
    assert state(found).keys() == state(sound).keys()
    assert all(torch.equal(state(found)[name], value) for name, value in state(sound).items())
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (found / name).read_bytes() == (sound / name).read_bytes()
    assert not list(found.glob("*.bin"))


def test_shared_weights_are_stored_once_and_views_on_their_own(gpt2: Path, folder: Path) -> None:
    weights = torch.load(folder / BIN, weights_only=True)
    assert weights[SHARED[0]].data_ptr() == weights[SHARED[1]].data_ptr()
    block = torch.randn(4, 96)
    weights |= {"view.a": block[:, :32], "view.b": block[:, 32:], "view.turned": block.t(), "empty": torch.zeros(0)}
    torch.save(weights, folder / BIN)
    found, _ = converted(folder)
    stored = load_file(found / SOUND)
    assert len(stored.keys() & set(SHARED)) == 1
    assert torch.equal(stored[(stored.keys() & set(SHARED)).pop()], load_file(gpt2 / SOUND)[SHARED[1]])
    assert torch.equal(stored["view.a"], block[:, :32])
    assert torch.equal(stored["view.b"], block[:, 32:])
    assert torch.equal(stored["view.turned"], block.t())
    assert json.loads((found / RECORD).read_text())["tied"]


def test_types_stay_as_they_are(folder: Path) -> None:
    weights = torch.load(folder / BIN, weights_only=True)
    low = {name: value.to(torch.bfloat16) for name, value in weights.items()}
    torch.save(low, folder / BIN)
    assert {value.dtype for value in load_file(converted(folder)[0] / SOUND).values()} == {torch.bfloat16}


def test_the_format_before_pytorch_1_6(gpt2: Path, folder: Path) -> None:
    weights = torch.load(folder / BIN, weights_only=True)
    torch.save(weights, folder / BIN, _use_new_zipfile_serialization=False)
    found, _ = converted(folder)
    assert all(torch.equal(state(found)[name], value) for name, value in state(gpt2).items())


def shard(folder: Path, index: bool) -> None:
    weights = torch.load(folder / BIN, weights_only=True)
    (folder / BIN).unlink()
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    half = len(weights) // 2
    parts = [dict(list(weights.items())[:half]), dict(list(weights.items())[half:])]
    for part, name in zip(parts, names, strict=True):
        torch.save({key: value.clone() for key, value in part.items()}, folder / name)
    if index:
        places = {key: name for part, name in zip(parts, names, strict=True) for key in part}
        (folder / convert.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("index", [True, False])
def test_shards_are_one_model(index: bool, gpt2: Path, folder: Path) -> None:
    shard(folder, index)
    found, said = converted(folder)
    assert said[0].startswith("converting 2 files pytorch_model-00001-of-00002.bin ... (0.")
    assert all(torch.equal(state(found)[name], value) for name, value in state(gpt2).items())
    assert not list(found.glob("*.bin*"))


def test_large_files_come_out_in_pieces(
    gpt2: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than a piece is ever laid out in memory; in this process, for the child's bound cannot be reached."""
    monkeypatch.setattr(unpickle, "SHARD_BYTES", 20_000)
    (tmp_path / "out").mkdir()
    writer = unpickle.SafetensorsWriter(folder=tmp_path / "out")
    writer.add(unpickle.read(folder / BIN))
    writer.finish()
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(names) > 3
    assert names[-1] == "model.safetensors.index.json"
    shutil.copyfile(gpt2 / "config.json", tmp_path / "out" / "config.json")
    assert all(torch.equal(state(tmp_path / "out")[name], value) for name, value in state(gpt2).items())


def test_safetensors_are_taken_where_there_are_some(gpt2: Path, folder: Path, own_cache: Path) -> None:
    shutil.copyfile(gpt2 / SOUND, folder / SOUND)
    (folder / BIN).write_bytes(b"never opened")
    assert converted(folder) == (folder, [])
    (folder / SOUND).unlink()
    (folder / BIN).unlink()
    assert converted(folder) == (folder, [])  # and loading says that there are none
    assert not own_cache.exists()


# Once


def test_the_second_time_it_is_at_hand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = converted(folder)
    forget()
    monkeypatch.setattr(convert, "_run_child", lambda *_: pytest.fail("converted again"))
    again, said = converted(folder)
    assert again == first
    assert said == [f"using the safetensors converted from pytorch_model.bin before: {first}"]


def test_a_damaged_conversion_is_made_again(folder: Path) -> None:
    first, _ = converted(folder)
    expected = weights_hash(first)
    content = bytearray((first / SOUND).read_bytes())
    content[-5] ^= 1
    (first / SOUND).write_bytes(bytes(content))
    forget()
    again, said = converted(folder)
    assert again == first
    assert said[0].startswith("converting")
    assert weights_hash(again) == expected, "the same files give the same bytes"


@pytest.mark.parametrize("name", [BIN, "tokenizer_config.json"])
def test_other_files_are_another_model(name: str, folder: Path) -> None:
    first, _ = converted(folder)
    if name == BIN:
        weights = torch.load(folder / BIN, weights_only=True)
        torch.save({key: value + 1 for key, value in weights.items()}, folder / BIN)
    else:
        (folder / name).write_text((folder / name).read_text("utf-8") + "\n", "utf-8")
    forget()
    assert converted(folder)[0] != first


def test_two_at_once_leave_one(folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process puts the same conversion in place while this one is at it."""
    ready, _ = converted(folder)
    aside = ready.rename(own_cache.with_name("aside"))
    plain: Callable[..., Any] = convert._check_fit

    def meanwhile(*arguments: Path) -> None:
        plain(*arguments)
        aside.rename(ready)

    monkeypatch.setattr(convert, "_check_fit", meanwhile)
    forget()
    assert converted(folder)[0] == ready
    assert list(own_cache.iterdir()) == [ready]


def test_the_cache_command_knows_it(folder: Path, luthier: Any) -> None:
    found, _ = converted(folder)
    assert found.name in luthier("cache", "list", "--json").stdout
    luthier("cache", "clean")
    assert not found.exists()


# What is refused


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_does_nothing(zipped: bool, folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    weights = torch.load(folder / BIN, weights_only=True)
    torch.save(weights | {"x": Evil(trap)}, folder / BIN, _use_new_zipfile_serialization=zipped)
    assert "pytorch_model.bin: asks for posix.system, which is code and no weights: refused" in refusal(folder)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Evil(trap)))
    assert trap.exists(), "the trap works"


def test_links_into_the_hubs_cache_are_followed_and_called_by_their_own_name(folder: Path, tmp_path: Path) -> None:
    blob = (folder / BIN).rename(tmp_path / "0123abcd")
    (folder / BIN).symlink_to(blob)
    assert (converted(folder)[0] / SOUND).is_file()
    blob.write_bytes(b"")
    shutil.rmtree(cache_root())
    forget()
    assert refusal(folder).startswith(f"{folder / BIN}: is damaged")


def test_far_more_memory_than_the_file_is_large(folder: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(2 * 10**9)}, folder / BIN)  # 8 GB: this machine might have them
    assert "pytorch_model.bin: asks for far more memory than weights of its size need: refused" in refusal(folder)


def refused(content: Any, folder: Path) -> str:
    """What the child would answer, asked in this process: for what needs none of its bounds."""
    if isinstance(content, bytes):
        (folder / BIN).write_bytes(content)
    else:
        torch.save(content, folder / BIN)
    (folder / "out").mkdir(exist_ok=True)
    answer = unpickle.convert([folder / BIN], folder / "out")
    assert answer["file"] == BIN
    assert len(str(answer["refused"]).splitlines()) == 1
    return str(answer["refused"])


def test_every_truncation_is_refused(folder: Path) -> None:
    content = (folder / BIN).read_bytes()
    for share in (0.001, 0.3, 0.5, 0.99, 0.9999):
        assert "is damaged, or not weights that PyTorch wrote" in refused(content[: int(len(content) * share)], folder)


def test_the_command_line_refuses_in_one_line(folder: Path, tmp_path: Path, luthier: Any) -> None:
    torch.save({"x": Evil(tmp_path / "sprung")}, folder / BIN)
    rows = write_rows(tmp_path / "rows" / "rows.jsonl", 8).parent
    done = luthier("tune", rows, "--model", folder, "--out", tmp_path / "run")
    assert done.returncode == 2, done
    assert done.stderr.splitlines()[-1].startswith(f"luthier: error: {folder / BIN}: asks for posix.system")
    with pytest.raises(UserError, match=r"asks for posix\.system"):
        resolve_model(str(folder), lambda _: None)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged, or not weights that PyTorch wrote"),
        (b"PK\x03\x04" + bytes(range(256)) * 20, "is damaged, or not weights that PyTorch wrote"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "is a Git LFS pointer"),
        (pickle.dumps(Evil(Path("sprung")), 2), "asks for posix.system, which is code and no weights: refused"),
    ],
)
def test_what_is_no_pytorch_file(content: bytes, message: str, folder: Path) -> None:
    assert message in refused(content, folder)
    assert not Path("sprung").exists()


def test_a_truncated_file(folder: Path) -> None:
    content = (folder / BIN).read_bytes()
    (folder / BIN).write_bytes(content[: int(len(content) * 0.9)])
    assert "pytorch_model.bin: is damaged, or not weights that PyTorch wrote" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no tensor"),
        ([torch.zeros(2)], "holds a list where a mapping of names to tensors is expected"),
        ({"state_dict": {"a": torch.zeros(2)}}, "holds a dict under 'state_dict' where a tensor is expected"),
        ({3: torch.zeros(2)}, "holds a Tensor under '3'"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "'a' is not a plain dense tensor"),
        (torch.nn.Linear(2, 2), "asks for torch.nn.modules.linear.Linear, which is code and no weights: refused"),
    ],
)
def test_what_is_no_state_of_a_model(content: Any, message: str, folder: Path) -> None:
    assert message in refused(content, folder)


def test_weights_that_do_not_fit_their_config(gpt2: Path, folder: Path) -> None:
    weights = torch.load(folder / BIN, weights_only=True)
    gone = "transformer.h.1.mlp.c_fc.weight"
    torch.save({name: value for name, value in weights.items() if name != gone}, folder / BIN)
    assert f"lack 1 parameters that config.json asks for (first: {gone})" in refusal(folder)
    forget()
    torch.save(weights | {gone: torch.zeros(3, 3)}, folder / BIN)
    assert "the weights do not fit config.json" in refusal(folder)


def test_shards_that_are_missing_or_elsewhere(folder: Path, tmp_path: Path) -> None:
    shard(folder, index=True)
    places = json.loads((folder / convert.INDEX).read_text())
    (folder / "pytorch_model-00002-of-00002.bin").rename(tmp_path / "elsewhere.bin")
    assert "1 of 2 weight files are missing (first: pytorch_model-00002-of-00002.bin)" in refusal(folder)
    (folder / convert.INDEX).unlink()
    assert "1 of 2 weight files are missing (first: pytorch_model-00002-of-00002.bin)" in refusal(folder)
    for outside in ("../elsewhere.bin", str(tmp_path / "elsewhere.bin"), 7, ""):
        (folder / convert.INDEX).write_text(json.dumps(places | {"weight_map": {"a": outside}}))
        assert "must name files of its own folder" in refusal(folder)
    (folder / convert.INDEX).write_text("[]")
    assert "expected JSON with a weight_map" in refusal(folder)


def test_a_weight_in_two_files(folder: Path) -> None:
    (folder / "out").mkdir()
    shutil.copyfile(folder / BIN, folder / "again.bin")
    answer = unpickle.convert([folder / BIN, folder / "again.bin"], folder / "out")
    assert answer["file"] == "again.bin"
    assert str(answer["refused"]).endswith("is in an earlier file, too")


def test_a_disk_without_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 10_000))
    with pytest.raises(CapacityError, match=r"needs 0\.2 MB of disk and 0\.0 MB are free; set LUTHIER_CACHE"):
        convert_to_safetensors(folder, lambda _: None)


def test_a_cache_that_cannot_be_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set LUTHIER_CACHE to a folder that can be written"):
        convert_to_safetensors(folder, lambda _: None)


# The child


def probe(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path, code: str) -> dict[str, Any]:
    """What a child sees that runs `code` after giving its rights away; `code` prints JSON."""
    child = tmp_path / "probe.py"
    child.write_text(
        f"import sys; sys.path.insert(0, {str(convert.CHILD.parent)!r})\n"
        "import json, os, resource, unpickle\nunpickle.confine([1000])\n" + code
    )
    monkeypatch.setattr(convert, "CHILD", child)
    return convert._run_child(pickled_files(folder), tmp_path)


def test_the_child_sees_no_secret(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "OPENAI_API_KEY", "LUTHIER_SECRET"):
        monkeypatch.setenv(name, "secret")
    seen = probe(monkeypatch, folder, tmp_path, "print(json.dumps(dict(os.environ)))")
    assert "secret" not in seen.values()
    assert set(seen) <= {*convert.CHILD_ENVIRONMENT, "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LC_CTYPE"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep all of these limits")
def test_the_child_is_bounded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "limits = {n: resource.getrlimit(getattr(resource, n))[1] for n in dir(resource) if n.startswith('RLIMIT_')}\n"
        "print(json.dumps(limits | {'group': os.getpgid(0), 'me': os.getpid(), 'used': unpickle._address_space()}))"
    )
    seen = probe(monkeypatch, folder, tmp_path, code)
    assert seen["group"] == seen["me"] != os.getpgid(0)
    assert seen["RLIMIT_AS"] <= seen["used"] + unpickle.MEMORY_BESIDE + 3 * 1000
    assert (seen["RLIMIT_CPU"], seen["RLIMIT_CORE"], seen["RLIMIT_NPROC"]) == (unpickle.SECONDS, 0, 0)
    assert seen["RLIMIT_FSIZE"] == 1000 + unpickle.MEMORY_BESIDE


@pytest.mark.parametrize(("code", "how"), [("os.abort()", "signal 6"), ("sys.exit(3)", "exit 3"), ("", "exit 0")])
def test_a_child_that_dies_is_one_line(
    code: str, how: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=rf"ended the process that reads it \({how}\)") as caught:
        probe(monkeypatch, folder, tmp_path, code)
    assert len(str(caught.value).splitlines()) == 1


def test_the_child_ends_with_its_parent(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Stopped(subprocess.Popen):  # type: ignore[type-arg]
        def communicate(self, *_: Any, **__: Any) -> Any:
            started.append(self)
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Stopped)
    with pytest.raises(KeyboardInterrupt):
        converted(folder)
    assert started[0].returncode == -9
    for stream in (started[0].stdout, started[0].stderr):
        assert stream is not None
        stream.close()


# In a run


def test_a_run_on_pickled_weights(gpt2: Path, folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 12)
    settings = {"max_steps": 2, "score_rows": 0}
    done = lay_out(tmp_path / "run", folder, rows, **settings)
    screen = run(done)
    assert screen.count("converting pytorch_model.bin") == 1
    found = converted(folder)[0]
    stored = json.loads((done.root / "run.json").read_text())["model"]
    assert (stored["folder"], stored["weights_sha256"]) == (str(found), weights_hash(found))
    assert stored["converted_from"] == conversion_source(found)
    assert stored["converted_from"]["folder"] == str(folder)
    assert list(stored["converted_from"]["files"]) == [BIN]

    plain = lay_out(tmp_path / "plain", gpt2, rows, **settings)
    assert "converting" not in run(plain)
    assert json.loads((plain.root / "run.json").read_text())["model"]["converted_from"] is None
    tuned, other = (load_file(job.model / "adapter_model.safetensors") for job in (done, plain))
    assert all(torch.equal(value, other[name]) for name, value in tuned.items())

    shutil.rmtree(found)  # as `luthier cache clean` would: it is made again from where it came
    forget()
    assert resolve_model(str(done.root), lambda _: None).base == found
