"""The devices of jobs, as slots of one job each; detected without loading any library."""

from __future__ import annotations

import re
import shutil
import subprocess

from luthier.errors import SettingError
from luthier.launchers.launcher import CPU

SECONDS = 20  # timeout of nvidia-smi, which is slow on its first run after a boot
_GPUS = re.compile(r"[0-9]+(\+[0-9]+)*")


def parse_slots(text: str | None) -> tuple[str, ...]:
    """The slots of `--slots` (cpu, or ids of GPUs joined by "+"); by default one per GPU, else one of the CPU."""
    if text is None:
        return find_gpus() or (CPU,)
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        check_device(name, f"--slots {text}")
    ids = [part for name in names if name != CPU for part in name.split("+")]
    twice = sorted({part for part in ids if ids.count(part) > 1})
    if twice:
        raise SettingError(f"--slots {text}: GPU {', '.join(twice)} is named twice; a GPU belongs to one slot")
    return names


def check_device(name: str, option: str) -> str:
    """`name`, if it is cpu or GPU ids; SettingError that begins with `option` otherwise."""
    if name != CPU and not _GPUS.fullmatch(name):
        raise SettingError(f"{option}: {name!r} is not a device; expected cpu, or GPU ids such as 0 or 0+1")
    return name


def find_gpus() -> tuple[str, ...]:
    """The ids of this machine's NVIDIA GPUs."""
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise SettingError(f"nvidia-smi did not answer within {SECONDS} s; name the devices by --slots") from None
    return tuple(result.stdout.split()) if result.returncode == 0 else ()
