"""Beam search on tensors, with the results of transformers 4.15, with which BLIP was published.

Source: its ``BeamSearchScorer``. The search keeps ``num_beams`` open texts per instance and as many finished
ones. A text that ends is compared by its summed log-probability over its length (end token not counted,
prompt counted). An instance is done when its worst finished text is at least as good as the best continuation
at the present length; texts still open at ``max_length`` compete as they are. One beam is greedy search.

Legend: B instances, K beams, R = B K rows (instance after instance), P prompt tokens, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from smarttrim_cli.forms import Decoding

_NEVER = -1e9
"""Score of beams that may not be continued: at first all beams are alike and only one counts."""


@dataclass(frozen=True)
class _Finished:
    """The best texts so far: scores (B, n), tokens (B, n, max_length) padded, lengths (B, n)."""

    scores: Tensor
    tokens: Tensor
    lengths: Tensor

    def with_more(self, scores_BK: Tensor, tokens_BKT: Tensor) -> _Finished:
        """The best of these and of further texts, all of one length; a score of -inf is no text."""
        count, length = self.scores.shape[1], tokens_BKT.shape[2]
        tokens_BKT = F.pad(tokens_BKT, (0, self.tokens.shape[2] - length))
        scores = torch.cat((self.scores, scores_BK), 1)
        tokens = torch.cat((self.tokens, tokens_BKT), 1)
        lengths = torch.cat((self.lengths, torch.full_like(scores_BK, length, dtype=torch.long)), 1)
        scores, best = scores.topk(count, 1)
        return _Finished(scores, _take(tokens, best), lengths.gather(1, best))


def beam_search(
    step: Callable[[Tensor], Tensor],
    reorder: Callable[[Tensor, Tensor], None],
    prompt_BP: Tensor,
    decoding: Decoding,
    *,
    end: int,
    padding: int,
) -> tuple[Tensor, Tensor]:
    """The best text of every instance.

    Args:
        step: Maps new tokens (R, t) to logits (R, V) of what follows; remembers earlier ones.
        reorder: Told after every step which rows the rows go on from, (R,), and which instances need no more
            steps, (B,).
        prompt_BP: What all texts start with.
        decoding: Number of beams, lengths.
        end: Token that ends a text.
        padding: Token behind it.

    Returns:
        Tokens (B, T), prompt and end token included, and scores (B,). Where the scores are nan, there is no
        best text: its tokens are -1.
    """
    batch, beams, longest = len(prompt_BP), decoding.num_beams, decoding.max_length
    fixed = decoding.min_length >= longest  # then no text ends early, and nothing is asked of the device
    first_R = torch.arange(batch, device=prompt_BP.device).repeat_interleave(beams) * beams
    tokens_RT = new_RT = prompt_BP.repeat_interleave(beams, 0)
    open_BK = torch.full((batch, beams), _NEVER, device=prompt_BP.device)
    open_BK[:, 0] = 0.0
    done_B = torch.zeros(batch, dtype=torch.bool, device=prompt_BP.device)
    finished = _Finished(
        torch.full_like(open_BK, float("-inf")),
        prompt_BP.new_zeros(batch, beams, longest),
        prompt_BP.new_zeros(batch, beams),
    )
    for length in range(prompt_BP.shape[1], longest):
        log_p_RV = step(new_RT).float().log_softmax(-1)
        if length < decoding.min_length:
            log_p_RV[:, end] = float("-inf")
        score, beam, token = _best_continuations(log_p_RV, open_BK)
        ends = token == end
        ended_BK = ends[:, :beams] & ~done_B[:, None]
        finished = finished.with_more(
            torch.where(ended_BK, score[:, :beams] / length, float("-inf")),
            _take(tokens_RT.unflatten(0, (batch, beams)), beam[:, :beams]),
        )
        done_B = done_B | (finished.scores.amin(1) >= score.amax(1) / length)
        goes_on = ends.int().argsort(dim=1, stable=True)[:, :beams]  # the best that do not end
        open_BK = score.gather(1, goes_on)
        source_R = first_R + beam.gather(1, goes_on).flatten()
        new_RT = token.gather(1, goes_on).view(-1, 1)
        tokens_RT = torch.cat((tokens_RT[source_R], new_RT), 1)
        if length + 1 == longest or (not fixed and bool(done_B.all())):
            break
        reorder(source_R, done_B)
    still_open_BK = torch.where(done_B[:, None], float("-inf"), open_BK / tokens_RT.shape[1])
    finished = finished.with_more(still_open_BK, tokens_RT.unflatten(0, (batch, beams)))
    scores_B = finished.scores[:, 0]
    tokens_BT = _written(finished, end, padding, fixed)
    return tokens_BT.masked_fill(scores_B.isnan()[:, None], -1), scores_B


def _best_continuations(log_p_RV: Tensor, open_BK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The 2 K best over all beams of an instance: scores, beams and tokens, (B, 2 K) each."""
    batch, beams = open_BK.shape
    vocabulary = log_p_RV.shape[1]
    total = (log_p_RV.view(batch, beams, vocabulary) + open_BK.unsqueeze(-1)).flatten(1)
    score, place = total.topk(2 * beams, 1)
    return score, torch.div(place, vocabulary, rounding_mode="floor"), place % vocabulary


def _written(finished: _Finished, end: int, padding: int, fixed: bool) -> Tensor:
    """The best text of every instance, (B, T), with its end token where there is room for it."""
    tokens_BT, length_B1 = finished.tokens[:, 0], finished.lengths[:, :1]
    place_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    tokens_BT = tokens_BT.masked_fill(place_T == length_B1, end).masked_fill(place_T > length_B1, padding)
    if fixed:
        return tokens_BT
    return tokens_BT[:, : int(length_B1.max()) + 1]


def _take(rows_BKT: Tensor, index_Bn: Tensor) -> Tensor:
    """Rows chosen per instance, (B, n, T)."""
    return rows_BKT.gather(1, index_Bn.unsqueeze(-1).expand(-1, -1, rows_BKT.shape[2]))
