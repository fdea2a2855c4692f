"""The kind of a data set: instruction, autopilot, chat or domain; found from the files, or as the caller says.

    instruction   .jsonl rows with fields for a template
    autopilot     CSV or Parquet with exactly the columns input and output
    chat          .jsonl rows with one of dialog, messages, conversations
    domain        one .txt, .csv, .json or .jsonl file of plain text

It looks at names, headers and first rows, never at all of the data.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from luthier.data import records, tables
from luthier.data.channel import Channel, RowFile, open_channels
from luthier.data.chat import KEYS
from luthier.data.problems import Problems
from luthier.errors import DataError, Problem, SettingError

KINDS = ("instruction", "autopilot", "chat", "domain")
AUTOPILOT_COLUMNS = ("input", "output")
SUFFIXES = {
    "instruction": (".jsonl",),
    "autopilot": (".csv", ".parquet"),
    "chat": (".jsonl",),
    "domain": (".txt", ".csv", ".json", ".jsonl"),
}


def resolve_kind(kind: str, values: Mapping[str, Any], explicit: Collection[str], training_channel: Path) -> str:
    """Settle the kind from what was asked (`kind`, instruction_tuned, chat_dataset) and, for the rest, the data.

    Both hyperparameters True, or one that contradicts an explicit kind, is a SettingError. Both set False means
    domain adaptation, as in JumpStart.
    """
    instruction = values.get("instruction_tuned") if "instruction_tuned" in explicit else None
    chat = values.get("chat_dataset") if "chat_dataset" in explicit else None
    if instruction and chat:
        raise SettingError("instruction_tuned=True and chat_dataset=True exclude each other; set one of them to False")
    if kind not in ("auto", *KINDS):
        raise SettingError(f"kind {kind!r}: expected auto, {', '.join(KINDS)}")
    allowed = set(KINDS)
    if instruction:
        allowed = {"instruction", "autopilot"}
    elif chat:
        allowed = {"chat"}
    else:
        allowed -= {"instruction", "autopilot"} if instruction is False else set()
        allowed -= {"chat"} if chat is False else set()
    said = " and ".join(f"{name}={values[name]}" for name in ("instruction_tuned", "chat_dataset") if name in explicit)
    if kind != "auto":
        if kind not in allowed:
            raise SettingError(f"--kind {kind} contradicts {said}; drop one of them")
        return kind
    if len(allowed) == 1:
        return allowed.pop()
    found = detect(open_channels({"training": training_channel})[0])
    if found in allowed:
        return found
    if instruction is False and chat is None and found in ("instruction", "autopilot"):
        return "domain"
    raise SettingError(f"the rows are of kind {found}, which {said} excludes; drop the setting, or give --kind")


def detect(channel: Channel) -> str:
    """The kind that a training channel's files look like."""
    suffixes = {".parquet" if tables.is_parquet(file.path) else file.suffix for file in channel.files}
    if len(suffixes) > 1:
        raise DataError(
            Problem(
                str(channel.root),
                0,
                f"the training channel mixes {' and '.join(sorted(suffixes))} files; keep one format, or give --kind",
            )
        )
    suffix = suffixes.pop()
    if suffix == ".jsonl":
        return _kind_of_lines(channel)
    if suffix in (".txt", ".json"):
        return "domain"
    problems = Problems()
    names = tables.columns(channel.files[0], problems)
    problems.raise_if_any()
    if set(names) == set(AUTOPILOT_COLUMNS):
        return "autopilot"
    if suffix == ".parquet" or len(channel.files) > 1 or {"input", "output"} & set(names):
        return "autopilot"  # its reader says what is wrong with the columns
    return "domain"


def _kind_of_lines(channel: Channel) -> str:
    for file in channel.files:
        first = next(records.read(file, Problems()), None)
        if first is not None:
            keys = set(first.fields)
            if keys & set(KEYS) and channel.template is None:
                return "chat"
            if keys == {"text"} and channel.template is None and len(channel.files) == 1:
                return "domain"
            return "instruction"
    return "instruction"


def check_files(kind: str, channels: list[Channel]) -> None:
    """Refuse files that a kind cannot read, each by name; DataError."""
    problems = [
        Problem(file.name, 0, f"{kind} data are {' or '.join(SUFFIXES[kind])} files")
        for channel in channels
        for file in channel.files
        if not _fits(kind, file)
    ]
    for channel in channels:
        if kind == "domain" and len(channel.files) > 1:
            names = ", ".join(file.name for file in channel.files[:3])
            problems.append(
                Problem(
                    "",
                    0,
                    f"domain adaptation takes exactly one file in the {channel.name} channel; "
                    f"it holds {len(channel.files)} ({names} ...)",
                )
            )
    formats = {tables.is_parquet(file.path) for channel in channels for file in channel.files}
    if kind == "autopilot" and not problems and len(formats) > 1:
        problems.append(Problem("", 0, "CSV and Parquet files are mixed; all channels must be of one format"))
    if problems:
        raise DataError(problems)


def _fits(kind: str, file: RowFile) -> bool:
    return file.suffix in SUFFIXES[kind] or (kind == "autopilot" and tables.is_parquet(file.path))
