"""ROUGE-1/2/L/Lsum F-measures of one prediction against one reference, for any script.

Computed by rouge-score. If the letters of both texts are all ASCII, its own tokenizer is used without stemming, so the
numbers equal rouge-score's. That tokenizer keeps a-z and 0-9 only: two identical Chinese texts would score 0. So pairs
with a non-ASCII letter or decimal digit use UnicodeTokenizer.
"""

from __future__ import annotations

import re
import unicodedata

from rouge_score.rouge_scorer import RougeScorer

ROUGE_NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")

MAX_TEXT_CHARACTERS = 20_000
"""Only the first characters are compared: the longest common subsequence takes time and memory proportional to the
product of both lengths. Callers count the affected rows by `is_truncated`."""

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
    """Splits text of any script into words, with the interface of rouge-score's tokenizers.

    The text is NFKC-normalised (full-width letters become ASCII, composed and decomposed accents become equal) and
    case-folded. A token is a run of letters and digits with their combining marks (Korean too: space-separated);
    in Chinese, Japanese, Thai, Lao, Khmer, Myanmar and Tibetan each character, with its marks, is a token.
    Invisible format characters (joiners, direction marks, soft hyphens) are dropped; everything else separates tokens.
    On ASCII text the result equals rouge-score's default tokenizer without stemming.
    """

    def tokenize(self, text: str) -> list[str]:
        tokens: list[str] = []
        extends_token = False  # the next letter joins the last token
        follows_letter = False  # a combining mark joins the last token
        for character in unicodedata.normalize("NFKC", text).casefold():
            category = unicodedata.category(character)
            if category == "Cf":
                continue
            if category[0] in "LN":
                is_single = _CHARACTER_IS_TOKEN.match(character) is not None
                if extends_token and not is_single:
                    tokens[-1] += character
                else:
                    tokens.append(character)
                extends_token, follows_letter = not is_single, True
            elif category[0] == "M" and follows_letter:
                tokens[-1] += character
            else:
                extends_token = follows_letter = False
        return tokens


def has_non_ascii_letters(text: str) -> bool:
    """Whether the text has a non-ASCII letter or decimal digit (quotes, dashes and emoji do not count)."""
    if text.isascii():
        return False
    return any(
        character > "\x7f" and (unicodedata.category(character)[0] == "L" or unicodedata.category(character) == "Nd")
        for character in unicodedata.normalize("NFC", text)
    )


def is_truncated(prediction: str, reference: str) -> bool:
    """Whether one of the texts is longer than MAX_TEXT_CHARACTERS."""
    return len(prediction) > MAX_TEXT_CHARACTERS or len(reference) > MAX_TEXT_CHARACTERS


class Rouge:
    """Scores pairs of texts. Building the scorers is slow; reuse one instance."""

    def __init__(self) -> None:
        self._ascii = RougeScorer(list(ROUGE_NAMES), use_stemmer=False)
        self._unicode = RougeScorer(list(ROUGE_NAMES), tokenizer=UnicodeTokenizer())

    def score(self, prediction: str, reference: str) -> tuple[float, ...]:
        """Return F-measures 0..1 in the order of ROUGE_NAMES; 0 if a text has no words. ROUGE-Lsum splits on lines."""
        prediction, reference = prediction[:MAX_TEXT_CHARACTERS], reference[:MAX_TEXT_CHARACTERS]
        scorer = self._unicode if has_non_ascii_letters(prediction) or has_non_ascii_letters(reference) else self._ascii
        scores = scorer.score(reference, prediction)
        return tuple(float(scores[name].fmeasure) for name in ROUGE_NAMES)
