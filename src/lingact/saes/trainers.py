"""The SAEs of one set while they are trained: sae-lens's own trainer for each layer, and their common buffer."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.activation_scaler import ActivationWhitening
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from lingact.config.saes import SaeMix, SaeTraining
from lingact.errors import UserError
from lingact.files.atomic import write_json
from lingact.saes.buffer import Residuals, ShuffleBuffer
from lingact.saes.continuation import start_from

_LR_AT_END = 0.1
"""Of the learning rate."""
_THRESHOLD_LR, _SETTLED = 0.02, 10
"""Of the moving average that becomes the threshold of a batch-top-k SAE; where steps are few, so high that it settles this many times over."""
_WARM_UP, _DECAY = 20, 3
"""Steps are divided by these."""


class SetTrainer:
    """One set in training.

    Args:
        training: what all sets have in common.
        mix: of the set; its seed is given.
        inputs: how inputs are scaled, by layer.
        metadata: what the SAEs' files say of model and text.
        init: saved SAEs to begin with, by layer; None: new ones.
    """

    def __init__(
        self,
        training: SaeTraining,
        mix: SaeMix,
        inputs: Mapping[int, ActivationWhitening],
        metadata: dict[str, Any],
        device: str,
        init: Mapping[int, SAE[Any]] | None = None,
    ) -> None:
        assert mix.seed is not None
        self.steps = training.tokens // training.batch_tokens
        self.done = 0
        self._buffer = ShuffleBuffer(training.buffer_tokens, training.batch_tokens, mix.seed)
        self.trainers: dict[int, SAETrainer[Any, Any]] = {}
        self._losses: dict[int, Tensor] = {}
        for layer, whitening in inputs.items():
            torch.manual_seed(mix.seed * 1000 + layer)
            sae = _new_sae(training, mix, len(whitening.mean), metadata | {"hook_name": f"blocks.{layer}.hook_resid_post"}, device)
            if init is not None:
                start_from(init[layer], sae, whitening)
            trainer = SAETrainer(cfg=_trainer_config(training, self.steps, device), sae=sae, data_provider=iter(()))
            trainer.activation_scaler.whitening = whitening
            self.trainers[layer] = trainer

    def add(self, residuals: Residuals) -> None:
        """Train on these residuals as soon as the buffer is full. What comes after the last step is left unread."""
        if self.done < self.steps:
            for batch in self._buffer.add(residuals):
                self._step(batch)

    def finish(self) -> None:
        """Train on what is left in the buffer.

        Raises:
            AssertionError: the text was too short.
        """
        if self.done < self.steps:
            for batch in self._buffer.rest():
                self._step(batch)
        assert self.done == self.steps, f"{self.done} of {self.steps} steps"

    def _step(self, batch: Residuals) -> None:
        if self.done == self.steps:
            return
        for column, trainer in enumerate(self.trainers.values()):
            trainer.maybe_reset_sparsity()
            loss = trainer.step(batch[:, column]).loss
            self._losses[list(self.trainers)[column]] = loss.detach()
            if not loss.isfinite():
                raise UserError(
                    f"the loss of the SAE of layer {list(self.trainers)[column]} is not finite at step {self.done}; give a smaller saes.lr"
                )
            trainer.n_training_steps += 1
        self.done += 1

    def progress(self) -> dict[str, float]:
        """`loss/<layer>` of the last step, in whitened units, and `dead/<layer>`: share of the latents that count as dead in the auxiliary loss."""
        losses = {f"loss/{layer}": float(loss) for layer, loss in self._losses.items()}
        return losses | {f"dead/{layer}": float(trainer.dead_neurons.float().mean()) for layer, trainer in self.trainers.items()}

    def save(self, folder: Path) -> None:
        """Write the SAEs, `layer_<n>`, for use: scaling is folded in, batch-top-k becomes JumpReLU. They cannot be trained further.

        Those that an interrupted run has written stay: they are the same.
        """
        for layer, trainer in self.trainers.items():
            whitening = trainer.activation_scaler.whitening
            assert whitening is not None
            trainer.sae.fold_activation_whitening(whitening.mean, whitening.matrix, whitening.inverse_matrix)
            trainer.activation_scaler.whitening = None
            trainer.set_final_sae_metadata()
            place, unfinished = folder / f"layer_{layer}", folder / f".layer_{layer}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            if place.exists():
                continue
            trainer.sae.save_inference_model(unfinished)
            # sae-lens writes the keys in an order that differs from process to process.
            write_json(unfinished / "cfg.json", dict(sorted(json.loads((unfinished / "cfg.json").read_text(encoding="utf-8")).items())))
            unfinished.replace(place)

    def state(self) -> dict[str, Any]:
        """What `load` needs to go on from here."""
        return {"done": self.done, "buffer": self._buffer.state(), "layers": {layer: _state_of(each) for layer, each in self.trainers.items()}}

    def load(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on from the states of trainers that had the layers of this set between them."""
        of = {layer: (state, column) for state in states for column, layer in enumerate(state["layers"])}
        own = [of[layer] for layer in self.trainers]
        for (layer, trainer), (state, _) in zip(self.trainers.items(), own, strict=True):
            _load_into(trainer, state["layers"][layer])
        if own:
            # The buffers of a set have shuffled alike, whatever layers they hold.
            first, device = own[0][0], next(iter(self.trainers.values())).cfg.device
            self.done = first["done"]
            waiting = [state["buffer"]["waiting"][:, column] for state, column in own if state["buffer"]["waiting"] is not None]
            self._buffer.load({"random": first["buffer"]["random"], "waiting": torch.stack(waiting, dim=1).to(device) if waiting else None})


def _new_sae(training: SaeTraining, mix: SaeMix, d_in: int, metadata: dict[str, Any], device: str) -> Any:
    width, k = mix.width or training.width, mix.k or training.k
    if k >= width:
        raise UserError(f"saes.k: {k} active latents of {width}; k has to be smaller than the width")
    threshold_lr = min(1.0, max(_THRESHOLD_LR, _SETTLED * training.batch_tokens / training.tokens))
    given: dict[str, Any] = {
        "d_in": d_in,
        "d_sae": width,
        "apply_b_dec_to_input": True,
        "normalize_activations": "covariance_whitening",
        "metadata": SAEMetadata(**metadata),
        "device": device,
    }
    own: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {"k": k, "topk_threshold_lr": threshold_lr}),
        "matryoshka": (
            MatryoshkaBatchTopKTrainingSAE,
            MatryoshkaBatchTopKTrainingSAEConfig,
            {"k": k, "topk_threshold_lr": threshold_lr, "matryoshka_widths": [max(k, width // 4), max(k, width // 2), width]},
        ),
        "topk": (TopKTrainingSAE, TopKTrainingSAEConfig, {"k": k}),
        "jumprelu": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, {"l0_coefficient": training.sparsity}),
        "standard": (StandardTrainingSAE, StandardTrainingSAEConfig, {"l1_coefficient": training.sparsity}),
    }
    sae, settings, further = own[training.architecture]
    return sae(settings(**given, **further))


def _trainer_config(training: SaeTraining, steps: int, device: str) -> SAETrainerConfig:
    return SAETrainerConfig(
        total_training_samples=steps * training.batch_tokens,
        train_batch_size_samples=training.batch_tokens,
        lr=training.lr,
        lr_end=training.lr * _LR_AT_END,
        lr_warm_up_steps=steps // _WARM_UP,
        lr_decay_steps=steps // _DECAY,
        dead_feature_window=training.dead_after,
        device=device,
        logger=LoggingConfig(log_to_wandb=False),
    )


_COUNTS = ("n_training_samples", "n_training_steps", "n_frac_active_samples", "started_fine_tuning")
_TENSORS = ("act_freq_scores", "n_forward_passes_since_fired")


def _state_of(trainer: SAETrainer[Any, Any]) -> dict[str, Any]:
    """As sae-lens's `save_trainer_state`, with the weights, in memory."""
    return {
        "sae": trainer.sae.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "lr_scheduler": trainer.lr_scheduler.state_dict(),
        "coefficients": {name: each.state_dict() for name, each in trainer.coefficient_schedulers.items()},
        **{name: getattr(trainer, name) for name in (*_COUNTS, *_TENSORS)},
    }


def _load_into(trainer: SAETrainer[Any, Any], state: dict[str, Any]) -> None:
    trainer.sae.load_state_dict(state["sae"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.lr_scheduler.load_state_dict(state["lr_scheduler"])
    for name, scheduler in trainer.coefficient_schedulers.items():
        scheduler.load_state_dict(state["coefficients"][name])
    for name in _COUNTS:
        setattr(trainer, name, state[name])
    for name in _TENSORS:
        setattr(trainer, name, state[name].to(trainer.cfg.device))
