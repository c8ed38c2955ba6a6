"""SAEs against sae-lens itself, and the surrogate gradient by hand."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lingact.config.model import SaeSet
from lingact.errors import UserError
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries, Dictionary, load_dictionaries, offloaded

MakeSae = Callable[..., Any]
CPU = torch.device("cpu")


@pytest.fixture
def x() -> Tensor:
    return torch.randn(200, 32, generator=torch.Generator().manual_seed(5))


def test_features_are_the_saes_own_folded_with_the_decoder_norms(make_sae: MakeSae, x: Tensor) -> None:
    sae, dictionary = make_sae(1), Dictionary(make_sae(1), 1)
    features = dictionary.encode(x)
    norms = torch.linspace(0.5, 2, 48)
    torch.testing.assert_close(features, sae.encode(x) * norms)
    pre = x @ sae.W_enc + sae.b_enc - (sae.b_dec @ sae.W_enc if sae.cfg.apply_b_dec_to_input else 0)
    torch.testing.assert_close(dictionary.pre_activations(x), pre, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features, torch.where(pre > sae.threshold, pre, 0.0) * norms, rtol=1e-4, atol=1e-5)
    assert 0.1 < (features > 0).float().mean() < 0.6
    # Folding is what sae-lens does when it makes all decoder rows of length one.
    sae.fold_W_dec_norm()
    torch.testing.assert_close(features, sae.encode(x), rtol=1e-4, atol=1e-5)


def test_decoding_undoes_the_folding(make_sae: MakeSae, x: Tensor) -> None:
    dictionary = Dictionary(make_sae(0), 0)
    torch.testing.assert_close(dictionary.decode(dictionary.encode(x)), make_sae(0)(x), rtol=1e-4, atol=1e-5)


def test_a_latent_without_a_decoder_row_spoils_nothing(make_sae: MakeSae, x: Tensor) -> None:
    sae = make_sae(0)
    sae.W_dec.data[7] = 0
    dictionary = Dictionary(sae, 0)
    torch.testing.assert_close(dictionary.decode(dictionary.encode(x)), sae(x), rtol=1e-4, atol=1e-5)


def sae_of(kind: str, make_sae: MakeSae) -> Any:
    """An SAE of each architecture with the weights of the JumpReLU one."""
    from sae_lens import GatedSAE, GatedSAEConfig, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

    own = make_sae(1)
    match kind:
        case "jumprelu":
            return own
        case "standard":
            sae = StandardSAE(StandardSAEConfig(d_in=32, d_sae=48))
        case "topk" | "folding topk":
            sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=48, k=7, rescale_acts_by_decoder_norm=kind == "folding topk"))
        case _:
            sae = GatedSAE(GatedSAEConfig(d_in=32, d_sae=48))
    weights = own.state_dict()
    sae.load_state_dict({name: weights.get(name, 0.1 * torch.ones_like(tensor)) for name, tensor in sae.state_dict().items()})
    return sae


@pytest.mark.parametrize("kind", ["jumprelu", "standard", "topk", "folding topk", "gated"])
def test_active_latents_stand_for_all_of_them(kind: str, make_sae: MakeSae, x: Tensor) -> None:
    sae = sae_of(kind, make_sae)
    if kind != "folding topk":  # which divides by zero itself
        sae.W_dec.data[7] = 0  # a latent without a decoder row
    x[3] = -50 * torch.ones(32)  # a token of another kind
    dictionary = Dictionary(sae, 1)
    features, active = dictionary.encode(x), dictionary.active(x)
    dense = torch.zeros_like(features)
    dense[active.token, active.latent] = active.value
    torch.testing.assert_close(dense, features, rtol=1e-5, atol=1e-6)
    assert torch.equal(dense > 0, features > 0)
    assert active.token.tolist() == sorted(active.token.tolist())
    assert active.counts.tolist() == (features > 0).sum(dim=1).tolist()
    torch.testing.assert_close(active.sums(active.value).float(), features.sum(dim=-1), rtol=1e-5, atol=1e-6)
    for count in (1, 10, 48):
        torch.testing.assert_close(active.strongest(count), features.topk(count).values.double().sum(dim=1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dictionary.decode_active(active), dictionary.decode(features), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reads_less_b_dec", [False, True])
@pytest.mark.parametrize("kind", ["jumprelu", "topk"])
def test_one_product_gives_the_latents_of_scaled_residuals_too(kind: str, reads_less_b_dec: bool, make_sae: MakeSae, x: Tensor) -> None:
    sae = sae_of(kind, make_sae)
    sae.cfg.apply_b_dec_to_input = reads_less_b_dec
    dictionary, factor = Dictionary(sae, 1), torch.linspace(0.5, 2, len(x))
    expected = dictionary.encode(x), dictionary.encode(x * factor[:, None])
    for active, features in zip(dictionary.active_and_scaled(x, factor), expected, strict=True):
        dense = torch.zeros_like(features)
        dense[active.token, active.latent] = active.value
        torch.testing.assert_close(dense, features, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(*expected)


@pytest.mark.parametrize(("kind", "bandwidth"), [("jumprelu", None), ("jumprelu", 0.5), ("standard", None), ("topk", None), ("gated", None)])
def test_active_latents_have_the_gradient_of_all_of_them(kind: str, bandwidth: float | None, make_sae: MakeSae, x: Tensor) -> None:
    """Of their sums, of a reconstruction, and of residuals whose factors depend on them; also where tokens and latents are silent."""
    sae = sae_of(kind, make_sae)
    sae.W_dec.data[7] = 0
    dictionary = Dictionary(sae, 1)
    x[3] = -50 * torch.ones(32)
    directions, weight = torch.randn(2, len(x), 32, generator=torch.Generator().manual_seed(1)), torch.linspace(1, 2, len(x))

    def dense(own: Tensor) -> Tensor:
        scaled = own * (3 / own.norm(dim=-1))[:, None]
        for_gap = dictionary.encode(scaled) if bandwidth is None else dictionary.encode_straight_through(scaled, bandwidth)
        plain = dictionary.encode(own)
        return (for_gap.sum(dim=-1) * weight).sum() + (for_gap.sum(dim=0) ** 2).sum() + (dictionary.decode(plain) * directions[0]).sum()

    def sparse(own: Tensor) -> Tensor:
        plain, for_gap = dictionary.active_and_scaled(own, 3 / own.norm(dim=-1), bandwidth=bandwidth)
        sums = (for_gap.sums(for_gap.value) * weight).sum() + (for_gap.totals() ** 2).sum()
        return sums + (dictionary.decode_active(plain) * directions[0]).sum()

    def apart(own: Tensor) -> Tensor:
        plain, for_gap = dictionary.active(own), dictionary.active(own * (3 / own.norm(dim=-1))[:, None], bandwidth=bandwidth)
        sums = (for_gap.sums(for_gap.value) * weight).sum() + (for_gap.totals() ** 2).sum()
        return sums + (dictionary.decode_active(plain) * directions[0]).sum()

    found = []
    for way in (dense, sparse, apart):
        own = x.clone().requires_grad_(True)
        value = way(own)
        value.backward()
        assert own.grad is not None
        found.append((value.detach().double(), own.grad))
        with torch.no_grad():
            torch.testing.assert_close(way(own).double(), value.detach().double(), rtol=1e-6, atol=1e-6)
    for value, gradient in found[1:]:
        torch.testing.assert_close(value, found[0][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-3, atol=1e-3)
    assert found[0][1].abs().max() > 1


def test_an_sae_of_a_class_of_its_own_keeps_the_surrogate_gradient(make_sae: MakeSae, x: Tensor) -> None:
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE

    class Own(JumpReLUSAE):
        """Read by its own `encode`."""

    plain = make_sae(1)
    own = Own(plain.cfg)
    own.load_state_dict(plain.state_dict())
    gradients = []
    for sae in (plain, own):
        given = x.clone().requires_grad_(True)
        active = Dictionary(sae, 1).active(given, bandwidth=0.5)
        active.sums(active.value).sum().backward()
        gradients.append(given.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_where_nothing_is_active_sums_are_zero(make_sae: MakeSae) -> None:
    sae = make_sae(1)
    sae.threshold.data[:] = 1e9
    dictionary = Dictionary(sae, 1)
    x = torch.ones(3, 32)
    active = dictionary.active(x)
    assert (active.counts.tolist(), active.sums(active.value).tolist(), active.strongest(10).tolist()) == ([0] * 3, [0.0] * 3, [0.0] * 3)
    torch.testing.assert_close(dictionary.decode_active(active), dictionary.decode(dictionary.encode(x)))


def test_what_is_not_a_number_is_not_lost(make_sae: MakeSae, x: Tensor) -> None:
    x[2, 5] = torch.nan
    dictionary = Dictionary(make_sae(1), 1)
    active = dictionary.active(x)
    assert active.sums(active.value).isnan().nonzero().flatten().tolist() == [2]


def test_the_threshold_is_strict() -> None:
    dictionary = by_hand([0.5, 0.5, 0.0, 0.0])
    assert dictionary.encode(torch.tensor([[0.5, 0.5001, 0.0, -1.0]]))[0].tolist() == pytest.approx([0.0, 2 * 0.5001, 0.0, 0.0])


def by_hand(thresholds: list[float]) -> Dictionary:
    """Latent i reads coordinate i; every decoder row has length 2."""
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig

    count = len(thresholds)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=count, d_sae=count))
    sae.W_enc.data, sae.W_dec.data = torch.eye(count), 2 * torch.eye(count)
    sae.b_enc.data, sae.b_dec.data = torch.zeros(count), torch.zeros(count)
    sae.threshold.data = torch.tensor(thresholds)
    return Dictionary(sae, 0)


def test_the_surrogate_gradient_opens_below_the_threshold() -> None:
    # Thresholds 1, bandwidth 0.4: the window opens at 0.6. A latent with threshold zero opens at zero.
    dictionary = by_hand([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    x = torch.tensor([[1.5, 0.7, 0.5, -0.7, 0.1, -0.1]], requires_grad=True)
    features = dictionary.encode_straight_through(x, 0.4)
    assert features[0].tolist() == pytest.approx([3.0, 0.0, 0.0, 0.0, 0.2, 0.0])
    features.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[2.0, 2.0, 0.0, 0.0, 2.0, 0.0]]


def test_plain_features_pass_no_gradient_to_silent_latents() -> None:
    x = torch.tensor([[1.5, 0.7, 0.999]], requires_grad=True)
    by_hand([1.0, 1.0, 1.0]).encode(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[2.0, 0.0, 0.0]]


def test_straight_through_has_the_values_of_the_plain_features(make_sae: MakeSae, x: Tensor) -> None:
    dictionary = Dictionary(make_sae(2), 2)
    torch.testing.assert_close(dictionary.encode_straight_through(x, 0.5), dictionary.encode(x), rtol=1e-5, atol=1e-6)


def test_straight_through_needs_thresholds(x: Tensor) -> None:
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

    dictionary = Dictionary(StandardSAE(StandardSAEConfig(d_in=32, d_sae=8)), 4)
    with pytest.raises(UserError, match=r"straight_through needs JumpReLU SAEs; layer 4 has 'standard'. Use loss.gap.gradient=jumprelu"):
        dictionary.encode_straight_through(x, 0.5)


def test_an_sae_that_folds_by_itself_is_not_folded_twice(x: Tensor) -> None:
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=48, k=5, rescale_acts_by_decoder_norm=True))
    sae.W_dec.data *= torch.linspace(0.5, 2, 48)[:, None] / sae.W_dec.norm(dim=-1, keepdim=True)
    dictionary = Dictionary(sae, 0)
    torch.testing.assert_close(dictionary.encode(x), sae.encode(x))
    torch.testing.assert_close(dictionary.decode(dictionary.encode(x)), sae(x))
    sae.fold_W_dec_norm()
    torch.testing.assert_close(dictionary.encode(x), sae.encode(x))


def load(release: Path, lm: LanguageModel, layers: tuple[int, ...] = (0, 1, 2), name: Any = "layer_{layer}") -> tuple[Dictionaries, dict]:
    return load_dictionaries(SaeSet(release=str(release), id=name), layers, lm)


def test_a_release_is_read_and_named(sae_release: Path, make_sae: MakeSae, lm: LanguageModel, x: Tensor) -> None:
    found, identity = load(sae_release, lm, (0, 2))
    assert list(found) == [0, 2]
    assert all(torch.equal(found[layer].encode(x), Dictionary(make_sae(layer), layer).encode(x)) for layer in found)
    assert not any(p.requires_grad for d in found.values() for p in d.sae.parameters())
    assert identity["width"] == [48]
    assert identity["decoder_norms"] == [0.5, 2.0]
    assert identity["architecture"] == ["jumprelu"]
    assert identity["sha256"] == load(sae_release, lm, (0, 2))[1]["sha256"] != load(sae_release, lm, (0, 1))[1]["sha256"]


def test_a_release_that_is_not_there_is_refused(sae_release: Path, lm: LanguageModel) -> None:
    with pytest.raises(
        UserError, match=r"no SAE in '.*/layr_0' \(no sae_weights\.safetensors, .*\); did you mean 'layer_0'\? There: layer_0, layer_1, layer_2"
    ):
        load(sae_release, lm, name="layr_{layer}")
    with pytest.raises(UserError, match=r"no SAE in '.*nowhere/layer_0' \(no sae_weights\.safetensors, .*\)\. There: nothing"):
        load(sae_release / "nowhere", lm)
    with pytest.raises(UserError, match=r"sae: 'no-such-release' is neither a folder nor a release of sae-lens\. Releases have names"):
        load(Path("no-such-release"), lm)


@pytest.mark.parametrize(("name", "content"), [("cfg.json", "{"), ("cfg.json", None), ("sae_weights.safetensors", "xx"), ("cfg.json", "{}")])
def test_damaged_files_are_refused(name: str, content: str | None, sae_release: Path, lm: LanguageModel, tmp_path: Path) -> None:
    shutil.copytree(sae_release, tmp_path / "r")
    path = tmp_path / "r" / "layer_1" / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"the SAE in '.*/layer_1' cannot be read"):
        load(tmp_path / "r", lm)


def test_saes_of_another_model_or_layer_are_refused(sae_release: Path, make_sae: MakeSae, lm: LanguageModel, tmp_path: Path) -> None:
    make_sae(0, d_in=64).save_model(tmp_path / "wide" / "layer_0")
    with pytest.raises(UserError, match="reads vectors of 64, the model's residual stream has 32; choose SAEs made for this model"):
        load(tmp_path / "wide", lm, (0,))
    for number, hook in enumerate(("model.layers.0", "model.layers.0.output", "transformer.h.0", None)):
        make_sae(0, hook=hook).save_model(tmp_path / f"fine_{number}" / "layer_0")
        assert list(load(tmp_path / f"fine_{number}", lm, (0,))[0]) == [0]
    after = "'blocks.1.hook_resid_post', the output of block 1, but is used for layer 0: choose an id whose {layer} matches"
    before = (
        "'blocks.0.hook_resid_pre', the output of block -1, but is used for layer 0: which is one less; write {layer+1} in the id instead of {layer}"
    )
    between = "'blocks.0.hook_resid_mid', lingact measures the outputs of blocks; choose SAEs on the residual stream"
    for told in (after, before, between):
        hook = told.split("'")[1]
        make_sae(0, hook=hook).save_model(tmp_path / hook / "layer_0")
        with pytest.raises(UserError, match=re.escape(f"was trained on {told}")):
            load(tmp_path / hook, lm, (0,))


def test_saes_named_by_the_block_that_reads_them(make_sae: MakeSae, lm: LanguageModel, tmp_path: Path) -> None:
    for block in (1, 2):
        make_sae(block, hook="blocks.{layer}.hook_resid_pre").save_model(tmp_path / f"blocks.{block}.hook_resid_pre")
    found, _ = load(tmp_path, lm, (0, 1), "blocks.{layer+1}.hook_resid_pre")
    assert [dictionary.sae.cfg.metadata.hook_name for dictionary in found.values()] == ["blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"]
    given, _ = load(tmp_path, lm, (1,), {1: "blocks.2.hook_resid_pre"})
    assert torch.equal(given[1].sae.W_enc, found[1].sae.W_enc)
    with pytest.raises(UserError, match=r"no id for layer 0 \(given: 1\); add it, or name the layers in sae.layers"):
        load(tmp_path, lm, (0, 1), {1: "blocks.2.hook_resid_pre"})


@pytest.mark.parametrize(
    ("metadata", "config", "told"),
    [
        ({"prepend_bos": False}, {}, "texts without BOS at their beginning, but the model's tokenizer adds one; write model.bos=false"),
        ({"model_from_pretrained_kwargs": {"center_writing_weights": True}}, {}, "weights TransformerLens had centred"),
        ({}, {"normalize_activations": "expected_average_only_in"}, r"divided by their mean norm, which is not in its files; fold it in first"),
        ({}, {"architecture": "matching_pursuit"}, "of the kind 'matching_pursuit'; lingact reads standard, gated, topk, jumprelu"),
    ],
)
def test_saes_made_under_other_habits_are_refused(
    metadata: dict[str, Any], config: dict[str, Any], told: str, make_sae: MakeSae, lm: LanguageModel, tmp_path: Path
) -> None:
    make_sae(0).save_model(tmp_path / "layer_0")
    path = tmp_path / "layer_0" / "cfg.json"
    settings = json.loads(path.read_text()) | config
    if "architecture" in config:
        settings |= {"residual_threshold": 0.1, "max_iterations": 3}
    settings["metadata"] |= metadata
    path.write_text(json.dumps(settings))
    if "architecture" in config:
        weights = load_file(tmp_path / "layer_0" / "sae_weights.safetensors")
        save_file({name: weights[name] for name in ("W_dec", "b_dec")}, tmp_path / "layer_0" / "sae_weights.safetensors")
    with pytest.raises(UserError, match=told):
        load(tmp_path, lm, (0,))


def plant(folder: Path, name: str, value: float) -> None:
    weights = load_file(folder / "sae_weights.safetensors")
    weights[name].view(-1)[-1] = value
    save_file(weights, folder / "sae_weights.safetensors")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("W_enc", float("nan"), "'W_enc' holds 1 value that is not finite (1 NaN)"),
        ("b_enc", float("-inf"), "'b_enc' holds 1 value that is not finite (1 infinite)"),
        ("threshold", float("nan"), "'threshold' holds 1 value that is not finite (1 NaN)"),
        ("threshold", float("-inf"), "'threshold' holds 1 value that is not finite (1 infinite)"),
        ("b_dec", float("inf"), "'b_dec' holds 1 value that is not finite (1 infinite)"),
        # Its square is beyond float32.
        ("W_dec", 1e30, "'decoder norms' holds 1 value that is not finite (1 infinite)"),
    ],
)
def test_weights_that_are_not_finite_are_refused(name: str, value: float, told: str, sae_release: Path, lm: LanguageModel, tmp_path: Path) -> None:
    shutil.copytree(sae_release, tmp_path / "own")
    plant(tmp_path / "own/layer_1", name, value)
    where = f"the SAE of layer 1, '{tmp_path}/own/layer_1/sae_weights.safetensors': "
    with pytest.raises(UserError, match=re.escape(where + told)):
        load(tmp_path / "own", lm)
    load(tmp_path / "own", lm, (0, 2))


def test_a_latent_that_nothing_wakes_is_dead_and_no_mistake(sae_release: Path, lm: LanguageModel, x: Tensor, tmp_path: Path) -> None:
    shutil.copytree(sae_release, tmp_path / "own")
    plant(tmp_path / "own/layer_1", "threshold", float("inf"))
    found, _ = load(tmp_path / "own", lm, (1,))
    features = found[1].encode(x)
    assert features[:, -1].count_nonzero() == 0
    assert features[:, :-1].count_nonzero() > 0
    assert found[1].encode_straight_through(x, 1.0).isfinite().all()
    assert found[1].decode(features).isfinite().all()


def test_waiting_saes_come_back_as_they_were(dictionaries: Dictionaries, x: Tensor) -> None:
    before = {layer: dictionary.encode(x) for layer, dictionary in dictionaries.items()}
    with offloaded(dictionaries.values(), decoders_only=True):
        assert all(torch.equal(dictionary.encode(x), before[layer]) for layer, dictionary in dictionaries.items())
    assert all(torch.equal(dictionary.decode(dictionary.encode(x)), dictionary.decode(before[layer])) for layer, dictionary in dictionaries.items())
