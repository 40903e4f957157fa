"""How a mean kept fraction is spread over the layers of a stream when nothing has been learned yet.

Masks are cumulative, so fractions can only fall with depth. The plan is a straight line from the first layer
down, bent at a floor when the mean is too low for a line; predictions of the cost model and the random
baseline use it.
"""

from __future__ import annotations

_FLOOR = 0.02


def kept_by_layer(mean: float, depth: int) -> list[float]:
    """Kept fraction at every layer, falling linearly from the input, with the given mean.

    Args:
        mean: Mean kept fraction over the layers, in (0, 1].
        depth: Number of layers.

    Returns:
        ``depth`` values in [0.02, 1] whose mean is ``mean`` (or the nearest value the floor allows).
    """
    if depth == 1:
        return [mean]
    low, high = 0.0, 40.0

    def line(slope: float) -> list[float]:
        return [max(1.0 - slope * (layer + 1) / depth, _FLOOR) for layer in range(depth)]

    for _ in range(60):
        middle = (low + high) / 2
        if sum(line(middle)) / depth > mean:
            low = middle
        else:
            high = middle
    return line((low + high) / 2)
