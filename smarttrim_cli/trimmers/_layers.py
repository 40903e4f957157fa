"""Which layers of a stream have a trimmer."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from smarttrim_cli.errors import UserError
from smarttrim_cli.trimmers.base import SiteInfo


class EveryFewLayers(BaseModel):
    """Recipe section of a trimmer that need not stand at every layer."""

    model_config = ConfigDict(extra="forbid")
    every: int = Field(
        default=1,
        ge=1,
        description="1: a trimmer at the input of every layer (the paper); 2: of every second one, from the "
        "second layer of a stream on; and so forth",
    )

    def layers(self, depth: int) -> tuple[int, ...]:
        """Those layers of a stream of so many; its last one where it has fewer than ``every``."""
        every = min(self.every, depth)
        return tuple(range(every - 1, depth, every))

    def act_at(self, site: SiteInfo) -> bool:
        """Whether a site is at one of them."""
        return site.index in self.layers(site.depth)


def chosen_layers(wanted: Sequence[int] | None, depth: int, default: Sequence[float]) -> tuple[int, ...]:
    """Layers of a stream at whose input a trimmer acts.

    Args:
        wanted: As the recipe names them; those that the stream does not have are left out.
        depth: Number of layers of the stream.
        default: Shares of the depth, where the recipe names none.

    Raises:
        UserError: The stream has none of them.
    """
    if wanted is None:
        return tuple(sorted({int(share * depth) for share in default}))
    layers = tuple(sorted({layer for layer in wanted if layer < depth}))
    if not layers:
        raise UserError(
            f"a stream has {depth} layers, 0 to {depth - 1}, and none of {list(wanted)}",
            where="pruning.token_trimmer.layers",
            hint="name at least one layer of every stream that is trimmed",
        )
    return layers
