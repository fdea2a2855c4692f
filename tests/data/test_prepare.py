"""The data room as a whole: what the issue's section on data asks for, sentence by sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.row_files import Preparing, write_jsonl, write_template
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.data import build, records
from luthier.data import prepare as prepare_module
from luthier.data.prepare import Dataset, DataSettings, prepare
from luthier.data.tokenize import Tokenizer
from luthier.errors import DataError, UserError

GSM8K = Path(__file__).parent.parent / "samples" / "gsm8k"
ROWS = [{"q": f"How many eggs are {number}?", "a": f"{number} eggs"} for number in range(10)]
DOLLY = [{"instruction": f"Name {number}", "context": "", "response": "ok", "category": "x"} for number in range(10)]


def qa(folder: Path, rows: Any = ROWS, name: str = "a.jsonl") -> Path:
    write_template(folder, "{q}\n", "{a}")
    write_jsonl(folder / name, rows)
    return folder


def refusal(call: Preparing, *arguments: Any, **settings_: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        call(*arguments, **settings_)
    return str(caught.value).splitlines()


def ledger_of(prepared: Dataset, folder: Path) -> list[dict[str, Any]]:
    prepared.write_ledger(folder / "ledger.jsonl")
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text("utf-8").splitlines()]


def test_files_are_read_in_sorted_order(preparing: Preparing, tmp_path: Path) -> None:
    data = qa(tmp_path / "data", ROWS[:2], "b.jsonl")
    write_jsonl(data / "a.jsonl", ROWS[2:4])
    write_jsonl(data / "c.jsonl", ROWS[4:5])
    prepared = preparing(data)
    assert prepared.kind == "instruction"
    assert prepared.template_origin == "template.json"
    assert list(prepared.table.names(np.arange(5))) == [
        "training/a.jsonl:1", "training/a.jsonl:2", "training/b.jsonl:1", "training/b.jsonl:2", "training/c.jsonl:1",
    ]  # fmt: skip


def test_the_validation_folder_takes_the_training_template(preparing: Preparing, tmp_path: Path) -> None:
    training = qa(tmp_path / "train")
    write_jsonl(tmp_path / "validation" / "v.jsonl", ROWS[:3])
    prepared = preparing(training, tmp_path / "validation")
    assert prepared.split.supplied == {"validation"}
    assert (len(prepared.split.train), len(prepared.split.validation)) == (10, 3)
    assert [example.source for example in prepared.examples(prepared.split.validation)] == [
        "v.jsonl:1", "v.jsonl:2", "v.jsonl:3",
    ]  # fmt: skip
    assert prepared.counts.by_channel["validation"].rows == 3


@pytest.mark.parametrize("name", ["train", "training"])
def test_a_template_next_to_the_folders(preparing: Preparing, tmp_path: Path, name: str) -> None:
    write_jsonl(tmp_path / name / "a.jsonl", ROWS)
    write_template(tmp_path, "{q}", "{a}")
    assert preparing(tmp_path / name).template_origin == "template.json"


def test_a_template_next_to_a_folder_of_another_name_is_not_meant(preparing: Preparing, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "mine" / "a.jsonl", ROWS)
    write_template(tmp_path, "{q}", "{a}")
    assert "no template.json" in refusal(preparing, tmp_path / "mine")[0]


def test_two_templates_that_differ_are_refused(preparing: Preparing, tmp_path: Path) -> None:
    data = qa(tmp_path / "train")
    write_template(tmp_path, "{q}!", "{a}")
    assert "differ; keep one of them" in refusal(preparing, data)[0]
    write_template(tmp_path, "{q}\n", "{a}")
    assert preparing(data).kind == "instruction"


def test_the_template_beside_a_single_file(preparing: Preparing, tmp_path: Path) -> None:
    data = qa(tmp_path / "data")
    prepared = preparing(data / "a.jsonl")
    assert prepared.counts.rows == 10
    assert prepared.template_origin == "template.json"


def test_default_template_when_its_fields_are_in_every_row(preparing: Preparing, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data" / "a.jsonl", DOLLY)
    prepared = preparing(tmp_path / "data", default_template=("{prompt}", "{completion}"))
    assert prepared.template_origin == "the documented default template"
    example = next(prepared.examples(np.array([0])))
    assert example.prompt.endswith("### Input:\n\n\n### Response:\n")
    assert preparing(tmp_path / "data", demarcation=False).template != prepared.template


def test_the_family_template_when_the_default_does_not_fit(preparing: Preparing, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data" / "a.jsonl", [{"prompt": "p", "completion": "c"}] * 5)
    prepared = preparing(tmp_path / "data", default_template=("{prompt}", "{completion}"))
    assert prepared.template_origin == "the model family's template"
    mixed = [*DOLLY, {"prompt": "p", "completion": "c"}]
    write_jsonl(tmp_path / "data" / "a.jsonl", mixed)
    lines = refusal(preparing, tmp_path / "data", default_template=("{prompt}", "{completion}"))
    assert len(lines) == 1
    assert "'instruction', 'context', 'response'" in lines[0]
    assert "the model family's template needs 'prompt', 'completion'" in lines[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"q": "x"}, "a.jsonl:3: the row lacks 'a', which the template needs; it has 'q'"),
        ({"q": "x", "A": "y"}, "it has 'A' (keys are case-sensitive)"),
        (
            {"q": "x", "messages": [{"role": "user", "content": "x"}]},
            "a conversation; give --kind chat (chat rows take no template.json)",
        ),
        ({"q": "x", "a": None}, "a.jsonl:3: 'a' is null"),
        ({"q": "x", "a": ["y"]}, "a.jsonl:3: 'a' is a list"),
        ({"q": {"x": 1}, "a": "y"}, "a.jsonl:3: 'q' is an object"),
    ],
)
def test_a_row_that_does_not_fit_refuses_the_job(
    preparing: Preparing, tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    data = qa(tmp_path / "data", [*ROWS[:2], row, *ROWS[2:]])
    lines = refusal(preparing, data)
    assert len(lines) == 1
    assert message in lines[0]


def test_problems_are_counted_first_of_each_kind_and_bounded(preparing: Preparing, tmp_path: Path) -> None:
    data = qa(tmp_path / "data", [ROWS[0], {"q": "x"}, {"q": "x"}, {"q": None, "a": "y"}, {"q": "z"}])
    assert refusal(preparing, data) == [
        "a.jsonl:2: the row lacks 'a', which the template needs; it has 'q' (and 2 more such rows)",
        "a.jsonl:4: 'q' is null; give text, or remove the row",
    ]
    for number in range(30):
        write_jsonl(data / f"b{number:02}.jsonl", [{"q": "x"}])
    lines = refusal(preparing, data)
    assert len(lines) == 21
    assert lines[-1] == "and 12 more problems"


def test_numbers_and_booleans_are_inserted_as_written(preparing: Preparing, tmp_path: Path) -> None:
    data = qa(tmp_path / "data")
    (data / "a.jsonl").write_text('{"q": 1.50, "a": true}\n{"q": "None", "a": 12345678901234567890}\n')
    examples = list(preparing(data, validation_split_ratio=0.0).examples(np.array([0, 1])))
    assert [example.completion for example in examples] == ["true", "12345678901234567890"]
    assert examples[0].prompt.startswith("1.50\n")


def test_what_is_not_read_is_said_by_name(preparing: Preparing, tmp_path: Path) -> None:
    data = qa(tmp_path / "data")
    (data / ".DS_Store").write_bytes(b"x")
    (data / "notes.md").write_text("x")
    (data / "raw").mkdir()
    (data / "a.jsonl").write_text((data / "a.jsonl").read_text() + "\n")
    warnings = preparing(data).warnings
    assert "training channel: not read: .DS_Store, notes.md, raw/" in warnings
    assert "a.jsonl: 1 empty line skipped" in warnings


@pytest.mark.parametrize("name", ["b.jsonl", "template.json", "notes.txt"])
def test_links_that_leave_the_folder_are_refused(preparing: Preparing, tmp_path: Path, name: str) -> None:
    data = qa(tmp_path / "data")
    outside = write_jsonl(tmp_path / "outside.jsonl", ROWS)
    (data / name).unlink(missing_ok=True)
    (data / name).symlink_to(outside)
    assert f"{name}: link to outside of the training channel" in refusal(preparing, data)[0]


def test_the_channel_itself_and_links_inside_may_be_links(preparing: Preparing, tmp_path: Path) -> None:
    data = qa(tmp_path / "data")
    (data / "b.jsonl").symlink_to("a.jsonl")
    (tmp_path / "link").symlink_to(data)
    assert preparing(tmp_path / "link").counts.rows == 20


def test_a_dangling_link_and_an_empty_folder(preparing: Preparing, tmp_path: Path) -> None:
    data = qa(tmp_path / "data")
    (data / "b.jsonl").symlink_to("nowhere")
    assert "broken link" in refusal(preparing, data)[0]
    (tmp_path / "empty").mkdir()
    assert "contains no .jsonl" in refusal(preparing, tmp_path / "empty")[0]
    assert "neither a file nor a folder" in refusal(preparing, tmp_path / "missing")[0]


def test_mixed_formats_are_refused(preparing: Preparing, tmp_path: Path) -> None:
    data = qa(tmp_path / "data")
    (data / "b.csv").write_text("input,output\na,b\n")
    assert "mixes .csv and .jsonl" in refusal(preparing, data)[0]
    assert refusal(preparing, data, kind="chat") == ["b.csv: chat data must be in .jsonl or .json or .parquet files"]


def test_no_rows_at_all(preparing: Preparing, tmp_path: Path) -> None:
    data = qa(tmp_path / "data", [])
    assert refusal(preparing, data) == ["the channels contain no rows"]


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_one_to_four_rows_are_accepted(preparing: Preparing, tmp_path: Path, rows: int) -> None:
    prepared = preparing(qa(tmp_path / "data", ROWS[:rows]))
    assert len(prepared.split.train) == rows
    assert any("no validation rows" in warning for warning in prepared.warnings)


def test_truncated_and_dropped_rows_are_in_the_ledger(
    preparing: Preparing, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    rows = [
        {"q": "x", "a": "y"},
        {"q": "x", "a": "abc " * 100},
        {"q": "abc " * 100, "a": "y"},
        {"q": "x", "a": " \n"},
    ]
    prepared = preparing(qa(tmp_path / "data", rows), max_input_length=40, validation_split_ratio=0.0)
    ledger = ledger_of(prepared, tmp_path)
    assert [line["fate"] for line in ledger] == ["kept", "truncated", "dropped", "dropped"]
    full = 10_000
    whole = preparing(tmp_path / "data", max_input_length=full, validation_split_ratio=0.0)
    whole_lengths = [line["tokens"] for line in ledger_of(whole, tmp_path)]
    assert ledger[1] == {
        "row": "training/a.jsonl:2", "file": "a.jsonl", "line": 2, "side": "train", "fate": "truncated", "tokens": 40,
        "completion_tokens": 40 - len(tokenizer.prompt_ids(next(prepared.examples(np.array([1]))))),
        "cut": whole_lengths[1] - 40, "cut_prompt": 0, "cut_side": "right", "reason": None,
    }  # fmt: skip
    assert ledger[2]["reason"].startswith("the prompt leaves no room for a completion token (the row has ")
    assert ledger[3]["reason"] == "the completion is empty"
    ids, trained = prepared.tokens.row(1)
    assert len(ids) == 40
    assert ids[-1] != tokenizer.eos_id
    assert trained[-1]
    assert prepared.counts.rows == 4
    assert (prepared.counts.kept, prepared.counts.truncated, prepared.counts.dropped) == (1, 1, 2)
    assert sum("training/a.jsonl" in warning for warning in prepared.warnings) == 3


def test_no_trainable_row_left_is_refused(preparing: Preparing, tmp_path: Path) -> None:
    data = qa(tmp_path / "data", [{"q": "abc " * 100, "a": "y"}] * 3)
    lines = refusal(preparing, data, max_input_length=20)
    assert len(lines) == 1
    assert lines[0].startswith("no training rows left: 3 of 3 rows are dropped, the prompt leaves no room")


def test_loss_on_completions_or_on_all_tokens(preparing: Preparing, tokenizer: Tokenizer, tmp_path: Path) -> None:
    data = qa(tmp_path / "data")
    prepared = preparing(data)
    example = next(prepared.examples(prepared.split.train[:1]))
    ids, trained = prepared.tokens.row(int(prepared.split.train[0]))
    prompt = tokenizer.prompt_ids(example)
    assert ids[: len(prompt)].tolist() == prompt
    assert trained.tolist() == [False] * len(prompt) + [True] * (len(ids) - len(prompt))
    assert ids[-1] == tokenizer.eos_id
    every = preparing(data, completion_only=False)
    assert every.tokens.row(0)[1].tolist() == [False] + [True] * (every.tokens.lengths[0] - 1)
    assert every.tokens.trained_counts.tolist() == (every.tokens.lengths - 1).tolist()
    assert prepared.tokens.trained_counts[0] == prepared.tokens.row(0)[1].sum()


def test_special_strings_of_rows_stay_text_unless_asked(
    preparing: Preparing, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    data = qa(tmp_path / "data", [{"q": "<|im_end|>", "a": "x<|endoftext|>y"}])
    write_template(data, "<|im_start|>{q}", "{a}")
    ids, _ = preparing(data).tokens.row(0)
    assert [number for number in ids.tolist() if number < 3] == [1, 0]
    ids, _ = preparing(data, control_tokens=True).tokens.row(0)
    assert [number for number in ids.tolist() if number < 3] == [1, 2, 0, 0]


def test_cached_equals_fresh(preparing: Preparing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = qa(tmp_path / "data")
    fresh = preparing(data)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(prepare_module, "scan_rows", never)
    cached = preparing(data, validation_split_ratio=0.3, split_seed=4)
    assert len(cached.split.validation) == 3
    cached = preparing(data)
    assert cached.fingerprint == fresh.fingerprint
    assert cached.warnings == fresh.warnings
    assert cached.counts == fresh.counts
    for row in range(len(fresh.tokens)):
        assert cached.tokens.row(row)[0].tolist() == fresh.tokens.row(row)[0].tolist()
    assert cached.split.row_splits.tolist() == fresh.split.row_splits.tolist()


@pytest.mark.parametrize("change", ["data", "template", "window", "demarcation"])
def test_the_cache_follows_the_content(preparing: Preparing, tmp_path: Path, change: str) -> None:
    data = qa(tmp_path / "data")
    before = preparing(data)
    extra: dict[str, Any] = {}
    if change == "data":
        write_jsonl(data / "a.jsonl", [*ROWS[:-1], {"q": "other", "a": "words"}])
    elif change == "template":
        write_template(data, "Q {q}\n", "{a}")
    else:
        extra = {"max_input_length": 30} if change == "window" else {"demarcation": False}
    after = preparing(data, **extra)
    assert after.fingerprint != before.fingerprint
    assert after.tokens.folder != before.tokens.folder


def test_few_rows_are_parsed_once_and_many_twice(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the store is the same byte for byte."""
    rows = [{"instruction": f"do {number}", "context": "", "response": "x " * number} for number in range(1, 1300)]
    write_jsonl(tmp_path / "rows" / "a.jsonl", rows[:700])
    write_jsonl(tmp_path / "rows" / "b.jsonl", rows[700:])
    parsed = 0

    def counting(text: str) -> dict[str, Any]:
        nonlocal parsed
        parsed += 1
        return whole(text)

    whole = records.parse_object
    monkeypatch.setattr(records, "parse_object", counting)
    stores = []
    for held, times in ((build._MAX_HELD_BYTES, 1), (100, 2)):
        monkeypatch.setattr(build, "_MAX_HELD_BYTES", held)
        parsed = 0
        tokens = prepare({"training": tmp_path / "rows"}, DataSettings(), tokenizer, tmp_path / f"cache{times}").tokens
        assert times * len(rows) <= parsed < times * len(rows) + 10  # a few to tell what kind of rows they are
        stores.append({file.name: file.read_bytes() for file in tokens.folder.iterdir() if file.suffix != ".json"})
    assert stores[0] == stores[1]
    assert "ids.bin" in stores[0]


@pytest.mark.parametrize("damage", ["torn", "changed", "meta"])
def test_a_damaged_cache_is_built_again(preparing: Preparing, tmp_path: Path, damage: str) -> None:
    data = qa(tmp_path / "data")
    before = preparing(data)
    wanted = [before.tokens.row(row)[0].tolist() for row in range(len(before.tokens))]
    folder = next(path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    file = folder / ("meta.json" if damage == "meta" else "ids.bin")
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.unlink()
    file.write_bytes(content if damage == "changed" else content[: len(content) // 2])
    after = preparing(data)
    assert [after.tokens.row(row)[0].tolist() for row in range(len(after.tokens))] == wanted


def test_examples_come_in_the_order_asked_for(preparing: Preparing, tmp_path: Path) -> None:
    data = qa(tmp_path / "data", ROWS[:6])
    write_jsonl(data / "b.jsonl", ROWS[6:])
    prepared = preparing(data)
    order = np.array([9, 0, 4, 4, 7, 1])
    found = [example.completion for example in prepared.examples(order)]
    assert found == [ROWS[index]["a"] for index in order]
    assert list(prepared.examples(np.array([], np.int64))) == []


def test_files_that_change_afterwards_are_noticed(preparing: Preparing, tmp_path: Path) -> None:
    data = qa(tmp_path / "data")
    prepared = preparing(data)
    write_jsonl(data / "a.jsonl", ROWS[:2])
    with pytest.raises(DataError, match="have changed"):
        list(prepared.examples(prepared.split.train))


def test_a_cache_that_cannot_be_written_is_said(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set LUTHIER_CACHE"):
        prepare({"training": qa(tmp_path / "data")}, DataSettings(), tokenizer, tmp_path / "file" / "cache")


def test_duplicates_across_supplied_splits_are_reported(preparing: Preparing, tmp_path: Path) -> None:
    data = qa(tmp_path / "train")
    long = "The quick brown fox jumps over the lazy dog and the cat sleeps by the fire while 12 hens count eggs"
    write_jsonl(data / "b.jsonl", [{"q": long, "a": "yes"}])
    near = {"q": long.replace("12", "17").upper(), "a": "Yes"}
    write_jsonl(tmp_path / "v" / "v.jsonl", [ROWS[3], near, {"q": "new", "a": "n"}])
    said = preparing(data, tmp_path / "v").warnings
    assert any("1 held-out row has an exact duplicate" in line and "validation/v.jsonl:1" in line for line in said)
    assert any("1 held-out row has a near-duplicate" in line and "training/b.jsonl:1" in line for line in said)


def test_near_duplicates_are_grouped_on_request(preparing: Preparing, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    words = [f"w{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(300)]
    rows = []
    for _ in range(40):
        text = " ".join(draw.choice(words, 40))
        rows += [{"q": text, "a": "1"}, {"q": text + " more", "a": "2"}]
    data = qa(tmp_path / "data", rows)
    assert any("near-duplicate" in said for said in preparing(data).warnings)
    grouped = preparing(data, group_near_duplicates=True)
    assert not any("near-duplicate" in said for said in grouped.warnings)
    assert len(grouped.split.validation) == 16
    assert all(grouped.split.row_splits[row] == grouped.split.row_splits[row + 1] for row in range(0, 80, 2))


def test_long_lines_and_long_words_survive(preparing: Preparing, tmp_path: Path) -> None:
    rows = [*ROWS, {"q": "x", "a": "z" * 100_000}, {"q": "y", "a": "word " * 400_000}]
    prepared = preparing(qa(tmp_path / "data", rows), max_input_length=100)
    assert prepared.counts.truncated == 2


def test_window_limits_are_said(preparing: Preparing, tmp_path: Path) -> None:
    data = qa(tmp_path / "data")
    assert preparing(data).max_length == 1024
    assert preparing(data, context_length=512).max_length == 512
    capped = preparing(data, max_input_length=5000)
    assert capped.max_length == 2048
    assert "max_input_length=5000 is above the tokenizer's limit; using 2048" in capped.warnings


FIELD = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(FIELD, FIELD), min_size=1, max_size=25),
    window=st.integers(4, 80),
    sample=st.sampled_from([-1, 1, 3]),
    test=st.sampled_from([0.0, 0.2]),
)
def test_the_ledger_has_each_row_once_and_loses_no_token(
    tokenizer: Tokenizer, tmp_path: Path, rows: list[tuple[str, str]], window: int, sample: int, test: float
) -> None:
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    data = qa(tmp_path / "data", [{"q": q, "a": a} for q, a in rows])
    chosen = DataSettings(max_input_length=window, max_samples=(sample, sample, sample), test_split_ratio=test)
    try:
        prepared = prepare({"training": data}, chosen, tokenizer, tmp_path / "cache")
    except DataError as error:
        assert "no training rows left" in str(error)  # noqa: PT017
        return
    ledger = ledger_of(prepared, tmp_path)
    assert [line["row"] for line in ledger] == [f"training/a.jsonl:{number}" for number in range(1, len(rows) + 1)]
    splits = {"train": prepared.split.train, "validation": prepared.split.validation, "test": prepared.split.test}
    for name, indices in splits.items():
        assert sorted(indices) == indices.tolist()
        lines = [line for line in ledger if line["side"] == name]
        assert [line["tokens"] for line in lines] == prepared.tokens.lengths[indices].tolist()
        assert [line["completion_tokens"] for line in lines] == prepared.tokens.trained_counts[indices].tolist()
        assert all(line["tokens"] <= window and line["completion_tokens"] > 0 for line in lines)
    for line, (question, answer) in zip(ledger, rows, strict=True):
        assert (line["fate"] == "dropped") == (line["side"] is None) == (line["reason"] is not None)
        assert (line["fate"] == "truncated") == (line["cut"] > 0) == (line["cut_side"] == "right")
        if line["fate"] != "dropped":
            example = prepared.template.render({"q": question, "a": answer}) if prepared.template else None
            assert example is not None
            assert line["tokens"] + line["cut"] == len(tokenizer.encode_examples([example])[0][0])
    counts = prepared.counts
    assert counts.rows == counts.kept + counts.truncated + counts.dropped == len(rows)
    assert counts.tokens == sum(line["tokens"] for line in ledger)


def test_gsm8k(preparing: Preparing) -> None:
    found = sorted(path.name for path in GSM8K.iterdir())
    training = GSM8K / ("train" if "train" in found else "training")
    prepared = preparing(training, GSM8K / "validation")
    assert prepared.kind == "instruction"
    assert prepared.counts.dropped == 0
    assert prepared.template_origin == "template.json"


def test_nothing_is_left_beside_the_cache(preparing: Preparing, tmp_path: Path) -> None:
    preparing(qa(tmp_path / "data"))
    assert not list((tmp_path / "cache").glob(".*"))


def test_bad_utf8_names_file_and_line(preparing: Preparing, tmp_path: Path) -> None:
    data = qa(tmp_path / "data")
    (data / "a.jsonl").write_bytes(b'{"q": "1", "a": "2"}\n{"q": "\xe9", "a": "2"}\n')
    assert refusal(preparing, data)[0].startswith("a.jsonl:2: not UTF-8: 0xe9")


def test_a_run_of_0_3_resumes_on_its_data(tokenizer_folder: Path, tmp_path: Path) -> None:
    """A checkpoint resumes under the same data fingerprint only: this is what 0.3 recorded for these rows."""
    tokenizer = Tokenizer.load(tokenizer_folder)
    tokenizer.fingerprint = "a tokenizer"
    settings_ = DataSettings(kind="autopilot", context_length=512)
    prepared = prepare({"training": GSM8K.parent / "autopilot_csv"}, settings_, tokenizer, tmp_path)
    assert prepared.fingerprint == "61c5bf8b4b833575c485f7c3ab923234608f9125be2c4ec7bfbfeed974916ad1"


def test_sample_limits_are_in_the_fingerprint_by_their_own_names() -> None:
    """As in 0.3, whose runs are resumed only if the fingerprint stays."""
    assert prepare_module._changed_settings(DataSettings(max_samples=(5, -1, -1))) == {"max_train_samples": 5}
    changed = prepare_module._changed_settings(DataSettings(max_samples=(-1, 6, 7), split_seed=1))
    assert changed == {"split_seed": 1, "max_val_samples": 6, "max_test_samples": 7}
