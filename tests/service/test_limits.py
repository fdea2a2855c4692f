"""The words that bound engines: what they mean, and one line for what cannot be set."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from luthier.cli.app import app
from luthier.cli.program import Program
from luthier.errors import SettingError
from luthier.jobs.settings import ServiceSettings
from luthier.launchers.local import ULIMITS
from luthier.server import Options
from luthier.service import supervisor_program as program
from luthier.service.limits import LIMITS, check_seconds, parse_limits
from luthier.service.supervisor_settings import decode_settings, encode_settings
from luthier.supervisor.context import SupervisorContext


def test_sizes_and_numbers() -> None:
    assert parse_limits([]) == {}
    found = parse_limits(["memory=64G", "file-size=1500M", "open-files=256", "cpu-seconds=3600"])
    assert found == {
        "RLIMIT_AS": 64 << 30, "RLIMIT_FSIZE": 1500 << 20, "RLIMIT_NOFILE": 256, "RLIMIT_CPU": 3600,
    }  # fmt: skip
    assert parse_limits([f"memory={2 << 30}"]) == {"RLIMIT_AS": 2 << 30}


def test_every_word_can_be_set_by_the_launcher() -> None:
    assert all(limit.resource in ULIMITS and hasattr(resource, limit.resource) for limit in LIMITS.values())
    for name, limit in LIMITS.items():
        assert parse_limits([f"{name}={limit.example}"])


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (["memori=1G"], "did you mean 'memory'"),
        (["=1G"], "expected one of memory, file-size, open-files, cpu-seconds"),
        (["memory"], "expected a size such as 64G"),
        (["memory=-1G"], "expected a size such as 64G"),
        (["memory=64GB"], "expected a size such as 64G"),
        (["open-files=4K"], "expected a number such as 4096"),
        (["open-files=255"], "expected 256 or more"),
        (["memory=1M"], "expected 1G or more"),
        (["file-size=1K"], "expected 1M or more"),
        (["memory=1G", "memory=2G"], "given twice"),
    ],
)
def test_limits_that_make_no_sense(pairs: list[str], words: str) -> None:
    with pytest.raises(SettingError, match=f"--limit {pairs[0].split('=')[0]}") as raised:
        parse_limits(pairs)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_more_than_the_system_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda name: (1024, 4096))
    assert parse_limits(["open-files=4096"]) == {"RLIMIT_NOFILE": 4096}
    with pytest.raises(SettingError, match="the system allows this user 4,096 at most"):
        parse_limits(["open-files=4097"])


@pytest.mark.parametrize("value", [0.5, -1.0, float("nan"), float("inf"), 1e9])
def test_times_that_make_no_sense(value: float) -> None:
    with pytest.raises(SettingError, match=r"--stall-seconds .*: expected seconds from 1 to 2,592,000"):
        check_seconds(value, "--stall-seconds", 1)


def test_what_serve_is_given_reaches_the_supervisors_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["serve", "--home", str(tmp_path), "--slots", "cpu", "--stall-seconds", "90", "--stop-seconds", "2.5",
             "--limit", "open-files=300", "--limit", "memory=3G"]  # fmt: skip
    call: Any = CliRunner().invoke(app, given, standalone_mode=False).return_value
    assert isinstance(call, Program)
    assert call.request is not None
    settings = Options.read(call.request).settings
    assert (settings.stall_seconds, settings.stop_seconds) == (90, 2.5)
    contexts: list[SupervisorContext] = []

    class Watched:
        def __init__(self, context: SupervisorContext) -> None:
            contexts.append(context)

        def run(self, leave: Any) -> None: ...

    monkeypatch.setattr(program, "Supervisor", Watched)
    program.supervise(decode_settings(tmp_path, encode_settings(settings)), lambda: True)
    assert contexts[0].settings == settings
    launch = contexts[0].training_spec(tmp_path, "cpu", False)
    assert launch.limits == {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": 300, "RLIMIT_AS": 3 << 30}


def test_without_options_nothing_is_limited_but_core_files(tmp_path: Path) -> None:
    call: Any = CliRunner().invoke(app, ["serve", "--home", str(tmp_path), "--slots", "cpu"],
                                   standalone_mode=False).return_value  # fmt: skip
    settings = Options.read(call.request).settings
    usual = ServiceSettings(home=tmp_path)
    assert (settings.limits, settings.stall_seconds, settings.stop_seconds) == (
        usual.limits, usual.stall_seconds, usual.stop_seconds
    )  # fmt: skip
