"""The losses of a backbone that contrasts: by hand, and what they carry along from batch to batch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import Contrast
from smarttrim_cli.tasks._contrastive import (
    ContrastiveLoss,
    contrastive_loss,
    gathered,
    matching_loss,
    soft_cross_entropy,
    softened_targets,
)
from smarttrim_cli.tasks.base import Batch
from smarttrim_cli.tasks.retrieval import ContrastiveRetrievalTask, Options, build
from tests.tasks.own_data import COLORS, processor, section, write_lines, write_pictures


class Host(nn.Module):
    """Features are two learned maps of the pixels and of the ids."""

    feature_width = 4

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(3, 4), nn.Linear(2, 4)
        self.temp = nn.Parameter(torch.tensor(0.5))

    def contrastive_features(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        found = self.image(pixel_values) if pixel_values is not None else self.text(input_ids.float())
        return F.normalize(found, dim=-1)


def batch(number: int, seed: int = 0, image_ids: list[int] | None = None) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        "pixel_values": torch.randn(number, 3, generator=generator),
        "input_ids": torch.randint(0, 9, (number, 1, 2), generator=generator),
        "attention_mask": torch.ones(number, 1, 2),
        "image_ids": torch.tensor(image_ids or list(range(number))),
    }
    return Batch(inputs, torch.arange(number), {})


def output(host: Host, given: Batch) -> Contrast:
    """As a backbone's: each pair's negatives are its neighbours."""
    number = len(given)
    images = host.contrastive_features(pixel_values=given.inputs["pixel_values"])
    texts = host.contrastive_features(input_ids=given.inputs["input_ids"][:, 0])
    matching = torch.randn(number, 3, 2, generator=torch.Generator().manual_seed(1), requires_grad=True)
    return Contrast(
        images, texts, host.temp, matching, torch.arange(number).roll(1), torch.arange(number).roll(-1)
    )


def started(queue_size: int = 6, momentum: float = 0.9, alpha: float = 0.4) -> tuple[ContrastiveLoss, Host]:
    torch.manual_seed(0)
    host = Host()
    loss = ContrastiveLoss(queue_size, momentum, alpha)
    loss.start(host)
    loss.epoch_size = 8
    return loss, host


# --- formulas ---


def test_softened_targets_by_hand() -> None:
    """The third candidate is of the same image as the first; the teacher prefers the second, 3 to 1 to 1."""
    same = torch.tensor([[True, False, True]])
    teacher = torch.tensor([[0.0, math.log(3), 0.0]])
    found = softened_targets(same, teacher, 0.4)
    expected = [0.4 * 0.2 + 0.6 * 0.5, 0.4 * 0.6, 0.4 * 0.2 + 0.6 * 0.5]
    assert found[0].tolist() == pytest.approx(expected) and float(found.sum()) == pytest.approx(1)
    assert softened_targets(same, teacher, 0.0)[0].tolist() == [0.5, 0, 0.5]


def test_soft_cross_entropy_by_hand() -> None:
    similarity = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    targets = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    expected = (-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) + math.log(2)) / 2
    assert float(soft_cross_entropy(similarity, targets)) == pytest.approx(expected)


def plain_loss(
    images: Tensor,
    texts: Tensor,
    all_images: Tensor,
    all_texts: Tensor,
    ids: list[int],
    temp: float,
    a: float,
) -> float:
    """The contrastive loss pair by pair, with plain numbers."""
    total, number = 0.0, len(images)
    for own, teachers, others in ((images, all_images, all_texts), (texts, all_texts, all_images)):
        for i in range(number):
            scores = [math.exp(float(own[i].detach() @ other) / temp) for other in others]
            taught = [math.exp(float(teachers[i] @ other) / temp) for other in others]
            positives = [j for j, other in enumerate(ids) if other == ids[i]]
            for j in range(len(others)):
                target = a * taught[j] / sum(taught) + (1 - a) * (j in positives) / len(positives)
                total -= target * math.log(scores[j] / sum(scores)) / number / 2
    return total


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_contrastive_loss_is_the_mean_of_both_directions(alpha: float) -> None:
    _, host = started()
    made = output(host, batch(3))
    generator = torch.Generator().manual_seed(5)
    images, texts = (F.normalize(torch.randn(7, 4, generator=generator), dim=-1) for _ in range(2))
    ids = [4, 7, 9, 7, -100, -100, 9]
    found = contrastive_loss(made, images, texts, torch.tensor(ids), alpha)
    expected = plain_loss(made.image_features, made.text_features, images, texts, ids, 0.5, alpha)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert host.temp.grad is not None and host.temp.grad != 0


def test_matching_loss_by_hand() -> None:
    """Two images: each pair matches, the negatives do not; of one image all match."""
    logits = torch.tensor([[[0.0, math.log(3)]] * 3, [[0.0, 0.0]] * 3])
    rows = torch.tensor([1, 0])
    made = Contrast(torch.zeros(2, 4), torch.zeros(2, 4), torch.tensor(1.0), logits, rows, rows)
    expected = (-math.log(3 / 4) - 2 * math.log(1 / 4) + 3 * math.log(2)) / 6
    assert float(matching_loss(made, torch.tensor([3, 8]))) == pytest.approx(expected)
    expected = (-3 * math.log(3 / 4) + 3 * math.log(2)) / 6
    assert float(matching_loss(made, torch.tensor([8, 8]))) == pytest.approx(expected)


# --- state ---


def test_the_loss_is_the_sum_and_sees_batch_and_queue() -> None:
    loss, host = started()
    given = loss.prepare(batch(3, image_ids=[4, 4, 9]))
    made = output(host, given)
    twin_images = loss.twin.contrastive_features(pixel_values=given.inputs["pixel_values"])
    assert_close(given.targets["images_AE"][:3], twin_images)
    assert given.targets["ids_A"].tolist() == [4, 4, 9, *[-100] * 6]
    assert given.targets["alpha"] == 0  # nothing has been seen yet
    expected = contrastive_loss(
        made, *(given.targets[name] for name in ("images_AE", "texts_AE", "ids_A", "alpha"))
    ) + matching_loss(made, given.inputs["image_ids"])
    assert_close(loss(made, given), expected)
    assert loss.replay(made) == {"negative_images": made[4], "negative_texts": made[5]}


def test_the_queue_wraps_around() -> None:
    loss, _ = started(queue_size=5)
    before = loss.texts_QE.clone()
    assert_close(loss.images_QE.norm(dim=1), torch.ones(5))
    first = loss.prepare(batch(3, 0, [10, 11, 12]))
    assert loss.ids_Q.tolist() == [10, 11, 12, -100, -100] and loss.place == 3
    assert_close(loss.texts_QE[:3], first.targets["texts_AE"][:3])
    assert torch.equal(loss.texts_QE[3:], before[3:])
    second = loss.prepare(batch(3, 1, [13, 14, 15]))
    assert second.targets["ids_A"].tolist() == [13, 14, 15, 10, 11, 12, -100, -100]  # as it was before
    assert loss.ids_Q.tolist() == [15, 11, 12, 13, 14] and loss.place == 1
    assert_close(loss.images_QE[[3, 4, 0]], second.targets["images_AE"][:3])


def test_a_batch_larger_than_the_queue_leaves_its_newest() -> None:
    loss, _ = started(queue_size=2)
    given = loss.prepare(batch(5, 0, [1, 2, 3, 4, 5]))
    assert sorted(loss.ids_Q.tolist()) == [4, 5]
    for place, image in enumerate(loss.ids_Q.tolist()):
        assert_close(loss.images_QE[place], given.targets["images_AE"][image - 1])


def test_the_teachers_share_rises_over_an_epoch() -> None:
    loss, _ = started()  # 8 pairs are an epoch
    shares = [float(loss.prepare(batch(3, seed)).targets["alpha"]) for seed in range(5)]
    assert shares == pytest.approx([0, 0.4 * 3 / 8, 0.4 * 6 / 8, 0.4, 0.4])


def test_momentum_encoders_follow_and_do_not_learn() -> None:
    loss, host = started(momentum=0.9)
    before = host.image.weight.detach().clone()
    host.image.weight.data += 1
    loss.prepare(batch(2))
    assert_close(loss.twin.image.weight, before + 0.1)
    loss.prepare(batch(2))
    assert_close(loss.twin.image.weight, before + 0.19)
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    given = loss.prepare(batch(3))
    made = output(host, given)
    loss(made, given).backward()
    assert all(parameter.grad is not None for parameter in host.parameters())
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_the_state_is_all_there_is_to_save() -> None:
    one, host = started()
    for seed in range(3):
        one.prepare(batch(3, seed))
    torch.manual_seed(7)
    other = ContrastiveLoss(6, 0.9, 0.4)
    other.start(host)
    other.epoch_size = 8
    other.load_state_dict(one.state_dict())
    assert not [name for name in one.state_dict() if "backbone" in name]
    first, second = (loss.prepare(batch(3, 9)).targets for loss in (one, other))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_alone_nothing_is_gathered() -> None:
    values = torch.arange(3)
    assert gathered(values) is values


def in_a_group(rank: int, folder: str) -> None:
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    values = torch.arange(3) + 10 * rank
    loss, _ = started()
    loss.prepare(batch(2, rank, [10 * rank, 10 * rank + 1]))
    fewer = values[: 3 - rank]  # a broken image was skipped
    found = [
        gathered(values).tolist(),
        gathered(fewer).tolist(),
        loss.ids_Q.tolist(),
        int(loss.seen),
        int(loss.place),
    ]
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_features_of_all_processes_are_queued(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(in_a_group, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8"))
        assert found == [[0, 1, 2, 10, 11, 12], [0, 1, 2, 10, 11], [0, 1, 10, 11, -100, -100], 4, 4]


# --- the task ---


def task(folder: Path, **options: Any) -> Any:
    write_pictures(folder)
    lines = [
        {"id": color, "image": f"{color}.png", "captions": [f"{color} {word}" for word in ("one", "two")]}
        for color in COLORS
    ]
    write_lines(folder, "train", lines)
    write_lines(folder, "test", lines)
    return build(Options.model_validate({"data": section(folder), **options}), print, "contrasts")


def test_training_batches_say_which_images_are_the_same(tmp_path: Path) -> None:
    made = task(tmp_path, queue_size=4)
    assert isinstance(made, ContrastiveRetrievalTask)
    words = processor(*made.texts("train"))
    dataset = made.dataset("train", words, training=True)
    given = made.collate([dataset[place] for place in (0, 1, 7)], words, True)
    assert given.inputs["image_ids"].tolist() == [0, 0, 3]
    assert given.inputs["input_ids"].shape[:2] == (3, 1) and not given.targets
    assert [words.decode(ids[0]) for ids in given.inputs["input_ids"]] == ["red one", "red two", "white two"]
    assert made.loss.epoch_size == 12


def test_one_image_is_refused(tmp_path: Path) -> None:
    made = task(tmp_path)
    write_lines(tmp_path, "train", [{"id": "red", "image": "red.png", "captions": ["red one"]}])
    with pytest.raises(UserError, match="one image cannot be told"):
        made.dataset("train", processor("red one"), training=True)


def test_in_two_stages_an_item_is_an_image(tmp_path: Path) -> None:
    made = task(tmp_path, block_size=3)
    words = processor(*made.texts("test"))
    dataset = made.dataset("test", words)
    assert len(dataset) == 6
    assert [list(block.texts) for block in dataset.samples][-2:] == [[8, 9, 10], [10, 11, 0]]
    limited = made.dataset("test", words, limit=2)
    assert [block.id for block in limited.samples] == ["red", "white"]
    given = made.collate([limited[0], limited[1]], words)
    assert given.inputs["input_ids"].shape[:2] == (2, 3)
    whole = task(tmp_path, block_size=3, two_stage=False).dataset("test", words)
    assert len(whole) == 6 * 4
