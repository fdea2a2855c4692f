"""`luthier inspect`: what a job would make of some rows, without training."""

from __future__ import annotations

from luthier.catalog.locate import locate
from luthier.cli.channels import read_channels
from luthier.cli.engine import Call
from luthier.cli.options import (
    DEFAULT_MODEL,
    Config,
    Data,
    Json,
    KindOption,
    MaxTruncated,
    Model,
    Set,
    Test,
    Validation,
    max_truncated,
)
from luthier.cli.settings import as_strings, read_settings


def inspect(
    data: Data,
    validation: Validation = None,
    test: Test = None,
    kind: KindOption = "auto",
    model: Model = DEFAULT_MODEL,
    settings: Set = None,
    config: Config = None,
    truncated: MaxTruncated = None,
    as_json: Json = False,
) -> Call:
    """Read every row as a job would, and train nothing: counts, lengths, problems, and which tokens carry loss.

    Exit 0 when a job would accept the rows, 2 with one line per problem when not.
    """
    channels = read_channels(data, {"validation": validation, "test": test})
    hyperparameters = as_strings(read_settings(config, settings or [], locate(model).entry))
    return Call(
        "luthier.data",
        ("inspect", "--request", "-"),
        {
            "channels": {name: str(path) for name, path in channels.items()},
            "model": model,
            "kind": kind,
            "hyperparameters": hyperparameters,
            "max_truncated": max_truncated(truncated),
            "json": as_json,
        },
    )
