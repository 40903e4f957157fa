"""One HTML page with all pictures inside: no other file and no network is needed to look at it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template

from smarttrim_cli.engine.files import write_text


@dataclass(frozen=True)
class Picture:
    """A picture with its words on the page."""

    path: Path
    section: str
    caption: str


@dataclass
class Album:
    """Pictures as they come into being, in the order of the page.

    Attributes:
        folder: Where pictures and page go.
        title: Heading of the page.
    """

    folder: Path
    title: str
    notes: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)

    def add(self, path: Path, section: str, caption: str) -> None:
        """A picture that was drawn."""
        self.pictures.append(Picture(path, section, caption))

    def write(self, name: str) -> list[Path]:
        """Write the page; returns the pictures and the page."""
        page = write_page(self.folder / name, self.title, self.notes, self.pictures)
        return [*(picture.path for picture in self.pictures), page]


_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light; --ink: #1b1f24; --muted: #656d76; --line: #d8dee4; --accent: #0072b2; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: #f6f8fa; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: clamp(1.5rem, 3.5vw, 2.1rem); line-height: 1.2; letter-spacing: -.01em; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 3rem 0 .9rem; }
header p { margin: .2rem 0; color: var(--muted); max-width: 50rem; overflow-wrap: anywhere; }
nav { margin-top: 1.1rem; display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; }
nav a { color: var(--accent); text-decoration: none; }
nav a:hover, nav a:focus-visible { text-decoration: underline; }
figure { margin: 0 0 1.4rem; background: #fff; border: 1px solid var(--line); border-radius: 10px;
  overflow: hidden; }
figure img { display: block; width: 100%; height: auto; }
figcaption { padding: .7rem 1.1rem .9rem; color: var(--muted); font-size: .92rem;
  border-top: 1px solid var(--line); overflow-wrap: anywhere; }
@media (max-width: 48rem) { .scroll { overflow-x: auto; } .scroll img { min-width: 46rem; } }
@media print { body { background: #fff; } nav { display: none; } figure { break-inside: avoid; } }
</style>
</head>
<body>
<main>
<header>
<h1>$title</h1>
$notes
<nav aria-label="Sections">$links</nav>
</header>
$sections
</main>
</body>
</html>
""")


def write_page(path: Path, title: str, notes: Sequence[str], pictures: Sequence[Picture]) -> Path:
    """Write the page.

    Args:
        path: Where it goes.
        title: Its heading.
        notes: Paragraphs below the heading.
        pictures: In order; those of one section follow each other.
    """
    sections = list(dict.fromkeys(picture.section for picture in pictures))
    links = "".join(f'<a href="#s{number}">{escape(name)}</a>' for number, name in enumerate(sections))
    parts = []
    for number, name in enumerate(sections):
        figures = "\n".join(_figure(picture) for picture in pictures if picture.section == name)
        parts.append(f'<section id="s{number}">\n<h2>{escape(name)}</h2>\n{figures}\n</section>')
    paragraphs = "\n".join(f"<p>{escape(note)}</p>" for note in notes)
    content = {"title": escape(title), "notes": paragraphs, "links": links, "sections": "\n".join(parts)}
    write_text(path, _PAGE.substitute(content))
    return path


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    caption = escape(picture.caption, quote=True)
    image = f'<div class="scroll"><img alt="{caption}" src="data:image/png;base64,{data}"></div>'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
