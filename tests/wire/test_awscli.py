"""The AWS CLI against a live server: s3 commands and exit codes; a job from a file is a snippet of docs/clients.md."""

from __future__ import annotations

from pathlib import Path

import pytest
from wire.driver import Driver
from wire.rows import instruction_folder


def test_the_s3_commands(signing_driver: Driver, tmp_path: Path) -> None:
    folder = instruction_folder(tmp_path / "rows")
    (tmp_path / "large.bin").write_bytes(b"0123456789abcdef" * 600_000)  # above the size that goes in parts
    said = signing_driver.shell("awscli", """
        aws s3 mb s3://wire-cli-s3
        aws s3 sync rows s3://wire-cli-s3/rows --no-progress
        aws s3 sync rows s3://wire-cli-s3/rows --no-progress
        echo ---; aws s3 ls s3://wire-cli-s3/rows/
        aws s3 cp large.bin s3://wire-cli-s3/large.bin --no-progress
        aws s3 cp s3://wire-cli-s3/large.bin back.bin --no-progress
        aws s3 cp s3://wire-cli-s3/rows/template.json -
        aws s3 rm s3://wire-cli-s3 --recursive
        echo; echo ---; aws s3 ls s3://wire-cli-s3 --recursive
        aws s3 rb s3://wire-cli-s3
    """)  # fmt: skip
    synced, listed, rest = said.split("---\n")
    assert synced.count("upload:") == 2  # the second time there is nothing to do
    assert {line.split()[-1] for line in listed.splitlines()[:2]} == {"template.json", "train.jsonl"}
    assert (folder / "template.json").read_text("utf-8") in listed
    assert (tmp_path / "back.bin").read_bytes() == (tmp_path / "large.bin").read_bytes()
    assert rest.strip() == "remove_bucket: wire-cli-s3"


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("aws sagemaker describe-auto-ml-job-v2 --auto-ml-job-name no-such", 255, "(ResourceNotFound)"),
        ("aws s3 ls s3://wire-cli-none", 255, "(NoSuchBucket)"),
        ("aws s3 cp s3://wire-cli-none/key here", 1, "(404)"),
        ("aws sagemaker stop-training-job --training-job-name 'a b'", 255, "failed to satisfy constraint"),
    ],
)
def test_a_refusal_ends_with_the_cli_s_code_for_it(signing_driver: Driver, command: str, code: int, words: str) -> None:
    said = signing_driver.shell("awscli", f"set +e; {command} 2>&1; echo $?")
    assert words in said
    assert said.split()[-1] == str(code)
