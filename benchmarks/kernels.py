"""What prepared weights and dropped heads are worth to single layers: ``python benchmarks/kernels.py``.

- ``linear``: GMAC/s of torch's own linear layer and of one on prepared weights, by sizes and rows. Many
  weights are gone through in turn, so that none is in a cache.
- ``new``: milliseconds that the first call with a new number of rows takes more than later ones.
- ``heads``: a fused projection of queries, keys and values (768 to 3 x 768, 12 heads) with some heads
  dropped: ``whole`` projects all heads, ``taken out`` collects the rows of the kept ones and multiplies by
  them, ``per head`` has a prepared matrix per head and joins the results. Milliseconds.

It prints tables and writes ``docs/results/kernels.json``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _full_size import RESULTS, start, write
from torch import Tensor, nn

from smarttrim_cli.pruning.prepared import part_of_linear, prepare

SIZES = ((768, 768), (768, 2304), (768, 3072), (3072, 768))
ROWS = (1, 12, 40, 80, 160, 325)
HEADS, WIDTH = 12, 64
KEPT = (10, 8, 6)
CACHE = 100_000_000
"""Bytes of weights that are gone through in turn."""


def milliseconds(call: Callable[[int], Any], repeats: int) -> float:
    """Median time of a call, which is told its number."""
    taken = []
    for number in range(-2, repeats):
        begin = time.perf_counter()
        call(number)
        if number >= 0:
            taken.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(taken)


def layers(inputs: int, outputs: int, small: bool) -> list[nn.Linear]:
    """Enough layers of a size to fill no cache."""
    count = 2 if small else max(2, CACHE // (4 * inputs * outputs))
    return [nn.Linear(inputs, outputs) for _ in range(count)]


def linear(inputs: int, outputs: int, rows: int, repeats: int, small: bool) -> dict[str, float]:
    """GMAC/s of both kinds."""
    own, laid_out = layers(inputs, outputs, small), layers(inputs, outputs, small)
    for layer in laid_out:
        prepare(layer)
    x = torch.randn(1, rows, inputs)
    for layer in laid_out:
        layer(x)
    work = rows * inputs * outputs / 1e6
    return {
        "torch": work / milliseconds(lambda i: own[i % len(own)](x), repeats),
        "prepared": work / milliseconds(lambda i: laid_out[i % len(laid_out)](x), repeats),
    }


def new_rows(inputs: int, outputs: int) -> float:
    """What a number of rows costs when it is first met, median over several."""
    layer = nn.Linear(inputs, outputs)
    prepare(layer)
    layer(torch.randn(1, 50, inputs))
    extra = []
    for rows in range(101, 140, 3):
        x = torch.randn(1, rows, inputs)
        times = []
        for _ in range(4):
            begin = time.perf_counter()
            layer(x)
            times.append((time.perf_counter() - begin) * 1e3)
        extra.append(times[0] - statistics.median(times[1:]))
    return statistics.median(extra)


def heads(rows: int, kept: int, repeats: int, small: bool) -> dict[str, float]:
    """Milliseconds of three ways to project with some heads dropped."""
    width = HEADS * WIDTH
    fused = layers(width, 3 * width, small)
    index = torch.randperm(HEADS)[:kept].sort().values
    pieces = [[nn.Linear(width, 3 * WIDTH) for _ in range(HEADS)] for _ in fused[:4]]
    for layer in (*fused, *(piece for row in pieces for piece in row)):
        prepare(layer)
    x = torch.randn(1, rows, width)

    def taken_out(number: int) -> Tensor:
        layer = fused[number % len(fused)]
        weight = layer.weight.unflatten(0, (3, HEADS, WIDTH)).index_select(1, index).flatten(0, 2)
        return part_of_linear(layer, x, weight, None)

    def per_head(number: int) -> Tensor:
        row = pieces[number % len(pieces)]
        return torch.cat([row[head](x) for head in index.tolist()], -1)

    return {
        "kept": len(index),
        "whole": milliseconds(lambda i: fused[i % len(fused)](x), repeats),
        "taken out": milliseconds(taken_out, repeats),
        "per head": milliseconds(per_head, repeats),
    }


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="few sizes: does everything run?")
    parser.add_argument("--output", type=Path, default=RESULTS / "kernels.json")
    args = parser.parse_args(argv)
    report: dict[str, Any] = {"environment": start(args.threads), "linear": [], "new": [], "heads": []}
    sizes, all_rows = (SIZES[:1], ROWS[:2]) if args.quick else (SIZES, ROWS)
    with torch.no_grad():
        for inputs, outputs in sizes:
            for rows in all_rows:
                speed = linear(inputs, outputs, rows, args.repeats, args.quick)
                report["linear"].append({"inputs": inputs, "outputs": outputs, "rows": rows, **speed})
                print(
                    f"{inputs} to {outputs}, {rows} rows: torch {speed['torch']:.0f} GMAC/s, "
                    f"prepared {speed['prepared']:.0f}"
                )
            extra = new_rows(inputs, outputs)
            report["new"].append({"inputs": inputs, "outputs": outputs, "ms": extra})
            print(f"{inputs} to {outputs}: a new number of rows costs {extra:.2f} ms")
        for rows in (64,) if args.quick else (64, 160, 240):
            for kept in KEPT:
                found = {"rows": rows, **heads(rows, kept, args.repeats, args.quick)}
                report["heads"].append(found)
                ways = ", ".join(f"{way} {found[way]:.2f}" for way in ("whole", "taken out", "per head"))
                print(f"{rows} rows, {found['kept']} of {HEADS} heads: {ways} ms")
    write(args.output, report)


if __name__ == "__main__":
    main()
