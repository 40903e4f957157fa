"""How latency and memory grow: ``python benchmarks/growth.py``.

Single instances of full-size METER-base and BLIP-base VQA with random weights, as in
``benchmarks/latency.py``, over the share of image tokens removed (nothing else is; mean over layers, as in a
recipe), and over image sizes at 2.0x in the recipe's proportions. Memory is the peak of tensors that a
forward creates. It prints tables and writes ``docs/results/growth.json``.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from _full_size import (
    RESULTS,
    TINY,
    arguments,
    backbone_of,
    examples,
    interleaved,
    joined,
    macs,
    ratio,
    recipe_of,
    start,
    trimmed_model,
    write,
)

from smarttrim_cli.engine.memory import peak_activation_bytes
from smarttrim_cli.recipe import Recipe

SPARSITIES = (0.0, 0.2, 0.4, 0.6, 0.8)
SIZES = (224, 288, 384, 480)
SPEEDUP = 2.0
INSTANCES = 2


def growth(
    name: str,
    rounds: int,
    sparsities: tuple[float, ...],
    sizes: tuple[int, ...],
    speedup: float,
    *overrides: str,
) -> dict[str, Any]:
    """Over the share of image tokens removed, and over image size."""
    by_sparsity, by_size = {}, {}
    for sparsity in sparsities:
        share = f"pruning.target_sparsity={{token: {{vision: {sparsity}, text: 0.0}}, head: {{}}}}"
        by_sparsity[str(sparsity)] = _point(recipe_of(name, share, *overrides), rounds, None)
    for size in sizes:
        recipe = recipe_of(name, f"backbone.image_size={size}", *overrides)
        by_size[str(size)] = _point(recipe, rounds, speedup)
    return {"sparsity": by_sparsity, "image_size": by_size}


def _point(recipe: Recipe, rounds: int, speedup: float | None) -> dict[str, float]:
    backbone = backbone_of(recipe)
    instances, fit = examples(backbone, INSTANCES), joined(examples(backbone, 4, 100))
    groups = (lambda group: group == "token.vision") if speedup is None else (lambda group: True)
    model = trimmed_model(recipe, backbone, speedup, fit, groups, as_recipe=speedup is None).prepare()
    times = interleaved(
        {"full": lambda i: model(instances[i], "full"), "trimmed": lambda i: model(instances[i], "packed")},
        INSTANCES,
        rounds,
    )
    trimmed, full = (sum(side) for side in zip(*(macs(model, one) for one in instances), strict=True))
    with torch.no_grad():
        memory = {
            mode: statistics.mean(
                peak_activation_bytes(lambda mode=mode, one=one: model(one, mode)) / 2**20
                for one in instances
            )
            for mode in ("full", "packed")
        }
    return {
        "full_ms": statistics.median(times["full"]),
        "trimmed_ms": statistics.median(times["trimmed"]),
        "speedup": ratio(times["full"], times["trimmed"]),
        "macs": full / trimmed,
        "full_memory_mib": memory["full"],
        "trimmed_memory_mib": memory["packed"],
    }


def show(name: str, report: dict[str, Any]) -> None:
    """Print one backbone's table."""
    for axis, points in report.items():
        print(f"\n{name}, {axis}")
        heads = ("full ms", "trimmed", "time", "MACs", "full MiB", "trimmed")
        print(f"{'':10s}" + "".join(f"{head:>10s}" for head in heads))
        for value, p in points.items():
            print(
                f"{value:10s}{p['full_ms']:10.1f}{p['trimmed_ms']:10.1f}{p['speedup']:9.2f}x{p['macs']:9.2f}x"
                f"{p['full_memory_mib']:10.1f}{p['trimmed_memory_mib']:10.1f}"
            )


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = arguments(__doc__, RESULTS / "growth.json")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    report: dict[str, Any] = {"environment": start(args.threads), "backbones": {}}
    for name in args.backbone or ("meter", "blip"):
        if args.quick:
            found = growth(name, 1, SPARSITIES[:2], (32,), 1.3, *TINY[name])
        else:
            found = growth(name, args.rounds, SPARSITIES, SIZES, SPEEDUP)
        report["backbones"][name] = found
        show(name, found)
    write(args.output, report, args.add)


if __name__ == "__main__":
    main()
