"""Which SAEs there are, by sae-lens's own table, and those in folders by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lingact.errors import UserError
from lingact.models.sae_sources import check_release, load_sae, ranges, releases, sae_rows, same_model


def test_what_there_is_for_a_model() -> None:
    rows, elsewhere = sae_rows("google/gemma-2-2b")
    by_place = {(row["release"], row["id"]): row["layers"] for row in rows}
    assert by_place["gemma-scope-2b-pt-res-canonical", "layer_{layer}/width_16k/canonical"] == "0-25"
    assert by_place["gemma-scope-2b-pt-res-canonical", "layer_{layer}/width_1m/canonical"] == "5, 12, 19"
    assert by_place["gemma-2-2b-res-matryoshka-dc", "blocks.{layer}.hook_resid_post"] == "0-24"
    assert not any(place in release for release, _ in by_place for place in ("-att", "-mlp", "transcoder", "temporal"))
    counted = sum(len(about["saes"]) for about in releases().values() if same_model(about["model"], "google/gemma-2-2b"))
    assert 0 < elsewhere < counted
    found = {row["release"]: row for row in sae_rows("Qwen/Qwen3-8B-Base")[0]}
    assert found["qwen-scope-3-8b-base-w64k-l50"] == {"release": "qwen-scope-3-8b-base-w64k-l50", "id": "layer{layer}", "layers": "0-35", "L0": "50"}
    assert [row["layers"] for row in sae_rows("gpt2")[0]] == ["0-11", "0-11", "11"]
    assert {row["id"] for row in sae_rows("meta-llama/Llama-3.1-8B")[0]} == {"l{layer}r_8x", "l{layer}r_32x"}
    assert sae_rows("nobody/nothing") == ([], 0)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("google/gemma-2-2b", "gemma-2-2b", True),
        ("openai-community/gpt2", "gpt2-small", True),
        ("gpt2-medium", "gpt2-small", False),
        ("google/gemma-2-2b-it", "gemma-2-2b", False),
        ("meta-llama/Llama-3.1-8B", "unsloth/Meta-Llama-3.1-8B", True),
    ],
)
def test_names_of_one_model(one: str, other: str, same: bool) -> None:
    assert same_model(one, other) is same_model(other, one) is same


def test_numbers_as_ranges() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert ranges([]) == ""


def test_releases_without_what_is_asked_for() -> None:
    release, name = "gemma-scope-9b-pt-res-canonical", "layer_{layer}/width_1m/canonical"
    check_release(release, {layer: f"layer_{layer}/width_16k/canonical" for layer in range(42)})
    check_release("somebody/saes", {0: "anything"})
    asked = {layer: name.replace("{layer}", str(layer)) for layer in (8, 9, 20, 21)}
    told = (
        r"has no 'layer_8/width_1m/canonical' \(layer 8, 21\): it has this id for the layers 9, 20. Write sae.layers=\[9,20\], or choose other SAEs"
    )
    with pytest.raises(UserError, match=told):
        check_release(release, asked)
    with pytest.raises(UserError, match=r"no layer has it; did you mean 'layer_0/width_16k/canonical'\? lingact analyze --list-saes model="):
        check_release(release, {0: "layer_0/width_16/canonical"})
    with pytest.raises(UserError, match=r"is neither a folder nor a release of sae-lens; did you mean 'gemma-scope-2b-pt-res-canonical'"):
        check_release("gemma-scope-2b-pt-res-canonicle", {0: "layer_0"})


def numbers(*shape: int) -> torch.Tensor:
    return torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) / 10


@pytest.fixture
def x() -> torch.Tensor:
    return torch.tensor([[1.0, -1.0, 2.0], [4.0, 3.5, 2.0]])


def activations(folder: Path, sae_id: str, x: torch.Tensor) -> tuple[Any, torch.Tensor]:
    with torch.no_grad():
        sae = load_sae(str(folder), sae_id, "cpu")
        return sae, sae.encode(x)


def test_a_folder_of_sparsify(x: torch.Tensor, tmp_path: Path) -> None:
    folder = tmp_path / "layers.3"
    folder.mkdir()
    encoder = numbers(4, 3)
    save_file(
        {"encoder.weight": encoder, "encoder.bias": -numbers(4) / 4, "W_dec": numbers(4, 3), "b_dec": torch.ones(3)}, folder / "sae.safetensors"
    )
    (folder / "cfg.json").write_text(json.dumps({"d_in": 3, "num_latents": 4, "k": 2, "expansion_factor": 32, "normalize_decoder": True}))
    sae, found = activations(tmp_path, "layers.3", x)
    assert sae.cfg.metadata.hook_name == "blocks.3.hook_resid_post"
    # As sparsify does it: the decoder's bias is taken off first; then the two largest of what is above zero.
    pre = (x - 1) @ encoder.T - numbers(4) / 4
    expected = torch.where(pre >= pre.topk(2, dim=-1).values[:, -1:], pre.relu(), 0.0)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(sae.decode(found), found @ numbers(4, 3) + 1)
    (folder / "cfg.json").write_text(json.dumps({"d_in": 3, "num_latents": 4, "k": 2, "transcode": True}))
    with pytest.raises(UserError, match=r"cannot be read: lingact reads only top-k autoencoders of sparsify"):
        load_sae(str(tmp_path), "layers.3", "cpu")


def test_a_folder_of_llama_scope_is_scaled_as_the_release_is(x: torch.Tensor, tmp_path: Path) -> None:
    folder = tmp_path / "L4R"
    (folder / "checkpoints").mkdir(parents=True)
    weights = {"encoder.weight": numbers(4, 3), "encoder.bias": numbers(4), "decoder.weight": numbers(3, 4), "decoder.bias": torch.ones(3)}
    save_file(weights, folder / "checkpoints/final.safetensors")
    about = {"d_model": 3, "d_sae": 4, "jump_relu_threshold": 0.5, "hook_point_in": "blocks.4.hook_resid_post"}
    (folder / "hyperparams.json").write_text(json.dumps(about | {"dataset_average_activation_norm": {"in": 2.0}}))
    sae, found = activations(tmp_path, "L4R", x)
    scale = 3**0.5 / 2.0
    pre = scale * x @ weights["encoder.weight"].T + weights["encoder.bias"]
    torch.testing.assert_close(found, torch.where(pre > 0.5 * scale, pre, 0.0))  # sae-lens scales the threshold, too
    torch.testing.assert_close(sae.decode(found), (found @ weights["decoder.weight"].T + 1) / scale)
    assert sae.cfg.normalize_activations == "none"


def test_a_norm_of_zero_in_a_folder_of_llama_scope_is_refused(x: torch.Tensor, tmp_path: Path) -> None:
    folder = tmp_path / "L4R"
    (folder / "checkpoints").mkdir(parents=True)
    weights = {"encoder.weight": numbers(4, 3), "encoder.bias": numbers(4), "decoder.weight": numbers(3, 4), "decoder.bias": torch.ones(3)}
    save_file(weights, folder / "checkpoints/final.safetensors")
    about = {"d_model": 3, "d_sae": 4, "jump_relu_threshold": 0.5, "hook_point_in": "blocks.4.hook_resid_post"}
    (folder / "hyperparams.json").write_text(json.dumps(about | {"dataset_average_activation_norm": {"in": 0.0}}))
    with pytest.raises(UserError, match=r"the SAE in '.*L4R' cannot be read: .*zero"):
        activations(tmp_path, "L4R", x)


def test_a_folder_of_gemma_scope_2(x: torch.Tensor, tmp_path: Path) -> None:
    folder = tmp_path / "resid_post" / "layer_5_width_16k_l0_small"
    folder.mkdir(parents=True)
    weights = {"w_enc": numbers(3, 4), "w_dec": numbers(4, 3), "b_enc": -numbers(4), "b_dec": torch.ones(3), "threshold": numbers(4)}
    save_file(weights, folder / "params.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "jump_relu", "model_name": "gemma-3-1b-pt"}))
    sae, found = activations(tmp_path, "resid_post/layer_5_width_16k_l0_small", x)
    assert sae.cfg.metadata.hook_name == "blocks.5.hook_resid_post"
    pre = x @ weights["w_enc"] + weights["b_enc"]
    torch.testing.assert_close(found, torch.where(pre > weights["threshold"], pre, 0.0))
    (folder / "params.safetensors").write_bytes(b"xx")
    with pytest.raises(UserError, match=r"the SAE in '.*l0_small' cannot be read"):
        load_sae(str(tmp_path), "resid_post/layer_5_width_16k_l0_small", "cpu")
