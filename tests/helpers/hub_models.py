"""Small models and SAEs as they lie on the Hugging Face hub: real architectures and file formats, small shapes, random weights.

Where sae-lens takes a width from a repository's name, the width is the true one; such matrices repeat few numbers, so that their files are small.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

CONTEXT = 1024
GEMMA_2, QWEN = 2304, 2048
"""Widths of residual streams that sae-lens takes from names."""
_SHAPE: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48, "num_hidden_layers": 2}
_SHAPE |= {"vocab_size": 259, "max_position_embeddings": CONTEXT, "initializer_range": 0.1, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
MODELS: dict[str, Any] = {
    "google/gemma-2-2b": Gemma2Config(**_SHAPE, hidden_size=GEMMA_2, sliding_window=16),
    "google/gemma-3-1b-pt": Gemma3TextConfig(**_SHAPE, hidden_size=32, sliding_window=16),
    "meta-llama/Llama-3.1-8B": LlamaConfig(**_SHAPE, hidden_size=32),
    "Qwen/Qwen3-1.7B-Base": Qwen3Config(**_SHAPE, hidden_size=QWEN),
    "openai-community/gpt2": GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_inner=48, vocab_size=259, n_positions=CONTEXT, initializer_range=0.1, bos_token_id=1, eos_token_id=1
    ),
}
_WITHOUT_BOS = ("Qwen/Qwen3-1.7B-Base", "openai-community/gpt2")


def write_models(root: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Every model with its tokenizer, which puts BOS before texts where the real one does."""
    for name, config in MODELS.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        if name in _WITHOUT_BOS:
            backend = json.loads((root / name / "tokenizer.json").read_text())
            (root / name / "tokenizer.json").write_text(json.dumps(backend | {"post_processor": None}))
            settings = json.loads((root / name / "tokenizer_config.json").read_text())
            bos = {"bos_token": "<eos>"} if "gpt2" in name else {"bos_token": None}
            (root / name / "tokenizer_config.json").write_text(json.dumps(settings | bos))


def hankel(rows: int, columns: int, seed: int) -> np.ndarray:
    """Every row is the one before, shifted by one, and the numbers come again and again; rows have a length of about one."""
    numbers = np.random.default_rng(seed).standard_normal(1021, dtype=np.float32) / columns**0.5
    return sliding_window_view(np.resize(numbers, rows + columns - 1), columns)


def write_saes(root: Path) -> None:
    """For every model the SAE of its first block, in the format of the release for it."""
    _gemma_scope(root / "google/gemma-scope-2b-pt-res/layer_0/width_16k/average_l0_105")
    _gemma_scope_2(root / "google/gemma-scope-2-1b-pt/resid_post_all/layer_0_width_16k_l0_big")
    _llama_scope(root / "fnlp/Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L0R-8x")
    _qwen_scope(root / "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50/layer0.sae.pt")
    _sae_lens(root / "jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs/v5_32k_layer_0.pt")


def _gemma_scope(folder: Path) -> None:
    folder.mkdir(parents=True)
    latents = 16384
    wide = hankel(latents, GEMMA_2, 1)
    np.savez_compressed(
        folder / "params.npz",
        W_enc=wide.T, W_dec=wide, b_enc=np.zeros(latents, np.float32), b_dec=np.zeros(GEMMA_2, np.float32),
        threshold=np.full(latents, 0.3, np.float32),
    )  # fmt: skip


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / shape[-1] ** 0.5


def _gemma_scope_2(folder: Path) -> None:
    folder.mkdir(parents=True)
    weights = {
        "w_enc": _random(64, 32, seed=2).T.contiguous(),
        "w_dec": _random(64, 32, seed=2) * 1.5,
        "b_enc": torch.zeros(64),
        "b_dec": torch.zeros(32),
    }
    save_file(weights | {"threshold": torch.linspace(0.01, 0.2, 64)}, folder / "params.safetensors")
    about = {"hf_hook_point_in": "model.layers.0.output", "model_name": "gemma-3-1b-pt", "architecture": "jump_relu", "width": 64, "type": "sae"}
    (folder / "config.json").write_text(json.dumps(about))


def _llama_scope(folder: Path) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    weights = {
        "encoder.weight": _random(64, 32, seed=3),
        "encoder.bias": torch.zeros(64),
        "decoder.weight": _random(32, 64, seed=4),
        "decoder.bias": torch.zeros(32),
    }
    save_file({name: value.bfloat16() for name, value in weights.items()}, folder / "checkpoints/final.safetensors")
    about = {"hook_point_in": "blocks.0.hook_resid_post", "hook_point_out": "blocks.0.hook_resid_post", "d_model": 32, "d_sae": 64}
    about |= {"act_fn": "jumprelu", "jump_relu_threshold": 0.05, "norm_activation": "dataset-wise", "use_decoder_bias": True}
    # The factor for this layer in sae-lens's table is sqrt(d_model) over this mean norm; here with the true width.
    (folder / "hyperparams.json").write_text(json.dumps(about | {"dataset_average_activation_norm": {"in": 32**0.5 / NORM_SCALE, "out": 1.0}}))


NORM_SCALE = 58.935251798561154
"""What sae-lens's table has for l0r_8x."""


def _qwen_scope(file: Path) -> None:
    file.parent.mkdir(parents=True)
    latents = 32 * 1024
    numbers = torch.from_numpy(np.random.default_rng(5).standard_normal(latents + QWEN - 1, dtype=np.float32) / QWEN**0.5)
    rows = numbers.as_strided((latents, QWEN), (1, 1))
    torch.save({"W_enc": rows, "W_dec": numbers.as_strided((QWEN, latents), (1, 1)), "b_enc": torch.zeros(latents), "b_dec": torch.zeros(QWEN)}, file)


def _sae_lens(folder: Path) -> None:
    """As sae-lens 3 wrote it, which released it."""
    folder.mkdir(parents=True)
    weights = {"W_enc": _random(64, 32, seed=6).T.contiguous(), "W_dec": _random(64, 32, seed=6), "b_enc": torch.zeros(64), "b_dec": torch.zeros(32)}
    save_file(weights, folder / "sae_weights.safetensors")
    about = {"model_name": "gpt2-small", "hook_name": "blocks.0.hook_resid_post", "hook_layer": 0, "hook_head_index": None, "d_in": 32, "d_sae": 64}
    about |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 8}, "normalize_activations": "layer_norm", "apply_b_dec_to_input": True}
    about |= {"dtype": "torch.float32", "device": "cpu", "context_size": 64, "prepend_bos": False, "finetuning_scaling_factor": False}
    (folder / "cfg.json").write_text(json.dumps(about | {"dataset_path": "Skylion007/openwebtext", "sae_lens_training_version": None}))
