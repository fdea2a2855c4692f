"""A launcher that runs a copy of the folder elsewhere on this machine, as one with a shared or remote disk does."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from luthier.launchers.launcher import Activity, ExitStatus, LaunchSpec, RunHandle
from luthier.launchers.local import LocalLauncher


def ship(source: Path, target: Path) -> None:
    """Copy a folder, replacing files in one move each, as their readers go on meanwhile."""

    def copy(source_file: str, target_file: str) -> None:
        part = Path(f"{target_file}.shipped")
        shutil.copy2(source_file, part)
        part.replace(target_file)

    def ignore(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if name in ("service.json", ".lock") or name.endswith(".shipped")]

    shutil.copytree(source, target, copy_function=copy, ignore=ignore, dirs_exist_ok=True)


class ShippingLauncher:
    """Implements Launcher; a handle has the paths of both copies. Leftovers are known by their records only."""

    def __init__(self, commands: Mapping[str, Sequence[str]]) -> None:
        self._local = LocalLauncher(commands)
        self.collected = 0

    def start(self, spec: LaunchSpec) -> RunHandle:
        there = spec.folder.parent.with_name(f"{spec.folder.parent.name}-elsewhere") / spec.folder.name
        ship(spec.folder, there)
        arguments = [argument.replace(str(spec.folder), str(there)) for argument in spec.arguments]
        run = self._local.start(replace(spec, folder=there, arguments=arguments))
        return {"run": run, "here": str(spec.folder), "there": str(there)}

    def poll(self, handle: RunHandle) -> ExitStatus | None:
        return self._local.poll(handle["run"])

    def request_stop(self, handle: RunHandle) -> None:
        self._local.request_stop(handle["run"])

    def kill(self, handle: RunHandle) -> None:
        self._local.kill(handle["run"])

    def collect(self, handle: RunHandle) -> None:
        self.collected += 1
        there = Path(handle["there"])
        for _ in range(20):
            try:
                return ship(there, Path(handle["here"]))
            except (shutil.Error, FileNotFoundError):  # a file that the run has just replaced
                continue

    def activity(self, handle: RunHandle) -> Activity:
        return self._local.activity(handle["run"])

    def paused(self, handle: RunHandle) -> AbstractContextManager[bool]:
        return nullcontext(False)

    def leftovers(self, root: Path, recorded: Sequence[RunHandle]) -> list[RunHandle]:
        below = [handle for handle in recorded if Path(handle["here"]).is_relative_to(root)]
        return [handle for handle in below if self.poll(handle) is None]

    def address(self, folder: Path) -> str:
        return self._local.address(folder)
