"""The LightningModule: a gap term on the target languages, retention of the reference, over adapters."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from torch import Tensor

from lingact.adapters import base_behaviour
from lingact.config import LossConfig, OptimConfig
from lingact.features import encode, kept_residuals, next_token_nll, rescaled, token_activation
from lingact.lm import LanguageModel
from lingact.losses import (
    LossTerms,
    activation_gap,
    combine,
    mean_gap,
    norm_anchor,
    pooled_contrast,
    pre_activation_hinge,
    profile_gap,
    retention_kl,
)
from lingact.reference import Reference
from lingact.sae import Dictionaries
from lingact.tokens import TokenBatch

Residuals = dict[int, Float[Tensor, "token d_model"]]


class GapModule(pl.LightningModule):
    """Trains an adapter so that the target languages come nearer to the reference language as it is under the base model.

    Args:
        lm: the model with an adapter attached; only the adapter has gradients.
        dictionaries: the SAEs of the layers in the loss.
        reference: the frozen reference on the training sentences, same layers.
        code: of the reference language; the other languages of a batch are targets.
        layer_weights: one for each layer in the loss, adding up to 1.
    """

    def __init__(  # noqa: PLR0913 (a constructor)
        self,
        lm: LanguageModel,
        dictionaries: Dictionaries,
        reference: Reference,
        code: str,
        layer_weights: Float[Tensor, " layer"],
        loss: LossConfig,
        optim: OptimConfig,
        steps: int,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints hold the adapter alone
        self.model = lm.model
        self.code = code
        self.loss = loss
        self.optim = optim
        self.steps = steps
        self.multiplier = loss.retention.kl
        """Weight of the KL term; follows `retention.limit` where one is set."""
        self.history: list[dict[str, float]] = []
        """Every term of every step so far, checkpointed with the adapter."""
        # Kept out of the module tree, so that SAEs are in no checkpoint and no optimiser.
        self._frozen = (lm, dictionaries, reference, layer_weights)

    def on_fit_start(self) -> None:
        """Models come from the hub in eval mode, and Lightning leaves them there."""
        self.model.train()

    # --- gap terms -------------------------------------------------------------------------------------------------------------------------------

    def gap(self, target: TokenBatch, residuals: Residuals, partners: Tensor) -> Float[Tensor, ""]:
        """The gap term of one target language.

        Args:
            target: its batch.
            residuals: behind each layer of the loss, with gradient; rescaled where the loss is norm-matched.
            partners: the reference's sentence beside each sentence of the batch, in the order of `target.sentence.unique()`.
        """
        _, dictionaries, reference, weights = self._frozen
        gap, layers = self.loss.gap, tuple(dictionaries)
        weights = weights.to(self.device)
        one_sided = gap.side == "one_sided"
        bandwidth = gap.bandwidth if gap.gradient == "straight_through" else None

        def features(layer: int) -> Float[Tensor, "token d_sae"]:
            return encode(dictionaries[layer], residuals[layer], straight_through=bandwidth)

        match gap.objective:
            case "activation":
                own = torch.stack([self._pooled(token_activation(features(layer)), target) for layer in layers])
                return activation_gap(own, reference.activation(gap.pooling).to(self.device), weights, one_sided=one_sided)
            case "norm":
                own = torch.stack([self._pooled(residuals[layer].norm(dim=-1), target) for layer in layers])
                return activation_gap(own, reference.mean_norm().to(self.device), weights, one_sided=one_sided)
            case "profile":
                aims = [profile.to(self.device) for profile in reference.profiles_of(partners)]
                return profile_gap([features(layer).mean(dim=0) for layer in layers], aims, weights)
            case "hinge":
                pre, aims = [], []
                for layer, active, mean in zip(layers, reference.active(), reference.mean_pre(), strict=True):
                    chosen = active.nonzero()[:, 0].to(self.device)
                    pre.append(dictionaries[layer].pre_activations(residuals[layer])[:, chosen])
                    aims.append(mean.to(self.device)[chosen])
                return pre_activation_hinge(pre, aims, weights)
            case "contrastive":
                own = [self._sentence_means(residuals[layer], target) for layer in layers]
                aims = [mean.to(self.device) for mean in reference.means_of(partners)]
                return pooled_contrast(own, aims, weights, temperature=gap.temperature)
            case "diffmean":
                return mean_gap(torch.stack([residuals[layer].mean(dim=0) for layer in layers]), reference.mean().to(self.device), weights)

    def _pooled(self, values: Float[Tensor, " token"], batch: TokenBatch) -> Float[Tensor, ""]:
        """Mean over tokens, or mean over sentences of the mean within each."""
        if self.loss.gap.pooling == "token":
            return values.mean()
        return self._sentence_means(values[:, None], batch).mean()

    def _sentence_means(self, values: Float[Tensor, "token d"], batch: TokenBatch) -> Float[Tensor, "sentence d"]:
        """Mean within each sentence of the batch, in the order of `batch.sentence.unique()`."""
        _, place = batch.kept_sentence.to(values.device).unique(return_inverse=True)
        count = int(place.max()) + 1
        sums = torch.zeros(count, values.shape[1], device=values.device).index_add(0, place, values)
        return sums / torch.bincount(place, minlength=count)[:, None]

    # --- one step --------------------------------------------------------------------------------------------------------------------------------

    def loss_terms(self, batch: dict[str, TokenBatch]) -> LossTerms:
        """All terms of one batch; terms on the targets are means over target languages. A term that no weight asks for is not computed."""
        gap, retention = self.loss.gap, self.loss.retention
        own = batch[self.code]
        found: dict[str, list[Tensor]] = {}

        def add(name: str, value: Tensor) -> None:
            found.setdefault(name, []).append(value)

        for code, target in batch.items():
            if code == self.code:
                continue
            residuals, logits, base = self._both(target, logits=self.loss.target_lm > 0, base=gap.norm_matched or retention.norm > 0)
            if gap.weight > 0:
                aimed = {layer: rescaled(x, base[layer]) for layer, x in residuals.items()} if gap.norm_matched else residuals
                add("gap", self.gap(target, aimed, self._partners(target)))
            if self.loss.target_lm > 0:
                assert logits is not None
                add("target_lm", next_token_nll(logits, target)[0].mean())
            if retention.norm > 0:
                add("norm", self._norm_anchor(residuals, base))
        if retention.kl > 0 or retention.limit is not None:
            add("retention", self._kl(own))
        if retention.lm > 0 or retention.activation > 0 or retention.norm > 0:
            residuals, logits, base = self._both(own, logits=retention.lm > 0, base=True)
            if retention.lm > 0:
                assert logits is not None
                add("reference_lm", next_token_nll(logits, own)[0].mean())
            if retention.activation > 0:
                add("reference_activation", self._activation_anchor(residuals, base))
            if retention.norm > 0:
                add("norm", self._norm_anchor(residuals, base))
        raw = {name: torch.stack(values).mean() for name, values in found.items()}
        rise = min(1.0, (len(self.history) + 1) / (self.loss.warm_up + 1))
        weights = {
            "gap": gap.weight * rise,
            "target_lm": self.loss.target_lm,
            "retention": self.multiplier,
            "reference_lm": retention.lm,
            "reference_activation": retention.activation,
            "norm": retention.norm,
        }
        return combine(raw, {name: weights[name] for name in raw})

    def _both(self, batch: TokenBatch, *, logits: bool, base: bool) -> tuple[Residuals, Tensor | None, Residuals]:
        """Residuals and logits of the adapted model with gradient, and residuals of the base model without; empty where not asked for."""
        lm, dictionaries, _, _ = self._frozen
        layers = tuple(dictionaries)
        residuals, scores = kept_residuals(lm, batch, layers, logits=logits)
        if not base:
            return residuals, scores, {}
        with torch.no_grad(), base_behaviour(self.model):
            before, _ = kept_residuals(lm, batch, layers)
        return residuals, scores, before

    def _partners(self, batch: TokenBatch) -> Tensor:
        """The reference's sentences beside those of the batch: their translations, or with shuffled pairs each the translation of the next."""
        sentences = batch.sentence.unique()
        return sentences.roll(1) if self.loss.control == "shuffled_pairs" else sentences

    def _kl(self, batch: TokenBatch) -> Float[Tensor, ""]:
        """KL(base || adapter) on the predictions of the reference language's kept tokens."""
        lm, _, _, _ = self._frozen
        predicted = batch.keep[:, 1:].to(lm.device)
        with torch.no_grad(), base_behaviour(self.model):
            _, base_logits = lm.residuals(batch, (), logits=True)
        _, logits = lm.residuals(batch, (), logits=True)
        assert base_logits is not None
        assert logits is not None
        return retention_kl(base_logits[:, :-1][predicted], logits[:, :-1][predicted])

    def _activation_anchor(self, residuals: Residuals, base: Residuals) -> Float[Tensor, ""]:
        _, dictionaries, _, weights = self._frozen
        after, before = (torch.stack([token_activation(d.encode(x[layer])).mean() for layer, d in dictionaries.items()]) for x in (residuals, base))
        return activation_gap(after, before, weights.to(self.device), one_sided=False)

    def _norm_anchor(self, residuals: Residuals, base: Residuals) -> Float[Tensor, ""]:
        weights = self._frozen[3].to(self.device)
        return norm_anchor([x.norm(dim=-1) for x in residuals.values()], [x.norm(dim=-1) for x in base.values()], weights)

    def training_step(self, batch: dict[str, TokenBatch], _index: int) -> Tensor:
        """One step; logs every term raw and weighted."""
        terms = self.loss_terms(batch)
        logged = (
            {"loss/total": terms.total}
            | {f"loss/raw/{name}": value for name, value in terms.raw.items()}
            | {f"loss/weighted/{name}": value for name, value in terms.weighted.items()}
        )
        logged = {name: value.detach() for name, value in logged.items()}
        self.log_dict(logged, batch_size=1)
        logged["multiplier"] = torch.tensor(self.multiplier)
        self.history.append({"step": len(self.history)} | {name: float(value) for name, value in logged.items()})
        self._follow_limit(terms)
        self.log("loss", terms.total.detach(), prog_bar=True, logger=False, batch_size=1)
        return terms.total

    def _follow_limit(self, terms: LossTerms) -> None:
        """Dual ascent on the constraint KL <= limit: the multiplier grows while KL is above and shrinks, not below 0, while it is below."""
        retention = self.loss.retention
        if retention.limit is not None:
            self.multiplier = max(0.0, self.multiplier + retention.rate * (float(terms.raw["retention"]) - retention.limit))

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop when the gap is closed, if asked to: on the mean of the last ten steps."""
        gap = self.loss.gap
        recent = [row["loss/raw/gap"] for row in self.history[-10:] if "loss/raw/gap" in row]
        if gap.stop_when_closed and len(recent) == 10 and sum(recent) / 10 < gap.tolerance:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """History and multiplier travel with the weights."""
        checkpoint["history"] = self.history
        checkpoint["multiplier"] = self.multiplier

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the history and multiplier of the saved run."""
        self.history = checkpoint["history"]
        self.multiplier = checkpoint["multiplier"]

    def configure_optimizers(self) -> Any:
        """AdamW on the adapter; linear warm-up, cosine decay to zero."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=self.optim.lr, weight_decay=self.optim.weight_decay)
        warmup = self.optim.warmup_steps

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor), "interval": "step"}}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Adapter weights only."""
        trainable = {name for name, p in self.named_parameters() if p.requires_grad}
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in trainable}
