"""Contract: saving and loading round-trips, and a file of trimmers attaches to a freshly loaded host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from smarttrim_cli import registry
from smarttrim_cli.data.images import Preprocess
from smarttrim_cli.data.processor import Processor, train_word_tokenizer
from smarttrim_cli.engine import artifact
from smarttrim_cli.engine.artifact import Bundle, TrimmerConfig
from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.model import TrimmedModel
from tests import tiny
from tests.tiny import Variant

GROUPS = [
    f"{kind}.{side}" for kind in ("token", "head", "cross_head") for side in ("vision", "text", "decoder")
]
EVERY_VARIANT_AND_PAIR = [
    *((variant, tiny.pairs()[0]) for variant in tiny.variants() if variant.form == "vqa"),
    *((tiny.METER, pair) for pair in tiny.pairs()[1:]),
]
SCENES = {"name": "scenes", "num_images": {"train": 20, "calibration": 1, "val": 1, "test": 1}}


@pytest.fixture(scope="module")
def task_section(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Twenty scenes in a cache of their own."""
    patch = pytest.MonkeyPatch()
    patch.setenv("SMARTTRIM_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield {"name": "vqa", "data": SCENES, "min_answer_count": 1}
    patch.undo()


def bundle_of(variant: Variant, pair: tuple[str, str], task_section: dict[str, Any]) -> Bundle:
    """A model with random weights and everything that belongs to it."""
    task = artifact.build_task(task_section, variant.backbone, lambda message: None)
    task.prepare_labels(None)
    tokenizer = train_word_tokenizer(task.texts("train"))
    section = {"name": variant.backbone, **(variant.options or {})}
    section = registry.load("backbones", variant.backbone).fit_to_tokenizer(section, tokenizer)
    host = tiny.enliven(artifact.build_backbone(section, task.form))
    model = tiny.attach(host, *pair)
    model.threshold.fill_(0.375)
    token, head = ({"name": name} for name in pair)
    config = {
        "backbone": section,
        "task": task_section,
        "form": task.form.to_dict(),
        "trimmers": vars(TrimmerConfig(sorted(GROUPS), token, head)),
    }
    return Bundle(model, task, Processor(tokenizer, Preprocess(size=32), 20), config)


@pytest.fixture(scope="module")
def saved(task_section: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    """The first variant with the trimmers of the paper, saved."""
    bundle = bundle_of(tiny.METER, ("cross_modal", "global_head"), task_section)
    folder = tmp_path_factory.mktemp("saved")
    artifact.save_model(folder, bundle)
    return bundle, folder


def copied(folder: Path, target: Path) -> Path:
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@torch.no_grad()
def assert_same_outputs(one: TrimmedModel, other: TrimmedModel) -> None:
    inputs = tiny.ragged_inputs(one.backbone)
    for mode in ("full", "masked", "packed"):
        first, second = (m(inputs, mode, instance_ids=tiny.ids()).output for m in (one, other))
        assert torch.equal(first, second), mode


@pytest.mark.parametrize(("variant", "pair"), EVERY_VARIANT_AND_PAIR, ids=str)
def test_round_trip_is_bit_exact(
    variant: Variant, pair: tuple[str, str], task_section: dict[str, Any], tmp_path: Path
) -> None:
    bundle = bundle_of(variant, pair, task_section)
    artifact.save_model(tmp_path, bundle)
    loaded = artifact.load_model(tmp_path, log=lambda message: None)
    assert not loaded.model.training
    assert float(loaded.model.threshold) == 0.375
    assert loaded.task.vocab == bundle.task.vocab
    assert loaded.config["trimmers"] == bundle.config["trimmers"]
    assert_same_outputs(bundle.model, loaded.model)
    text = ["is there a small red circle?"]
    first, second = (b.processor.tokenizer(text)["input_ids"] for b in (bundle, loaded))
    assert first == second and len(first[0]) > 5


def test_what_was_taken_out_stays_out(task_section: dict[str, Any], tmp_path: Path) -> None:
    bundle = bundle_of(tiny.METER, ("cross_modal", "global_head"), task_section)
    removed = ["text.1.token", "vision.2.cross_head"]
    bundle.model.remove(removed)
    bundle.config["trimmers"]["removed"] = removed
    artifact.save_model(tmp_path, bundle)
    loaded = artifact.load_model(tmp_path, log=lambda message: None)
    assert set(loaded.model.sites) == set(bundle.model.sites)
    assert not set(removed) & set(loaded.model.sites) and len(loaded.model.sites) > 2
    assert_same_outputs(bundle.model, loaded.model)


def test_weights_lie_under_the_hosts_own_names(saved: tuple[Bundle, Path]) -> None:
    bundle, folder = saved
    host = artifact.build_backbone(bundle.config["backbone"], bundle.task.form)
    assert set(load_file(str(folder / artifact.WEIGHTS))) == set(host.state_dict())
    assert not set(load_file(str(folder / artifact.TRIMMERS))) & set(host.state_dict())
    assert not [file.name for file in folder.iterdir() if file.suffix in (".pt", ".bin", ".pkl", ".pth")]


def test_trimmers_attach_to_a_freshly_loaded_host(saved: tuple[Bundle, Path], tmp_path: Path) -> None:
    bundle, folder = saved
    for name in (artifact.TRIMMERS, artifact.CONFIG):  # nothing else is needed
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    host = artifact.build_backbone(bundle.config["backbone"], bundle.task.form)
    host.load_state_dict(bundle.model.backbone.state_dict())
    trimmers = artifact.trimmers_for(host, TrimmerConfig(**artifact.read_config(tmp_path)["trimmers"]))
    model = TrimmedModel(host, trimmers).eval()
    artifact.load_trimmers(model, tmp_path)
    assert_same_outputs(bundle.model, model)


def test_a_model_without_trimmers(saved: tuple[Bundle, Path], tmp_path: Path) -> None:
    bundle, _ = saved
    config = {**bundle.config, "trimmers": vars(TrimmerConfig([], None, None))}
    artifact.save_model(
        tmp_path, Bundle(TrimmedModel(bundle.model.backbone, {}), bundle.task, bundle.processor, config)
    )
    assert not (tmp_path / artifact.TRIMMERS).exists()
    loaded = artifact.load_model(tmp_path, log=lambda message: None).model
    inputs = tiny.ragged_inputs(loaded.backbone)
    with torch.no_grad():
        assert torch.equal(loaded(inputs, "full").output, bundle.model(inputs, "full").output)
        assert loaded.sites == {}


@pytest.mark.parametrize("file", [artifact.WEIGHTS, artifact.TRIMMERS])
@pytest.mark.parametrize("damage", ["missing", "unused", "shape"])
def test_weights_that_do_not_fit_are_named(
    saved: tuple[Bundle, Path], tmp_path: Path, file: str, damage: str
) -> None:
    path = copied(saved[1], tmp_path) / file
    tensors = load_file(str(path))
    victim = sorted(tensors)[-1]
    if damage == "missing":
        del tensors[victim]
    elif damage == "unused":
        victim = "left.over"
        tensors[victim] = torch.zeros(2)
    else:
        tensors[victim] = torch.zeros(3, 1, 7)
    save_file(tensors, str(path))
    with pytest.raises(UserError) as error:
        artifact.load_model(tmp_path, log=lambda message: None)
    assert damage in error.value.message and victim in error.value.message
    assert error.value.where == str(path)
    if damage == "shape":
        assert "(3, 1, 7)" in error.value.message


@pytest.mark.parametrize("file", [artifact.WEIGHTS, artifact.TRIMMERS, artifact.CONFIG])
@pytest.mark.parametrize("damage", ["absent", "truncated"])
def test_damaged_files_are_named(saved: tuple[Bundle, Path], tmp_path: Path, file: str, damage: str) -> None:
    path = copied(saved[1], tmp_path) / file
    content = path.read_bytes()
    path.unlink() if damage == "absent" else path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError) as error:
        artifact.load_model(tmp_path, log=lambda message: None)
    assert file in str(error.value)


def test_another_label_vocabulary_is_refused(saved: tuple[Bundle, Path], tmp_path: Path) -> None:
    path = copied(saved[1], tmp_path) / "answers.json"
    answers = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**answers, "one more": len(answers)}), "utf-8")
    with pytest.raises(UserError, match="label vocabulary"):
        artifact.load_model(tmp_path, log=lambda message: None)


def test_a_trimmer_of_the_wrong_kind_is_refused() -> None:
    host = tiny.meter()
    with pytest.raises(UserError, match="scores heads, not tokens"):
        artifact.trimmers_for(host, TrimmerConfig(GROUPS, {"name": "global_head"}, None))


def test_trimmers_only_at_the_sites_that_are_asked_for() -> None:
    host: nn.Module = tiny.meter()
    token, head = {"name": "cross_modal", "hidden_dim": 4}, {"name": "global_head"}
    only_vision = artifact.trimmers_for(host, TrimmerConfig(["token.vision", "cross_head.text"], token, head))
    assert set(only_vision) == {
        *(f"vision.{i}.token" for i in range(4)),
        "text.2.cross_head",
        "text.3.cross_head",
    }
    no_heads = artifact.trimmers_for(host, TrimmerConfig(["token.vision", "head.text"], token, None))
    assert set(no_heads) == {f"vision.{i}.token" for i in range(4)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 64}, "size is 64, but the model takes images of 32 pixels"),
        ({"max_text_length": 500}, r"max_text_length is 500, but the text encoder has \d+ positions"),
    ],
)
def test_preprocessing_that_does_not_fit_is_named(
    saved: tuple[Bundle, Path], tmp_path: Path, changed: dict[str, int], message: str
) -> None:
    file = copied(saved[1], tmp_path) / "preprocessing.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changed}), encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        artifact.load_model(tmp_path, log=lambda message: None)
    assert error.value.where == str(file)


@pytest.mark.parametrize("file", [artifact.WEIGHTS, artifact.TRIMMERS])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(
    saved: tuple[Bundle, Path], tmp_path: Path, file: str, value: float
) -> None:
    path = copied(saved[1], tmp_path) / file
    tensors = load_file(str(path))
    victim = next(name for name, found in tensors.items() if found.is_floating_point())
    tensors[victim].view(-1)[0] = value
    save_file(tensors, str(path))
    with pytest.raises(UserError, match=f"{victim} has values that are not finite") as error:
        artifact.load_model(tmp_path, log=lambda message: None)
    assert error.value.where == str(path)


@pytest.mark.parametrize("dtype", ["int64", "bool", "float8_e4m3fn", "complex64"])
def test_numbers_of_another_kind_are_no_weights(
    saved: tuple[Bundle, Path], tmp_path: Path, dtype: str
) -> None:
    path = copied(saved[1], tmp_path) / artifact.WEIGHTS
    tensors = load_file(str(path))
    victim = next(name for name, found in tensors.items() if found.is_floating_point())
    tensors[victim] = tensors[victim].to(getattr(torch, dtype))
    save_file(tensors, str(path))
    with pytest.raises(UserError, match=f"{victim} is of {dtype}, which are no weights") as error:
        artifact.load_model(tmp_path, log=lambda message: None)
    assert error.value.where == str(path)


def test_weights_of_half_precision_are_weights(saved: tuple[Bundle, Path], tmp_path: Path) -> None:
    path = copied(saved[1], tmp_path) / artifact.WEIGHTS
    tensors = {name: value.bfloat16() for name, value in load_file(str(path)).items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, str(path))
    loaded = artifact.load_model(tmp_path, log=lambda message: None).model
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}


ODD_VALUES = [
    ("threshold", "NaN", "threshold is NaN, not a finite number"),
    ("threshold", "-Infinity", "threshold is -Infinity, not a finite number"),
    ("threshold", "true", "threshold is true, not a finite number"),
    ("threshold", '"1e3"', "threshold is .1e3., not a finite number"),
    ("threshold", "1e300", "threshold is .*, not a finite number"),
    ("threshold", "1" + "0" * 400, "threshold is .*, not a finite number"),
    ("version", "99", "version is 99, not 1"),
    ("version", "null", "version is null, not 1"),
    ("version", "true", "version is true, not 1"),
    ("trimmers.groups", "null", "trimmers.groups is null, not a list of texts"),
    ("trimmers.groups", '"x"', "trimmers.groups is .x., not a list of texts"),
    ("trimmers.groups", "[]", f"trimmers names none, but there is a {artifact.TRIMMERS}"),
    ("trimmers.removed", '"x"', "trimmers.removed is .x., not a list of texts"),
    ("form.name", '"x"', "form.name is .x., which is no form"),
]


@pytest.mark.parametrize(("key", "value", "message"), ODD_VALUES)
def test_odd_values_of_the_configuration_are_named(
    saved: tuple[Bundle, Path], tmp_path: Path, key: str, value: str, message: str
) -> None:
    file = copied(saved[1], tmp_path) / artifact.CONFIG
    content = json.loads(file.read_text(encoding="utf-8"))
    *sections, last = key.split(".")
    inner = content
    for section in sections:
        inner = inner[section]
    inner[last] = json.loads(value)
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        artifact.load_model(tmp_path, log=lambda message: None)
    assert error.value.where == str(file)


def test_a_configuration_with_a_byte_order_mark_is_refused(
    saved: tuple[Bundle, Path], tmp_path: Path
) -> None:
    file = copied(saved[1], tmp_path) / artifact.CONFIG
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    with pytest.raises(UserError, match="not plain UTF-8") as error:
        artifact.load_model(tmp_path, log=lambda message: None)
    assert error.value.where == str(file) and "byte order mark" in str(error.value.hint)
