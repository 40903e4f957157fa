from __future__ import annotations

import copy
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import smarttrim_cli
from smarttrim_cli import registry
from smarttrim_cli.engine import artifact
from smarttrim_cli.engine import export as export_module
from smarttrim_cli.engine.artifact import build_backbone, load_into, load_model, load_trimmers, read_tensors
from smarttrim_cli.engine.card import _needed, call_of
from smarttrim_cli.engine.compare import compare
from smarttrim_cli.engine.evaluate import evaluate
from smarttrim_cli.engine.export import _refuse_loss, export
from smarttrim_cli.engine.files import write_text
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.profile import profile
from smarttrim_cli.engine.summary import summary
from smarttrim_cli.errors import CheckFailed, SmartTrimError, UserError
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.recipe import load_recipe
from tests.engine.tiny_run import tiny_recipe, tree
from tests.tiny import BACKBONES

ELSEWHERE = """
import json, sys
import torch
torch.set_num_threads(1)
import smarttrim_cli

model = smarttrim_cli.load("exported")
results = [model.predict("image.png", text, full=full) for text in sys.argv[1:] for full in (False, True)]
print(json.dumps([[r.answer, r.score, r.gmacs, r.full_gmacs] for r in results]))
"""
QUESTIONS = ["what color is the circle?", "how many objects are there?", "is there a zebra?"]


@pytest.fixture(scope="module")
def exported(settings: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained run, evaluated, and its export beside it."""
    from tests.engine.tiny_run import trained_run

    folder = tmp_path_factory.mktemp("export")
    shutil.copytree(trained_run(tmp_path_factory), folder / "run")
    (folder / "run/summary.json").unlink()  # where other tests may have left a profile
    evaluate(str(folder / "run"))
    result = export(str(folder / "run"), out=folder / "exported")
    assert result["largest_difference"] == 0.0
    assert set(result["files"]) == {path.name for path in (folder / "exported").iterdir()}
    return folder


def test_works_elsewhere_without_data_as_its_source(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "exported", tmp_path / "exported")
    noise = torch.randint(0, 256, (40, 52, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(tmp_path / "image.png")
    environment = {**os.environ, "SMARTTRIM_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(Path(smarttrim_cli.__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *QUESTIONS],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert not (tmp_path / "cache").exists()
    source = smarttrim_cli.load(exported / "run")
    expected = []
    for text in QUESTIONS:
        for full in (False, True):
            result = source.predict(tmp_path / "image.png", text, full=full)
            expected.append([result.answer, result.score, result.gmacs, result.full_gmacs])
            assert (result.gmacs == result.full_gmacs) == full
    assert [row[0] for row in json.loads(ended.stdout)] == [row[0] for row in expected]
    assert sum(json.loads(ended.stdout), []) == pytest.approx(sum(expected, []))


def test_batch_answers_as_single_instances(exported: Path) -> None:
    model = smarttrim_cli.load(exported / "exported")
    images = [Image.new("RGB", (32, 32), color) for color in ("red", "blue", "white")]
    batch = model.predict_batch(images, QUESTIONS)
    single = [model.predict(image, text) for image, text in zip(images, QUESTIONS, strict=True)]
    assert [one.answer for one in batch] == [one.answer for one in single]
    assert [one.gmacs for one in batch] == pytest.approx([one.gmacs for one in single])
    assert [one.score for one in batch] == pytest.approx([one.score for one in single], abs=1e-5)


def test_weights_are_as_readable_as_other_files(exported: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in (exported / "exported").iterdir()}
    assert len(set(modes.values())) == 1, modes


def test_an_exported_model_is_no_run(exported: Path) -> None:
    """It has a recipe, too; commands sent the user from one to the next."""
    for command in (evaluate, summary, lambda folder: compare([folder])):
        with pytest.raises(UserError, match="an exported model, not a run directory"):
            command(str(exported / "exported"))


def test_answers_of_a_model_whose_outputs_are_nan_are_none(exported: Path) -> None:
    model = smarttrim_cli.load(exported / "exported")
    with torch.no_grad():
        for parameter in model.bundle.model.backbone.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(SmartTrimError, match="not numbers"):
        model.predict(Image.new("RGB", (48, 48)), QUESTIONS[0], full=True)


def test_a_loaded_model_can_be_copied_and_sent_to_other_processes(exported: Path) -> None:
    model, picture = smarttrim_cli.load(exported / "exported"), Image.new("RGB", (48, 48), "red")
    expected = model.predict(picture, QUESTIONS[0]).answer
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert other.predict(picture, QUESTIONS[0]).answer == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_of_another_precision_answers(exported: Path, dtype: torch.dtype) -> None:
    model, picture = smarttrim_cli.load(exported / "exported"), Image.new("RGB", (48, 48), "red")
    expected = [model.predict(picture, QUESTIONS[0], full=full) for full in (False, True)]
    model.model.to(dtype)
    for full, before in zip((False, True), expected, strict=True):
        found = model.predict(picture, QUESTIONS[0], full=full)
        assert found.score == pytest.approx(before.score, abs=0.05)
        assert found.full_gmacs == pytest.approx(before.full_gmacs)


def test_random_trimmers_draw_anew_for_every_instance(tmp_path: Path) -> None:
    """And the same for one instance, alone and in a batch."""
    finetune(
        tiny_recipe(
            tmp_path,
            "train.max_steps=1",
            "pruning.token_trimmer={name: random_token}",
            "pruning.head_trimmer={name: random_head}",
        )
    )
    model = smarttrim_cli.load(tmp_path / "run")
    pictures = [Image.new("RGB", (32, 32), color) for color in ("red", "blue", "white")]

    def kept(found: Any) -> list[dict[str, Any]]:
        return [{name: mask.tolist() for name, mask in one.decisions.keep.items()} for one in found]

    batch = kept(model.predict_batch(pictures, QUESTIONS[:1] * 3))
    assert batch[0] != batch[1] != batch[2] != batch[0]
    assert batch == kept([model.predict(picture, QUESTIONS[0]) for picture in pictures])
    (other,) = kept([model.predict(pictures[0], "what color is the square?")])
    assert other != batch[0]


def test_batches_of_any_kind(exported: Path) -> None:
    """Columns of a table and generators, too."""
    model, pictures = smarttrim_cli.load(exported / "exported"), [Image.new("RGB", (48, 48))] * 2
    expected = [one.answer for one in model.predict_batch(pictures, QUESTIONS[:2])]
    for images, texts in ((tuple(pictures), np.array(QUESTIONS[:2])), (iter(pictures), iter(QUESTIONS[:2]))):
        assert [one.answer for one in model.predict_batch(images, texts)] == expected  # type: ignore[arg-type]


def test_pictures_that_are_read_late_are_named_as_files_are(exported: Path, tmp_path: Path) -> None:
    model, path = smarttrim_cli.load(exported / "exported"), tmp_path / "a.png"
    noise = torch.randint(0, 256, (48, 48, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(path)
    closed = Image.open(path)
    closed.close()
    path.write_bytes(path.read_bytes()[:2000])
    for picture in (closed, Image.open(path)):
        with pytest.raises(UserError, match="predict: an image cannot be read"):
            model.predict(picture, QUESTIONS[0])


def test_what_cannot_be_predicted_is_refused(exported: Path) -> None:
    model = smarttrim_cli.load(exported / "exported")
    picture = Image.new("RGB", (48, 48))
    for call, message in (
        (lambda: model.predict(picture), "a text is empty"),
        (lambda: model.predict_batch([], []), "no texts"),
        (lambda: model.predict_batch([picture] * 3, "abc"), "a list of texts is needed"),
        (lambda: model.predict_batch("a.png", ["is it?"]), "a list of images is needed"),  # type: ignore[arg-type]
        (lambda: model.predict(picture, "is it \ud800?"), "half of a character"),
        (lambda: model.predict(Image.new("RGB", (0, 4)), "is it?"), "an image of 0 x 4 pixels"),
        (lambda: model.predict(picture, None), "NoneType given"),  # type: ignore[arg-type]
        (lambda: model.predict(3, "is it?"), "int given"),  # type: ignore[arg-type]
        (lambda: smarttrim_cli.load(exported / "exported", device="bla"), "device 'bla' is not available"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_the_folder_that_it_runs_in(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (".", "..", str(tmp_path)):
        with pytest.raises(UserError, match="the command runs in this folder"):
            export(str(exported / "run"), out=Path(out))
    assert tree(tmp_path) == {}


def test_what_overrides_say_of_the_task_holds_for_the_folder(exported: Path, tmp_path: Path) -> None:
    overrides = ["task.clean_texts=true", "task.on_bad_sample=skip"]
    export(str(exported / "run"), out=tmp_path / "out", overrides=overrides)
    picture, text = Image.new("RGB", (48, 48)), "what color . . . is the circle?"
    shorter, longer = (smarttrim_cli.load(folder) for folder in (tmp_path / "out", exported / "exported"))
    assert shorter.predict(picture, text).full_gmacs < longer.predict(picture, text).full_gmacs
    said = "Measured with other settings of the task: clean_texts."
    cards = [(folder / "README.md").read_text() for folder in (tmp_path / "out", exported / "exported")]
    assert said in cards[0] and "other settings" not in cards[1]


def test_taken_folder_is_refused(exported: Path, tmp_path: Path) -> None:
    run, before = str(exported / "run"), tree(exported / "exported")
    with pytest.raises(UserError, match="exists already"):
        export(run, out=exported / "exported")
    assert tree(exported / "exported") == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(b"x")
    with pytest.raises(UserError, match="holds other things than a model"):
        export(run, out=tmp_path / "photos", overwrite=True)
    assert tree(tmp_path / "photos") == {"a.png": b"x"}
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is a file, not a directory"):
            export(run, out=tmp_path / "photos/a.png", overwrite=overwrite)
    shutil.copytree(exported / "exported", tmp_path / "old")
    (tmp_path / "old/stray").write_bytes(b"")
    with pytest.raises(UserError, match="holds other things than a model, so it is not replaced: stray"):
        export(run, out=tmp_path / "old", overwrite=True)
    assert tree(tmp_path / "old") == before | {"stray": b""}
    (tmp_path / "old/stray").unlink()
    export(run, out=tmp_path / "old", overwrite=True)
    assert tree(tmp_path / "old").keys() == before.keys()


def meanwhile(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], Any]) -> None:
    """Something that another process does while an export compares its models."""
    real = export_module._compare

    def slow(*arguments: Any) -> Any:
        result = real(*arguments)
        monkeypatch.undo()
        happens()
        return result

    monkeypatch.setattr(export_module, "_compare", slow)


@pytest.mark.parametrize(
    ("name", "overwrite", "message"),
    [("README.md", False, "exists already"), ("thesis.tex", True, "holds other things than a model")],
)
def test_what_another_process_wrote_meanwhile_stays(
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    overwrite: bool,
    message: str,
) -> None:
    def other() -> None:
        shutil.copytree(exported / "exported", tmp_path / "out")
        (tmp_path / "out" / name).write_text("of another model", encoding="utf-8")

    meanwhile(monkeypatch, other)
    with pytest.raises(UserError, match=message):
        export(str(exported / "run"), out=tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out" / name).read_text(encoding="utf-8") == "of another model"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_that_is_trained_anew_meanwhile(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its recipe and results would be those of another model."""
    shutil.copytree(exported / "run", tmp_path / "run")
    meanwhile(monkeypatch, lambda: shutil.rmtree(tmp_path / "run/model"))
    with pytest.raises(UserError, match="the model was replaced meanwhile") as caught:
        export(str(tmp_path / "run"), out=tmp_path / "out")
    assert caught.value.exit_code == 2 and not (tmp_path / "out").exists()


def test_a_model_that_is_replaced_while_it_is_read(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(exported / "exported", tmp_path / "model")
    real = artifact.read_tensors

    def slow(path: Path) -> Any:
        write_text(tmp_path / "model/config.json", (tmp_path / "model/config.json").read_text())
        return real(path)

    monkeypatch.setattr(artifact, "read_tensors", slow)
    with pytest.raises(UserError, match="the model was replaced while it was read"):
        load_model(tmp_path / "model", log=lambda text: None)


def test_what_only_an_older_export_wrote_goes(exported: Path, tmp_path: Path) -> None:
    out, before = tmp_path / "out", tree(exported / "exported")
    shutil.copytree(exported / "exported", out)
    for name in ("official.pth", "official.ckpt", "vocab.txt", "special_tokens_map.json"):
        (out / name).touch()
    export(str(exported / "run"), out=out, overwrite=True)
    assert tree(out).keys() == before.keys()


@pytest.mark.parametrize(
    "name", ["trimmers.safetensors", "answers.json", "tokenizer.json", "own_labels.json"]
)
def test_a_model_of_another_kind_is_replaced(exported: Path, tmp_path: Path, name: str) -> None:
    """Untrimmed, of a task without answers, ...; a task outside the package has labels of its own."""
    for folder in (tmp_path / "model", tmp_path / "out"):
        folder.mkdir()
        shutil.copy(exported / "exported/config.json", folder)
    (tmp_path / "out" / name).touch()
    if name == "own_labels.json":
        (tmp_path / "model" / name).touch()
    _refuse_loss(tmp_path / "out", tmp_path / "model")
    (tmp_path / "out" / f"my_{name}").touch()
    with pytest.raises(UserError, match=f"it is not replaced: my_{name}"):
        _refuse_loss(tmp_path / "out", tmp_path / "model")


def test_other_files_are_refused_before_the_work(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(exported / "exported", tmp_path / "out")
    (tmp_path / "out/notes.txt").touch()
    monkeypatch.setattr(sys.modules[export.__module__], "load_model", None)
    with pytest.raises(UserError, match=r"it is not replaced: notes\.txt"):
        export(str(exported / "run"), out=tmp_path / "out", overwrite=True)


def test_folder_of_another_programs_model_is_never_replaced(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(UserError, match="holds other things than a model of ours"):
        export(str(exported / "run"), out=tmp_path / "hf", overwrite=True)
    assert list(tree(tmp_path / "hf")) == ["config.json"]


def test_comparison_on_nothing_is_no_success(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[export.__module__]
    monkeypatch.setattr(module, "batches", lambda *args: iter(()))
    with pytest.raises(CheckFailed, match="no instance to compare"):
        export(str(exported / "run"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_model_card_has_measured_numbers_only(exported: Path, trained: Path, tmp_path: Path) -> None:
    summary = json.loads((exported / "run/summary.json").read_text(encoding="utf-8"))
    card = (exported / "exported/README.md").read_text(encoding="utf-8")
    accuracy = [f"{summary[side]['accuracy']:.4g}" for side in ("full", "trimmed")]
    assert f"| accuracy | {accuracy[0]} | {accuracy[1]} |" in card
    assert "latency" not in card  # it was not profiled
    trimmed = next(line for line in card.splitlines() if line.startswith("- Trimmed: "))
    assert "token.vision" in trimmed and "decoder" not in trimmed  # which METER has not
    assert f"Split `test`, {summary['count']} instances, tokens and heads really removed." in card
    assert "for vqa, trimmed by `cross_modal` (tokens) and `global_head` (heads)." in card
    assert "(`pip install .` in its repository)." in card and "`trimmers.safetensors`" in card
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    export(str(tmp_path / "run"), out=tmp_path / "out")
    measured = (tmp_path / "out/README.md").read_text(encoding="utf-8").split("## Measured")[1]
    assert "Nothing yet" in measured and not re.search(r"\d", measured)


def test_model_card_names_the_way_of_trimming(tmp_path: Path) -> None:
    finetune(
        tiny_recipe(
            tmp_path, "train.max_steps=1", "pruning.token_trimmer={name: tome}", "pruning.head_trimmer=null"
        )
    )
    export(str(tmp_path / "run"), out=tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "for vqa, trimmed by `tome` (tokens)." in card and "SmartTrim" not in card


def test_model_card_of_what_is_not_trimmed(tmp_path: Path) -> None:
    finetune(tiny_recipe(tmp_path, "train.max_steps=1", "pruning=null"))
    evaluate(str(tmp_path / "run"))
    profile(str(tmp_path / "run"), single_instance=True, num_instances=2)
    result = export(str(tmp_path / "run"), out=tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "vqa, fine-tuned and not trimmed." in card and "| quantity | full |\n|---|---|" in card
    assert not any(word in card for word in ("rimmers", "not measured", "removed", "threshold"))
    count = json.loads((tmp_path / "run/summary.json").read_text(encoding="utf-8"))["count"]
    assert f"Split `test`, {count} instances (latency: 2)." in card
    assert result["load"].endswith('.predict("image.png", "what color is the circle?")')


def test_model_card_names_modules_outside_the_package() -> None:
    task = {"name": "mine.task:Task", "data": {"name": "mine.reader"}}
    config = {
        "backbone": {"name": "meter"},
        "task": task,
        "trimmers": {"token": None, "head": {"name": "a.b"}},
    }
    assert re.findall("the module `(.*?)`", _needed(config)) == ["mine.task", "mine.reader", "a.b"]
    assert "module" not in _needed({**config, "task": {"name": "vqa"}, "trimmers": {}})


@pytest.mark.parametrize(
    ("form", "call"),
    [("captioning", 'predict("image.png")'), ("nlvr2", 'predict(["left.png", "right.png"], ')],
)
def test_a_model_is_called_as_its_form_wants(form: str, call: str) -> None:
    assert call_of(form).startswith(call)


def test_trimmers_alone_attach_to_a_host_loaded_by_other_means(exported: Path) -> None:
    folder = exported / "exported"
    bundle = load_model(folder)
    host = build_backbone(bundle.config["backbone"], bundle.task.form)
    load_into(host, read_tensors(folder / "model.safetensors"), "host")
    from smarttrim_cli.engine.artifact import TrimmerConfig, trimmers_for

    other = TrimmedModel(host, trimmers_for(host, TrimmerConfig(**bundle.config["trimmers"]))).eval()
    inputs = host.example_inputs(8, batch=3)
    load_trimmers(other, folder)
    assert torch.equal(other(inputs, "packed").output, bundle.model(inputs, "packed").output)


METER = {"name": "meter"}
NONE = {"groups": [], "token": None, "head": None}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "config.json").write_text("{}"), "not the configuration of a smarttrim-model"),
        (lambda f: (f / "config.json").write_text('{"format": "smarttrim-model"}'), "lacks backbone"),
        (lambda f: (f / "config.json").unlink(), "no model there: config.json is missing"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: the weights are missing"),
        (lambda f: (f / "model.safetensors").write_text("hello"), "model.safetensors: the weights cannot"),
        (lambda f: (f / "trimmers.safetensors").unlink(), "trimmers.safetensors: the weights are missing"),
        (lambda f: (f / "preprocessing.json").write_text("{}"), "not a preprocessing file"),
        (lambda f: changed(f / "config.json", "threshold", None), "config.json: threshold is null"),
        (lambda f: changed(f / "config.json", "backbone", {**METER, "num_cross_layer": 2}), "cannot be used"),
        (lambda f: changed(f / "config.json", "trimmers", {**NONE, "groups": 3}), "groups is 3, not a list"),
        (lambda f: changed(f / "preprocessing.json", "size", -1), "not a preprocessing file"),
        (lambda f: changed(f / "preprocessing.json", "mode", "x"), "not a preprocessing file"),
        (lambda f: changed(f / "preprocessing.json", "mean", []), "not a preprocessing file"),
        (lambda f: changed(f / "preprocessing.json", "max_text_length", "x"), "not a preprocessing file"),
        (lambda f: (f / "tokenizer.json").write_text("[1,2]"), "cannot load the tokenizer"),
        (lambda f: (f / "preprocessing.json").unlink(), "preprocessing.json: no such file"),
        (lambda f: (f / "tokenizer.json").unlink(), "cannot load the tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "cannot load the tokenizer"),
        (lambda f: (f / "answers.json").write_text('{"yes": 0}'), "label vocabulary has 1"),
        (lambda f: (f / "answers.json").unlink(), "answers.json"),
    ],
)  # fmt: skip
def test_damaged_folder_names_the_file(exported: Path, tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(exported / "exported", tmp_path / "m")
    damage(tmp_path / "m")
    with pytest.raises(UserError, match=message) as caught:
        smarttrim_cli.load(tmp_path / "m")
    assert str(tmp_path / "m") in str(caught.value)


def changed(file: Path, key: str, value: Any) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, key: value}), encoding="utf-8")


def test_other_architecture(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "exported", tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text(encoding="utf-8"))
    config["backbone"]["num_cross_layers"] = 2
    (tmp_path / "m/config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(
        UserError, match="do not fit the model .* problems.*missing: cross_modal_text_layers.1"
    ) as caught:
        smarttrim_cli.load(tmp_path / "m")
    assert str(caught.value).startswith(str(tmp_path / "m/model.safetensors"))


# --- the official layout ---


def run_of(backbone: str, folder: Path) -> str:
    """A run of one step with a backbone whose sizes the official code can have."""
    if backbone == "meter":
        changes = ["backbone.vision.model=vit_base_patch16_clip_quickgelu_224"]
    else:
        section = {"name": "blip", **BACKBONES["blip"]["plain"], "tokenizer": "train"}
        changes = [f"backbone={json.dumps(section)}", "task.num_candidates=4"]
    finetune(tiny_recipe(folder, "train.max_steps=1", "pruning.calibrate=null", *changes))
    return str(folder / "run")


@pytest.mark.parametrize(("backbone", "wrapper"), [("meter", "state_dict"), ("blip", "model")])
def test_official_file_starts_another_run(backbone: str, wrapper: str, tmp_path: Path) -> None:
    run = run_of(backbone, tmp_path)
    result = export(run, out=tmp_path / "out", official=True)
    file = Path(result["official"])
    assert file.parent == tmp_path / "out" and file.stem == "official" and file.name in result["files"]
    state = torch.load(file, weights_only=True)[wrapper]
    assert not any("trimmer" in name for name in state)
    assert f"`{file.name}`" in (tmp_path / "out/README.md").read_text(encoding="utf-8")

    before = read_tensors(tmp_path / "out/model.safetensors")
    again = ["output_dir=again", f"backbone.checkpoint={file}", "train.max_steps=1", "pruning=null"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        finetune(load_recipe(Path(run) / "recipe.yaml", [*again, "optimizer.learning_rate=1e-12"]))
    after = read_tensors(tmp_path / "again/model/model.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0.0, atol=1e-9, msg=name)


def test_weights_that_do_not_come_back_are_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, plugin = run_of("meter", tmp_path), registry.load("backbones", "meter")
    save = plugin.save_official

    def without_the_head(model: torch.nn.Module, path: Path) -> None:
        save(model, path)
        state = torch.load(path, weights_only=True)["state_dict"]
        kept = {name: value for name, value in state.items() if not name.startswith("vqa_classifier.3")}
        torch.save({"state_dict": kept}, path)

    def rounded(model: torch.nn.Module, path: Path) -> None:
        save(model, path)
        state = torch.load(path, weights_only=True)["state_dict"]
        torch.save({"state_dict": {name: value.bfloat16() for name, value in state.items()}}, path)

    for broken in (without_the_head, rounded):
        monkeypatch.setattr(plugin, "save_official", broken)
        with pytest.raises(CheckFailed, match="does not give back"):
            export(run, out=tmp_path / "out", official=True)
        assert not (tmp_path / "out").exists()


def test_models_without_an_official_layout(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="official METER has no"):  # a ViT whose patches have a bias
        export(str(exported / "run"), out=tmp_path / "out", official=True)
    monkeypatch.delattr(registry.load("backbones", "meter"), "save_official")
    with pytest.raises(UserError, match="meter has no official layout"):
        export(str(exported / "run"), out=tmp_path / "out", official=True)
    assert not (tmp_path / "out").exists()
