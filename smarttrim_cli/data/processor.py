"""Texts and images to model inputs: a Hugging Face tokenizer and the preprocessing, saved with the model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from smarttrim_cli.data.files import read_json
from smarttrim_cli.data.images import Preprocess
from smarttrim_cli.errors import UserError

PREPROCESSING = "preprocessing.json"
_SETTINGS = "tokenizer_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    _SETTINGS,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
"""What tokenizers are saved as, by their kind and by the version of transformers."""

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
        """As a call, from images that are preprocessed already.

        Samples of two images come as (2, 3, H, W) and give ``pixel_values`` (B, 2, 3, H, W).
        """
        ids_BL, mask_BL = self.tokens(texts)
        return {"pixel_values": torch.stack(list(pixels)), "input_ids": ids_BL, "attention_mask": mask_BL}

    def tokens(self, texts: Sequence[str], max_length: int | None = None) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, L) of texts with their special tokens, padded on the right to the longest.

        Args:
            texts: One per instance.
            max_length: Longer texts are cut to so many tokens; None: ``max_text_length``.
        """
        encoded = self.tokenizer(
            list(texts),
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=max_length or self.max_text_length,
            return_tensors="pt",
        )
        return encoded["input_ids"], encoded["attention_mask"]

    def texts(self, texts: Sequence[Sequence[str]], max_length: int | None = None) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, K, L) of K texts per instance; see :meth:`tokens`."""
        ids_TL, mask_TL = self.tokens([text for row in texts for text in row], max_length)
        return ids_TL.unflatten(0, (len(texts), -1)), mask_TL.unflatten(0, (len(texts), -1))

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of token ids (L,), without special tokens.

        Ids behind the tokenizer's vocabulary are the model's own special tokens, such as BLIP's [DEC]. Word
        pieces are joined as the official BLIP does, "dog's" and not "dog ' s", whatever the tokenizer's own
        setting is.
        """
        known = [index for index in torch.as_tensor(ids).tolist() if 0 <= index < len(self.tokenizer)]
        clean = True if _of_word_pieces(self.tokenizer) else None
        text = self.tokenizer.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=clean)
        return str(text).strip()

    def save(self, folder: Path) -> None:
        """Write tokenizer and preprocessing to a folder."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:  # what its last call has set would be written, too
            backend.no_padding()
            backend.no_truncation()
        self.tokenizer.save_pretrained(str(folder))
        content = {"max_text_length": self.max_text_length, **dataclasses.asdict(self.preprocess)}
        (folder / PREPROCESSING).write_text(json.dumps(content, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Processor:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: A file is missing or damaged.
        """
        try:
            content: dict[str, Any] = dict(read_json(folder / PREPROCESSING))
            length = content.pop("max_text_length")
            if type(length) is not int or length < 1:
                raise ValueError(f"max_text_length is {length!r}")
            content.update(mean=tuple(content["mean"]), std=tuple(content["std"]))
            preprocess = Preprocess(**content)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"not a preprocessing file ({error})", where=str(folder / PREPROCESSING)
            ) from error
        return cls(load_tokenizer(str(folder)), preprocess, length)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer by Hugging Face name or folder; no code of the repository is run.

    What is on this machine is taken from there. Otherwise there is one quick attempt to reach the hub, since
    its library would go on trying for a minute.

    Raises:
        UserError: It is neither on this machine nor can it be fetched, or it cannot pad.
    """
    tokenizer = _found(name)
    if tokenizer.pad_token_id is None:
        file = Path(name) / _SETTINGS
        raise UserError(
            "the tokenizer has no padding token"
            + (" (pad_token)" if file.exists() else ": the file is missing"),
            where=str(file) if Path(name).is_dir() else name,
            hint="texts of a batch are padded to one length: name the token there, or restore the file",
        )
    return tokenizer


def _found(name: str) -> PreTrainedTokenizerBase:
    try:
        return _from_pretrained(name, local_files_only=True)
    except (
        Exception
    ) as error:  # of damaged files the libraries raise anything, from KeyError to RecursionError
        if Path(name).exists():
            raise _no_tokenizer(name, error) from error
    try:
        HfApi().model_info(name, timeout=5)
        return _from_pretrained(name, local_files_only=False)
    except Exception as error:  # what no network raises depends on the hub library's HTTP client
        raise _no_tokenizer(name, error) from error


def _from_pretrained(name: str, local_files_only: bool) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        name, local_files_only=local_files_only, trust_remote_code=False
    )
    return tokenizer


def _no_tokenizer(name: str, error: Exception) -> UserError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return UserError(
        f"cannot load the tokenizer: {reason}",
        where=name,
        hint="give a folder with tokenizer files, or a name that can be fetched or is in the local cache",
    )


def _of_word_pieces(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return isinstance(getattr(backend, "model", None), models.WordPiece)


def train_word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer for a small closed vocabulary, with RoBERTa's special tokens and template.

    Texts are lower-cased; decoding puts no blanks before punctuation.
    """
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    lower = normalizers.Lowercase()
    words = {word for text in texts for word, _ in split.pre_tokenize_str(lower.normalize_str(text))}
    vocabulary = {word: index for index, word in enumerate((*_SPECIAL, *sorted(words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = lower
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = _word_decoder()
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


def _word_decoder() -> decoders.Decoder:
    """Joins words with blanks, but for those that are not written beside punctuation."""
    tight = {f" {mark}": mark for mark in "?!.,;:)"} | {"( ": "(", " ' ": "'", " - ": "-"}
    replace = [decoders.Replace(loose, close) for loose, close in tight.items()]
    return decoders.Sequence([decoders.WordPiece(cleanup=False), decoders.Fuse(), *replace])
