from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import BertTokenizer

from smarttrim_cli.data.images import Preprocess
from smarttrim_cli.data.processor import Processor, load_tokenizer, train_word_tokenizer
from smarttrim_cli.data.word_tokenizer import extend_word_tokenizer
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


def test_no_attempt_on_the_net_for_a_folder_without_a_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smarttrim_cli.data.processor.HfApi", None)
    with pytest.raises(UserError, match="cannot load the tokenizer"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["[" * 100_000 + "]" * 100_000, "{", "[]", '{"model": 3}'])
def test_damaged_tokenizer_names_the_folder(tmp_path: Path, name: str, content: str) -> None:
    processor().save(tmp_path)
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        Processor.load(tmp_path)
    assert str(caught.value.where).startswith(str(tmp_path))


@pytest.mark.parametrize("missing", [True, False])
def test_tokenizer_that_cannot_pad_names_the_file(tmp_path: Path, missing: bool) -> None:
    processor().save(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    if missing:
        file.unlink()
    else:
        file.write_text(json.dumps({**json.loads(file.read_text()), "pad_token": None}), encoding="utf-8")
    with pytest.raises(UserError, match="the tokenizer has no padding token") as caught:
        Processor.load(tmp_path)
    assert caught.value.where == str(file)
    assert ("the file is missing" in caught.value.message) == missing


def test_one_quick_attempt_on_the_net(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class NoNet:
        def model_info(self, name: str, timeout: float) -> None:
            asked.append((name, timeout))
            raise ConnectionError("Name or service not known\nmore")

    monkeypatch.setattr("smarttrim_cli.data.processor.HfApi", NoNet)
    with pytest.raises(UserError) as caught:
        load_tokenizer("no-such-organisation/no-such-model")
    assert caught.value.message == "cannot load the tokenizer: Name or service not known"
    assert asked == [("no-such-organisation/no-such-model", 5)]


def test_code_of_a_tokenizer_is_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    config = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot load the tokenizer"):
        load_tokenizer(str(tmp_path))
    assert not ran.exists()


def test_pairs_of_images_are_stacked() -> None:
    pixels = [torch.full((2, 3, 8, 8), float(number)) for number in range(3)]
    batch = processor().batch(pixels, TEXTS)
    assert batch["pixel_values"].shape == (3, 2, 3, 8, 8)
    assert batch["pixel_values"][2, 1, 0, 0, 0] == 2


def test_several_texts_per_instance() -> None:
    ids_BKL, mask_BKL = processor().texts([["a red circle", "how"], ["is", "zebra many"]])
    assert ids_BKL.shape == mask_BKL.shape == (2, 2, 5)
    assert mask_BKL.sum(-1).tolist() == [[5, 3], [3, 4]]
    vocabulary = train_word_tokenizer(TEXTS).get_vocab()
    assert ids_BKL[0, 1].tolist() == [0, vocabulary["how"], 2, 1, 1]
    assert ids_BKL[1, 1].tolist() == [0, 3, vocabulary["many"], 2, 1]


def test_tokens_are_cut_and_padded_on_the_right() -> None:
    one = processor()
    one.tokenizer.padding_side = "left"
    ids_BL, mask_BL = one.tokens(["is there a red circle", "how"], max_length=4)
    assert mask_BL.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert ids_BL[:, 0].tolist() == [0, 0] and ids_BL[1, 3] == 1


@pytest.mark.parametrize(
    "text",
    [
        "what color is it?",
        "a large red circle, left of a square; and two crosses.",
        "it's a dog's (red-hot) tail!",
    ],
)
def test_texts_survive_a_round_trip(text: str) -> None:
    one = Processor(train_word_tokenizer([text]), Preprocess(size=8))
    ids_1L, _ = one.tokens([text.upper()])
    assert one.decode(ids_1L[0]) == text
    assert one.decode([*ids_1L[0].tolist(), 1, 1]) == text


def test_words_of_a_saved_tokenizer_decode_alike(tmp_path: Path) -> None:
    one = processor()
    one.save(tmp_path)
    ids_1L, _ = one.tokens(TEXTS[:1])
    assert Processor.load(tmp_path).decode(ids_1L[0]) == "what color is the circle?"


def test_decoding_passes_over_ids_that_only_the_model_knows(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "picture", "##s", "of", "?", "two"]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    one = Processor(tokenizer, Preprocess(size=8))
    ids_1L, _ = one.tokens(["Two pictures of a?"])
    assert ids_1L[0].tolist() == [2, 9, 5, 6, 7, 4, 8, 3]
    assert one.decode([len(words), *ids_1L[0, 1:].tolist(), 0, 0, len(words) + 1]) == "two pictures of a?"


@pytest.mark.parametrize("text", ["a dog's ball.", "don't know, maybe"])
def test_word_pieces_are_joined_as_they_are_written(text: str, tmp_path: Path) -> None:
    """Scores of captions and answers compare texts, and a lone apostrophe is dropped by their tokenizer."""
    pieces = ["a", "dog", "s", "ball", "don", "t", "know", "maybe", "'", ".", ","]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(tmp_path)
    tokens = Processor(load_tokenizer(str(tmp_path)), Preprocess(32), 20)
    assert tokens.decode(tokens.tokens([text])[0][0]) == text


def test_words_of_a_new_task_are_learned_behind_those_that_are_there() -> None:
    old = train_word_tokenizer(TEXTS)
    new = extend_word_tokenizer(old, ["Two zebras, are red!", "a zebra"])
    added = new.get_vocab().keys() - old.get_vocab().keys()
    assert added == {"two", "zebras", "zebra", "are", ",", "!"}
    assert old.get_vocab().items() <= new.get_vocab().items()
    assert sorted(new.get_vocab()[word] for word in added) == list(range(len(old), len(new)))
    one = Processor(new, Preprocess(size=8))
    assert one.decode(one.tokens(["two zebras, how many?"])[0][0]) == "two zebras, how many?"
