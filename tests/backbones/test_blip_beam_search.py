"""The beam search against a plain one, written from the rules of transformers 4.15, on a random model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from smarttrim_cli.backbones._beam_search import beam_search
from smarttrim_cli.forms import Decoding

VOCABULARY, END, PADDING = 9, 3, 0


def next_log_p(tokens: list[int], seed: int, sharp: float) -> list[float]:
    """A language model: any text has its own random continuation."""
    generator = torch.Generator().manual_seed(hash((seed, *tokens)) % (1 << 40))
    return (sharp * torch.randn(VOCABULARY, generator=generator)).log_softmax(-1).tolist()


def plain_search(prompt: list[int], seed: int, sharp: float, d: Decoding) -> tuple[list[int], float]:
    """One instance, with lists."""
    beams: list[tuple[float, list[int]]] = [(0.0, prompt)]
    finished: list[tuple[float, list[int]]] = []
    length, done = len(prompt), False
    while length < d.max_length and not done:
        options = []
        for score, tokens in beams:
            for token, log_p in enumerate(next_log_p(tokens, seed, sharp)):
                if not (token == END and length < d.min_length):
                    options.append((score + log_p, tokens, token))
        options = sorted(options, key=lambda option: -option[0])[: 2 * d.num_beams]
        beams = []
        for place, (score, tokens, token) in enumerate(options):
            if token == END:
                if place < d.num_beams:
                    finished = sorted([*finished, (score / length, tokens)], reverse=True)[: d.num_beams]
            elif len(beams) < d.num_beams:
                beams.append((score, [*tokens, token]))
        done = len(finished) == d.num_beams and finished[-1][0] >= options[0][0] / length
        length += 1
    if not done:
        finished += [(score / len(tokens), tokens) for score, tokens in beams]
    score, tokens = max(finished)
    return tokens + [END] * (len(tokens) < d.max_length), score


class Model:
    """The same language model, row by row, remembering what came before as a cache would."""

    def __init__(self, seeds: list[int], beams: int, sharp: float) -> None:
        self.seeds, self.sharp = [seed for seed in seeds for _ in range(beams)], sharp
        self.texts: list[list[int]] = [[] for _ in self.seeds]

    def step(self, ids_RT: Tensor) -> Tensor:
        self.texts = [text + new for text, new in zip(self.texts, ids_RT.tolist(), strict=True)]
        rows = zip(self.texts, self.seeds, strict=True)
        return torch.tensor([next_log_p(text, seed, self.sharp) for text, seed in rows])

    def reorder(self, index_R: Tensor, done_B: Tensor) -> None:
        chosen = index_R.tolist()
        assert [self.seeds[row] for row in chosen] == self.seeds  # never across instances
        self.texts = [self.texts[row] for row in chosen]


def search(seeds: list[int], prompt: list[int], sharp: float, d: Decoding) -> tuple[Tensor, Tensor]:
    model = Model(seeds, d.num_beams, sharp)
    prompts = torch.tensor([prompt] * len(seeds))
    return beam_search(model.step, model.reorder, prompts, d, end=END, padding=PADDING)


CASES: list[Any] = [
    Decoding(num_beams=3, max_length=10, min_length=1),
    Decoding(num_beams=3, max_length=8, min_length=5),
    Decoding(num_beams=4, max_length=12, min_length=4),
    Decoding(num_beams=1, max_length=9, min_length=2),
    Decoding(num_beams=2, max_length=6, min_length=6),
]


@pytest.mark.parametrize("decoding", CASES, ids=str)
@pytest.mark.parametrize("sharp", [0.5, 2.0, 4.0])
def test_equals_the_plain_search(decoding: Decoding, sharp: float) -> None:
    seeds = list(range(6))
    tokens, scores = search(seeds, [7, 5], sharp, decoding)
    expected = [plain_search([7, 5], seed, sharp, decoding) for seed in seeds]
    for row, (best, score) in enumerate(expected):
        assert tokens[row].tolist() == best + [PADDING] * (tokens.shape[1] - len(best))
        assert math.isclose(scores[row].item(), score, abs_tol=1e-5)
    if decoding.min_length < decoding.max_length:
        assert tokens.shape[1] == max(len(best) for best, _ in expected)


def test_one_beam_is_greedy() -> None:
    decoding = Decoding(num_beams=1, max_length=12, min_length=1)
    for seed in range(5):
        text = [7]
        while len(text) < 12 and text[-1] != END:
            log_p = next_log_p(text, seed, 2.0)
            text.append(max(range(VOCABULARY), key=lambda token: log_p[token]))
        tokens, _ = search([seed], [7], 2.0, decoding)
        assert tokens[0].tolist() == text


def test_fixed_length_takes_a_fixed_number_of_steps() -> None:
    decoding = Decoding(num_beams=3, max_length=7, min_length=7)
    model = Model([1, 2], 3, 2.0)
    steps = 0

    def step(ids: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        return model.step(ids)

    tokens, _ = beam_search(step, model.reorder, torch.tensor([[7], [7]]), decoding, end=END, padding=PADDING)
    assert steps == 6 and tokens.shape == (2, 7) and not bool((tokens == END).any())


@pytest.mark.parametrize("decoding", [Decoding(1, 4, 1), Decoding(3, 4, 4), Decoding(3, 5, 1)])
def test_scores_that_are_no_numbers_choose_no_text(decoding: Decoding) -> None:
    def step(ids_RT: Tensor) -> Tensor:
        logits_RV = torch.zeros(len(ids_RT), VOCABULARY)
        logits_RV[decoding.num_beams :] = math.nan
        return logits_RV

    prompt = torch.ones(2, 1, dtype=torch.long)
    tokens, scores = beam_search(step, lambda rows, done: None, prompt, decoding, end=END, padding=PADDING)
    assert (tokens[0] >= 0).all() and (tokens[1] == -1).all()
    assert scores.isnan().tolist() == [False, True]
