"""Texts and images to model inputs: a Hugging Face tokenizer and the preprocessing, saved with the model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from smarttrim_cli.data.files import read_json
from smarttrim_cli.data.images import Preprocess
from smarttrim_cli.errors import UserError

_PREPROCESSING = "preprocessing.json"
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
"""Special tokens at the ids that RoBERTa gives them: 0, 1, 2, 3."""


@dataclass(frozen=True)
class Processor:
    """Makes the inputs of a backbone.

    Attributes:
        tokenizer: A Hugging Face tokenizer.
        preprocess: What happens to an RGB image.
        max_text_length: Longer texts are cut to so many tokens, special tokens included.
    """

    tokenizer: PreTrainedTokenizerBase
    preprocess: Preprocess
    max_text_length: int = 50

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> dict[str, Tensor]:
        """Inputs for pairs of an RGB image and a text, padded to the longest text of the batch.

        Returns:
            ``pixel_values`` (B, 3, H, W), ``input_ids`` (B, L) and ``attention_mask`` (B, L).
        """
        return self.batch([self.preprocess(image) for image in images], texts)

    def batch(self, pixels: Sequence[Tensor], texts: Sequence[str]) -> dict[str, Tensor]:
        """As a call, from images that are preprocessed already."""
        encoded = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_text_length, return_tensors="pt"
        )
        return {
            "pixel_values": torch.stack(list(pixels)),
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
        }

    def save(self, folder: Path) -> None:
        """Write tokenizer and preprocessing to a folder."""
        self.tokenizer.save_pretrained(str(folder))
        content = {"max_text_length": self.max_text_length, **dataclasses.asdict(self.preprocess)}
        (folder / _PREPROCESSING).write_text(json.dumps(content, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Processor:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: A file is missing or damaged.
        """
        content: dict[str, Any] = dict(read_json(folder / _PREPROCESSING))
        try:
            length = content.pop("max_text_length")
            content.update(mean=tuple(content["mean"]), std=tuple(content["std"]))
            preprocess = Preprocess(**content)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"not a preprocessing file ({error})", where=str(folder / _PREPROCESSING)
            ) from error
        return cls(load_tokenizer(str(folder)), preprocess, length)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer by Hugging Face name or folder; no code of the repository is run.

    Raises:
        UserError: It is neither on this machine nor can it be fetched.
    """
    try:
        return AutoTokenizer.from_pretrained(name)  # type: ignore[no-any-return]
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot load the tokenizer: {reason}",
            where=name,
            hint="give a folder with tokenizer files, or a name that can be fetched or is in the local cache",
        ) from error


def train_word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer for a small closed vocabulary, with RoBERTa's special tokens and template."""
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    lower = normalizers.Lowercase()
    words = {word for text in texts for word, _ in split.pre_tokenize_str(lower.normalize_str(text))}
    vocabulary = {word: index for index, word in enumerate((*_SPECIAL, *sorted(words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = lower
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
    )
