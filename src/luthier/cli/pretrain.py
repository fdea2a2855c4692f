"""`luthier pretrain`: a small base model from scratch, as the embedded one was made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.engine import Call
from luthier.cli.options import Set
from luthier.cli.settings import as_strings, read_settings
from luthier.errors import RunFolderError, UserError


def pretrain(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="Folder or file of text to learn from.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the model.")],
    config: Annotated[
        Path, typer.Option("--config", "-c", metavar="RECIPE", help="YAML: vocab_size, model (its shape), phases.")
    ],
    settings: Set = None,
) -> Call:
    """Pretrain a small base model from scratch, tokenizer included; --set changes hyperparameters of every phase."""
    if not corpus.exists():
        raise UserError(f"{corpus}: no such file or folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"{out}: exists and is not an empty folder; choose another --out")
    if not config.is_file():
        raise UserError(f"--config {config}: no such file; expected a recipe such as pretraining/recipe.yaml")
    return Call(
        "luthier.training.pretrain",
        (),
        {
            "corpus": str(corpus.absolute()),
            "out": str(out.absolute()),
            "config": str(config.absolute()),
            "hyperparameters": as_strings(read_settings(None, settings or [], None)),
        },
    )
