from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from smarttrim_cli.metrics import coco_tools
from smarttrim_cli.metrics.captions import official_scores, simple_scores, summary

# Some captions with contractions, punctuation and brackets.
CANDIDATES = ["A man's dog sits.", "two red squares", "a small green cross (left)"]
REFERENCES = [
    ["A man's dog is sitting.", "the dog sits down!"],
    ["there are two red squares", "Two squares, both red."],
    ["a green cross", "one green cross, it is small", "a small green cross."],
]
OFFICIAL = {"bleu1", "bleu2", "bleu3", "bleu4", "cider", "rouge_l", "meteor", "spice"}
with_tools = pytest.mark.skipif(
    shutil.which("java") is None or importlib.util.find_spec("pycocoevalcap") is None,
    reason="needs Java and pycocoevalcap",
)


def fake_java(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    java = folder / "java"
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_simple_scores_need_nothing() -> None:
    scores = simple_scores(["a b.", "C c"], [["A b"], ["c d"]])
    assert set(scores) == {f"{name}_simple_tokens" for name in ("bleu1", "bleu2", "bleu3", "bleu4", "cider")}
    bleu1, cider = scores["bleu1_simple_tokens"], scores["cider_simple_tokens"]
    assert bleu1.estimate is not None
    assert bleu1.estimate.mean == pytest.approx(3 / 4)
    assert bleu1.per_instance is None
    assert cider.per_instance == pytest.approx((5.0, 0.883883))
    assert cider.estimate is not None
    assert (cider.estimate.mean, cider.estimate.count) == (pytest.approx(2.941942), 2)
    assert cider.estimate.standard_error == pytest.approx((5.0 - 0.883883) / 2)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    scores = official_scores(CANDIDATES, REFERENCES)
    assert set(scores) == OFFICIAL
    assert {score.skipped for score in scores.values()} == {
        "skipped: needs pip install 'smarttrim-cli[captions]'"
    }
    assert all(score.estimate is None and score.per_instance is None for score in scores.values())


def test_without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    content = summary(official_scores(CANDIDATES, REFERENCES, extras=()))
    assert content["cider"] is None
    assert content["cider_skipped"] == "skipped: needs Java"
    assert set(content) == {f"bleu{n}{end}" for n in range(1, 5) for end in ("", "_skipped")} | {
        "cider",
        "cider_skipped",
    }


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'no runtime present' >&2; exit 3", "skipped: Java failed: no runtime present"),
        ("exit 3", "skipped: Java failed: exit code 3"),
        ("echo hello", "skipped: the PTB tokenizer answered 1 lines where 3 were expected"),
    ],
)
def test_java_that_does_not_work(
    script: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    fake_java(tmp_path, f"cat > /dev/null; {script}", monkeypatch)
    assert official_scores(CANDIDATES, REFERENCES)["meteor"].skipped == reason


def test_captions_need_references() -> None:
    for function in (simple_scores, official_scores):
        with pytest.raises(ValueError, match="caption 1 has no reference"):
            function(["a", "b"], [["a"], []])


def test_spice_reads_what_the_program_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spice" / "lib").mkdir(parents=True)
    monkeypatch.setattr(coco_tools, "package_folder", lambda: tmp_path)
    with pytest.raises(coco_tools.Unavailable, match="needs the Stanford models"):
        coco_tools.spice(["a"], [["a"]])
    (tmp_path / "spice" / "lib" / "stanford-corenlp-3.6.0-models.jar").touch()
    answer = [{"image_id": 1, "scores": {"All": {"f": 0.25}}}, {"image_id": 0, "scores": {"All": {"f": 1}}}]
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    keep = f"cp $4 {tmp_path}/asked.json; "  # java -jar -Xmx8G spice-1.0.jar IN -out OUT ...
    fake_java(tmp_path, f"{keep}cp {tmp_path}/answer.json $6", monkeypatch)
    assert coco_tools.spice(["a b", "c"], [["a b"], ["d", "e"]]) == [1.0, 0.25]
    assert json.loads((tmp_path / "asked.json").read_text()) == [
        {"image_id": 0, "test": "a b", "refs": ["a b"]},
        {"image_id": 1, "test": "c", "refs": ["d", "e"]},
    ]
    fake_java(tmp_path, "exit 0", monkeypatch)
    with pytest.raises(coco_tools.Unavailable, match="no scores"):
        coco_tools.spice(["a"], [["a"]])


@with_tools
def test_official_tokens() -> None:
    captions = ["A man's dog, well-known, doesn't sit.", "", "two (2) cats;\n 3.5 naïve cafés", "\r", ""]
    assert coco_tools.ptb_tokenize(captions) == [
        "a man 's dog well-known does n't sit",
        "",
        "two -lrb- 2 -rrb- cats 3.5 naïve cafés",
        "",
        "",
    ]


@with_tools
def test_on_plain_sentences_simple_tokens_are_the_official_ones() -> None:
    captions = [
        "A large red circle left of a small blue square, and three green crosses.",
        "two yellow triangles; the picture shows no diamond",
        "there are 12 objects: one is purple",
    ]
    simple = simple_scores(captions, [[caption] for caption in captions[::-1]])
    official = official_scores(captions, [[caption] for caption in captions[::-1]], extras=())
    assert {name.removesuffix("_simple_tokens"): score for name, score in simple.items()} == official


def official_tokens() -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    references = {row: [{"caption": text} for text in group] for row, group in enumerate(REFERENCES)}
    candidates = {row: [{"caption": text}] for row, text in enumerate(CANDIDATES)}
    return tokenizer.tokenize(references), tokenizer.tokenize(candidates)


@with_tools
def test_official_scores_equal_the_package() -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    pair = official_tokens()
    bleu = Bleu(4).compute_score(*pair, verbose=0)[0]
    cider, ciders = Cider().compute_score(*pair)
    rouge, rouges = Rouge().compute_score(*pair)
    ours = official_scores(CANDIDATES, REFERENCES, extras=("rouge_l",))
    assert set(ours) == OFFICIAL - {"meteor", "spice"}
    content = summary(ours)
    theirs = {f"bleu{order}": score for order, score in enumerate(bleu, 1)}
    theirs |= {"cider": cider, "rouge_l": rouge}
    assert {name: content[name] for name in theirs} == pytest.approx(theirs, rel=1e-10)
    assert ours["cider"].per_instance == pytest.approx(tuple(ciders), rel=1e-10)
    assert ours["rouge_l"].per_instance == pytest.approx(tuple(rouges), rel=1e-10)


@pytest.mark.slow
@with_tools
def test_meteor_equals_the_package() -> None:
    from pycocoevalcap.meteor.meteor import Meteor

    corpus, per_instance = Meteor().compute_score(*official_tokens())
    ours = official_scores(CANDIDATES, REFERENCES, extras=("meteor",))["meteor"]
    assert ours.estimate is not None
    assert ours.estimate.mean == pytest.approx(corpus, rel=1e-10)
    assert ours.per_instance == pytest.approx(tuple(per_instance), rel=1e-10)
