"""The LightningModule: a gap term on the target languages, retention of the reference, over adapters."""

import math
from itertools import takewhile
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from torch import Tensor

from lingact.adapters import base_behaviour, train_adapter_only
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
Terms = dict[str, Float[Tensor, ""]]

CLOSED_OVER = 10
"""Steps over which the gap term is averaged before `stop_when_closed` believes it."""


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
        # None of these is an nn.Module, so SAEs are in no checkpoint and no optimiser.
        self.lm = lm
        self.dictionaries = dictionaries
        self.reference = reference
        self.code = code
        self.layer_weights = layer_weights.to(lm.device)
        self.loss = loss
        self.optim = optim
        self.steps = steps
        self.multiplier = loss.retention.kl
        """Weight of the KL term; follows `retention.limit` where one is set."""
        self.history: list[dict[str, float]] = []
        """Every term of every batch so far with its step, checkpointed with the adapter."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers in the loss."""
        return tuple(self.dictionaries)

    # --- gap terms -------------------------------------------------------------------------------------------------------------------------------

    def gap(self, target: TokenBatch, residuals: Residuals) -> Float[Tensor, ""]:
        """The gap term of one target language.

        Args:
            target: its batch.
            residuals: of its kept tokens behind each layer of the loss, with gradient; rescaled where the loss is norm-matched.
        """
        gap, reference, weights = self.loss.gap, self.reference, self.layer_weights
        match gap.objective:
            case "activation":
                own = torch.stack([self._pooled(token_activation(features), target) for features in self._features(residuals)])
                return activation_gap(own, reference.activation(gap.pooling).to(own.device), weights, one_sided=gap.side == "one_sided")
            case "norm":
                own = torch.stack([self._pooled(residuals[layer].norm(dim=-1), target) for layer in self.layers])
                return activation_gap(own, reference.mean_norm(gap.pooling).to(own.device), weights, one_sided=gap.side == "one_sided")
            case "profile":
                # Every occurrence counts: a batch may straddle two epochs and hold a sentence twice.
                aims = reference.profiles_of(target.sentence[target.first].cpu())
                own = [features.mean(dim=0) for features in self._features(residuals)]
                return profile_gap(own, [aim.to(weights.device) for aim in aims], weights)
            case "hinge":
                chosen = [latents.to(weights.device) for latents in reference.active]
                pre = [
                    self.dictionaries[layer].folded_pre_activations(residuals[layer])[:, at] for layer, at in zip(self.layers, chosen, strict=True)
                ]
                aims = [mean.to(weights.device)[at] for mean, at in zip(reference.mean_pre(), chosen, strict=True)]
                return pre_activation_hinge(pre, aims, weights)
            case "contrastive":
                aims = reference.means_of(target.sentence.unique().cpu())
                own = [_sentence_means(residuals[layer], target) for layer in self.layers]
                return pooled_contrast(own, [aim.to(weights.device) for aim in aims], weights, temperature=gap.temperature)
            case "diffmean":
                own = torch.stack([residuals[layer].mean(dim=0) for layer in self.layers])
                return mean_gap(own, reference.mean().to(own.device), weights)

    def _features(self, residuals: Residuals) -> list[Float[Tensor, "token d_sae"]]:
        bandwidth = self.loss.gap.bandwidth if self.loss.gap.gradient == "straight_through" else None
        return [encode(dictionary, residuals[layer], straight_through=bandwidth) for layer, dictionary in self.dictionaries.items()]

    def _pooled(self, values: Float[Tensor, " token"], batch: TokenBatch) -> Float[Tensor, ""]:
        """Mean over tokens, or mean over sentences of the mean within each."""
        return values.mean() if self.loss.gap.pooling == "token" else _sentence_means(values[:, None], batch).mean()

    # --- one step --------------------------------------------------------------------------------------------------------------------------------

    def loss_terms(self, batch: dict[str, TokenBatch]) -> LossTerms:
        """All terms of one batch, each a mean over the languages that have it. A term that no weight asks for is not computed."""
        by_language = [self._reference_terms(own) if code == self.code else self._target_terms(own) for code, own in batch.items()]
        names = dict.fromkeys(name for terms in by_language for name in terms)
        raw = {name: torch.stack([terms[name] for terms in by_language if name in terms]).mean() for name in names}
        retention = self.loss.retention
        weights = {
            "gap": self.loss.gap.weight * min(1.0, (self.global_step + 1) / (self.loss.warm_up + 1)),
            "target_lm": self.loss.target_lm,
            "retention": self.multiplier,
            "reference_lm": retention.lm,
            "reference_activation": retention.activation,
            "norm": retention.norm,
        }
        return combine(raw, {name: weights[name] for name in raw})

    def _target_terms(self, batch: TokenBatch) -> Terms:
        gap, loss = self.loss.gap, self.loss
        if not (gap.weight or loss.target_lm or loss.retention.norm):
            return {}
        residuals, logits = kept_residuals(self.lm, batch, self.layers, logits=loss.target_lm > 0)
        against_base = (gap.weight > 0 and gap.norm_matched) or loss.retention.norm > 0
        base, _ = self._base(batch, self.layers) if against_base else ({}, None)
        terms = {}
        with self._full_precision():
            if gap.weight > 0:
                terms["gap"] = self.gap(batch, {layer: rescaled(x, base[layer]) for layer, x in residuals.items()} if gap.norm_matched else residuals)
            if logits is not None:
                terms["target_lm"] = next_token_nll(logits, batch)[0].mean()
            if loss.retention.norm > 0:
                terms["norm"] = self._norm_anchor(residuals, base)
        return terms

    def _reference_terms(self, batch: TokenBatch) -> Terms:
        retention = self.loss.retention
        kl = retention.kl > 0 or retention.limit is not None
        anchored = self.layers if retention.activation > 0 or retention.norm > 0 else ()
        if not (kl or anchored or retention.lm):
            return {}
        residuals, logits = kept_residuals(self.lm, batch, anchored, logits=kl or retention.lm > 0)
        base, base_logits = self._base(batch, anchored, logits=kl) if kl or anchored else ({}, None)
        terms = {}
        with self._full_precision():
            if logits is not None and base_logits is not None:
                predicted = batch.keep[:, 1:].to(logits.device)
                terms["retention"] = retention_kl(base_logits[:, :-1][predicted], logits[:, :-1][predicted])
            if logits is not None and retention.lm > 0:
                terms["reference_lm"] = next_token_nll(logits, batch)[0].mean()
            if retention.activation > 0:
                terms["reference_activation"] = self._activation_anchor(residuals, base)
            if retention.norm > 0:
                terms["norm"] = self._norm_anchor(residuals, base)
        return terms

    def _base(self, batch: TokenBatch, layers: tuple[int, ...], *, logits: bool = False) -> tuple[Residuals, Tensor | None]:
        """What the model gives with its adapter off, without gradient."""
        with torch.no_grad(), base_behaviour(self.model):
            return kept_residuals(self.lm, batch, layers, logits=logits)

    def _full_precision(self) -> torch.autocast:
        """The terms are computed in float32, whatever the precision of the passes: bf16 would leave a loss of three digits."""
        return torch.autocast(self.layer_weights.device.type, enabled=False)

    def _activation_anchor(self, residuals: Residuals, base: Residuals) -> Float[Tensor, ""]:
        after, before = (
            torch.stack([token_activation(dictionary.encode(x[layer])).mean() for layer, dictionary in self.dictionaries.items()])
            for x in (residuals, base)
        )
        return activation_gap(after, before, self.layer_weights, one_sided=False)

    def _norm_anchor(self, residuals: Residuals, base: Residuals) -> Float[Tensor, ""]:
        after, before = ([x[layer].norm(dim=-1) for layer in self.layers] for x in (residuals, base))
        return norm_anchor(after, before, self.layer_weights)

    # --- what Lightning calls --------------------------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Dropout of the adapter alone: the reference was frozen without any in the base model, and KL compares with a base without."""
        train_adapter_only(self.model)

    def on_train_start(self) -> None:
        """A run that had stopped because the gap was closed may be resumed from its very last checkpoint."""
        self._stop_when_closed()

    def training_step(self, batch: dict[str, TokenBatch], _index: int) -> Tensor:
        """One step; logs every term raw and weighted, and the multiplier that weighted it."""
        terms = self.loss_terms(batch)
        logged = {"loss/total": terms.total.detach()}
        logged |= {f"loss/raw/{name}": value.detach() for name, value in terms.raw.items()}
        logged |= {f"loss/weighted/{name}": value.detach() for name, value in terms.weighted.items()}
        row = {name: float(value) for name, value in logged.items()}
        if self.loss.retention.limit is not None:
            row["multiplier"] = self.multiplier
        self.log_dict(row, batch_size=1)
        self.history.append({"step": self.global_step} | row)
        self.log("loss", row["loss/total"], prog_bar=True, logger=False, batch_size=1)
        return terms.total

    def _of_last_steps(self, count: int, first_after: int, key: str) -> list[float]:
        """The values of a column in the batches of the `count` steps before step `first_after`."""
        return [row[key] for row in takewhile(lambda row: row["step"] >= first_after - count, reversed(self.history)) if key in row]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: ARG002 (Lightning's signature)
        """Dual ascent on the constraint KL <= limit: the multiplier grows while KL is above and shrinks, not below 0, while it is below."""
        retention = self.loss.retention
        if retention.limit is not None:
            found = self._of_last_steps(1, self.global_step + 1, "loss/raw/retention")
            self.multiplier = max(0.0, self.multiplier + retention.rate * (sum(found) / len(found) - retention.limit))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002 (Lightning's signature)
        """Stop when the gap is closed, if asked to."""
        self._stop_when_closed()

    def _stop_when_closed(self) -> None:
        gap, done = self.loss.gap, self.global_step
        if not gap.stop_when_closed or done < CLOSED_OVER or self.history[-1]["step"] == done:  # the last: in the middle of accumulating
            return
        recent = self._of_last_steps(CLOSED_OVER, done, "loss/raw/gap")
        if sum(recent) / len(recent) < gap.tolerance:
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


def _sentence_means(values: Float[Tensor, "token d"], batch: TokenBatch) -> Float[Tensor, "sentence d"]:
    """Mean within each sentence of the batch, over all its windows, in the order of `batch.sentence.unique()`."""
    sentences, place = batch.kept_sentence.to(values.device).unique(return_inverse=True)
    sums = torch.zeros(len(sentences), values.shape[1], device=values.device).index_add(0, place, values)
    return sums / torch.bincount(place)[:, None]
