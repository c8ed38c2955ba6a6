"""Edits of the residual stream against forward passes by hand, and passes that are cut off and continued."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lingact.activations.edited_losses import Arm, CausalLosses, SplicedLosses
from lingact.activations.interventions import (
    Intervention,
    causal_losses,
    edited,
    matched_random,
    nll_under,
    on_kept,
    scaled_direction,
    scaled_latents,
    spliced_losses,
)
from lingact.data.corpus import ParallelCorpus
from lingact.data.tokens import TokenBatch
from lingact.errors import UserError
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries, Dictionary
from lingact.runtime import resumable_passes

LATENTS = {0: (1, 5, 40), 2: (0, 47)}
HEADER = {"model": "tiny"}


@pytest.fixture
def batch(lm: LanguageModel, corpus: ParallelCorpus) -> TokenBatch:
    return lm.tokens.collate(lm.tokens.windows(corpus.texts["es"])[:5])


@pytest.fixture
def x() -> Tensor:
    return torch.randn(7, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def identity_sae() -> Dictionary:
    """f = [relu(x), relu(-x)] and back: reconstructs everything."""
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig

    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=32, d_sae=64))
    eye = torch.eye(32)
    sae.W_enc.data, sae.W_dec.data = torch.cat([eye, -eye], dim=1), torch.cat([eye, -eye])
    for bias in (sae.b_enc, sae.b_dec, sae.threshold):
        bias.data = torch.zeros_like(bias)
    return Dictionary(sae, 1)


def specific(owner: str = "es", **changes: Any) -> Intervention:
    arm = Arm(**({"owner": owner, "kind": "specific", "mode": "scale", "dose": 0.0} | changes))
    return Intervention(arm, LATENTS, norms={0: 3.0, 2: 5.0} if arm.mode == "steer" else {})


def loss_by_hand(lm: LanguageModel, text: str, layer: int, replace_kept: Callable[[Tensor], Tensor]) -> tuple[float, int]:
    """Summed loss of one sentence (BOS first) whose residual behind `layer` is replaced on all tokens but BOS; a plain hook of torch."""
    ids = torch.tensor([lm.tokenizer(text).input_ids])

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1], replace_kept(output[0, 1:])[None]], dim=1)

    handle = lm.blocks[layer].register_forward_hook(hook)
    with torch.no_grad():
        logits = lm.model(input_ids=ids).logits[0]
    handle.remove()
    chosen = logits.double().log_softmax(dim=-1)[:-1].gather(1, ids[0, 1:, None])
    return -float(chosen.sum()), len(chosen)


# --- edits ---------------------------------------------------------------------------------------------------------------------------------------


def test_a_block_is_edited_whether_it_returns_a_tensor_or_a_tuple() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            return x, "cache"

    blocks, x = nn.ModuleList([nn.Identity(), Pair()]), torch.ones(1, 2, 3)
    with edited(blocks, {0: lambda h: h + 1, 1: lambda h: 2 * h}):
        assert torch.equal(blocks[0](x), x + 1)
        doubled, rest = blocks[1](x)
        assert (torch.equal(doubled, 2 * x), rest) == (True, "cache")
    assert torch.equal(blocks[0](x), x)
    assert torch.equal(blocks[1](x)[0], x)


def test_hooks_are_gone_after_a_failure(lm: LanguageModel) -> None:
    with pytest.raises(ZeroDivisionError), edited(lm.blocks, {1: lambda h: h}):
        _ = 1 / 0
    assert sum(len(module._forward_hooks) for module in lm.model.modules()) == 0


@torch.no_grad()
def test_special_tokens_and_padding_keep_their_residual(lm: LanguageModel, batch: TokenBatch) -> None:
    before, _ = lm.residuals(batch, (1,))
    with edited(lm.blocks, {1: on_kept(lambda h: h + 7, batch.keep)}):
        after, _ = lm.residuals(batch, (1,))
    assert not batch.attention.all(), "some padding is in the batch"
    assert torch.equal(after[1][~batch.keep], before[1][~batch.keep])
    assert torch.equal(after[1][batch.keep], before[1][batch.keep] + 7)


def test_an_edit_keeps_the_dtype_of_the_model() -> None:
    x, keep = torch.randn(1, 4, 3).bfloat16(), torch.tensor([[False, True, True, False]])
    seen: list[torch.dtype] = []
    changed = on_kept(lambda h: (seen.append(h.dtype), h)[1], keep)(x)
    assert changed.dtype == torch.bfloat16
    assert seen == [torch.float32]
    assert torch.equal(changed, x)


def test_ablation_takes_away_what_the_latents_decode_to(dictionaries: Dictionaries, x: Tensor) -> None:
    dictionary, chosen = dictionaries[0], list(LATENTS[0])
    features = dictionary.encode(x)
    assert (features[:, chosen] > 0).any(), "something is ablated"
    without = features.clone()
    without[:, chosen] = 0
    expected = x - (dictionary.decode(features) - dictionary.decode(without))
    torch.testing.assert_close(scaled_latents(dictionary, chosen, 0.0)(x), expected)
    # All latents ablated: what is left is the SAE's error and its bias.
    torch.testing.assert_close(scaled_latents(dictionary, range(48), 0.0)(x), x - dictionary.decode(features) + dictionary.sae.b_dec)


def test_doses_are_linear_and_one_changes_nothing(dictionaries: Dictionaries, x: Tensor) -> None:
    ablated, same, doubled = (scaled_latents(dictionaries[0], LATENTS[0], dose)(x) for dose in (0.0, 1.0, 2.0))
    assert torch.equal(same, x)
    torch.testing.assert_close(doubled - x, x - ablated)


def test_top_k_saes_that_fold_by_themselves_are_ablated_too(x: Tensor) -> None:
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=64, k=8, rescale_acts_by_decoder_norm=True))
    random = torch.Generator().manual_seed(0)
    sae.W_enc.data, sae.W_dec.data = torch.randn(32, 64, generator=random), torch.randn(64, 32, generator=random)
    dictionary = Dictionary(sae, 0)
    expected = x - dictionary.decode(dictionary.encode(x)) + dictionary.sae.b_dec
    torch.testing.assert_close(scaled_latents(dictionary, range(64), 0.0)(x), expected)


def test_saes_that_rescale_every_token_are_refused() -> None:
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

    sae = StandardSAE(StandardSAEConfig(d_in=32, d_sae=64, normalize_activations="layer_norm"))
    with pytest.raises(UserError, match="layer 4 normalises every token"):
        scaled_latents(Dictionary(sae, 4), [1], 0.0)


def test_projecting_out_a_direction_leaves_none_of_it() -> None:
    x, v = torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([0.6, 0.8])
    # The projections are 2.2 and 1.
    torch.testing.assert_close(scaled_direction(v, 0.0)(x), torch.tensor([[1 - 1.32, 2 - 1.76], [3 - 0.6, -1 - 0.8]]))
    torch.testing.assert_close(scaled_direction(v, 3.0)(x) @ v, torch.tensor([6.6, 3.0]))
    assert torch.equal(scaled_direction(v, 1.0)(x), x)


@torch.no_grad()
def test_steering_adds_exactly_the_vector(lm: LanguageModel, dictionaries: Dictionaries, batch: TokenBatch) -> None:
    condition = specific(mode="steer", dose=0.5).condition(dictionaries, lm.device)
    rows = dictionaries[0].sae.W_dec[[1, 5, 40]]
    expected = 0.5 * 3.0 * (rows / rows.norm(dim=1, keepdim=True)).sum(dim=0) / 3**0.5
    x = torch.randn(4, 32)
    assert sorted(condition) == [0, 2]
    torch.testing.assert_close(condition[0](x), x + expected)
    direction = np.eye(32, dtype=np.float32)[3]
    arm = Arm("es", "diffmean", "steer", -2.0)
    shifted = Intervention(arm, directions={1: direction}, norms={1: 4.0}).condition(dictionaries, lm.device)[1](x)
    torch.testing.assert_close(shifted - x, torch.from_numpy(-8 * direction).expand(4, -1))


@torch.no_grad()
def test_later_layers_see_what_earlier_edits_did(lm: LanguageModel, dictionaries: Dictionaries, batch: TokenBatch) -> None:
    edits = {layer: on_kept(edit, batch.keep) for layer, edit in specific().condition(dictionaries, lm.device).items()}
    plain, _ = lm.residuals(batch, (0, 2))
    with edited(lm.blocks, {0: edits[0]}):
        first, _ = lm.residuals(batch, (0, 2))
    with edited(lm.blocks, edits):
        both, _ = lm.residuals(batch, (0, 2))
    assert torch.equal(both[0], edits[0](plain[0]))
    assert not torch.allclose(first[2], plain[2])
    assert torch.equal(both[2], edits[2](first[2]))


def test_interventions_that_make_no_sense_are_refused() -> None:
    with pytest.raises(AssertionError, match="norm of every layer"):
        Intervention(Arm("es", "specific", "steer", 1.0), LATENTS, norms={0: 1.0})
    with pytest.raises(AssertionError, match="without latents"):
        Intervention(Arm("es", "specific", "scale", 0.0), {0: ()})
    with pytest.raises(AssertionError, match="not mixed"):
        Intervention(Arm("es", "diffmean", "scale", 0.0), LATENTS)


# --- splicing ------------------------------------------------------------------------------------------------------------------------------------


def test_splicing_is_a_forward_pass_with_the_reconstruction_in_place(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    sae_sets = {"measuring": dictionaries, "heldout": {layer: dictionaries[(layer + 1) % 3] for layer in dictionaries}}
    found = spliced_losses(lm, sae_sets, corpus, batch_tokens=200, header=HEADER, path=None)
    assert found.layers == (0, 1, 2)
    for code, sentence in (("en", 4), ("es", 0), ("hi", 9)):
        text = corpus.texts[code][sentence][:20]
        cut = ParallelCorpus("one", ("a",), {code: (text,)})
        one = spliced_losses(lm, sae_sets, cut, batch_tokens=200, header=HEADER, path=None)
        base, predicted = loss_by_hand(lm, text, 0, lambda x: x)
        assert one.predicted[code].tolist() == [predicted]
        assert one.base[code] == pytest.approx([base], rel=1e-5)
        for layer in (0, 2):
            for sae_set, ds in sae_sets.items():
                expected, _ = loss_by_hand(lm, text, layer, lambda x, d=ds[layer]: d.decode(d.encode(x)))
                assert one.spliced[sae_set][code][layer] == pytest.approx([expected], rel=1e-5)
            assert one.zero[code][layer] == pytest.approx([loss_by_hand(lm, text, layer, torch.zeros_like)[0]], rel=1e-5)
    # A corpus at once gives what its sentences give alone.
    text = corpus.texts["es"][3]
    expected, predicted = loss_by_hand(lm, text, 1, lambda x: dictionaries[1].decode(dictionaries[1].encode(x)))
    assert found.spliced["measuring"]["es"][1, 3] == pytest.approx(expected, rel=1e-5)
    assert found.predicted["es"][3] == predicted == len(text.encode())


def test_a_perfect_sae_costs_nothing(lm: LanguageModel, identity_sae: Dictionary, corpus: ParallelCorpus) -> None:
    found = spliced_losses(lm, {"measuring": {1: identity_sae}}, corpus, batch_tokens=300, header=HEADER, path=None)
    for code in corpus.texts:
        assert found.spliced["measuring"][code][0] == pytest.approx(found.base[code], abs=1e-12)
        assert (np.abs(found.zero[code][0] - found.base[code]) > 1e-3).all()


def test_sentences_longer_than_the_context_sum_over_their_windows(lm: LanguageModel, identity_sae: Dictionary) -> None:
    long = "abc " * 40
    corpus = ParallelCorpus("long", ("a",), {"en": (long,)})
    found = spliced_losses(lm, {"measuring": {1: identity_sae}}, corpus, batch_tokens=300, header=HEADER, path=None)
    windows = [long[start : start + 63] for start in range(0, 160, 63)]
    assert found.base["en"] == pytest.approx([sum(loss_by_hand(lm, text, 0, lambda x: x)[0] for text in windows)], rel=1e-5)
    assert found.predicted["en"].tolist() == [160]


# --- causal checks -------------------------------------------------------------------------------------------------------------------------------


def test_neutral_doses_change_no_loss(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    v = np.full(32, 32**-0.5, np.float32)
    neutral = [
        specific(dose=1.0),
        specific(mode="steer", dose=0.0),
        Intervention(Arm("es", "diffmean", "scale", 1.0), directions={0: v}),
        Intervention(Arm("es", "diffmean", "steer", 0.0), directions={0: v}, norms={0: 2.0}),
        specific(dose=0.0),
    ]
    found = causal_losses(lm, dictionaries, corpus, neutral, batch_tokens=200, header=HEADER, path=None)
    for code in corpus.texts:
        assert (found.nll[code][:4] == found.base[code]).all()
        assert (found.nll[code][4] != found.base[code]).any()


def test_causal_losses_by_hand(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    v = np.zeros(32, np.float32)
    v[4] = 1
    interventions = [
        Intervention(Arm("hi", "specific", "scale", 0.0), {1: (2, 3)}),
        Intervention(Arm("es", "diffmean", "steer", 2.0), directions={1: v}, norms={1: 1.5}),
    ]
    found = causal_losses(lm, dictionaries, corpus, interventions, batch_tokens=250, header=HEADER, path=None)
    assert found.arms == (Arm("hi", "specific", "scale", 0.0), Arm("es", "diffmean", "steer", 2.0))

    def without(x: Tensor) -> Tensor:
        features = dictionaries[1].encode(x)
        only = torch.zeros_like(features)
        only[:, [2, 3]] = features[:, [2, 3]]
        return x - (dictionaries[1].decode(only) - dictionaries[1].sae.b_dec)

    for code in ("en", "es"):
        text = corpus.texts[code][6]
        assert found.nll[code][0, 6] == pytest.approx(loss_by_hand(lm, text, 1, without)[0], rel=1e-5)
        assert found.nll[code][1, 6] == pytest.approx(loss_by_hand(lm, text, 1, lambda x: x + 3 * torch.from_numpy(v))[0], rel=1e-5)
        assert found.base[code][6] == pytest.approx(loss_by_hand(lm, text, 1, lambda x: x)[0], rel=1e-5)


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """After the given number of forward passes, the next one fails; every step is saved."""
    import lingact.activations.interventions as module

    monkeypatch.setattr(resumable_passes, "SAVE_EVERY", -1.0)
    original, left = module.nll_under, [10**9]

    def counted(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(module, "nll_under", counted)

    def allow(passes_left: int) -> None:
        left[0] = passes_left

    yield allow
    assert original is nll_under


def test_a_spliced_pass_that_was_cut_off_goes_on_and_gives_the_same_bits(
    lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus, tmp_path: Path, cut_off: Callable[[int], None]
) -> None:
    def run(path: Path | None, **header: str) -> SplicedLosses:
        return spliced_losses(lm, {"measuring": dictionaries}, corpus, batch_tokens=200, header=HEADER | header, path=path)

    path, whole = tmp_path / "spliced.safetensors", run(None)
    for allowed in (12, 5):
        cut_off(allowed)
        with pytest.raises(KeyboardInterrupt):
            run(path)
    with pytest.raises(UserError, match=r"holds 17 of \d+ steps"):
        SplicedLosses.load(path)
    with pytest.raises(UserError, match="sae: None / other"):
        run(path, sae="other")
    cut_off(10**9)
    continued = run(path)
    cut_off(0)
    with pytest.raises(UserError, match=r"spliced\.safetensors' holds something else \(KeyError: 'arms'\)"):
        CausalLosses.load(path)
    for found in (continued, SplicedLosses.load(path), run(path)):
        assert found.layers == whole.layers
        for code in corpus.texts:
            assert (found.predicted[code] == whole.predicted[code]).all()
            for ours, theirs in ((found.base, whole.base), (found.zero, whole.zero), (found.spliced["measuring"], whole.spliced["measuring"])):
                assert ours[code].tobytes() == theirs[code].tobytes()


def test_a_causal_pass_that_was_cut_off_goes_on_and_gives_the_same_bits(
    lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus, tmp_path: Path, cut_off: Callable[[int], None]
) -> None:
    interventions = [specific(), specific("hi", mode="steer", dose=0.3), specific("hi", dose=2.0)]

    def run(path: Path | None, chosen: list[Intervention]) -> CausalLosses:
        return causal_losses(lm, dictionaries, corpus, chosen, batch_tokens=200, header=HEADER, path=path)

    path, whole = tmp_path / "causal.safetensors", run(None, interventions)
    cut_off(10)
    with pytest.raises(KeyboardInterrupt):
        run(path, interventions)
    # The same arm with other latents is another pass.
    with pytest.raises(UserError, match="interventions"):
        run(path, [replace(interventions[0], latents={0: (2,)}), *interventions[1:]])
    cut_off(10**9)
    run(path, interventions)
    found = CausalLosses.load(path)
    assert found.arms == whole.arms == tuple(i.arm for i in interventions)
    for code in corpus.texts:
        assert found.nll[code].tobytes() == whole.nll[code].tobytes()
        assert found.base[code].tobytes() == whole.base[code].tobytes()
        assert (found.predicted[code] == whole.predicted[code]).all()


# --- random latents ------------------------------------------------------------------------------------------------------------------------------


def test_random_latents_fire_as_often_and_as_strongly() -> None:
    rates = np.exp(-np.linspace(0, 6, 300))
    mass = rates * np.where(np.arange(300) % 2, 1.0, 9.0)  # every other latent is far stronger
    chosen = [10, 11, 150, 290]
    matched = matched_random(rates, mass, chosen, 0)
    assert matched is not None
    assert len(set(matched)) == 4
    assert not set(matched) & set(chosen)
    for latent, match in zip(chosen, matched, strict=True):
        assert abs(np.log(rates[match] / rates[latent])) <= np.log(1.5)
        assert (match - latent) % 2 == 0
    assert matched == matched_random(rates, mass, chosen, 0)
    draws = [matched_random(rates, mass, [10, 12], seed) for seed in range(100)]
    assert len({tuple(draw) for draw in draws if draw}) > 20
    assert all(draw is not None and len(set(draw)) == 2 for draw in draws), "neighbours overlap, yet none is drawn twice"


@pytest.mark.parametrize(
    ("rates", "mass", "chosen"),
    [
        ([0.1, 0.2, 0.3, 0.0], [1.0, 1.0, 1.0, 0.0], [0]),  # nobody fires within 1.5 times as often
        ([0.1, 0.11, 0.12, 0.1], [1.0, 2.1, 0.4, 0.0], [0]),  # as often, never as strongly
        ([0.1, 0.1, 0.1, 0.0], [1.0, 1.0, 1.0, 0.0], [0, 1]),  # one match for two
        ([0.0, 0.1, 0.1, 0.1], [0.0, 1.0, 1.0, 1.0], [0]),  # never fires itself
    ],
)
def test_without_a_match_there_is_no_control(rates: list[float], mass: list[float], chosen: list[int]) -> None:
    assert matched_random(np.array(rates), np.array(mass), chosen, 0) is None
