"""The Python interface for using a trimmed model: ``smarttrim_cli.load(path).predict(image, text)``."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from smarttrim_cli.data.images import BadSample, load_rgb, upright_rgb
from smarttrim_cli.engine.artifact import Bundle, load_model, resolve_checkpoint
from smarttrim_cli.engine.devices import best_device
from smarttrim_cli.engine.inference import device_of, refuse_no_numbers
from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.cost import instance_macs
from smarttrim_cli.pruning.decisions import Decisions
from smarttrim_cli.pruning.model import Forward, TrimmedModel

Picture = str | Path | Image.Image
_WITHOUT_TEXT = "captioning"


@dataclass(frozen=True)
class Prediction:
    """Answer to one pair of image and text.

    Attributes:
        answer: The prediction.
        score: The model's confidence in it, 0..1.
        gmacs: MACs that were spent on this instance, in billions.
        full_gmacs: What the full model spends on it; of a text that was written, on as many tokens as here.
        decisions: What was kept where.
    """

    answer: str
    score: float
    gmacs: float
    full_gmacs: float
    decisions: Decisions | None


class TrimmedVlm:
    """A trimmed vision-language model, ready to use.

    Args:
        bundle: Model, task and processor.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @property
    def model(self) -> torch.nn.Module:
        """The underlying module (``backbone`` and ``trimmers``)."""
        return self.bundle.model

    def to(self, device: str | torch.device) -> TrimmedVlm:
        """Move the model to a device; on a CPU its weights are laid out for inference (``model.prepare``)."""
        model = self.bundle.model.to(device)
        if device_of(model).type == "cpu":
            model.prepare()
        else:
            model.restore()
        return self

    def predict(
        self, image: Picture | Sequence[Picture], text: str = "", *, full: bool = False
    ) -> Prediction:
        """Answer one question, judge one statement, or describe one image.

        Args:
            image: A file or a PIL image; as many of them as the task takes (two for NLVR2).
            text: The question or statement; nothing for captioning.
            full: Run the untrimmed model.
        """
        several = isinstance(image, Sequence) and not isinstance(image, str)
        images: Any = image if several else [image]
        return self.predict_batch(images, [text], full=full)[0]

    @torch.inference_mode()
    def predict_batch(
        self, images: Sequence[Picture], texts: Sequence[str] | None = None, *, full: bool = False
    ) -> list[Prediction]:
        """Answer one question per image; the decisions of an instance do not depend on its batch-mates.

        Args:
            images: Files or PIL images; where an instance takes two, one instance after the other.
            texts: One per instance; None for captioning, which takes none.
            full: Run the untrimmed model.

        Raises:
            UserError: An image cannot be read, there are not as many as the texts need, or a text is missing.
            SmartTrimError: The model's outputs are not numbers.
        """
        if not isinstance(images, Picture):
            images = list(images)
        if texts is None:
            texts = [""] * len(images) if self.bundle.task.form.name == _WITHOUT_TEXT else []
        elif not isinstance(texts, str):
            texts = list(texts)
        self._refuse(images, texts)
        opened = [_open(image) for image in images]
        inputs = self.bundle.task.inputs(opened, texts, self.bundle.processor)
        inputs = {name: self._as_model(tensor) for name, tensor in inputs.items()}
        draw = any(trimmer.draws for trimmer in self.bundle.model.sites.values())
        ids_B = _identities(opened, texts) if draw else None
        answers = self.bundle.model(inputs, "full" if full else "packed", instance_ids=ids_B)
        refuse_no_numbers(answers.output, range(len(texts)))
        decided = self._untrimmed(inputs).decisions if full else answers.decisions
        spent_B, full_B = instance_macs(self.bundle.model, decided)
        results = []
        for index, (answer, score) in enumerate(
            self.bundle.task.answer(answers.output, self.bundle.processor)
        ):
            cost = float(full_B[index] if full else spent_B[index]) / 1e9
            kept = None if full else decided.instance(index)
            results.append(Prediction(answer, score, cost, float(full_B[index]) / 1e9, kept))
        return results

    def _as_model(self, tensor: Tensor) -> Tensor:
        """An input where the model is; numbers in its precision, which may have been rounded."""
        weight = next(self.model.parameters())
        return tensor.to(weight) if tensor.is_floating_point() else tensor.to(weight.device)

    def _untrimmed(self, inputs: Mapping[str, Tensor]) -> Forward:
        """A pass that drops nothing and is counted: what is written is as long as the full model's own."""
        return TrimmedModel(self.bundle.model.backbone, {})(inputs, "packed")

    def _refuse(self, images: Sequence[Picture], texts: Sequence[str]) -> None:
        """Arguments that were forgotten, or are of another kind."""
        if isinstance(texts, str):
            raise UserError("a list of texts is needed, one per instance", where="predict_batch")
        if isinstance(images, Picture):
            raise UserError("a list of images is needed, one per instance", where="predict_batch")
        if not texts:
            raise UserError("no texts: one per instance", where="predict_batch")
        odd: list[Any] = [value for value in texts if not isinstance(value, str)]
        odd += [value for value in images if not isinstance(value, Picture)]
        if odd:
            kinds = "a text is a str, an image a path or a PIL image"
            raise UserError(f"{type(odd[0]).__name__} given, but {kinds}", where="predict")
        if not all(map(_is_unicode, texts)):
            raise UserError("a text has half of a character (a lone surrogate)", where="predict")
        empty = [image for image in images if isinstance(image, Image.Image) and 0 in image.size]
        if empty:
            raise UserError(f"an image of {empty[0].width} x {empty[0].height} pixels", where="predict")
        task = self.bundle.task.form.name
        if task != _WITHOUT_TEXT and not all(text.strip() for text in texts):
            raise UserError(f"a text is empty, which {task} cannot do without", where="predict")


def load(path: str | Path, device: str | torch.device | None = None) -> TrimmedVlm:
    """Open an exported folder, a run directory or ``builtin:NAME``.

    Args:
        path: Folder written by ``smarttrim export`` or ``smarttrim finetune``.
        device: Where to put the model; None for the CPU, where its weights are laid out for inference: twice
            the memory, less time. ``load(...).model.restore()`` undoes that.

    Raises:
        UserError: It is no model, or it is damaged.
    """
    bundle = load_model(resolve_checkpoint(str(path)), log=_silent)
    return TrimmedVlm(bundle).to("cpu" if device is None else best_device(str(device), "load(device=...)"))


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _open(image: Picture) -> Image.Image:
    if not isinstance(image, Image.Image):
        return load_rgb(Path(image), sample_id=image)
    try:
        return upright_rgb(image)
    except BadSample as error:
        raise UserError(error.message, where="predict") from error
    except Exception as error:  # pixels are read now; on broken bytes Pillow raises anything
        raise UserError(f"an image cannot be read ({error})", where="predict") from error


def _identities(images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
    """(B,) what random trimmers draw by: the same for the same pictures and text, wherever they come."""
    each = len(images) // len(texts)
    found = [zlib.crc32(text.encode()) for text in texts]
    for place, image in enumerate(images):
        found[place // each] = zlib.crc32(image.tobytes(), found[place // each])
    return torch.tensor(found)


def _silent(text: Any) -> None:
    """Messages of loading are of no interest here."""
