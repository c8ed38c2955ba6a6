"""CUDA gives the numbers of the CPU. Skipped where there is no device; with one, run `CUDA_VISIBLE_DEVICES=0 pytest tests/unit/test_cuda.py`."""

import copy
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from tqdm import tqdm

from lingact.activations.features import kept_residuals
from lingact.activations.interventions import nll_under, reconstructed, scaled_latents
from lingact.activations.passes import Wanted, lost_sentence, measure, reference_statistics
from lingact.activations.random_saes import pooled_sample, random_dictionaries
from lingact.config.tasks import TasksConfig
from lingact.data.corpus import ParallelCorpus
from lingact.evaluation.scorer import Scorer
from lingact.evaluation.tasks import load_tasks
from lingact.models.lm import LanguageModel, find_blocks
from lingact.models.sae import Dictionaries, Dictionary
from lingact.planning.hardware import look
from lingact.training.base_cache import CacheSettings, cached_anchor, cached_predictions, cached_reference
from lingact.training.base_targets import BaseOutputs
from lingact.training.batch_loss import BatchLoss
from lingact.training.batches import AlignedBatch
from tests.helpers.losses import LAYERS, WEIGHTS, adapted, loss_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")

DEVICE = "cuda"
BATCH_TOKENS = 64
ALL_TERMS = {"kl": 1.0, "lm": 1.0, "activation": 1.0, "norm": 1.0, "fit": 1.0, "target_kl": 1.0}
GAPS: tuple[dict[str, Any], ...] = (
    {"objective": "activation"},
    {"objective": "activation", "norm_matched": True},
    {"objective": "activation", "pooling": "sentence"},
    {"objective": "activation", "gradient": "straight_through"},
    {"objective": "profile"},
    {"objective": "hinge"},
    {"objective": "contrastive"},
    {"objective": "diffmean"},
    {"objective": "norm"},
)
Setup = tuple[LanguageModel, Dictionaries]


def on(device: str, lm: LanguageModel, dictionaries: Dictionaries) -> Setup:
    """Copies of a model and its SAEs on a device."""
    model = copy.deepcopy(lm.model).to(device)
    saes = {layer: Dictionary(copy.deepcopy(dictionary.sae).to(device), layer) for layer, dictionary in dictionaries.items()}
    return LanguageModel(model, lm.tokenizer, lm.tokens, find_blocks(model, len(lm.blocks)), dict(lm.identity)), saes


@pytest.fixture
def here(lm: LanguageModel, dictionaries: Dictionaries) -> Setup:
    """The tiny model and its SAEs on the CPU."""
    return lm, dictionaries


@pytest.fixture
def there(lm: LanguageModel, dictionaries: Dictionaries) -> Setup:
    """The same on the device."""
    return on(DEVICE, lm, dictionaries)


def both(here: Setup, there: Setup) -> Iterator[Setup]:
    """One after the other, with what was caught checked to be where it belongs."""
    for lm, saes in (here, there):
        assert {lm.device.type} == {sae.norms.device.type for sae in saes.values()}
        yield lm, saes


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Of the whole array, because single sums may cancel to almost nothing."""
    return float(np.linalg.norm((found - expected).astype(float)) / max(float(np.linalg.norm(expected.astype(float))), 1e-12))


# --- analysis ------------------------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_residuals_logits_features_and_reconstructions(here: Setup, there: Setup, corpus: ParallelCorpus) -> None:
    batch = next(iter(here[0].tokens.batches(here[0].tokens.windows(corpus.texts["hi"]), 512)))
    found: list[list[Tensor]] = []
    for lm, saes in both(here, there):
        residuals, predictions = kept_residuals(lm, batch, tuple(saes), predict=True)
        assert predictions is not None
        logits = predictions.logits()
        assert logits.device.type == lm.device.type
        features = {layer: saes[layer].encode(x) for layer, x in residuals.items()}
        decoded = [saes[layer].decode(f) for layer, f in features.items()]
        found.append([*residuals.values(), logits, *features.values(), *decoded])
    for cpu, device in zip(*found, strict=True):
        assert float((device.cpu() - cpu).norm() / cpu.norm()) < 1e-4


@pytest.mark.parametrize("adapter", [False, True])
def test_every_sum_of_a_measurement(here: Setup, there: Setup, corpus: ParallelCorpus, adapter: bool) -> None:
    found = []
    for lm, saes in both(here, there):
        if adapter:
            adapted(lm, 0.0)
        reference = None if adapter else reference_statistics(lm, {"measuring": saes}, corpus, "en", batch_tokens=BATCH_TOKENS, identity={})
        wanted = Wanted(adapter=adapter, language_model=True, reference_statistics=reference, vectors=5)
        measured = measure(lm, {"measuring": saes}, corpus, batch_tokens=BATCH_TOKENS, identity={}, wanted=wanted)
        assert not measured.lost()
        found.append({f"{code}/{name}": sums for code in corpus.texts for name, sums in measured.arrays(code).items()})
    cpu, device = found
    assert device.keys() == cpu.keys()
    assert {name: sums.dtype for name, sums in device.items()} == {name: sums.dtype for name, sums in cpu.items()}
    # Rounding may move a token across the threshold of a latent, which changes a count by one.
    limits = {name: 1e-3 if sums.dtype.kind == "f" else 2e-2 for name, sums in cpu.items()}
    errors = {name: relative_error(device[name], sums) for name, sums in cpu.items()}
    assert not {name: error for name, error in errors.items() if not error < limits[name]}


def test_random_directions_are_drawn_alike_and_fire_as_often(here: Setup, there: Setup, corpus: ParallelCorpus) -> None:
    made = []
    for lm, saes in both(here, there):
        state = torch.cuda.get_rng_state() if lm.device.type == "cuda" else torch.get_rng_state()
        sample = pooled_sample(lm, corpus, tuple(saes), tokens=200, batch_tokens=BATCH_TOKENS)
        made.append(random_dictionaries(saes, sample, seed=3))
        assert torch.equal(state, torch.cuda.get_rng_state() if lm.device.type == "cuda" else torch.get_rng_state())
        assert {each.norms.device.type for each in made[-1].values()} == {lm.device.type}
        rates = {layer: [(each[layer].encode(x.to(lm.device)) > 0).sum(dim=0).cpu() for each in (saes, made[-1])] for layer, x in sample.items()}
        assert all(int((own - random).abs().max()) <= 1 for own, random in rates.values())
    for layer, cpu in made[0].items():
        for name, weight in cpu.sae.state_dict().items():
            close = made[1][layer].sae.state_dict()[name].cpu().isclose(weight, rtol=1e-4, atol=1e-4).float().mean()
            # One token more or less for a latent moves its cut to the next token's value.
            assert close > (0.9 if name in ("threshold", "b_enc") else 0.9999), name


def test_edited_passes(here: Setup, there: Setup, corpus: ParallelCorpus) -> None:
    batch = next(iter(here[0].tokens.batches(here[0].tokens.windows(corpus.texts["es"]), 512)))
    found = []
    for lm, saes in both(here, there):
        conditions = ({}, {1: reconstructed(saes[1])}, {layer: scaled_latents(saes[layer], [0, 7, 30], 0.0) for layer in LAYERS})
        found.append([nll_under(lm, batch, condition) for condition in conditions])
    for (cpu, cpu_sentence), (device, device_sentence) in zip(*found, strict=True):
        np.testing.assert_allclose(device, cpu, rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(device_sentence, cpu_sentence)


def test_what_float16_cannot_hold_is_told_by_layer_and_language(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    lm, saes = on(DEVICE, lm, dictionaries)
    lm.model.half()
    norm = lm.blocks[1].get_submodule("post_feedforward_layernorm").get_parameter("weight")
    norm.data = torch.full_like(norm, 60_000.0)
    measured = measure(lm, {"measuring": saes}, corpus, batch_tokens=BATCH_TOKENS, identity={})
    lost = measured.lost()
    assert {each.layers for each in lost} == {(1, 2)}
    assert {each.language for each in lost} == set(corpus.texts)
    assert lost_sentence([replace(lost[0], sentences=None)], "float16").startswith("Not finite in float16: residuals behind layer 1-2 in en.")


# --- training ------------------------------------------------------------------------------------------------------------------------------------


def loss_and_gradient(
    setup: Setup, corpus: ParallelCorpus, gap: dict[str, Any], *, top: int, part: int | None, dropout: float = 0.0
) -> tuple[dict[str, float], Tensor]:
    """The terms of one batch, and the gradient of their sum, all adapter weights in one vector on the CPU."""
    lm, saes = setup
    chosen, codes, settings = {layer: saes[layer] for layer in LAYERS}, ("es", "en"), CacheSettings(BATCH_TOKENS)
    reference = cached_reference(lm, chosen, corpus, "en", settings, profiles=True)
    predictions = {code: cached_predictions(lm, corpus, code, settings, top=top) for code in codes} if top else {}
    anchors = {code: cached_anchor(lm, chosen, corpus, code, settings) for code in codes}
    adapted(lm, dropout)
    written = loss_of(gap, ALL_TERMS, target_lm=1.0)
    loss = BatchLoss(lm, chosen, BaseOutputs(reference, reference, predictions, anchors), "en", WEIGHTS, written)
    windows, sentences = {code: lm.tokens.by_sentence(corpus.texts[code]) for code in codes}, [7, 2, 9, 4]
    batch = AlignedBatch(torch.tensor(sentences), {c: lm.tokens.collate([w for s in sentences for w in own[s]]) for c, own in windows.items()})
    lm.model.zero_grad()
    lm.model.train(dropout > 0)
    torch.manual_seed(5)
    terms = loss.terms(batch, part=part)
    torch.stack(list(terms.values())).sum().backward()
    gradient = torch.cat([p.grad.flatten().cpu() for p in lm.model.parameters() if p.grad is not None])
    return {name: float(value.detach()) for name, value in terms.items()}, gradient


@pytest.mark.parametrize("gap", GAPS, ids=lambda gap: "-".join(map(str, gap.values())))
@pytest.mark.parametrize("top", [0, 8], ids=["base model run", "cached predictions"])
def test_loss_and_gradient(gap: dict[str, Any], top: int, here: Setup, there: Setup, corpus: ParallelCorpus) -> None:
    cpu, cpu_gradient = loss_and_gradient(here, corpus, gap, top=top, part=None)
    for part in (None, 3):
        found, gradient = loss_and_gradient(there, corpus, gap, top=top, part=part)
        assert found == pytest.approx(cpu, rel=1e-3, abs=3e-4)  # a latent that crosses its threshold moves `fit` by 1e-4
        assert float((gradient - cpu_gradient).norm() / cpu_gradient.norm()) < 1e-2


def test_a_step_is_repeated_bit_for_bit(there: Setup, corpus: ParallelCorpus) -> None:
    """What resuming rests on; with dropout, whose random numbers are drawn on the device."""
    first, gradient = loss_and_gradient(there, corpus, {"objective": "activation"}, top=8, part=2, dropout=0.2)
    again, same = loss_and_gradient(there, corpus, {"objective": "activation"}, top=8, part=2, dropout=0.2)
    assert again == first
    assert torch.equal(same, gradient)


# --- evaluation and plans --------------------------------------------------------------------------------------------------------------------------


def test_log_likelihoods_of_options(here: Setup, there: Setup, tmp_path: Path) -> None:
    items = [
        {"question": "Snow is", "choices": ["white", "red", "hot"], "answer": 0},
        {"question": "A dog is", "choices": ["an animal", "a stone", "an hour", "a number"], "answer": 0},
    ]
    (tmp_path / "quiz_en.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    own = {"quiz": {"kind": "items", "path": f"{tmp_path}/quiz_{{lang}}.jsonl", "split_by": None}}
    config = {"benchmarks": [], "own": own, "missing": "refuse", "items": "shared", "limit": None, "fewshot": None, "batch_size": 4}
    tasks = load_tasks(TasksConfig.model_validate(config), ["en"]).instances
    found = []
    for lm, _ in both(here, there):
        with tqdm(total=7, file=io.StringIO()) as bar:
            run = Scorer(lm, 4, None, bar).score(lm.model, tasks, None)
        found.append([score for record in run.samples["quiz_en"] for score in record["loglikelihood"]])
    assert len(found[0]) == 7
    assert found[1] == pytest.approx(found[0], abs=1e-4)


def test_a_plan_knows_memory_and_speed_of_the_device() -> None:
    about = look(DEVICE, {"float32", "bfloat16"}, (640, 2048))
    properties = torch.cuda.get_device_properties(0)
    assert (about.kind, about.name, about.memory) == ("cuda", properties.name, properties.total_memory)
    assert about.speed["float32"] > 1e12, "the first product, which loads libraries, counts"
    again = look(DEVICE, {"float32"}, (640, 2048))
    assert about.speed["float32"] == pytest.approx(again.speed["float32"], rel=0.5)
