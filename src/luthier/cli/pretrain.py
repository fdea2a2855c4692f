"""`luthier pretrain`: train a small base model from scratch, as luthier/tiny was made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.hyperparameters import read_hyperparameters, to_strings
from luthier.cli.options import Set
from luthier.cli.program import Program
from luthier.errors import RunFolderError, UserError


def pretrain(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="Folder or file of training text.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Output folder for the model.")],
    config: Annotated[
        Path,
        typer.Option("--config", "-c", metavar="RECIPE", help="YAML recipe: vocab_size, model (its shape), phases."),
    ],
    settings: Set = None,
) -> Program:
    """Pretrain a small base model and its tokenizer from scratch; --set applies to every phase."""
    if not corpus.exists():
        raise UserError(f"{corpus}: no such file or folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"{out}: folder exists and is not empty; choose another --out")
    if not config.is_file():
        raise UserError(f"--config {config}: no such file; expected a recipe such as pretraining/recipe.yaml")
    return Program(
        "luthier.training.pretrain",
        (),
        {
            "corpus": str(corpus.absolute()),
            "out": str(out.absolute()),
            "config": str(config.absolute()),
            "hyperparameters": to_strings(read_hyperparameters(None, settings or [], None)),
        },
    )
