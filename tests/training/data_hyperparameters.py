"""The effects of the hyperparameters of the data; test_every_hyperparameter.py runs them."""

from __future__ import annotations

import json
import subprocess
import sys

from training.training_harness import TEMPLATE, FinishedJob, HyperparameterChecks, TrainingHarness

DATA_CHECKS = HyperparameterChecks()


def prompts(done: FinishedJob) -> list[str]:
    """The prompts of the validation rows."""
    path = done.folder.scores / "tuned.validation.jsonl"
    return [json.loads(line)["prompt"] for line in path.read_text("utf-8").splitlines()]


@DATA_CHECKS.of("instruction_tuned")
def _(harness: TrainingHarness) -> None:
    assert harness.run().record["kind"] == harness.run(instruction_tuned=True).record["kind"] == "instruction"
    as_text = harness.run(instruction_tuned=False)
    assert as_text.record["kind"] == "domain"
    assert as_text.steps[0]["tokens"] - as_text.steps[0]["completion_tokens"] <= 4  # but for a block's first


@DATA_CHECKS.of("chat_dataset")
def _(harness: TrainingHarness) -> None:
    rows = [{"messages": [{"role": "user", "content": f"cat {n}"}, {"role": "assistant", "content": "dog"}]}
            | {"instruction": "a", "context": "b", "response": "c"} for n in range(12)]  # fmt: skip
    name = harness.write("either", rows, TEMPLATE)
    assert harness.run(name).record["kind"] == "instruction"
    chat = harness.run(name, chat_dataset=True)
    assert chat.record["kind"] == "chat"
    assert prompts(chat)[0].startswith("<|im_start|>user\ncat ")
    assert not any("<|im_start|>" in prompt for prompt in prompts(harness.run(name)))


@DATA_CHECKS.of("max_input_length")
def _(harness: TrainingHarness) -> None:
    longest = max(max(batch.row_lengths) for batch in harness.run().trained)
    limit = longest - 8
    cut = harness.run(max_input_length=limit)
    assert max(max(batch.row_lengths) for batch in cut.trained) == limit
    assert cut.counts["truncated"] > harness.run().counts["truncated"] == 0


@DATA_CHECKS.of("append_eod")
def _(harness: TrainingHarness) -> None:
    name = harness.write("documents", [{"text": f"the cat sat on mat {number}"} for number in range(25)])
    closed, running = harness.run(name), harness.run(name, append_eod=False)
    assert closed.record["kind"] == "domain"
    assert closed.counts["tokens"] - running.counts["tokens"] == 25  # one end-of-text token a document
    ends = [sum(int((batch.input_ids_BT == 0).sum()) for batch in done.trained) for done in (closed, running)]
    assert ends == [2 * len(closed.split["train"]), 0]  # two epochs
    elsewhere = harness.run(append_eod=False)
    assert any("append_eod has no effect with instruction data" in said for said in elsewhere.record["warnings"])


@DATA_CHECKS.of("validation_split_ratio", "test_split_ratio")
def _(harness: TrainingHarness) -> None:
    assert {split: len(rows) for split, rows in harness.run().split.items()} == {
        "train": 20,
        "validation": 5,
        "test": 0,
    }
    done = harness.run(validation_split_ratio=0.4, test_split_ratio=0.2)
    assert {split: len(rows) for split, rows in done.split.items()} == {"train": 10, "validation": 10, "test": 5}
    assert done.metrics["split"] == "test"
    assert harness.run().metrics["split"] == "validation"


@DATA_CHECKS.of("train_data_split_seed")
def _(harness: TrainingHarness) -> None:
    other = harness.run(train_data_split_seed=1)
    assert set(other.split["validation"]) != set(harness.run().split["validation"])
    assert {row for rows in other.split.values() for row in rows} == {
        row for rows in harness.run().split.values() for row in rows
    }


@DATA_CHECKS.of("max_train_samples")
def _(harness: TrainingHarness) -> None:
    done = harness.run(max_train_samples=7)
    assert len({row for batch in done.trained for row in batch.rows}) == 7
    assert done.split["validation"] == harness.run().split["validation"]


@DATA_CHECKS.of("max_val_samples")
def _(harness: TrainingHarness) -> None:
    done = harness.run(max_val_samples=2)
    assert len({row for batch in done.scored for row in batch.rows}) == 2
    assert done.metrics["rows"] == 2
    assert done.split["train"] == harness.run().split["train"]


@DATA_CHECKS.of("max_test_samples")
def _(harness: TrainingHarness) -> None:
    done, usual = harness.run(max_test_samples=2, test_split_ratio=0.3), harness.run(test_split_ratio=0.3)
    assert (len(done.split["test"]), done.metrics["split"], done.metrics["rows"]) == (2, "test", 2)
    assert set(done.split["test"]) < set(usual.split["test"])
    assert done.split["train"] == usual.split["train"]


@DATA_CHECKS.of("add_input_output_demarcation_key")
def _(harness: TrainingHarness) -> None:
    bare = harness.run(add_input_output_demarcation_key=False)
    marked = "\n\n### Response:\n"
    assert [prompt + marked for prompt in prompts(bare)] == prompts(harness.run())
    assert bare.counts["tokens"] < harness.run().counts["tokens"]
    assert bare.counts["completion_tokens"] == harness.run().counts["completion_tokens"]


@DATA_CHECKS.of("completion_only_loss")
def _(harness: TrainingHarness) -> None:
    everything, usual = harness.run(completion_only_loss=False), harness.run()
    for line, other in zip(everything.steps, usual.steps, strict=True):
        assert line["tokens"] == other["tokens"]
        assert line["completion_tokens"] > other["completion_tokens"]
    rows = sum(len(batch.rows) for batch in everything.trained)
    assert everything.steps[-1]["completion_tokens"] == everything.steps[-1]["tokens"] - rows
    assert everything.losses[0] != usual.losses[0]


@DATA_CHECKS.of("group_near_duplicates")
def _(harness: TrainingHarness) -> None:
    rows = []
    for letter in "abcdefgh":
        text = " ".join(letter * length for length in range(2, 7))
        rows += [{"instruction": text, "context": f"{copy}", "response": "good"} for copy in range(3)]
    name = harness.write("near", rows, TEMPLATE)
    share = {"validation_split_ratio": 0.25}  # two whole groups
    apart, together = harness.run(name, **share), harness.run(name, **share, group_near_duplicates=True)
    assert any("near-duplicate" in warning for warning in apart.record["warnings"])
    assert not any("near-duplicate" in warning for warning in together.record["warnings"])
    assert apart.split != together.split


@DATA_CHECKS.of("parse_special_tokens")
def _(harness: TrainingHarness) -> None:
    rows = [{"instruction": f"cat <|im_end|> {number}", "context": "", "response": "dog"} for number in range(10)]
    name = harness.write("special", rows, TEMPLATE)
    control = json.loads((harness.model / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    marker = next(token["id"] for token in control if token["content"] == "<|im_end|>")
    as_text, as_control = harness.run(name), harness.run(name, parse_special_tokens=True)
    assert not any((batch.input_ids_BT == marker).any() for batch in as_text.trained)
    for batch in as_control.trained:
        assert (batch.input_ids_BT == marker).sum() == len(batch.rows)
    assert as_control.counts["tokens"] < as_text.counts["tokens"]


@DATA_CHECKS.of("preprocessing_num_workers")
def _(harness: TrainingHarness) -> None:
    """The threads that a job's tokenizing starts, counted in a process of its own: they are started once in each."""
    child = """
import sys, psutil
from luthier.jobfolder import JobFolder
from luthier.training import job

def counted(*arguments):
    prepared = prepare(*arguments)
    print("started", psutil.Process().num_threads() - before)
    return prepared

prepare, job.prepare = job.prepare, counted
before = psutil.Process().num_threads()
job.run_job(JobFolder(sys.argv[1]), False, job.Console())
"""
    folder = harness.lay_out(preprocessing_num_workers=7, max_steps=1)
    command = [sys.executable, "-c", child, str(folder.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "started 7\n" in done.stdout
