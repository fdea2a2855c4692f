"""The kind of a data set: instruction, autopilot, chat or domain; detected from the files, or set by the caller.

    instruction   rows with fields for a template: JSON Lines, a JSON array, CSV, TSV or Parquet
    autopilot     CSV, TSV or Parquet with exactly the columns input and output
    chat          rows with one of dialog, messages, conversations: JSON Lines, a JSON array or Parquet
    domain        one .txt file, or one file with a column `text`; a first column of another name only where asked for

Only names, headers and first rows are read. Files may be compressed by gzip (.jsonl.gz).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from luthier.data import records, tables
from luthier.data.channel import Channel, RowFile, open_channels
from luthier.data.conversation import has_conversation
from luthier.data.problems import Problems
from luthier.errors import DataError, Problem, SettingError

KINDS = ("instruction", "autopilot", "chat", "domain")
AUTOPILOT_COLUMNS = ("input", "output")
TABLES = (".csv", ".tsv", ".parquet")
SUFFIXES = {
    "instruction": (".jsonl", ".json", *TABLES),
    "autopilot": TABLES,
    "chat": (".jsonl", ".json", ".parquet"),
    "domain": (".txt", ".jsonl", ".json", *TABLES),
}
_LABEL_STUDIO = {"annotations", "data"}  # keys of a task


def resolve_kind(kind: str, values: Mapping[str, Any], explicit: Collection[str], training_channel: Path) -> str:
    """Resolve the kind from `kind`, instruction_tuned and chat_dataset and, where these leave it open, the data.

    SettingError when both hyperparameters are True, or one contradicts an explicit kind. Both set to False means
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
    settings = " and ".join(
        f"{name}={values[name]}" for name in ("instruction_tuned", "chat_dataset") if name in explicit
    )
    if kind != "auto":
        if kind not in allowed:
            raise SettingError(f"--kind {kind} contradicts {settings}; remove one of them")
        return kind
    if len(allowed) == 1:
        return allowed.pop()
    detected = detect(open_channels({"training": training_channel})[0])
    if detected in allowed:
        return detected
    if instruction is False and chat is None and detected in ("instruction", "autopilot"):
        return "domain"
    raise SettingError(f"the rows are {detected} data, which {settings} excludes; remove the setting, or give --kind")


def detect(channel: Channel) -> str:
    """Detect the kind from a training channel's files."""
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
    if suffix == ".txt":
        return "domain"
    keys = _first_keys(channel, is_table=suffix in TABLES)
    if channel.template is not None or not keys:
        return "instruction"
    if keys.keys() >= _LABEL_STUDIO:
        message = "a Label Studio export; export it as CSV or JSON-MIN, and add a template.json that names its fields"
        raise DataError(Problem(channel.files[0].name, 1, message))
    if has_conversation(keys):
        return "chat"
    names = {name.lower() for name in keys}
    if suffix in TABLES and "instruction" not in names and names & set(AUTOPILOT_COLUMNS):
        return "autopilot"  # its reader reports problems of the columns
    is_text = names == {"text"} if suffix == ".jsonl" else "text" in names
    return "domain" if is_text and len(channel.files) == 1 else "instruction"


def _first_keys(channel: Channel, is_table: bool) -> dict[str, Any]:
    """The first row of the channel by its keys; a table's columns without cells if it has no row."""
    problems = Problems()
    if is_table:
        columns = tables.columns(channel.files[0], problems)
        problems.raise_if_any()
    for file in channel.files:
        record = next(records.read(file, Problems()), None)
        if record is not None:
            return record.fields
    return dict.fromkeys(columns) if is_table else {}


def check_files(kind: str, channels: list[Channel]) -> None:
    """Raise DataError for files that do not fit the kind, naming each."""
    problems = [
        Problem(file.name, 0, f"{kind} data must be in {' or '.join(SUFFIXES[kind])} files")
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
                    f"it contains {len(channel.files)} ({names} ...)",
                )
            )
    formats = {tables.is_parquet(file.path) for channel in channels for file in channel.files}
    if kind == "autopilot" and not problems and len(formats) > 1:
        problems.append(Problem("", 0, "CSV and Parquet files are mixed; all channels must have one format"))
    if problems:
        raise DataError(problems)


def _fits(kind: str, file: RowFile) -> bool:
    return file.suffix in SUFFIXES[kind] or (".parquet" in SUFFIXES[kind] and tables.is_parquet(file.path))
