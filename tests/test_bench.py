"""The bench's own promises: strict turns, honest tables, a check of the numbers that can fail, a command line."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the bench is run from the root, never installed

from bench import page, train  # noqa: E402
from bench.field import (  # noqa: E402
    agreement,
    gate,
    litgpt_run,
    machine,
    matmul,
    options,
    peers,
    rows,
    shapes,
    table,
    torchtune_run,
)
from bench.field.lockstep import Entry, Record, Step, race  # noqa: E402

TOY = """
import sys, time
from bench.field.line import Line, Stopwatch, peak_rss
name, diary, fails_after = sys.argv[1], sys.argv[2], int(sys.argv[3])
line, watch = Line(), Stopwatch()
print("a library prints")
def note(what):
    with open(diary, "a") as handle:
        handle.write(f"{name} {what}\\n")
line.say(toy=name)
steps = 0
while True:
    word = line.wait()
    if word == "peak":
        line.say(bf16=1.0)
        continue
    watch.start()
    note("begins")
    if steps == fails_after:
        raise SystemExit("out of strings")
    steps += 1
    time.sleep(0.01)
    note("ends")
    line.say(**watch.read(), tokens=10, completion_tokens=4, loss=1.0, rss=peak_rss())
"""


def toy(folder: Path, name: str, fails_after: int = -1) -> Entry:
    (folder / "toy.py").write_text(TOY)
    command = (sys.executable, str(folder / "toy.py"), name, str(folder / "diary"), str(fails_after))
    return Entry(name, command, {**os.environ, "PYTHONPATH": str(ROOT)}, ROOT, folder / f"{name}.log")


def test_one_contender_at_a_time_and_who_starts_moves_on(tmp_path: Path) -> None:
    records = race([toy(tmp_path, "a"), toy(tmp_path, "b")], 3, 1, 1e12, lambda _: None, ["peak"])
    diary = [line.split() for line in (tmp_path / "diary").read_text().splitlines()]
    assert [name for name, what in diary if what == "begins"] == list("abbaabba")
    assert [name for name, what in diary if what == "ends"] == list("abbaabba")
    assert [what for _, what in diary] == ["begins", "ends"] * 8
    assert [(record.name, len(record.steps), record.facts) for record in records] == [
        ("a", 3, {"toy": "a"}), ("b", 3, {"toy": "b"}),
    ]  # fmt: skip
    assert [len(record.peaks) for record in records] == [3, 0]  # only the first is asked for the machine's peak
    assert all(step.wall >= 0.01 and step.rss > 1e6 for record in records for step in record.steps)


def test_a_contender_that_fails_leaves_with_its_reason_and_the_others_go_on(tmp_path: Path) -> None:
    said: list[str] = []
    good, bad = race([toy(tmp_path, "good"), toy(tmp_path, "bad", fails_after=1)], 2, 0, 1e12, said.append)
    assert len(good.steps) == 2
    assert not bad.steps
    assert "out of strings" in bad.reason
    assert any("bad leaves: ended with code 1: out of strings" in line for line in said)


def test_contenders_that_hold_too_much_memory_are_sent_away_but_never_the_first(tmp_path: Path) -> None:
    own, peer = race([toy(tmp_path, "own"), toy(tmp_path, "peer")], 2, 0, 1e6, lambda _: None)
    assert len(own.steps) == 2
    assert not peer.steps
    assert "together they held" in peer.reason
    assert peer.crowded


def test_without_room_for_three_the_largest_races_once_more_with_luthier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = iter([1e6, 1e12])
    monkeypatch.setattr(machine, "memory_budget", lambda: next(budgets))
    run_options = options.parse(["--steps", "2", "--warm-up", "1"], shapes.SHAPES, "")
    field = [toy(tmp_path, name) for name in (table.OWN, "hf-shipped")]
    monkeypatch.setattr(train, "race", lambda *given: race(*given[:-1]))
    first, *rest = train.races(run_options, [*field, toy(tmp_path, "hf-tuned")], (100, 50), False)
    assert set(first["contenders"]) == {table.OWN}
    assert [set(each["contenders"]) for each in rest] == [{table.OWN, "hf-shipped", "hf-tuned"}]


def record(name: str, seconds: float, rss: int) -> Record:
    steps = [Step(wall, wall / 2, 100, 40, 3.0, rss) for wall in (seconds, seconds * 50, seconds)]
    return Record(name, {}, steps, [{"bf16": 3e5}, {"bf16": 4e5}] if name == table.OWN else [])


def test_the_table_takes_medians_and_holds_each_peer_against_its_own_race() -> None:
    gone = Record("litgpt", reason="ended with code 1")
    found = train.contenders([record(table.OWN, 0.5, 10**9), record("trl-tuned", 2.0, 2 * 10**9), gone], 100, 50, False)
    assert found["luthier"]["figures"]["tokens_per_second"] == 200
    assert found["luthier"]["share_of_bf16_peak"] == pytest.approx(6 * (100 * 100 + 50 * 40) / 0.25 / 4e5)
    assert found["trl-tuned"]["luthier_over_it"] == {
        "completion_tokens_per_second": 4, "completion_tokens_per_cpu_second": 4, "tokens_per_cpu_second": 4,
        "rss": 0.5,
    }  # fmt: skip
    lines = table.render(table.rows([{"contenders": found}])).splitlines()
    assert lines[1].split() == ["luthier", "200", "80", "400", "160", "1.00", "72.0%"]
    assert lines[2].split()[-4:] == ["4.00x", "4.00x", "4.00x", "0.50x"]
    assert lines[3].split(maxsplit=1) == ["litgpt", "left out: ended with code 1"]


def test_the_page_says_where_a_peer_is_ahead_and_what_was_not_measured() -> None:
    slow = train.contenders([record(table.OWN, 4.0, 10**9), record("hf-tuned", 2.0, 2 * 10**9)], 100, 50, True)
    group: dict[str, Any] = {"peer": "hf", "source": "abc", "contenders": slow}
    agreed = {"loss": 1e-8, "gradient": 2e-6, "worst": "a", "tensors": 9, "rows": 4}
    result = {"shape": "135m", "note": "a shape", "method": "lora", "rows_per_step": 8, "agreement": agreed,
              "groups": [group], "missing": {"litgpt": "no wheel"}}  # fmt: skip
    facts = machine.describe() | {"gpu": None, "load_before": [3.5, 1.0, 1.0]}
    found = {"machine": facts, "options": {"threads": 1, "allocator": None}, "train": [result]}
    text = page.page([found])
    assert (
        "Another library is ahead in: hf-tuned (completion tok/s 0.50x), hf-tuned (completion tok/CPU-s 0.50x)." in text
    )
    assert "litgpt is not included: no wheel" in text
    assert "not idle: load 3.5" in text
    assert "- Training: 135m full, 0.5b lora" in text
    assert "- GPUs:" in text
    assert "- Training compared with trl, torchtune, litgpt." in text
    group["source"] = None
    assert "may have changed between these comparisons" in page.page([found])


def test_the_page_shows_ranks() -> None:
    lora = {"tokens_per_second": {"1": 400.0, "2": 748.0}, "ratio": 1.87, "steps": 16}
    found = {"machine": machine.describe(), "options": {"threads": 1, "allocator": None},
             "ranks": {"shape": "a shape", "rows": 8, "cores": 2, "methods": {"lora": lora}}}  # fmt: skip
    text = page.page([found])
    assert "Data-parallel ranks of one thread, a shape, 8 rows per step and rank" in text
    assert "| lora | 400 | 748 | 1.87x |" in text
    assert "`run.py bench ranks`" not in text


def test_lora_needs_fewer_operations() -> None:
    assert matmul.operations(10, 5, True, 7, 3) == 4 * (10 * 7 + 5 * 3)
    assert matmul.operations(10, 5, False, 7, 3) == 6 * (10 * 7 + 5 * 3)


@pytest.mark.parametrize(
    ("loss", "change", "says"),
    [(2.0, 1e-4, "the gradient of b differs"), (2.001, 0.0, "the loss differs"), (float("nan"), 0.0, "the loss")],
)
def test_the_check_of_the_numbers_fails_when_they_differ(loss: float, change: float, says: str) -> None:
    expected = {"a": torch.ones(3), "b": torch.arange(4.0)}
    found = {"a": torch.ones(3), "b": torch.arange(4.0) * (1 + change)}
    with pytest.raises(agreement.DisagreementError, match=says):
        agreement.compare(loss, found, 2.0, expected, 1)


def test_the_check_of_the_numbers_misses_no_gradient_and_passes_equal_ones() -> None:
    whole = {"a": torch.ones(3), "b": torch.arange(4.0)}
    assert agreement.compare(2.0, whole, 2.0, whole, 5).gradient == 0
    with pytest.raises(agreement.DisagreementError, match=r"one side only .first: b"):
        agreement.compare(2.0, {"a": torch.ones(3)}, 2.0, whole, 5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.build(shapes.SHAPES["tiny"], rows.read()[:50], tmp_path_factory.mktemp("shapes"))


@pytest.mark.parametrize("lora", [True, False])
def test_luthier_agrees_with_plain_hugging_face_on_the_bench_s_rows(tiny: Path, tmp_path: Path, lora: bool) -> None:
    prepared = rows.tokenize(rows.write_channel(tmp_path / "rows", 8), tiny, tmp_path / "cache")
    found = agreement.check(tiny, prepared, lora, prepared.split.train[:2].tolist())
    assert found.gradient <= agreement.LIMIT
    assert found.tensors == (28 if lora else 20)


def test_more_rows_than_there_are_repeat_with_a_counter(tmp_path: Path) -> None:
    count = len(rows.read()) + 2
    channel = rows.write_channel(tmp_path / "rows", count)
    pairs = rows.write_pairs(channel, tmp_path / "pairs.jsonl")
    prompts = [json.loads(line)["prompt"] for line in pairs.read_text().splitlines()]
    assert len(set(prompts)) == count
    assert f"### Instruction:\n{count - 1}. " in prompts[-1]


def test_peers_get_the_ids_that_luthier_made(tiny: Path, tmp_path: Path) -> None:
    prepared = rows.tokenize(rows.write_channel(tmp_path / "rows", 3), tiny, tmp_path / "cache")
    lines = [json.loads(line) for line in rows.write_ids(prepared, tmp_path / "ids", False).read_text().splitlines()]
    ids, trained = prepared.tokens.row(0)
    assert lines[0]["input_ids"] == ids.tolist()
    assert sum(label != -100 for line in lines for label in line["labels"]) == prepared.tokens.trained_counts.sum()
    pair = json.loads(rows.write_ids(prepared, tmp_path / "pairs", True).read_text().splitlines()[0])
    assert pair["input_ids"] + pair["labels"] == ids.tolist()
    assert len(pair["labels"]) == trained.sum()


HELD = """
from bench.field.gate import Gate, versions
from bench.field.line import Line
gate = Gate(Line(), lambda: versions(("torch", "nobody-has-this")))
for step in range(3):
    gate.count(10 * (step + 1), 4)
    gate.count(1, 1)
    gate.hold(float(step))
"""


def test_a_held_trainer_says_what_the_step_was_given_and_nothing_of_the_one_before_the_first(tmp_path: Path) -> None:
    command = (sys.executable, "-c", HELD)
    entry = Entry("held", command, {**os.environ, "PYTHONPATH": str(ROOT)}, ROOT, tmp_path / "held.log")
    (found,) = race([entry], 2, 0, 1e12, lambda _: None)
    assert set(found.facts) == {"threads", "torch"}
    assert [(step.tokens, step.completion_tokens, step.loss) for step in found.steps] == [(21, 5, 1.0), (31, 5, 2.0)]


@pytest.fixture
def case(tiny: Path, tmp_path: Path) -> dict[str, Any]:
    prepared = rows.tokenize(rows.write_channel(tmp_path / "rows", 3), tiny, tmp_path / "cache")
    ids = rows.write_ids(prepared, tmp_path / "ids", False)
    return {"work": str(tmp_path), "model": str(tiny), "method": "lora", "rows": 4, "tokens": 1024, "ids": str(ids)}


def test_torchtune_keeps_its_own_config_but_for_what_the_bench_names(case: dict[str, Any]) -> None:
    config = json.loads((Path(case["model"]) / "config.json").read_text())
    shipped = torchtune_run.changes(case | {"style": "torchtune-shipped"}, config, 300)
    assert not {"compile", "enable_activation_checkpointing", "optimizer", "loss", "dtype"} & set(shipped)
    assert (shipped["batch_size"], shipped["dataset"]["packed"]) == (4, False)
    assert (shipped["model"]["_component_"], shipped["model"]["lora_rank"]) == (
        "torchtune.models.llama3_2.lora_llama3_2", 16,
    )  # fmt: skip
    tuned = torchtune_run.changes(case | {"style": "torchtune-tuned", "method": "full", "tokens": 2048}, config, 300)
    assert (tuned["batch_size"], tuned["tokenizer"]["max_seq_len"], tuned["dataset"]["packed"]) == (2, 1024, True)
    assert "lora_rank" not in tuned["model"]
    narrow = torchtune_run.changes(case | {"style": "torchtune-tuned", "tokens": 256}, config, 300)
    assert (narrow["batch_size"], narrow["tokenizer"]["max_seq_len"]) == (1, 300)  # a pack holds the longest row


class Counter(gate.Gate):
    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self.held: list[float] = []

    def count(self, tokens: int, completion_tokens: int) -> None:
        self.seen.append((tokens, completion_tokens))

    def hold(self, loss: float) -> None:
        self.held.append(loss)


def test_torchtune_s_padding_counts_for_nothing(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter()
    monkeypatch.setattr(torchtune_run, "gate", lambda: counter)
    data = torchtune_run.dataset(torchtune_run.Tokens(1, 1024), case["ids"], packed=False)
    first = torchtune_run.read(Path(case["ids"]))[0]
    assert data[0] == {"tokens": first["input_ids"], "labels": first["labels"]}
    assert counter.seen == [(len(first["input_ids"]), sum(label != -100 for label in first["labels"]))]
    torchtune_run.Counted([{"tokens": torch.tensor([5, 6, 1, 1]), "labels": torch.tensor([-100, 6, -100, -100])}], 1)[0]
    assert counter.seen[1] == (2, 1)


def test_litgpt_is_counted_as_it_takes_rows_and_held_where_a_step_ends(case: dict[str, Any]) -> None:
    counter = Counter()
    data = litgpt_run.Rows(Path(case["ids"]), lambda items: {"count": len(items)}, counter)
    data.connect(batch_size=2)
    assert [batch["count"] for batch in data.train_dataloader()] == [2, 1]
    lengths = [len(row["input_ids"]) for row in torchtune_run.read(Path(case["ids"]))]
    assert sorted(tokens for tokens, _ in counter.seen) == sorted(lengths)
    assert [batch["count"] for batch in data.val_dataloader()] == [1]
    assert len(counter.seen) == 3  # what it validates on is no part of a step
    logger = litgpt_run.Logger(counter)
    for metrics in ({"loss": 3.0, "step": 0}, {"loss": 2.0, "step": 1}, {"samples": 5.0}, {"loss": 1.0, "step": 1}):
        logger.log_metrics(metrics)
    assert counter.held == [2.0]


def test_what_a_peer_has_no_model_for_is_said() -> None:
    qwen = {**shapes.SHAPES["0.5b"].config}
    assert torchtune_run.model(qwen, lora=True)["_component_"] == "torchtune.models.qwen2.lora_qwen2"
    assert litgpt_run.described(qwen)["attn_bias"] is True
    for describe in (lambda config: torchtune_run.model(config, lora=False), litgpt_run.described):
        with pytest.raises(ValueError, match="of type gpt_neox"):
            describe({"model_type": "gpt_neox"})


def test_the_list_of_peers_is_pinned() -> None:
    assert set(peers.known()) == {"trl", "hf", "torchtune", "litgpt"} == set(train.RUNNERS)
    with pytest.raises(ValueError, match="'trl>=1': expected NAME==VERSION"):
        peers.read("[.venv-peers: trl]\ntrl>=1")


def test_a_peer_that_cannot_be_installed_is_named_with_pip_s_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tmp_path / "peers.txt"
    wanted.write_text("[.venv-none: nobody]\nnobody-has-this==1.0\n")
    monkeypatch.setattr(peers, "LIST", wanted)
    monkeypatch.setattr(peers, "ROOT", tmp_path)
    monkeypatch.setenv("LUTHIER_PIP_ARGS", "--no-index")
    said: list[str] = []
    there, missing = peers.make(["nobody"], said.append)
    assert not there
    assert "No matching distribution" in missing["nobody"]
    assert any("nobody is left out" in line for line in said)


def test_the_command_line() -> None:
    run_options = options.parse(["--peers", "trl", "--shape", "tiny,135m", "--method", "lora", "--threads", "1"],
                          shapes.SHAPES, "")  # fmt: skip
    assert (run_options.peers, run_options.shapes, run_options.methods, run_options.steps) == (
        ("trl",),
        ("tiny", "135m"),
        ("lora",),
        8,
    )
    assert run_options.environment()["OMP_NUM_THREADS"] == "1"
    assert options.parse(["--peers", "none"], shapes.SHAPES, "").peers == ()
    assert options.parse([], shapes.SHAPES, "").peers == peers.known()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--peers", "tlr"], "--peers tlr: expected trl, hf"),
        (["--shape", "7b"], "--shape 7b: expected tiny"),
        (["--steps", "0"], "--steps 0: expected at least 1"),
    ],
)
def test_the_command_line_refuses(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options.parse(arguments, shapes.SHAPES, "")
    assert says in capsys.readouterr().err


def test_all_but_the_peers_as_shipped_run_with_the_allocator_that_luthier_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(options, "preload", lambda _: {"LD_PRELOAD": "/lib/tcmalloc.so"})
    run_options = options.parse([], shapes.SHAPES, "")
    assert run_options.environment()["LD_PRELOAD"] == "/lib/tcmalloc.so"
    assert run_options.environment(shipped=True).get("LD_PRELOAD") == os.environ.get("LD_PRELOAD")
