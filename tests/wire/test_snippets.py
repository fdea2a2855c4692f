"""The snippets of docs/clients.md, executed from the page against a live server, side by side."""

from __future__ import annotations

import concurrent.futures
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from wire.driver import Driver
from wire.rows import autopilot_file, instruction_folder

PAGE = Path(__file__).resolve().parents[2] / "docs" / "clients.md"
_HEADING = re.compile(r"## (.+)")
_FENCE = re.compile(r"```(\w*)\n(.*?)```\n", re.DOTALL)
_FILE = re.compile(r"`([\w.]+)`:\s*\Z")
# Language of a block and the beginning of its heading -> the environment it runs in.
ENVIRONMENTS = {
    ("python", "boto3"): "sagemaker3", ("sh", "AWS CLI"): "awscli", ("python", "SageMaker Python SDK v2"): "sagemaker2",
    ("python", "SageMaker Python SDK v3"): "sagemaker3", ("js", "AWS SDK for JavaScript"): "javascript",
}  # fmt: skip
METRICS = ("Rouge1 Validation ", "Perplexity Validation ", "TrainingLoss Train ")
ANSWER = "generated_text"
# What each must have printed, in the page's order.
SAID = (METRICS, ("Completed", "eval-loss", ANSWER), ("from-the-cli", "Perplexity"), ("trial-1", ANSWER), (ANSWER,),
        (ANSWER,), ("Completed", ANSWER))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Snippet:
    """One block to run; `proxy` where its section says so."""

    environment: str
    text: str
    proxy: bool


def snippets(page: str, folder: Path) -> Iterator[Snippet]:
    """The blocks of a page that are run, in its order; a block behind "`NAME`:" is written to that file of `folder`."""
    for section in re.split(r"^(?=## )", page, flags=re.MULTILINE)[1:]:
        heading = _HEADING.match(section)
        assert heading is not None
        for fence in _FENCE.finditer(section):
            named = _FILE.search(section[: fence.start()])
            if named:
                (folder / named[1]).write_text(fence[2], "utf-8")
                continue
            known = [name for (language, start), name in ENVIRONMENTS.items()
                     if language == fence[1] and heading[1].startswith(start)]  # fmt: skip
            assert len(known) == 1, f"docs/clients.md: no client runs the {fence[1]!r} block under {heading[1]!r}"
            yield Snippet(known[0], fence[2], "luthier env --proxy" in section[: fence.start()])


def test_every_snippet_runs_as_it_is(driver: Driver, tmp_path: Path) -> None:
    autopilot_file(tmp_path / "train.csv")
    instruction_folder(tmp_path / "rows")
    driver.make_default_bucket()
    found = list(snippets(PAGE.read_text("utf-8"), tmp_path))

    def run(number: int) -> str:
        snippet = found[number]
        if snippet.environment == "awscli":
            return driver.shell("awscli", snippet.text)
        script = tmp_path / f"snippet{number}{'.mjs' if snippet.environment == 'javascript' else '.py'}"
        script.write_text(snippet.text, "utf-8")
        return driver.program(snippet.environment, script, proxy=snippet.proxy)

    with concurrent.futures.ThreadPoolExecutor(len(found)) as pool:
        said = list(pool.map(run, range(len(found))))
    for snippet, printed, words in zip(found, said, SAID, strict=True):
        missing = [word for word in words if word not in printed]
        assert missing == [], f"{snippet.text[:200]} ... printed\n{printed}"


def test_a_block_of_an_unknown_client_is_no_silent_pass(tmp_path: Path) -> None:
    page = "# P\n\n## Some client\n\n```python\n1\n```\n"
    with pytest.raises(AssertionError, match="no client runs the 'python' block under 'Some client'"):
        list(snippets(page, tmp_path))
