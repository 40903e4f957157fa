"""Plans: sparsities taken as they are, or solved for a speed-up."""

from __future__ import annotations

import pytest

from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.cost import full_counts, planned_counts, total_macs
from smarttrim_cli.pruning.plan import PROPORTIONS, make_plan, solve
from tests import tiny

TOKENS = {"text": 9.0, "vision": 17.0}
MODEL = tiny.paper_model()
ARCHITECTURE, SITES, GROUPS = MODEL.architecture, MODEL.sites, MODEL.groups


def reached(kept: dict[str, float]) -> float:
    full = total_macs(ARCHITECTURE, full_counts(ARCHITECTURE, TOKENS))
    return float(full / total_macs(ARCHITECTURE, planned_counts(ARCHITECTURE, TOKENS, kept), SITES))


@pytest.mark.parametrize("speedup", [1.0, 1.1, 1.3])
def test_a_speedup_is_reached_exactly(speedup: float) -> None:
    plan = make_plan(ARCHITECTURE, SITES, GROUPS, TOKENS, None, speedup)
    assert plan.speedup == pytest.approx(speedup, rel=1e-6)
    assert reached(plan.kept) == pytest.approx(speedup, rel=1e-6)
    removed = {group: 1 - kept for group, kept in plan.kept.items()}
    scale = removed["token.vision"]
    assert removed == pytest.approx({group: scale * PROPORTIONS[group] for group in GROUPS})


def test_a_speedup_keeps_the_proportions_asked_for() -> None:
    asked = dict.fromkeys(GROUPS, 0.0) | {"token.vision": 0.2, "head.text": 0.1}
    kept = make_plan(ARCHITECTURE, SITES, GROUPS, TOKENS, asked, 1.05).kept
    assert (1 - kept["token.vision"]) == pytest.approx(2 * (1 - kept["head.text"]))
    assert [group for group, share in kept.items() if share == 1.0] == [g for g in GROUPS if asked[g] == 0]


def test_small_shares_go_on_growing_when_the_largest_is_exhausted() -> None:
    asked = dict.fromkeys(GROUPS, 0.1) | {"token.text": 0.9}
    kept = make_plan(ARCHITECTURE, SITES, GROUPS, TOKENS, asked, 1.3).kept
    assert kept["token.text"] == pytest.approx(0.05)
    assert reached(kept) == pytest.approx(1.3, rel=1e-6)


def test_sparsities_without_a_speedup() -> None:
    asked = {group: 0.1 * number for number, group in enumerate(GROUPS)}
    plan = make_plan(ARCHITECTURE, SITES, GROUPS, TOKENS, asked, None)
    assert plan.kept == pytest.approx({group: 1 - 0.1 * number for number, group in enumerate(GROUPS)})
    assert plan.speedup == pytest.approx(reached(plan.kept))
    assert set(plan.trimmed_macs) == {*plan.full_macs, "trimmers"}
    assert sum(plan.full_macs.values()) == total_macs(ARCHITECTURE, full_counts(ARCHITECTURE, TOKENS))
    assert plan.tokens == TOKENS


def test_what_cannot_be_reached_is_said() -> None:
    with pytest.raises(UserError, match="1000.0x cannot be reached") as error:
        make_plan(ARCHITECTURE, SITES, GROUPS, TOKENS, None, 1000.0)
    assert error.value.where == "pruning.target_speedup"
    with pytest.raises(UserError, match="every sparsity is 0"):
        solve(ARCHITECTURE, SITES, dict.fromkeys(GROUPS, 0.0), TOKENS, 2.0)
    with pytest.raises(UserError, match="no site has a trimmer"):
        make_plan(ARCHITECTURE, {}, [], TOKENS, None, 2.0)
