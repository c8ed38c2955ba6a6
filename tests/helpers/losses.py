"""What the tests of the loss and of training share: a plain loss to add to, and an adapter that has moved already."""

from typing import Any

import torch
import yaml

from lingact.config.training import LoraAdapter, LossConfig
from lingact.models.adapters import attach_adapter
from lingact.models.lm import LanguageModel
from tests.helpers.paths import CONF

DEFAULT = yaml.safe_load((CONF / "loss" / "gap_and_retention.yaml").read_text())
PEFT = yaml.safe_load((CONF / "peft" / "lora.yaml").read_text())
LAYERS, WEIGHTS = (0, 2), torch.tensor([0.25, 0.75])
OFF = {"weight": 0.0}
WEIGHTED = ("kl", "lm", "activation", "norm", "fit", "target_kl")


def loss_of(gap: dict[str, Any], retention: dict[str, Any], **rest: Any) -> LossConfig:
    """The plain gap of weight 1 and nothing else, but for what is given."""
    plain = {"gap": DEFAULT["gap"] | {"weight": 1.0, "norm_matched": False}, "retention": DEFAULT["retention"] | dict.fromkeys(WEIGHTED, 0.0)}
    return LossConfig.model_validate(DEFAULT | {"gap": plain["gap"] | gap, "retention": plain["retention"] | retention} | rest)


def adapted(lm: LanguageModel, dropout: float) -> None:
    """Attach an adapter, unless there is one, and move it away from zero."""
    if hasattr(lm.model, "peft_config"):
        return
    peft = LoraAdapter.model_validate(PEFT | {"r": 2, "alpha": 4, "dropout": dropout, "targets": ("q_proj", "v_proj", "down_proj")})
    lm.model = attach_adapter(lm.model, lm.blocks, peft, 0)
    random = torch.Generator().manual_seed(0)
    for name, parameter in lm.model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=random)
