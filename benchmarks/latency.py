"""How much time fewer MACs save for single instances: ``python benchmarks/latency.py``.

Full-size METER-base and BLIP-base VQA (288 pixels, 10 text tokens) with random weights, on a CPU with two
threads. Trimmed models run the recipes' trimmers, see :mod:`_full_size`. Every row is an interleaved run of
its own, as a process that serves one model would meet it: the full model, ours, and the oracle of its sizes
in turns, on a few instances. Ratios are medians of the ratios of neighbouring measurements (of prepared
weights over the host: a ratio of medians, since a model cannot be both at once). ``promise`` is the ratio of
times over the ratio of MACs: 1 would mean that all fewer MACs became less time (the paper: 0.87 at 1.84x,
0.69 at 2.79x).

- ``host``: the libraries' own modules and kernels, as they are shipped; the full model: ours without
  trimming, on prepared weights (:mod:`smarttrim_cli.pruning.prepared`). Speed-ups are against the faster.
- ``keep all``: trimmers and packing at work, but nothing is dropped. What that costs is measured with more
  rounds, and for few trimmers, too, by ``benchmarks/keep_all.py``.
- ``2.0x`` ..: tokens and heads trimmed in the recipe's proportions. ``decided``: the same decisions repeated
  instead of taken, so the trimmers do not run. ``static heads``: heads are the same for all instances, and
  trimmers that cost more time than they save are left out, at the same MACs; ``few trimmers``: token trimmers
  are also small, and at every second layer.
- The oracle has plain layers of exactly an instance's sizes; its promise is what could be kept at best.
- ``no image``: nothing of the image is kept but its CLS; ``in line``: the promise that would be kept if time
  fell evenly from the full model to that.
- ``tokens 2.0x``: tokens only, to the same MACs. ``tome``, ``trips``: what one would otherwise pick, merging
  and a fixed top-k of image tokens, to the same MACs.

It prints tables and writes ``docs/results/latency.json``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
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
from smarttrim_cli.pruning.calibrate import calibrate
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.prepared import prepare, restore
from smarttrim_cli.pruning.sites import Site

SPEEDUPS = (2.0, 2.5, 3.0)
TINY_SPEEDUPS = (1.3, 1.5)
STATIC, FEW = ", static heads", ", few trimmers"
KEEP_ALL = "keep all"
PEERS = {"tome": "{name: tome}", "trips": "{name: trips}"}
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
    backbone = backbone_of(recipe_of(name, *overrides))
    instances = examples(backbone, count)
    found = _against_the_host(name, backbone, instances, max(rounds // 2, 1))
    rows: dict[str, dict[str, float]] = {}
    for label, build in _builders(name, backbone, speedups, *overrides).items():
        model = build().prepare()
        rows |= _measured(label, model, instances, rounds)
        model.restore()
        print(f"{time.strftime('%H:%M:%S')} {name}: {label}", flush=True)
    for label, row in rows.items():
        if label != NO_IMAGE:
            row["in_proportion"] = in_proportion(rows[NO_IMAGE], row["macs"])
    return found | {"full_ms": statistics.median(row["full_ms"] for row in rows.values()), "rows": rows}


def _against_the_host(
    name: str, backbone: Any, instances: list[dict[str, Tensor]], rounds: int
) -> dict[str, float]:
    """The full model, on the host's kernels and then on prepared weights, against the host."""
    runs: dict[str, Run] = {
        "host": lambda i: host(name, backbone)(instances[i]),
        "ours": lambda i: ours_like_host(name, backbone)(instances[i]),
    }
    shipped = interleaved(runs, len(instances), rounds)
    prepare(backbone)
    prepared = interleaved({"ours": runs["ours"]}, len(instances), rounds)
    restore(backbone)
    return {
        "host_ms": statistics.median(shipped["host"]),
        "full_over_host": ratio(shipped["host"], shipped["ours"]),
        "prepared_over_host": statistics.median(shipped["host"]) / statistics.median(prepared["ours"]),
    }


def _builders(
    name: str, backbone: Any, speedups: tuple[float, ...], *overrides: str
) -> dict[str, Callable[[], TrimmedModel]]:
    """A row's name to what makes its model, so that no two of them are in memory at a time."""
    fit = joined(examples(backbone, 4, 100))
    recipe = recipe_of(name, *overrides)
    static = recipe_of(name, STATIC_HEADS, *overrides)
    few = recipe_of(name, STATIC_HEADS, FEW_TRIMMERS, *overrides)
    made: dict[str, Callable[[], TrimmedModel]] = {
        NO_IMAGE: lambda: without_image(recipe, backbone),
        KEEP_ALL: lambda: trimmed_model(recipe, backbone, None, fit),
    }
    for speedup in speedups:
        made[f"{speedup}x"] = partial(trimmed_model, recipe, backbone, speedup, fit)
        for kind, its in ((STATIC, static), (FEW, few)):
            made[f"{speedup}x{kind}"] = partial(paying, its, backbone, speedup, fit)
    first = speedups[0]
    made[f"tokens {first}x"] = lambda: trimmed_model(
        recipe, backbone, first, fit, lambda group: group.startswith("token")
    )
    for kind, trimmer in PEERS.items():
        made[f"{kind} {first}x"] = partial(peer, name, backbone, trimmer, first, fit, *overrides)
    return made


def _measured(
    label: str, model: TrimmedModel, instances: list[dict[str, Tensor]], rounds: int
) -> dict[str, dict[str, float]]:
    """A model's rows: of itself and, where trimmers are the recipe's, of its decisions repeated."""
    taken = _decisions(model, instances)
    runs: dict[str, Run] = {
        "full": lambda i: model(instances[i], "full"),
        "ours": lambda i: model(instances[i], "packed"),
    }
    if label == KEEP_ALL or label.endswith("x") and label[0].isdigit():
        runs["decided"] = lambda i: model(instances[i], "packed", replay=taken[i])
    if label[0].isdigit():
        oracles = [Oracle(model, decisions) for decisions in taken]
        runs["oracle"] = lambda i: oracles[i](instances[i])
    times = interleaved(runs, len(instances), rounds)
    pairs = [macs(model, inputs) for inputs in instances]
    trimmed, full = (sum(side) for side in zip(*pairs, strict=True))
    rows = {
        label if kind == "ours" else f"{label}, {kind}": {
            "ms": statistics.median(times[kind]),
            "full_ms": statistics.median(times["full"]),
            "speedup": ratio(times["full"], times[kind]),
            "gmacs": trimmed / len(pairs),
            "macs": full / trimmed,
            "promise": ratio(times["full"], times[kind]) * trimmed / full,
        }
        for kind in ("ours", "decided")
        if kind in times
    }
    if "oracle" in times:
        rows[label] |= {
            "oracle_ms": statistics.median(times["oracle"]),
            "over_oracle": ratio(times["ours"], times["oracle"]),
            "oracle_promise": ratio(times["full"], times["oracle"]) * trimmed / full,
        }
    return rows


@torch.no_grad()
def _decisions(model: TrimmedModel, instances: list[dict[str, Tensor]]) -> list[Any]:
    return [model(inputs, "packed").decisions for inputs in instances]


def show(name: str, report: dict[str, Any]) -> None:
    """Print one backbone's tables."""
    print(f"\n{name}: full over host {report['full_over_host']:.2f}x, with prepared weights ", end="")
    print(f"{report['prepared_over_host']:.2f}x; full {report['full_ms']:.0f} ms")
    heads = ("ms", "time", "MACs", "promise", "in line", "over oracle", "its promise")
    print(f"{'':26s}" + "".join(f"{head:>12s}" for head in heads))
    for label, row in report["rows"].items():
        cells = [f"{row['ms']:.1f}", f"{row['speedup']:.2f}x", f"{row['macs']:.2f}x", f"{row['promise']:.2f}"]
        cells.append(f"{row['in_proportion']:.2f}" if "in_proportion" in row else "")
        if "oracle_ms" in row:
            cells += [f"{row['over_oracle']:.3f}", f"{row['oracle_promise']:.2f}"]
        print(f"{label:26s}" + "".join(f"{cell:>12s}" for cell in cells))


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = arguments(__doc__, RESULTS / "latency.json")
    parser.add_argument("--instances", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args(argv)
    report: dict[str, Any] = {"environment": start(args.threads), "backbones": {}}
    for name in args.backbone or ("meter", "blip"):
        tiny = TINY[name] if args.quick else ()
        count, rounds = (2, 1) if args.quick else (args.instances, args.rounds)
        found = single(name, TINY_SPEEDUPS if args.quick else SPEEDUPS, count, rounds, *tiny)
        report["backbones"][name] = found
        show(name, found)
    write(args.output, report, args.add)


if __name__ == "__main__":
    main()
