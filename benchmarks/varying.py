"""Whether an instance that was never met takes longer than a repeated one: ``python benchmarks/varying.py``.

The CPU's kernels are made for a number of rows when they first meet it. Benchmarks that repeat a few
instances do not see that; somebody who asks one question after the other does. So here a row of instances
that differ in contrast and brightness, and hence in the numbers of tokens they keep, is run one by one, and
each again at once. ``first over again`` is the ratio of these times, part by part of the row.

Full-size METER-base and BLIP-base VQA with random weights and few trimmers, as in ``benchmarks/latency.py``.
It prints a table and writes ``docs/results/varying.json``.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from _full_size import (
    FEW_TRIMMERS,
    RESULTS,
    STATIC_HEADS,
    TINY,
    arguments,
    backbone_of,
    examples,
    joined,
    macs,
    paying,
    recipe_of,
    start,
    write,
)
from torch import Tensor

from smarttrim_cli.pruning.model import TrimmedModel

CONTRASTS = (0.1, 0.3, 1.0, 2.0, 4.0)


def unlike(instances: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The same texts with images of other contrasts, brighter to one side."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for index, inputs in enumerate(instances):
        image = torch.randn(inputs["pixel_values"].shape, generator=generator)
        slope = float(torch.rand((), generator=generator)) * 4 - 2
        side = torch.linspace(-1, 1, image.shape[-1])
        made.append(inputs | {"pixel_values": image * CONTRASTS[index % len(CONTRASTS)] + slope * side})
    return made


@torch.no_grad()
def first_and_again(model: TrimmedModel, instances: list[dict[str, Tensor]]) -> list[tuple[float, float]]:
    """Milliseconds of every instance, at first and again."""
    found = []
    for inputs in instances:
        times = []
        for _ in range(2):
            begun = time.perf_counter()
            model(inputs, "packed")
            times.append((time.perf_counter() - begun) * 1e3)
        found.append((times[0], times[1]))
    return found


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = arguments(__doc__, RESULTS / "varying.json")
    parser.add_argument("--speedup", type=float, default=2.5)
    parser.add_argument("--count", type=int, default=80, help="instances")
    parser.add_argument("--parts", type=int, default=4)
    args = parser.parse_args(argv)
    report: dict[str, Any] = {"environment": start(args.threads), "speedup": args.speedup, "backbones": {}}
    for name in args.backbone or ("meter", "blip"):
        recipe = recipe_of(name, STATIC_HEADS, FEW_TRIMMERS, *(TINY[name] if args.quick else ()))
        backbone = backbone_of(recipe)
        fit = joined(examples(backbone, 4, 100))
        model = paying(recipe, backbone, 1.3 if args.quick else args.speedup, fit).prepare()
        instances = unlike(examples(backbone, args.count))
        first_and_again(model, examples(backbone, 2))
        times = first_and_again(model, instances)
        each = args.count // args.parts
        parts = [times[start : start + each] for start in range(0, each * args.parts, each)]
        cost = sorted(macs(model, inputs)[0] for inputs in instances)
        report["backbones"][name] = {
            "instances": each * args.parts,
            "gmacs": [cost[0], statistics.median(cost), cost[-1]],
            "again_ms": statistics.median(again for _, again in times),
            "first_over_again": [statistics.median(a / b for a, b in part) for part in parts],
        }
        print(f"{name}, {cost[0]:.1f} to {cost[-1]:.1f} GMACs, first over again:", end=" ")
        print(*(f"{ratio:.3f}" for ratio in report["backbones"][name]["first_over_again"]))
    write(args.output, report, args.add)


if __name__ == "__main__":
    main()
