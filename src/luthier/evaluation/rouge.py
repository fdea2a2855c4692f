"""ROUGE-1/2/L/Lsum F-measures of one prediction against one reference, for any script.

rouge-score does the counting. English, or any pair of texts whose letters are all ASCII, goes through its own
tokenizer without stemming, so those numbers equal rouge-score's. That tokenizer keeps a-z and 0-9 only: two
identical Chinese texts would score 0. So a pair in which either text holds a letter or decimal digit outside
ASCII goes through UnicodeTokenizer.

Does not know of files, rows or models.
"""

from __future__ import annotations

import re
import unicodedata

from rouge_score.rouge_scorer import RougeScorer

ROUGE_NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")

LONGEST_TEXT = 20_000
"""Characters of a text that are compared. The longest common subsequence costs time and memory in the product of
both lengths; a 2 MB reference must not take the machine. `was_cut` tells, and the caller counts and says it."""

# Scripts written without spaces between words, where a word list would be needed to find words.
_CHARACTER_IS_TOKEN = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u0f00-\u0fff"  # Tibetan
    "\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff"  # Myanmar
    "\u1780-\u17ff\u19e0-\u19ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf"  # Tai Le, New Tai Lue, Tai Tham
    "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c"  # CJK iteration marks and numerals
    "\u3040-\u30ff\u31f0-\u31ff"  # Hiragana, Katakana
    "\u3100-\u312f\u31a0-\u31bf"  # Bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han
    "\uaa80-\uaadf"  # Tai Viet
    "\U0001b000-\U0001b16f"  # Kana supplements
    "\U00020000-\U000323af"  # Han extensions
    "]"
)


class UnicodeTokenizer:
    """Words of any script, as rouge-score's `tokenizer` object.

    The text is NFKC-normalised (full-width letters become plain, composed and decomposed accents agree) and
    case-folded. A token is a run of letters and digits with their combining marks (Korean too: space-separated);
    in Chinese, Japanese, Thai, Lao, Khmer, Myanmar and Tibetan each character, with its marks, is a token.
    Invisible format characters (joiners, direction marks, soft hyphens) are dropped; all else parts tokens.
    On ASCII text the result equals rouge-score's default tokenizer without stemming.
    """

    def tokenize(self, text: str) -> list[str]:
        tokens: list[str] = []
        may_grow = False  # whether the next letter joins the last token
        after_letter = False  # whether a combining mark here belongs to the last token
        for character in unicodedata.normalize("NFKC", text).casefold():
            category = unicodedata.category(character)
            if category == "Cf":
                continue
            if category[0] in "LN":
                alone = _CHARACTER_IS_TOKEN.match(character) is not None
                if may_grow and not alone:
                    tokens[-1] += character
                else:
                    tokens.append(character)
                may_grow, after_letter = not alone, True
            elif category[0] == "M" and after_letter:
                tokens[-1] += character
            else:
                may_grow = after_letter = False
        return tokens


def beyond_ascii(text: str) -> bool:
    """Whether the text holds a letter or decimal digit outside ASCII (“quotes”, dashes and emoji do not count)."""
    if text.isascii():
        return False
    return any(
        character > "\x7f" and (unicodedata.category(character)[0] == "L" or unicodedata.category(character) == "Nd")
        for character in unicodedata.normalize("NFC", text)
    )


def was_cut(prediction: str, reference: str) -> bool:
    """Whether `Rouge.score` compares only the first LONGEST_TEXT characters of one of the two."""
    return len(prediction) > LONGEST_TEXT or len(reference) > LONGEST_TEXT


class Rouge:
    """Scores pairs of texts; holds one scorer per tokenizer, so make it once."""

    def __init__(self) -> None:
        self._plain = RougeScorer(list(ROUGE_NAMES), use_stemmer=False)
        self._unicode = RougeScorer(list(ROUGE_NAMES), tokenizer=UnicodeTokenizer())

    def score(self, prediction: str, reference: str) -> tuple[float, ...]:
        """F-measures 0..1 in the order of ROUGE_NAMES. Lsum's sentences are lines. No words in either text: 0."""
        prediction, reference = prediction[:LONGEST_TEXT], reference[:LONGEST_TEXT]
        scorer = self._unicode if beyond_ascii(prediction) or beyond_ascii(reference) else self._plain
        scores = scorer.score(reference, prediction)
        return tuple(float(scores[name].fmeasure) for name in ROUGE_NAMES)
