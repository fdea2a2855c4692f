"""Fetching from the Hub, without the Hub: what is asked of it, and what is said when it cannot be had."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from luthier.catalog import hub
from luthier.catalog.locate import Location, locate
from luthier.errors import CapacityError, ModelNotFoundError, UserError

WHERE = Location(
    name="m", repository="org/m", revision="rev1", searched=("LUTHIER_MODELS (not set)", "/cache/models--org--m")
)
FILES = {
    "model.safetensors": 3_000_000_000, "consolidated.safetensors": 3_000_000_000, "config.json": 500,
    "pytorch_model.bin": 9_000_000_000, "notes.md": 77,
}  # fmt: skip
CHILD = """
from luthier.catalog.hub import fetch
from luthier.catalog.locate import locate
from luthier.errors import ModelNotFoundError
try:
    fetch(locate("gpt2-xl"), print)
except ModelNotFoundError as error:
    print(error)
"""


class Hub:
    """The Hub as far as `fetch` asks it; remembers what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = FILES
        self.tokens: list[Any] = []
        self.asked: dict[str, Any] = {}
        self.fault: Exception | None = None

    def HfApi(self, token: Any) -> Hub:
        self.tokens.append(token)
        return self

    def model_info(self, repository: str, **asked: Any) -> Any:
        if self.fault:
            raise self.fault
        self.asked["info"] = (repository, asked["revision"])
        files = [SimpleNamespace(rfilename=name, size=size) for name, size in self.files.items()]
        return SimpleNamespace(siblings=files)

    def snapshot_download(self, repository: str, *, revision: str, allow_patterns: list[str], token: Any) -> str:
        self.tokens.append(token)
        self.asked["download"] = (repository, revision, tuple(allow_patterns))
        return str(self.folder)


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", stand_in.HfApi)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in.snapshot_download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "not" / "yet"))
    return stand_in


def free_disk(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(size, 0, size))


def refusal() -> str:
    with pytest.raises(ModelNotFoundError) as caught:
        hub.fetch(WHERE, print)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith("model 'm' not found; searched LUTHIER_MODELS (not set); /cache/models--org--m; ")
    assert "put its Hugging Face folder at $LUTHIER_MODELS/org/m" in message
    return message


def test_what_is_at_hand_is_not_asked_for(tmp_path: Path, online: Hub) -> None:
    online.fault = AssertionError("asked the Hub")
    assert hub.fetch(Location(name="m", folder=tmp_path), print) == tmp_path


def test_a_model_that_luthier_cannot_use_is_not_asked_for(online: Hub) -> None:
    online.fault = AssertionError("asked the Hub")
    with pytest.raises(UserError, match=r"stable-diffusion-2-1 cannot be tuned\. It is an image model"):
        hub.fetch(locate("stable-diffusion-2-1", {}), print)


def test_the_size_is_said_first_and_only_what_is_needed_is_fetched(
    online: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_disk(monkeypatch, 4_000_000_000)  # without the 9 GB of pickled weights it fits
    said: list[str] = []
    assert hub.fetch(WHERE, lambda text: said.append(f"{text} {'download' in online.asked}")) == online.folder
    assert said == ["downloading org/m from the Hub: 3.00 GB (an interrupted download resumes) False"]
    assert online.asked == {"info": ("org/m", "rev1"), "download": ("org/m", "rev1", hub.MODEL_FILES)}
    assert not any("bin" in pattern or "py" in pattern for pattern in hub.MODEL_FILES)


def test_pickled_weights_are_fetched_where_there_are_no_others(online: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    free_disk(monkeypatch, 10_000_000_000)
    online.files = {name: size for name, size in FILES.items() if not name.endswith(".safetensors")} | {"x.bin": 10**9}
    said: list[str] = []
    hub.fetch(WHERE, said.append)
    assert said == ["downloading org/m from the Hub: 9.00 GB (an interrupted download resumes)"]
    assert online.asked["download"] == ("org/m", "rev1", ("pytorch_model*.bin", *hub.TOKENIZER_FILES))
    hub.fetch(WHERE, said.append, hub.TOKENIZER_FILES)
    assert online.asked["download"] == ("org/m", "rev1", hub.TOKENIZER_FILES)


def test_a_model_that_the_disk_cannot_hold(online: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    free_disk(monkeypatch, 2_000_000_000)
    with pytest.raises(CapacityError, match=r"org/m needs 3\.0 GB, .* has 2\.0 GB free; set HF_HUB_CACHE"):
        hub.fetch(WHERE, print)
    assert "download" not in online.asked


def test_the_token_comes_from_the_environment_and_nowhere_else(online: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    free_disk(monkeypatch, 10**12)
    hub.fetch(WHERE, lambda text: None)
    assert online.tokens == [False, False]  # False: not even one that `hf auth login` stored
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    said: list[str] = []
    hub.fetch(WHERE, said.append)
    assert online.tokens[2:] == ["hf_secret", "hf_secret"]
    online.fault = OSError("no route")
    assert "hf_secret" not in "".join([*said, refusal()])


@pytest.mark.parametrize(
    ("status", "reason"),
    [(401, "no such repository, or it needs HF_TOKEN"), (403, "access not granted to this HF_TOKEN"),
     (404, "no such repository"), (503, "HTTP 503")],
)  # fmt: skip
def test_what_the_hub_answers_is_said(status: int, reason: str, online: Hub) -> None:
    fault = HfHubHTTPError.__new__(HfHubHTTPError)
    fault.response = SimpleNamespace(status_code=status)  # type: ignore[assignment]
    online.fault = fault
    assert f"the Hugging Face Hub ({reason})" in refusal()


@pytest.mark.parametrize("fault", [OSError("x"), RuntimeError("x"), ValueError("x"), Exception("a transport's own")])
def test_whatever_goes_wrong_is_one_line(fault: Exception, online: Hub) -> None:
    online.fault = fault
    assert f"the Hugging Face Hub (unreachable: {type(fault).__name__})" in refusal()


def test_offline_mode_is_called_that(online: Hub) -> None:
    online.fault = OfflineModeIsEnabled("x")
    assert "the Hugging Face Hub (offline)" in refusal()


def test_a_name_the_hub_cannot_have() -> None:
    with pytest.raises(ModelNotFoundError, match=r"'a--b/c' not found; searched .*the Hugging Face Hub \("):
        hub.fetch(Location(name="a--b/c", repository="a--b/c"), print)


@pytest.mark.parametrize(
    ("surroundings", "reason"),
    [({"HF_HUB_OFFLINE": "1"}, "offline"), ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "unreachable: ConnectError")],
)
def test_without_a_network(surroundings: dict[str, str], reason: str, tmp_path: Path) -> None:
    """The real library, in a process of its own: it reads its variables when it is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path)} | surroundings
    done = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout == (
        f"model 'gpt2-xl' not found; searched LUTHIER_MODELS (not set); {tmp_path}/models--openai-community--"
        f"gpt2-xl; the Hugging Face Hub ({reason}); put its Hugging Face folder at "
        "$LUTHIER_MODELS/openai-community/gpt2-xl\n"
    )


def test_a_snapshot_of_the_tokenizer_alone_is_completed(online: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    found = Location(name="m", folder=folder, repository="org/m", revision="rev1")
    assert hub.fetch(found, lambda _: None, hub.TOKENIZER_FILES) == folder
    assert "download" not in online.asked
    assert hub.fetch(found, lambda _: None) == online.folder
    assert online.asked["download"][0] == "org/m"
    (folder / "model-00001-of-00002.safetensors").touch()
    assert hub.fetch(found, lambda _: None) == folder
    own = Location(name="own", folder=tmp_path / "own")  # a folder of the user's: loading says what it lacks
    assert hub.fetch(own, lambda _: None) == tmp_path / "own"


def test_a_repository_with_gguf_files_only(online: Hub) -> None:
    online.files = {"B.Q8_0.gguf": 9, "A.Q4_K_M.gguf": 5, "README.md": 1}
    with pytest.raises(ModelNotFoundError) as caught:
        hub.fetch(WHERE, print)
    assert str(caught.value) == (
        "org/m holds GGUF files only, 2 of them; download one and name its path: hf download org/m A.Q4_K_M.gguf"
    )
