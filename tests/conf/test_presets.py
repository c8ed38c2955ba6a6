"""Presets of models and SAEs: the sizes are the published ones, the ids stand in sae-lens's table."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from packaging.version import Version

from lingact.config.model import ModelConfig, SaeSet
from lingact.errors import UserError
from lingact.models.model_files import describe_model, facts_of
from lingact.models.sae_files import width_of
from lingact.models.sae_sources import releases, same_model
from lingact.models.sizes import sizes_of

from .test_options import CONF, composed

MODELS = sorted(path.stem for path in CONF.glob("model/*.yaml") if path.stem != "microworld")
MEASURED = {
    "gemma_scope_2b_16k": "gemma2_2b",
    "gemma_scope_9b_16k": "gemma2_9b",
    "gemma_scope_2_270m": "gemma3_270m",
    "gemma_scope_2_1b": "gemma3_1b",
    "gemma_scope_2_4b": "gemma3_4b",
    "llama_scope_8x": "llama31_8b",
    "qwen_scope_1_7b": "qwen3_1_7b",
    "qwen_scope_8b": "qwen3_8b",
    "gpt2_resid_post": "gpt2",
    "pythia_70m": "pythia_70m",
}
"""SAE preset -> the preset of the model that they were made for."""
PUBLISHED = {
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "gemma3_4b": 4_300_079_472,
    "llama31_8b": 8_030_261_248,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_8b": 8_190_735_360,
    "gpt2": 124_439_808,
    "pythia_70m": 70_426_624,
}
"""Weights, as the models' pages count them."""
COUNTED_ALIKE = Version(transformers.__version__) >= Version("5.23")
"""Version 5.4 computes the angles of rotary positions by a product, which is counted, too; 5.23 does not. Those between were not tried."""
WORK = {
    "gemma2_2b": (4_048_551_936, 212_992, 1_179_648_000),
    "gemma2_9b": (16_647_192_576, 688_128, 1_835_008_000),
    "gemma3_270m": (200_540_160, 73_728, 335_544_320),
    "gemma3_1b": (1_395_523_584, 106_496, 603_979_776),
    "gemma3_4b": (6_417_285_120, 278_528, 1_342_504_960),
    "llama31_8b": (13_958_643_712, 524_288, 1_050_673_152),
    "qwen3_1_7b": (2_818_572_288, 229_376, 622_329_856),
    "qwen3_8b": (13_891_534_848, 589_824, 1_244_659_712),
    "gpt2": (169_869_312, 36_864, 77_194_752),
    "pythia_70m": (37_748_736, 12_288, 51_511_296),
}
"""Floating-point operations by arithmetic: of a token in the blocks, of a token and one of its window, and of a token's logits."""


def model_config(preset: str) -> ModelConfig:
    return composed("analyze", f"model={preset}").model


def test_every_model_has_saes_and_every_count_is_checked() -> None:
    assert set(MEASURED.values()) == set(PUBLISHED) == set(MODELS)
    assert set(MEASURED) | {"microworld", "own"} == {path.stem for path in CONF.glob("sae/*.yaml")}


@pytest.mark.parametrize("preset", MODELS)
def test_the_sizes_are_the_published_ones(preset: str) -> None:
    config = model_config(preset)
    found = sizes_of(config)
    assert found is not None
    sizes, how = found
    assert how == "lingact's config.json"
    assert sizes.weights == PUBLISHED[preset]
    assert (sizes.linear_work, sizes.attention_work, sizes.logit_work) == pytest.approx(WORK[preset], rel=0 if COUNTED_ALIKE else 1e-4)
    # A block's matrices are all its weights but norms and biases: two operations for a weight and token.
    assert sizes.linear_work == pytest.approx(2 * sizes.layers * sum(i * o for i, o in sizes.linear), rel=0 if COUNTED_ALIKE else 1e-4)
    assert facts_of(config).layers == sizes.layers
    assert facts_of(config).d_model == sizes.d_model


def test_the_config_of_the_models_folder_comes_first(tmp_path: Path) -> None:
    described = describe_model(model_config("gpt2"))
    assert described is not None
    (tmp_path / "config.json").write_text(json.dumps(described.entries | {"n_layer": 3}))
    found = sizes_of(model_config("gpt2").model_copy(update={"name": str(tmp_path)}))
    assert found is not None
    assert (found[0].layers, found[1]) == (3, "its config.json")


@pytest.mark.parametrize(
    ("model_type", "changes", "work"),
    [
        # Two blocks of queries, keys, values, output and three matrices in the MLP.
        ("mistral", {}, 2 * 2 * (32 * (32 + 16 + 16) + 32 * 32 + 3 * 32 * 48)),
        ("olmo2", {}, 2 * 2 * (32 * (32 + 16 + 16) + 32 * 32 + 3 * 32 * 48)),
        # A token passes the router and two of the eight experts.
        ("mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2}, 2 * 2 * (32 * (32 + 16 + 16) + 32 * 32 + 32 * 8 + 2 * 3 * 32 * 48)),
    ],
)
def test_an_architecture_without_a_preset_is_counted_too(model_type: str, changes: dict[str, Any], work: int, tmp_path: Path) -> None:
    entries = {"model_type": model_type, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 64}
    entries |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, **changes}
    (tmp_path / "config.json").write_text(json.dumps(entries))
    found = sizes_of(model_config("gpt2").model_copy(update={"name": str(tmp_path)}))
    assert found is not None
    sizes = found[0]
    assert (sizes.linear_work, sizes.attention_work, sizes.logit_work) == pytest.approx(
        (work, 2 * 4 * 4 * 8, 2 * 64 * 32), rel=0 if COUNTED_ALIKE else 3e-4
    )
    assert (sizes.layers, sizes.d_model, sizes.vocabulary, sizes.heads, sizes.rotated) == (2, 32, 64, 4, (4 + 2) * 8)


def test_what_lingact_has_no_config_for_has_no_sizes() -> None:
    assert sizes_of(model_config("gpt2").model_copy(update={"name": "me/mine"})) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"d_sae": 1, "d_sae": 2}'])
def test_a_damaged_config_is_refused_with_its_path(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(
        UserError, match=rf"^'{tmp_path / 'config.json'}' cannot be read: it is truncated or not a lingact file; it belongs to the model"
    ):
        sizes_of(model_config("gpt2").model_copy(update={"name": str(tmp_path)}))
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "cfg.json").write_text(content)
    with pytest.raises(UserError, match=rf"^'{tmp_path / '0' / 'cfg.json'}' cannot be read"):
        width_of(SaeSet(release=str(tmp_path), id="{layer}"), 8)


@pytest.mark.parametrize("entries", [{}, {"model_type": "nothing"}, {"model_type": "t5"}, {"model_type": "gemma2", "hidden_size": "wide"}])
def test_what_transformers_cannot_build_has_no_sizes(entries: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(entries))
    assert sizes_of(model_config("gpt2").model_copy(update={"name": str(tmp_path)})) is None


# --- SAEs ------------------------------------------------------------------------------------------------------------------------------------------


def sets_of(preset: str) -> list[SaeSet]:
    config = composed("analyze", f"sae={preset}").sae
    return [spec for spec in (config.measuring, config.heldout) if spec is not None]


@pytest.mark.parametrize("preset", MEASURED)
def test_every_layer_of_the_model_has_its_sae(preset: str) -> None:
    model = model_config(MEASURED[preset])
    sets = sets_of(preset)
    assert len({(spec.release, spec.id) for spec in sets}) == len(sets)
    for spec in sets:
        release = releases()[spec.release]
        ids = {sae["id"]: sae["path"] for sae in release["saes"]}
        wanted = [spec.id_of(layer) for layer in range(facts_of(model).layers or 0)]
        assert [sae_id for sae_id in wanted if sae_id not in ids] == []
        assert same_model(release["model"], model.name)


@pytest.mark.parametrize("preset", MEASURED)
def test_the_width_is_what_the_name_says(preset: str) -> None:
    d_model = facts_of(model_config(MEASURED[preset])).d_model
    assert d_model is not None
    for spec in sets_of(preset):
        assert spec.width is not None
        found, how = width_of(spec, d_model)
        assert found == spec.width
        assert how == ("its name" if preset != "pythia_70m" else "conf/sae/")


@pytest.mark.parametrize(
    ("release", "sae_id", "width"),
    [
        ("gemma-scope-2b-pt-res", "layer_{layer}/width_524k/average_l0_10", 524_288),
        ("gemma-scope-2b-pt-res", "layer_{layer}/width_1m/average_l0_10", 1_048_576),
        ("qwen-scope-3.5-27b-w80k-l50", "layer{layer}", 81_920),
        ("llama_scope_lxr_32x", "l{layer}r_32x", 32 * 64),
        ("mine", "layer_{layer}", None),
    ],
)
def test_widths_in_names(release: str, sae_id: str, width: int | None) -> None:
    assert width_of(SaeSet(release=release, id=sae_id), 64)[0] == width


def test_the_width_of_a_local_set_is_read_from_its_files() -> None:
    config = composed("analyze").sae
    assert [width_of(spec.model_copy(update={"width": None}), 128) for spec in (config.measuring, config.heldout)] == [
        (512, "its cfg.json"),
        (1024, "its cfg.json"),
    ]
    assert (config.measuring.width, config.heldout.width) == (512, 1024)


@pytest.mark.parametrize("experiment", ["gemma2_2b_quick", "gemma3_1b", "gpt2", "llama31_8b"])
def test_every_layer_of_an_experiment_has_its_saes(experiment: str) -> None:
    config = composed("train", f"experiment={experiment}")
    facts = facts_of(config.model)
    layers = range(facts.layers or 0) if config.sae.layers == "all" else config.sae.layers
    for spec in filter(None, (config.sae.measuring, config.sae.heldout)):
        ids = {sae["id"] for sae in releases()[spec.release]["saes"]}
        assert [spec.id_of(layer) for layer in layers if spec.id_of(layer) not in ids] == []
        assert width_of(spec, facts.d_model or 0)[0] == spec.width
