from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from smarttrim_cli.data.images import Preprocess
from smarttrim_cli.data.processor import Processor, load_tokenizer, train_word_tokenizer
from smarttrim_cli.errors import UserError

TEXTS = ["What color is the circle?", "is there a red circle", "how many?"]


def processor(length: int = 8) -> Processor:
    return Processor(train_word_tokenizer(TEXTS), Preprocess(size=8, mode="resize"), length)


def test_vocabulary_is_sorted_words_after_the_special_tokens() -> None:
    tokenizer = train_word_tokenizer(TEXTS)
    words = ["?", "a", "circle", "color", "how", "is", "many", "red", "the", "there", "what"]
    expected = {word: index for index, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *words])}
    assert tokenizer.get_vocab() == expected
    assert tokenizer("WHAT zebra?")["input_ids"] == [0, expected["what"], 3, expected["?"], 2]


def test_inputs_are_padded_to_the_longest_and_cut() -> None:
    inputs = processor(length=6)([Image.new("RGB", (8, 8))] * 3, [TEXTS[0], "red circle", ""])
    assert inputs["pixel_values"].shape == (3, 3, 8, 8)
    assert inputs["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert inputs["input_ids"][0, [0, -1]].tolist() == [0, 2]  # the end stays when a text is cut
    assert inputs["input_ids"][1, 4:].tolist() == [1, 1]


def test_saved_processor_is_the_same(tmp_path: Path) -> None:
    one = processor()
    one.save(tmp_path)
    other = Processor.load(tmp_path)
    assert other.preprocess == one.preprocess and other.max_text_length == 8
    image = Image.effect_mandelbrot((20, 14), (-2, -1, 1, 1), 50).convert("RGB")
    for before, after in zip(
        one([image], TEXTS[:1]).values(), other([image], TEXTS[:1]).values(), strict=True
    ):
        assert torch.equal(before, after)


@pytest.mark.parametrize(
    "content", ["{", "{}", '{"max_text_length": 3, "size": 8, "mean": 1, "std": 1}', "[]"]
)
def test_damaged_preprocessing_names_the_file(tmp_path: Path, content: str) -> None:
    processor().save(tmp_path)
    (tmp_path / "preprocessing.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        Processor.load(tmp_path)
    assert caught.value.where == str(tmp_path / "preprocessing.json")


def test_tokenizer_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="cannot load the tokenizer") as caught:
        load_tokenizer(str(tmp_path / "nothing"))
    assert caught.value.where == str(tmp_path / "nothing") and caught.value.hint
    assert "\n" not in caught.value.message
