"""Incremental detokenization: whole characters, no stop string, and in the end the text of all tokens."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from serving.vocabularies import sentencepiece_like

from luthier.catalog.locate import EMBEDDED
from luthier.data.example import Piece
from luthier.data.tokenize import Tokenizer
from luthier.serving.detokenizer import Detokenizer

HARD = "naïve 猫が好き🙂👩‍👩‍👧 Ünïcödé\n\t  two  spaces — “quotes” и кириллица \U0001f1fa\U0001f1f3 end"


@pytest.fixture(scope="module", params=["byte level", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.load(Path(EMBEDDED)) if request.param == "byte level" else sentencepiece_like()


def release_all(tokenizer: Tokenizer, prompt: list[int], ids: list[int], stops: tuple[str, ...] = ()) -> list[str]:
    """What was released for each token, and at the end."""
    detokenizer = Detokenizer(tokenizer, prompt, stops, live=True)
    released = []
    for token in ids:
        released.append(detokenizer.append(token))
        if detokenizer.stopped:
            break
    released.append(detokenizer.finish())
    assert "".join(released) == detokenizer.text
    assert "".join(detokenizer.token_texts()) == detokenizer.text
    assert len(detokenizer.token_texts()) == len(detokenizer.ids)
    assert Detokenizer(tokenizer, prompt, stops).text == ""
    return released


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode([Piece(text, trained=False)])


def test_characters_are_whole_and_the_text_is_that_of_all_tokens(tokenizer: Tokenizer) -> None:
    ids = ids_of(tokenizer, HARD)
    released = release_all(tokenizer, [], ids)
    assert "".join(released) == tokenizer.decode(ids)
    assert "".join(released).replace("�", "") == "".join(released)
    assert sum(bool(text) for text in released) > 20  # it comes as it is written, not at the end


def test_half_a_character_at_the_end_is_told_at_the_end(tokenizer: Tokenizer) -> None:
    ids = ids_of(tokenizer, "the 猫")[:-1]
    released = release_all(tokenizer, [], ids)
    assert "".join(released) == tokenizer.decode(ids)
    assert all("�" not in text for text in released[:-1])
    assert released[-1].endswith("�")


def test_any_tokens_at_all_come_out_as_decoded_at_once(tokenizer: Tokenizer) -> None:
    rng = random.Random(3)
    for _ in range(60):
        ids = [rng.randrange(3, tokenizer.vocab_size) for _ in range(rng.randrange(1, 40))]
        released, whole = "".join(release_all(tokenizer, [], ids)), tokenizer.decode(ids)
        # A run of byte tokens that are no released unmakes, in some decoders, those of them that were.
        runs = tokenizer.eos_id != 2 or not any(token < 259 for token in ids)
        assert released == whole if runs else len(released) <= len(whole)


def test_an_answer_goes_on_from_its_prompt(tokenizer: Tokenizer) -> None:
    """A space between them is the answer's, where the answer alone would lose it as the beginning of a text."""
    prompt, whole = ids_of(tokenizer, "at the"), ids_of(tokenizer, "at the inn the end")
    assert whole[: len(prompt)] == prompt
    answer = whole[len(prompt) :]
    assert "".join(release_all(tokenizer, prompt, answer)) == " inn the end"
    assert tokenizer.decode(answer, after=prompt) == " inn the end"


def test_after_a_control_token_a_text_begins(tokenizer: Tokenizer) -> None:
    control = tokenizer.eos_id
    answer = ids_of(tokenizer, "the end")
    assert "".join(release_all(tokenizer, [5, control], answer)) == "the end"


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("the hen ### the end", ("###",), "the hen "),
        ("the hen ## the end", ("###",), "the hen ## the end"),
        ("aaab end", ("aab",), "a"),
        ("the end", ("the end",), ""),
        ("one two three", ("three", "two"), "one "),
        ("mail 猫 then", ("猫",), "mail "),
        ("the end #", ("###",), "the end #"),
        ("see the\n\nHuman: next", ("\n\nHuman:", "\n\nAssistant:"), "see the"),
    ],
)
def test_stop_strings_end_the_text_and_never_show(
    tokenizer: Tokenizer, text: str, stops: tuple[str, ...], expected: str
) -> None:
    ids = ids_of(tokenizer, text)
    released = release_all(tokenizer, [], ids, stops)
    assert "".join(released) == expected
    silent = Detokenizer(tokenizer, [], stops)
    for token in ids:
        if not silent.stopped:
            silent.append(token)
    silent.finish()
    assert (silent.text, silent.stopped) == (expected, expected != text)


def test_random_texts_with_random_stops(tokenizer: Tokenizer) -> None:
    rng = random.Random(7)
    for _ in range(300):
        text = "".join(rng.choice("ab 猫") for _ in range(rng.randrange(1, 30))).strip() or "a"
        stops = tuple("".join(rng.choice("ab 猫") for _ in range(rng.randrange(1, 5))) for _ in range(2))
        ids = ids_of(tokenizer, text)
        whole = tokenizer.decode(ids)
        released = "".join(release_all(tokenizer, [], ids, stops))
        places = [place for stop in stops if (place := whole.find(stop)) >= 0]
        if not places:
            assert released == whole
        else:  # the stop that is complete first ends it
            ends = {stop: whole.find(stop) + len(stop) for stop in stops if stop in whole}
            assert released in {whole[: whole.find(stop)] for stop in ends}
            assert not any(stop in released for stop in stops)


def test_control_tokens_give_no_text_and_no_hole(tokenizer: Tokenizer) -> None:
    ids = ids_of(tokenizer, "the hen")
    mixed = [ids[0], tokenizer.eos_id, *ids[1:2], tokenizer.eos_id, tokenizer.eos_id, *ids[2:]]
    assert "".join(release_all(tokenizer, [], mixed)) == tokenizer.decode(mixed) == "the hen"
