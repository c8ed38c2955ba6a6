"""Ways to make a training step of the default loss, with its gradient."""

from collections.abc import Callable
from dataclasses import replace

import torch
import yaml

from benchmarks.setting import CONF, Setting, load, random_saes, text
from lingact.config.training import LoraAdapter, LossConfig
from lingact.data.corpus import ParallelCorpus
from lingact.models.adapters import attach_adapter, base_behaviour, train_adapter_only
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries
from lingact.training.base_cache import CacheSettings, cached_anchor, cached_predictions, cached_reference
from lingact.training.base_targets import BaseOutputs
from lingact.training.batch_loss import BatchLoss
from lingact.training.batches import AlignedBatches

SENTENCES, CODES = 8, ("en", "ml")
Step = Callable[[], float]
"""Returns the length of the gradient."""


def lingact_step(lm: LanguageModel, saes: Dictionaries, corpus: ParallelCorpus, *, batch_tokens: int, part: int | None, share: float) -> Step:
    """As train.py makes it: base outputs from the cache, logits in chunks.

    Args:
        part: sentences that are read at once; None: all.
        share: of the positions at which KL terms are computed.
    """
    loss = loss_of(lm, saes, corpus, batch_tokens=batch_tokens, share=share)
    batches = AlignedBatches(lm.tokens, corpus.speaking(CODES), sentences=SENTENCES, count=1, seed=0, predicted_share=share)

    def step() -> float:
        lm.model.zero_grad()
        torch.stack(list(loss.terms(batches[0], part=part).values())).sum().backward()
        return _gradient(lm)

    return step


def loss_of(lm: LanguageModel, saes: Dictionaries, corpus: ParallelCorpus, *, batch_tokens: int, share: float = 1.0) -> BatchLoss:
    """The default loss with its base outputs; the model gets an adapter."""
    settings = CacheSettings(batch_tokens)
    reference = cached_reference(lm, saes, corpus, "en", settings, profiles=False)
    predictions = {code: cached_predictions(lm, corpus, code, settings, top=64) for code in CODES}
    anchors = {code: cached_anchor(lm, saes, corpus, code, settings) for code in CODES}
    _attach(lm)
    written = yaml.safe_load((CONF / "loss" / "gap_and_retention.yaml").read_text()) | {"predicted_share": share}
    weights = torch.full((len(saes),), 1 / len(saes), device=lm.device)
    return BatchLoss(lm, saes, BaseOutputs(reference, reference, predictions, anchors), "en", weights, LossConfig.model_validate(written))


def plain_step(lm: LanguageModel, saes: Dictionaries, corpus: ParallelCorpus, *, part: int | None) -> Step:
    """As a script makes it: the base model runs in every step, full logits, an encoder for each term."""
    _attach(lm)
    batch = AlignedBatches(lm.tokens, corpus.speaking(CODES), sentences=SENTENCES, count=1, seed=0)[0]

    def step() -> float:
        lm.model.zero_grad()
        for code, whole in batch.texts.items():
            for own in whole.split(part) if part else [whole]:
                text = own.to(lm.device)
                given = {"input_ids": text.ids, "attention_mask": text.attention.long(), "use_cache": False, "output_hidden_states": True}
                with torch.no_grad(), base_behaviour(lm.model):
                    before = lm.model(**given)
                after = lm.model(**given)
                total = torch.zeros((), device=lm.device)
                for layer, dictionary in saes.items():
                    old, new = (output.hidden_states[layer + 1][text.keep].float() for output in (before, after))
                    if code != "en":
                        total = total + (1 - dictionary.encode(new).sum(dim=-1).mean() / dictionary.encode(old).sum(dim=-1).mean()).square()
                        total = total + (new - dictionary.decode(dictionary.encode(new))).square().mean()
                    total = total + (new.norm(dim=-1) / old.norm(dim=-1)).log().square().mean()
                log_p, log_q = (output.logits[:, :-1][text.keep[:, 1:]].float().log_softmax(dim=-1) for output in (before, after))
                (total + (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()).backward()
        return _gradient(lm)

    return step


def lingact(setting: Setting) -> Step:
    """All positions."""
    return _lingact(setting, 1.0)


def quarter(setting: Setting) -> Step:
    """KL at a quarter of the positions."""
    return _lingact(setting, 0.25)


def plain(setting: Setting) -> Step:
    """See `plain_step`."""
    return plain_step(*_given(setting), part=SENTENCES // 2)


WAYS = {"lingact": lingact, "lingact_quarter": quarter, "plain_step": plain}


def tokens(lm: LanguageModel, corpus: ParallelCorpus) -> int:
    """Tokens of a step."""
    batch = AlignedBatches(lm.tokens, corpus.speaking(CODES), sentences=SENTENCES, count=1, seed=0)[0]
    return sum(text.size() for text in batch.texts.values())


def _lingact(setting: Setting, share: float) -> Step:
    return lingact_step(*_given(setting), batch_tokens=512, part=SENTENCES // 2, share=share)


def _given(setting: Setting) -> tuple[LanguageModel, Dictionaries, ParallelCorpus]:
    lm, corpus = load(setting), text(replace(setting, sentences=SENTENCES))
    count = len(lm.blocks)
    return lm, random_saes(lm, corpus, setting.width, (count // 3, 2 * count // 3)), corpus


def _attach(lm: LanguageModel) -> None:
    if hasattr(lm.model, "peft_config"):
        return
    peft = LoraAdapter.model_validate(yaml.safe_load((CONF / "peft" / "lora.yaml").read_text()))
    lm.model = attach_adapter(lm.model, lm.blocks, peft, 0)
    train_adapter_only(lm.model)


def _gradient(lm: LanguageModel) -> float:
    return float(torch.stack([p.grad.norm() for p in lm.model.parameters() if p.grad is not None]).norm())
