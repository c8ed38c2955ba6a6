"""What the benchmarks measure: the embedded toy model with the values of `analyze.py`, its corpus as long as wanted."""

from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from lingact.config.choices import chosen_layers
from lingact.config.jobs import AnalyzeConfig
from lingact.config.validation import validate_config
from lingact.data.corpus import ParallelCorpus
from lingact.data.sources import load_corpus
from lingact.models.lm import LanguageModel, load_model
from lingact.models.sae import Dictionaries, load_dictionaries
from lingact.workflows.setup import HELDOUT, MEASURING

CONF = Path(__file__).resolve().parents[1] / "conf"
BATCH_TOKENS = 4096
"""The default of `analyze.py`."""


def embedded(sentences: int) -> tuple[LanguageModel, dict[str, Dictionaries], ParallelCorpus]:
    """Model and both sets of SAEs on one CPU thread, and the corpus, repeated until it is as long as wanted."""
    torch.set_num_threads(1)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = validate_config(AnalyzeConfig, compose("analyze", ["device=cpu"]))
    lm = load_model(config.model, config.device)
    layers = chosen_layers(config.sae, len(lm.blocks))
    sae_sets = {}
    for sae_set, spec in ((MEASURING, config.sae.measuring), (HELDOUT, config.sae.heldout)):
        assert spec is not None
        sae_sets[sae_set] = load_dictionaries(spec, layers, lm)[0]
    return lm, sae_sets, repeated(load_corpus(config.corpus, config.languages.all), sentences)


def repeated(corpus: ParallelCorpus, count: int) -> ParallelCorpus:
    """The first `count` sentences; where the corpus ends it begins again, under new ids."""
    places = [i % len(corpus.ids) for i in range(count)]
    texts = {code: tuple(own[i] for i in places) for code, own in corpus.texts.items()}
    return ParallelCorpus("repeated", tuple(f"s{i}" for i in range(count)), texts)
