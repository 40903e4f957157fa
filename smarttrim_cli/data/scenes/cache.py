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

from smarttrim_cli.data.scenes.layouts import Layout, layout_of
from smarttrim_cli.data.scenes.options import Options
from smarttrim_cli.errors import UserError

Log = Callable[[str], None]
MANIFEST = "manifest.json"
IMAGE_SUFFIX = ".png"
GENERATOR = "smarttrim scenes"
ABANDONED_AFTER_SECONDS = 24 * 3600


def default_root() -> Path:
    """Where data are cached: ``$SMARTTRIM_CACHE``, else ``~/.cache/smarttrim``."""
    return _without_tilde(Path(os.environ.get("SMARTTRIM_CACHE") or "~/.cache/smarttrim"))


def _without_tilde(path: Path) -> Path:
    """The path, ``~`` spelled out.

    Raises:
        UserError: Nobody knows that home.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        hint = "name the folder by a whole path (--out DIR; SMARTTRIM_CACHE=DIR for the cache), or set HOME"
        text = f"the home folder {path.parts[0]} is not known"
        raise UserError(text, where=str(path), hint=hint) from error


def open_or_build(options: Options, root: Path | None = None, log: Log = print, task: str = "vqa") -> Path:
    """The cached folder with the scenes of these options; built first if it is missing or damaged.

    Args:
        options: What the scenes are like; each distinct set of options has a folder of its own.
        root: Folder of the cache; None for the default one.
        log: Receives a line when something is built or found damaged.
        task: What is said about the scenes; each layout has folders of its own.
    """
    layout = layout_of(task)
    folder = (root or default_root()) / _folder_name(options, layout)
    problem = find_problem(folder, options, layout)
    if problem is None:
        return folder
    if folder.exists():
        log(f"scenes: {folder} is damaged ({problem}); building it again")
    _build_in_place(folder, options, layout, log)
    return folder


def build(out: Path, options: Options, log: Log = print, task: str = "vqa") -> dict[str, dict[str, int]]:
    """Write the scenes to a folder of the user's choice; returns the numbers of images, questions, ...

    An older folder of scenes is replaced; any other folder with something in it is refused.

    Raises:
        UserError: ``out`` holds other things than scenes, or cannot be written.
    """
    layout = layout_of(task)
    out = _without_tilde(out).resolve()
    if find_problem(out, options, layout) is None:
        log(f"scenes: {out} already holds these scenes")
    else:
        _refuse_other_content(out)
        _build_in_place(out, options, layout, log)
    counts: dict[str, dict[str, int]] = json.loads((out / MANIFEST).read_text(encoding="utf-8"))["counts"]
    return counts


def find_problem(folder: Path, options: Options, layout: Layout) -> str | None:
    """What keeps a folder from being the complete scenes of these options, or None if nothing does."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if any(manifest[key] != value for key, value in _head(options, layout).items()):
            return "it was made with other options or by another version"
        for name, digest in manifest["json_sha256"].items():
            if _sha256(folder / name) != digest:
                return f"{name} was changed"
        for name, expected in manifest["images"].items():
            if _image_totals(folder / name) != expected:
                return f"images in {name} are missing or changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be used: {error!r}"
    return None


def _build_in_place(folder: Path, options: Options, layout: Layout, log: Log) -> None:
    """Build beside ``folder`` and move there; if another process was faster, its result is used."""
    temporary = folder.with_name(f".{folder.name}.building-{os.getpid()}-{time.time_ns()}")
    log(f"scenes: making {layout.total_images(options)} images with {layout.says} in {folder}")
    start = time.perf_counter()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        _write_all(temporary, options, layout)
        _move_in_place(temporary, folder, options, layout)
    except OSError as error:
        raise UserError(
            f"cannot write the scenes: {error.strerror or error}",
            where=str(error.filename or folder),
            hint="Choose another place: --out DIR, or SMARTTRIM_CACHE=DIR for the cache.",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log(f"scenes: made in {time.perf_counter() - start:.1f} s")


def _write_all(folder: Path, options: Options, layout: Layout) -> None:
    folder.mkdir()
    counts = layout.write(folder, options)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    manifest: dict[str, Any] = {
        **_head(options, layout),
        "counts": counts,
        "json_sha256": {path.name: _sha256(path) for path in files},
        "images": {name: _image_totals(folder / name) for name in layout.image_folders(options)},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _move_in_place(temporary: Path, folder: Path, options: Options, layout: Layout) -> None:
    """Move a finished folder to its name, unless good data came to be there meanwhile."""
    if find_problem(folder, options, layout) is None:
        return
    aside = temporary.with_name(f"{temporary.name}-replaced")
    if folder.exists():
        folder.rename(aside)
    try:
        temporary.rename(folder)
    except OSError:
        if find_problem(folder, options, layout) is not None:
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
    ours = _own_names(out)
    others = sorted(path.name for path in out.iterdir() if path.name not in ours)
    others += _others_among_images(out) if ours else []
    if others or not ours:
        what = f"holds other files ({', '.join(others[:3])})"
        what += "" if ours else f" and no good {MANIFEST}"
        raise UserError(what, where=str(out), hint="Choose an empty or a new folder.")


def _own_names(out: Path) -> set[str]:
    """What a folder of scenes of any layout holds, by its manifest; nothing for other folders."""
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        if manifest["generator"] == GENERATOR:
            return {MANIFEST, *manifest["json_sha256"], *manifest["images"]}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return set()


def _others_among_images(out: Path) -> list[str]:
    """What lies in the folders of images and is no image, or is one more than were made."""
    made = json.loads((out / MANIFEST).read_text(encoding="utf-8"))["images"]
    others = []
    for name, totals in made.items():
        files = sorted(path for path in (out / name).rglob("*") if path.is_file())
        foreign = [path for path in files if path.suffix != IMAGE_SUFFIX]
        others += [str(path.relative_to(out)) for path in foreign]
        if not foreign and len(files) > totals["number"]:
            others.append(f"{len(files) - totals['number']} images in {name}")
    return others


def _remove_abandoned(folder: Path) -> None:
    """Remove what builds left behind that were killed long ago."""
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.building-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime > ABANDONED_AFTER_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)


def _head(options: Options, layout: Layout) -> dict[str, Any]:
    """What the manifest of these scenes begins with. That of VQA, the first layout, does not name it."""
    named = {} if layout.name == "vqa" else {"layout": layout.name}
    return {
        "generator": GENERATOR,
        **named,
        "version": layout.version,
        "options": layout.options(options),
    }


def _folder_name(options: Options, layout: Layout) -> str:
    """Name of the folder in the cache; that of VQA is older than the other layouts."""
    content = [layout.version, layout.options(options)]
    fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return f"scenes-{fingerprint}" if layout.name == "vqa" else f"scenes-{layout.name}-{fingerprint}"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _image_totals(folder: Path) -> dict[str, int]:
    """Number of files below a folder, and their size in bytes together."""
    sizes = [(Path(where) / name).stat().st_size for where, _, names in os.walk(folder) for name in names]
    return {"number": len(sizes), "bytes": sum(sizes)}
