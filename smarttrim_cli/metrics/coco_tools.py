"""The parts of the official COCO caption evaluation that need Java: PTB tokenizer, METEOR and SPICE.

Their programs come with the package pycocoevalcap (extra ``captions``). They are started here, with the
options of its wrappers, because those write into the installed package, print, and can wait forever on a
program that has died.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

NEEDS_PACKAGE = "needs pip install 'smarttrim-cli[captions]'"
NEEDS_JAVA = "needs Java"
_NEEDS_MODELS = (
    "needs the Stanford models, a large download: "
    'python -c "from pycocoevalcap.spice.get_stanford_models import get_stanford_models as g; g()"'
)


class Unavailable(Exception):
    """A metric that cannot be computed here; the text says why."""


def package_folder() -> Path:
    """Where pycocoevalcap is installed.

    Raises:
        Unavailable: It is not.
    """
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable(NEEDS_PACKAGE)
    return Path(next(iter(spec.submodule_search_locations)))


def ptb_tokenize(captions: Sequence[str]) -> list[str]:
    """Captions (N,) in the official tokens, lower-cased, without punctuation, joined by blanks.

    Raises:
        Unavailable: The package or Java is missing, or Java fails.
    """
    folder = package_folder() / "tokenizer"
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, STANFORD_CORENLP_3_4_1_JAR

    options = ["-cp", STANFORD_CORENLP_3_4_1_JAR, "edu.stanford.nlp.process.PTBTokenizer"]
    lines = [" ".join(caption.split()) for caption in captions]
    tokenized = _java(folder, [*options, "-preserveLines", "-lowerCase"], lines)
    _expect(len(lines), tokenized, "the PTB tokenizer")
    dropped = frozenset(PUNCTUATIONS)
    return [" ".join(token for token in line.split(" ") if token not in dropped) for line in tokenized]


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """METEOR 1.5 of tokenized captions: of the corpus, and of each instance (N,).

    Raises:
        Unavailable: The package or Java is missing, or Java fails.
    """
    folder = package_folder() / "meteor"
    options = ["-jar", "-Xmx2G", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
    questions = [
        " ||| ".join(["SCORE", *(text.replace("|||", "") for text in (*group, candidate))])
        for candidate, group in zip(candidates, references, strict=True)
    ]
    statistics = _java(folder, options, questions)
    _expect(len(questions), statistics, "METEOR")
    scores = _java(folder, options, [" ||| ".join(["EVAL", *statistics])])
    _expect(len(questions) + 1, scores, "METEOR")
    return float(scores[-1]), [float(score) for score in scores[:-1]]


def spice(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """SPICE (F score) of each instance (N,); the corpus score is their mean.

    SPICE was made for Java 8; newer versions (17) are reported to fail, which the reason then shows.

    Raises:
        Unavailable: The package, its models or Java is missing, or Java fails.
    """
    folder = package_folder() / "spice"
    if not list((folder / "lib").glob("stanford-corenlp-*-models.jar")):
        raise Unavailable(_NEEDS_MODELS)
    items = [
        {"image_id": index, "test": candidate, "refs": list(group)}
        for index, (candidate, group) in enumerate(zip(candidates, references, strict=True))
    ]
    with tempfile.TemporaryDirectory() as temporary:
        source, result = Path(temporary, "captions.json"), Path(temporary, "scores.json")
        source.write_text(json.dumps(items), encoding="utf-8")
        options = ["-jar", "-Xmx8G", "spice-1.0.jar", str(source), "-out", str(result), "-subset", "-silent"]
        _java(folder, options, [])
        if not result.exists():
            raise Unavailable("SPICE wrote no scores")
        scores = {item["image_id"]: item["scores"] for item in json.loads(result.read_text("utf-8"))}
    values = [scores[index]["All"]["f"] for index in range(len(items))]
    return [math.nan if value is None else float(value) for value in values]


def _java(folder: Path, options: Sequence[str], lines: Sequence[str]) -> list[str]:
    """Output lines of a Java program that runs in ``folder`` and reads ``lines``."""
    if shutil.which("java") is None:
        raise Unavailable(NEEDS_JAVA)
    text = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
    done = subprocess.run(["java", *options], cwd=folder, input=text, capture_output=True, check=False)
    if done.returncode:
        complaint = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise Unavailable(f"Java failed: {complaint[0] if complaint else f'exit code {done.returncode}'}")
    return done.stdout.decode("utf-8", "replace").removesuffix("\n").split("\n")


def _expect(count: int, lines: Sequence[str], program: str) -> None:
    if len(lines) != count:
        raise Unavailable(f"{program} answered {len(lines)} lines where {count} were expected")
