"""Write the tables of docs/performance.md from the JSON that the benchmarks left in docs/results.

``python docs/update_performance.py`` rewrites them; with ``--check`` it exits with 1 if one is out of date.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "docs" / "results"
SPEEDUPS, PROMISES = ("2.0x", "2.5x", "3.0x"), (0.90, 0.86, 0.82)
AT = ", ".join(SPEEDUPS)
STATIC, FEW = ", static heads", ", few trimmers"
KEEP_ALL = ("paper's trimmers", "few trimmers")
DISTURBED = 1.15
"""Times the median of a full model's times, from which on a row was measured beside something else."""
NAMES = {"meter": "METER-base", "blip": "BLIP-base VQA"}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(environment: dict[str, Any]) -> str:
    """What a result was measured on."""
    name = environment["device_name"]
    if "instructions" in environment:
        name += f" ({environment['instructions']})"
    return (
        f"{name}, {environment['threads']} threads, torch {environment['torch']}, "
        f"transformers {environment['transformers']}, timm {environment['timm']}, {environment['dtype']}."
    )


def latency(result: dict[str, Any]) -> str:
    """Single instances; rows whose full model took much longer than in the others are marked."""
    rows = []
    for name, found in result["backbones"].items():
        usual = statistics.median(row["full_ms"] for row in found["rows"].values())
        for label, row in found["rows"].items():
            what = f"{NAMES[name]}, {label}" + (" *" if row["full_ms"] > DISTURBED * usual else "")
            cells = [f"{row['full_ms']:.0f}", f"{row['ms']:.0f}", f"{row['speedup']:.2f}x", *promise(row)]
            if "oracle_ms" in row:
                cells += [f"{row['over_oracle']:.3f}", f"{row['oracle_promise']:.2f}"]
            rows.append([what, *cells, *[""] * (8 - len(cells))])
    head = ("", "full, ms", *MEASURED, "over the oracle", "promise the oracle keeps")
    return machine(result["environment"]) + "\n\n" + table(head, rows)


MEASURED = ("ms", "less time than full", "fewer MACs", "promise kept", "in line")


def promise(row: dict[str, float]) -> list[str]:
    """MACs, how much of their promise is kept, how much if time fell evenly with image tokens."""
    macs = f"{row['macs']:.2f}x" if "macs" in row else ""
    return [macs, *(f"{row[key]:.2f}" if key in row else "" for key in ("promise", "in_proportion"))]


def costs(result: dict[str, Any]) -> str:
    """Full against the host."""
    rows = [
        [
            NAMES[name],
            f"{found['host_ms']:.0f}",
            f"{found['full_over_host']:.2f}x",
            f"{found['prepared_over_host']:.2f}x",
        ]
        for name, found in result["backbones"].items()
    ]
    return table(
        ("", "host, ms", "full, host's kernels: faster than the host", "full, prepared weights"), rows
    )


def keep_all(result: dict[str, Any]) -> str:
    """What trimming costs where nothing is dropped."""
    rows = []
    for name, found in result["backbones"].items():
        for kind in KEEP_ALL:
            row = found[kind]
            low, high = (f"{100 * share:.1f}" for share in row["quartiles"])
            what = f"{NAMES[name]}, {row['trimmers']} {kind}"
            rows.append(
                [what, f"{found['full_ms']:.0f}", f"{100 * row['share']:.1f} %", f"{low} to {high} %"]
            )
    head = ("", "full, ms", "trimmers and packing", "half of the measurements")
    return f"{machine(result['environment'])} {result['rounds']} rounds.\n\n{table(head, rows)}"


def varying(result: dict[str, Any]) -> str:
    """Instances that were never met over repeated ones."""
    rows = []
    for name, found in result["backbones"].items():
        low, middle, high = found["gmacs"]
        parts = ", ".join(f"{ratio:.3f}" for ratio in found["first_over_again"])
        cost = f"{low:.1f} to {high:.1f}, median {middle:.1f}"
        rows.append([NAMES[name], str(found["instances"]), cost, f"{found['again_ms']:.0f}", parts])
    head = ("", "instances", "GMACs", "again, ms", "first over again, by quarter of the row")
    return machine(result["environment"]) + "\n\n" + table(head, rows)


def growth(result: dict[str, Any]) -> str:
    """Over sparsity and image size."""
    rows = []
    for name, found in result["backbones"].items():
        for axis, points in found.items():
            label = "image tokens removed" if axis == "sparsity" else "pixels, 2.0x"
            for value, p in points.items():
                shown = f"{float(value):.0%}" if axis == "sparsity" else value
                rows.append(
                    [
                        f"{NAMES[name]}, {label}: {shown}",
                        f"{p['full_ms']:.0f}",
                        f"{p['trimmed_ms']:.0f}",
                        f"{p['speedup']:.2f}x",
                        f"{p['macs']:.2f}x",
                        f"{p['full_memory_mib']:.1f}",
                        f"{p['trimmed_memory_mib']:.1f}",
                    ]
                )
    head = ("", "full, ms", "trimmed, ms", "less time", "fewer MACs", "full, MiB", "trimmed, MiB")
    return machine(result["environment"]) + "\n\n" + table(head, rows)


def batches(result: dict[str, Any]) -> str:
    """Batches of different instances."""
    rows = []
    for name, sizes in result["backbones"].items():
        for size, found in sizes.items():
            for label, row in found.items():
                what = f"{NAMES[name]}, {size}: {label}"
                rows.append([what, f"{row['ms']:.0f}", f"{row['speedup']:.2f}x", *promise(row)])
    return machine(result["environment"]) + "\n\n" + table(("batch of", *MEASURED), rows)


def training(result: dict[str, Any]) -> str:
    """Steps of training."""
    rows, where = [], ""
    for name, found in result.items():
        where = f"{machine(found['environment'])} Batch of {found['batch_size']}, {found['rounds']} rounds."
        rows += [
            [
                f"{NAMES[name]}, {kind}",
                f"{step['seconds']:.2f}",
                f"{step['time_ratio']:.2f}",
                f"{step['activations_ratio']:.2f}",
                f"{step['peak_ratio']:.2f}",
            ]
            for kind, step in found["steps"].items()
        ]
    return (
        where + "\n\n" + table(("step", "s", "time, x plain", "activations, x plain", "peak, x plain"), rows)
    )


def generation(result: dict[str, Any]) -> str:
    """Captions."""
    rows = []
    for case in result["cases"]:
        what = f"{case['image_size']} px, batch {case['batch']}, {case['beams']} beams"
        for name, row in case["contenders"].items():
            full, macs = row["over_full"], row["macs_ratio"]
            rows.append(
                [
                    f"{what}: {name}",
                    f"{row['ms']:.0f}",
                    f"{row['over_transformers']:.2f}x",
                    "" if full is None else f"{full:.2f}x",
                    "" if macs is None else f"{macs:.2f}x",
                ]
            )
    head = ("", "ms", "faster than transformers", "faster than our full", "fewer MACs")
    note = f"{machine(result['environment'])} {result['new_tokens']} steps, {result['rounds']} rounds."
    return note + "\n\n" + table(head, rows)


def counting(result: dict[str, Any]) -> str:
    """Share of counting costs."""
    rows = [
        [name, f"{found['milliseconds']['forward']:.1f}", f"{100 * found['share']:.2f} %"]
        for name, found in result.items()
        if isinstance(found, dict) and "share" in found
    ]
    return machine(result["environment"]) + "\n\n" + table(("", "packed forward, ms", "counting"), rows)


def kernels(result: dict[str, Any]) -> str:
    """Linear layers on torch's own and on prepared weights."""
    by_size: dict[str, list[str]] = {}
    rows = list(dict.fromkeys(str(found["rows"]) for found in result["linear"]))
    for found in result["linear"]:
        by_size.setdefault(f"{found['inputs']} to {found['outputs']}", []).append(
            f"{found['torch']:.0f} / {found['prepared']:.0f}"
        )
    new = [f"{found['ms']:.2f}" for found in result["new"]]
    lines = [[size, *cells, extra] for (size, cells), extra in zip(by_size.items(), new, strict=True)]
    head = ["GMAC/s, torch's own / prepared", *(f"{count} rows" for count in rows), "new number of rows, ms"]
    return machine(result["environment"]) + "\n\n" + table(head, lines)


def heads(result: dict[str, Any]) -> str:
    """Ways to project with some heads dropped."""
    lines = [
        [f"{found['rows']} tokens, {found['kept']} of 12"]
        + [f"{found[way]:.2f}" for way in ("whole", "taken out", "per head")]
        for found in result["heads"]
    ]
    return table(("heads kept", "whole, ms", "taken out, ms", "per head, ms"), lines)


def beside(value: float, bar: float, digits: int) -> str:
    """A value with as many more decimals as it takes to tell it from the bar beside it."""
    while value != bar and float(f"{value:.{digits}f}") == bar:
        digits += 1
    return f"{value:.{digits}f}"


def targets(results: dict[str, Any]) -> str:
    """What was to be reached, and what came out."""
    rows: list[list[str]] = []

    def add(
        what: str, wanted: str, values: list[float], bars: list[float], met: bool, digits: int = 2
    ) -> None:
        pairs = zip(values, bars if len(bars) > 1 else bars * len(values), strict=True)
        shown = ", ".join(beside(value, bar, digits) for value, bar in pairs)
        rows.append([what, wanted, shown, "yes" if met else "**no**"])

    def on_each(file: str) -> Iterator[tuple[str, Any]]:
        """Backbones with the kind of machine, and what was found there."""
        for one in (results[name] for name in (file, f"{file}_avx2") if name in results):
            on = one["environment"]["instructions"]
            yield from ((f"{NAMES[name]} ({on})", found) for name, found in one["backbones"].items())

    for what_on, found in on_each("latency"):
        faster = max(found["full_over_host"], found["prepared_over_host"])
        add(f"{what_on}, full over the host", "at least 1.00", [faster], [1.0], faster >= 1)
        wanted = f"at least {', '.join(f'{least:.2f}' for least in PROMISES)}"
        for kind in ("", STATIC, FEW):
            rows_of = [found["rows"][f"{label}{kind}"] for label in SPEEDUPS]
            own = [row["promise"] for row in rows_of]
            met = all(value >= least for value, least in zip(own, PROMISES, strict=True))
            what = f"{what_on}, one instance{kind}, promise kept at {AT}"
            add(what, wanted, own, list(PROMISES), met)
            over = [row["over_oracle"] for row in rows_of]
            what = f"{what_on}{kind}, over the oracle at {AT}"
            add(what, "at most 1.05", over, [1.05], max(over) <= 1.05, 3)
    for what_on, found in on_each("keep_all"):
        for kind in KEEP_ALL:
            share = found[kind]["share"]
            what = f"{what_on}, {kind} and packing, everything kept"
            add(what, "at most 0.04", [share], [0.04], share <= 0.04, 3)
    for what_on, sizes in on_each("batch"):
        for size, found in sizes.items():
            for kind in ("", STATIC):
                kept_at = [found[f"{label}{kind}"]["promise"] for label in SPEEDUPS]
                what = f"{what_on}, batch of {size}{kind}, promise kept at {AT}"
                add(what, "at least 0.95", kept_at, [0.95], min(kept_at) >= 0.95)
    for what_on, sizes in on_each("batch_few"):
        for size, found in sizes.items():
            kept_at = [found[f"{label}{FEW}"]["promise"] for label in SPEEDUPS]
            what = f"{what_on}, batch of {size}{FEW}, promise kept at {AT}"
            add(what, "at least 0.95", kept_at, [0.95], min(kept_at) >= 0.95)
    for name, found in results["training"].items():
        for kind, time, memory in (("trimmed", 1.25, 1.2), ("distilled", 2.3, 2.2)):
            step = found["steps"][kind]
            values = [step["time_ratio"], step["peak_ratio"]]
            met = values[0] <= time and values[1] <= memory
            what = f"{NAMES[name]}, {kind} training step over a plain one: time, peak memory"
            add(what, f"at most {time:.2f}, {memory:.1f}", values, [time, memory], met)
    for case in results["generation"]["cases"]:
        if case["beams"] == 3:
            faster = case["contenders"]["full, prepared"]["over_transformers"]
            what = f"captions, {case['image_size']} px, batch {case['batch']}, full over transformers"
            add(what, "at least 1.50", [faster], [1.5], faster >= 1.5)
    for name, found in results["counting"].items():
        if isinstance(found, dict) and "share" in found:
            add(
                f"counting MACs, {name}, share of a forward",
                "below 0.02",
                [found["share"]],
                [0.02],
                found["share"] < 0.02,
                3,
            )
    return table(("what", "target", "measured", "met"), rows)


TABLES = {
    "latency": ("latency", latency),
    "latency-avx2": ("latency_avx2", latency),
    "costs": ("latency", costs),
    "keep-all": ("keep_all", keep_all),
    "keep-all-avx2": ("keep_all_avx2", keep_all),
    "varying": ("varying", varying),
    "growth": ("growth", growth),
    "batch": ("batch", batches),
    "batch-few": ("batch_few", batches),
    "batch-few-avx2": ("batch_few_avx2", batches),
    "training": ("training", training),
    "generation": ("generation", generation),
    "counting": ("counting", counting),
    "kernels": ("kernels", kernels),
    "heads": ("kernels", heads),
}
"""Name of a place in the page to the JSON and the function that fill it."""


def updated(page: str) -> str:
    """The page with every table from its JSON."""
    files = {file for file, _ in TABLES.values()}
    results = {file: json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8")) for file in files}
    texts = {name: make(results[file]) for name, (file, make) in TABLES.items()} | {
        "targets": targets(results)
    }
    for name, made in texts.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if len(pattern.findall(page)) != 1:
            raise ValueError(f"docs/performance.md has no single place for {name}")
        text = f"{begin}\n{made}\n{end}"
        page = pattern.sub(lambda match, text=text: text, page)
    return page


def main() -> int:
    """Write, or check."""
    before = PAGE.read_text(encoding="utf-8")
    after = updated(before)
    if "--check" in sys.argv:
        return int(before != after)
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
