"""How much time fewer MACs save in batches of different instances: ``python benchmarks/batch.py``.

Models, trimmers and words are those of ``benchmarks/latency.py``. All instances of a batch differ, and so do
the numbers of tokens and the heads they keep; what is kept of a batch lies end to end, without padding.
``each alone`` runs the instances one by one; ``static heads`` has the same heads for all instances and no
trimmers that do not pay. ``--few-trimmers`` measures models whose token trimmers are also small, and at every
second layer, and nothing else. ``no image`` keeps nothing of the images but their CLS; ``in line`` is the
promise that would be kept if time fell evenly from the full model to that. It prints a table and writes
``docs/results/batch.json``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from _full_size import (
    FEW_TRIMMERS,
    NO_IMAGE,
    RESULTS,
    STATIC_HEADS,
    TINY,
    arguments,
    backbone_of,
    examples,
    in_proportion,
    interleaved,
    joined,
    macs,
    paying,
    ratio,
    recipe_of,
    start,
    trimmed_model,
    without_image,
    write,
)

from smarttrim_cli.pruning.model import TrimmedModel

SPEEDUPS = (2.0, 2.5, 3.0)
BATCHES = (8, 32)


def batches(
    name: str, sizes: tuple[int, ...], speedups: tuple[float, ...], rounds: int, few: bool, *overrides: str
) -> Any:
    """Times of every batch size for one backbone."""
    backbone = backbone_of(recipe_of(name, *overrides))
    fit = joined(examples(backbone, 4, 100))
    models = (_few if few else _models)(name, backbone, speedups, fit, *overrides)
    models[NO_IMAGE] = without_image(recipe_of(name, *overrides), backbone)
    for model in models.values():
        model.prepare()
    return {
        str(size): _one_size(models, examples(backbone, size), rounds * max(sizes) // size, not few)
        for size in sizes
    }


def _models(
    name: str, backbone: Any, speedups: tuple[float, ...], fit: dict[str, Any], *overrides: str
) -> dict[str, TrimmedModel]:
    recipe, static = recipe_of(name, *overrides), recipe_of(name, STATIC_HEADS, *overrides)
    models = {f"{s}x": trimmed_model(recipe, backbone, s, fit) for s in speedups}
    for speedup in speedups:
        models[f"tokens {speedup}x"] = trimmed_model(
            recipe, backbone, speedup, fit, lambda group: group.startswith("token")
        )
    return models | {f"{s}x, static heads": paying(static, backbone, s, fit) for s in speedups}


def _few(
    name: str, backbone: Any, speedups: tuple[float, ...], fit: dict[str, Any], *overrides: str
) -> dict[str, TrimmedModel]:
    recipe = recipe_of(name, STATIC_HEADS, FEW_TRIMMERS, *overrides)
    return {f"{speedup}x, few trimmers": paying(recipe, backbone, speedup, fit) for speedup in speedups}


def _one_size(
    models: dict[str, TrimmedModel], instances: list[dict[str, Any]], rounds: int, one_by_one: bool
) -> dict[str, Any]:
    inputs = joined(instances)
    first = next(iter(models.values()))
    variants: dict[str, Callable[[int], Any]] = {"full": lambda i: first(inputs, "full")}
    for label, model in models.items():
        variants[label] = lambda i, model=model: model(inputs, "packed")
    if one_by_one:
        label = next(iter(models))
        variants[f"{label}, each alone"] = lambda i: [first(one, "packed") for one in instances]
    times = interleaved(variants, 1, rounds, warmup=3)
    rows = {}
    for label in variants:
        row = {"ms": statistics.median(times[label]), "speedup": ratio(times["full"], times[label])}
        if label != "full":
            chosen = models[label.removesuffix(", each alone")]
            trimmed, full = macs(chosen, inputs)
            row |= {"gmacs": trimmed, "macs": full / trimmed, "promise": row["speedup"] * trimmed / full}
            row["kept_tokens"] = _spread(chosen, inputs)
        rows[label] = row
    for label, row in rows.items():
        if "macs" in row and label != NO_IMAGE:
            row["in_proportion"] = in_proportion(rows[NO_IMAGE], row["macs"])
    return rows


@torch.no_grad()
def _spread(model: TrimmedModel, inputs: dict[str, Any]) -> dict[str, float]:
    """Fewest and most image tokens that an instance keeps, mean over the layers."""
    counts = model(inputs, "packed").decisions.counts
    kept_B = torch.stack(
        [v.float() for k, v in counts.items() if k.startswith("vision") and "token" in k]
    ).mean(0)
    return {"fewest": float(kept_B.min()), "most": float(kept_B.max())}


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = arguments(__doc__, RESULTS / "batch.json")
    parser.add_argument("--batch-size", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=4, help="of the largest batch; more of smaller ones")
    parser.add_argument("--few-trimmers", action="store_true", help="only the full model and those")
    args = parser.parse_args(argv)
    report: dict[str, Any] = {"environment": start(args.threads), "backbones": {}}
    for name in args.backbone or ("meter", "blip"):
        if args.quick:
            found = batches(name, (3,), (1.3,), 1, args.few_trimmers, *TINY[name])
        else:
            sizes = tuple(args.batch_size or BATCHES)
            found = batches(name, sizes, SPEEDUPS, args.rounds, args.few_trimmers)
        report["backbones"][name] = found
        for size, rows in found.items():
            print(f"\n{name}, batch of {size}")
            print(f"{'':20s}{'ms':>10s}{'time':>8s}{'MACs':>8s}{'promise':>9s}{'in line':>9s}")
            for label, row in rows.items():
                rest = f"{row['macs']:7.2f}x{row['promise']:9.2f}" if "macs" in row else ""
                rest += f"{row['in_proportion']:9.2f}" if "in_proportion" in row else ""
                print(f"{label:20s}{row['ms']:10.1f}{row['speedup']:7.2f}x{rest}")
    write(args.output, report, args.add)


if __name__ == "__main__":
    main()
