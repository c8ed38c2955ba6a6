"""Analysis and training at the true shapes of Gemma 2 2B with Gemma Scope 16k on a GPU: random weights, made there; nothing is downloaded.

Tokens per second and memory beyond the weights: lingact, the floor (the same forward passes without logits, and the bare encoder products), and
hidden states with sae-lens's `encode`. `--tiny` shrinks everything, to try the script on a CPU.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

from benchmarks.analysis import floor_pass, hidden_states_pass
from benchmarks.embedded import repeated
from benchmarks.steps import lingact_step, plain_step, tokens
from lingact.activations.passes import measure
from lingact.config.base import asset
from lingact.config.data import FilesCorpus, Splits
from lingact.data.corpus import ParallelCorpus
from lingact.data.sources import load_corpus
from lingact.data.tokens import TokenBatch, Tokens
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries, Dictionary
from lingact.runtime.terminal import show

TINY = "--tiny" in sys.argv
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WIDTH, BATCH_TOKENS, ROUNDS, ACTIVE = (256, 512, 1, 8) if TINY else (16_384, 8_192, 3, 60)
LANGUAGES = ("en", "zh", "ml")


def shape() -> Gemma2Config:
    """The defaults of transformers are Gemma 2 2B."""
    if TINY:
        return Gemma2Config(
            vocab_size=3000, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16
        )
    return Gemma2Config()


def random_model(dtype: torch.dtype) -> LanguageModel:
    """Random weights (seed 0) on the device; the tokenizer is the embedded one, whose ids are part of the vocabulary."""
    torch.manual_seed(0)
    config = shape()
    config._attn_implementation = "eager"
    torch.set_default_dtype(dtype)
    with DEVICE:
        model = Gemma2ForCausalLM(config).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(asset("microworld/model"))
    tokens = Tokens(tokenizer, 1024)
    return LanguageModel(model, tokenizer, tokens, model.model.layers, {"name": "random", "sha256": "0", "dtype": str(dtype).removeprefix("torch.")})


def random_saes(lm: LanguageModel, batch: TokenBatch) -> Dictionaries:
    """JumpReLU SAEs after every layer, in float32, with about ACTIVE active latents a token of this batch."""
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    layers = tuple(range(len(lm.blocks)))
    with torch.no_grad():
        residuals, _ = lm.residuals(batch, layers)
    found = {}
    for layer in layers:
        config = JumpReLUSAEConfig(
            d_in=lm.d_model, d_sae=WIDTH, device=str(DEVICE), metadata=SAEMetadata(hook_name=f"blocks.{layer}.hook_resid_post")
        )
        sae = JumpReLUSAE(config)
        sae.W_dec.data = torch.nn.functional.normalize(torch.randn(WIDTH, lm.d_model, device=DEVICE), dim=-1)
        sae.W_enc.data = sae.W_dec.data.T.contiguous()
        x = residuals[layer][batch.keep.to(DEVICE)].float()
        sae.threshold.data = (x[:512] @ sae.W_enc).topk(ACTIVE, dim=1).values[:, -1].mean().expand(WIDTH).clone()
        found[layer] = Dictionary(sae, layer)
    return found


def batches(lm: LanguageModel, corpus: ParallelCorpus) -> list[TokenBatch]:
    """As analyze.py makes them."""
    return [batch for texts in corpus.texts.values() for batch in lm.tokens.batches(lm.tokens.windows(texts), BATCH_TOKENS)]


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and MiB beyond what was held before."""
    cuda, before = DEVICE.type == "cuda", 0
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, (torch.cuda.max_memory_allocated() - before) / 2**20 if cuda else float("nan")


def interleaved(ways: dict[str, Callable[[], object]], tokens: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians over rounds in which every way has its turn; the first round warms up."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            found = timed(run)
            if number:
                seen[name].append(found)
    rows = {}
    for name, found in seen.items():
        seconds = sorted(second for second, _ in found)
        rows[name] = {"seconds": seconds[len(seconds) // 2], "low": seconds[0], "high": seconds[-1], "peak_mib": max(peak for _, peak in found)}
        rows[name]["tokens_per_second"] = tokens / rows[name]["seconds"]
    return rows


def training(lm: LanguageModel, saes: Dictionaries, corpus: ParallelCorpus) -> tuple[dict[str, Callable[[], object]], int]:
    """One step of the default loss at four layers, eight sentences in two languages, and the same terms without caches and chunks."""
    chosen = {layer: saes[layer] for layer in sorted(saes)[:: max(1, len(saes) // 4)][:4]}
    ours = lingact_step(lm, chosen, corpus, batch_tokens=BATCH_TOKENS, part=None, share=1.0)
    return {"lingact": ours, "plain_step": plain_step(lm, chosen, corpus, part=None)}, tokens(lm, corpus)


def main() -> None:
    """Print two tables and write the numbers as JSON."""
    lm = random_model(torch.float32 if DEVICE.type == "cpu" else torch.bfloat16)
    splits = Splits(train=0.5, dev=0.2, heldout=0.3)
    corpus = load_corpus(FilesCorpus(kind="files", path=Path(asset("microworld/corpus.jsonl")), max_sentences=None, splits=splits), LANGUAGES)
    corpus = repeated(corpus, 40 if TINY else 800)
    given = batches(lm, corpus)
    saes = random_saes(lm, given[0])
    read = sum(batch.size() for batch in given)
    ways: dict[str, Callable[[], object]] = {
        "lingact": lambda: measure(lm, {"measuring": saes}, corpus, batch_tokens=BATCH_TOKENS, identity={}),
        "floor": lambda: floor_pass(lm, saes, given),
        "hidden_states": lambda: hidden_states_pass(lm, saes, given),
    }
    found = {"analysis": interleaved(ways, read, ROUNDS)}
    steps, step_tokens = training(lm, saes, repeated(corpus, 16))
    found["training"] = interleaved(steps, step_tokens, ROUNDS)
    for job, rows in found.items():
        title = f"{job}, {DEVICE}, {len(saes)} layers x {WIDTH}, {read if job == 'analysis' else step_tokens} tokens"
        show([{"way": name} | {key: f"{value:.4g}" for key, value in row.items()} for name, row in rows.items()], title=title)
    if "--json" in sys.argv:
        Path(sys.argv[sys.argv.index("--json") + 1]).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
