"""SAEs of the microworld: one batch-top-k SAE per layer, trained with sae-lens and saved as JumpReLU."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from lingact.config.model import ModelConfig
from lingact.data.tokens import Window
from lingact.files.atomic import write_json
from lingact.microworld.pretrain import token_stream
from lingact.microworld.recipe import DictionaryRecipe, Recipe
from lingact.models.lm import LanguageModel, load_model

_ROWS_AT_ONCE = 64


@torch.no_grad()
def harvest(recipe: Recipe, lm: LanguageModel, shares: dict[str, float], path: Path) -> np.ndarray:
    """Residuals of kept tokens after every block, Float["layer token d_model"], as float32 in a memory-mapped file."""
    if path.exists():
        return np.load(path, mmap_mode="r")
    # New text of the same kind as the model's training text.
    count = recipe.dictionary_tokens + recipe.dictionary_tokens // 4
    tokenizer = lm.tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    stream = token_stream(recipe, shares, tokenizer, count)
    rows = stream[: len(stream) // recipe.row_tokens * recipe.row_tokens].reshape(-1, recipe.row_tokens).astype(np.int64)
    layers = tuple(range(len(lm.blocks)))
    unfinished = path.with_suffix(".unfinished.npy")
    store = np.lib.format.open_memmap(unfinished, "w+", np.float32, (len(layers), recipe.dictionary_tokens, recipe.hidden_size))
    filled = 0
    with tqdm(total=recipe.dictionary_tokens, desc="residuals", unit="tok", unit_scale=True) as bar:
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            batch = lm.tokens.collate([Window(0, ids.tolist()) for ids in rows[start : start + _ROWS_AT_ONCE]])
            residuals, _ = lm.residuals(batch, layers)
            take = min(int(batch.keep.sum()), recipe.dictionary_tokens - filled)
            for layer in layers:
                store[layer, filled : filled + take] = residuals[layer][batch.keep][:take].numpy()
            filled += take
            bar.update(take)
            if filled == recipe.dictionary_tokens:
                break
    assert filled == recipe.dictionary_tokens, "the stream was too short"
    store.flush()
    unfinished.replace(path)
    return np.load(path, mmap_mode="r")


def _batches(residuals: np.ndarray, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless shuffled batches, with every residual once per epoch."""
    rng = np.random.default_rng(seed)
    data = torch.from_numpy(np.array(residuals))
    while True:
        order = torch.from_numpy(rng.permutation(len(data)))
        for start in range(0, len(data) - size + 1, size):
            yield data[order[start : start + size]]


def train_dictionary(spec: DictionaryRecipe, residuals: np.ndarray, layer: int, seed: int, context: int, folder: Path) -> None:
    """Train and save the SAE of one layer unless it exists already."""
    if (folder / "cfg.json").exists():
        return
    torch.manual_seed(seed * 100 + layer)
    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
            d_in=residuals.shape[-1],
            d_sae=spec.width,
            k=spec.k,
            topk_threshold_lr=0.02,
            normalize_activations="expected_average_only_in",
            apply_b_dec_to_input=True,
            metadata=SAEMetadata(
                hook_name=f"blocks.{layer}.hook_resid_post", model_name="lingact/microworld", prepend_bos=True, context_size=context
            ),
        )
    )
    steps = spec.train_tokens // spec.batch_tokens
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=steps * spec.batch_tokens,
            train_batch_size_samples=spec.batch_tokens,
            lr=spec.lr,
            lr_end=spec.lr / 10,
            lr_warm_up_steps=steps // 20,
            lr_decay_steps=steps // 3,
            n_batches_for_norm_estimate=50,
            dead_feature_window=200,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=_batches(residuals, spec.batch_tokens, seed * 100 + layer),
    )
    trained = trainer.fit()
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    trained.save_inference_model(unfinished)
    # sae-lens writes the keys in an order that differs from process to process.
    settings = json.loads((unfinished / "cfg.json").read_text(encoding="utf-8"))
    write_json(unfinished / "cfg.json", dict(sorted(settings.items())))
    unfinished.replace(folder)


def train_dictionaries(recipe: Recipe, model_folder: Path, out: Path, scratch: Path) -> None:
    """Train both sets of SAEs, `sae/layer_<n>` and `sae_heldout/layer_<n>`. An interrupted training continues with the next layer."""
    config = ModelConfig(name=str(model_folder), revision=None, dtype="float32", attention="eager", context=recipe.context)
    lm = load_model(config, "cpu")
    residuals = harvest(recipe, lm, recipe.dictionary_shares, scratch / "residuals.npy")
    for name, spec, seed in (("sae", recipe.sae, recipe.seed), ("sae_heldout", recipe.sae_heldout, recipe.seed + 1)):
        (out / name).mkdir(parents=True, exist_ok=True)
        for layer in range(recipe.layers):
            train_dictionary(spec, residuals[layer], layer, seed, recipe.context, out / name / f"layer_{layer}")
