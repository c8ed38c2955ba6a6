"""The combined loss of a batch, computed from means over its tokens.

Means can be merged. So a batch may be read in parts that fit into memory, and by several processes, and gives the same loss and gradient as the whole
batch at once. This also holds for terms that are not means over tokens (a squared gap of means is not the mean of squared gaps).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint, noop_context_fn

from lingact.activations.features import factor_to, kept_residuals
from lingact.activations.functional import (
    activation_gap,
    fit_loss,
    fvu,
    kl_per_token,
    mean_gap,
    pooled_contrast,
    pre_activation_hinge,
    profile_gap,
    squared_log_ratio,
)
from lingact.config.training import LossConfig
from lingact.data.tokens import TokenBatch
from lingact.models.active_latents import ActiveLatents
from lingact.models.adapters import base_behaviour
from lingact.models.lm import LanguageModel
from lingact.models.next_tokens import NextTokens, Remembered
from lingact.models.sae import Dictionaries
from lingact.training.base_targets import BaseOutputs
from lingact.training.batches import AlignedBatch

Residuals = dict[int, Float[Tensor, "token d_model"]]
Terms = dict[str, Float[Tensor, ""]]


@dataclass(frozen=True)
class Mean:
    """A mean that can be merged with others."""

    total: Float[Tensor, "..."]
    count: Float[Tensor, "..."]
    """How many values were added, for the leading axes of `total` or for all of it."""

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> Float[Tensor, "..."]:
        """Total over count."""
        return self.total / self.count.reshape(self.count.shape + (1,) * (self.total.ndim - self.count.ndim))

    @classmethod
    def of(cls, values: Float[Tensor, "token ..."]) -> "Mean":
        """The mean over tokens."""
        return cls(values.sum(dim=0), torch.tensor(float(len(values)), device=values.device))


Means = dict[str, Mean]
Merge = Callable[[list[Tensor]], list[Tensor]]
"""Sums tensors over processes."""


class BatchLoss:
    """The terms of the combined loss.

    Args:
        lm: the model with an adapter attached.
        dictionaries: the SAEs of the layers in the loss.
        base: outputs of the base model on the training sentences, at the same layers.
        code: the reference language. The other languages of a batch are targets.
        layer_weights: a weight for each layer in the loss; they sum to 1.
    """

    def __init__(
        self,
        lm: LanguageModel,
        dictionaries: Dictionaries,
        base: BaseOutputs,
        code: str,
        layer_weights: Float[Tensor, " layer"],
        loss: LossConfig,
    ) -> None:
        self.lm = lm
        self.dictionaries = dictionaries
        self.base = base
        self.targets, self.predictions, self.anchors = base.targets, base.predictions, base.anchors
        self.code = code
        self.layer_weights = layer_weights.to(lm.device)
        self.loss = loss

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers in the loss."""
        return tuple(self.dictionaries)

    @property
    def _encodes(self) -> bool:
        """Whether the gap term starts from active latents alone."""
        return self.loss.gap.weight > 0 and self.loss.gap.objective in ("activation", "profile")

    @property
    def reaches_all(self) -> bool:
        """Whether every adapter weight gets a gradient in every step, because the loss uses logits or the output of the last block."""
        retention = self.loss.retention
        fixed = retention.kl if retention.limit is None else 0.0
        reads_logits = any((fixed, retention.lm, retention.target_kl, self.loss.target_lm))
        return reads_logits or (self.loss.gap.weight > 0 and self.layers[-1] == len(self.lm.blocks) - 1)

    def terms(self, batch: AlignedBatch, *, part: int | None = None, merge: Merge | None = None) -> Terms:
        """The raw terms of a batch, each a mean over the languages that have it. A term without weight is not computed.

        Args:
            part: sentences that are read at once. Their activations are recomputed for the gradient instead of stored. None: all at once.
            merge: sums over processes. None: there is one process.
        """
        means = {code: self._in_parts(code, own, batch.sentences, part) for code, own in batch.texts.items()}
        if merge is not None:
            means = _merged(means, merge)
        with self._full_precision():
            by_language = [
                self._reference_terms(own, batch.sentences) if code == self.code else self._target_terms(code, own, batch.sentences)
                for code, own in means.items()
            ]
            names = dict.fromkeys(name for terms in by_language for name in terms)
            return {name: torch.stack([terms[name] for terms in by_language if name in terms]).mean() for name in names}

    def _in_parts(self, code: str, batch: TokenBatch, sentences: Int[Tensor, " sentence"], part: int | None) -> Means:
        read = self._reference_means if code == self.code else self._target_means
        if part is None:
            return read(code, batch, sentences)
        # After Gao et al. (arXiv 2101.06983): the means first, then the gradient of each part from them.
        total: Means = {}
        # On the device, because torch repeats the random numbers only of devices that have a tensor among the arguments.
        sentences = sentences.to(self.lm.device)
        for shard in batch.split(part):
            # What is remembered of a sharded model would be as large as its logits.
            contexts = noop_context_fn if self.lm.sharded else Remembered().contexts
            found = checkpoint(read, code, shard, sentences, use_reentrant=False, context_fn=contexts)
            total = {name: total[name] + mean if name in total else mean for name, mean in found.items()}
        return total

    # --- means over tokens -----------------------------------------------------------------------------------------------------------------------

    def _target_means(self, code: str, batch: TokenBatch, sentences: Int[Tensor, " sentence"]) -> Means:
        gap, loss, retention = self.loss.gap, self.loss, self.loss.retention
        anchored = retention.norm > 0 or retention.fit > 0
        if not (gap.weight or loss.target_lm or anchored or retention.target_kl):
            return {}
        layers = self.layers if gap.weight or anchored else ()
        residuals, predictions = kept_residuals(self.lm, batch, layers, predict=loss.target_lm > 0 or retention.target_kl > 0)
        means: Means = {}
        with self._full_precision():
            factors = self._norm_matching(code, batch, residuals) if gap.weight > 0 and gap.norm_matched else None
            for_gap, for_fit = self._active(residuals, factors)
            if gap.weight > 0:
                read = residuals if factors is None or self._encodes else {layer: x * factors[layer][:, None] for layer, x in residuals.items()}
                means["gap"] = self.gap_means(batch, read, for_gap, sentences)
            if predictions is not None:
                means |= self._prediction_means(code, batch, predictions, kl=retention.target_kl > 0, lm=loss.target_lm > 0)
            if retention.norm > 0:
                means["norm"] = self._norm_means(code, batch, residuals)
            if retention.fit > 0:
                means |= self._fit_means(residuals, for_fit)
        return means

    def _reference_means(self, code: str, batch: TokenBatch, sentences: Int[Tensor, " sentence"]) -> Means:  # noqa: ARG002 (the signature of `_target_means`)
        retention = self.loss.retention
        kl = retention.kl > 0 or retention.limit is not None
        anchored = self.layers if retention.activation > 0 or retention.norm > 0 else ()
        if not (kl or anchored or retention.lm):
            return {}
        residuals, predictions = kept_residuals(self.lm, batch, anchored, predict=kl or retention.lm > 0)
        means: Means = {}
        with self._full_precision():
            if predictions is not None:
                means |= self._prediction_means(code, batch, predictions, kl=kl, lm=retention.lm > 0)
            if retention.activation > 0:
                own = [dictionary.active(residuals[layer]) for layer, dictionary in self.dictionaries.items()]
                means["activation"] = Mean.of(_token_activations(own))
            if retention.norm > 0:
                means["norm"] = self._norm_means(code, batch, residuals)
        return means

    def gap_means(self, batch: TokenBatch, residuals: Residuals, active: list[ActiveLatents], sentences: Int[Tensor, " sentence"]) -> Mean:
        """The mean that the gap term of a target language is computed from.

        Args:
            batch: a part of its text.
            residuals: residuals of the kept tokens after each layer of the loss, with gradient; rescaled if the loss is norm-matched.
            active: their active latents; none if the objective encodes nothing.
            sentences: the sentences of the whole batch.
        """
        gap = self.loss.gap
        match gap.objective:
            case "activation":
                return self._pooled(_token_activations(active), batch)
            case "norm":
                return self._pooled(torch.stack([residuals[layer].norm(dim=-1) for layer in self.layers], dim=1), batch)
            case "profile":
                profile = torch.cat([own.totals() for own in active]).float()
                return Mean(profile, torch.tensor(float(active[0].tokens), device=profile.device))
            case "hinge":
                chosen = [latents.to(self.layer_weights.device) for latents in self.targets.active]
                goals = [mean.to(self.layer_weights.device)[at] for mean, at in zip(self.targets.mean_pre(), chosen, strict=True)]
                pre = [dictionary.folded_pre_activations(residuals[layer]) for layer, dictionary in self.dictionaries.items()]
                short = [pre_activation_hinge(z[:, at], goal) for z, at, goal in zip(pre, chosen, goals, strict=True)]
                return Mean.of(torch.stack(short, dim=1))
            case "contrastive":
                return _sentence_means(torch.stack([residuals[layer] for layer in self.layers], dim=1), batch, sentences.unique().cpu())
            case "diffmean":
                return Mean.of(torch.stack([residuals[layer] for layer in self.layers], dim=1))

    def _active(self, residuals: Residuals, factors: dict[int, Tensor] | None) -> tuple[list[ActiveLatents], list[ActiveLatents]]:
        """The active latents of each layer for the gap term and for the fit term, where these need them, from one encoding where that is possible.

        Args:
            factors: layer -> what the tokens' residuals are multiplied with for the gap term; None: nothing.
        """
        gap, fit = self.loss.gap, self.loss.retention.fit > 0
        encodes = self._encodes
        bandwidth = gap.bandwidth if gap.gradient == "straight_through" else None
        for_gap, for_fit = [], []
        for layer, dictionary in self.dictionaries.items() if encodes or fit else ():
            x = residuals[layer]
            if encodes and fit and factors is not None:
                own, matched = dictionary.active_and_scaled(x, factors[layer], bandwidth=bandwidth)
            else:
                own = dictionary.active(x) if fit else None
                if factors is None and bandwidth is None and own is not None:
                    matched = own
                else:
                    matched = dictionary.active(x if factors is None else x * factors[layer][:, None], bandwidth=bandwidth) if encodes else None
            for_gap += [matched] if encodes else []
            for_fit += [own] if fit else []
        return for_gap, for_fit

    def _pooled(self, values: Float[Tensor, "token layer"], batch: TokenBatch) -> Mean:
        """Mean over tokens, or over sentences of the mean within each. A sentence that occurs twice counts twice."""
        if self.loss.gap.pooling == "token":
            return Mean.of(values)
        occurrence = (batch.first.cumsum(0) - 1).to(values.device)[batch.kept_row.to(values.device)]
        sums = torch.zeros(int(batch.first.sum()), values.shape[1], device=values.device).index_add(0, occurrence, values)
        return Mean.of(sums / torch.bincount(occurrence, minlength=len(sums))[:, None])

    def _norm_matching(self, code: str, batch: TokenBatch, residuals: Residuals) -> dict[int, Float[Tensor, " token"]]:
        norms = self.anchors[code].norms(batch).to(self.layer_weights.device)
        return {layer: factor_to(x, norms[:, row]) for row, (layer, x) in enumerate(residuals.items())}

    def _prediction_means(self, code: str, batch: TokenBatch, predictions: NextTokens, *, kl: bool, lm: bool) -> Means:
        """Means over all positions, from those that were drawn: a sum over these, divided by their share, has the whole sum as its expectation."""
        cached = self.predictions[code].of(batch) if kl and code in self.predictions else None
        base: list[NextTokens] = []  # computed where it is needed first: a pass that is made again needs it no more

        def of(logits: Tensor, rows: slice) -> Tensor:
            columns = []
            if cached is not None:
                columns.append(cached.chosen(rows).kl(logits))
            elif kl:
                base.extend([] if base else [self._base_predictions(batch)])
                with torch.no_grad():
                    before = base[0].logits(rows)
                columns.append(kl_per_token(before, logits))
            if lm:
                columns.append(predictions.nll_of(logits, rows)[:, 0])
            return torch.stack(columns, dim=1)

        totals = predictions.each(of).sum(dim=0) / self.loss.predicted_share
        count = batch.predictable.sum().to(totals.device, totals.dtype)
        return {name: Mean(total, count) for name, total in zip([*["kl"] * kl, *["lm"] * lm], totals.unbind(), strict=True)}

    def _base_predictions(self, batch: TokenBatch) -> NextTokens:
        """With the adapter off, without gradient. No adapter that is trained here reaches the head."""
        with torch.no_grad(), base_behaviour(self.lm.model):
            _, predictions = kept_residuals(self.lm, batch, (), predict=True)
        assert predictions is not None
        return predictions

    def _norm_means(self, code: str, batch: TokenBatch, residuals: Residuals) -> Mean:
        base = self.anchors[code].norms(batch).to(self.layer_weights.device)
        ratios = [squared_log_ratio(residuals[layer].norm(dim=-1), base[:, row]) for row, layer in enumerate(self.layers)]
        return Mean.of(torch.stack(ratios, dim=1))

    def _fit_means(self, residuals: Residuals, active: list[ActiveLatents]) -> Means:
        """Mean squared error of the SAEs, mean squared norm and mean residual, from which FVU is computed."""
        x = torch.stack([residuals[layer] for layer in self.layers], dim=1)
        guess = torch.stack([d.decode_active(own) for d, own in zip(self.dictionaries.values(), active, strict=True)], dim=1)
        values = {"error": (x - guess).square().sum(dim=-1), "square": x.square().sum(dim=-1), "mean": x}
        return {f"fit/{name}": Mean.of(value) for name, value in values.items()}

    def _full_precision(self) -> torch.autocast:
        """Compute in float32, whatever the precision of the passes: in bf16 the loss would have three digits."""
        return torch.autocast(self.layer_weights.device.type, enabled=False)

    # --- terms of means --------------------------------------------------------------------------------------------------------------------------

    def _target_terms(self, code: str, means: Means, sentences: Int[Tensor, " sentence"]) -> Terms:
        terms: Terms = {}
        if "gap" in means:
            terms["gap"] = self.gap(means["gap"], sentences)
        if "lm" in means:
            terms["target_lm"] = means["lm"].value
        if "kl" in means:
            terms["target_kl"] = means["kl"].value
        if "norm" in means:
            terms["norm"] = self.layer_weights @ means["norm"].value
        if "fit/error" in means:
            after = fvu(*(means[f"fit/{name}"].value for name in ("error", "square", "mean")))
            terms["fit"] = fit_loss(after, self.anchors[code].fvu(sentences).to(self.layer_weights.device), self.layer_weights)
        return terms

    def _reference_terms(self, means: Means, sentences: Int[Tensor, " sentence"]) -> Terms:
        terms: Terms = {}
        if "kl" in means:
            terms["retention"] = means["kl"].value
        if "lm" in means:
            terms["reference_lm"] = means["lm"].value
        if "activation" in means:
            before = self.base.reference.activation_of(sentences).to(self.layer_weights.device)
            terms["reference_activation"] = activation_gap(means["activation"].value, before, self.layer_weights, one_sided=False)
        if "norm" in means:
            terms["norm"] = self.layer_weights @ means["norm"].value
        return terms

    def gap(self, mean: Mean, sentences: Int[Tensor, " sentence"]) -> Float[Tensor, ""]:
        """The gap term of one target language from its `gap_means` over the whole batch."""
        gap, targets, weights, own = self.loss.gap, self.targets, self.layer_weights, mean.value
        match gap.objective:
            case "activation":
                return activation_gap(own, targets.activation(gap.pooling).to(own.device), weights, one_sided=gap.side == "one_sided")
            case "norm":
                return activation_gap(own, targets.mean_norm(gap.pooling).to(own.device), weights, one_sided=gap.side == "one_sided")
            case "profile":
                # Every occurrence counts: a batch that reaches into the next epoch may have a sentence twice.
                goals = [goal.to(own.device) for goal in targets.profiles_of(sentences)]
                return profile_gap(own.split([len(goal) for goal in goals]), goals, weights)
            case "hinge":
                return weights @ own
            case "contrastive":
                goals = [goal.to(own.device) for goal in targets.means_of(sentences.unique())]
                return pooled_contrast(own.unbind(dim=1), goals, weights, temperature=gap.temperature)
            case "diffmean":
                return mean_gap(own, targets.mean().to(own.device), weights)


def _token_activations(active: list[ActiveLatents]) -> Float[Tensor, "token layer"]:
    """Total activation of each token: the sum over latents."""
    return torch.stack([own.sums(own.value) for own in active], dim=1).float()


def _sentence_means(values: Float[Tensor, "token ..."], batch: TokenBatch, sentences: Int[Tensor, " sentence"]) -> Mean:
    """Mean over the tokens of each of these sentences (in ascending order). One that is not in this part of the batch adds nothing."""
    place = torch.searchsorted(sentences, batch.kept_sentence).to(values.device)
    sums = torch.zeros(len(sentences), *values.shape[1:], device=values.device).index_add(0, place, values)
    return Mean(sums, torch.bincount(place, minlength=len(sentences)).float())


def _merged(means: dict[str, Means], merge: Merge) -> dict[str, Means]:
    names = [(code, name) for code, own in means.items() for name in own]
    added = merge([tensor for code, name in names for tensor in (means[code][name].total, means[code][name].count)])
    pairs = iter(zip(added[::2], added[1::2], strict=True))
    return {code: {name: Mean(*next(pairs)) for name in own} for code, own in means.items()}
