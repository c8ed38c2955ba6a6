"""The loss of a batch on the tiny model: every term against base-model quantities, where gradient goes, the multiplier, and the stop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from lingact.adapters import attach_adapter, base_behaviour, train_adapter_only, weights_hash
from lingact.config import LoraAdapter, LossConfig, OptimConfig
from lingact.corpus import ParallelCorpus
from lingact.data import AlignedBatches
from lingact.features import kept_residuals
from lingact.lm import LanguageModel
from lingact.module import GapModule
from lingact.reference import freeze_reference
from lingact.sae import Dictionaries
from lingact.tokens import TokenBatch, Tokens

DEFAULT = yaml.safe_load((Path(__file__).parents[2] / "conf" / "loss" / "gap_and_retention.yaml").read_text())
LAYERS, WEIGHTS = (0, 2), torch.tensor([0.25, 0.75])
SENTENCES = [7, 2, 9, 4]
OFF = {"weight": 0.0}
Make = Callable[..., GapModule]


def loss_of(gap: dict[str, Any], retention: dict[str, Any], **rest: Any) -> LossConfig:
    return LossConfig.model_validate(DEFAULT | {"gap": DEFAULT["gap"] | gap, "retention": DEFAULT["retention"] | {"kl": 0.0} | retention} | rest)


@pytest.fixture
def make(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> Make:
    """`make(gap, retention, ...)`: a module on layers 0 and 2 with an adapter that has moved already; sentences take several windows."""
    lm.tokens = Tokens(lm.tokenizer, 12)
    chosen = {layer: dictionaries[layer] for layer in LAYERS}
    frozen = freeze_reference(lm, chosen, corpus, "en", batch_tokens=64)

    def module(
        gap: dict[str, Any], retention: dict[str, Any] | None = None, *, shuffled: bool = False, dropout: float = 0.0, **rest: Any
    ) -> GapModule:
        if not hasattr(lm.model, "peft_config"):
            targets = ("q_proj", "v_proj", "down_proj")
            peft = LoraAdapter(
                kind="lora", r=2, alpha=4, dropout=dropout, use_rslora=False, use_dora=False, init="default", targets=targets, layers="all"
            )
            lm.model = attach_adapter(lm.model, lm.blocks, peft, 0)
            random = torch.Generator().manual_seed(0)
            for name, parameter in lm.model.named_parameters():
                if "lora_B" in name:
                    parameter.data = 0.05 * torch.randn(parameter.shape, generator=random)
        reference = frozen.shuffled(0) if shuffled else frozen
        optim = OptimConfig(lr=0.003, weight_decay=0, warmup_steps=0)
        return GapModule(lm, chosen, reference, "en", WEIGHTS, loss_of(gap, retention or {}, **rest), optim, 20)

    return module


def batch_of(lm: LanguageModel, corpus: ParallelCorpus, codes: tuple[str, ...] = ("es", "en")) -> dict[str, TokenBatch]:
    windows = {code: lm.tokens.windows(corpus.texts[code]) for code in codes}
    return {code: lm.tokens.collate([w for s in SENTENCES for w in windows[code] if w.sentence == s]) for code in codes}


@pytest.fixture
def batch(lm: LanguageModel, corpus: ParallelCorpus, make: Make) -> dict[str, TokenBatch]:  # `make` cuts the context
    return batch_of(lm, corpus)


@torch.no_grad()
def of_sentences(lm: LanguageModel, batch: TokenBatch, layer: int, *, base: bool = False) -> list[Tensor]:
    """Residuals of each sentence's tokens, in the order of SENTENCES."""
    if base:
        with base_behaviour(lm.model):
            return of_sentences(lm, batch, layer)
    x, _ = kept_residuals(lm, batch, (layer,))
    return [x[layer][batch.kept_sentence == sentence] for sentence in SENTENCES]


def both(lm: LanguageModel, batch: dict[str, TokenBatch], layer: int) -> tuple[list[Tensor], list[Tensor]]:
    """The target under the adapter and the reference under the base model."""
    return of_sentences(lm, batch["es"], layer), of_sentences(lm, batch["en"], layer, base=True)


# --- terms against quantities of the same sentences ---


def test_the_profile_aims_at_the_base_model_on_the_same_sentences(
    make: Make, lm: LanguageModel, batch: dict[str, TokenBatch], dictionaries: Dictionaries
) -> None:
    found = make({"objective": "profile"}).loss_terms(batch).raw["gap"]
    expected = 0.0
    for weight, layer in zip(WEIGHTS, LAYERS, strict=True):
        own, aim = (dictionaries[layer].encode(torch.cat(x)).mean(dim=0) for x in both(lm, batch, layer))
        expected += weight * ((own - aim) ** 2).sum() / (aim**2).sum()
    torch.testing.assert_close(found, expected)
    shuffled = make({"objective": "profile"}, shuffled=True, control="shuffled_pairs").loss_terms(batch).raw["gap"]
    assert abs(shuffled - found) > 0.01 * found


def test_a_sentence_twice_in_a_batch_is_twice_in_the_profile(make: Make, lm: LanguageModel, corpus: ParallelCorpus) -> None:
    windows = lm.tokens.windows(corpus.texts["en"])
    twice = lm.tokens.collate([w for s in (7, 2, 7) for w in windows if w.sentence == s])
    module = make({"objective": "profile"})
    residuals, _ = module._base(twice, LAYERS)
    torch.testing.assert_close(module.gap(twice, residuals), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_the_contrast_is_between_translations(make: Make, lm: LanguageModel, batch: dict[str, TokenBatch]) -> None:
    module = make({"objective": "contrastive", "temperature": 0.2})
    expected = 0.0
    for weight, layer in zip(WEIGHTS, LAYERS, strict=True):
        own, aim = (torch.stack([tokens.mean(dim=0) for tokens in x]) for x in both(lm, batch, layer))
        scores = torch.nn.functional.cosine_similarity(own[:, None], aim[None], dim=-1) / 0.2
        expected -= weight * (scores.log_softmax(1).diag().mean() + scores.log_softmax(0).diag().mean()) / 2
    torch.testing.assert_close(module.loss_terms(batch).raw["gap"], expected)
    # English against itself: every sentence beside its own; beside another one once shuffled.
    residuals, _ = module._base(batch["en"], LAYERS)
    shuffled = make({"objective": "contrastive", "temperature": 0.2}, shuffled=True, control="shuffled_pairs")
    assert module.gap(batch["en"], residuals) < shuffled.gap(batch["en"], residuals)


@pytest.mark.parametrize("pooling", ["token", "sentence"])
@pytest.mark.parametrize("objective", ["activation", "norm"])
def test_activation_and_norm_are_pooled_alike_on_both_sides(
    make: Make, lm: LanguageModel, corpus: ParallelCorpus, batch: dict[str, TokenBatch], dictionaries: Dictionaries, objective: str, pooling: str
) -> None:
    def pooled(layer: int, sentences: list[Tensor]) -> Tensor:
        values = [dictionaries[layer].encode(x).sum(dim=-1) if objective == "activation" else x.norm(dim=-1) for x in sentences]
        return torch.cat(values).mean() if pooling == "token" else torch.stack([value.mean() for value in values]).mean()

    found = make({"objective": objective, "pooling": pooling}).loss_terms(batch).raw["gap"]
    everything = lm.tokens.collate(lm.tokens.windows(corpus.texts["en"]))
    expected = 0.0
    for weight, layer in zip(WEIGHTS, LAYERS, strict=True):
        with torch.no_grad(), base_behaviour(lm.model):
            x, _ = kept_residuals(lm, everything, (layer,))
        reference = [x[layer][everything.kept_sentence == s] for s in range(len(corpus.ids))]
        own, _ = both(lm, batch, layer)
        expected += weight * (1 - pooled(layer, own) / pooled(layer, reference)) ** 2
    torch.testing.assert_close(found, expected)


def test_norm_matched_takes_loudness_away(make: Make, lm: LanguageModel, batch: dict[str, TokenBatch], dictionaries: Dictionaries) -> None:
    module = make({"norm_matched": True})
    expected = 0.0
    for weight, layer, aim in zip(WEIGHTS, LAYERS, module.reference.activation("token"), strict=True):
        x, base = (torch.cat(of_sentences(lm, batch["es"], layer, base=base)) for base in (False, True))
        matched = x * (base.norm(dim=-1) / x.norm(dim=-1))[:, None]
        expected += weight * (1 - dictionaries[layer].encode(matched).sum(dim=-1).mean() / aim) ** 2
    torch.testing.assert_close(module.loss_terms(batch).raw["gap"], expected)
    assert module.loss_terms(batch).raw["gap"] != make({}).loss_terms(batch).raw["gap"]


def test_retention_terms_compare_with_the_adapter_off(
    make: Make, lm: LanguageModel, batch: dict[str, TokenBatch], dictionaries: Dictionaries
) -> None:
    own = batch["en"]
    raw = make(OFF, {"kl": 1.0, "lm": 1.0, "activation": 1.0, "norm": 1.0}, target_lm=1.0).loss_terms(batch).raw
    with torch.no_grad():
        scores = lm.model(own.ids, attention_mask=own.attention.long()).logits[:, :-1].log_softmax(-1)
        other = lm.model(batch["es"].ids, attention_mask=batch["es"].attention.long()).logits[:, :-1].log_softmax(-1)
        with base_behaviour(lm.model):
            base = lm.model(own.ids, attention_mask=own.attention.long()).logits[:, :-1].log_softmax(-1)
    predicted = own.keep[:, 1:]
    torch.testing.assert_close(raw["retention"], (base.exp() * (base - scores)).sum(-1)[predicted].mean())
    torch.testing.assert_close(raw["reference_lm"], -scores.gather(2, own.ids[:, 1:, None])[..., 0][predicted].mean())
    torch.testing.assert_close(raw["target_lm"], -other.gather(2, batch["es"].ids[:, 1:, None])[..., 0][batch["es"].keep[:, 1:]].mean())
    activation, norm = 0.0, 0.0
    for weight, layer in zip(WEIGHTS, LAYERS, strict=True):
        after, before = (torch.cat(of_sentences(lm, own, layer, base=base)) for base in (False, True))
        activation += weight * (1 - dictionaries[layer].encode(after).sum() / dictionaries[layer].encode(before).sum()) ** 2
        for code in ("en", "es"):
            after, before = (torch.cat(of_sentences(lm, batch[code], layer, base=base)).norm(dim=-1) for base in (False, True))
            norm += weight * (after / before).log().square().mean() / 2
    torch.testing.assert_close(raw["reference_activation"], activation)
    torch.testing.assert_close(raw["norm"], norm)


def test_terms_are_means_over_the_target_languages(make: Make, lm: LanguageModel, corpus: ParallelCorpus) -> None:
    module = make({})
    pair = module.loss_terms(batch_of(lm, corpus, ("es", "hi", "en"))).raw["gap"]
    alone = [module.loss_terms(batch_of(lm, corpus, (code, "en"))).raw["gap"] for code in ("es", "hi")]
    torch.testing.assert_close(pair, torch.stack(alone).mean())


def test_a_term_that_no_weight_asks_for_is_not_computed(make: Make, batch: dict[str, TokenBatch]) -> None:
    assert set(make({}, {}).loss_terms(batch).raw) == {"gap"}
    assert set(make(OFF, {"kl": 1.0}).loss_terms(batch).raw) == {"retention"}
    assert set(make(OFF, target_lm=1.0).loss_terms(batch).raw) == {"target_lm"}
    assert set(make(OFF, {"norm": 1.0}).loss_terms(batch).raw) == {"norm"}


def test_terms_are_in_full_precision_under_autocast(make: Make, batch: dict[str, TokenBatch]) -> None:
    module = make({}, {"kl": 1.0})
    with torch.autocast("cpu", torch.bfloat16):
        terms = module.loss_terms(batch)
        residuals, _ = kept_residuals(module.lm, batch["es"], LAYERS)
    torch.testing.assert_close(terms.raw["gap"], module.gap(batch["es"], residuals), rtol=1e-6, atol=0)
    assert terms.total.dtype == torch.float32


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
    "retention": (OFF, {"kl": 1.0, "lm": 1.0, "activation": 1.0, "norm": 1.0}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_moves_the_adapter_and_nothing_else(
    name: str, make: Make, lm: LanguageModel, batch: dict[str, TokenBatch], dictionaries: Dictionaries
) -> None:
    module = make(*SETTINGS[name])
    saes = {
        layer: {key: value.clone() for key, value in d.sae.state_dict().items()} | {"norms": d.norms.clone()} for layer, d in dictionaries.items()
    }
    base, buffers = weights_hash(lm.model), {key: value.clone() for key, value in lm.model.named_buffers()}
    adapter = {key: value.detach().clone() for key, value in lm.model.named_parameters() if value.requires_grad}
    optimizer = module.configure_optimizers()["optimizer"]
    module.loss_terms(batch).total.backward()
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
    assert set(module.state_dict()) == {f"model.{key}" for key in adapter}


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "straight_through"])
def test_the_gradient_of_the_whole_loss_against_finite_differences(
    name: str, make: Make, lm: LanguageModel, batch: dict[str, TokenBatch], dictionaries: Dictionaries
) -> None:
    for dictionary in dictionaries.values():
        dictionary.sae.threshold.data.zero_()  # the jump of JumpReLU is in the differences, but in no gradient
    module = make(*SETTINGS[name])
    parameter = next(p for key, p in lm.model.named_parameters() if "layers.0.self_attn.v_proj.lora_B" in key)
    module.loss_terms(batch).total.backward()
    assert parameter.grad is not None
    direction = parameter.grad / parameter.grad.norm()

    @torch.no_grad()
    def moved(by: float) -> float:
        before = parameter.clone()
        parameter.add_(by * direction)
        value = float(module.loss_terms(batch).total)
        parameter.copy_(before)
        return value

    assert (moved(2e-3) - moved(-2e-3)) / 4e-3 == pytest.approx(parameter.grad.norm().item(), rel=0.03)


def test_which_objectives_reach_a_silent_latent(make: Make, lm: LanguageModel, batch: dict[str, TokenBatch], dictionaries: Dictionaries) -> None:
    """One latent below its threshold on every token, all others gone."""
    dictionary = dictionaries[2]
    dictionary.sae.W_dec.data[1:] = 0
    dictionary.norms[1:] = 0
    make({})  # attaches the adapter
    x = torch.cat(of_sentences(lm, batch["es"], 2))

    def gradient(**gap: Any) -> Tensor:
        module = make({"weight": 1.0} | gap)
        # The reference fired; the target has become silent since.
        residuals = {layer: torch.cat(of_sentences(lm, batch["es"], layer)).requires_grad_(True) for layer in LAYERS}
        module.layer_weights = torch.tensor([0.0, 1.0])
        module.reference.profile[1].fill_(1.0)
        module.reference.firing[1][0] = int(module.reference.tokens.sum())
        module.reference.pre[1].fill_(float(module.reference.tokens.sum()) * float(pre.max() + 1))
        module.gap(batch["es"], residuals).backward()
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


def test_dropout_is_the_adapters_alone(make: Make, lm: LanguageModel, batch: dict[str, TokenBatch]) -> None:
    make({}, dropout=0.5)
    train_adapter_only(lm.model)
    assert {name.rsplit(".", 2)[-2] for name, m in lm.model.named_modules() if isinstance(m, torch.nn.Dropout) and m.training} == {"lora_dropout"}
    assert not any(m.training for name, m in lm.model.named_modules() if "lora" not in name and not hasattr(m, "lora_A"))
    one, other = (of_sentences(lm, batch["es"], 2) for _ in range(2))
    assert not torch.equal(one[0], other[0])
    one, other = (of_sentences(lm, batch["es"], 2, base=True) for _ in range(2))
    assert torch.equal(one[0], other[0])


# --- over steps ---


def fit(module: GapModule, corpus: ParallelCorpus, folder: Path, steps: int, *, accumulate: int = 1, resume: Path | None = None) -> pl.Trainer:
    keep = pl.callbacks.ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, accumulate_grad_batches=accumulate, logger=False, callbacks=[keep],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    spoken = corpus.speaking(("es", "en"))
    data = AlignedBatches(module.lm.tokens, spoken, sentences=4, count=steps * accumulate, seed=0)
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return trainer


calm = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*exists and is not empty", "ignore:.*LeafSpec:FutureWarning", "ignore:.*in eval mode at the start"
)


@calm
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_multiplier_follows_the_limit(make: Make, corpus: ParallelCorpus, tmp_path: Path, accumulate: int) -> None:
    module = make({}, {"kl": 0.5, "limit": 0.02, "rate": 3.0})
    fit(module, corpus, tmp_path, 4, accumulate=accumulate)
    rows = module.history
    assert [row["step"] for row in rows] == [step for step in range(4) for _ in range(accumulate)]
    expected = 0.5
    for step in range(4):
        own = [row for row in rows if row["step"] == step]
        assert [row["multiplier"] for row in own] == pytest.approx([expected] * accumulate)
        assert all(row["loss/weighted/retention"] == pytest.approx(row["multiplier"] * row["loss/raw/retention"], rel=1e-5) for row in own)
        kl = sum(row["loss/raw/retention"] for row in own) / accumulate
        assert kl > 0.001
        expected = max(0.0, expected + 3.0 * (kl - 0.02))
    assert module.multiplier == pytest.approx(expected)


@calm
def test_a_multiplier_that_has_fallen_to_zero(make: Make, corpus: ParallelCorpus, tmp_path: Path) -> None:
    module = make(OFF, {"kl": 0.5, "limit": 1000.0})
    fit(module, corpus, tmp_path, 3)
    assert [row["multiplier"] for row in module.history] == [0.5, 0, 0]
    assert [row["loss/total"] == 0 for row in module.history] == [False, True, True]


@calm
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_gap_term_warms_up_over_steps(make: Make, corpus: ParallelCorpus, tmp_path: Path, accumulate: int) -> None:
    module = make({"weight": 2.0}, warm_up=3)
    fit(module, corpus, tmp_path, 5, accumulate=accumulate)
    ratios = [row["loss/weighted/gap"] / row["loss/raw/gap"] for row in module.history]
    assert ratios == pytest.approx([weight for weight in (0.5, 1.0, 1.5, 2.0, 2.0) for _ in range(accumulate)])


@calm
@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_stops_when_the_gap_is_closed_also_after_resuming_there(make: Make, corpus: ParallelCorpus, tmp_path: Path, accumulate: int) -> None:
    probe = make({}, {"kl": 0.01})
    start = {key: value.clone() for key, value in probe.state_dict().items()}
    fit(probe, corpus, tmp_path / "probe", 16, accumulate=accumulate)

    means = {
        done: sum(row["loss/raw/gap"] for row in probe.history[(done - 10) * accumulate : done * accumulate]) / (10 * accumulate)
        for done in range(10, 16)
    }
    stop = min(means, key=lambda done: means[done])
    assert stop > 10
    lowest, next_lowest, *_ = sorted(means.values())
    gap = {"stop_when_closed": True, "tolerance": (lowest + next_lowest) / 2}
    probe.load_state_dict(start, strict=False)
    module = make(gap, {"kl": 0.01})
    assert fit(module, corpus, tmp_path / "run", 16, accumulate=accumulate).global_step == stop
    assert module.history == probe.history[: stop * accumulate]
    final = {key: value.clone() for key, value in module.state_dict().items()}

    for step in (stop, 7):
        probe.load_state_dict(start, strict=False)
        resumed = make(gap, {"kl": 0.01})
        trainer = fit(resumed, corpus, tmp_path / "run", 16, accumulate=accumulate, resume=tmp_path / "run" / f"step={step}.ckpt")
        assert trainer.global_step == stop
        assert resumed.history == module.history
        assert all(torch.equal(final[key], value) for key, value in resumed.state_dict().items())


# --- what is refused ---


@pytest.mark.parametrize(
    ("gap", "rest", "message"),
    [
        ({"weight": 0.0}, {}, "all weights are zero"),
        ({"weight": 0.0, "stop_when_closed": True}, {"target_lm": 1.0}, "stop_when_closed needs a gap term"),
        ({"objective": "norm", "norm_matched": True}, {}, "takes away the very norms"),
        ({}, {"control": "shuffled_pairs"}, "control=shuffled_pairs changes nothing with gap.objective=activation"),
        ({"objective": "diffmean"}, {"control": "random_features"}, "it goes with activation or profile or hinge"),
        ({"objective": "hinge", "gradient": "straight_through"}, {}, "gap.gradient=straight_through changes nothing"),
    ],
)
def test_losses_that_would_do_nothing_are_refused(gap: dict[str, Any], rest: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        loss_of(gap, {}, **rest)
