"""The curriculum: how targets and noise develop during training (paper, section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping


def linear_schedule(target: float, progress: float, end_ratio: float) -> float:
    """gamma_p at a point of training: from 1.0 linearly to its target.

    Args:
        target: Final kept fraction.
        progress: Share of all steps done, 0..1.
        end_ratio: Share of all steps after which the target holds.
    """
    return 1.0 - (1.0 - target) * ramp(progress, end_ratio)


def ramp(progress: float, end_ratio: float) -> float:
    """0 at the start, 1 from ``end_ratio`` on."""
    return min(progress / end_ratio, 1.0)


def scheduled_targets(
    targets: Mapping[str, float], progress: float, end_ratio: float, enabled: bool
) -> dict[str, float]:
    """Kept fractions to aim at now; the final ones at once if the curriculum is off."""
    if not enabled:
        return dict(targets)
    return {name: linear_schedule(target, progress, end_ratio) for name, target in targets.items()}


def steered_threshold(threshold: float, macs_ratio: float, target: float, gain: float) -> float:
    """Integral control of the decision threshold (ours): up while too much is kept, else down.

    Args:
        threshold: Current threshold, a logit.
        macs_ratio: Measured trimmed over full MACs of a step.
        target: What the curriculum asks for now.
        gain: Logits per step and unit of ratio.
    """
    return threshold + gain * (macs_ratio - target)


def noise_share(progress: float, end_ratio: float, grows: bool, anneal_ratio: float = 0.0) -> float:
    """Share of the Gumbel noise at a point of training.

    Stable initialisation means no random drops at the beginning. Either the noise grows with the curriculum,
    or it is whole and the scores start so high that it drops next to nothing; then what is kept follows the
    scores smoothly, where without noise all tokens of a layer cross the threshold together.
    Annealing, which is ours, lets it fall to 0 at the end, so that the model meets the decisions it will be
    evaluated with.

    Args:
        progress: Share of all steps done, 0..1.
        end_ratio: Share of all steps over which the noise grows.
        grows: Whether it does; else it is whole from the start.
        anneal_ratio: Share of all steps, at the end, over which it falls.
    """
    share = ramp(progress, end_ratio) if grows else 1.0
    return share if anneal_ratio == 0 else min(share, max(1.0 - progress, 0.0) / anneal_ratio)
