"""What trimmers and packing cost while nothing is dropped: ``python benchmarks/keep_all.py``.

Full-size METER-base and BLIP-base VQA with random weights, one instance at a time, as in
``benchmarks/latency.py``; but only these models take turns, many times, so that a difference of a few percent
is not lost in the noise. ``paper's trimmers`` are those of the recipes, ``few trimmers`` those of the row of
that name there. It prints shares of the full model's time, and writes ``docs/results/keep_all.json``.
"""

from __future__ import annotations

import statistics
from typing import Any

from _full_size import (
    FEW_TRIMMERS,
    RESULTS,
    STATIC_HEADS,
    TINY,
    arguments,
    backbone_of,
    examples,
    interleaved,
    joined,
    paying,
    recipe_of,
    start,
    trimmed_model,
    write,
)
from torch import Tensor

from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.recipe import Recipe


def shares(name: str, speedup: float, rounds: int, *overrides: str) -> dict[str, Any]:
    """Time over the full model's, and its quartiles, of models that keep all.

    Args:
        name: Of the backbone.
        speedup: Trimmers that pay are found at this one.
        rounds: Measurements of every model on every instance.
        overrides: Of the recipe.
    """
    recipe, few = recipe_of(name, *overrides), recipe_of(name, STATIC_HEADS, FEW_TRIMMERS, *overrides)
    backbone = backbone_of(recipe)
    fit = joined(examples(backbone, 4, 100))
    models: dict[str, TrimmedModel] = {
        "paper's trimmers": trimmed_model(recipe, backbone, None, fit),
        "few trimmers": _few_keeping_all(few, backbone, speedup, fit),
    }
    for model in models.values():
        model.prepare()
    instances, first = examples(backbone, 2), models["paper's trimmers"]
    times = interleaved(
        {"full": lambda i: first(instances[i], "full")}
        | {label: lambda i, m=model: m(instances[i], "packed") for label, model in models.items()},
        len(instances),
        rounds,
    )
    found: dict[str, Any] = {"full_ms": statistics.median(times["full"])}
    for label, model in models.items():
        ratios = [own / full for own, full in zip(times[label], times["full"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        trimmers = len(model.sites)
        found[label] = {"trimmers": trimmers, "share": middle - 1, "quartiles": [low - 1, high - 1]}
    return found


def _few_keeping_all(recipe: Recipe, backbone: Any, speedup: float, fit: dict[str, Tensor]) -> TrimmedModel:
    """The trimmers that pay at a speed-up, keeping all."""
    model = trimmed_model(recipe, backbone, None, fit)
    model.remove(set(model.sites) - set(paying(recipe, backbone, speedup, fit).sites))
    return model


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = arguments(__doc__, RESULTS / "keep_all.json")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args(argv)
    report: dict[str, Any] = {"environment": start(args.threads), "rounds": args.rounds, "backbones": {}}
    for name in args.backbone or ("meter", "blip"):
        overrides = TINY[name] if args.quick else ()
        found = shares(name, 1.3 if args.quick else 2.0, args.rounds, *overrides)
        report["backbones"][name] = found
        for label in ("paper's trimmers", "few trimmers"):
            row = found[label]
            low, high = row["quartiles"]
            print(
                f"{name}, {row['trimmers']} {label}: {row['share']:.1%} of {found['full_ms']:.0f} ms", end=""
            )
            print(f" (half of the measurements: {low:.1%} to {high:.1%})")
    write(args.output, report, args.add)


if __name__ == "__main__":
    main()
