"""Reader of Hugging Face data sets on disk, for any task; the package ``datasets`` is an optional extra.

A data folder is one of

- what ``save_to_disk`` wrote, of a ``DatasetDict`` or a ``Dataset``;
- parquet files as on the hub: ``train-00000-of-00002.parquet`` (also in ``data/``), ``train.parquet``, or
  ``train/*.parquet``;
- image folders: ``train/metadata.jsonl`` (or ``.csv``) beside the images.

Columns have the names of :data:`smarttrim_cli.data.entries.KEYS`, or ``columns`` says what they are called.
No code that comes with data is run: there are no loading scripts, only files in these formats.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from smarttrim_cli.data.entries import KEYS, Entry, gathered, images_per_sample, to_sample
from smarttrim_cli.data.files import read_json, shown
from smarttrim_cli.data.samples import EmbeddedImage, ImageSource, Sample
from smarttrim_cli.data.splits import Log, file_names, joins_splits, unknown_split, unlabelled
from smarttrim_cli.errors import UserError

TASKS = tuple(KEYS)
_SHARD = re.compile(r"(.+?)(-\d+-of-\d+(-[0-9a-f]+)?)?\.parquet")  # older hubs append a hash
_METADATA = ("metadata.jsonl", "metadata.csv")
_TEXTS = ("string", "large_string")
_BATCH = 1000
_COLUMN_KEYS = ("image", "images", *sorted({key for keys in KEYS.values() for key in keys}))


class Options(BaseModel):
    """Where the data are, and what their columns are called."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_dir: str = Field(description="folder of save_to_disk, of parquet files, or of image folders")
    columns: dict[str, str | list[str]] = Field(
        default={},
        description="column of each key, where it is called otherwise: {image: img, question: text}; "
        "images: [left, right] for pairs in two columns",
    )

    @field_validator("columns")
    @classmethod
    def _keys_are_known(cls, columns: dict[str, str | list[str]]) -> dict[str, str | list[str]]:
        for key, column in columns.items():
            if key not in _COLUMN_KEYS:
                raise ValueError(f"unknown key {key!r}; keys are {', '.join(_COLUMN_KEYS)}")
            if isinstance(column, list) and (key != "images" or len(column) != 2):
                raise ValueError(f"{key}: only images can be a list of columns, of two")
        return columns


@partial(joins_splits, join=gathered)
def read(options: Options, task: str, split: str, *, labelled: bool, log: Log = print) -> list[Sample]:
    """Samples of a split; images are decoded when they are needed.

    Args:
        options: Where the data are.
        task: One of ``TASKS``.
        split: Name of a split.
        labelled: Whether a row without answer, label or captions is an error.
        log: Takes a line for the user.

    Raises:
        UserError: ``datasets`` is not installed, the split or a column is missing, or a row has wrong values.
    """
    folder = Path(options.data_dir)
    sources = _sources(folder)
    if split not in sources:
        raise unknown_split(split, "samples", sources, folder, "data in a known format")
    place = f"{folder}, split {split}"
    table = _loaded(sources[split], place)
    columns = _image_columns(table, options, task, place)
    images = _images(table, columns, images_per_sample(task), folder, place)
    values = _rows(table, _value_columns(table, options, task, place, labelled), place)
    if unread := sorted(options.columns.keys() - {*KEYS[task], _image_key(task)}):
        log(f"task.data.columns: {task} does not read {', '.join(unread)}")
    samples, unlabelled_rows = [], 0
    label = table.features.get(str(options.columns.get("label", "label")))
    of_classes = labelled and "label" in KEYS[task] and getattr(label, "names", None) is not None
    for row, (entry, found) in enumerate(zip(values, images, strict=True)):
        if of_classes and entry.get("label") is None:
            unlabelled_rows += 1
            continue
        at = Entry(entry, found, f"{split}:{row}", f"{place}, row {row}", split, labelled)
        samples.append(to_sample(task, at))
    if unlabelled_rows and not samples:
        raise unlabelled(split, "samples", "label", place)
    if unlabelled_rows:
        log(f"{place}: {unlabelled_rows} rows without a label (-1) are left out")
    return samples


def splits(options: Options, task: str) -> list[str]:
    """Names of the splits."""
    return list(_sources(Path(options.data_dir)))


def _sources(folder: Path) -> dict[str, Callable[[Any], Any]]:
    """How to load each split, given the package ``datasets``."""
    names = file_names(folder)
    if "dataset_dict.json" in names:
        path = folder / "dataset_dict.json"
        content = read_json(path)
        listed = content.get("splits") if isinstance(content, dict) else None
        if not isinstance(listed, list):
            raise UserError("no list of splits", where=str(path))
        return {str(name): _saved(folder / str(name)) for name in listed}
    if "state.json" in names:
        state = read_json(folder / "state.json")
        return {str((state.get("_split") if isinstance(state, dict) else None) or "train"): _saved(folder)}
    return _parquet(folder) or _image_folders(folder)


def _saved(folder: Path) -> Callable[[Any], Any]:
    return lambda datasets: datasets.load_from_disk(str(folder))


def _parquet(folder: Path) -> dict[str, Callable[[Any], Any]]:
    """By split: a folder is one, unless its files are shards with a split's name, as the hub writes them."""
    found = [
        (path, match)
        for path in sorted([*folder.glob("*.parquet"), *folder.glob("*/*.parquet")])
        if (match := _SHARD.fullmatch(path.name))
    ]
    plain = (folder, folder / "data")
    configurations = {path.parent for path, match in found if match[2] and path.parent not in plain}
    files: dict[str, list[str]] = {}
    for path, match in found:
        inside = path.parent not in plain
        split = path.parent.name if inside and not match[2] else match[1]
        if path.parent in configurations and len(configurations) > 1:
            split = f"{path.parent.name}/{split}"
        files.setdefault(split, []).append(glob.escape(str(path)))
    return {split: _of_builder("parquet", data_files=paths) for split, paths in files.items()}


def _image_folders(folder: Path) -> dict[str, Callable[[Any], Any]]:
    found = {path.name: path for path in sorted(folder.iterdir()) if _has_metadata(path)}
    if _has_metadata(folder):
        found = {"train": folder}
    return {split: _of_builder("imagefolder", **_images_in(path)) for split, path in found.items()}


def _has_metadata(folder: Path) -> bool:
    """Not of one that cannot be read, such as ``lost+found``: ``Path.is_file`` raises there."""
    return any(os.path.isfile(folder / name) for name in _METADATA)


def _images_in(folder: Path) -> dict[str, Any]:
    """All files of a folder; by itself the builder makes splits of names such as COCO_val2014_1.jpg."""
    return {"data_files": {"train": [f"{glob.escape(str(folder))}/**"]}, "drop_labels": True}


def _of_builder(builder: str, **arguments: Any) -> Callable[[Any], Any]:
    return lambda datasets: datasets.load_dataset(builder, split="train", **arguments)


def _loaded(source: Callable[[Any], Any], place: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "Hugging Face data sets need the package datasets, which is not installed",
            where="task.data.name",
            hint="pip install 'smarttrim-cli[datasets]'",
        ) from error
    try:
        with _without_bars(datasets):
            return source(datasets)
    except Exception as error:  # the package has exceptions of its own, of pyarrow and of fsspec
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"cannot be read: {reason}", where=place) from error


@contextmanager
def _without_bars(datasets: Any) -> Iterator[None]:
    """The package's own, which call reading files a download and every split one of training."""
    drawn = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if drawn:
            datasets.enable_progress_bars()


def _image_columns(table: Any, options: Options, task: str, place: str) -> list[str]:
    """The column of images: one for single images and lists of two, two for pairs in two columns."""
    key = _image_key(task)
    named = options.columns.get(key, key)
    columns = [named] if isinstance(named, str) else named
    lists = images_per_sample(task) > len(columns)
    for column in columns:
        _refuse_missing(table, key, column, place)
        _refuse_no_images(table.features[column], key, column, lists, place)
    return columns


def _image_key(task: str) -> str:
    return "image" if images_per_sample(task) == 1 else "images"


def _refuse_no_images(feature: Any, key: str, column: str, lists: bool, place: str) -> None:
    """A column of numbers, say; a list is one of ``lists`` alone (whose lengths are looked at elsewhere)."""
    inside = getattr(feature, "feature", feature) if lists else feature
    known = {"bytes", "path"} & inside.keys() if isinstance(inside, Mapping) else _holds_images(inside)
    if not known:
        raise UserError(
            f"column {column!r} (key {key}) holds no images, but {_kind(feature)}",
            where=place,
            hint="an image is a picture, the bytes of a file, its path, or {bytes, path}",
        )


def _holds_images(feature: Any) -> bool:
    """Whether values are texts, bytes, or what the package calls an image."""
    return getattr(feature, "dtype", None) in (*_TEXTS, "binary", "large_binary", "PIL.Image.Image")


def _kind(feature: Any) -> str:
    inside = getattr(feature, "feature", None)
    if inside is not None:
        return f"lists of {_kind(inside)}"
    return f"{{{', '.join(feature)}}}" if isinstance(feature, Mapping) else str(feature.dtype)


def _value_columns(table: Any, options: Options, task: str, place: str, labelled: bool) -> dict[str, str]:
    """Column of each key that the table has."""
    found = {}
    for key in KEYS[task]:
        column = str(options.columns.get(key, key))
        if key in options.columns:
            _refuse_missing(table, key, column, place)
        if column in table.column_names:
            found[key] = column
    first = KEYS[task][0]
    if labelled or task != "captioning":  # captions that are to be written need not be there
        _refuse_missing(table, first, found.get(first, first), place)
    return found


def _refuse_missing(table: Any, key: str, column: str, place: str) -> None:
    if column not in table.column_names:
        raise UserError(
            f"no column {column!r} (key {key})",
            where=place,
            hint=f"columns there: {', '.join(table.column_names)}; task.data.columns says which is which",
        )


class _Cells:
    """Rows of some columns as plain values: images stay the bytes and paths that they are stored as."""

    def __init__(self, table: Any, columns: list[str]) -> None:
        self.table = table.select_columns(columns).with_format("arrow")

    def __getitem__(self, row: int) -> dict[str, Any]:
        values: dict[str, Any] = self.table[row].to_pylist()[0]
        return values

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.table.iter(_BATCH):
            yield from batch.to_pylist()


def _rows(table: Any, columns: dict[str, str], place: str) -> Iterator[dict[str, Any]]:
    """Values of each row by key, classes by their names."""
    names = {key: getattr(table.features[column], "names", None) for key, column in columns.items()}
    if not columns:
        yield from ({} for _ in range(len(table)))
        return
    for number, row in enumerate(_Cells(table, sorted(set(columns.values())))):
        where = f"{place}, row {number}"
        yield {key: _named(key, row[column], names[key], where) for key, column in columns.items()}


def _named(key: str, value: Any, names: list[str] | None, where: str) -> Any:
    """The name of a class; None for -1, which stands for no label."""
    if names is None or not isinstance(value, int):
        return value
    if not -1 <= value < len(names):
        raise UserError(f"{key} is {value}, but there are {len(names)} classes", where=where)
    return names[value] if value >= 0 else None


def _images(
    table: Any, columns: list[str], number: int, folder: Path, place: str
) -> Iterator[tuple[ImageSource, ...]]:
    """Images of each row: inside the table, or files whose paths are in it."""
    cells = _Cells(table, columns)
    if number > len(columns):
        _refuse_other_lengths(cells, columns[0], number, place)
        spots: list[tuple[str, int | None]] = [(columns[0], position) for position in range(number)]
    else:
        spots = [(column, None) for column in columns]
    paths = all(_is_text(table.features[column]) for column in columns)
    for row in range(len(table)):
        if paths:
            values = [cells[row][column] for column in columns]
            found = values if number == len(columns) else values[0]
            yield tuple(folder / _path(name, columns, f"{place}, row {row}") for name in found)
        else:
            yield tuple(EmbeddedImage(cells, row, column, place, spot, folder) for column, spot in spots)


def _path(value: Any, columns: list[str], where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{' and '.join(columns)}: {shown(value)} is no path of an image", where=where)
    return value


def _is_text(feature: Any) -> bool:
    """Whether a column holds texts, or lists of texts."""
    return getattr(getattr(feature, "feature", feature), "dtype", None) in _TEXTS


def _refuse_other_lengths(cells: _Cells, column: str, number: int, place: str) -> None:
    import pyarrow.compute as pc

    row = 0
    if not hasattr(cells.table.features[column], "feature"):
        raise UserError(
            f"{column} has single images, not lists of {number}",
            where=place,
            hint="task.data.columns={images: [left, right]} takes pairs from two columns",
        )
    for batch in cells.table.iter(_BATCH):
        for length in pc.list_value_length(batch[column]).to_pylist():
            if length != number:
                raise UserError(f"{column} has {length} images, not {number}", where=f"{place}, row {row}")
            row += 1
