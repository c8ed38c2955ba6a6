"""The loss of a batch on the tiny model: every term against base-model quantities, in parts, and where gradient goes."""

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from lingact.activations.features import kept_residuals
from lingact.config.training import GapLoss
from lingact.data.corpus import ParallelCorpus
from lingact.data.tokens import TokenBatch, Tokens
from lingact.models.adapter_hashes import weights_hash
from lingact.models.adapters import base_behaviour, train_adapter_only
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries
from lingact.training.base_cache import CacheSettings, cached_anchor, cached_predictions, cached_reference
from lingact.training.base_targets import BaseOutputs
from lingact.training.batch_loss import BatchLoss, Terms
from lingact.training.batches import AlignedBatch
from tests.helpers.losses import LAYERS, OFF, WEIGHTS, adapted, loss_of
from tests.helpers.tiers import first_of, tiers

SENTENCES = [7, 2, 9, 4]
Make = Callable[..., BatchLoss]


@pytest.fixture
def make(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> Make:
    """`make(gap, retention, ...)`: the loss on layers 0 and 2 with an adapter that has moved already; sentences take several windows."""
    lm.tokens = Tokens(lm.tokenizer, 12)
    chosen = {layer: dictionaries[layer] for layer in LAYERS}
    base = cached_reference(lm, chosen, corpus, "en", CacheSettings(64), profiles=True)
    anchors = {code: cached_anchor(lm, chosen, corpus, code, CacheSettings(64)) for code in ("en", "es", "hi")}

    def loss(
        gap: dict[str, Any], retention: dict[str, Any] | None = None, *, shuffled: bool = False, dropout: float = 0.0, top: int = 0, **rest: Any
    ) -> BatchLoss:
        predictions = {code: cached_predictions(lm, corpus, code, CacheSettings(64), top=top) for code in ("en", "es")} if top else {}
        adapted(lm, dropout)
        reference = base.shuffled(0) if shuffled else base
        return BatchLoss(lm, chosen, BaseOutputs(base, reference, predictions, anchors), "en", WEIGHTS, loss_of(gap, retention or {}, **rest))

    return loss


def batch_of(lm: LanguageModel, corpus: ParallelCorpus, codes: tuple[str, ...] = ("es", "en")) -> AlignedBatch:
    windows = {code: lm.tokens.by_sentence(corpus.texts[code]) for code in codes}
    return AlignedBatch(torch.tensor(SENTENCES), {code: lm.tokens.collate([w for s in SENTENCES for w in windows[code][s]]) for code in codes})


@pytest.fixture
def batch(lm: LanguageModel, corpus: ParallelCorpus, make: Make) -> AlignedBatch:  # `make` cuts the context
    return batch_of(lm, corpus)


def total(terms: Terms) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def of_reference(loss: BatchLoss, batch: AlignedBatch) -> float:
    """The gap term if the reference's own text under the base model were the target."""
    with torch.no_grad(), base_behaviour(loss.lm.model):
        residuals, _ = kept_residuals(loss.lm, batch.texts["en"], LAYERS)
    for_gap, _ = loss._active(residuals, None)
    return float(loss.gap(loss.gap_means(batch.texts["en"], residuals, for_gap, batch.sentences), batch.sentences))


@torch.no_grad()
def of_sentences(lm: LanguageModel, batch: TokenBatch, layer: int, *, base: bool = False) -> list[Tensor]:
    """Residuals of each sentence's tokens, in the order of SENTENCES."""
    if base:
        with base_behaviour(lm.model):
            return of_sentences(lm, batch, layer)
    x, _ = kept_residuals(lm, batch, (layer,))
    return [x[layer][batch.kept_sentence == sentence] for sentence in SENTENCES]


def both(lm: LanguageModel, batch: AlignedBatch, layer: int) -> tuple[list[Tensor], list[Tensor]]:
    """The target under the adapter and the reference under the base model."""
    return of_sentences(lm, batch.texts["es"], layer), of_sentences(lm, batch.texts["en"], layer, base=True)


# --- terms against quantities of the same sentences ---


def test_the_profile_aims_at_the_base_model_on_the_same_sentences(
    make: Make, lm: LanguageModel, batch: AlignedBatch, dictionaries: Dictionaries
) -> None:
    found = make({"objective": "profile"}).terms(batch)["gap"]
    expected = 0.0
    for weight, layer in zip(WEIGHTS, LAYERS, strict=True):
        own, aim = (dictionaries[layer].encode(torch.cat(x)).mean(dim=0) for x in both(lm, batch, layer))
        expected += weight * ((own - aim) ** 2).sum() / (aim**2).sum()
    torch.testing.assert_close(found, expected)
    shuffled = make({"objective": "profile"}, shuffled=True, control="shuffled_pairs").terms(batch)["gap"]
    assert abs(shuffled - found) > 0.01 * found


def test_a_sentence_twice_in_a_batch_is_twice_in_the_profile(make: Make, lm: LanguageModel, corpus: ParallelCorpus) -> None:
    windows = lm.tokens.windows(corpus.texts["en"])
    twice = AlignedBatch(torch.tensor([7, 2, 7]), {"en": lm.tokens.collate([w for s in (7, 2, 7) for w in windows if w.sentence == s])})
    assert of_reference(make({"objective": "profile"}), twice) == pytest.approx(0, abs=1e-6)


def test_the_contrast_is_between_translations(make: Make, lm: LanguageModel, batch: AlignedBatch) -> None:
    loss = make({"objective": "contrastive", "temperature": 0.2})
    expected = 0.0
    for weight, layer in zip(WEIGHTS, LAYERS, strict=True):
        own, aim = (torch.stack([tokens.mean(dim=0) for tokens in x]) for x in both(lm, batch, layer))
        scores = torch.nn.functional.cosine_similarity(own[:, None], aim[None], dim=-1) / 0.2
        expected -= weight * (scores.log_softmax(1).diag().mean() + scores.log_softmax(0).diag().mean()) / 2
    torch.testing.assert_close(loss.terms(batch)["gap"], expected)
    # English against itself: every sentence beside its own; beside another one once shuffled.
    shuffled = make({"objective": "contrastive", "temperature": 0.2}, shuffled=True, control="shuffled_pairs")
    assert of_reference(loss, batch) < of_reference(shuffled, batch)


@pytest.mark.parametrize("pooling", ["token", "sentence"])
@pytest.mark.parametrize("objective", ["activation", "norm"])
def test_activation_and_norm_are_pooled_alike_on_both_sides(
    make: Make, lm: LanguageModel, corpus: ParallelCorpus, batch: AlignedBatch, dictionaries: Dictionaries, objective: str, pooling: str
) -> None:
    def pooled(layer: int, sentences: list[Tensor]) -> Tensor:
        values = [dictionaries[layer].encode(x).sum(dim=-1) if objective == "activation" else x.norm(dim=-1) for x in sentences]
        return torch.cat(values).mean() if pooling == "token" else torch.stack([value.mean() for value in values]).mean()

    found = make({"objective": objective, "pooling": pooling}).terms(batch)["gap"]
    everything = lm.tokens.collate(lm.tokens.windows(corpus.texts["en"]))
    expected = 0.0
    for weight, layer in zip(WEIGHTS, LAYERS, strict=True):
        with torch.no_grad(), base_behaviour(lm.model):
            x, _ = kept_residuals(lm, everything, (layer,))
        reference = [x[layer][everything.kept_sentence == s] for s in range(len(corpus.ids))]
        own, _ = both(lm, batch, layer)
        expected += weight * (1 - pooled(layer, own) / pooled(layer, reference)) ** 2
    torch.testing.assert_close(found, expected)


def test_norm_matched_takes_loudness_away(make: Make, lm: LanguageModel, batch: AlignedBatch, dictionaries: Dictionaries) -> None:
    loss = make({"norm_matched": True})
    expected = 0.0
    for weight, layer, aim in zip(WEIGHTS, LAYERS, loss.targets.activation("token"), strict=True):
        x, base = (torch.cat(of_sentences(lm, batch.texts["es"], layer, base=base)) for base in (False, True))
        matched = x * (base.norm(dim=-1) / x.norm(dim=-1))[:, None]
        expected += weight * (1 - dictionaries[layer].encode(matched).sum(dim=-1).mean() / aim) ** 2
    torch.testing.assert_close(loss.terms(batch)["gap"], expected)
    assert loss.terms(batch)["gap"] != make({}).terms(batch)["gap"]


def test_retention_terms_compare_with_the_adapter_off(make: Make, lm: LanguageModel, batch: AlignedBatch, dictionaries: Dictionaries) -> None:
    own = batch.texts["en"]
    raw = make(OFF, {"kl": 1.0, "lm": 1.0, "activation": 1.0, "norm": 1.0}, target_lm=1.0).terms(batch)
    with torch.no_grad():
        scores = lm.model(own.ids, attention_mask=own.attention.long()).logits[:, :-1].log_softmax(-1)
        other = lm.model(batch.texts["es"].ids, attention_mask=batch.texts["es"].attention.long()).logits[:, :-1].log_softmax(-1)
        with base_behaviour(lm.model):
            base = lm.model(own.ids, attention_mask=own.attention.long()).logits[:, :-1].log_softmax(-1)
    predicted = own.keep[:, 1:]
    torch.testing.assert_close(raw["retention"], (base.exp() * (base - scores)).sum(-1)[predicted].mean())
    torch.testing.assert_close(raw["reference_lm"], -scores.gather(2, own.ids[:, 1:, None])[..., 0][predicted].mean())
    torch.testing.assert_close(raw["target_lm"], -other.gather(2, batch.texts["es"].ids[:, 1:, None])[..., 0][batch.texts["es"].keep[:, 1:]].mean())
    activation, norm = 0.0, 0.0
    for weight, layer in zip(WEIGHTS, LAYERS, strict=True):
        after, before = (torch.cat(of_sentences(lm, own, layer, base=base)) for base in (False, True))
        activation += weight * (1 - dictionaries[layer].encode(after).sum() / dictionaries[layer].encode(before).sum()) ** 2
        for code in ("en", "es"):
            after, before = (torch.cat(of_sentences(lm, batch.texts[code], layer, base=base)).norm(dim=-1) for base in (False, True))
            norm += weight * (after / before).log().square().mean() / 2
    torch.testing.assert_close(raw["reference_activation"], activation)
    torch.testing.assert_close(raw["norm"], norm)


def test_the_fit_is_that_of_the_saes_on_the_target(make: Make, lm: LanguageModel, batch: AlignedBatch, dictionaries: Dictionaries) -> None:
    expected = 0.0
    loss = make(OFF, {"fit": 1.0})
    for weight, layer in zip(WEIGHTS, LAYERS, strict=True):
        fvus = []
        for base in (False, True):
            x = torch.cat(of_sentences(lm, batch.texts["es"], layer, base=base))
            sae = dictionaries[layer].sae
            fvus.append((x - sae.decode(sae.encode(x))).square().sum() / (x - x.mean(dim=0)).square().sum())
        expected += weight * max(0, fvus[0] / fvus[1] - 1.001)
    assert expected > 0
    torch.testing.assert_close(loss.terms(batch)["fit"], expected)


def test_kl_on_the_target_and_over_the_top(make: Make, lm: LanguageModel, batch: AlignedBatch) -> None:
    retention = {"kl": 1.0, "target_kl": 1.0}
    exact, whole, few = (make(OFF, retention, top=top).terms(batch) for top in (0, 1000, 3))
    for code, name in (("en", "retention"), ("es", "target_kl")):
        own = batch.texts[code]
        with torch.no_grad():
            scores = lm.model(own.ids, attention_mask=own.attention.long()).logits[:, :-1].log_softmax(-1)
            with base_behaviour(lm.model):
                base = lm.model(own.ids, attention_mask=own.attention.long()).logits[:, :-1].log_softmax(-1)
        torch.testing.assert_close(exact[name], (base.exp() * (base - scores)).sum(-1)[own.keep[:, 1:]].mean())
        torch.testing.assert_close(whole[name], exact[name], rtol=1e-3, atol=1e-5)
        assert 0 < few[name] < exact[name]


def test_terms_are_means_over_the_target_languages(make: Make, lm: LanguageModel, corpus: ParallelCorpus) -> None:
    loss = make({})
    pair = loss.terms(batch_of(lm, corpus, ("es", "hi", "en")))["gap"]
    alone = [loss.terms(batch_of(lm, corpus, (code, "en")))["gap"] for code in ("es", "hi")]
    torch.testing.assert_close(pair, torch.stack(alone).mean())


def test_a_term_that_no_weight_asks_for_is_not_computed(make: Make, batch: AlignedBatch) -> None:
    assert set(make({}, {}).terms(batch)) == {"gap"}
    assert set(make(OFF, {"kl": 1.0}).terms(batch)) == {"retention"}
    assert set(make(OFF, target_lm=1.0).terms(batch)) == {"target_lm"}
    assert set(make(OFF, {"norm": 1.0}).terms(batch)) == {"norm"}


def test_terms_are_in_full_precision_under_autocast(make: Make, batch: AlignedBatch) -> None:
    loss = make({}, {"kl": 1.0})
    with torch.autocast("cpu", torch.bfloat16):
        terms = loss.terms(batch)
        residuals, _ = kept_residuals(loss.lm, batch.texts["es"], LAYERS)
    expected = loss.gap(loss.gap_means(batch.texts["es"], residuals, loss._active(residuals, None)[0], batch.sentences), batch.sentences)
    torch.testing.assert_close(terms["gap"], expected, rtol=1e-6, atol=0)
    assert total(terms).dtype == torch.float32


# --- gradient ---

SETTINGS = {
    "activation": ({}, {}),
    "straight_through": ({"gradient": "straight_through"}, {}),
    "norm_matched": ({"norm_matched": True}, {}),
    "profile": ({"objective": "profile"}, {}),
    "hinge": ({"objective": "hinge"}, {}),
    "contrastive": ({"objective": "contrastive"}, {}),
    "diffmean": ({"objective": "diffmean"}, {}),
    "norm": ({"objective": "norm"}, {}),
    "by_sentence": ({"pooling": "sentence"}, {}),
    "retention": (OFF, {"kl": 1.0, "lm": 1.0, "activation": 1.0, "norm": 1.0, "fit": 1.0, "target_kl": 1.0}),
}


def test_every_objective_is_among_them() -> None:
    assert set(get_args(GapLoss.model_fields["objective"].annotation)) <= {
        loss_of(gap, {}).gap.objective for gap, _ in SETTINGS.values() if gap is not OFF
    }


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("twice", first_of([True, False]), ids=["twice", "distinct"])
@pytest.mark.parametrize("parts", tiers((2,), (1, 2, 3, 100)), ids=len)
def test_in_parts_loss_and_gradient_are_those_of_the_whole(
    name: str, twice: bool, parts: tuple[int, ...], make: Make, lm: LanguageModel, corpus: ParallelCorpus, batch: AlignedBatch
) -> None:
    if twice:  # a batch that straddles two epochs
        windows = {code: lm.tokens.by_sentence(corpus.texts[code]) for code in batch.texts}
        order = [7, 2, 9, 7, 4]
        batch = AlignedBatch(torch.tensor(order), {code: lm.tokens.collate([w for s in order for w in own[s]]) for code, own in windows.items()})
    loss = make(*SETTINGS[name], target_lm=0.5, top=5)
    adapter = [p for p in lm.model.parameters() if p.requires_grad]
    found = {}
    for part in (None, *parts):
        terms = loss.terms(batch, part=part)
        gradient = torch.autograd.grad(total(terms), adapter, allow_unused=True)
        found[part] = terms, torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for g, p in zip(gradient, adapter, strict=True)])
    assert found[None][1].norm() > 0
    for terms, gradient in found.values():
        assert terms.keys() == found[None][0].keys()
        torch.testing.assert_close(terms, found[None][0], rtol=1e-4, atol=1e-6)
        assert (gradient - found[None][1]).norm() < 1e-3 * found[None][1].norm()


@pytest.mark.parametrize("top", [0, 5], ids=["base in each step", "cached"])
def test_a_share_of_the_positions_is_unbiased(top: int, make: Make, lm: LanguageModel, batch: AlignedBatch) -> None:
    """At a share of a third, three phases draw each position once: their mean is the whole, in the terms and in the gradient."""
    retention = {"kl": 1.0, "lm": 1.0, "target_kl": 1.0}
    whole = make(OFF, retention, target_lm=1.0, top=top)
    thin = BatchLoss(lm, whole.dictionaries, whole.base, "en", WEIGHTS, loss_of(OFF, retention, target_lm=1.0, predicted_share=1 / 3))
    adapter = [p for p in lm.model.parameters() if p.requires_grad]

    def found(loss: BatchLoss, given: AlignedBatch, part: int | None) -> tuple[Tensor, Tensor]:
        terms = loss.terms(given, part=part)
        gradient = torch.autograd.grad(total(terms), adapter, allow_unused=True)
        return torch.stack(list(terms.values())).detach(), torch.cat([g.flatten() for g in gradient if g is not None])

    expected = found(whole, batch, None)
    drawn = []
    for phase in (1 / 6, 3 / 6, 5 / 6):
        texts = {code: own.thinned(1 / 3, torch.full((len(own.ids),), phase)) for code, own in batch.texts.items()}
        drawn.append(found(thin, AlignedBatch(batch.sentences, texts), 2))
    terms, gradients = (torch.stack(each) for each in zip(*drawn, strict=True))
    torch.testing.assert_close(terms.mean(dim=0), expected[0], rtol=1e-4, atol=1e-6)
    assert (gradients.mean(dim=0) - expected[1]).norm() < 1e-3 * expected[1].norm()
    assert (terms - expected[0]).abs().max() > 1e-3, "each draw alone is another number"


def test_a_part_at_a_time_is_held_in_memory(make: Make, lm: LanguageModel, batch: AlignedBatch) -> None:
    loss = make({}, {"kl": 1.0})
    seen: list[int] = []
    handle = lm.blocks[0].register_forward_hook(lambda _m, _i, output: seen.append(len(output)))
    try:
        total(loss.terms(batch, part=2)).backward()
    finally:
        handle.remove()
    rows = [len(part.ids) for own in batch.texts.values() for part in own.split(2)]
    assert len(rows) == 4
    assert set(seen) == set(rows)
    assert len(seen) > 4, "read again for the gradient"


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_moves_the_adapter_and_nothing_else(name: str, make: Make, lm: LanguageModel, batch: AlignedBatch, dictionaries: Dictionaries) -> None:
    loss = make(*SETTINGS[name])
    saes = {
        layer: {key: value.clone() for key, value in d.sae.state_dict().items()} | {"norms": d.norms.clone()} for layer, d in dictionaries.items()
    }
    base, buffers = weights_hash(lm.model), {key: value.clone() for key, value in lm.model.named_buffers()}
    adapter = {key: value.detach().clone() for key, value in lm.model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW([p for p in lm.model.parameters() if p.requires_grad], lr=0.003, weight_decay=0)
    total(loss.terms(batch)).backward()
    # What lies behind the last layer of the loss is out of a gap term's reach; nothing does here.
    silent = [key for key, value in lm.model.named_parameters() if value.requires_grad and (value.grad is None or not value.grad.any())]
    assert not silent
    assert len({id(p) for group in optimizer.param_groups for p in group["params"]}) == len(adapter) == 2 * 3 * 3
    optimizer.step()
    assert all(not torch.equal(value, dict(lm.model.named_parameters())[key]) for key, value in adapter.items())
    assert weights_hash(lm.model) == base
    assert all(torch.equal(value, dict(lm.model.named_buffers())[key]) for key, value in buffers.items())
    for layer, before in saes.items():
        assert all(torch.equal(before[key], value) for key, value in dictionaries[layer].sae.state_dict().items())
        assert torch.equal(before["norms"], dictionaries[layer].norms)
        assert not any(p.requires_grad or p.grad is not None for p in dictionaries[layer].sae.parameters())


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "straight_through"])
def test_the_gradient_of_the_whole_loss_against_finite_differences(
    name: str, make: Make, lm: LanguageModel, batch: AlignedBatch, dictionaries: Dictionaries
) -> None:
    for dictionary in dictionaries.values():
        dictionary.sae.threshold.data.zero_()  # the jump of JumpReLU is in the differences, but in no gradient
    loss = make(*SETTINGS[name])
    parameter = next(p for key, p in lm.model.named_parameters() if "layers.0.self_attn.v_proj.lora_B" in key)
    total(loss.terms(batch)).backward()
    assert parameter.grad is not None
    direction = parameter.grad / parameter.grad.norm()

    @torch.no_grad()
    def moved(by: float) -> float:
        before = parameter.clone()
        parameter.add_(by * direction)
        value = float(total(loss.terms(batch)))
        parameter.copy_(before)
        return value

    assert (moved(2e-3) - moved(-2e-3)) / 4e-3 == pytest.approx(parameter.grad.norm().item(), rel=0.03)


def test_which_objectives_reach_a_silent_latent(make: Make, lm: LanguageModel, batch: AlignedBatch, dictionaries: Dictionaries) -> None:
    """One latent below its threshold on every token, all others gone."""
    dictionary = dictionaries[2]
    dictionary.sae.W_dec.data[1:] = 0
    dictionary.norms[1:] = 0
    make({})  # attaches the adapter
    x = torch.cat(of_sentences(lm, batch.texts["es"], 2))

    def gradient(**gap: Any) -> Tensor:
        loss = make({"weight": 1.0} | gap)
        # The reference fired; the target has become silent since.
        residuals = {layer: torch.cat(of_sentences(lm, batch.texts["es"], layer)).requires_grad_(True) for layer in LAYERS}
        loss.layer_weights = torch.tensor([0.0, 1.0])
        loss.targets.profile[1].fill_(1.0)
        loss.targets.firing[1][0] = int(loss.targets.tokens.sum())
        loss.targets.pre[1].fill_(float(loss.targets.tokens.sum()) * float(pre.max() + 1))
        loss.gap(loss.gap_means(batch.texts["es"], residuals, loss._active(residuals, None)[0], batch.sentences), batch.sentences).backward()
        grad = residuals[2].grad
        return torch.zeros_like(x) if grad is None else grad

    dictionary.sae.b_enc.data[0] += 1 - dictionary.pre_activations(x)[:, 0].min()
    pre = dictionary.pre_activations(x)[:, 0]
    assert pre.min() > 0.9
    dictionary.sae.threshold.data[0] = pre.max() * 1.01
    assert (dictionary.encode(x) == 0).all()
    assert not gradient().any()
    assert not gradient(objective="profile").any()
    assert gradient(gradient="straight_through", bandwidth=1.0).abs().sum(dim=-1).min() > 0
    assert gradient(objective="profile", gradient="straight_through", bandwidth=1.0).any()
    assert gradient(objective="hinge").abs().sum(dim=-1).min() > 0
    # Only as far as the window goes.
    near = pre > 0.8 * dictionary.sae.threshold[0]
    assert 0 < near.sum() < len(near)
    assert (gradient(gradient="straight_through", bandwidth=0.2).abs().sum(dim=-1) > 0).tolist() == near.tolist()


def test_dropout_is_the_adapters_alone(make: Make, lm: LanguageModel, batch: AlignedBatch) -> None:
    make({}, dropout=0.5)
    train_adapter_only(lm.model)
    assert {name.rsplit(".", 2)[-2] for name, m in lm.model.named_modules() if isinstance(m, torch.nn.Dropout) and m.training} == {"lora_dropout"}
    assert not any(m.training for name, m in lm.model.named_modules() if "lora" not in name and not hasattr(m, "lora_A"))
    one, other = (of_sentences(lm, batch.texts["es"], 2) for _ in range(2))
    assert not torch.equal(one[0], other[0])
    one, other = (of_sentences(lm, batch.texts["es"], 2, base=True) for _ in range(2))
    assert torch.equal(one[0], other[0])
