from __future__ import annotations

import pytest

from smarttrim_cli.metrics.tokens import ngram_counts, simple_tokens


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        (
            "A large red circle left of the small blue square.",
            "a large red circle left of the small blue square",
        ),
        ("a circle, and three green crosses", "a circle and three green crosses"),
        ('red,white; "blue" (green)!', "red white blue green"),
        ("a well-known man's t-shirt", "a well-known man's t-shirt"),
        ("'quoted' -- dogs' -x- snake_case", "quoted dogs x snake case"),
        ("Café \n\t 2", "café 2"),
        (" .,'- ", ""),
    ],
)
def test_simple_tokens(caption: str, tokens: str) -> None:
    assert simple_tokens(caption) == tokens.split()


def test_ngram_counts() -> None:
    assert ngram_counts(["a", "b", "a", "b"]) == {
        ("a",): 2,
        ("b",): 2,
        ("a", "b"): 2,
        ("b", "a"): 1,
        ("a", "b", "a"): 1,
        ("b", "a", "b"): 1,
        ("a", "b", "a", "b"): 1,
    }
    assert not ngram_counts([])
