"""How fast BLIP writes captions, beside transformers' own BLIP: ``python benchmarks/generation.py``.

One set of random weights at full size, the same images, prompt and number of steps: transformers'
``BlipForConditionalGeneration.generate``, our backbone as it is (``full``), and trimmed by random decisions
at the sparsities of recipes/blip/captioning_288_*.yaml, their trimmers included. Ours are measured with
torch's own linear layers and with prepared weights (:mod:`smarttrim_cli.pruning.prepared`).

All contenders run once per round, one after the other; ratios are taken within a round, and of times and
ratios the median over rounds is shown. ``first`` is the time to the first token, ``step`` that of each
further one. ``cpu`` are ratios of processor time: with ``--threads 1`` they hold on a busy machine too.
It prints a table and writes ``docs/results/generation.json``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import BlipConfig, BlipForConditionalGeneration

from smarttrim_cli.engine.devices import best_device, describe_environment, keep_freed_memory, synchronize
from smarttrim_cli.engine.files import write_json
from smarttrim_cli.engine.plan import backbone_without_data
from smarttrim_cli.engine.simulate import apply_targets, simulated_trimmers
from smarttrim_cli.pruning import prepared
from smarttrim_cli.pruning.cost import instance_macs
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "generation.json"
HOST, FULL, PREPARED = "transformers", "full", ", prepared"
TRIMMED = ("1.5x", "2.0x")

_TINY_VISION = (
    "{patch_size: 8, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 64}"
)
_TINY_TEXT = (
    "{hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 128, vocab_size: 90,"
    " max_position_embeddings: 64, sep_token_id: 2, initializer_range: 0.2}"
)
TINY = (f"backbone.vision.config={_TINY_VISION}", f"backbone.text.config={_TINY_TEXT}")

Write = Callable[[int], Tensor]
"""Writes so many tokens behind the prompt; texts (B, T), prompt included."""


@dataclass(frozen=True)
class Case:
    """What is measured: images of ``image_size`` pixels, ``batch`` at a time, with so many beams."""

    image_size: int
    batch: int
    beams: int


@dataclass(frozen=True)
class Contender:
    """One way of writing.

    Attributes:
        write: Does it.
        gmacs: Mean per image as run, by the cost model; None where it is not ours.
    """

    write: Write
    gmacs: float | None = None


class Times(NamedTuple):
    """Of one round, milliseconds: to the first token, to the last, and of processors to the last."""

    first: float
    whole: float
    cpu: float


def recipe(speedup: str, image_size: int, tiny: bool) -> Recipe:
    """The recipe of a row of the paper's table 3, at an image size."""
    overrides = [f"backbone.image_size={image_size}", *(TINY if tiny else ())]
    return load_recipe(ROOT / "recipes" / "blip" / f"captioning_288_{speedup}.yaml", overrides)


def build(image_size: int, tiny: bool) -> nn.Module:
    """The untrimmed backbone, random weights."""
    untrimmed = recipe("1.0x", image_size, tiny)
    torch.manual_seed(untrimmed.seed)
    return backbone_without_data(untrimmed).eval()


def with_weights_of(source: nn.Module, other: nn.Module) -> nn.Module:
    """Another model whose parameters are those of ``source``, in the same memory."""
    other.load_state_dict(source.state_dict(), assign=True)
    return other.eval()


def host_of(backbone: Any) -> BlipForConditionalGeneration:
    """Transformers' model with the backbone's weights."""
    vision, text = backbone.vision_model.config, backbone.text_decoder.bert.config
    config = BlipConfig(vision_config=vision.to_dict(), text_config=text.to_dict())
    return with_weights_of(backbone, BlipForConditionalGeneration(config))


def host_writer(host: Any, inputs: dict[str, Tensor], case: Case) -> Write:
    """Transformers' ``generate``; it wants an end token behind the prompt, and drops it."""
    prompt, text = inputs["prompt_ids"], host.config.text_config
    end = torch.full_like(prompt[:, :1], text.sep_token_id)

    def write(steps: int) -> Tensor:
        length = prompt.shape[1] + steps
        ids = torch.cat((prompt, end), 1)  # new every time: it is written to
        return host.generate(
            inputs["pixel_values"],
            ids,
            num_beams=case.beams,
            do_sample=False,
            min_length=length,
            max_length=length,
        )

    return write


def our_writer(model: TrimmedModel, inputs: dict[str, Tensor], mode: str) -> Write:
    """Our backbone in a mode."""
    ids = torch.arange(len(inputs["pixel_values"]), device=inputs["pixel_values"].device)

    def write(steps: int) -> Tensor:
        return model({**inputs, "num_steps": torch.tensor(steps)}, mode, instance_ids=ids).output

    return write


def gmacs(model: TrimmedModel, inputs: dict[str, Tensor], steps: int) -> tuple[float, float]:
    """Mean GMACs per image as run: trimmed, and of the full model."""
    ids = torch.arange(len(inputs["pixel_values"]), device=inputs["pixel_values"].device)
    forward = model({**inputs, "num_steps": torch.tensor(steps)}, "packed", instance_ids=ids)
    trimmed_B, full_B = instance_macs(model, forward.decisions)
    return trimmed_B.mean().item() / 1e9, full_B.mean().item() / 1e9


def contenders(case: Case, steps: int, tiny: bool, device: torch.device) -> dict[str, Contender]:
    """Name to contender; they share their weights."""
    backbone: Any = build(case.image_size, tiny).to(device)
    backbone.form = replace(backbone.form, decoding=replace(backbone.form.decoding, num_beams=case.beams))
    inputs = {
        name: tensor.to(device)
        for name, tensor in backbone.example_inputs(backbone.form.prompt_tokens, case.batch, seed=0).items()
        if name != "num_steps"
    }
    twin = deepcopy(backbone, {id(tensor): tensor for tensor in backbone.parameters()})  # the same memory
    prepared.prepare(twin)
    found = {HOST: Contender(host_writer(host_of(backbone).to(device), inputs, case))}
    for suffix, host in (("", backbone), (PREPARED, twin)):
        for speedup in TRIMMED:
            row = recipe(speedup, case.image_size, tiny)
            torch.manual_seed(row.seed)
            model = TrimmedModel(host, simulated_trimmers(host, row)).to(device).eval()
            if suffix:
                prepared.prepare(model.trimmers)
            apply_targets(model, row, None)
            trimmed, full = gmacs(model, inputs, steps)
            found.setdefault(FULL + suffix, Contender(our_writer(model, inputs, "full"), full))
            found[speedup + suffix] = Contender(our_writer(model, inputs, "packed"), trimmed)
    return found


def measure(case: Case, steps: int, rounds: int, tiny: bool, device: torch.device) -> dict[str, Any]:
    """Times of all contenders of a case."""
    with torch.no_grad():  # weights made in inference mode would be laid out anew at every call
        entered = contenders(case, steps, tiny, device)
    return _measured(case, steps, rounds, entered, device)


@torch.inference_mode()
def _measured(
    case: Case, steps: int, rounds: int, entered: dict[str, Contender], device: torch.device
) -> dict[str, Any]:
    texts = {name: contender.write(steps).tolist() for name, contender in entered.items()}  # and warm up
    times: dict[str, list[Times]] = {name: [] for name in entered}
    for _ in range(rounds):
        for name, contender in entered.items():
            first, _ = milliseconds(contender.write, 1, device)
            times[name].append(Times(first, *milliseconds(contender.write, steps, device)))
    same = {
        name: sum(text == host for text, host in zip(texts[name], texts[HOST], strict=True))
        for name in (FULL, FULL + PREPARED)
    }
    lines = {name: line(name, times, entered, steps) for name in entered}
    return {**asdict(case), "texts_as_transformers": same, "contenders": lines}


def milliseconds(write: Write, steps: int, device: torch.device) -> tuple[float, float]:
    """How long it takes to write so many tokens, and how long it keeps processors busy."""
    synchronize(device)
    start, start_cpu = time.perf_counter(), time.process_time()
    write(steps)
    synchronize(device)
    return (time.perf_counter() - start) * 1e3, (time.process_time() - start_cpu) * 1e3


def line(
    name: str, times: dict[str, list[Times]], entered: dict[str, Contender], steps: int
) -> dict[str, float | None]:
    """What is said of one contender: times, times faster than transformers and than ``full``, MACs."""
    own = times[name]
    full = FULL + PREPARED if name.endswith(PREPARED) else FULL
    macs, full_macs = entered[name].gmacs, entered[full].gmacs

    def over(other: str, what: str) -> float:
        rounds = zip(times[other], own, strict=True)
        return statistics.median(getattr(theirs, what) / getattr(mine, what) for theirs, mine in rounds)

    return {
        "ms": statistics.median(each.whole for each in own),
        "first_ms": statistics.median(each.first for each in own),
        "step_ms": statistics.median((each.whole - each.first) / max(steps - 1, 1) for each in own),
        "over_transformers": over(HOST, "whole"),
        "over_full": None if name == HOST else over(full, "whole"),
        "cpu_over_transformers": over(HOST, "cpu"),
        "cpu_over_full": None if name == HOST else over(full, "cpu"),
        "gmacs": macs,
        "macs_ratio": full_macs / macs if macs and full_macs else None,
    }


def table_of(result: dict[str, Any]) -> Iterator[str]:
    """A case in lines."""
    images = "one image" if result["batch"] == 1 else f"{result['batch']} images"
    beams = "greedy" if result["beams"] == 1 else f"{result['beams']} beams"
    yield f"{result['image_size']} pixels, {images}, {beams}; texts as transformers': " + ", ".join(
        f"{name} {count} of {result['batch']}" for name, count in result["texts_as_transformers"].items()
    )
    head = ("ms", "first", "step", "x transf.", "x full", "cpu transf", "cpu full", "GMACs", "x MACs")
    yield f"{'':15}" + "".join(f"{name:>11}" for name in head)
    for name, values in result["contenders"].items():
        digits = (0, 0, 1, 2, 2, 2, 2, 2, 2)
        cells = (
            f"{value:11.{number}f}" if value is not None else f"{'':11}"
            for value, number in zip(values.values(), digits, strict=True)
        )
        yield f"{name:15}" + "".join(cells)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image-size", type=int, nargs="*", default=[288, 384], help="pixels")
    parser.add_argument("--batch-size", type=int, nargs="*", default=[1, 8], help="images at a time")
    parser.add_argument("--beams", type=int, nargs="*", default=[3, 1])
    parser.add_argument(
        "--new-tokens", type=int, default=16, help="steps: 16 is all that max_length 20 allows"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", help="such as cpu or cuda")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--quick", action="store_true", help="a tiny model: times mean nothing")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = arguments(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    device = best_device(options.device)
    cases = [
        Case(32 if options.quick else size, batch, beams)
        for size in options.image_size
        for batch in options.batch_size
        for beams in options.beams
    ]
    result: dict[str, Any] = {
        "environment": describe_environment(device),
        "new_tokens": options.new_tokens,
        "rounds": options.rounds,
        "cases": [],
    }
    for case in dict.fromkeys(cases):
        found = measure(case, options.new_tokens, options.rounds, options.quick, device)
        print(*table_of(found), "", sep="\n", flush=True)
        result["cases"].append(rounded(found))
        write_json(options.output, result)


def rounded(value: Any) -> Any:
    """Floats to three digits after the point."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
