"""What memory and time are computed from: the model, its SAEs, and how much text is read.

Numbers of tokens are guesses unless text and tokenizer are on this machine. Nothing is downloaded, and no weights are read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Generic, TypeVar

from lingact.config.choices import set_names
from lingact.config.data import CorpusConfig, FilesCorpus, HubCorpus, Splits
from lingact.config.jobs import AnalyzeConfig, EvalConfig, JobConfig, TrainConfig
from lingact.config.model import SaeConfig, sae_set_in
from lingact.config.training import ENCODING_OBJECTIVES
from lingact.data.corpus import sample_places
from lingact.data.sources import load_corpus
from lingact.models.sae_files import read_settings, width_of
from lingact.models.sizes import ModelSizes, sizes_of
from lingact.planning.tokenizing import TokenCounter, counter_of

C = TypeVar("C", TrainConfig, AnalyzeConfig, EvalConfig)
Number = int | float
LONGEST = 2.0
"""Length of the longest sentence of a batch, in mean lengths: a guess."""
_BYTES_PER_SENTENCE = 200.0
"""Mean over scripts, for text that is not on this machine: a guess."""
_SENTENCES = 1000
_SAMPLED = 50
"""Sentences in each language whose tokens are counted."""


@dataclass(frozen=True)
class Text:
    """Aligned sentences."""

    sentences: Number
    tokens: Number
    """Tokens of a sentence, mean over languages."""
    how: str
    """How both are known."""


def text_of(corpus: CorpusConfig, codes: tuple[str, ...], counter: TokenCounter) -> Text:
    """The corpus where it is on this machine; else what its preset says, and guesses.

    Args:
        codes: the languages that are read.
        counter: of the model's tokens.
    """
    if isinstance(corpus, FilesCorpus):
        return _text_here(corpus, codes, counter)
    known = [size for size in (corpus.sentences if isinstance(corpus, HubCorpus) else None, corpus.max_sentences) if size]
    count = min(known, default=_SENTENCES)
    tokens = _BYTES_PER_SENTENCE / counter.bytes_per_token
    how = f"{count} sentences {'by conf/corpus/' if known else '(a guess)'} of {tokens:.0f} tokens in each language (a guess)"
    return Text(count, tokens, how)


@cache
def _text_here(corpus: FilesCorpus, codes: tuple[str, ...], counter: TokenCounter) -> Text:
    found = load_corpus(corpus, codes)
    places = sample_places(found.ids, _SAMPLED)
    tokens = sum(sum(counter.count([texts[place] for place in places])) for texts in found.texts.values()) / (len(places) * len(codes))
    return Text(len(found.ids), tokens, f"{len(found.ids)} sentences of about {tokens:.0f} tokens, {counter.how}")


def share_of(splits: Splits, split: str) -> float:
    """The share of a corpus's sentences that a split has; 1 for `all`."""
    return {"train": splits.train, "dev": splits.dev, "heldout": splits.heldout, "all": 1.0}[split]


@dataclass(frozen=True)
class SaeSetSizes:
    """A set of SAEs that text is read through."""

    name: str
    width: int
    how: str
    """How the width is known."""
    dense: bool = False
    """SAEs without thresholds: their gradient is computed over all latents."""
    random: bool = False
    """Random SAEs read the base model only, and no reconstruction of theirs is spliced in."""


@dataclass(frozen=True)
class Inputs(Generic[C]):
    """A job, with the sizes of what it loads and reads."""

    config: C
    model: ModelSizes
    how: str
    """Where the model's sizes come from."""
    text: Text
    sae_sets: tuple[SaeSetSizes, ...]
    """The measuring ones first; none in an evaluation that keeps no activations."""
    layers: int
    """Number of measured layers."""
    counter: TokenCounter
    compared: tuple[SaeSetSizes, ...] = ()
    """Those that an attribution compares."""

    @property
    def bytes_per_number(self) -> int:
        """Bytes of a number in the model."""
        return 4 if self.config.model.dtype == "float32" else 2

    @property
    def longest(self) -> Number:
        """Tokens of the longest sentence of a batch."""
        return min(self.config.model.context, LONGEST * self.text.tokens)

    def forward(self, tokens: Number, *, predicted: Number = 0.0) -> Number:
        """Floating-point operations of the model over so many tokens.

        Args:
            predicted: share of the tokens whose logits are computed.
        """
        return tokens * (self.model.forward(self.text.tokens) + predicted * self.model.logit_work)


def inputs_of(config: C) -> Inputs[C] | None:
    """What the plan of a job is computed from; None where the model's sizes or the width of an SAE are not known without downloading them.

    Raises:
        UserError: a file of the model, the SAEs or the corpus is damaged.
    """
    found = sizes_of(config.model)
    if found is None:
        return None
    model, how = found
    sae_sets: list[SaeSetSizes] = []
    compared: list[SaeSetSizes] = []
    layers = 0
    if config.sae is not None:
        layers = model.layers if config.sae.layers == "all" else len(config.sae.layers)
        for sae_set in _sae_sets(config, config.sae, model.d_model):
            if sae_set is None:
                return None
            sae_sets.append(sae_set)
        compared = list(_compared(config, layers, model))
    counter = counter_of(config.model, model.architecture)
    text = text_of(config.corpus, config.languages.all, counter)
    return Inputs(config, model, how, text, tuple(sae_sets), layers, counter, tuple(compared))


def _sae_sets(config: JobConfig, saes: SaeConfig, d_model: int) -> Iterator[SaeSetSizes | None]:
    for name, spec in (("measuring", saes.measuring), ("held out", saes.heldout)):
        if spec is None:
            continue
        width, how = width_of(spec, d_model)
        if width is None:
            yield None
            continue
        dense = read_settings(spec, spec.id_of(0 if isinstance(spec.id, str) else next(iter(spec.id)))).get("architecture", "jumprelu") != "jumprelu"
        yield SaeSetSizes(name, width, how, dense)
        if name == "measuring" and isinstance(config, AnalyzeConfig) and "random_sae" in config.measures.parts:
            yield from (SaeSetSizes(f"random {draw}", width, how, random=True) for draw in range(1, config.measures.random_sae.draws + 1))


def _compared(config: JobConfig, layers: int, model: ModelSizes) -> Iterator[SaeSetSizes]:
    """The sets of an attribution. They are folders, whose files say how wide they are; a folder that does not is taken to be empty."""
    if not isinstance(config, AnalyzeConfig) or not config.attribution:
        return
    measured = range(model.layers) if config.sae.layers == "all" else config.sae.layers
    for folder, name in set_names(config.attribution).items():
        spec = sae_set_in(folder)
        widths = [read_settings(spec, spec.id_of(layer)).get("d_sae", 0) for layer in measured]
        yield SaeSetSizes(f"attribution {name}", -(-sum(widths) // layers), "its cfg.json")


def layers_in_loss(inputs: Inputs[TrainConfig]) -> tuple[int, int]:
    """Number of layers in the loss, and the dense products with an encoder that each needs for a target's residuals, with those of the gradient.

    Gap and fit terms share one product, and their gradient is that of the active latents alone. The hinge is about all latents.
    """
    loss, gap = inputs.config.loss, inputs.config.loss.gap
    layers = inputs.layers if gap.layers == "all" else len(gap.layers)
    fit, encodes = loss.retention.fit > 0, gap.weight > 0 and gap.objective in ENCODING_OBJECTIVES
    if encodes and gap.objective == "hinge":
        return layers, 2 + fit
    apart = fit and encodes and gap.gradient == "straight_through" and not gap.norm_matched
    return layers, 2 if apart else int(fit or encodes)
