"""Pictures of a trimmed model: what it keeps, what that costs, how it was trained; and a page of them all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smarttrim_cli.data.images import BadSample, load_rgb
from smarttrim_cli.data.scenes import read_truth
from smarttrim_cli.engine.artifact import Bundle, load_model
from smarttrim_cli.engine.build import section_of
from smarttrim_cli.engine.figures.canvas import style
from smarttrim_cli.engine.figures.collect import (
    Seen,
    choose,
    head_tables,
    image_key,
    most_different,
    picture_of_question,
    pictures_of,
    questions_by_image,
    spread,
    survey,
)
from smarttrim_cli.engine.figures.curves import draw_curves
from smarttrim_cli.engine.figures.data import Instance, format_reduction
from smarttrim_cli.engine.figures.heads import draw_heads
from smarttrim_cli.engine.figures.histogram import draw_histogram
from smarttrim_cli.engine.figures.page import Album
from smarttrim_cli.engine.figures.similarity import draw_similarity
from smarttrim_cli.engine.figures.trimming import draw_questions, draw_trimming
from smarttrim_cli.engine.files import check_writable, write_json
from smarttrim_cli.engine.report import Reporter, SilentReporter
from smarttrim_cli.engine.runs import Run, find_subject, require_model, warn_of_unused
from smarttrim_cli.engine.similarity import as_json, measure
from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import Form
from smarttrim_cli.pruning.sites import TOKEN, Site
from smarttrim_cli.tasks._data import stable_hash

_MOST_SURVEYED, _PAIR_IMAGES = 400, 24
_LONGEST_NAME = 80
"""Bytes of an id or of a picture's name."""


def visualize(
    target: str | None,
    *,
    overrides: Sequence[str] = (),
    instances: Sequence[int] = (),
    num_instances: int = 4,
    image: Path | None = None,
    questions: Sequence[str] = (),
    similarity: bool = False,
    out: Path | None = None,
    reporter: Reporter | None = None,
) -> list[Path]:
    """Draw a run.

    Args:
        target: Run directory or recipe; None for the newest run.
        overrides: ``key=value`` changes of the recipe.
        instances: Places in the evaluation split to show; by default some of every question type.
        num_instances: How many to show if none is named.
        image: Show this picture, under the given questions, instead of the recipe's data.
        questions: At least two, about ``image``.
        similarity: Measure and draw how alike tokens and heads of the full model are, too.
        out: Where the pictures go; by default the ``figures`` of the run.
        reporter: Receives messages and progress.

    Returns:
        The pictures, then the page that shows them all.

    Raises:
        UserError: There is no trained model, no such instance, no such image, or nothing to draw.
    """
    if image is not None and instances:
        raise UserError("--instance is one of a split, not of a picture", hint="leave out one of the two")
    if image is not None and similarity:
        raise UserError("--similarity is measured on a split, not on a picture", hint="leave out --image")
    if image is None and questions:
        raise UserError("a question needs a picture", where="--question", hint="name one with --image FILE")
    if image is not None and len(questions) < 2:
        raise UserError(
            f"a picture needs at least two questions, not {len(questions)}",
            where="--question",
            hint='repeat it: --question "is there a dog?" --question "what color is the car?"',
        )
    if not all(map(str.strip, questions)):
        raise UserError("a question is empty", where="--question")
    asked = Counter(" ".join(question.split()) for question in questions)
    twice = [question for question, times in asked.items() if times > 1]
    if twice:
        raise UserError(f"given more than once: {twice[0]}", where="--question", hint="ask something else")
    check_writable(out, "--out", folder=True)
    reporter = reporter or SilentReporter()
    subject = find_subject(target, overrides)
    run = require_model(subject, target)
    if out is None:
        check_writable(run.figures, "pictures in", folder=True)
    warn_of_unused(overrides, reporter)
    picture = None if image is None else _open(Path(image))
    bundle = load_model(run.model, section_of(subject.recipe.task), reporter.message)
    album = Album(Path(out) if out is not None else run.figures, f"What {run.path.name} keeps")
    with style():
        if image is not None:
            _refuse_without_questions(bundle.task.form)
            return _own_image(album, bundle, picture, Path(image), questions)
        settings = subject.recipe.evaluate
        most = min(settings.max_instances or _MOST_SURVEYED, _MOST_SURVEYED)
        if bundle.model.sites or similarity:
            split = _Split.open(bundle, settings.split, settings.batch_size, album, reporter)
        if bundle.model.sites:
            split.draw(instances, num_instances, most)
        else:
            _note(album, reporter, "The model has no trimmers: it drops nothing that could be shown.")
            _warn_of_named(instances, "trimmers", reporter)
        if similarity:
            split.similarity(most)
        _curves(album, run, bundle.task.metric, reporter)
    if not album.pictures:
        raise UserError(
            "nothing to draw: the model has no trimmers and the run no metrics", where=str(run.path)
        )
    return album.write("index.html")


@dataclass
class _Split:
    """A model, the split of the data that it is shown on, and the album that fills."""

    bundle: Bundle
    name: str
    dataset: Any
    boxes: Sequence[Mapping[Any, Any]]
    batch_size: int
    album: Album
    reporter: Reporter

    @classmethod
    def open(cls, bundle: Bundle, role: str, batch_size: int, album: Album, reporter: Reporter) -> _Split:
        """Read the split; the boxes of what questions are about too, where the data have them."""
        name = bundle.task.split_name(role)
        dataset: Any = bundle.task.dataset(name, bundle.processor)
        folder: Any = getattr(bundle.task, "folder", None)
        known = folder is not None and (folder / f"scenes_{name}.json").is_file()
        truth = read_truth(folder, name) if known else None
        boxes = () if truth is None else (truth.boxes, truth.second_boxes)
        return cls(bundle, name, dataset, boxes, batch_size, album, reporter)

    def draw(self, named: Sequence[int], number: int, most: int) -> None:
        """Everything that is drawn from instances."""
        for index in named:
            if not 0 <= index < len(self.dataset):
                problem = f"no instance {index}: split {self.name} has {len(self.dataset)}, counted from 0"
                raise UserError(problem, where="--instance")
            if self.dataset[index] is None:  # what is skipped elsewhere cannot be shown, and was asked for
                sample = self.dataset.samples[index]
                where = f"--instance {index}: sample {sample.id}, {', '.join(map(str, sample.images))}"
                raise UserError("it cannot be shown: its image is broken", where=where)
        indices = spread(range(len(self.dataset)), most)
        seen = self._survey(indices, "costs of instances")
        if not seen:
            raise UserError(f"no usable instance in split {self.name}")
        if any(group.startswith("token.") for group in self.bundle.model.groups):
            self._instances(seen, named, number)
            self._two_questions(named)
        else:
            _note(self.album, self.reporter, "The model has no token trimmers: every patch and word is kept.")
            _warn_of_named(named, "token trimmers", self.reporter)
        self._costs(seen)
        tables = head_tables(self.bundle.model.architecture, self.bundle.model.groups, seen)
        if tables:
            several = any(
                len(mask) > 1 for name, mask in seen[0].keep.items() if Site.parse(name).kind != TOKEN
            )
            path = draw_heads(self.album.folder / "heads.png", tables, len(seen), several)
            self.album.add(path, "Attention heads", "How often every attention head runs.")

    def similarity(self, most: int) -> None:
        """How alike tokens and heads are, as a picture and as numbers beside it."""
        indices = spread(range(len(self.dataset)), most)
        with self.reporter.track(len(indices), "similarity") as tracker:
            layers = measure(self.bundle, self.dataset, indices, self.batch_size, tracker.update)
        if not layers:
            raise UserError(f"no usable instance in split {self.name}")
        count = max(layer.count for layer in layers)
        path = draw_similarity(self.album.folder / "similarity.png", layers, self.name, count)
        write_json(path.with_suffix(".json"), as_json(layers, self.name, count))
        caption = (
            "How alike the tokens behind a layer are, and the attention maps of its heads, in the full "
            "model: the mean cosine similarity over all pairs of an instance's tokens, and over all pairs "
            "of heads for the same query. Where it is high, much is said twice and could be dropped; where "
            "the band is wide, how much depends on the instance. The numbers are in similarity.json."
        )
        architecture = self.bundle.model.architecture
        shown = {layer.stream for layer in layers} | set(architecture.overhead)
        missing = [stream for stream in architecture.streams if stream not in shown]
        if missing:
            caption += f" Not measured: {', '.join(missing)}."
        self.album.add(path, "Redundancy of the full model", caption)

    def _survey(self, indices: Sequence[int], label: str) -> list[Seen]:
        with self.reporter.track(len(indices), label) as tracker:
            found = list(survey(self.bundle, self.dataset, indices, self.batch_size, tracker.update))
        return sorted(found, key=lambda one: indices.index(one.index))

    def _pictures(self, seen: Seen) -> list[Instance]:
        return pictures_of(self.bundle, self.dataset, seen, self.boxes)

    def _instances(self, seen: Sequence[Seen], named: Sequence[int], number: int) -> None:
        shown = choose(seen, number)
        how = "Instances are taken evenly over the question types, correctly answered ones first."
        if all(one.record["score"] is None for one in seen):
            how = "Instances are the first of the split."
        if named:
            shown = self._survey(list(dict.fromkeys(named)), "named instances")
            how = "Instances are those asked for."
        self.album.notes.append(how)
        for one in shown:
            for number, instance in enumerate(self._pictures(one)):
                image = f"_image{number + 1}" if number else ""
                path = self.album.folder / f"trimming_{_distinct(one.record['id'])}{image}.png"
                self.album.add(draw_trimming(path, instance), "Layer by layer", _caption(instance))

    def _two_questions(self, named: Sequence[int]) -> None:
        if not any(sample.text for sample in self.dataset.samples):
            return  # retrieval, captioning
        groups = questions_by_image(self.dataset.samples)
        wanted = [image_key(self.dataset.samples[index]) for index in named]
        images = [image for image in dict.fromkeys(wanted) if image in groups]
        if not images:
            everything = list(groups)
            images = [everything[place] for place in spread(range(len(everything)), _PAIR_IMAGES)]
        asked = [index for image in images for index in groups[image]]
        seen = self._survey(asked, "images with two questions")
        pair = most_different(seen, [groups[image] for image in images])
        if pair is None:
            _note(self.album, self.reporter, "No image of the split has two different questions.")
            return
        what = "the same images" if self.bundle.task.form.images > 1 else "one image"
        path = self.album.folder / f"two_questions_{_distinct(pair[0].record['id'])}.png"
        draw_questions(path, [self._pictures(one) for one in pair])
        caption = f"Two questions about {what}, those whose kept patches differ most."
        if len(images) > 1:
            caption += f" Looked for among {len(images)} images, pairs answered correctly first."
        self.album.add(path, "One image, two questions", caption)

    def _costs(self, seen: Sequence[Seen]) -> None:
        cheapest, dearest = (pick(seen, key=lambda one: one.reduction) for pick in (max, min))
        overall = sum(one.full_macs for one in seen) / sum(one.macs for one in seen)
        path = self.album.folder / "macs_histogram.png"
        reductions = [one.reduction for one in seen]
        writes = _writes(self.bundle.task.form)
        draw_histogram(path, reductions, overall, self._pictures(cheapest), self._pictures(dearest), writes)
        caption = "MACs per instance, trimmers included, without padding."
        if writes:
            caption += (
                " Those of the full model are what it takes to write as many tokens as the trimmed one."
            )
        two_stage = getattr(self.bundle.task, "two_stage", False)
        of = ", each with one block of texts" if two_stage else ""
        if two_stage:
            caption += " What evaluate counts are both stages instead: the first, and its candidates."
        self.album.add(path, "Cost of instances", caption)
        scores = [one.record["score"] for one in seen if one.record["score"] is not None]
        measured = f", {self.bundle.task.metric} {sum(scores) / len(scores):.3f}" if scores else ""
        summary = f"{len(seen)} instances of split {self.name}{of}: {format_reduction(overall)}{measured}."
        self.album.notes.insert(0, summary)


def _curves(album: Album, run: Run, metric: str, reporter: Reporter) -> None:
    """What the training logged."""
    history = list(run.history())
    if not history:
        _note(album, reporter, f"No training curves: {run.metrics} is missing or empty.")
        return
    path = draw_curves(album.folder / "training_curves.png", run.path.name, history, metric)
    album.add(
        path, "Training", "Losses, score on the evaluation split, and kept fractions beside their targets."
    )


def _caption(instance: Instance) -> str:
    """Question, answers and cost; in retrieval there is no question, and no answer before the split's end."""
    question = f"{instance.question} — " if instance.question else ""
    answers = f"answered “{instance.trimmed.text}”, full model “{instance.full.text}”; "
    if not (instance.trimmed.text or instance.full.text):
        answers = f"{instance.name}; "
    return f"{question}{answers}{format_reduction(instance.reduction)}."


def _own_image(
    album: Album, bundle: Bundle, picture: Any, file: Path, questions: Sequence[str]
) -> list[Path]:
    """The user's image under the user's questions, on a page of its own, which no others replace."""
    name = f"two_questions_own_{_plain(file.stem)}-{stable_hash(str(file.resolve()), *questions):x}"
    drawn = [picture_of_question(bundle, picture, question, file.name) for question in questions]
    path = draw_questions(album.folder / f"{name}.png", [[one] for one in drawn])
    album.add(path, "One image, several questions", " / ".join(questions))
    return album.write(f"{name}.html")


def _writes(form: Form) -> bool:
    """Whether models of a form write text, instead of ranking answers or classes."""
    return form.decoding is not None and not form.decoding.rank


def _refuse_without_questions(form: Form) -> None:
    if form.images > 1 or form.name == "captioning":
        takes = f"{form.images} pictures" if form.images > 1 else "no question"
        raise UserError(
            f"a model for {form.name} takes {takes}",
            where="--image",
            hint="it is for tasks with a text about one picture; without it, instances of the data are drawn",
        )


def _open(file: Path) -> Any:
    try:
        return load_rgb(file, sample_id=file.name)
    except BadSample as error:
        raise UserError(error.message, where=f"--image {file}") from error


def _warn_of_named(instances: Sequence[int], lacking: str, reporter: Reporter) -> None:
    if instances:
        reporter.warn(f"the model has no {lacking}, so nothing is shown of --instance")


def _note(album: Album, reporter: Reporter, text: str) -> None:
    """Tell the user something, now and on the page."""
    album.notes.append(text)
    reporter.message(text)


def _plain(text: str) -> str:
    """A text that is safe in file names, and short enough for them."""
    safe = re.sub(r"[^\w-]+", "_", text)
    return safe.encode()[:_LONGEST_NAME].decode(errors="ignore")


def _distinct(sample_id: Any) -> str:
    """An id that is safe in file names; one that loses something by that is told apart by a short hash."""
    text = str(sample_id)
    plain = _plain(text)
    return plain if plain == text else f"{plain}-{stable_hash(text):x}"
