"""The LightningModule: the combined loss of an adapter, the weights of its terms over the steps, and the content of a checkpoint."""

import math
from collections.abc import Callable
from typing import Any, TypedDict

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.autograd.function import FunctionCtx
from tqdm import tqdm

from lingact.activations.functional import LossTerms, combine
from lingact.config.training import OptimConfig, TrainerConfig
from lingact.errors import UserError, out_of_memory
from lingact.models.adapters import train_adapter_only, without_adapter
from lingact.runtime.compat.huggingface import recompute_activations
from lingact.runtime.compat.lightning import leave_out_of_ddp
from lingact.training.batch_loss import BatchLoss
from lingact.training.batches import AlignedBatch

CLOSED_OVER = 10
"""Steps over which `stop_when_closed` averages the gap term."""


class Diverged(Exception):
    """The loss or its gradient is not finite. The adapter is as it was before that step."""

    def __init__(self, step: int, what: str, sentences: list[int]) -> None:
        super().__init__(f"step {step}: {what}")
        self.step, self.what, self.sentences = step, what, sentences


class ScheduleSettings(TypedDict):
    """A schedule as Lightning takes it."""

    scheduler: torch.optim.lr_scheduler.LambdaLR
    interval: str


class OptimizerSettings(TypedDict):
    """An optimiser with its schedule as Lightning takes it."""

    optimizer: torch.optim.Optimizer
    lr_scheduler: ScheduleSettings


class GapModule(pl.LightningModule):
    """Trains an adapter so that the target languages come closer to the reference language under the base model.

    Args:
        batch_loss: the terms. Its model has an adapter attached, and only the adapter has gradients.
        seed: seed of the adapter's dropout.
    """

    def __init__(self, batch_loss: BatchLoss, optim: OptimConfig, trainer: TrainerConfig, seed: int) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints contain only the adapter
        self.model = batch_loss.lm.model
        # Not an nn.Module, so that SAEs are in no checkpoint and no optimiser.
        self.batch_loss = batch_loss
        self.loss = batch_loss.loss
        self.optim = optim
        self.steps = trainer.steps
        self.part = trainer.micro_batch
        """Sentences that are read at once; halved when memory runs out. None: all."""
        self.checkpointing = trainer.activation_checkpointing
        self.strategy = trainer.strategy
        self.seed = seed
        self.multiplier = self.loss.retention.kl
        """Weight of the KL term. It is adapted if `retention.limit` is set."""
        self.history: list[dict[str, float]] = []
        """Every term of every step so far; part of the checkpoint."""

    # --- one step --------------------------------------------------------------------------------------------------------------------------------

    def loss_terms(self, batch: AlignedBatch) -> LossTerms:
        """All terms of one batch, with the weights of this step."""
        merge = self._over_processes if self.trainer.world_size > 1 else None
        raw = self.batch_loss.terms(batch, part=self.part, merge=merge)
        retention = self.loss.retention
        weights = {
            "gap": self.loss.gap.weight * min(1.0, (self.global_step + 1) / (self.loss.warm_up + 1)),
            "target_lm": self.loss.target_lm,
            "retention": self.multiplier,
            "reference_lm": retention.lm,
            "reference_activation": retention.activation,
            "norm": retention.norm,
            "fit": retention.fit,
            "target_kl": retention.target_kl,
        }
        return combine(raw, {name: weights[name] for name in raw})

    def _over_processes(self, tensors: list[Tensor]) -> list[Tensor]:
        """Sum over processes, with gradient, in one message."""
        # Every process has the same loss. Its gradients add up here and are averaged by DDP, which together is the gradient of one process.
        flat = _SumOverProcesses.apply(torch.cat([tensor.flatten() for tensor in tensors]))
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    # --- called by Lightning --------------------------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """With the strategy fsdp, divide the base weights among the processes. DDP then handles only the adapter."""
        if self.strategy == "fsdp" and self.trainer.world_size > 1:
            self.batch_loss.lm.shard()
            leave_out_of_ddp(self, [name for name, parameter in self.named_parameters() if not parameter.requires_grad])

    def cpu(self) -> "GapModule":
        """Lightning moves the model here after training. A sharded one is not moved: in an interrupted pass that would fail."""
        return self if self.batch_loss.lm.sharded else super().cpu()

    def on_fit_start(self) -> None:
        """Use dropout in the adapter only: the targets were computed, and KL is compared, without dropout in the base model."""
        train_adapter_only(self.model)
        if self.checkpointing:
            recompute_activations(without_adapter(self.model), on=True)
            # transformers recomputes only blocks in train mode. The modules inside stay in eval mode.
            for block in self.batch_loss.lm.blocks:
                block.training = True

    def on_fit_end(self) -> None:
        """Go back to eval mode for measuring."""
        if self.checkpointing:
            recompute_activations(without_adapter(self.model), on=False)
        self.model.eval()

    def on_train_start(self) -> None:
        """Stop at once if the resumed run had already stopped because the gap was closed."""
        self._stop_when_closed()

    def training_step(self, batch: AlignedBatch, _index: int) -> Tensor:
        """The loss of one step.

        Raises:
            Diverged: it is not finite.
        """
        # Dropout depends on seed, step and process only: a step that is resumed, or tried again with less memory, is the same.
        torch.manual_seed((self.seed * 1_000_003 + self.global_step) * 1009 + self.global_rank)
        terms = self.loss_terms(batch)
        self._row = {"step": self.global_step, "loss/total": float(terms.total.detach())}
        self._row |= {f"loss/raw/{name}": float(value.detach()) for name, value in terms.raw.items()}
        self._row |= {f"loss/weighted/{name}": float(value.detach()) for name, value in terms.weighted.items()}
        if self.loss.retention.limit is not None:
            self._row["multiplier"] = self.multiplier
        if not math.isfinite(self._row["loss/total"]):
            wrong = [name for name, value in terms.raw.items() if not value.isfinite()]
            raise Diverged(self.global_step, f"the loss is {self._row['loss/total']} ({', '.join(wrong)})", self._sentences)
        return terms.total

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Tensor | None] | None = None,
    ) -> None:
        """One optimiser step. If memory runs out, it is tried again with parts of half as many sentences.

        The loss is a function of means over the batch, so smaller parts change only its rounding, and the draws of dropout if there is any.
        """
        assert optimizer_closure is not None

        def with_smaller_parts() -> Tensor | None:
            while True:
                try:
                    return optimizer_closure()
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
                    message = str(error)
                # Outside of the except block, where the error no longer refers to tensors of the step.
                self._halve_parts(message)

        super().optimizer_step(epoch, batch_idx, optimizer, with_smaller_parts)
        # Before the end of the batch, when the checkpoint is written.
        self.history.append(self._row)

    def _halve_parts(self, message: str) -> None:
        sentences = -(-len(self._sentences) // self.trainer.world_size)
        now = min(self.part or sentences, sentences)
        if now == 1 or self.trainer.world_size > 1:
            # Other processes wait in the middle of the step, so this one cannot begin it again.
            raise UserError(
                f"out of memory with {now} of {sentences} sentences at a time (trainer.micro_batch): {message.splitlines()[0]}. Give "
                f"trainer.activation_checkpointing=true, {'a smaller trainer.micro_batch' if now > 1 else 'a shorter model.context'}, or use a "
                "larger device"
            )
        self.part = now // 2
        self.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        tqdm.write(f"Out of memory at step {self.global_step}: going on with {self.part} of {sentences} sentences at a time (trainer.micro_batch)")

    def on_train_batch_start(self, batch: AlignedBatch, batch_idx: int) -> None:  # noqa: ARG002 (Lightning's signature)
        """Keep the sentences for messages."""
        self._sentences = batch.sentences.tolist()

    def on_after_backward(self) -> None:
        """Refuse a gradient that would damage the adapter, while the state after the last step can still be saved (`CheckpointCallback`).

        Raises:
            Diverged: a gradient is not finite.
        """
        # float16 training scales its gradients and skips infinite ones.
        if self.trainer.precision != "16-mixed":
            wrong = [name for name, p in self.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
            if wrong:
                raise Diverged(self.global_step, f"the gradient of {len(wrong)} weights is not finite, such as {wrong[0]}", self._sentences)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: ARG002 (Lightning's signature)
        """Dual ascent on the constraint KL <= limit.

        The multiplier grows while KL is above the limit and shrinks, but not below 0, while KL is below it.
        """
        retention = self.loss.retention
        if retention.limit is not None:
            self.multiplier = max(0.0, self.multiplier + retention.rate * (self._row["loss/raw/retention"] - retention.limit))

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: AlignedBatch, batch_idx: int) -> None:  # noqa: ARG002 (Lightning's signature)
        """Log every term raw and weighted, and the multiplier; stop if the gap is closed and `stop_when_closed` is set."""
        self.log_dict({name: value for name, value in self._row.items() if name != "step"}, batch_size=1)
        self.log("loss", self._row["loss/total"], prog_bar=True, logger=False, batch_size=1)
        self._stop_when_closed()

    def _stop_when_closed(self) -> None:
        gap = self.loss.gap
        if not gap.stop_when_closed or len(self.history) < CLOSED_OVER:
            return
        recent = [row["loss/raw/gap"] for row in self.history[-CLOSED_OVER:]]
        if sum(recent) / len(recent) < gap.tolerance:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save history, multiplier and size of the parts. The history is copied because a checkpoint may be written steps later."""
        checkpoint["history"] = list(self.history)
        checkpoint["multiplier"] = self.multiplier
        checkpoint["part"] = self.part

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue with the values of the saved run, or with smaller parts if this machine needs them."""
        self.history = checkpoint["history"]
        self.multiplier = checkpoint["multiplier"]
        self.part = min((part for part in (checkpoint["part"], self.part) if part is not None), default=None)

    def configure_optimizers(self) -> OptimizerSettings:
        """AdamW on the adapter, with a linear warm-up and a cosine decay to zero.

        transformers' `get_cosine_schedule_with_warmup` is not used: its first step has a rate of zero, and its cosine is rounded in another order, so
        that learning rates would differ in the last bit from those of earlier runs.
        """
        trainable = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=self.optim.lr, weight_decay=self.optim.weight_decay)
        warmup = self.optim.warmup_steps

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor), "interval": "step"}}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The adapter's weights only."""
        trainable = {name for name, p in self.named_parameters() if p.requires_grad}
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in trainable}


class _SumOverProcesses(torch.autograd.Function):
    """Sum over processes, in both directions: the gradient of a sum is the sum of the gradients.

    torch's public function for it, `torch.distributed.nn.functional.all_reduce`, warns since 2.13 that it is deprecated and names a private module.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, tensor: Tensor) -> Tensor:  # noqa: ARG004 (autograd's signature)
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Tensor:  # noqa: ARG004 (autograd's signature)
        total = grads[0].clone()
        torch.distributed.all_reduce(total)
        return total
