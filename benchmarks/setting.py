"""What all ways of a job share: a model, random SAEs, aligned text, benchmark items.

They are the embedded toy model and its data, or in folders of the user's.
"""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from lingact.config.data import FilesCorpus, Splits
from lingact.config.jobs import EvalConfig
from lingact.config.tasks import TasksConfig
from lingact.config.validation import validate_config
from lingact.data.corpus import ParallelCorpus
from lingact.data.sources import load_corpus
from lingact.evaluation.tasks import TaskInstance, load_tasks
from lingact.models.lm import LanguageModel, load_model
from lingact.models.sae import Dictionaries, Dictionary

CONF = Path(__file__).resolve().parents[1] / "conf"
LANGUAGES = ("en", "hi", "ml")
ACTIVE = 60
"""Active latents of a token, about."""
BATCH_TOKENS = 512


@dataclass(frozen=True)
class Setting:
    """What is measured with; it is sent to the process of each way."""

    model: str | None = None
    """Folder of a model; None: the embedded one."""
    data: str | None = None
    """Folder with `flores_sib200.jsonl` and `okapi_{arc,mmlu}_<lang>.jsonl`; None: the embedded text and items."""
    width: int = 4096
    """Latents of an SAE."""
    sentences: int = 4
    """In each language."""
    items: int = 4
    """Of each benchmark in each language."""
    layers: int | None = None
    """Layers with an SAE, the last one among them; None: all."""
    threads: int = 2


def load(setting: Setting) -> LanguageModel:
    """The model in float32, with fused attention where it has it."""
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    chosen = [f"model.name={setting.model}", "model.revision=null", "model.attention=sdpa", "model.context=1024"] if setting.model else []
    return load_model(_config(*chosen).model, "cpu")


def text(setting: Setting) -> ParallelCorpus:
    """The first sentences in three languages."""
    if setting.data is None:
        corpus = load_corpus(_config().corpus, LANGUAGES)
    else:
        path = Path(setting.data) / "flores_sib200.jsonl"
        corpus = load_corpus(FilesCorpus(kind="files", path=path, max_sentences=None, splits=Splits(train=0.5, dev=0.2, heldout=0.3)), LANGUAGES)
    places = [place % len(corpus.ids) for place in range(setting.sentences)]
    texts = {code: tuple(corpus.texts[code][place] for place in places) for code in LANGUAGES}
    return ParallelCorpus("benchmark", tuple(f"s{place}" for place in range(setting.sentences)), texts)


def random_saes(lm: LanguageModel, corpus: ParallelCorpus, width: int, layers: tuple[int, ...] | None = None) -> Dictionaries:
    """JumpReLU SAEs of random directions after every layer, with about `ACTIVE` active latents a token of the reference (seed 0)."""
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    layers = layers if layers is not None else tuple(range(len(lm.blocks)))
    batch = next(iter(lm.tokens.batches(lm.tokens.windows(corpus.texts["en"]), 4 * BATCH_TOKENS)))
    with torch.no_grad():
        residuals, _ = lm.residuals(batch, layers)
    random = torch.Generator().manual_seed(0)
    found = {}
    for layer in layers:
        x = residuals[layer][batch.keep].float()
        rows = torch.nn.functional.normalize(torch.randn(width, lm.d_model, generator=random), dim=-1)
        threshold = (x[:512] @ rows.T).topk(min(ACTIVE, width), dim=1).values[:, -1].mean().clamp_min(0)
        sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=lm.d_model, d_sae=width, metadata=SAEMetadata(hook_name=f"blocks.{layer}.hook_resid_post")))
        sae.W_dec.data, sae.W_enc.data = rows, rows.T.contiguous()
        sae.threshold.data = threshold.expand(width).clone()
        found[layer] = Dictionary(sae, layer)
    return found


def items(setting: Setting) -> list[TaskInstance]:
    """ARC with its options as texts and MMLU with their letters, in three languages."""
    config = _config().tasks
    if setting.data is None:
        return list(load_tasks(config.model_copy(update={"limit": setting.items}), LANGUAGES).instances)
    own = {name: {"kind": "items", "path": str(sound_items(Path(setting.data), name)), "split_by": None} for name in ("arc", "mmlu")}
    rest: dict[str, Any] = {"benchmarks": [], "missing": "refuse", "items": "shared", "limit": setting.items, "fewshot": None, "batch_size": "auto"}
    return list(load_tasks(TasksConfig.model_validate({"own": own, **rest}), LANGUAGES).instances)


def sound_items(folder: Path, name: str) -> Path:
    """A copy of the items that every language has with different choices; machine translation made some of them alike."""
    rows = {path.stem[-2:]: [json.loads(line) for line in path.open(encoding="utf-8")] for path in sorted(folder.glob(f"okapi_{name}_*.jsonl"))}
    if name == "mmlu":  # asked with letters, as lm-eval does it
        rows = {code: [_with_letters(row) for row in own] for code, own in rows.items()}
    sound = [place for place in range(len(rows["en"])) if all(len(set(own[place]["choices"])) == len(own[place]["choices"]) for own in rows.values())]
    copy = Path(tempfile.gettempdir()) / f"lingact-benchmark-{os.getpid()}"
    copy.mkdir(exist_ok=True)
    for code, own in rows.items():
        lines = [json.dumps(own[place], ensure_ascii=False) for place in sound]
        (copy / f"{name}_{code}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return copy / f"{name}_{{lang}}.jsonl"


def _with_letters(row: dict[str, Any]) -> dict[str, Any]:
    letters = "ABCDEFGH"[: len(row["choices"])]
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, row["choices"], strict=True))
    return row | {"question": f"{row['question']}\n{listed}\nAnswer:", "choices": list(letters)}


def _config(*overrides: str) -> EvalConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return validate_config(EvalConfig, compose("eval", ["device=cpu", *overrides]))
