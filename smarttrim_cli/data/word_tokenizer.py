"""Word-level tokenizers that learn further words: a small model goes on with a task of more words."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast


def extend_word_tokenizer(
    tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]
) -> PreTrainedTokenizerFast:
    """The tokenizer with the words of the texts that it lacks, at ids behind those it has.

    Args:
        tokenizer: Made by ``train_word_tokenizer``; it stays as it is.
        texts: Such as those of a new task's training data.
    """
    backend = tokenizer.backend_tokenizer
    content = json.loads(backend.to_str())
    vocabulary = content["model"]["vocab"]
    words = {
        word
        for text in texts
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
    }
    for word in sorted(words - vocabulary.keys()):
        vocabulary[word] = len(vocabulary)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), **special)
