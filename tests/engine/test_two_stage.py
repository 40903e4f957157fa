"""Two-stage retrieval: candidates and scores against plain loops, costs of every candidate, whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from smarttrim_cli import registry
from smarttrim_cli.data.images import Preprocess
from smarttrim_cli.data.processor import Processor, train_word_tokenizer
from smarttrim_cli.engine.artifact import Bundle, build_backbone, build_task
from smarttrim_cli.engine.evaluate import evaluate
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.inference import Predictions, batches, predict
from smarttrim_cli.engine.report import SilentReporter
from smarttrim_cli.engine.retrieval import candidates
from smarttrim_cli.engine.scores import score_summary
from smarttrim_cli.errors import SmartTrimError, UserError
from smarttrim_cli.pruning.cost import full_counts, instance_macs, total_macs
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.recipe import Recipe, load_recipe
from tests import tiny
from tests.engine.test_resume import assert_same_end, interrupted
from tests.engine.tiny_run import metrics
from tests.tasks.own_data import COLORS, section, write_lines

TEXTS = [["one", "two two"], ["three"], ["four", "five five five", "six"], ["seven"], ["eight"], ["nine"]]
IMAGE_OF_TEXT = [image for image, texts in enumerate(TEXTS) for _ in texts]
MODES = ("full", "masked", "packed")


def bundle_of(folder: Path, trimmed: bool = True, **options: Any) -> Bundle:
    """A tiny BLIP with random weights on six pictures of noise with one to three texts each."""
    for number, color in enumerate(COLORS):
        noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{color}.png")
    lines = [
        {"id": color, "image": f"{color}.png", "captions": [f"{color} {text}" for text in texts]}
        for color, texts in zip(COLORS, TEXTS, strict=True)
    ]
    write_lines(folder, "test", lines)
    task_section = {"name": "retrieval", "data": section(folder), "queue_size": 4, **options}
    task = build_task(task_section, "blip", print)
    tokenizer = train_word_tokenizer(task.texts("test"))
    host_section = {"name": "blip", **tiny.BACKBONES["blip"]["plain"]}
    host_section = registry.load("backbones", "blip").fit_to_tokenizer(host_section, tokenizer)
    host = tiny.enliven(build_backbone(host_section, task.form)).eval()
    model = tiny.attach(host, "cross_modal", "global_head") if trimmed else TrimmedModel(host, {}).eval()
    return Bundle(model, task, Processor(tokenizer, Preprocess(size=32), 20), {})


def predicted(bundle: Bundle, *modes: str, batch_size: int = 4, limit: int | None = None) -> Any:
    loader = batches(bundle, "test", batch_size, limit)
    return predict(bundle, loader, modes, SilentReporter(), "")


@torch.no_grad()
def everything(bundle: Bundle, mode: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Matching logits and similarities of all pairs, (6, 9), from passes of one pair each."""
    gallery = bundle.task.dataset("test", bundle.processor).gallery
    dataset = bundle.task.dataset("test", bundle.processor)
    ids, mask = bundle.task.text_inputs(gallery, bundle.processor)
    logits, images = torch.zeros(6, 9), []
    for image in range(6):
        pixels = dataset[image][1][None]
        images.append(bundle.model({"pixel_values": pixels}, mode).output.features[0])
        for text in range(9):
            pair = {
                "pixel_values": pixels,
                "input_ids": ids[None, text : text + 1],
                "attention_mask": mask[None, text : text + 1],
            }
            logits[image, text] = bundle.model(pair, mode).output[0, 0]
    texts = bundle.model.backbone.contrastive_features(input_ids=ids, attention_mask=mask)
    return logits, torch.stack(images) @ texts.T


def plain_ranks(scores: np.ndarray, similarity: np.ndarray, k: int) -> list[tuple[int | None, ...]]:
    """Ranks of every image's best text and of the image for its texts, query by query."""
    found: list[list[int | None]] = []
    for image in range(6):
        near = set(np.argsort(-similarity[image])[:k].tolist())
        own = [scores[image, t] for t in near if IMAGE_OF_TEXT[t] == image]
        others = [scores[image, t] for t in near if IMAGE_OF_TEXT[t] != image]
        found.append([1 + sum(other >= max(own) for other in others) if own else None])
    for text, image in enumerate(IMAGE_OF_TEXT):
        near = set(np.argsort(-similarity[:, text])[:k].tolist())
        ahead = sum(scores[i, text] >= scores[image, text] for i in near if i != image)
        found[image].append(1 + ahead if image in near else None)
    return [tuple(ranks) for ranks in found]


# --- candidates and ranks ---


def test_candidates_by_hand() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    texts = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.8, 0.3], [-0.1, 0.5]])
    to_texts, to_images = candidates(images, texts, 1)
    assert to_texts.tolist() == [
        [True, False, False, False],
        [False, True, False, False],
        [False, False, False, True],
    ]
    assert to_images.tolist() == [
        [True, False, True, False],
        [False, True, False, True],
        [False, False, False, False],
    ]
    assert all(chosen.all() for chosen in candidates(images, texts, 9))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("k", "block_size"), [(2, 2), (3, 16), (9, 4)])
def test_ranks_are_those_of_plain_loops(tmp_path: Path, mode: str, k: int, block_size: int) -> None:
    bundle = bundle_of(tmp_path, num_candidates=k, block_size=block_size)
    result = predicted(bundle, mode)[mode]
    logits, similarity = everything(bundle, mode)
    expected = plain_ranks((logits + similarity).numpy(), similarity.numpy(), k)
    assert [record["prediction"] for record in result.records] == expected
    pairs = sum(record["scored_pairs"] for record in result.records)
    near = {(i, t) for i in range(6) for t in similarity[i].topk(min(k, 9)).indices.tolist()}
    near |= {(i, t) for t in range(9) for i in similarity[:, t].topk(min(k, 6)).indices.tolist()}
    assert pairs == len(near)
    assert k < 9 or pairs == 54
    json.dumps(result.records)


def test_modes_have_candidates_of_their_own(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, num_candidates=2)
    full, packed = (everything(bundle, mode)[1] for mode in ("full", "packed"))
    chosen = [similarity.topk(2).indices.sort().values for similarity in (full, packed)]
    assert not torch.equal(*chosen)
    both = predicted(bundle, "full", "packed")
    for mode in ("full", "packed"):
        assert both[mode].records == predicted(bundle, mode)[mode].records


def test_batches_and_limits(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, num_candidates=3)
    assert (
        predicted(bundle, "packed", batch_size=1)["packed"].records
        == predicted(bundle, "packed")["packed"].records
    )
    limited = predicted(bundle, "full", limit=3)["full"]
    assert [record["id"] for record in limited.records] == ["red", "blue", "black"]
    assert [len(record["prediction"]) for record in limited.records] == [3, 4, 2]


@torch.no_grad()
def test_scores_that_are_no_numbers(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path)
    next(parameter for parameter in bundle.model.backbone.parameters() if parameter.ndim > 1).fill_(np.nan)
    with pytest.raises(SmartTrimError, match=f"samples {COLORS[0]}: the model's outputs are not numbers"):
        predicted(bundle, "full")


def test_broken_pictures_leave_with_their_texts(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, num_candidates=9, on_bad_sample="skip")
    (tmp_path / "blue.png").write_bytes(b"")
    result = predicted(bundle, "packed")["packed"]
    assert [record["id"] for record in result.records] == [color for color in COLORS if color != "blue"]
    assert result.skipped == 1 and len(result.macs) == 5
    assert sum(record["scored_pairs"] for record in result.records) == 5 * 6
    for color in COLORS:
        (tmp_path / f"{color}.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 6 instances"):
        predicted(bundle, "packed")


# --- costs ---


@torch.no_grad()
def pair_by_pair(bundle: Bundle, image: int, texts: list[int], mode: str) -> tuple[float, float]:
    """MACs of an image with texts in one pass, trimmed and full."""
    dataset = bundle.task.dataset("test", bundle.processor)
    ids, mask = bundle.task.text_inputs(dataset.gallery, bundle.processor)
    inputs = {
        "pixel_values": dataset[image][1][None],
        "input_ids": ids[None, texts],
        "attention_mask": mask[None, texts],
    }
    trimmed, full = instance_macs(bundle.model, bundle.model(inputs, mode).decisions)
    return float(trimmed), float(full)


@pytest.mark.parametrize("block_size", [2, 16])
def test_every_candidate_is_paid_for(tmp_path: Path, block_size: int) -> None:
    bundle = bundle_of(tmp_path, num_candidates=3, block_size=block_size)
    results = predicted(bundle, "full", "packed")
    gallery = bundle.task.dataset("test", bundle.processor).gallery
    lengths = bundle.task.text_inputs(gallery, bundle.processor)[1].sum(1)
    for place, mode in enumerate(("packed", "full")):
        _, similarity = everything(bundle, mode)
        to_texts, to_images = (
            [set(row.topk(min(3, len(row))).indices.tolist()) for row in rows]
            for rows in (similarity, similarity.T)
        )
        for image, record in enumerate(results[mode].records):
            texts = sorted(to_texts[image] | {text for text in range(9) if image in to_images[text]})
            own = [text for text in range(9) if IMAGE_OF_TEXT[text] == image]
            projection, features = bundle.model.backbone.feature_macs(lengths[own].double())
            expected = (
                pair_by_pair(bundle, image, texts, "packed")[place] + projection + float(features.sum())
            )
            assert results[mode].macs[image] == pytest.approx(expected)
            assert record["scored_pairs"] == len(texts)
            spent = (record["first_stage_gmacs"] + record["second_stage_gmacs"]) * 1e9
            assert spent == pytest.approx(expected)
    packed, full = results["packed"], results["full"]
    assert packed.full_macs == full.macs == full.full_macs
    for result in (packed, full):
        assert sum(result.parts.values()) == pytest.approx(sum(result.macs))
        assert sum(result.full_parts.values()) == pytest.approx(sum(result.full_macs))
    assert set(packed.kept) == set(bundle.model.groups) and len(packed.kept["token.vision"]) == 6


def test_the_first_stage_is_images_and_texts_alone(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, num_candidates=2)
    records = predicted(bundle, "full")["full"].records
    architecture = bundle.model.architecture
    start = bundle.model.backbone.token_counts(0)
    encoding = total_macs(architecture, full_counts(architecture, {**start, "text": 0, "text.rows": 0}))
    gallery = bundle.task.dataset("test", bundle.processor).gallery
    lengths = bundle.task.text_inputs(gallery, bundle.processor)[1].sum(1).double()
    projection, features = bundle.model.backbone.feature_macs(lengths)
    expected = 6 * (float(encoding) + projection) + float(features.sum())
    assert sum(record["first_stage_gmacs"] for record in records) * 1e9 == pytest.approx(expected)


def test_alone_the_trimmed_model_is_compared_with_the_full_one_on_its_own_candidates(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, num_candidates=2)
    result: Predictions = predicted(bundle, "packed")["packed"]
    _, similarity = everything(bundle, "packed")
    chosen = [
        {*similarity[image].topk(2).indices.tolist()}
        | {text for text in range(9) if image in similarity[:, text].topk(2).indices}
        for image in range(6)
    ]
    gallery = bundle.task.dataset("test", bundle.processor).gallery
    lengths = bundle.task.text_inputs(gallery, bundle.processor)[1].sum(1).double()
    for image, texts in enumerate(chosen):
        own = lengths[[text for text in range(9) if IMAGE_OF_TEXT[text] == image]]
        projection, features = bundle.model.backbone.feature_macs(own)
        expected = (
            pair_by_pair(bundle, image, sorted(texts), "packed")[1] + projection + float(features.sum())
        )
        assert result.full_macs[image] == pytest.approx(expected)
    assert sum(result.full_parts.values()) == pytest.approx(sum(result.full_macs))


def test_summary_of_costs(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, num_candidates=2)
    result = predicted(bundle, "packed")["packed"]
    summary = bundle.task.summarize(result.records)
    total = summary["first_stage_gmacs"] + summary["second_stage_gmacs"]
    assert total == pytest.approx(sum(result.macs) / len(result.macs) / 1e9)  # of an image
    found = score_summary(bundle.task, result)
    assert found["gmacs_per_pair"] == pytest.approx(sum(result.macs) / 1e9 / summary["scored_pairs"])
    stored = json.loads(json.dumps(result.records))
    assert bundle.task.summarize(bundle.task.rescore(stored, "test")).keys() >= {"mean_recall"}


def test_a_model_without_trimmers(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, trimmed=False, num_candidates=9)
    found = predicted(bundle, "full")["full"]
    trimmed = predicted(bundle_of(tmp_path, num_candidates=9), "full")["full"]
    assert found.records == trimmed.records
    assert_close(torch.tensor(found.macs), torch.tensor(trimmed.macs))


# --- whole runs ---

RECIPE = """\
output_dir: runs/tiny
backbone:
  name: blip
  image_size: 32
  tokenizer: train
  max_text_length: 30
  image_text_hidden_size: 12
  vision:
    config:
      {patch_size: 8, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 64}
  text: {config: {hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 3, intermediate_size: 48}}
task:
  name: retrieval
  queue_size: 10
  num_candidates: 4
  data:
    name: scenes
    image_size: 32
    grid: 2
    cell_size: 16
    object_sizes: [9, 13]
    min_objects: 2
    max_objects: 4
    num_images: {train: 12, calibration: 4, val: 6, test: 8}
pruning:
  target_speedup: 1.5
  token_trimmer: {name: cross_modal, hidden_dim: 8}
  head_trimmer: {name: global_head, hidden_dim: 8}
  calibrate: {split: calibration, max_instances: 4}
optimizer: {learning_rate: 1.0e-3, multipliers: {trimmers: 10}}
train: {max_steps: 8, per_device_train_batch_size: 4, save_steps: 3, eval_steps: 4, save_total_limit: 9}
evaluate: {batch_size: 4}
logging: {logging_steps: 2}
"""


def recipe_of(folder: Path, *overrides: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return load_recipe(path, [f"output_dir={folder / 'run'}", *overrides])


@pytest.fixture(scope="module")
def run(settings: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contrasted")
    finetune(recipe_of(folder))
    return folder / "run"


def test_fine_tuning_and_evaluation(run: Path) -> None:
    logged = [record for record in metrics(run) if "loss" in record]
    assert len(logged) == 4
    assert all(record["distillation"] > 0 and record["task"] > 0 for record in logged)
    report = evaluate(str(run))
    full, trimmed = report["full"], report["trimmed"]
    assert report["count"] == full["images"] == 8 and full["texts"] == 40
    pairs = [side["scored_pairs"] for side in (full, trimmed)]
    assert all(40 * 4 <= number <= 40 * 4 + 8 * 4 for number in pairs)
    assert 0 <= trimmed["mean_recall"] <= 1 and trimmed["gmacs"] < full["gmacs"]
    for side in (full, trimmed):
        assert side["gmacs"] == pytest.approx(side["first_stage_gmacs"] + side["second_stage_gmacs"])
        assert sum(side["gmacs_by_part"].values()) == pytest.approx(side["gmacs"])
    assert report["speedup"]["macs"] == pytest.approx(full["gmacs"] / trimmed["gmacs"])


def test_the_saved_model_has_no_training_state(run: Path) -> None:
    from safetensors.torch import load_file

    names = set(load_file(str(run / "model" / "model.safetensors")))
    assert "temp" in names and not [name for name in names if "queue" in name or "twin" in name]
    checkpoint = load_file(str(run / "checkpoints/step-6/weights.safetensors"))
    assert checkpoint["task_loss.seen"] == 24 and checkpoint["task_loss.place"] == 4
    assert "task_loss.twin.text_proj.weight" in checkpoint


def test_predictions_and_the_whole_matrix(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "predictions.jsonl"
    two = evaluate(str(run), predictions_out=file, baselines=["random"])
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 8 and all(line["gmacs"] < line["full_gmacs"] for line in lines)
    again = evaluate(str(run), from_predictions=file)
    assert again["trimmed"]["mean_recall"] == pytest.approx(two["trimmed"]["mean_recall"])
    assert two["baselines"]["random"]["speedup"] > 1
    one = evaluate(str(run), overrides=["task.two_stage=false"])
    assert one["full"]["scored_pairs"] == 8 * 40 and "first_stage_gmacs" not in one["full"]


def test_a_resumed_run_ends_bit_identically(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tmp_path)
    interrupted(monkeypatch, recipe, after=5)
    torch.manual_seed(999)
    finetune(recipe, resume="auto")
    assert_same_end(tmp_path / "run", run)


def test_without_pruning(settings: None, tmp_path: Path) -> None:
    finetune(recipe_of(tmp_path, "pruning=null", "train.max_steps=2", "train.eval_steps=null"))
    report = evaluate(str(tmp_path / "run"))
    assert report["full"]["scored_pairs"] >= 160 and "trimmed" not in report
