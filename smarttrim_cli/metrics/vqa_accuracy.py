"""Accuracy of VQA as the official evaluation computes it.

Follows the behaviour of the public evaluation code of VQA v2 (https://visualqa.org/evaluation.html), oddities
included, so that numbers agree with it: texts are compared as they are where all annotators agree, and
normalised elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD_NOT_BEFORE_DIGIT = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBER_WORDS)}}
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've
    must've mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
    something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll
    they're they've 'twas 'ow's'at wasn't we'd've we've weren't what'll what're what's what've when's
    where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905 (a list literal would be 90 lines)


def _missing_apostrophe() -> dict[str, str]:
    """Contractions that lack one apostrophe ("dont", "couldn'tve"), with their right spelling.

    The official list has "somebody'd" the wrong way round.
    """
    repairs = {}
    for word in _CONTRACTED:
        for position in (place for place, letter in enumerate(word) if letter == "'"):
            repairs[word[:position] + word[position + 1 :]] = word
    return {**repairs, "somebody'd": "somebodyd"}


_CONTRACTIONS = _missing_apostrophe()


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy of one prediction, 0 to 1.

    The mean, over the annotators, of min(1, number of other annotators who gave the predicted answer / 3).

    Args:
        prediction: The predicted answer.
        answers: What each annotator answered (10 in VQA v2).
    """
    predicted, *given = (_on_one_line(text) for text in (prediction, *answers))
    if len(set(given)) > 1:
        predicted, *given = (normalize_answer(text) for text in (predicted, *given))
    equal = [answer == predicted for answer in given]
    return sum(min(1.0, (sum(equal) - own) / 3) for own in equal) / len(equal)


def normalize_answer(answer: str) -> str:
    """Lower case; no punctuation, articles or number words; contractions with their apostrophe."""
    words = strip_punctuation(_on_one_line(answer)).lower().split()
    words = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def plain_answer(answer: str) -> str:
    """An answer normalised; of one that has nothing else ("A", "the", "+") in lower case."""
    return normalize_answer(answer) or _on_one_line(answer).lower()


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def strip_punctuation(text: str) -> str:
    """Remove punctuation next to a blank, make other punctuation a blank, drop periods but decimal points.

    In a text with a comma between digits ("1,000") all punctuation is removed and none becomes a blank.
    Only the first 32 periods are dropped: the official code passes a flag of that value as the count.
    """
    stripped = text
    has_comma_in_number = _COMMA_IN_NUMBER.search(text) is not None
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if beside_blank or has_comma_in_number else " ")
    return _PERIOD_NOT_BEFORE_DIGIT.sub("", stripped, count=_MOST_PERIODS)
