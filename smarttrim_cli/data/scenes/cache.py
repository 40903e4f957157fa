"""Folders of scenes on disk: built once, verified on opening, rebuilt when damaged.

A folder is built under a temporary name beside its place, closed with a manifest, and moved in place as a
whole: what has the final name was complete once. The manifest says what has to be there, so later damage is
found on opening.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smarttrim_cli.data.scenes.options import GENERATOR_VERSION, SPLITS, Options
from smarttrim_cli.data.scenes.writer import write_split
from smarttrim_cli.errors import UserError

Log = Callable[[str], None]
MANIFEST = "manifest.json"
GENERATOR = "smarttrim scenes"
ABANDONED_AFTER_SECONDS = 24 * 3600


def default_root() -> Path:
    """Where data are cached: ``$SMARTTRIM_CACHE``, else ``~/.cache/smarttrim``."""
    return Path(os.environ.get("SMARTTRIM_CACHE") or "~/.cache/smarttrim").expanduser()


def open_or_build(options: Options, root: Path | None = None, log: Log = print) -> Path:
    """The cached folder with the scenes of these options; built first if it is missing or damaged.

    Args:
        options: What the scenes are like; each distinct set of options has a folder of its own.
        root: Folder of the cache; None for the default one.
        log: Receives a line when something is built or found damaged.
    """
    folder = (root or default_root()) / f"scenes-{_fingerprint(options)}"
    problem = find_problem(folder, options)
    if problem is None:
        return folder
    if folder.exists():
        log(f"scenes: {folder} is damaged ({problem}); building it again")
    _build_in_place(folder, options, log)
    return folder


def build(out: Path, options: Options, log: Log = print) -> dict[str, dict[str, int]]:
    """Write the scenes to a folder of the user's choice; returns the numbers of images and questions.

    An older folder of scenes is replaced; any other folder with something in it is refused.

    Raises:
        UserError: ``out`` holds other things than scenes, or cannot be written.
    """
    out = out.expanduser().resolve()
    if find_problem(out, options) is None:
        log(f"scenes: {out} already holds these scenes")
    else:
        _refuse_other_content(out)
        _build_in_place(out, options, log)
    counts: dict[str, dict[str, int]] = json.loads((out / MANIFEST).read_text(encoding="utf-8"))["counts"]
    return counts


def find_problem(folder: Path, options: Options) -> str | None:
    """What keeps a folder from being the complete scenes of these options, or None if nothing does."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["options"] != options.model_dump(mode="json") or manifest["version"] != GENERATOR_VERSION:
            return "it was made with other options or by another version"
        for name, digest in manifest["json_sha256"].items():
            if _sha256(folder / name) != digest:
                return f"{name} was changed"
        for split, expected in manifest["images"].items():
            if _image_totals(folder / split) != expected:
                return f"images of split {split} are missing or changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be used: {error!r}"
    return None


def _build_in_place(folder: Path, options: Options, log: Log) -> None:
    """Build beside ``folder`` and move there; if another process was faster, its result is used."""
    temporary = folder.with_name(f".{folder.name}.building-{os.getpid()}-{time.time_ns()}")
    total = sum(options.num_images.model_dump().values())
    log(f"scenes: making {total} images with {options.questions_per_image} questions each in {folder}")
    start = time.perf_counter()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        _write_all(temporary, options)
        _move_in_place(temporary, folder, options)
    except OSError as error:
        raise UserError(
            f"cannot write the scenes: {error.strerror or error}",
            where=str(error.filename or folder),
            hint="Choose another place: --out DIR, or SMARTTRIM_CACHE=DIR for the cache.",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log(f"scenes: made in {time.perf_counter() - start:.1f} s")


def _write_all(folder: Path, options: Options) -> None:
    folder.mkdir()
    counts = {split: write_split(folder, options, split) for split in SPLITS}
    manifest: dict[str, Any] = {
        "generator": GENERATOR,
        "version": GENERATOR_VERSION,
        "options": options.model_dump(mode="json"),
        "counts": counts,
        "json_sha256": {path.name: _sha256(path) for path in sorted(folder.glob("*.json"))},
        "images": {split: _image_totals(folder / split) for split in SPLITS},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _move_in_place(temporary: Path, folder: Path, options: Options) -> None:
    """Move a finished folder to its name, unless good data came to be there meanwhile."""
    if find_problem(folder, options) is None:
        return
    aside = temporary.with_name(f"{temporary.name}-replaced")
    if folder.exists():
        folder.rename(aside)
    try:
        temporary.rename(folder)
    except OSError:
        if find_problem(folder, options) is not None:
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _refuse_other_content(out: Path) -> None:
    """Refuse a folder that would lose something other than scenes."""
    if out.is_file():
        raise UserError("is a file, not a folder", where=str(out))
    if out in (Path.cwd(), *Path.cwd().parents):
        raise UserError("is the working folder, or above it", where=str(out), hint="Name a folder below it.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    ours = {MANIFEST, *SPLITS}
    ours |= {f"v2_OpenEnded_mscoco_{split}_questions.json" for split in SPLITS}
    ours |= {f"v2_mscoco_{split}_annotations.json" for split in SPLITS} | {
        f"scenes_{split}.json" for split in SPLITS
    }
    others = sorted(path.name for path in out.iterdir() if path.name not in ours)
    try:
        is_scenes = json.loads((out / MANIFEST).read_text(encoding="utf-8"))["generator"] == GENERATOR
    except (OSError, ValueError, KeyError, TypeError):
        is_scenes = False
    if others or not is_scenes:
        what = (
            f"holds other files ({', '.join(others[:3])})"
            if others
            else f"is not empty and has no good {MANIFEST}"
        )
        raise UserError(what, where=str(out), hint="Choose an empty or a new folder.")


def _remove_abandoned(folder: Path) -> None:
    """Remove what builds left behind that were killed long ago."""
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.building-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime > ABANDONED_AFTER_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)


def _fingerprint(options: Options) -> str:
    content = json.dumps([GENERATOR_VERSION, options.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _image_totals(folder: Path) -> dict[str, int]:
    """Number of files in a folder, and their size in bytes together."""
    sizes = [entry.stat().st_size for entry in os.scandir(folder)]
    return {"number": len(sizes), "bytes": sum(sizes)}
