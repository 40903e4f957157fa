"""Words of captions, and their n-grams."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

Tokens = Sequence[str]
NGram = tuple[str, ...]
MAX_ORDER = 4
"""BLEU and CIDEr look at n-grams of one to four words."""

_PUNCTUATION = re.compile(r"[^\w\s'-]|_")
_AT_AN_END = re.compile(r"(?<!\w)['-]+|['-]+(?!\w)")


def simple_tokens(caption: str) -> list[str]:
    """Lower-cased words, split on blanks; punctuation becomes a blank, but ``'`` and ``-`` inside words stay.

    The official tokenizer (PTB) needs Java. On plain sentences, as the embedded scenes have, the two agree;
    they differ on contractions ("don't" is two tokens there), numbers ("3.5") and brackets.
    """
    return _AT_AN_END.sub(" ", _PUNCTUATION.sub(" ", caption.lower())).split()


def ngram_counts(tokens: Tokens) -> Counter[NGram]:
    """How often each n-gram of 1 to ``MAX_ORDER`` words occurs."""
    return Counter(
        tuple(tokens[start : start + order])
        for order in range(1, MAX_ORDER + 1)
        for start in range(len(tokens) - order + 1)
    )


def check_references(candidates: Sequence[object], references: Sequence[Sequence[object]]) -> None:
    """Every candidate needs at least one reference.

    Raises:
        ValueError: There is no candidate, one has no reference, or the lengths differ.
    """
    if len(candidates) != len(references) or not candidates:
        raise ValueError(f"expected references per candidate, found {len(candidates)} and {len(references)}")
    lacking = next((index for index, group in enumerate(references) if not group), None)
    if lacking is not None:
        raise ValueError(f"caption {lacking} has no reference")
