"""A backbone with trimmers: the same weights in the modes ``full``, ``masked`` and ``packed``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.context import ForwardContext, running
from smarttrim_cli.pruning.decisions import Decisions
from smarttrim_cli.pruning.gumbel import Sampling
from smarttrim_cli.pruning.inject import attach_attention
from smarttrim_cli.pruning.joint_mlps import JointMlps
from smarttrim_cli.pruning.prepared import forget, prepare, restore, usable
from smarttrim_cli.pruning.sites import TOKEN, Architecture, Site
from smarttrim_cli.pruning.static_heads import StaticHeadsOf
from smarttrim_cli.trimmers.base import SiteInfo, Trimmer

MODES = ("full", "masked", "packed")
Build = Callable[[SiteInfo], Trimmer | None]


@dataclass(frozen=True)
class Forward:
    """Result of a forward pass: the backbone's output and its context (None in mode ``full``)."""

    output: Any
    context: ForwardContext | None

    @cached_property
    def decisions(self) -> Decisions:
        """What was kept where; laid out when first asked for."""
        if self.context is None:
            raise ValueError("mode 'full' takes no decisions")
        return self.context.decisions()


def site_info(architecture: Architecture, site: Site) -> SiteInfo:
    """Widths and depths that a trimmer at a site needs."""
    spec = architecture.layer(site.stream, site.layer)
    heads = 0 if site.kind == TOKEN else spec.attention(site.kind).heads
    return SiteInfo(
        site.name, site.layer, architecture.depth(site.stream), spec.width, spec.guide_width, heads
    )


def build_trimmers(
    architecture: Architecture, groups: list[str], token: Build | None, head: Build | None
) -> dict[str, Trimmer]:
    """A trimmer for every site of the named groups at which its kind acts."""
    trimmers = {}
    for site in architecture.sites(groups):
        build = token if site.kind == TOKEN else head
        trimmer = build(site_info(architecture, site)) if build is not None else None
        if trimmer is not None:
            trimmers[site.name] = trimmer
    return trimmers


class TrimmedModel(nn.Module):
    """A backbone with trimmers attached in place.

    Args:
        backbone: The host; must have ``architecture() -> Architecture`` and call
            ``enter``/``trim``/``leave``.
        trimmers: Site name to trimmer.

    The module tree is ``backbone.*`` (the host's own names) and ``trimmers.*``.
    """

    threshold: Tensor

    backbone: Any

    def __init__(self, backbone: Any, trimmers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self.architecture: Architecture = backbone.architecture()
        attach_attention(backbone, self.architecture)
        self.trimmers = nn.ModuleDict({_key(name): module for name, module in trimmers.items()})
        self.register_buffer("threshold", torch.zeros(()))
        self.prepared, self.joint, self.static = False, JointMlps(), StaticHeadsOf()

    def prepare(self) -> TrimmedModel:
        """Lay weights out for inference on a CPU: see :mod:`.prepared`. Outputs change by rounding."""
        prepare(self)
        self.prepared = True
        return self

    def restore(self) -> None:
        """Undo :meth:`prepare`."""
        restore(self)
        self.prepared = False

    def forget(self) -> None:
        """Drop what was made of weights for inference; it is made again when next needed.

        Happens by itself when weights may have changed: with gradients, between training and evaluation, and
        when the model is moved. Call it after writing to weights through ``.data``, which nothing shows.
        """
        forget(self)
        self.joint, self.static = JointMlps(), StaticHeadsOf()

    def train(self, mode: bool = True) -> TrimmedModel:
        """As of any module."""
        if mode != self.training:
            self.forget()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TrimmedModel:
        """As of any module, but for the numbers that decisions depend on: they keep their precision."""
        modules = (self, *self.trimmers.modules())
        exact = [(module, item) for module in modules for item in module.named_buffers(recurse=False)]
        super()._apply(fn, recurse)
        for module, (name, before) in exact:
            after = module._buffers[name]
            if after is not None and after.dtype != before.dtype:
                module._buffers[name] = before.to(after.device)
        self.forget()
        return self

    @property
    def sites(self) -> dict[str, Any]:
        """Site name to trimmer."""
        return {_name(key): module for key, module in self.trimmers.items()}

    @property
    def groups(self) -> list[str]:
        """Groups that have trimmers, in order of appearance."""
        return list(dict.fromkeys(Site.parse(name).group for name in self.sites))

    def forward(
        self,
        inputs: Mapping[str, Any],
        mode: str = "packed",
        *,
        sampling: Sampling | None = None,
        replay: Decisions | None = None,
        instance_ids: Tensor | None = None,
        log_scores: bool = False,
    ) -> Forward:
        """Run the backbone in one of the three modes.

        Args:
            inputs: Keyword arguments of the backbone's forward.
            mode: ``full`` (the host as it is), ``masked`` or ``packed``.
            sampling: Straight-through sampling, for training in ``masked`` mode.
            replay: Decisions to repeat.
            instance_ids: (B,) integers; only the random baselines look at them.
            log_scores: Keep scores in the decisions.
        """
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, not {mode!r}")
        if sampling is not None and mode != "masked":
            raise ValueError("sampling is for training, in mode 'masked'")
        if torch.is_grad_enabled():
            self.joint, self.static = JointMlps(), StaticHeadsOf()  # an optimizer's step may follow
        if mode == "full":
            return Forward(self.backbone(**inputs), None)
        if torch.is_grad_enabled() and self.training:
            _refuse_recomputation(self.backbone)
        some = next(value for value in inputs.values() if isinstance(value, Tensor))
        if instance_ids is not None:
            instance_ids = instance_ids.to(some.device)
        if sampling is not None:
            instance_ids = torch.randint(0, 1 << 30, (some.shape[0],), device=some.device)
        fast = self.prepared and mode == "packed" and usable(next(self.backbone.parameters()))
        context = ForwardContext(
            mode=mode,
            architecture=self.architecture,
            trimmers=self.sites,
            threshold=float(self.threshold),
            sampling=sampling,
            replay=replay,
            instance_ids_B=instance_ids,
            log_scores=log_scores,
            rounded=fast,
            joint=self.joint if fast else None,
            static=self.static,
        )
        with running(context):
            output = self.backbone(**inputs)
        return Forward(output, context)

    def remove(self, names: Iterable[str]) -> None:
        """Take the trimmers of some sites out; what they judged is kept from there on."""
        for name in names:
            del self.trimmers[_key(name)]

    def start_keeping(self, keep_logit: float) -> None:
        """Stable initialisation of every trimmer."""
        for trimmer in self.sites.values():
            trimmer.start_keeping(keep_logit)

    def set_targets(self, kept: Mapping[str, float]) -> None:
        """Tell trimmers the target kept fraction of their group; those with ``one_target`` get the mean."""
        targets = {name: kept[Site.parse(name).group] for name in self.sites}
        together = self.heads([name for name, trimmer in self.sites.items() if trimmer.one_target])
        mean = sum(targets[name] * heads for name, heads in together.items()) / sum(together.values() or [1])
        for name, trimmer in self.sites.items():
            trimmer.set_target(mean if name in together else targets[name])

    def heads(self, names: Iterable[str]) -> dict[str, int]:
        """Number of heads of head sites."""
        sites = {name: Site.parse(name) for name in names}
        return {
            name: self.architecture.layer(site.stream, site.layer).attention(site.kind).heads
            for name, site in sites.items()
        }

    @contextmanager
    def at_threshold(self, threshold: float) -> Iterator[None]:
        """Another decision threshold for a while."""
        before = self.threshold.clone()
        self.threshold.fill_(threshold)
        try:
            yield
        finally:
            self.threshold.copy_(before)


def _refuse_recomputation(backbone: nn.Module) -> None:
    """Layers that are run again in the backward pass would run untrimmed there."""
    for name, module in backbone.named_modules():
        if getattr(module, "gradient_checkpointing", False):
            raise UserError(
                "gradient checkpointing of a trimmed model's layers gives wrong gradients",
                where=f"backbone.{name}",
                hint="switch it off, or checkpoint the whole model (use_reentrant=False)",
            )


def _key(name: str) -> str:
    return name.replace(".", "-")


def _name(key: str) -> str:
    return key.replace("-", ".")
