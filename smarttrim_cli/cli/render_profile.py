"""What ``profile`` adds to the comparison: where the time goes, a table by layer, MACs by who counts them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from smarttrim_cli.cli.tables import format_value, ratio, table

EXPLAINED = ("explanation", "breakdown", "layers", "macs_counts")


def explained(result: Mapping[str, Any]) -> list[str]:
    """Blocks of text for whatever of ``EXPLAINED`` is there."""
    blocks = [result["explanation"]] if result.get("explanation") else []
    if result.get("breakdown"):
        blocks.append(_breakdown(result["breakdown"], per_batch(result)))
    if result.get("layers"):
        blocks.append(_layers(result["layers"], per_batch(result)))
    if result.get("macs_counts"):
        header = ("gmacs counted by", "full", "trimmed", "ratio")
        blocks.append(table(header, _sides(result["macs_counts"])))
    return blocks


def per_batch(result: Mapping[str, Any]) -> str:
    """Which batches times are of, to be said beside costs per instance; empty for single instances."""
    size = result.get("batch_size")
    return f" per batch of {size}" if isinstance(size, int) and size > 1 else ""


def inside(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The mapping of that name; empty if there is none, or something else."""
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _sides(values: Mapping[str, Mapping[str, Any]]) -> Iterator[list[Any]]:
    """Rows of name, full, trimmed and how many times cheaper."""
    full, trimmed = inside(values, "full"), inside(values, "trimmed")
    for name in full:
        yield [name, full[name], trimmed.get(name), ratio(full[name], trimmed.get(name), True)]


def _breakdown(values: Mapping[str, Mapping[str, Any]], unit: str) -> str:
    which = "trimmed" if values.get("trimmed") else "full"
    shown = inside(values, which)
    total = sum(value or 0 for value in shown.values())
    rows = [[*row, f"{(shown.get(row[0]) or 0) / total:.1%}" if total else None] for row in _sides(values)]
    return table((f"milliseconds{unit} by part", "full", "trimmed", "ratio", f"share of {which}"), rows)


def _layers(layers: list[Mapping[str, Any]], unit: str) -> str:
    costs = ("gmacs full", "trimmed", f"ms{unit} full", "trimmed")
    header = ("layer", "tokens in", "kept", "heads kept", *costs)
    return table(header, [_layer(row) for row in layers])


def _layer(row: Mapping[str, Any]) -> list[Any]:
    kinds = [one for one in inside(row, "heads").values() if isinstance(one, Mapping)]
    heads = (f"{format_value(one.get('kept'))}/{one.get('of')}" for one in kinds)
    costs = [inside(row, name).get(side) for name in ("gmacs", "ms") for side in ("full", "trimmed")]
    name = f"{row.get('stream')}.{row.get('layer')}"
    return [name, row.get("tokens_in"), row.get("tokens_kept"), " ".join(heads), *costs]
