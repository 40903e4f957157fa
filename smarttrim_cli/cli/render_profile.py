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
        blocks.append(_breakdown(result["breakdown"]))
    if result.get("layers"):
        blocks.append(_layers(result["layers"]))
    if result.get("macs_counts"):
        header = ("gmacs counted by", "full", "trimmed", "ratio")
        blocks.append(table(header, _sides(result["macs_counts"])))
    return blocks


def _sides(values: Mapping[str, Mapping[str, float]]) -> Iterator[list[Any]]:
    """Rows of name, full, trimmed and how many times cheaper."""
    full, trimmed = values["full"], values.get("trimmed", {})
    for name in full:
        yield [name, full[name], trimmed.get(name), ratio(full[name], trimmed.get(name), True)]


def _breakdown(values: Mapping[str, Mapping[str, float]]) -> str:
    shown = values.get("trimmed", values["full"])
    total = sum(shown.values())
    rows = [[*row, f"{shown[row[0]] / total:.1%}"] for row in _sides(values)]
    which = "trimmed" if "trimmed" in values else "full"
    return table(("milliseconds by part", "full", "trimmed", "ratio", f"share of {which}"), rows)


def _layers(layers: list[Mapping[str, Any]]) -> str:
    header = ("layer", "tokens in", "kept", "heads kept", "gmacs full", "trimmed", "ms full", "trimmed")
    return table(header, [_layer(row) for row in layers])


def _layer(row: Mapping[str, Any]) -> list[Any]:
    heads = (f"{format_value(one['kept'])}/{one['of']}" for one in row["heads"].values())
    costs = [row[name].get(side) for name in ("gmacs", "ms") for side in ("full", "trimmed")]
    name = f"{row['stream']}.{row['layer']}"
    return [name, row["tokens_in"], row["tokens_kept"], " ".join(heads), *costs]
