"""Loss, adapters, optimiser and trainer."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lingact.config.base import ConfigSection
from lingact.config.limits import Count, Dropout, Factor, Layers, Modules, Processors, Real, Share, Text, Weight, WeightedLayers, Whole

ENCODING_OBJECTIVES = ("activation", "profile", "hinge")
"""Objectives of the gap term that encode residuals with SAEs."""


class GapLoss(ConfigSection):
    """The gap term on the target languages, which moves a quantity towards the reference's value under the frozen base model."""

    objective: Literal["activation", "profile", "hinge", "contrastive", "diffmean", "norm"]
    """activation: A(l, L). profile: mean feature profile on parallel sentences. hinge: pre-activations of the reference's latents, upwards only.
    contrastive: mean-pooled translations. diffmean: mean residual, no SAE. norm: mean residual norm, a control."""
    side: Literal["two_sided", "one_sided"]
    """two_sided moves towards the reference from either side, one_sided only upwards (activation and norm)."""
    gradient: Literal["jumprelu", "straight_through"]
    """straight_through lets latents that are silent but near their threshold receive a gradient (activation and profile)."""
    bandwidth: Share
    """Width of the straight-through window below each threshold, relative to the threshold."""
    norm_matched: bool
    """Measure the loss on residuals rescaled to the base model's norm on each token, so that larger norms gain nothing."""
    pooling: Literal["token", "sentence"]
    """Whether activation is a mean over all tokens, or a mean within each sentence and then over sentences (activation and norm)."""
    temperature: Annotated[Real, Field(ge=1e-3, le=100)]
    """Temperature of the contrastive objective, from 0.001 to 100."""
    weight: Weight
    """0, or from 1e-6 to 1e6, like every weight of a term."""
    layers: WeightedLayers
    """Measured layers in the loss, or their weights: {2: 1.0, 3: 0.5}."""
    stop_when_closed: bool
    """End training when the gap term's mean over ten steps is below its tolerance, so that nothing overshoots."""
    tolerance: Factor
    """Tolerance of `stop_when_closed`, in the units of the term."""


class RetentionLoss(ConfigSection):
    """Weights of the terms that preserve the reference language; 0 leaves a term out. `base` is the same model with the adapter off."""

    kl: Weight
    """KL(base || adapter) of the next-token distributions, in nats."""
    lm: Weight
    """Cross-entropy on the reference's text."""
    activation: Weight
    """Squared relative change of the reference's activation per layer."""
    norm: Weight
    """Squared log ratio of residual norms, on reference and targets."""
    fit: Weight
    """Growth of the measuring SAEs' FVU on the targets, so that the SAEs still fit."""
    target_kl: Weight
    """KL(base || adapter) on the targets' text, in nats, so that their language modelling stays."""
    top: Count | None
    """How many of the base model's most likely next tokens the KL terms keep apart, computed once before training; all others count as one token.
    None: all tokens are kept apart, with a second forward pass in every step."""
    limit: Factor | None
    """Keep KL below this many nats by a multiplier that grows while KL is above the limit and shrinks while it is below (dual ascent); it starts at
    the weight `kl`. None: that weight throughout."""
    rate: Factor
    """Step size of the multiplier, per nat and training step."""


class LossConfig(ConfigSection):
    """The combined loss: gap term on the target languages, retention terms on the reference, language modelling on the targets."""

    gap: GapLoss
    retention: RetentionLoss
    target_lm: Weight
    """Weight of the cross-entropy on the target languages' text."""
    predicted_share: Share
    """Share of the positions at which KL and cross-entropy terms are computed, drawn anew in every step. Their gradient stays unbiased."""
    warm_up: Whole
    """Steps over which the gap term's weight rises from 0."""
    control: Literal["none", "random_features", "shuffled_pairs", "wrong_language"]
    """random_features: SAEs with random directions in the gap term. shuffled_pairs: target sentences paired with unrelated sentences of the
    reference. wrong_language: text of another language in place of the targets'."""

    @model_validator(mode="after")
    def _some_weight(self) -> "LossConfig":
        retention = self.retention.model_dump(include={"kl", "lm", "activation", "norm", "fit", "target_kl"})
        if not any((self.gap.weight, self.target_lm, *retention.values())):
            raise ValueError("all weights are zero: nothing would be trained")
        return self

    @model_validator(mode="after")
    def _does_what_it_says(self) -> "LossConfig":
        """Refuse options that would change nothing, or leave nothing to train."""
        gap = self.gap
        if gap.stop_when_closed and gap.weight == 0:
            raise ValueError("gap.stop_when_closed needs a gap term, but gap.weight is 0")
        if self.control == "random_features" and self.retention.fit > 0:
            raise ValueError("retention.fit would preserve the fit of SAEs with random directions; with control=random_features set it to 0")
        if gap.norm_matched and gap.objective == "norm":
            raise ValueError("gap.norm_matched removes the norms that gap.objective=norm would train; use one of them")
        for what, chosen, objectives in (
            ("gap.stop_when_closed", gap.stop_when_closed, ("activation", "profile", "norm")),
            ("control=shuffled_pairs", self.control == "shuffled_pairs", ("profile", "contrastive")),
            ("control=random_features", self.control == "random_features", ENCODING_OBJECTIVES),
            ("gap.side=one_sided", gap.side == "one_sided", ("activation", "norm")),
            ("gap.pooling=sentence", gap.pooling == "sentence", ("activation", "norm")),
            ("gap.gradient=straight_through", gap.gradient == "straight_through", ("activation", "profile")),
        ):
            if chosen and gap.objective not in objectives:
                raise ValueError(f"{what} changes nothing with gap.objective={gap.objective}; it goes with {' or '.join(objectives)}")
        return self


MOVE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations of LoRA (peft) that move part of the base weights into the adapter, or requantise them."""


class Adapter(ConfigSection):
    """Where an adapter of any kind is placed. No kind changes the base weights, so a model with its adapter off is the base model."""

    targets: Modules
    """Linear modules of a block, such as q_proj; all: every one, whatever its name."""
    layers: Layers
    """Blocks with an adapter, each once."""


class LoraAdapter(Adapter):
    """W + s B A (Hu et al. 2021, 2106.09685), with s = alpha / r."""

    kind: Literal["lora"]
    r: Annotated[Count, Field(le=100_000)]
    alpha: Factor
    dropout: Dropout
    use_rslora: bool
    """s = alpha / sqrt(r) (Kalajdzievski 2023, 2312.03732)."""
    use_dora: bool
    """Direction by LoRA, magnitude by a vector of its own (Liu et al. 2024, 2402.09353)."""
    init: Literal["default", "gaussian"]
    """Of A; B starts at zero. default: Kaiming uniform. gaussian: standard deviation 1 / r."""

    @field_validator("init", mode="before")
    @classmethod
    def _leaves_the_base_alone(cls, init: object) -> object:
        if str(init).partition("_niter_")[0] in MOVE_THE_BASE:
            raise ValueError(
                f"'{init}' changes the base weights, because it moves part of them into the adapter. With the adapter off the model would not be the "
                "base model any more, which retention and every comparison need; use default or gaussian"
            )
        return init


class VeraAdapter(Adapter):
    """W + diag(b) B diag(d) A with random frozen A, B shared by all modules; b and d are trained (Kopiczko et al. 2023, 2310.11454)."""

    kind: Literal["vera"]
    r: Annotated[Count, Field(le=100_000)]
    dropout: Dropout
    d_initial: Annotated[Factor, Field(le=1000)]
    """Initial value of d; b starts at zero."""


class Ia3Adapter(Adapter):
    """A factor for each output of a module, or each input (Liu et al. 2022, 2205.05638); starts at one."""

    kind: Literal["ia3"]
    feedforward: tuple[Text, ...]
    """Targets whose inputs are scaled instead of their outputs."""

    @model_validator(mode="after")
    def _of_the_targets(self) -> "Ia3Adapter":
        others = [name for name in self.feedforward if self.targets != "all" and name not in self.targets]
        if others:
            raise ValueError(f"feedforward names {', '.join(others)}, which is not in targets ({', '.join(self.targets)}); add it there")
        return self


class LohaAdapter(Adapter):
    """W + s (B1 A1) * (B2 A2), an elementwise product of two low-rank matrices, with s = alpha / r (Hyeon-Woo et al. 2021, 2108.06098)."""

    kind: Literal["loha"]
    r: Annotated[Count, Field(le=100_000)]
    alpha: Factor


class LokrAdapter(Adapter):
    """W + s C (x) B A, a Kronecker product, with s = alpha / r (Yeh et al. 2023, 2309.14859)."""

    kind: Literal["lokr"]
    r: Annotated[Count, Field(le=100_000)]
    alpha: Factor


class OftAdapter(Adapter):
    """W R with an orthogonal block-diagonal R, by Cayley's map of skew-symmetric blocks (Qiu et al. 2023, 2306.07280); starts at the identity."""

    kind: Literal["oft"]
    block_size: Annotated[Count, Field(ge=2, le=100_000)]
    """Width of R's blocks; divides the input width of every target."""


PeftConfig = Annotated[LoraAdapter | VeraAdapter | Ia3Adapter | LohaAdapter | LokrAdapter | OftAdapter, Field(discriminator="kind")]
"""Adapters (peft)."""


class OptimConfig(ConfigSection):
    """AdamW with linear warm-up and cosine decay to zero."""

    lr: Annotated[Real, Field(ge=1e-10, le=1)]
    """Highest learning rate, from 1e-10 to 1."""
    weight_decay: Annotated[Real, Field(ge=0, le=1)]
    """From 0 to 1; each step shrinks the weights by lr times this share."""
    warmup_steps: Whole
    """At most the number of training steps."""


class TrainerConfig(ConfigSection):
    """Lightning trainer."""

    steps: Count
    sentences: Count
    """Aligned sentences per optimiser step; each gives one text per target language and one in the reference."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"]
    """Precision of the passes; for base weights in bfloat16 set model.dtype. The adapter and the loss terms stay in float32."""
    gradient_clip: Factor
    micro_batch: Count | None
    """Sentences in each forward pass, to save memory; loss and gradient stay those of all `sentences` (except that dropout in the adapter makes other
    draws). None: all at once, and automatically fewer if memory runs out."""
    activation_checkpointing: bool
    """Recompute each block's activations for the gradient instead of keeping them: less memory, about a third more time."""
    workers: Annotated[Whole, Field(le=256)]
    """Processes that prepare batches in advance, at most 256."""
    devices: Processors
    """Processes on this machine, one for each device, that share every step's sentences."""
    nodes: Processors
    """Machines."""
    strategy: Literal["ddp", "fsdp"]
    """How several processes hold the model. ddp: each holds all of it. fsdp: in training each holds a share of the base weights, and those of a block
    are gathered when needed; each holds the whole adapter. Before and after training each holds the whole model, so it has to fit on one device."""
    checkpoint_every: Count
    """Steps between resumable checkpoints."""
    checkpoint_minutes: Factor = 1.0
    """Minutes after which a checkpoint is saved even if it comes earlier. One is also saved at the last step, and when the run is interrupted."""

    @model_validator(mode="after")
    def _enough_sentences(self) -> "TrainerConfig":
        if self.devices * self.nodes > self.sentences:
            raise ValueError(f"sentences is {self.sentences}, fewer than the {self.devices * self.nodes} processes that share them; give more")
        return self
