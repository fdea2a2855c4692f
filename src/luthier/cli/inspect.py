"""`luthier inspect`: how a job would read some rows, without training."""

from __future__ import annotations

from luthier.catalog.locate import locate
from luthier.cli.channels import read_channels
from luthier.cli.hyperparameters import read_hyperparameters, to_strings
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
    check_max_truncated,
)
from luthier.cli.program import Program


def inspect(
    data: Data,
    validation: Validation = None,
    test: Test = None,
    kind: KindOption = "auto",
    model: Model = DEFAULT_MODEL,
    settings: Set = None,
    config: Config = None,
    max_truncated: MaxTruncated = None,
    as_json: Json = False,
) -> Program:
    """Read every row as a job would, without training: counts, lengths, problems, and which tokens carry loss.

    Exit code 0 when a job would accept the rows; 2, with one line per problem, when it would not.
    """
    channels = read_channels(data, {"validation": validation, "test": test})
    hyperparameters = to_strings(read_hyperparameters(config, settings or [], locate(model).entry))
    return Program(
        "luthier.data",
        ("inspect", "--request", "-"),
        {
            "channels": {name: str(path) for name, path in channels.items()}, "model": model, "kind": kind,
            "hyperparameters": hyperparameters, "max_truncated": check_max_truncated(max_truncated), "json": as_json,
        },
    )  # fmt: skip
