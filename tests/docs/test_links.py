"""Every relative link of the documentation leads somewhere, and no page names a place on one machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_OURS = {"runs", "data", "build", "dist", "venv"}
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)")
TARGET_OF_TAG = re.compile(r"<(?:a|img)\b[^>]*?\b(?:href|src)=\"([^\"]+)\"")
ABSOLUTE = re.compile(r"(?:^|[\s`'\"(=\[])(/[\w.-]+/[\w./-]+)", re.MULTILINE)
SCHEME = re.compile(r"[a-z][a-z+.-]*:")


def pages() -> list[Path]:
    """Markdown files of the repository, without environments, caches and what commands write."""
    found: list[Path] = []
    for folder, inner, files in os.walk(ROOT):
        at_top = Path(folder) == ROOT
        inner[:] = [name for name in inner if name[0] != "." and not (at_top and name in NOT_OURS)]
        found += [Path(folder, name) for name in files if name.endswith(".md")]
    return sorted(found)


PAGES = pages()
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]


def prose(text: str) -> str:
    """The text without code, where brackets are no links."""
    text = re.sub(r"^(`{3,}).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(text: str) -> set[str]:
    """Anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^(`{3,}).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", text, flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = found.get(name, 0)
        names.add(f"{name}-{number}" if number else name)
        found[name] = number + 1
    return names


def broken(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead nowhere."""
    wrong = []
    for target in [*LINK.findall(prose(text)), *TARGET_OF_TAG.findall(prose(text))]:
        if SCHEME.match(target):
            continue
        name, _, anchor = target.partition("#")
        file = page if not name else page.parent / name
        leads = not name.startswith("/") and file.exists()
        if leads and anchor and file.suffix == ".md":
            leads = anchor in anchors(file.read_text(encoding="utf-8"))
        if not leads:
            wrong.append(target)
    return wrong


def test_there_are_pages() -> None:
    assert {"README.md", "docs/architecture.md", "docs/recipes.md"} <= set(NAMES)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_relative_links_resolve(page: Path) -> None:
    assert not broken(page, page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_absolute_paths(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert str(ROOT) not in text
    found = [path for path in ABSOLUTE.findall(text) if Path("/", path.split("/")[1]).exists()]
    assert not found


def test_the_checks_see_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# A `Title`, really\n", encoding="utf-8")
    page = tmp_path / "a.md"
    text = (
        "[1](b.md) [2](c.md) [3](b.md#a-title-really) [4](b.md#none) [![5](x.png)](https://x.org) `[6](y.md)`"
    )
    assert broken(page, text) == ["c.md", "b.md#none", "x.png"]
    assert ABSOLUTE.findall("see `/etc/x/y.yaml`, a/b/c, https://x.org/a/b") == ["/etc/x/y.yaml"]
