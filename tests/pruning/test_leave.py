"""Streams without a CLS: the mean that serves as one is the same with and without a context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.testing import assert_close

from smarttrim_cli.pruning.context import ForwardContext, enter, leave, running
from tests import tiny


@contextmanager
def context(mode: str) -> Iterator[None]:
    with running(ForwardContext(mode, tiny.meter().architecture(), {})):
        yield


@pytest.mark.parametrize("cls", [True, False])
@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_padding_counts_in_no_mean(mode: str, cls: bool) -> None:
    hidden, valid = torch.randn(2, 5, 8), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    plain = leave("text", enter("text", hidden, valid, cls=cls), cls=cls, valid_RN=valid)
    with context(mode):
        assert_close(leave("text", enter("text", hidden, valid, cls=cls), cls=cls, valid_RN=valid), plain)


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_a_stream_is_left_as_it_was_entered(mode: str) -> None:
    with context(mode), pytest.raises(ValueError, match="entered with cls=False and is left with cls=True"):
        leave("text", enter("text", torch.randn(2, 5, 8), cls=False))
