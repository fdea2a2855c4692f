"""``python -m luthier.data inspect --request FILE|-``: prepares rows without training.

The request is JSON: {"channels": {"training": PATH, ...}, "model", "kind", "hyperparameters": {...}, "json": bool}.
Exit code 0 when a job would accept the rows; else 2, with one line per problem.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from luthier import entrypoint
from luthier.catalog.entry import check_kind, parse_for
from luthier.catalog.hub import TOKENIZER_FILES, fetch
from luthier.catalog.locate import locate
from luthier.catalog.shape import context_length
from luthier.data import preview
from luthier.data.kind import resolve_kind
from luthier.data.ledger import check_truncated
from luthier.data.prepare import Dataset, prepare
from luthier.data.settings import DataSettings
from luthier.data.tokenize import Tokenizer, set_threads
from luthier.errors import UserError
from luthier.gguf.tokenizer_folder import with_tokenizer
from luthier.home import cache_root


def main(arguments: list[str]) -> None:
    """Run the verb on the command line."""
    parser = argparse.ArgumentParser(prog="python -m luthier.data")
    parser.add_argument("verb", choices=["inspect"])
    parser.add_argument("--request", default="-", help="a JSON file, or - for standard input")
    options = parser.parse_args(arguments)
    text = sys.stdin.read() if options.request == "-" else Path(options.request).read_text("utf-8")
    inspect(json.loads(text))


def inspect(request: dict[str, Any]) -> None:
    """Prepare the rows as a job would and print the result; UserError when a job would refuse them."""
    as_json = bool(request.get("json"))
    notes = Console(stderr=True)
    try:
        prepared, tokenizer = _prepare(request, notes)
    except UserError as error:
        if as_json:
            kind = request.get("kind") if request.get("kind") != "auto" else None
            _print_json(preview.refusal_as_json(kind, str(error).splitlines()))
        raise
    if as_json:
        _print_json(preview.as_json(prepared))
    else:
        preview.show(prepared, tokenizer, Console())


def _prepare(request: dict[str, Any], notes: Console) -> tuple[Dataset, Tokenizer]:
    channels = {name: Path(path) for name, path in request["channels"].items()}
    location = locate(request.get("model") or "luthier/tiny")

    def say(text: str) -> None:
        notes.print(text, highlight=False, markup=False)

    folder = with_tokenizer(fetch(location, say, TOKENIZER_FILES))
    entry = location.with_folder(folder).entry
    values = parse_for(entry, request.get("hyperparameters") or {})
    kind = resolve_kind(request.get("kind") or "auto", values, values.explicit, channels["training"])
    check_kind(entry, kind)
    positions = context_length(folder, entry)
    settings = DataSettings.from_hyperparameters(kind, values, values.explicit, entry, positions)
    set_threads(cast("int | None", values["preprocessing_num_workers"]))  # before loading, which starts the threads
    tokenizer = Tokenizer.load(folder, entry.chat_template if entry else None)
    for note in tokenizer.notes:
        say(note)
    prepared = prepare(channels, settings, tokenizer, cache_root(), say)
    check_truncated(prepared.counts, kind, request.get("max_truncated"))
    return prepared, tokenizer


def _print_json(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    entrypoint.run(lambda: main(sys.argv[1:]))
