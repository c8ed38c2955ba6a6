"""Adapters of every kind on a tiny random Gemma 2: what goes in comes out, the base stays as it is, and strangers are refused."""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
)

from lingact.config.jobs import TrainConfig
from lingact.config.training import Ia3Adapter, LohaAdapter, LokrAdapter, LoraAdapter, OftAdapter, PeftConfig, VeraAdapter
from lingact.config.validation import validate
from lingact.errors import UserError
from lingact.models.adapter_checks import check_adapter
from lingact.models.adapter_hashes import adapter_hash, weights_hash
from lingact.models.adapter_sources import WEIGHTS, find_adapter
from lingact.models.adapters import attach_adapter, base_behaviour, load_adapter, save_adapter, train_adapter_only, unload_adapter
from lingact.models.lm import find_blocks
from tests.helpers.folders import plant, snapshot
from tests.helpers.paths import CONF

PLACES: dict[str, Any] = {"targets": ("q_proj", "up_proj", "down_proj"), "layers": "all"}
PEFT = LoraAdapter(kind="lora", r=4, alpha=8, dropout=0.0, use_rslora=False, use_dora=False, init="default", **PLACES)
EVERY = {
    "lora": PEFT,
    "gaussian": PEFT.model_copy(update={"init": "gaussian"}),
    "rslora": PEFT.model_copy(update={"use_rslora": True}),
    "dora": PEFT.model_copy(update={"use_dora": True}),
    "vera": VeraAdapter(kind="vera", r=6, dropout=0.0, d_initial=0.1, **PLACES),
    "ia3": Ia3Adapter(kind="ia3", feedforward=("down_proj",), **PLACES),
    "loha": LohaAdapter(kind="loha", r=4, alpha=8, **PLACES),
    "lokr": LokrAdapter(kind="lokr", r=2, alpha=4, **PLACES),
    "oft": OftAdapter(kind="oft", block_size=4, **PLACES),
}
RANDOM = EVERY.keys() - {"ia3", "oft"}
every_kind = pytest.mark.parametrize("peft", EVERY.values(), ids=EVERY)
IDS = torch.arange(2 * 7).reshape(2, 7)


def tiny_model(seed: int = 0, *, d_model: int = 32, d_mlp: int = 48, layers: int = 2) -> Gemma2ForCausalLM:
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=d_model,
        intermediate_size=d_mlp,
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


def attached(model: Gemma2ForCausalLM, peft: PeftConfig = PEFT, seed: int = 1) -> PeftModel:
    return attach_adapter(model, model.model.layers, peft, seed)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def trained(model: Gemma2ForCausalLM, peft: PeftConfig = PEFT) -> PeftModel:
    """An adapter that changes something, after three real steps, each with a look at the base between the pass and its gradient."""
    wrapped = attached(model, peft)
    optimiser = torch.optim.AdamW([parameter for parameter in wrapped.parameters() if parameter.requires_grad], lr=0.05)
    for _ in range(3):
        optimiser.zero_grad()
        loss = wrapped(input_ids=IDS, labels=IDS).loss
        with base_behaviour(wrapped):
            logits(wrapped)
        loss.backward()
        optimiser.step()
    return wrapped.eval()


def saved_to(folder: Path, peft: PeftConfig = PEFT) -> tuple[Path, Tensor, str]:
    """A run folder with an adapter, its logits, and its base's hash."""
    model = tiny_model()
    base_hash = weights_hash(model)
    wrapped = trained(model, peft)
    save_adapter(wrapped, folder / "adapter", "tiny", base_hash)
    return folder, logits(wrapped), base_hash


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Tensor, str]:
    """A run folder with a LoRA adapter, its logits, and its base's hash."""
    return saved_to(tmp_path / "run")


# --- attaching and training ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@every_kind
def test_a_new_adapter_changes_nothing(peft: PeftConfig, dtype: torch.dtype) -> None:
    base = logits(tiny_model().to(dtype))
    before = torch.random.get_rng_state()
    wrapped = attached(tiny_model().to(dtype), peft)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(logits(wrapped), base)


@pytest.mark.parametrize("kind", EVERY)
def test_the_seed_decides_a_new_adapter(kind: str) -> None:
    one, same, other = (adapter_hash(attached(tiny_model(), EVERY[kind], seed)) for seed in (1, 1, 2))
    assert one == same
    assert (one != other) == (kind in RANDOM)


@every_kind
def test_the_base_stays_bit_identical_through_training(peft: PeftConfig) -> None:
    model = tiny_model()
    before, base = weights_hash(model), logits(model)
    originals = {id(parameter) for parameter in model.parameters()}
    wrapped = trained(model, peft)
    assert weights_hash(wrapped) == before
    assert not torch.equal(logits(wrapped), base)
    with base_behaviour(wrapped):
        assert torch.equal(logits(wrapped), base)
    assert not torch.equal(logits(wrapped), base)
    assert all(parameter.requires_grad == (id(parameter) not in originals) for parameter in wrapped.parameters())
    assert all((parameter.grad is None) == (id(parameter) in originals) for parameter in wrapped.parameters())


@every_kind
def test_under_autocast_a_new_adapter_and_none_are_the_same(peft: PeftConfig) -> None:
    wrapped = attached(tiny_model(), peft)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        new = logits(wrapped)
        with base_behaviour(wrapped):
            assert torch.equal(logits(wrapped), new)


@every_kind
def test_the_adapters_hash_sees_every_trained_weight_and_the_bases_none(peft: PeftConfig) -> None:
    wrapped = attached(tiny_model(), peft)
    base, seen = weights_hash(wrapped), {adapter_hash(wrapped)}
    trainable = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.data.view(-1)[-1] += 1
        seen.add(adapter_hash(wrapped))
    assert len(seen) == 1 + len(trainable)
    assert weights_hash(wrapped) == base


@every_kind
def test_trained_weights_alone_restore_the_adapter_on_a_new_one_of_the_same_seed(peft: PeftConfig) -> None:
    wrapped = trained(tiny_model(), peft)
    state = {name: parameter for name, parameter in wrapped.named_parameters() if parameter.requires_grad}  # what a checkpoint holds
    again = attached(tiny_model(), peft)
    assert not again.load_state_dict(state, strict=False).unexpected_keys
    assert adapter_hash(again) == adapter_hash(wrapped)
    assert torch.equal(logits(again), logits(wrapped))


@every_kind
def test_the_adapter_trains_with_its_dropout_over_a_base_in_eval_mode(peft: PeftConfig) -> None:
    peft = peft.model_copy(update={"dropout": 0.5}) if hasattr(peft, "dropout") else peft
    model = tiny_model()
    originals = set(model.modules())
    wrapped = attached(model, peft)
    train_adapter_only(wrapped)
    assert not any(module.training for module in originals)
    added = [module for name, module in wrapped.named_modules() if ".layers." in name and module not in originals]
    assert added
    assert all(module.training for module in added)
    assert any(isinstance(module, nn.Dropout) for module in added) == hasattr(peft, "dropout")


@every_kind
def test_layers_limit_the_adapter(peft: PeftConfig) -> None:
    wrapped = attached(tiny_model(), peft.model_copy(update={"layers": (1,)}))
    assert {name.split(".layers.")[1][0] for name, parameter in wrapped.named_parameters() if parameter.requires_grad} == {"1"}


def test_modules_of_the_same_name_outside_the_blocks_stay_plain() -> None:
    model = tiny_model()
    model.tower = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"q_proj": nn.Linear(3, 3)}) for _ in range(2)])})
    wrapped = attached(model)
    assert all(name.startswith("base_model.model.model.layers.") for name, parameter in wrapped.named_parameters() if "lora_" in name)
    with pytest.raises(UserError, match=r"peft\.targets: lm_head The blocks have"):
        attached(tiny_model(), PEFT.model_copy(update={"targets": ("lm_head",)}))


TINY: dict[str, Any] = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
OTHERS = {
    "llama": (
        LlamaConfig(**TINY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4),
        {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    ),
    "gpt2": (GPT2Config(**TINY, n_embd=32, n_layer=2, n_head=4), {"c_attn", "c_proj", "c_fc"}),
    "gpt_neox": (
        GPTNeoXConfig(**TINY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4),
        {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    ),
}


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("architecture", OTHERS)
def test_all_is_every_linear_module_whatever_it_is_called(architecture: str, kind: str, tmp_path: Path) -> None:
    config, names = OTHERS[architecture]

    def fresh() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)

    model = fresh()
    peft = EVERY[kind].model_copy(update={"targets": "all"} | ({"feedforward": ()} if kind == "ia3" else {}))
    blocks = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    if architecture == "gpt2" and kind in ("loha", "lokr", "oft"):
        with pytest.raises(UserError, match=rf"peft\.kind: peft has no {kind} for the modules of GPT2LMHeadModel"):
            attach_adapter(model, blocks, peft, 0)
        return
    before, base_hash = logits(model), weights_hash(model)
    wrapped = attach_adapter(model, blocks, peft, 0)
    trainable = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    assert {part for name in trainable for part in name.split(".")} & {*names, "lm_head", "embed_out", "wte"} == names
    # DoRA divides by a norm that it has computed itself.
    assert torch.allclose(logits(wrapped), before, atol=1e-6 if kind == "dora" else 0)
    optimiser = torch.optim.SGD([parameter for parameter in wrapped.parameters() if parameter.requires_grad], lr=1.0)
    wrapped(input_ids=IDS, labels=IDS).loss.backward()
    optimiser.step()
    adapted = logits(wrapped)
    assert not torch.allclose(adapted, before, atol=1e-4)
    save_adapter(wrapped, tmp_path / "adapter", "tiny", base_hash)
    assert torch.equal(logits(load_adapter(fresh(), str(tmp_path / "adapter"))), adapted)


def test_a_vision_tower_stays_plain() -> None:
    """Gemma 3 from 4B upwards: its tower has layers and modules of the same names."""
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = small | {"vocab_size": 300, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16}
    config = Gemma3Config(text_config=text, vision_config=small | {"image_size": 28, "patch_size": 14}, mm_tokens_per_image=1)
    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration(config).eval().requires_grad_(False)
    wrapped = attach_adapter(model, find_blocks(model, 2), PEFT.model_copy(update={"targets": "all"}), 0)
    adapted = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    assert len(adapted) == 2 * 7 * 2, "two matrices on seven modules of two blocks"
    assert all(name.startswith("base_model.model.model.language_model.layers.") for name in adapted)


def test_inputs_or_outputs_are_scaled_as_chosen() -> None:
    wrapped = attached(tiny_model(), EVERY["ia3"])
    lengths = {name.split(".")[-3]: parameter.numel() for name, parameter in wrapped.named_parameters() if ".ia3_l." in name}
    assert lengths == {"q_proj": 32, "up_proj": 48, "down_proj": 48}
    outputs = attached(tiny_model(), Ia3Adapter(kind="ia3", feedforward=(), **PLACES))
    assert {p.numel() for name, p in outputs.named_parameters() if ".down_proj.ia3_l." in name} == {32}


def test_an_orthogonal_adapter_keeps_the_norm_of_what_it_turns() -> None:
    layer = trained(tiny_model(), EVERY["oft"]).get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        turned = layer.oft_R["default"](x)
    assert not torch.allclose(turned, x, atol=0.01)
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-5)


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


# --- saving and loading --------------------------------------------------------------------------------------------------------------------------


@every_kind
def test_a_saved_adapter_comes_back(peft: PeftConfig, tmp_path: Path) -> None:
    folder, adapted, base_hash = saved_to(tmp_path / "run", peft)
    for place in (folder, folder / "adapter"):
        torch.manual_seed(7)  # not that of the run
        wrapped = load_adapter(tiny_model(), str(place))
        assert torch.equal(logits(wrapped), adapted)
        assert not wrapped.training
        assert not any(parameter.requires_grad for parameter in wrapped.parameters())
        assert weights_hash(wrapped) == base_hash
        with base_behaviour(wrapped):
            assert torch.equal(logits(wrapped), logits(tiny_model()))


@every_kind
def test_plain_peft_loads_it(peft: PeftConfig, tmp_path: Path) -> None:
    folder, adapted, base_hash = saved_to(tmp_path / "run", peft)
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)  # peft's own
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_model(), str(folder / "adapter")).eval()), adapted)
    assert json.loads((folder / "adapter" / "lingact.json").read_text()) == {"base_model": "tiny", "base_sha256": base_hash}
    assert [path.name for path in folder.iterdir()] == ["adapter"]


@every_kind
def test_checking_leaves_the_model_alone(peft: PeftConfig, tmp_path: Path) -> None:
    folder, _, base_hash = saved_to(tmp_path / "run", peft)
    model = tiny_model()
    before, parts, random = logits(model), dict(model.named_modules()), torch.random.get_rng_state()
    for known in (base_hash, None):
        assert check_adapter(model, str(folder), base_sha256=known) == folder / "adapter"
    assert list(model.named_modules()) == list(parts.items())
    assert weights_hash(model) == base_hash
    assert torch.equal(logits(model), before)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not hasattr(model, "peft_config")


def lost(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def cut_off(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])


def of_another_model(folder: Path) -> None:
    (folder / "lingact.json").write_text('{"base_model": "other", "base_sha256": "0"}')


def too_wide(folder: Path) -> None:
    (folder / "lingact.json").unlink()
    save_file({name: torch.cat([tensor, tensor], dim=-1) for name, tensor in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


def changing_the_base(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": "pissa"}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lost, "is not an adapter"),
        (cut_off, "is truncated or damaged"),
        (of_another_model, "belongs to another model: it was trained on 'other'"),
        (too_wide, "belongs to another model .*: its weight"),
        (changing_the_base, "changes the base weights"),
    ],
)
def test_checking_refuses_what_loading_refuses(saved: tuple[Path, Tensor, str], spoil: Callable[[Path], None], message: str) -> None:
    model = tiny_model()
    spoil(saved[0] / "adapter")
    for refuse in (check_adapter, load_adapter):
        with pytest.raises(UserError, match=message):
            refuse(model, str(saved[0] / "adapter"))
    assert weights_hash(model) == saved[2]
    assert not hasattr(model, "peft_config")


def test_an_adapter_on_top_of_another_is_not_meant(saved: tuple[Path, Tensor, str]) -> None:
    wrapped = load_adapter(tiny_model(), str(saved[0]))
    with pytest.raises(AssertionError, match="take the other adapter off first"):
        check_adapter(wrapped, str(saved[0]))


def test_another_adapter_in_the_place_is_moved_aside(saved: tuple[Path, Tensor, str]) -> None:
    folder, _, base_hash = saved
    before = plant(folder / "adapter", "notes.txt")
    fresh = attached(tiny_model(), seed=3)
    save_adapter(fresh, folder / "adapter", "tiny", base_hash)
    assert sorted(path.name for path in folder.iterdir()) == ["adapter", "adapter.before"]
    assert snapshot(folder / "adapter.before") == before
    assert not (folder / "adapter" / "notes.txt").exists()
    assert adapter_hash(load_adapter(tiny_model(), str(folder))) == adapter_hash(fresh)


@every_kind
def test_saving_the_same_again_touches_nothing(peft: PeftConfig, tmp_path: Path) -> None:
    folder, _, base_hash = saved_to(tmp_path / "run", peft)
    before = plant(folder, "adapter/notes.txt", ".adapter.new.1/x", ".adapter.unfinished")
    model = load_adapter(tiny_model(), str(folder / "adapter"))
    save_adapter(model, folder / "adapter", "tiny", base_hash)
    assert snapshot(folder) == before


def test_an_adapter_that_cannot_be_written_leaves_the_one_before(saved: tuple[Path, Tensor, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _, base_hash = saved
    before = snapshot(folder)
    monkeypatch.setattr(PeftModel, "save_pretrained", lambda _, place, **__: (Path(place) / "half").touch() or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_adapter(attached(tiny_model(), seed=3), folder / "adapter", "tiny", base_hash)
    assert snapshot(folder) == before


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
    with pytest.raises(
        UserError, match=r"'someone/adapter' cannot be loaded: HF_HUB_OFFLINE is set, and it was not downloaded before\..*, or name a folder"
    ):
        find_adapter("someone/adapter")


def test_an_adapter_of_another_model_is_refused_by_hash(saved: tuple[Path, Tensor, str]) -> None:
    stranger = tiny_model(seed=1)
    with pytest.raises(UserError, match=r"belongs to another model: it was trained on 'tiny' with weights \w{12}, this model has \w{12}"):
        load_adapter(stranger, str(saved[0]))
    assert torch.equal(logits(stranger), logits(tiny_model(seed=1)))
    with pytest.raises(UserError, match="belongs to another model"):
        load_adapter(tiny_model(), str(saved[0]), base_sha256="0" * 64)


@every_kind
def test_an_adapter_of_another_model_is_refused_by_shape(peft: PeftConfig, tmp_path: Path) -> None:
    folder, *_ = saved_to(tmp_path / "run", peft)
    (folder / "adapter" / "lingact.json").unlink()
    for stranger, message in (
        (tiny_model(d_model=40, d_mlp=56), r"belongs to another model \(tiny\): its weight \S+ is \d+( x \d+)*, on this one it would be \d+"),
        (tiny_model(layers=1), r"belongs to another model \(tiny\): this one has no place for its weight \S+\.layers\.1\."),
    ):
        before, base = weights_hash(stranger), logits(stranger)
        with pytest.raises(UserError, match=message):
            load_adapter(stranger, str(folder))
        assert weights_hash(stranger) == before
        assert torch.equal(logits(stranger), base)


def test_an_adapter_of_another_architecture_is_refused(saved: tuple[Path, Tensor, str]) -> None:
    (saved[0] / "adapter" / "lingact.json").unlink()
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
    stranger = GPTNeoXForCausalLM(GPTNeoXConfig(**shape, bos_token_id=0, eos_token_id=0))
    with pytest.raises(UserError, match=r"belongs to another model \(tiny\): PEFT cannot put it on this one: .*not found in the base model"):
        load_adapter(stranger, str(saved[0]))


def test_damaged_files_are_refused(saved: tuple[Path, Tensor, str]) -> None:
    folder = saved[0] / "adapter"
    weights = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="cannot be read, it is truncated or damaged"):
        load_adapter(tiny_model(), str(folder))
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors; only safetensors are read"):
        load_adapter(tiny_model(), str(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, saved: tuple[Path, Tensor, str]) -> None:
    weights = load_file(saved[0] / "adapter" / WEIGHTS)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    weights[name][3, 2] = value
    save_file(weights, saved[0] / "adapter" / WEIGHTS)
    with pytest.raises(UserError, match=rf"adapter: '{re.escape(name)}' in '.*/{WEIGHTS}' holds 1 value that is not finite"):
        check_adapter(tiny_model(), str(saved[0]))


def test_settings_that_are_not_finite_are_refused(saved: tuple[Path, Tensor, str]) -> None:
    settings = json.loads((saved[0] / "adapter" / "adapter_config.json").read_text())
    (saved[0] / "adapter" / "adapter_config.json").write_text(
        json.dumps(settings | {"lora_alpha": float("nan"), "alpha_pattern": {"q_proj": float("inf")}})
    )
    with pytest.raises(UserError, match=r"adapter_config\.json' has no finite number in alpha_pattern\.q_proj, lora_alpha; correct it"):
        check_adapter(tiny_model(), str(saved[0]))


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


@every_kind
def test_an_incomplete_adapter_is_refused(peft: PeftConfig, tmp_path: Path) -> None:
    folder, *_ = saved_to(tmp_path / "run", peft)
    path = folder / "adapter" / WEIGHTS
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}  # older safetensors write into the file that they have mapped
    for name in {name.split(".layers.0.")[-1]: name for name in tensors}.values():
        save_file({other: tensor for other, tensor in tensors.items() if other != name}, path)
        with pytest.raises(UserError, match=rf"lacks 1 of the weights that its adapter_config\.json announces, such as {name}"):
            load_adapter(tiny_model(), str(folder))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_lora_weights": "pissa_niter_16"}, r"initialised by pissa_niter_16, which changes the base.* Save it as plain LoRA"),
        ({"init_lora_weights": "olora"}, "initialised by olora, which changes the base"),
        ({"bias": "all"}, r"changes the base model itself \(bias"),
        ({"peft_type": "PROMPT_TUNING"}, "is of the kind PROMPT_TUNING; lingact accepts .* LORA, VERA, IA3, LOHA, LOKR, OFT"),
    ],
)
def test_adapters_that_change_the_base_are_not_loaded(saved: tuple[Path, Tensor, str], settings: dict[str, str], message: str) -> None:
    path = saved[0] / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(UserError, match=message):
        load_adapter(tiny_model(), str(saved[0]))


def test_weights_of_the_base_in_an_adapters_file_are_refused(saved: tuple[Path, Tensor, str]) -> None:
    path = saved[0] / "adapter" / WEIGHTS
    save_file(load_file(path) | {"base_model.model.model.norm.weight": torch.zeros(32)}, path)
    with pytest.raises(UserError, match=r"this one has no place for its weight base_model\.model\.model\.norm\.weight"):
        load_adapter(tiny_model(), str(saved[0]))


# --- taking off ----------------------------------------------------------------------------------------------------------------------------------


def parts(model: nn.Module) -> dict[str, tuple[int, bool]]:
    """What a model consists of: modules and parameters by identity, parameters with their need of gradients."""
    modules = {name: (id(module), module.training) for name, module in model.named_modules()}
    return modules | {name: (id(parameter), parameter.requires_grad) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@every_kind
def test_taken_off_an_adapter_leaves_the_base(peft: PeftConfig, dtype: torch.dtype, tmp_path: Path) -> None:
    folder, *_ = saved_to(tmp_path / "run", peft)
    (folder / "adapter" / "lingact.json").unlink()
    model = tiny_model().to(dtype)
    before, base, consists = weights_hash(model), logits(model), parts(model)
    wrapped = load_adapter(model, str(folder))
    assert not torch.equal(logits(wrapped), base)
    again = unload_adapter(wrapped)
    assert again is model
    assert parts(model) == consists
    assert weights_hash(model) == before
    assert torch.equal(logits(model), base)
    assert not hasattr(model, "peft_config")


def test_adapters_of_all_kinds_one_after_the_other_on_one_model(tmp_path: Path) -> None:
    model = tiny_model()
    base_hash, base = weights_hash(model), logits(model)
    saved = {kind: saved_to(tmp_path / kind, peft) for kind, peft in EVERY.items()}
    for kind in (*saved, *reversed(saved)):
        folder, adapted, _ = saved[kind]
        wrapped = load_adapter(model, str(folder), base_sha256=base_hash)
        assert torch.equal(logits(wrapped), adapted), kind
        with base_behaviour(wrapped):
            assert torch.equal(logits(wrapped), base), kind
        assert unload_adapter(wrapped) is model
        assert weights_hash(model) == base_hash, kind
        assert torch.equal(logits(model), base), kind


def test_after_another_was_taken_off_training_is_the_same(tmp_path: Path) -> None:
    model = tiny_model()
    unload_adapter(trained(model, EVERY["vera"]))
    assert adapter_hash(trained(model)) == adapter_hash(trained(tiny_model()))


def test_whole_modules_beside_the_adapter_can_be_switched_off_and_taken_off(tmp_path: Path) -> None:
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)  # peft's own
    model = tiny_model()
    base_hash = weights_hash(model)
    foreign = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM"))
    for parameter in foreign.parameters():
        parameter.data += 0.1 * parameter.requires_grad
    assert weights_hash(foreign) == base_hash
    foreign.eval().save_pretrained(str(tmp_path), save_embedding_layers=False)
    wrapped = load_adapter(tiny_model(), str(tmp_path))
    assert torch.equal(logits(wrapped), logits(foreign))
    assert weights_hash(wrapped) == base_hash
    with base_behaviour(wrapped):
        assert torch.equal(logits(wrapped), logits(tiny_model()))
    plain = unload_adapter(wrapped)
    assert weights_hash(plain) == base_hash
    assert plain.state_dict().keys() == tiny_model().state_dict().keys()
    assert torch.equal(logits(plain), logits(tiny_model()))


# --- configuration -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ("q_prj",)}, r"peft\.targets: q_prj; did you mean 'q_proj'\? The blocks have the linear modules .*q_proj"),
        ({"targets": ()}, r"peft\.targets: none given"),
        ({"layers": (0, 2)}, r"peft\.layers: 2; the model has the layers 0 to 1"),
        ({"layers": ()}, r"peft\.layers: none given"),
    ],
)
@every_kind
def test_what_the_model_lacks_cannot_be_adapted(peft: PeftConfig, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        attached(tiny_model(), peft.model_copy(update=change))


def test_blocks_of_an_orthogonal_matrix_fit_the_width() -> None:
    with pytest.raises(UserError, match=r"peft\.block_size: 32 does not divide the input width of down_proj \(48\)"):
        attached(tiny_model(), OftAdapter(kind="oft", block_size=32, **PLACES))


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain = OmegaConf.to_container(compose("train", ["lang=ml", *overrides]), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


@pytest.mark.parametrize("option", sorted(path.stem for path in (CONF / "peft").iterdir()))
def test_every_option_fits_a_model(option: str) -> None:
    small = ["peft.r=8"] if option == "rslora" else []  # its rank is more than the matrices of this model can have
    peft = validate(TrainConfig, composed(f"peft={option}", *small)).peft
    wrapped = attached(tiny_model(d_mlp=64), peft)
    assert {name: getattr(peft, f"use_{name}", False) for name in ("dora", "rslora")} == {name: name == option for name in ("dora", "rslora")}
    trainable = sum(parameter.numel() for parameter in wrapped.parameters() if parameter.requires_grad)
    assert trainable > 0


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_initialisations_that_change_the_base_are_refused(init: str) -> None:
    with pytest.raises(UserError, match=rf"^peft\.init: '{init}' changes the base weights, .*use default or gaussian \(options: conf/peft/\)$"):
        validate(TrainConfig, composed(f"peft.init={init}"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["peft.init=eva"], r"^peft\.init: Input should be 'default' or 'gaussian'; got 'eva'"),
        (["peft.kind=boft"], r"^peft\.kind: 'boft' is none of 'lora', 'vera', 'ia3', 'loha', 'lokr', 'oft' \(options"),
        (["peft=vera", "+peft.dropuot=0.1"], r"^peft\.dropuot: unknown key; did you mean 'dropout'\?"),
        (["peft=vera", "+peft.alpha=1"], r"^peft\.alpha: unknown key \(options"),
        (["peft=ia3", "peft.feedforward=[up_proj]"], r"^peft: feedforward names up_proj, which is not in targets \(k_proj, v_proj, down_proj\)"),
    ],
)
def test_mistakes_are_told_in_the_words_of_the_kind(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(TrainConfig, composed(*overrides))
