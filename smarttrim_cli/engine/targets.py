"""What every step of a training aims at: its share of the budget, and how decisions are drawn."""

from __future__ import annotations

from smarttrim_cli.pruning.gumbel import Sampling
from smarttrim_cli.pruning.objective import Target
from smarttrim_cli.pruning.plan import Plan
from smarttrim_cli.pruning.saliency import Warmup
from smarttrim_cli.pruning.schedule import linear_schedule, noise_share, scheduled_targets
from smarttrim_cli.recipe import Recipe


class Targets:
    """The targets of all steps: a function of the step alone, so that runs resume exactly.

    Args:
        recipe: Its curriculum, stable initialisation and controller.
        plan: What is to be kept in the end.
        total_steps: Of training.
    """

    def __init__(self, recipe: Recipe, plan: Plan, total_steps: int) -> None:
        self.recipe, self.plan, self.total_steps = recipe, plan, total_steps
        self.guidance: Warmup | None = None
        """What scores go on learning beside trimming; of the warm start (:mod:`.warmup`)."""

    def at(self, step: int) -> Target | None:
        """What comes after so many steps.

        None for plain fine-tuning, which it is where all sparsities are 0, too, and before trimming begins.
        """
        pruning, strategy = self.recipe.pruning, self.recipe.strategy
        curriculum, controller = strategy.curriculum, strategy.budget_controller
        progress = step / self.total_steps
        if pruning is None or not self.plan.kept or progress < curriculum.start_ratio:
            return None
        progress = (progress - curriculum.start_ratio) / (1 - curriculum.start_ratio)
        kept = scheduled_targets(self.plan.kept, progress, curriculum.end_ratio, curriculum.enabled)
        macs = 1.0 / self.plan.speedup
        if curriculum.enabled:
            macs = linear_schedule(macs, progress, curriculum.end_ratio)
        grows = strategy.stable_init.enabled and strategy.stable_init.grow_noise
        noise = noise_share(progress, curriculum.end_ratio, grows, pruning.noise_anneal_ratio)
        noise = noise if pruning.gumbel_noise else 0.0
        noisy = "heads" if pruning.gumbel_noise == "heads" else "all"
        sampling = Sampling(pruning.temperature, noise, pruning.straight_through, noisy)
        solve = controller.enabled and controller.method == "solved"
        return Target(kept, macs, sampling, solve, self.guidance, solve and controller.hold_heads)

    @property
    def first_trimmed_step(self) -> int:
        """How many steps the full model trains alone."""
        steps = (step for step in range(self.total_steps) if self.at(step) is not None)
        return next(steps, self.total_steps)

    def begin_at(self, step: int) -> bool:
        """Whether the step after so many is the first that trims."""
        return step == 0 or self.at(step - 1) is None

    def hold_whole_at(self, step: int) -> bool:
        """Whether the model after so many steps was trained at the full target, as its last ones are."""
        curriculum = self.recipe.strategy.curriculum
        begins, ramp = curriculum.start_ratio, curriculum.end_ratio if curriculum.enabled else 0.0
        untrimmed = (step - 1) / self.total_steps < begins
        return not untrimmed and step / self.total_steps >= begins + (1 - begins) * ramp
