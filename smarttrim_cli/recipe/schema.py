"""The recipe: one pydantic model of everything a run needs. Unknown keys are errors.

Sections that belong to a plug-in (backbone, task, trimmers) are open here; the plug-in's own ``Options``
validates them (see ``recipe.plugins``).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
PRESETS = ("paper", "guided")


class Section(BaseModel):
    """Base of all sections: closed, finite numbers only."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Plugin(BaseModel):
    """A plug-in by name, with the options that its own ``Options`` class validates."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(
        description="Module of the plug-in, or package.module:Class for code outside.", min_length=1
    )

    def options_dict(self) -> dict[str, Any]:
        """The plug-in's own keys: everything but ``name``."""
        return dict(self.model_extra or {})


class Modalities(Section):
    """A fraction REMOVED for each modality."""

    vision: Fraction = Field(0.0, description="Fraction removed on the vision side, mean over layers.")
    text: Fraction = Field(0.0, description="Fraction removed on the text side, mean over layers.")


class CrossModalities(Modalities):
    """As ``Modalities``, and the decoder; one number stands for all."""

    decoder: Fraction = Field(0.0, description="Fraction removed in a text decoder, mean over layers.")

    @model_validator(mode="before")
    @classmethod
    def _one_number_for_all(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {"vision": value, "text": value, "decoder": value}
        return value


_CROSS_JSON_SCHEMA = {
    "anyOf": [{"type": "number", "minimum": 0, "exclusiveMaximum": 1}, CrossModalities.model_json_schema()],
    "default": 0.0,
}


class HeadSparsity(Modalities):
    """Fractions of attention heads REMOVED."""

    decoder: Fraction = Field(0.0, description="Fraction removed in a text decoder, mean over layers.")
    cross: Annotated[CrossModalities, WithJsonSchema(_CROSS_JSON_SCHEMA)] = Field(
        default_factory=CrossModalities,
        description="Fraction of cross-attention heads removed: one number for all there are, or one each.",
    )


class TargetSparsity(Section):
    """Fractions REMOVED, per kind and modality (the paper's gamma is 1 minus these)."""

    token: Modalities = Field(default_factory=Modalities, description="Tokens removed.")
    head: HeadSparsity = Field(default_factory=HeadSparsity, description="Attention heads removed.")

    def groups(self) -> dict[str, float]:
        """Fraction removed per group of sites, by dotted name."""
        return {
            "token.vision": self.token.vision,
            "token.text": self.token.text,
            "head.vision": self.head.vision,
            "head.text": self.head.text,
            "cross_head.vision": self.head.cross.vision,
            "cross_head.text": self.head.cross.text,
            "head.decoder": self.head.decoder,
            "cross_head.decoder": self.head.cross.decoder,
        }


class Calibrate(Section):
    """Shift of the decision threshold after training, so that the measured budget is met."""

    split: str = Field(
        "calibration", description="Split that the threshold is calibrated on; not used otherwise."
    )
    max_instances: Count = Field(256, description="At most this many instances of the split.")
    tolerance: Positive = Field(
        0.005, description="Relative distance from the MACs budget that is good enough."
    )
    remove_unprofitable: bool = Field(
        False,
        description="Whether trimmers that cost more MACs than they save are then taken out, and the "
        "threshold calibrated again; ours.",
    )
    call_macs: float = Field(
        0.0,
        ge=0,
        description="For that: what running a trimmer costs an instance beside its MACs, in MACs that take "
        "as long; about 4e7 for one instance at a time on a CPU, 0 where only MACs count.",
    )


class Pruning(Section):
    """What is trimmed, by which trimmers, and how far."""

    target_sparsity: TargetSparsity | None = Field(
        None, description="Fractions removed; with target_speedup, their proportions."
    )
    target_speedup: float | None = Field(
        None, gt=1, description="MACs of the full model divided by MACs of the trimmed one."
    )
    token_trimmer: Plugin | None = Field(
        default_factory=lambda: Plugin(name="cross_modal"),
        description="What scores tokens; null trims no tokens.",
    )
    head_trimmer: Plugin | None = Field(
        default_factory=lambda: Plugin(name="global_head"),
        description="What scores attention heads; null trims no heads.",
    )
    temperature: Positive = Field(1.0, description="Temperature of the Gumbel-sigmoid relaxation.")
    gumbel_noise: bool | Literal["heads"] = Field(
        True,
        description="Whether decisions are sampled with Gumbel noise in training (the paper); heads: those "
        "of heads alone.",
    )
    straight_through: bool | Literal["heads"] = Field(
        True,
        description="Whether scores get the gradient of the losses through what was decided (the paper); "
        "else they learn by strategy.guidance_warmup alone. heads: those of heads do.",
    )
    noise_anneal_ratio: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the steps with trimming, at the end, over which the noise falls to 0; 0: never "
        "(the paper).",
    )
    calibrate: Calibrate | None = Field(
        default_factory=Calibrate,
        description="Threshold calibration after training; null leaves it as it is.",
    )

    @model_validator(mode="after")
    def _has_a_target_that_can_be_met(self) -> Pruning:
        if self.target_sparsity is None and self.target_speedup is None:
            raise ValueError(
                "give target_sparsity or target_speedup (or both); `pruning: null` means plain fine-tuning"
            )
        if self.token_trimmer is None and self.head_trimmer is None:
            raise ValueError(
                "token_trimmer and head_trimmer are both null; `pruning: null` means plain fine-tuning"
            )
        groups = self.target_sparsity.groups() if self.target_sparsity else {}
        for kind, trimmer in (("token", self.token_trimmer), ("head", self.head_trimmer)):
            wanted = [name for name, removed in groups.items() if kind in name and removed > 0]
            if trimmer is None and wanted:
                raise ValueError(
                    f"target_sparsity asks for {wanted[0]} = {groups[wanted[0]]}, but {kind}_trimmer is null"
                )
        return self


class StableInit(Section):
    """Trimmers that start by keeping everything."""

    enabled: bool = Field(True, description="Whether the trimmers' last bias starts at keep_logit.")
    keep_logit: float = Field(
        3.0,
        description="Logit of keeping, at the start of training; with whole noise, 6 drops one token in 400.",
    )
    grow_noise: bool = Field(
        True,
        description="Whether Gumbel noise grows until curriculum.end_ratio, with the curriculum or without; "
        "else it is whole from the start, and keep_logit alone prevents random drops.",
    )


class Curriculum(Section):
    """Target that grows from nothing removed to target_sparsity."""

    enabled: bool = Field(True, description="Whether the target grows during training.")
    schedule: Literal["linear"] = Field("linear", description="How it grows.")
    start_ratio: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of all steps, at the start, that train the full model alone; 0: none (the paper).",
    )
    end_ratio: float = Field(
        0.6, gt=0, le=1, description="Share of the steps with trimming after which the full target holds."
    )


class SelfDistillation(Section):
    """Trimmed output drawn towards the full output of the same model."""

    enabled: bool = Field(True, description="Whether the self-distillation loss is used.")
    weight: float = Field(1.0, ge=0, description="Weight of the loss.")
    temperature: Positive = Field(1.0, description="Temperature of both distributions.")


class CostLoss(Section):
    """Loss on the distance of the cost from its target."""

    weight: float = Field(20.0, ge=0, description="Weight of the loss.")
    on: Literal["kept_fraction", "macs"] = Field("kept_fraction", description="What the cost is.")
    one_sided: bool = Field(False, description="Whether only what is above the target costs; ours.")


class BudgetController(Section):
    """Steering of the decision threshold during training; not in the paper."""

    enabled: bool = Field(
        False, description="Whether the threshold follows the measured MACs while training."
    )
    method: Literal["integral", "solved"] = Field(
        "integral",
        description="integral: it moves by the distance from the target. solved: to where a step's own "
        "scores would have met it.",
    )
    gain: Positive = Field(
        0.2,
        description="integral: logits that the threshold moves per step and unit of MACs ratio. solved: the "
        "share of the way, at most 1.",
    )
    hold_heads: bool = Field(
        False,
        description="solved: whether heads keep to their own targets, and tokens take the rest of the "
        "budget; else one threshold says which of them pays.",
    )


class GuidanceWarmup(Section):
    """Warm start of the token trimmers' scores on the full model's own saliency; not in the paper."""

    enabled: bool = Field(
        False,
        description="Whether scores learn the full model's gradient saliency before trimming begins. "
        "Only for a model that knows its task: what one with a new head looks at is no guide; "
        "with strategy.curriculum.start_ratio it learns the task first.",
    )
    steps: Positive = Field(
        400,
        description="Optimizer steps, in addition to those of train; right before the first that trims. "
        "Below 1: share of those of train.",
    )
    learning_rate: Positive = Field(
        5e-3,
        description="Peak learning rate of the trimmers meanwhile; the backbone keeps its own.",
    )
    weight: Positive = Field(1.0, description="Weight of the divergence beside the task loss.")
    saliency: Literal["onward", "layer"] = Field(
        "onward", description="What a token is worth: from its layer on, or in its layer alone."
    )
    temperature: Positive = Field(1.0, description="Above 1 flattens the saliency that is learned.")
    smoothing: Fraction = Field(
        0.1, description="Share of the uniform distribution in what is learned; bounds low scores."
    )
    key_std: float = Field(
        0.1, ge=0, description="Spread that the trimmers' W_k starts with, which stable_init puts to 0."
    )
    align: Literal["quantile", "probability", "group", "worth"] = Field(
        "quantile",
        description="What makes the scores of layers comparable when trimming begins. quantile: every layer "
        "reaches its group's target at the same threshold. probability: scores mean the logarithm of a "
        "token's share of the saliency, so that a layer that knows more drops more. group: so within a "
        "group, and every group reaches its own target at the same threshold. worth: scores mean the "
        "logarithm of what a token is worth to the answer, in all layers and groups, per MAC that dropping "
        "it would save.",
    )
    hold_weight: float = Field(
        0.0, ge=0, description="Weight of the divergence in training: scores go on learning the saliency."
    )
    margin: float = Field(
        1.0, description="How far above the threshold the lowest scores lie when trimming begins."
    )


class Teacher(Section):
    """Distillation from a full model into one of fewer layers (FTKD), for runs without trimming."""

    checkpoint: str = Field(
        description="The teacher: whatever backbone.checkpoint takes, trained for the task.", min_length=1
    )
    logits: float = Field(1.0, ge=0, description="Weight of the divergence of the logits.")
    hidden: float = Field(1.0, ge=0, description="Weight of the squared distance of the layers' outputs.")
    attention: float = Field(1.0, ge=0, description="Weight of the divergence of the attention weights.")
    temperature: Positive = Field(1.0, description="Temperature of both distributions of logits.")


class Strategy(Section):
    """How a model is led to its target."""

    stable_init: StableInit = Field(default_factory=StableInit, description="Stable initialisation.")
    curriculum: Curriculum = Field(default_factory=Curriculum, description="Curriculum on the target.")
    self_distillation: SelfDistillation = Field(
        default_factory=SelfDistillation, description="Self-distillation."
    )
    cost_loss: CostLoss = Field(default_factory=CostLoss, description="Cost loss.")
    budget_controller: BudgetController = Field(
        default_factory=BudgetController, description="Threshold steering; ours, not the paper's."
    )
    guidance_warmup: GuidanceWarmup = Field(
        default_factory=GuidanceWarmup, description="Warm start of the scores; ours, not the paper's."
    )
    teacher: Teacher | None = Field(
        None, description="Distillation from a full model, for `pruning: null`; null: none."
    )


class Optimizer(Section):
    """Optimizer and learning-rate schedule."""

    name: Literal["adamw"] = Field("adamw", description="Optimizer.")
    learning_rate: Positive = Field(5e-6, description="Peak learning rate of parts without a multiplier.")
    multipliers: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="Learning-rate multiplier per part, such as cross_modal, head, trimmers.",
    )
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay.")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.98), description="Decay rates of AdamW's two moments.")
    eps: Positive = Field(1e-8, description="AdamW's epsilon.")
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="Schedule after warm-up."
    )
    warmup_steps: float = Field(
        0.1, ge=0, description="Below 1: share of all steps; from 1: number of steps."
    )
    max_grad_norm: Positive = Field(1.0, description="Gradients are clipped to this norm.")


class Train(Section):
    """Length, batches and checkpoints of training."""

    num_train_epochs: float | None = Field(None, gt=0, description="Passes over the data; or give max_steps.")
    max_steps: int | None = Field(None, ge=1, description="Optimizer steps; or give num_train_epochs.")
    per_device_train_batch_size: Count = Field(16, description="Instances per device and forward pass.")
    gradient_accumulation_steps: Count = Field(
        1,
        description="Forward passes per optimizer step. Losses are means over each of them, as over the "
        "batch of each process: the cost loss and that of captions are not quite those of one large batch.",
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="Mixed precision.")
    eval_steps: int | None = Field(
        None, ge=1, description="Evaluate every so many steps; null: at the end only."
    )
    save_steps: int | None = Field(
        None, ge=1, description="Save a checkpoint every so many steps; null: none, nothing to resume."
    )
    save_total_limit: Count = Field(2, description="Checkpoints kept besides the best one.")
    dataloader_num_workers: int = Field(0, ge=0, description="Processes that load data.")
    num_threads: int | None = Field(
        None, ge=1, description="CPU threads of torch; null leaves torch's choice."
    )

    @model_validator(mode="after")
    def _has_one_length(self) -> Train:
        if (self.num_train_epochs is None) == (self.max_steps is None):
            found = "neither" if self.max_steps is None else "both"
            raise ValueError(f"give exactly one of num_train_epochs and max_steps, found {found}")
        return self


class Evaluate(Section):
    """What is evaluated after training."""

    split: str = Field("test", description="Split of the task's data.")
    batch_size: Count = Field(64, description="Instances per forward pass.")
    max_instances: int | None = Field(None, ge=1, description="At most this many instances; null: all.")


class Logging(Section):
    """What is written down during training."""

    logging_steps: Count = Field(20, description="Log every so many steps.")
    report_to: list[Literal["jsonl", "tensorboard"]] = Field(
        default=["jsonl"], description="Further trackers; metrics.jsonl is always written."
    )


class Recipe(Section):
    """One run: backbone, task, pruning and training."""

    schema_version: Literal[1] = Field(1, description="Version of this format.")
    description: str = Field("", description="What the recipe is for, in a line.")
    output_dir: str = Field(description="Run directory.", min_length=1)
    seed: int = Field(42, ge=0, lt=2**32, description="Seed of everything random.")
    preset: Literal["paper", "guided"] = Field(
        "paper",
        description="Method whose settings hold where the recipe gives none: SmartTrim as published, or "
        "ours (see above).",
    )
    backbone: Plugin = Field(description="The host model.")
    task: Plugin = Field(description="The task and its data.")
    pruning: Pruning | None = Field(None, description="Trimming; null: plain fine-tuning.")
    strategy: Strategy = Field(
        default_factory=Strategy, description="Switches that lead a model to its target."
    )
    optimizer: Optimizer = Field(default_factory=Optimizer, description="Optimizer and schedule.")
    train: Train = Field(description="Length, batches and checkpoints.")
    evaluate: Evaluate = Field(default_factory=Evaluate, description="Evaluation after training.")
    logging: Logging = Field(default_factory=Logging, description="What is written down.")
