"""Published chat templates: which text carries loss, what ends an answer, and prompts that are served as trained."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from luthier.catalog.entry import entries
from luthier.data.chat import ChatTemplate
from luthier.data.conversation import ChatError
from luthier.data.prompts import prompt_renderer
from luthier.data.tokenize import Tokenizer

TEMPLATES: dict[str, dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "chat_templates.yaml").read_text("utf-8")
)
LENT = {
    entry.id: {
        "template": entry.chat_template,
        "markers": ["<s>", "</s>", "<|endoftext|>"],
        "bos": "<s>",
        "eos": "</s>",
        "system": False,
    }
    for entry in entries()
    if entry.chat_template
}
TRAINABLE = {name: case for name, case in (TEMPLATES | LENT).items() if "refused" not in case}
WORDS = st.lists(
    st.sampled_from([" ", "\n", "a", "b c", "é", "1.", "<|im_end|>", "</s>", "### Response:", "user", "assistant"]),
    max_size=5,
).map("".join)


def source_of(case: dict[str, Any]) -> PreTrainedTokenizerFast:
    """A byte tokenizer with the case's control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE(vocab={text: number for number, text in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    swallow = case.get("rstrip", [])
    backend.add_special_tokens([AddedToken(text, special=True, rstrip=text in swallow) for text in case["markers"]])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=case.get("bos"), eos_token=case["eos"], chat_template=case["template"]
    )


def build(case: dict[str, Any]) -> Tokenizer:
    return Tokenizer(source_of(case))


def conversation(case: dict[str, Any], *words: str) -> list[dict[str, str]]:
    system = [{"role": "system", "content": words[0]}] if case.get("system", True) else []
    return system + [
        {"role": ("user", "assistant")[index % 2], "content": content} for index, content in enumerate(words[1:])
    ]


def chat_of(tokenizer: Tokenizer) -> ChatTemplate:
    assert tokenizer.chat is not None
    return tokenizer.chat


def trained_texts(tokenizer: Tokenizer, messages: list[dict[str, str]], turns: str = "assistant") -> list[str]:
    """The text that carries loss, as the tokens spell it, turn by turn."""
    example = chat_of(tokenizer).example(messages, turns=turns)
    ids, trained = tokenizer.encode_examples([example])[0]
    pieces = [piece.text for piece in example.pieces if piece.trained]
    swallowed = "".join(pieces).translate({ord(" "): None, ord("\n"): None})
    assert tokenizer.show(ids[trained]).translate({ord(" "): None, ord("\n"): None}) == swallowed
    return pieces


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_carries_loss_and_what_ends_an_answer(name: str) -> None:
    case = TEMPLATES[name]
    tokenizer = build(case)
    messages = conversation(case, "S", "U1", "A1", "U2", "A2")
    assert chat_of(tokenizer).end_of_turn() == case.get("stop", "")
    if "refused" in case:
        with pytest.raises(ChatError) as caught:
            chat_of(tokenizer).example(messages)
        assert case["refused"] in str(caught.value)
    else:
        assert trained_texts(tokenizer, messages) == case["trained"]
    if "last_only" in case:
        assert trained_texts(tokenizer, messages, "last") == case["last_only"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_and_ids_are_those_of_transformers(name: str) -> None:
    """Bytes are the tokens here, so cuts change nothing, but markers may swallow the white space beyond a cut."""
    case = TEMPLATES[name]
    messages = conversation(case, "S", " U1 ", "A1", "U2\n", "A2")
    source, tokenizer = source_of(case), build(case)
    for generation in (False, True):
        shown = messages[:-1] if generation else messages
        text = source.apply_chat_template(shown, tokenize=False, add_generation_prompt=generation)
        assert chat_of(tokenizer).render(shown, generation) == text
    prompt = tokenizer.prompt_ids(chat_of(tokenizer).render_prompt(messages[:-1]))
    assert prompt == source(text, add_special_tokens=False)["input_ids"]


def check_prompts(tokenizer: Tokenizer, messages: list[dict[str, str]], turns: str = "assistant") -> None:
    """The ids before each trained answer are those that an endpoint makes of the conversation so far."""
    render = prompt_renderer({"kind": "chat"}, tokenizer, raw=False)
    example = chat_of(tokenizer).example(messages, turns=turns)
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    starts = [index for index, piece in enumerate(example.pieces) if piece.trained][: len(answers)]
    for index, start in zip(answers if turns == "assistant" else answers[-1:], starts, strict=False):
        ids = tokenizer.encode(example.pieces)
        prompt = tokenizer.prompt_ids(render({"messages": messages[:index]}))
        assert ids[: len(prompt)] == prompt
        assert len(prompt) == len(tokenizer.encode(example.pieces[:start]))


@pytest.mark.parametrize("name", TRAINABLE)
def test_every_turn_is_served_the_prompt_it_was_trained_on(name: str) -> None:
    case = TRAINABLE[name]
    tokenizer = build(case)
    check_prompts(tokenizer, conversation(case, "S", "U1", "A1", "U2", "A2", " U3\n", "A3 x", "U4", "A4"))
    check_prompts(tokenizer, conversation(case, "S", "U1", "A1", "U2", "A2", "U3", "A3"), turns="last")


@pytest.mark.parametrize("name", sorted(TRAINABLE))
def test_any_words_are_served_as_trained(name: str) -> None:
    case = TRAINABLE[name]
    tokenizer = build(case)

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(WORDS, min_size=5, max_size=5))
    def check(words: list[str]) -> None:
        with contextlib.suppress(ChatError):  # a template may refuse what a message says, but not train it otherwise
            check_prompts(tokenizer, conversation(case, *words[:2], words[2] + "x", words[3], words[4] + "y"))

    check()
