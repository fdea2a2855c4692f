"""The ids of a base model's own tokenizer files, whatever class transformers makes of them."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from data.row_files import write_jsonl, write_template
from data.small_tokenizers import TEXTS, metaspace_tokenizer
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from luthier.data.example import Example, Piece
from luthier.data.prepare import prepare
from luthier.data.settings import DataSettings
from luthier.data.tokenize import Tokenizer
from luthier.data.tokenizer_files import PROBES, read_tokenizer
from luthier.data.tokens import id_type
from luthier.errors import DataError, ModelNotFoundError, UserError
from luthier.serving.detokenizer import Detokenizer

CORPUS = [*TEXTS, *PROBES, "\n\n1. one\n\n2. two 12 123 1234"] * 4


def byte_level(folder: Path, kind: str, *, digits: bool = False, added: tuple[AddedToken, ...] = ()) -> Path:
    """Write a byte-level BPE in the layout of `kind`; `digits`: digits are words of their own, as in SmolLM2."""
    backend = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = words
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(CORPUS, trainer)
    if digits:
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    backend.add_tokens(list(added))
    return save(backend, folder, kind)


def save(backend: tokenizers.Tokenizer, folder: Path, kind: str, **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    stored = {"tokenizer_class": kind, "eos_token": "<|endoftext|>"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(stored))
    return folder


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode([Piece(text, False)])


def check_against_file(folder: Path) -> Tokenizer:
    """Every probe has the ids that tokenizer.json gives."""
    reference, ours = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), Tokenizer.load(folder)
    for text in PROBES:
        assert ids(ours, text) == reference.encode(text, add_special_tokens=False).ids, text
    return ours


@pytest.mark.parametrize(
    ("kind", "digits"),
    [("GPT2Tokenizer", True), ("GPTNeoXTokenizer", True), ("CodeGenTokenizer", True), ("Qwen2Tokenizer", False)],
)
def test_digits_are_split_as_the_file_says(tmp_path: Path, kind: str, digits: bool) -> None:
    folder = byte_level(tmp_path, kind, digits=digits)
    auto = AutoTokenizer.from_pretrained(folder)  # its class has a rule of its own
    assert (len(ids(Tokenizer.load(folder), "1234")) == 4) == digits
    assert (len(auto("1234", add_special_tokens=False)["input_ids"]) == 4) != digits
    note = check_against_file(folder).notes[0]
    assert f"transformers' {type(auto).__name__} give different ids" in note
    assert "using tokenizer.json" in note


def test_the_normalizer_is_the_files(tmp_path: Path) -> None:
    folder = byte_level(tmp_path, "GPT2Tokenizer")
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.normalizer = normalizers.Lowercase()
    save(backend, folder, "GPT2Tokenizer")
    assert ids(check_against_file(folder), "THE CAT") == ids(Tokenizer.load(folder), "the cat")


def test_a_llama_keeps_its_space_before_a_text(tmp_path: Path) -> None:
    folder = metaspace_tokenizer(tmp_path, "always")
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    save(backend, folder, "LlamaTokenizer", bos_token="<s>", eos_token="</s>", add_bos_token=True)
    ours = check_against_file(folder)
    assert ours.prefix_ids == [1]
    assert ours.prompt_ids(Example("", (Piece("the cat", False),)))[0] == 1


def test_a_file_that_transformers_reads_alike_needs_no_note(tmp_path: Path) -> None:
    assert check_against_file(byte_level(tmp_path, "PreTrainedTokenizerFast", digits=True)).notes == []


def test_roles_known_only_to_the_class_are_kept(tmp_path: Path) -> None:
    folder = byte_level(tmp_path, "GPT2Tokenizer")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    ours = Tokenizer.load(folder)
    assert ours.show([ours.eos_id]) == "<|endoftext|>"


def test_added_tokens_decode_as_written(tmp_path: Path) -> None:
    added = tuple(AddedToken(text, normalized=False) for text in ("ü", "Ġx", "日本", "naïve"))
    ours = check_against_file(byte_level(tmp_path, "PreTrainedTokenizerFast", added=added))
    for text in ("ü", "füür", "a 日本 b", "naïve, Ġx and é", "über 日本"):
        assert ours.decode(ids(ours, text)) == ours.show(ids(ours, text)) == text
        stream = Detokenizer(ours, (), live=True)
        assert "".join([*map(stream.append, ids(ours, text)), stream.finish()]) == text


def test_holes_in_the_vocabulary_widen_the_ids(tmp_path: Path) -> None:
    folder = byte_level(tmp_path, "PreTrainedTokenizerFast")
    stored = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = stored["model"]["vocab"]
    vocabulary["a"] = 70_000  # one entry less than before, and an id that uint16 cannot hold
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    before = Tokenizer.load(byte_level(tmp_path / "whole", "PreTrainedTokenizerFast"))
    ours = check_against_file(folder)
    assert ours.vocab_size == 70_001
    assert id_type(before.vocab_size) == "uint16"
    assert id_type(ours.vocab_size) == "uint32"


def test_an_id_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    folder = byte_level(tmp_path, "PreTrainedTokenizerFast", added=(AddedToken("<new>"),))
    ours = Tokenizer.load(folder)
    size = ours.vocab_size
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": size - 1}))
    ours = Tokenizer.load(folder)
    prompt = Example("", (Piece("a <new> b", False),))
    with pytest.raises(UserError, match=f"the token '<new>' has the id {size - 1}, but the model embeds"):
        ours.prompt_ids(prompt)
    assert ours.prompt_ids(Example("", (Piece("a b", False),)))


def test_an_end_of_text_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    folder = byte_level(tmp_path, "PreTrainedTokenizerFast", added=(AddedToken("<end>", special=True),))
    stored = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(stored | {"eos_token": "<end>"}))
    size = Tokenizer.load(folder).vocab_size
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": size - 1}))
    with pytest.raises(UserError, match="'<end>'"):
        Tokenizer.load(folder)


def test_a_folder_without_tokenizer_files(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"expected tokenizer\.json, vocab\.json"):
        read_tokenizer(tmp_path)


def sentencepiece_model(folder: Path, kind: str, name: str = "tokenizer.model") -> Path:
    """Train a SentencePiece model as Llama's: byte fallback, no normalization, white space kept."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.txt").write_text("\n".join(CORPUS), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "made"), model_type=kind, vocab_size=450,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        minloglevel=2, hard_vocab_limit=False, character_coverage=1.0, split_digits=True,
    )  # fmt: skip
    (folder / "made.model").rename(folder / name)
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral", "vocab_size": 500}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}
        )
    )
    return folder


def test_a_sentencepiece_model_gives_its_own_ids(tmp_path: Path) -> None:
    folder = sentencepiece_model(tmp_path, "bpe")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    auto = AutoTokenizer.from_pretrained(folder)  # leaves out the space before a text
    assert auto("the cat", add_special_tokens=False)["input_ids"] != reference.encode("the cat")
    ours = Tokenizer.load(folder)
    for text in (*PROBES, *CORPUS, "  two  spaces", "the    cat"):
        assert ids(ours, text) == reference.encode(text), text
        assert ours.decode(ids(ours, text)) == reference.decode(reference.encode(text)), text
    assert ours.prefix_ids == [reference.bos_id()]


def test_a_sentencepiece_model_that_is_converted_otherwise_is_refused(tmp_path: Path) -> None:
    folder = sentencepiece_model(tmp_path, "unigram")
    with pytest.raises(ModelNotFoundError, match=r"other ids than SentencePiece gives, for .* get the model"):
        Tokenizer.load(folder)


def test_a_sentencepiece_model_alone_says_what_it_lacks(tmp_path: Path) -> None:
    folder = sentencepiece_model(tmp_path, "bpe")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"expected tokenizer_config\.json beside tokenizer\.model"):
        Tokenizer.load(folder)


def test_a_row_with_an_id_beyond_the_embedding_is_named(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "model", "PreTrainedTokenizerFast", added=(AddedToken("<new>"),))
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "vocab_size": Tokenizer.load(folder).vocab_size - 1})
    )
    write_template(tmp_path / "rows", "{q}", "{a}")
    write_jsonl(tmp_path / "rows" / "rows.jsonl", [{"q": "a", "a": "b"}, {"q": "a <new>", "a": "b"}])
    settings = DataSettings(kind="instruction")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: the token '<new>' has the id"):
        prepare({"training": tmp_path / "rows"}, settings, Tokenizer.load(folder), tmp_path / "cache")


def test_the_date_of_a_chat_template_is_the_runs(tmp_path: Path) -> None:
    template = "{{ strftime_now('%d %B %Y') }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    folder = byte_level(tmp_path, "PreTrainedTokenizerFast")
    today, earlier = Tokenizer.load(folder, template), Tokenizer.load(folder, template, "2026-02-03")
    assert earlier.chat is not None
    assert earlier.chat.render([{"role": "user", "content": "hi"}]) == "03 February 2026hi<|endoftext|>"
    assert earlier.chat_date == "2026-02-03"
    assert today.chat_date == datetime.date.today().isoformat()
    assert today.fingerprint != earlier.fingerprint
    assert "2026-02-03" in earlier.notes[-1]
    assert Tokenizer.load(folder, template.replace("strftime_now", "lower")).chat_date is None
