"""Does a model of true size fit? Gemma 2 2B and Gemma Scope (26 layers, width 16k) with random weights through `analyze.py`, against reading alone.

Weights and files have the real shapes, dtypes and formats; what they say is noise. The tokenizer is the embedded one, whose ids are part of the
vocabulary. Needs 16 GB of disk in FOLDER and 20 GiB of memory.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Gemma2Config

from lingact.config.base import asset
from lingact.config.data import FilesCorpus, Splits
from lingact.config.model import ModelConfig
from lingact.data.sources import load_corpus
from lingact.data.tokens import TokenBatch
from lingact.models.lm import LanguageModel, load_model
from lingact.runtime.terminal import show

SHAPE = Gemma2Config()  # its defaults are the shape of Gemma 2 2B
WIDTH, BATCH_TOKENS, GIB = 16384, 2048, 2**30
LANGUAGES = ("en", "zh", "ml")


def write_model(folder: Path) -> None:
    """Random weights in bfloat16, as the hub has them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SHAPE, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(asset("microworld/model"))
    tokenizer.save_pretrained(folder)


def write_saes(folder: Path, norms: list[float]) -> None:
    """Random directions; thresholds at about the 99th percentile for residuals of these norms, one for each layer."""
    random = np.random.default_rng(0)
    for layer, norm in enumerate(norms):
        own = folder / f"layer_{layer}" / "width_16k"
        own.mkdir(parents=True)
        wide = random.standard_normal((WIDTH, SHAPE.hidden_size), dtype=np.float32)
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
        threshold = np.full(WIDTH, 2.33 * norm / SHAPE.hidden_size**0.5, np.float32)
        zeros = {"b_enc": np.zeros(WIDTH, np.float32), "b_dec": np.zeros(SHAPE.hidden_size, np.float32)}
        np.savez(own / "params.npz", W_enc=wide.T, W_dec=wide, threshold=threshold, **zeros)


def batches(lm: LanguageModel, text: Path, sentences: int) -> Iterator[TokenBatch]:
    """As analyze.py makes them."""
    corpus = load_corpus(FilesCorpus(kind="files", path=text, max_sentences=sentences, splits=Splits(train=0.5, dev=0.2, heldout=0.3)), LANGUAGES)
    for texts in corpus.texts.values():
        yield from lm.tokens.batches(lm.tokens.windows(texts), BATCH_TOKENS)


@torch.no_grad()
def read(folder: Path, text: Path, sentences: int) -> dict[str, float]:
    """The forward pass alone: seconds, tokens, and the mean residual norms that the SAEs are made for."""
    lm = load_model(ModelConfig(name=str(folder / "model"), revision=None, dtype="bfloat16", attention="eager", context=1024), "auto")
    layers, norms, tokens = tuple(range(len(lm.blocks))), [], 0
    start = time.monotonic()
    for batch in batches(lm, text, sentences):
        residuals, _ = lm.residuals(batch, layers)
        norms.append([residuals[layer][batch.keep].float().norm(dim=-1).mean().item() for layer in layers])
        tokens += batch.size()
    seconds = time.monotonic() - start
    return {"seconds": seconds, "tokens": tokens, "norms": np.mean(norms, axis=0).tolist()}


def analyze(folder: Path, text: Path, sentences: int) -> tuple[float, float]:
    """The whole of analyze.py: its wall-clock seconds and the peak of its memory in GiB."""
    overrides = ["model=gemma2_2b", f"model.name={folder / 'model'}", f"sae.measuring.release={folder / 'gemma-scope-2b-pt-res'}", "sae.heldout=null"]
    overrides += [
        "\"sae.measuring.id='layer_{layer}/width_16k'\"".strip('"'),
        "corpus=files",
        f"corpus.path={text}",
        f"corpus.max_sentences={sentences}",
    ]
    overrides += [f"batch_tokens={BATCH_TOKENS}", "languages.high=[zh]", "languages.low=[ml]", "tracking=none", f"hydra.run.dir={folder / 'run'}"]
    start = time.monotonic()
    subprocess.run([sys.executable, "analyze.py", *overrides], check=True)
    return time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / GIB


def main() -> None:
    """Print what it took."""
    folder, text, sentences = Path(sys.argv[1]).absolute(), Path(sys.argv[2]), int(sys.argv[3])
    if not (folder / "model" / "config.json").is_file():
        write_model(folder / "model")
    command = [sys.executable, "-m", "benchmarks.true_shapes", "--read", str(folder), str(text), str(sentences)]
    alone = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    reading = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / GIB
    if not (folder / "gemma-scope-2b-pt-res").is_dir():
        write_saes(folder / "gemma-scope-2b-pt-res", alone["norms"])
    seconds, peak = analyze(folder, text, sentences)
    speed = {
        "tokens": alone["tokens"],
        "forward pass, tokens/s": alone["tokens"] / alone["seconds"],
        "analyze.py, tokens/s": alone["tokens"] / seconds,
    }
    show([speed | {"peak of reading, GiB": f"{reading:.1f}", "peak of analyze.py, GiB": f"{peak:.1f}"}], title=f"{len(LANGUAGES)} languages")


if __name__ == "__main__":
    if sys.argv[1] == "--read":
        sys.stdout.write(json.dumps(read(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))))
    else:
        main()
