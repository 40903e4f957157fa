"""How a mean kept fraction is spread over the layers of a stream when nothing has been learned yet.

Masks are cumulative, so fractions can only fall with depth. The plan is a straight line from the first layer
down, bent at a floor when the mean is too low for a line, a staircase where only some layers have a trimmer.
Predictions of the cost model use it, and baselines that act at every layer. Baselines that act at a few
layers keep the same share of what is left at each.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

_FLOOR = 0.02


def kept_by_layer(mean: float, depth: int, layers: Collection[int] | None = None) -> list[float]:
    """Kept fraction at every layer, falling linearly from the input, with the given mean.

    Args:
        mean: Mean kept fraction over the layers, in (0, 1].
        depth: Number of layers.
        layers: Those that have a trimmer; the others keep what reaches them. None for all.

    Returns:
        ``depth`` values in [0.02, 1] whose mean is ``mean`` (or the nearest value the floor allows).
    """
    if depth == 1:
        return [mean]
    low, high = 0.0, 40.0
    steps = range(depth) if layers is None else layers

    def line(slope: float) -> list[float]:
        shares, share = [], 1.0
        for layer in range(depth):
            share = max(1.0 - slope * (layer + 1) / depth, _FLOOR) if layer in steps else share
            shares.append(share)
        return shares

    for _ in range(60):
        middle = (low + high) / 2
        if sum(line(middle)) / depth > mean:
            low = middle
        else:
            high = middle
    return line((low + high) / 2)


@lru_cache(maxsize=4096)
def ratio_at(mean: float, depth: int, layer: int) -> float:
    """Share of the tokens that reach a layer which :func:`kept_by_layer` keeps there."""
    shares = kept_by_layer(mean, depth)
    return shares[layer] / shares[layer - 1] if layer else shares[0]


def kept_by_steps(ratio: float, depth: int, layers: tuple[int, ...]) -> list[float]:
    """Kept fraction at every layer when some layers keep ``ratio`` of what reaches them, others all."""
    return [ratio ** sum(chosen <= layer for chosen in layers) for layer in range(depth)]


@lru_cache(maxsize=4096)
def step_ratio(mean: float, depth: int, layers: tuple[int, ...]) -> float:
    """The ratio for which the mean of :func:`kept_by_steps` is ``mean``.

    Not below 0.02: what lies before the first of the layers is kept whole, so that not every mean can be met.
    """
    if mean >= 1.0:
        return 1.0
    low, high = _FLOOR, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if sum(kept_by_steps(middle, depth, layers)) / depth < mean:
            low = middle
        else:
            high = middle
    return high
