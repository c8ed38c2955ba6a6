"""Adapters on a tiny random Gemma 2: what goes in comes out, the base stays as it is, and strangers are refused."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from lingact.adapters import WEIGHTS, adapter_hash, attach_lora, base_behaviour, find_adapter, load_adapter, save_adapter, weights_hash
from lingact.config import PeftConfig
from lingact.errors import UserError

PEFT = PeftConfig(r=4, alpha=8, dropout=0.0, targets=("q_proj", "up_proj"), layers="all")
IDS = torch.arange(2 * 7).reshape(2, 7)


def tiny_model(seed: int = 0, *, d_model: int = 32, layers: int = 2) -> Gemma2ForCausalLM:
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=d_model,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=16,
        attn_implementation="eager",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Gemma2ForCausalLM(config).eval().requires_grad_(False)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def trained(model: Gemma2ForCausalLM) -> PeftModel:
    """An adapter that changes something, after three real steps."""
    wrapped = attach_lora(model, PEFT, seed=1)
    optimiser = torch.optim.AdamW([parameter for parameter in wrapped.parameters() if parameter.requires_grad], lr=0.05)
    for _ in range(3):
        optimiser.zero_grad()
        wrapped(input_ids=IDS, labels=IDS).loss.backward()
        optimiser.step()
    return wrapped.eval()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Tensor, str]:
    """A run folder with an adapter, its logits, and its base's hash."""
    model = tiny_model()
    base_hash = weights_hash(model)
    wrapped = trained(model)
    save_adapter(wrapped, tmp_path / "run" / "adapter", "tiny", base_hash)
    return tmp_path / "run", logits(wrapped), base_hash


def test_a_new_adapter_changes_nothing_and_its_seed_decides() -> None:
    base = logits(tiny_model())
    before = torch.random.get_rng_state()
    one, same, other = (attach_lora(tiny_model(), PEFT, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(logits(one), base)
    assert adapter_hash(one) == adapter_hash(same) != adapter_hash(other)
    assert all("lora_" in name for name, parameter in one.named_parameters() if parameter.requires_grad)


def test_layers_limit_the_adapter() -> None:
    wrapped = attach_lora(tiny_model(), PEFT.model_copy(update={"layers": (1,)}), seed=1)
    assert {name.split(".layers.")[1][0] for name, _ in wrapped.named_parameters() if "lora_" in name} == {"1"}


def test_the_base_stays_bit_identical_through_training() -> None:
    model = tiny_model()
    before, base = weights_hash(model), logits(model)
    wrapped = trained(model)
    assert weights_hash(wrapped) == before
    assert not torch.equal(logits(wrapped), base)
    with base_behaviour(wrapped):
        assert torch.equal(logits(wrapped), base)
    assert not torch.equal(logits(wrapped), base)


def test_the_hash_sees_every_weight() -> None:
    model = tiny_model()
    before = weights_hash(model)
    assert before == weights_hash(tiny_model())
    model.model.norm.weight.data[3] += 1e-6
    assert weights_hash(model) != before
    assert weights_hash(tiny_model().to(torch.bfloat16)) != before


def test_base_behaviour_leaves_frozen_frozen_and_plain_models_alone(saved: tuple[Path, Tensor, str]) -> None:
    wrapped = load_adapter(tiny_model(), str(saved[0]))
    with base_behaviour(wrapped):
        pass
    assert not any(parameter.requires_grad for parameter in wrapped.parameters())
    plain = tiny_model()
    with base_behaviour(plain):
        assert torch.equal(logits(plain), logits(tiny_model()))


def test_base_behaviour_ends_with_an_exception() -> None:
    wrapped = trained(tiny_model())
    adapted = logits(wrapped)
    with pytest.raises(RuntimeError, match="inside"), base_behaviour(wrapped):
        raise RuntimeError("inside")
    assert torch.equal(logits(wrapped), adapted)


@pytest.mark.parametrize("inner", ["", "adapter"])
def test_a_saved_adapter_comes_back(saved: tuple[Path, Tensor, str], inner: str) -> None:
    folder, adapted, _ = saved
    wrapped = load_adapter(tiny_model(), str(folder / inner))
    assert torch.equal(logits(wrapped), adapted)
    assert not wrapped.training
    assert not any(parameter.requires_grad for parameter in wrapped.parameters())
    with base_behaviour(wrapped):
        assert torch.equal(logits(wrapped), logits(tiny_model()))


def test_plain_peft_loads_it(saved: tuple[Path, Tensor, str]) -> None:
    folder, adapted, base_hash = saved
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)  # peft's own
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_model(), str(folder / "adapter")).eval()), adapted)
    assert json.loads((folder / "adapter" / "lingact.json").read_text()) == {"base_model": "tiny", "base_sha256": base_hash}
    assert [path.name for path in folder.iterdir()] == ["adapter"]


def test_saving_again_replaces(saved: tuple[Path, Tensor, str]) -> None:
    folder, _, base_hash = saved
    (folder / "adapter" / "left_over").touch()
    fresh = attach_lora(tiny_model(), PEFT, seed=3)
    save_adapter(fresh, folder / "adapter", "tiny", base_hash)
    assert [path.name for path in folder.iterdir()] == ["adapter"]
    assert not (folder / "adapter" / "left_over").exists()
    assert adapter_hash(load_adapter(tiny_model(), str(folder))) == adapter_hash(fresh)


def test_missing_things_are_named(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match=r"there is no folder '.*/rns'; did you mean 'runs'\?"):
        find_adapter(str(tmp_path / "rns"))
    with pytest.raises(UserError, match=r"is not an adapter: it has no adapter_config\.json"):
        find_adapter(str(tmp_path / "runs"))
    (tmp_path / "runs" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="has no adapter; name the folder of a finished"):
        find_adapter(str(tmp_path / "runs"))
    with pytest.raises(UserError, match="is a file"):
        find_adapter(str(tmp_path / "runs" / "manifest.json"))


def test_a_hub_id_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="'someone/adapter' is neither a folder here nor an adapter that the hub gives"):
        find_adapter("someone/adapter")


def test_an_adapter_of_another_model_is_refused_by_hash(saved: tuple[Path, Tensor, str]) -> None:
    stranger = tiny_model(seed=1)
    with pytest.raises(UserError, match=r"belongs to another model: it was trained on 'tiny' with weights \w{12}, this model has \w{12}"):
        load_adapter(stranger, str(saved[0]))
    assert torch.equal(logits(stranger), logits(tiny_model(seed=1)))
    with pytest.raises(UserError, match="belongs to another model"):
        load_adapter(tiny_model(), str(saved[0]), base_sha256="0" * 64)


def test_an_adapter_of_another_model_is_refused_by_shape(saved: tuple[Path, Tensor, str]) -> None:
    (saved[0] / "adapter" / "lingact.json").unlink()
    with pytest.raises(UserError, match=r"belongs to another model \(tiny\): its weight for model\.layers\.0\.\S+ is 32 wide, this model's 40"):
        load_adapter(tiny_model(d_model=40), str(saved[0]))
    with pytest.raises(UserError, match=r"this one has no module model\.layers\.1\."):
        load_adapter(tiny_model(layers=1), str(saved[0]))


def test_damaged_files_are_refused(saved: tuple[Path, Tensor, str]) -> None:
    folder = saved[0] / "adapter"
    weights = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="cannot be read, it is cut off or damaged"):
        load_adapter(tiny_model(), str(folder))
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors; only safetensors are read"):
        load_adapter(tiny_model(), str(folder))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("adapter_config.json", '{"peft_type": "LO', "is not JSON"),
        ("adapter_config.json", "{}", "has no peft_type"),
        ("lingact.json", '{"base_model": ', "does not name base_model and base_sha256"),
    ],
)
def test_damaged_settings_are_refused(saved: tuple[Path, Tensor, str], name: str, content: str, message: str) -> None:
    (saved[0] / "adapter" / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_adapter(tiny_model(), str(saved[0]))


def test_an_incomplete_adapter_is_refused(saved: tuple[Path, Tensor, str]) -> None:
    from safetensors.torch import load_file, save_file

    path = saved[0] / "adapter" / WEIGHTS
    tensors = load_file(path)
    tensors.pop(min(tensors))
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"lacks 1 of the weights that its adapter_config\.json announces"):
        load_adapter(tiny_model(), str(saved[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ("q_prj",)}, r"peft\.targets: q_prj; did you mean 'q_proj'\? The model has the linear modules .*q_proj"),
        ({"targets": ()}, r"peft\.targets: none given"),
        ({"layers": (0, 2)}, r"peft\.layers: 2; the model has the layers 0 to 1"),
    ],
)
def test_what_the_model_lacks_cannot_be_adapted(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        attach_lora(tiny_model(), PEFT.model_copy(update=change), seed=1)
