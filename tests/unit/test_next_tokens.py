"""Predictions at chosen positions: logits some at a time, against the plain forward pass; shares of positions, drawn without bias."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPTNeoXConfig,
    GraniteConfig,
)

from lingact.activations.functional import kl_per_token
from lingact.config.training import LoraAdapter
from lingact.data.corpus import ParallelCorpus
from lingact.data.tokens import TokenBatch
from lingact.models import next_tokens
from lingact.models.adapters import attach_adapter
from lingact.models.lm import LanguageModel, find_blocks
from lingact.models.next_tokens import NextTokens, Remembered

SHAPE = {
    "vocab_size": 259, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "initializer_range": 0.5,
}  # fmt: skip


@pytest.fixture
def batch(lm: LanguageModel, corpus: ParallelCorpus) -> TokenBatch:
    return lm.tokens.collate(lm.tokens.windows(corpus.texts["hi"][:5]))


def plain(lm: LanguageModel, batch: TokenBatch) -> Tensor:
    """All logits, then those that count."""
    return lm.model(input_ids=batch.ids, attention_mask=batch.attention.long()).logits[:, :-1][batch.keep[:, 1:]]


def predictions_of(lm: LanguageModel, batch: TokenBatch) -> NextTokens:
    _, found = lm.residuals(batch, (), predict=True)
    assert found is not None
    return found


@pytest.mark.parametrize("at_once", [1, 3 * 259, 1 << 26], ids=["one", "three", "all"])
@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=2.0),
        CohereConfig(**SHAPE, logit_scale=0.3),
        GraniteConfig(**SHAPE, logits_scaling=4.0),
        GPTNeoXConfig(**SHAPE),
    ],
    ids=lambda config: config.model_type,
)
def test_logits_are_those_of_the_model_whatever_it_does_with_them(
    config: Any, at_once: int, lm: LanguageModel, batch: TokenBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    other = LanguageModel(model, lm.tokenizer, lm.tokens, find_blocks(model, 2), {})
    monkeypatch.setattr(next_tokens, "LOGITS_AT_ONCE", at_once)
    monkeypatch.setattr(next_tokens, "_WORKED_ON_AT_ONCE", 40 * 259)
    sizes: list[int] = []

    def of(logits: Tensor, rows: slice) -> Tensor:
        sizes.append(len(logits))
        return logits

    with torch.no_grad():
        expected, found = plain(other, batch), predictions_of(other, batch)
        torch.testing.assert_close(found.logits(), expected)
        torch.testing.assert_close(found.each(of), expected)
        nll = torch.nn.functional.cross_entropy(expected, batch.ids[:, 1:][batch.keep[:, 1:]], reduction="none")
        torch.testing.assert_close(found.nll(), nll)
    assert max(sizes) == min(len(expected), max(1, at_once // 259), 40)
    assert not any(module._forward_pre_hooks or "forward" in vars(module) for module in model.modules()), "the model is as it was"


@pytest.fixture
def gradients(lm: LanguageModel, batch: TokenBatch) -> Callable[[Callable[[], Tensor]], Tensor]:
    """The gradient of a scalar with respect to an adapter, all of it in a row."""
    peft = LoraAdapter(kind="lora", r=2, alpha=4, dropout=0.0, use_rslora=False, use_dora=False, init="gaussian", targets=("q_proj",), layers="all")
    lm.model = attach_adapter(lm.model, lm.blocks, peft, seed=0)
    adapter = [p for p in lm.model.parameters() if p.requires_grad]
    for name, parameter in lm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    return lambda value: torch.cat([gradient.flatten() for gradient in torch.autograd.grad(value(), adapter)])


def test_gradients_are_those_of_the_whole(
    gradients: Callable[[Callable[[], Tensor]], Tensor], lm: LanguageModel, batch: TokenBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(next_tokens, "LOGITS_AT_ONCE", 7 * 259)
    monkeypatch.setattr(next_tokens, "_WORKED_ON_AT_ONCE", 2 * 259)
    before = torch.randn(int(batch.predicts.sum()), 259, generator=torch.Generator().manual_seed(0))
    weights = torch.linspace(1, 2, len(before))

    def whole() -> Tensor:
        logits = plain(lm, batch)
        nll = torch.nn.functional.cross_entropy(logits, batch.target, reduction="none")
        return weights @ kl_per_token(before, logits) + 3 * nll.square().sum()

    def in_chunks() -> Tensor:
        found = predictions_of(lm, batch)
        both = found.each(lambda logits, rows: torch.cat([kl_per_token(before[rows], logits)[:, None], found.nll_of(logits, rows)], dim=1))
        return weights @ both[:, 0] + 3 * both[:, 1].square().sum()

    torch.testing.assert_close(in_chunks(), whole())
    expected = gradients(whole)
    assert (gradients(in_chunks) - expected).norm() < 1e-5 * expected.norm()


def test_what_is_read_again_for_the_gradient_is_not_computed_again(
    gradients: Callable[[Callable[[], Tensor]], Tensor], lm: LanguageModel, batch: TokenBatch
) -> None:
    calls: list[int] = []

    def of(logits: Tensor, rows: slice) -> Tensor:
        calls.append(len(logits))
        return logits.logsumexp(dim=-1)[:, None]

    def read(given: TokenBatch) -> Tensor:
        found = predictions_of(lm, given)
        return found.each(of).sum() + found.nll().sum()

    def in_parts() -> Tensor:
        return torch.stack([checkpoint(read, part, use_reentrant=False, context_fn=Remembered().contexts) for part in batch.split(2)]).sum()

    expected = gradients(lambda: read(batch))
    calls.clear()
    assert (gradients(in_parts) - expected).norm() < 1e-5 * expected.norm()
    assert sum(calls) == int(batch.predicts.sum())


# --- a share of the positions ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.25, 0.4, 1.0])
def test_every_position_is_drawn_as_often_as_the_share_says(share: float, batch: TokenBatch) -> None:
    draws = 400
    counts = sum(batch.thinned(share, torch.full((len(batch.ids),), (draw + 0.5) / draws)).predicts.double() for draw in range(draws))
    assert isinstance(counts, Tensor)
    assert (counts[batch.predicts] / draws - share).abs().max() < 0.01
    assert counts[~batch.predicts].sum() == 0


def test_the_number_of_positions_hardly_varies_and_parts_draw_as_the_whole(batch: TokenBatch) -> None:
    thinned = batch.thinned(0.3, torch.rand(len(batch.ids), generator=torch.Generator().manual_seed(0)))
    of_row, drawn = batch.predicts.sum(dim=1), thinned.predicts.sum(dim=1)
    assert ((drawn - 0.3 * of_row).abs() <= 1).all()
    parts = torch.cat([part.predicted_sentence for part in thinned.split(2)])
    assert torch.equal(parts, thinned.predicted_sentence)
    assert torch.equal(torch.cat([part.target for part in thinned.split(2)]), thinned.target)
    assert torch.equal(thinned.target, batch.ids[:, 1:][thinned.predicts[:, :-1]])
