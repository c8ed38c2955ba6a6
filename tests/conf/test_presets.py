"""Presets of models and SAEs: the shapes are those of transformers' classes, the ids stand in sae-lens's table."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from lingact.config.model import ModelConfig, SaeSet, Shape
from lingact.errors import UserError
from lingact.models.sae_sources import releases, same_model
from lingact.models.sae_files import width_of
from lingact.models.shapes import linear_modules, shape_of, weights

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
SIGLIP = {"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14}


def model_config(preset: str) -> ModelConfig:
    return composed("analyze", f"model={preset}").model


def transformers_config(shape: Shape, *, tower: bool = False) -> PretrainedConfig:
    """The configuration that this shape stands for, by transformers' names."""
    if shape.architecture == "gpt2":
        sizes: dict[str, Any] = {"n_embd": shape.d_model, "n_layer": shape.layers, "n_head": shape.heads, "n_inner": shape.d_mlp}
        return AutoConfig.for_model("gpt2", **sizes, vocab_size=shape.vocabulary, n_positions=shape.positions)
    sizes = {
        "hidden_size": shape.d_model,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.d_mlp,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
    }
    if shape.architecture != "gpt_neox":
        sizes |= {"num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim}
    if tower:
        return AutoConfig.for_model("gemma3", text_config=sizes, vision_config=SIGLIP | {"vision_use_head": False})
    return AutoConfig.for_model({"gemma3": "gemma3_text"}.get(shape.architecture, shape.architecture), **sizes)


def test_every_model_has_saes_and_every_count_is_checked() -> None:
    assert set(MEASURED.values()) == set(PUBLISHED) == set(MODELS)
    assert set(MEASURED) | {"microworld"} == {path.stem for path in CONF.glob("sae/*.yaml")}


@pytest.mark.parametrize("preset", MODELS)
def test_the_shape_is_that_of_the_class(preset: str, tmp_path: Path) -> None:
    config = model_config(preset)
    shape = config.shape
    assert shape is not None
    real = transformers_config(shape, tower=shape.beside > 0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(real)
    assert weights(shape) == sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[preset]
    decoder = model.get_decoder()
    blocks = next(m for m in decoder.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == shape.layers)
    matrices = [weight for name, weight in blocks[0].named_parameters() if weight.ndim == 2]
    assert sum(i * o for i, o in linear_modules(shape)) == sum(weight.numel() for weight in matrices)
    assert len(linear_modules(shape)) == len(matrices)
    # The file that it leaves says the same.
    real.save_pretrained(tmp_path)
    assert shape_of(config.model_copy(update={"name": str(tmp_path)})) == (shape, "its config.json")


def test_a_mistral_and_a_qwen_2_are_counted_too() -> None:
    for architecture in ("mistral", "qwen2"):
        shape = Shape(
            architecture=architecture,
            layers=2,
            d_model=32,
            d_mlp=48,
            heads=4,
            kv_heads=2,
            head_dim=8,
            vocabulary=64,
            positions=None,
            tied=False,
            beside=0,
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(transformers_config(shape))
        assert weights(shape) == sum(parameter.numel() for parameter in model.parameters())


def test_what_is_not_on_this_machine_has_the_shape_of_its_preset() -> None:
    config = model_config("gpt2")
    assert shape_of(config) == (config.shape, "conf/model/")
    assert shape_of(config.model_copy(update={"shape": None})) == (None, "not known")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"d_sae": 1, "d_sae": 2}'])
def test_a_damaged_config_is_refused_with_its_path(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(
        UserError, match=rf"^'{tmp_path / 'config.json'}' cannot be read: it is cut off or of something else; it belongs to the model"
    ):
        shape_of(model_config("gpt2").model_copy(update={"name": str(tmp_path)}))
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "cfg.json").write_text(content)
    with pytest.raises(UserError, match=rf"^'{tmp_path / '0' / 'cfg.json'}' cannot be read"):
        width_of(SaeSet(release=str(tmp_path), id="{layer}"), 8)
    (tmp_path / "config.json").write_text("{}")
    assert shape_of(model_config("gpt2").model_copy(update={"name": str(tmp_path)}))[0] is None


def test_another_architecture_has_no_shape(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    assert shape_of(model_config("gpt2").model_copy(update={"name": str(tmp_path)})) == (None, "its config.json")


# --- SAEs ------------------------------------------------------------------------------------------------------------------------------------------


def sets_of(preset: str) -> list[SaeSet]:
    config = composed("analyze", f"sae={preset}").sae
    return [spec for spec in (config.measuring, config.heldout) if spec is not None]


@pytest.mark.parametrize("preset", MEASURED)
def test_every_layer_of_the_model_has_its_sae(preset: str) -> None:
    model = model_config(MEASURED[preset])
    assert model.shape is not None
    sets = sets_of(preset)
    assert len({(spec.release, spec.id) for spec in sets}) == len(sets)
    for spec in sets:
        release = releases()[spec.release]
        ids = {sae["id"]: sae["path"] for sae in release["saes"]}
        wanted = [spec.id_of(layer) for layer in range(model.shape.layers)]
        assert [sae_id for sae_id in wanted if sae_id not in ids] == []
        assert same_model(release["model"], model.name)


@pytest.mark.parametrize("preset", MEASURED)
def test_the_width_is_what_the_name_says(preset: str) -> None:
    shape = model_config(MEASURED[preset]).shape
    assert shape is not None
    for spec in sets_of(preset):
        assert spec.width is not None
        found, how = width_of(spec, shape.d_model)
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
    layers = range(config.model.shape.layers) if config.sae.layers == "all" else config.sae.layers
    for spec in filter(None, (config.sae.measuring, config.sae.heldout)):
        ids = {sae["id"] for sae in releases()[spec.release]["saes"]}
        assert [spec.id_of(layer) for layer in layers if spec.id_of(layer) not in ids] == []
        assert width_of(spec, config.model.shape.d_model)[0] == spec.width
