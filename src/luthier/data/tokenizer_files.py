"""Reads a base model's tokenizer files as a transformers tokenizer whose ids are those of tokenizer.json.

    tokenizer.json                      its own normalizer, pre-tokenizer and model give the ids
    tokenizer_config.json, ...          chat template, roles of special tokens, BOS and EOS
    vocab.json and merges.txt           GPT-2's tokenizer
    tokenizer.model or spiece.model     converted, if the result tokenizes PROBES as SentencePiece itself does

transformers 5 builds named classes (LlamaTokenizer, GPT2Tokenizer, ...) from the vocabulary and keeps neither
normalizer nor pre-tokenizer of tokenizer.json, which llama.cpp, `tokenizers` and transformers 4 use.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from luthier.errors import ModelNotFoundError

_SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model")
PROBES = (
    "Hello World", " leading and  double spaces ", "\n\n1. First\n2. Second", "12345 and 3.14", "don't, I'll",
    "def f(x):\n\treturn x  # ok", "naïve café, ﬁrst", "日本語 中文 한국어", "😀👍🏽", "a/b-c_d@e.f", "\tTab", "A\r\nB",
)  # fmt: skip
_SPACE_MARK = "\u2581"  # SentencePiece writes a space so
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


def read_tokenizer(folder: Path) -> tuple[Any, str]:
    """Return the transformers tokenizer, and one line on how AutoTokenizer differs from it ("" if it does not).

    ModelNotFoundError when the folder holds no usable tokenizer.
    """
    try:
        if (folder / "tokenizer.json").exists():
            return _read_tokenizer_json(folder)
        if (folder / "merges.txt").exists():
            kind = AutoTokenizer if (folder / "config.json").exists() else GPT2Tokenizer
            return _from_pretrained(kind, folder), ""
        model = next((folder / name for name in _SENTENCEPIECE_FILES if (folder / name).exists()), None)
        if model is not None:
            return _convert_sentencepiece(model), ""
    except ModelNotFoundError:
        raise
    except Exception as error:  # transformers and tokenizers raise many types; the first line names what is missing
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelNotFoundError(f"{folder}: no usable tokenizer: {reason}") from None
    raise ModelNotFoundError(
        f"{folder}: no usable tokenizer: expected tokenizer.json, vocab.json with merges.txt, tokenizer.model or "
        "spiece.model; copy the tokenizer's files of the base model into the folder"
    )


def verbatim_tokens(backend: tokenizers.Tokenizer) -> dict[int, str]:
    """Return the added tokens whose text a byte-level decoder would take for bytes, as the vocabulary writes them."""
    if "ByteLevel" not in str(backend.decoder):
        return {}
    added = backend.get_added_tokens_decoder().items()
    return {
        number: token.content
        for number, token in added
        if backend.decode([number], skip_special_tokens=False) != token.content
    }


def _from_pretrained(kind: Any, folder: Path) -> Any:
    source = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if getattr(source, "backend_tokenizer", None) is None:
        raise ModelNotFoundError(f"{folder}: the tokenizer has no tokenizer.json; convert it with transformers")
    return source


def _read_tokenizer_json(folder: Path) -> tuple[Any, str]:
    """Load tokenizer.json as it is; roles that only the class named in tokenizer_config.json knows are kept."""
    auto = _from_pretrained(AutoTokenizer, folder)
    if type(auto) is PreTrainedTokenizerFast:
        return auto, ""
    source = _from_pretrained(PreTrainedTokenizerFast, folder)
    for role in _ROLES:
        token = getattr(auto, role)
        if getattr(source, role) is None and token and source.backend_tokenizer.token_to_id(token) is not None:
            setattr(source, role, token)
    if source.chat_template is None:
        source.chat_template = auto.chat_template
    differing = _differing(auto.backend_tokenizer, source.backend_tokenizer)
    if not differing:
        return source, ""
    return source, (
        f"tokenizer.json and transformers' {type(auto).__name__} give different ids for {len(differing)} of "
        f"{len(PROBES)} test texts, such as {differing[0]!r}; using tokenizer.json"
    )


def _differing(one: tokenizers.Tokenizer, other: tokenizers.Tokenizer) -> list[str]:
    return [
        text
        for text in PROBES
        if one.encode(text, add_special_tokens=False).ids != other.encode(text, add_special_tokens=False).ids
    ]


def _convert_sentencepiece(model: Path) -> Any:
    """Convert with transformers; refuse a result that gives other ids than SentencePiece."""
    try:
        sentencepiece = importlib.import_module("sentencepiece")
    except ImportError:
        raise ModelNotFoundError(
            f"{model.parent}: {model.name} without tokenizer.json requires the package sentencepiece: "
            "pip install 'luthier[sentencepiece]'"
        ) from None
    if not (model.parent / "tokenizer_config.json").exists():
        raise ModelNotFoundError(
            f"{model.parent}: expected tokenizer_config.json beside {model.name}: it says whether BOS and EOS are added"
        )
    reference = sentencepiece.SentencePieceProcessor(model_file=str(model))
    source = _from_pretrained(AutoTokenizer, model.parent)
    backend = source.backend_tokenizer
    differing = _differing_from(reference, backend)
    if differing and _restore(reference, backend):
        differing = _differing_from(reference, backend)
    if differing:
        raise ModelNotFoundError(
            f"{model}: transformers converts it to other ids than SentencePiece gives, for {len(differing)} of "
            f"{len(PROBES)} test texts, such as {differing[0]!r}; get the model's tokenizer.json"
        )
    return source


def _differing_from(reference: Any, backend: tokenizers.Tokenizer) -> list[str]:
    return [text for text in PROBES if backend.encode(text, add_special_tokens=False).ids != reference.encode(text)]


def _restore(reference: Any, backend: tokenizers.Tokenizer) -> bool:
    """Restore what transformers' conversion of a BPE model leaves out: the space before a text, and the order of
    merges, which is that of the pieces' scores. Return whether the model is of that kind.
    """
    stored = json.loads(backend.to_str())
    steps = (stored["normalizer"] or {}).get("normalizers", [])
    if stored["model"]["type"] != "BPE" or stored["pre_tokenizer"] is not None or len(steps) != 1:
        return False
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE_MARK), normalizers.Replace(" ", _SPACE_MARK)])
    backend.decoder = decoders.Sequence([backend.decoder, decoders.Strip(" ", 1, 0)])
    vocabulary = stored["model"]["vocab"]
    pieces = sorted(vocabulary, key=lambda piece: -reference.get_score(vocabulary[piece]))
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    options = {name: stored["model"][name] for name in ("unk_token", "fuse_unk", "byte_fallback")}
    backend.model = models.BPE(vocab=vocabulary, merges=merges, **options)
    return True
