"""The LightningModule: activation-gap term on the target languages plus retention of the reference, over LoRA adapters."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from torch import Tensor

from lingact.adapters import base_behaviour
from lingact.config import LossConfig, OptimConfig
from lingact.features import encode, kept_residuals, rescaled, token_activation
from lingact.lm import LanguageModel
from lingact.losses import LossTerms, activation_gap, combine, retention_kl
from lingact.sae import Dictionaries
from lingact.tokens import TokenBatch


class GapModule(pl.LightningModule):
    """Trains an adapter so that the target languages activate the SAEs as the reference language does under the base model.

    Args:
        lm: the model with a LoRA adapter attached; only the adapter has gradients.
        dictionaries: the measuring SAEs of the layers in the loss.
        reference_activation: A(l, reference) under the base model, Float[" layer"], in the order of `dictionaries`.
        reference: code of the reference language; the other languages of a batch are targets.
    """

    def __init__(
        self,
        lm: LanguageModel,
        dictionaries: Dictionaries,
        reference_activation: Float[Tensor, " layer"],
        reference: str,
        loss: LossConfig,
        optim: OptimConfig,
        steps: int,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints hold the adapter alone
        self.model = lm.model
        self.reference = reference
        self.loss = loss
        self.optim = optim
        self.steps = steps
        self.history: list[dict[str, float]] = []
        """Every term of every step so far, checkpointed with the adapter."""
        # Kept out of the module tree, so that SAEs are in no checkpoint and no optimiser.
        self._frozen = (lm, dictionaries, reference_activation)

    def on_fit_start(self) -> None:
        """Models come from the hub in eval mode, and Lightning leaves them there."""
        self.model.train()

    def language_activation(self, batch: TokenBatch) -> Float[Tensor, " layer"]:
        """Token-pooled activation of a batch behind each layer of the loss, with gradient."""
        lm, dictionaries, _ = self._frozen
        gap, layers = self.loss.gap, tuple(dictionaries)
        residuals, _ = kept_residuals(lm, batch, layers)
        if gap.norm_matched:
            with torch.no_grad(), base_behaviour(self.model):
                base, _ = kept_residuals(lm, batch, layers)
            residuals = {layer: rescaled(x, base[layer]) for layer, x in residuals.items()}
        bandwidth = gap.bandwidth if gap.gradient == "straight_through" else None
        return torch.stack([token_activation(encode(dictionaries[layer], residuals[layer], straight_through=bandwidth)).mean() for layer in layers])

    def retention(self, batch: TokenBatch) -> Float[Tensor, ""]:
        """KL(base || adapter) on the predictions of the reference language's kept tokens."""
        lm, _, _ = self._frozen
        predicted = batch.keep[:, 1:].to(lm.device)
        with torch.no_grad(), base_behaviour(self.model):
            _, base_logits = lm.residuals(batch, (), logits=True)
        _, logits = lm.residuals(batch, (), logits=True)
        assert base_logits is not None
        assert logits is not None
        return retention_kl(base_logits[:, :-1][predicted], logits[:, :-1][predicted])

    def loss_terms(self, batch: dict[str, TokenBatch]) -> LossTerms:
        """All terms of one batch; the gap term is the mean over target languages."""
        _, _, reference = self._frozen
        one_sided = self.loss.gap.side == "one_sided"
        gaps = [
            activation_gap(self.language_activation(b), reference.to(self.device), one_sided=one_sided)
            for code, b in batch.items()
            if code != self.reference
        ]
        raw = {"gap": torch.stack(gaps).mean(), "retention": self.retention(batch[self.reference])}
        return combine(raw, {"gap": self.loss.gap.weight, "retention": self.loss.retention.weight})

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
        self.history.append({"step": len(self.history)} | {name: float(value) for name, value in logged.items()})
        self.log("loss", terms.total.detach(), prog_bar=True, logger=False, batch_size=1)
        return terms.total

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The history travels with the weights."""
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the history of the saved run."""
        self.history = checkpoint["history"]

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
