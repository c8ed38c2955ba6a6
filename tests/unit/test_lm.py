"""Residuals by hooks against what transformers itself gives."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

from lingact.config.choices import chosen_layers
from lingact.config.model import ModelConfig, SaeConfig, SaeSet
from lingact.data.corpus import ParallelCorpus
from lingact.data.tokens import TokenBatch
from lingact.errors import UserError
from lingact.models.devices import resolve_device
from lingact.models.lm import LanguageModel, captured, find_blocks, load_model

SHAPE: dict[str, Any] = {"vocab_size": 259, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPE |= {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}


@pytest.fixture
def batch(lm: LanguageModel, corpus: ParallelCorpus) -> TokenBatch:
    return lm.tokens.collate(lm.tokens.windows(corpus.texts["es"]))


def hooks(lm: LanguageModel) -> int:
    return sum(len(module._forward_hooks) for module in lm.model.modules())


@torch.no_grad()
def test_residuals_are_the_outputs_of_the_blocks(lm: LanguageModel, batch: TokenBatch) -> None:
    own: list[torch.Tensor] = []
    handle = lm.blocks[2].register_forward_hook(lambda _m, _i, output: own.append(output))
    reference = lm.model(input_ids=batch.ids, attention_mask=batch.attention.long(), output_hidden_states=True)
    handle.remove()
    residuals, predictions = lm.residuals(batch, (0, 1, 2), predict=True)
    assert sorted(residuals) == [0, 1, 2]
    for layer in (0, 1):
        assert torch.equal(residuals[layer], reference.hidden_states[layer + 1])
    assert torch.equal(residuals[2], own[0])
    assert not torch.allclose(residuals[2], reference.hidden_states[3]), "the last hidden state is normed"
    assert predictions is not None
    torch.testing.assert_close(predictions.logits(), reference.logits[batch.predicts])


@torch.no_grad()
def test_stopping_early_changes_nothing_and_saves_the_rest(lm: LanguageModel, batch: TokenBatch) -> None:
    full, _ = lm.residuals(batch, (0, 1), predict=True)
    reached: list[int] = []
    handles = [lm.blocks[i].register_forward_hook(lambda *_, i=i: reached.append(i)) for i in range(3)]
    early, predictions = lm.residuals(batch, (0, 1))
    for handle in handles:
        handle.remove()
    assert predictions is None
    assert reached[-1] <= 1
    assert all(torch.equal(early[layer], full[layer]) for layer in (0, 1))
    assert hooks(lm) == 0


def test_hooks_are_gone_after_an_exception(lm: LanguageModel, batch: TokenBatch) -> None:
    before, _ = lm.residuals(batch, (1,))
    with pytest.raises(ZeroDivisionError), captured(lm.blocks, (0, 2), stop=True):
        raise ZeroDivisionError
    assert hooks(lm) == 0
    with pytest.raises(IndexError), captured(lm.blocks, (0, 7), stop=False):
        pass
    assert hooks(lm) == 0
    lm.blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lm.residuals(batch, (0, 1))
    assert hooks(lm) == 0
    lm.blocks[1]._forward_pre_hooks.clear()
    assert torch.equal(lm.residuals(batch, (1,))[0][1], before[1])


@torch.no_grad()
def test_padding_changes_nothing(lm: LanguageModel, batch: TokenBatch, corpus: ParallelCorpus) -> None:
    together, _ = lm.residuals(batch, (0, 2))
    for row, window in enumerate(lm.tokens.windows(corpus.texts["es"])):
        alone, _ = lm.residuals(lm.tokens.collate([window]), (0, 2))
        for layer in (0, 2):
            torch.testing.assert_close(together[layer][row, : len(window.ids)], alone[layer][0], rtol=1e-4, atol=1e-5)


def test_gradients_flow_only_if_asked_for(lm: LanguageModel, batch: TokenBatch) -> None:
    lm.blocks[0].mlp.up_proj.weight.requires_grad_(True)
    residuals, _ = lm.residuals(batch, (1,))
    residuals[1].sum().backward()
    assert lm.blocks[0].mlp.up_proj.weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert not lm.residuals(batch, (1,))[0][1].requires_grad


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (LlamaConfig(**SHAPE), "model.layers"),
        (MistralConfig(**SHAPE), "model.layers"),
        (Qwen3Config(**SHAPE), "model.layers"),
        (Gemma2Config(**SHAPE), "model.layers"),
        (Gemma3TextConfig(**SHAPE), "model.layers"),
        # The vision tower has as many blocks.
        (Gemma3Config(text_config=SHAPE, vision_config=SHAPE | {"image_size": 28, "patch_size": 14}), "model.language_model.layers"),
        (GPT2Config(vocab_size=259, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1), "transformer.h"),
        (GPTNeoXConfig(**SHAPE), "gpt_neox.layers"),
    ],
    ids=["llama", "mistral", "qwen3", "gemma2", "gemma3", "gemma3 with vision", "gpt2", "gpt_neox"],
)
def test_blocks_are_found_in_every_architecture(config: Any, name: str, lm: LanguageModel, batch: TokenBatch) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    blocks = find_blocks(model, 2)
    assert blocks is model.get_submodule(name)
    other = LanguageModel(model, lm.tokenizer, lm.tokens, blocks, {})
    with torch.no_grad():
        expected = model(input_ids=batch.ids, attention_mask=batch.attention.long(), output_hidden_states=True)
        residuals, predictions = other.residuals(batch, (0,), predict=True)
    assert torch.equal(residuals[0], expected.hidden_states[1])
    assert predictions is not None
    torch.testing.assert_close(predictions.logits(), expected.logits[batch.predicts])


def test_blocks_of_gemma_and_of_nothing(lm: LanguageModel) -> None:
    assert lm.blocks is lm.model.model.layers
    with pytest.raises(UserError, match="cannot find the decoder blocks of Gemma2ForCausalLM: looked for one list of 4 equal modules, found none"):
        find_blocks(lm.model, 4)
    twice = nn.ModuleDict({"a": lm.blocks, "b": nn.ModuleList(nn.Linear(1, 1) for _ in range(3))})
    with pytest.raises(UserError, match=r"found \['a', 'b'\]"):
        find_blocks(twice, 3)


def test_layers_out_of_range_are_refused() -> None:
    one = SaeSet(release="r", id="layer_{layer}")
    assert chosen_layers(SaeConfig(measuring=one, heldout=None, layers="all"), 3) == (0, 1, 2)
    assert chosen_layers(SaeConfig(measuring=one, heldout=None, layers=(2, 0)), 3) == (0, 2)
    with pytest.raises(UserError, match=r"sae\.layers: \[3, 9\] out of range; the model has layers 0 to 2"):
        chosen_layers(SaeConfig(measuring=one, heldout=None, layers=(1, 3, 9)), 3)


def model_config(name: Path, context: int = 64, **changes: Any) -> ModelConfig:
    return ModelConfig(**({"name": str(name), "revision": None, "dtype": "float32", "attention": "eager", "context": context} | changes))


@pytest.fixture
def saved(lm: LanguageModel, tmp_path: Path) -> Path:
    lm.model.save_pretrained(tmp_path / "tiny")
    lm.tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_loaded_model_is_frozen_and_the_same(lm: LanguageModel, batch: TokenBatch, saved: Path) -> None:
    loaded = load_model(model_config(saved), "auto")
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    with torch.no_grad():
        assert torch.equal(loaded.residuals(batch, (2,))[0][2], lm.residuals(batch, (2,))[0][2])
    assert loaded.identity["sha256"] == load_model(model_config(saved), "cpu").identity["sha256"]
    assert loaded.tokens.windows(["ab"]) == lm.tokens.windows(["ab"])


def test_models_that_cannot_be_loaded_are_refused(saved: Path) -> None:
    with pytest.raises(UserError, match=r"model\.name: no model in the folder '.*/tony' \(no config\.json\); did you mean 'tiny'\?"):
        load_model(model_config(saved.with_name("tony")), "cpu")
    with pytest.raises(UserError, match=r"model\.context is 65; '.*tiny' takes at most 64 tokens"):
        load_model(model_config(saved, 65), "cpu")
    with pytest.raises(UserError, match="model 'no/such-model' cannot be loaded: HF_HUB_OFFLINE is set, and it was not downloaded before"):
        load_model(model_config(Path("no/such-model")), "cpu")
    with pytest.raises(UserError, match=r"model\.attention: sdpa leaves out the soft caps of '.*tiny'; use model\.attention=eager"):
        load_model(model_config(saved, attention="sdpa"), "cpu")
    with pytest.raises(UserError, match=r"model\.attention: flash_attention_2 is not installed here; use model\.attention=sdpa or eager"):
        load_model(model_config(saved, attention="flash_attention_2"), "cpu")
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}))
    with pytest.raises(UserError, match=r"comes with code of its own, which is run only if you ask for it: model\.trust_remote_code=true"):
        load_model(model_config(saved), "cpu")
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"model '.*tiny' has no weights in safetensors format, and reading other formats can run code"):
        load_model(model_config(saved), "cpu")


def plant(folder: Path, name: str, value: float, *, shards: bool = False) -> None:
    """Put a value into the first place of one of the saved weights; on the way the file may become two."""
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[0] = value
    if not shards:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    (folder / "model.safetensors").unlink()
    places = {key: f"model-0000{1 + (key == name)}-of-00002.safetensors" for key in weights}
    for file in set(places.values()):
        save_file({key: weights[key] for key, place in places.items() if place == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("name", "shards"), [("model.layers.1.mlp.up_proj.weight", False), ("model.norm.weight", True), ("model.embed_tokens.weight", False)]
)
def test_weights_that_are_not_finite_are_refused(name: str, shards: bool, value: float, saved: Path) -> None:
    plant(saved, name, value, shards=shards)
    file = "model-00002-of-00002" if shards else "model"
    with pytest.raises(
        UserError, match=rf"model '.*tiny': '{name}' in '.*tiny/{file}\.safetensors' holds 1 value that is not finite \(1 (NaN|infinite)\)"
    ):
        load_model(model_config(saved), "cpu")


def test_weights_that_do_not_fit_the_dtype_are_refused_with_one_that_they_fit(saved: Path) -> None:
    plant(saved, "model.layers.0.self_attn.q_proj.weight", 70000.0)
    with pytest.raises(
        UserError,
        match=r"'model\.layers\.0\.self_attn\.q_proj\.weight' in .* holds 1 value .* \(1 infinite\) in model\.dtype=float16.* use model\.dtype=bfloat16",
    ):
        load_model(model_config(saved, dtype="float16"), "cpu")
    assert load_model(model_config(saved, dtype="bfloat16"), "cpu").identity["dtype"] == "bfloat16"
    # What is no number in the file is in no dtype.
    plant(saved, "model.layers.0.self_attn.q_proj.weight", float("nan"))
    with pytest.raises(UserError, match=r"\(1 NaN\); all its outputs would be NaN"):
        load_model(model_config(saved, dtype="float16"), "cpu")


@pytest.mark.parametrize(("wanted", "prefix"), [("auto", [2]), (True, [2]), (False, [])])
def test_bos_as_asked_for(wanted: Any, prefix: list[int], saved: Path) -> None:
    loaded = load_model(model_config(saved, bos=wanted), "cpu")
    assert loaded.tokens.prefix == loaded.tokenizer("").input_ids == prefix
    assert loaded.tokens.windows(["ab"])[0].ids == loaded.tokenizer("ab").input_ids


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="device: 'gpu7' is unknown; use auto, cpu, cuda or cuda:N"):
        resolve_device("gpu7")
    with pytest.raises(UserError, match="device: 'cuda:99' is not there"):
        resolve_device("cuda:99")
