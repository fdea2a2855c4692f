"""The devices that jobs run on, as slots: each takes one job at a time. Found without loading any library."""

from __future__ import annotations

import re
import shutil
import subprocess

from luthier.errors import SettingError
from luthier.launchers.launcher import CPU

SECONDS = 20  # that nvidia-smi may take; it is slow on its first run after a boot
_GPUS = re.compile(r"[0-9]+(\+[0-9]+)*")


def slots(text: str | None) -> tuple[str, ...]:
    """The slots of `--slots` (cpu, or ids of GPUs joined by "+"); without it, one for each GPU, else one of the CPU."""
    if text is None:
        return gpus() or (CPU,)
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        device(name, f"--slots {text}")
    ids = [part for name in names if name != CPU for part in name.split("+")]
    twice = sorted({part for part in ids if ids.count(part) > 1})
    if twice:
        raise SettingError(f"--slots {text}: GPU {', '.join(twice)} is named twice; a GPU belongs to one slot")
    return names


def device(name: str, option: str) -> str:
    """`name` where it says cpu, or ids of GPUs; SettingError that begins with `option` where it does not."""
    if name != CPU and not _GPUS.fullmatch(name):
        raise SettingError(f"{option}: {name!r} is no device; expected cpu, or ids of GPUs such as 0 or 0+1")
    return name


def gpus() -> tuple[str, ...]:
    """The ids of this machine's NVIDIA GPUs."""
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise SettingError(f"nvidia-smi did not answer within {SECONDS} s; name the devices by --slots") from None
    return tuple(said.stdout.split()) if said.returncode == 0 else ()
