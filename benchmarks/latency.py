"""How much time fewer MACs save for single instances: ``python benchmarks/latency.py``.

Full-size METER-base and BLIP-base VQA (288 pixels, 10 text tokens) with random weights, on a CPU with two
threads. Trimmed models run the recipes' trimmers, see :mod:`_full_size`. Times come from interleaved runs;
ratios are medians of the ratios of neighbouring measurements (of prepared weights over the host: a ratio of
medians, since a model cannot be both at once). ``promise`` is the ratio of times over the
ratio of MACs: 1 would mean that all fewer MACs became less time (the paper: 0.87 at 1.84x, 0.69 at 2.79x).

- ``host``: the libraries' own modules and kernels, as they are shipped; ``full``: ours without trimming, on
  prepared weights (:mod:`smarttrim_cli.pruning.prepared`). Speed-ups are against the faster of the two.
- ``keep all``: trimmers and packing at work, but nothing is dropped (``few trimmers``: those of the row of
  that name at the first speed-up). What they cost is measured by ``benchmarks/keep_all.py``.
- ``2.0x`` ..: tokens and heads trimmed in the recipe's proportions. ``decided``: the same decisions repeated
  instead of taken, so the trimmers do not run. ``those that pay``: without the trimmers that cost more time
  than they save, at the same MACs; ``static heads``: heads are also the same for all instances; ``few
  trimmers``: token trimmers are also small, and at every second layer. ``oracle``: plain layers of exactly
  these sizes; its own promise is what could be kept at best.
- ``no image``: nothing of the image is kept but its CLS; ``in line``: the promise that would be kept if time
  fell evenly from the full model to that.
- ``tokens 2.0x``: tokens only, to the same MACs. ``tome``, ``trips``: what one would otherwise pick, merging
  and a fixed top-k of image tokens, to the same MACs.

It prints tables and writes ``docs/results/latency.json``.
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
    as_batches,
    backbone_of,
    examples,
    few_keeping_all,
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
from _oracle import Oracle
from torch import Tensor

from smarttrim_cli.engine.build import attach
from smarttrim_cli.engine.memory import peak_activation_bytes
from smarttrim_cli.pruning.calibrate import calibrate
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.sites import Site
from smarttrim_cli.recipe import Recipe

SPEEDUPS = (2.0, 2.5, 3.0)
TINY_SPEEDUPS = (1.3, 1.5)
PAYING, STATIC, FEW = ", those that pay", ", static heads", ", few trimmers"
PEERS = {"tome": "{name: tome}", "trips": "{name: trips}"}
SPARSITIES = (0.0, 0.2, 0.4, 0.6, 0.8)
SIZES = (224, 288, 384, 480)
Run = Callable[[int], Any]


def host(name: str, backbone: Any) -> Callable[[dict[str, Tensor]], Any]:
    """A backbone as its library runs it: METER's modules; BLIP's with their own attention, then decoding."""
    if name == "meter":
        return lambda inputs: backbone(**inputs)

    def blip(inputs: dict[str, Tensor]) -> Any:
        image = backbone.vision_model(pixel_values=inputs["pixel_values"]).last_hidden_state
        text = backbone.text_encoder(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            encoder_hidden_states=image,
            is_decoder=False,
        )
        return text.last_hidden_state

    return blip


def ours_like_host(name: str, backbone: Any) -> Callable[[dict[str, Tensor]], Any]:
    """The same part of our forward: all of METER, the encoders of BLIP."""
    if name == "meter":
        return lambda inputs: backbone(**inputs)
    from smarttrim_cli.backbones._blip_encoders import encode_pair

    return lambda inputs: encode_pair(
        backbone, inputs["pixel_values"], inputs["input_ids"], inputs["attention_mask"]
    )


def peer(
    name: str, backbone: Any, trimmer: str, speedup: float, batch: dict[str, Tensor], *overrides: str
) -> TrimmedModel:
    """A fixed-ratio baseline on the image tokens, calibrated to a speed-up."""
    recipe = recipe_of(name, f"pruning.token_trimmer={trimmer}", *overrides)
    sites = attach(recipe, backbone).sites
    model = TrimmedModel(backbone, {n: t for n, t in sites.items() if Site.parse(n).group == "token.vision"})
    model.eval().set_targets({"token.vision": 0.5})
    calibrate(model, as_batches(batch), speedup)
    return model


def single(
    name: str, speedups: tuple[float, ...], count: int, rounds: int, *overrides: str
) -> dict[str, Any]:
    """Everything about single instances for one backbone."""
    recipe = recipe_of(name, *overrides)
    backbone = backbone_of(recipe)
    instances, fit = examples(backbone, count), joined(examples(backbone, 4, 100))
    models: dict[str, TrimmedModel] = {"keep all": trimmed_model(recipe, backbone, None, fit)}
    for speedup in speedups:
        models[f"{speedup}x"] = trimmed_model(recipe, backbone, speedup, fit)
        models[f"{speedup}x{PAYING}"] = paying(recipe, backbone, speedup, fit)
        models[f"{speedup}x{STATIC}"] = paying(
            recipe_of(name, STATIC_HEADS, *overrides), backbone, speedup, fit
        )
        models[f"{speedup}x{FEW}"] = paying(
            recipe_of(name, STATIC_HEADS, FEW_TRIMMERS, *overrides), backbone, speedup, fit
        )
    few = recipe_of(name, STATIC_HEADS, FEW_TRIMMERS, *overrides)
    models[f"keep all{FEW}"] = few_keeping_all(few, backbone, speedups[0], fit)
    models[NO_IMAGE] = without_image(recipe, backbone)
    for speedup in speedups[:1]:
        only = trimmed_model(recipe, backbone, speedup, fit, lambda group: group.startswith("token"))
        models[f"tokens {speedup}x"] = only
        for kind, trimmer in PEERS.items():
            models[f"{kind} {speedup}x"] = peer(
                name, backbone, trimmer, speedup, joined(instances), *overrides
            )
    as_shipped = interleaved(
        {
            "host": lambda i: host(name, backbone)(instances[i]),
            "ours": lambda i: ours_like_host(name, backbone)(instances[i]),
        },
        count,
        max(rounds // 2, 1),
    )
    plain = models["keep all"].prepare()
    against = interleaved(
        {"prepared": lambda i: ours_like_host(name, backbone)(instances[i])}, count, max(rounds // 2, 1)
    )
    variants: dict[str, Run] = {"full": lambda i: plain(instances[i], "full")}
    for label, model in models.items():
        model.prepare()
        variants[label] = lambda i, model=model: model(instances[i], "packed")
        if label in ("keep all", *(f"{speedup}x" for speedup in speedups)):
            taken = _decisions(model, instances)
            variants[f"{label}, decided"] = lambda i, model=model, taken=taken: model(
                instances[i], "packed", replay=taken[i]
            )
    times = interleaved(variants, count, rounds)
    table = {label: _row(times, label, models, instances) for label in variants}
    for label, row in table.items():
        if "macs" in row and label != NO_IMAGE:
            row["in_proportion"] = in_proportion(table[NO_IMAGE], row["macs"])
    return {
        "host_ms": statistics.median(as_shipped["host"]),
        "full_over_host": ratio(as_shipped["host"], as_shipped["ours"]),
        "prepared_over_host": statistics.median(as_shipped["host"]) / statistics.median(against["prepared"]),
        "rows": table,
        "oracle": _oracles(
            plain,
            {f"{s}x{kind}": models[f"{s}x{kind}"] for s in speedups for kind in ("", STATIC, FEW)},
            instances[0],
            rounds,
        ),
    }


@torch.no_grad()
def _decisions(model: TrimmedModel, instances: list[dict[str, Tensor]]) -> list[Any]:
    return [model(inputs, "packed").decisions for inputs in instances]


def _row(
    times: dict[str, list[float]],
    label: str,
    models: dict[str, TrimmedModel],
    instances: list[dict[str, Tensor]],
) -> dict[str, float]:
    row = {"ms": statistics.median(times[label]), "speedup": ratio(times["full"], times[label])}
    if label != "full":
        pairs = [macs(models[label.removesuffix(", decided")], inputs) for inputs in instances]
        trimmed, full = (sum(side) for side in zip(*pairs, strict=True))
        row |= {"gmacs": trimmed / len(pairs), "macs": full / trimmed}
        row["promise"] = row["speedup"] / row["macs"]
    return row


def _oracles(
    full: TrimmedModel, models: dict[str, TrimmedModel], inputs: dict[str, Tensor], rounds: int
) -> dict[str, Any]:
    """Times against the oracle of one instance, per speed-up, and what the oracle keeps of its promise."""
    found = {}
    for label, model in models.items():
        oracle = Oracle(model, _decisions(model, [inputs])[0])
        runs: dict[str, Run] = {
            "full": lambda i: full(inputs, "full"),
            "ours": lambda i, m=model: m(inputs, "packed"),
            "oracle": lambda i, o=oracle: o(inputs),
        }
        times = interleaved(runs, 1, max(4 * rounds, 2))
        trimmed, whole = macs(model, inputs)
        found[label] = {
            "ours_ms": statistics.median(times["ours"]),
            "oracle_ms": statistics.median(times["oracle"]),
            "ours_over_oracle": ratio(times["ours"], times["oracle"]),
            "macs": whole / trimmed,
            "ours_promise": ratio(times["full"], times["ours"]) * trimmed / whole,
            "oracle_promise": ratio(times["full"], times["oracle"]) * trimmed / whole,
        }
    return found


def growth(
    name: str, rounds: int, sparsities: tuple[float, ...], sizes: tuple[int, ...], *overrides: str
) -> Any:
    """Latency and memory over the share of image tokens removed, and over image size."""
    by_sparsity, by_size = {}, {}
    for sparsity in sparsities:
        share = f"pruning.target_sparsity={{token: {{vision: {sparsity}, text: 0.0}}, head: {{}}}}"
        by_sparsity[str(sparsity)] = _point(recipe_of(name, share, *overrides), name, rounds, None)
    for size in sizes:
        recipe = recipe_of(name, f"backbone.image_size={size}", *overrides)
        by_size[str(size)] = _point(recipe, name, rounds, 2.0)
    return {"sparsity": by_sparsity, "image_size": by_size}


def _point(recipe: Recipe, name: str, rounds: int, speedup: float | None) -> dict[str, float]:
    backbone = backbone_of(recipe)
    instances, fit = examples(backbone, 2), joined(examples(backbone, 4, 100))
    groups = (lambda group: group == "token.vision") if speedup is None else (lambda group: True)
    model = trimmed_model(recipe, backbone, speedup, fit, groups, as_recipe=speedup is None).prepare()
    times = interleaved(
        {"full": lambda i: model(instances[i], "full"), "trimmed": lambda i: model(instances[i], "packed")},
        2,
        rounds,
    )
    trimmed, full = macs(model, instances[0])
    with torch.no_grad():
        memory = {
            mode: peak_activation_bytes(lambda mode=mode: model(instances[0], mode)) / 2**20
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
    """Print one backbone's tables."""
    print(f"\n{name}: full over host {report['full_over_host']:.2f}x, with prepared weights ", end="")
    print(f"{report['prepared_over_host']:.2f}x")
    print(f"{'':20s}{'ms':>8s}{'time':>8s}{'MACs':>8s}{'promise':>9s}{'in line':>9s}")
    for label, row in report["rows"].items():
        rest = f"{row['macs']:7.2f}x{row['promise']:9.2f}" if "macs" in row else ""
        rest += f"{row['in_proportion']:9.2f}" if "in_proportion" in row else ""
        print(f"{label:20s}{row['ms']:8.1f}{row['speedup']:7.2f}x{rest}")
    for label, row in report["oracle"].items():
        print(
            f"oracle of {label}: {row['oracle_ms']:.1f} ms, ours {row['ours_over_oracle']:.3f} of that; "
            f"promise kept {row['oracle_promise']:.2f}, ours {row['ours_promise']:.2f}"
        )
    for axis, points in report.get("growth", {}).items():
        print(
            f"{axis:>12s}{'full ms':>10s}{'trimmed':>10s}{'time':>8s}{'MACs':>8s}{'MiB':>8s}{'trimmed':>9s}"
        )
        for value, p in points.items():
            print(
                f"{value:>12s}{p['full_ms']:10.1f}{p['trimmed_ms']:10.1f}{p['speedup']:9.2f}x{p['macs']:9.2f}x"
                f"{p['full_memory_mib']:10.1f}{p['trimmed_memory_mib']:10.1f}"
            )


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = arguments(__doc__, RESULTS / "latency.json")
    parser.add_argument("--instances", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument(
        "--no-growth", action="store_true", help="leave out the tables over sparsity and size"
    )
    parser.add_argument("--add", action="store_true", help="leave the other backbone in the file as it is")
    args = parser.parse_args(argv)
    report: dict[str, Any] = {"environment": start(args.threads), "backbones": {}}
    for name in args.backbone or ("meter", "blip"):
        tiny = TINY[name] if args.quick else ()
        count, rounds = (2, 1) if args.quick else (args.instances, args.rounds)
        found = single(name, TINY_SPEEDUPS if args.quick else SPEEDUPS, count, rounds, *tiny)
        if not args.no_growth:
            axes = (SPARSITIES[:2], ()) if args.quick else (SPARSITIES, SIZES)
            found["growth"] = growth(name, max(rounds // 2, 1), *axes, *tiny)
        report["backbones"][name] = found
        show(name, found)
    write(args.output, report, args.add)


if __name__ == "__main__":
    main()
