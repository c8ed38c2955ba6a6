"""The schemas of the three jobs. Hydra composes plain YAML; `judge` reads it once, reports every problem at once, and is trusted from then on.

The first part of a key path is the folder under `conf/` where its options live, if there is one.
"""

import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from lingact.benchmarks import FAMILIES, family
from lingact.errors import UserError
from lingact.languages import language, nearest
from lingact.limits import (
    Confidence,
    Count,
    Device,
    Dropout,
    Factor,
    Latents,
    LayerRange,
    Layers,
    Modules,
    Place,
    Power,
    Processors,
    Real,
    Resamples,
    Seed,
    Share,
    Text,
    Weight,
    WeightedLayers,
    Whole,
    check_resamples,
    distinct,
)
from lingact.wandb_limits import NAME, TAG, name_problem


def asset(path: str) -> str:
    """Absolute path of a file that the package carries; in YAML `${asset:microworld/model}`."""
    return str(files("lingact") / "assets" / path)


OmegaConf.register_new_resolver("asset", asset, replace=True)


def _known_code(code: object) -> object:
    # YAML 1.1 reads an unquoted `no` (Norwegian) as False.
    code = "no" if code is False else code
    if isinstance(code, str):
        try:
            language(code)
        except UserError as error:
            raise ValueError(str(error)) from None
    return code


def _as_list(value: object) -> object:
    return [value] if isinstance(value, (str, bool)) else value


Code = Annotated[str, BeforeValidator(_known_code)]
Columns = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Codes = Annotated[tuple[Code, ...], BeforeValidator(_as_list)]


class Section(BaseModel):
    """A part of the configuration: immutable, unknown keys are errors, and numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _auto_or_truth(value: object) -> object:
    # Before the union, whose branches would each complain.
    if value != "auto" and not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither auto nor true or false")
    return value


class Shape(Section):
    """What a model's number of weights, and the memory and work that it takes, follow from."""

    architecture: Literal["gemma2", "gemma3", "gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3"]
    """What transformers calls it. Biases, norms and the kind of MLP follow from it."""
    layers: Count
    d_model: Count
    d_mlp: Count
    heads: Count
    kv_heads: Count
    """Heads of keys and values."""
    head_dim: Count
    vocabulary: Count
    """Rows of the embedding."""
    positions: Count | None
    """Learned positions. None: computed ones."""
    tied: bool
    """One matrix embeds tokens and predicts them."""
    beside: Annotated[int, Field(ge=0, lt=2**50)]
    """Weights that are loaded and read no text, such as a vision tower."""

    @field_validator("kv_heads")
    @classmethod
    def _divides_heads(cls, kv_heads: int, info: Any) -> int:
        heads = info.data.get("heads", kv_heads)
        if heads % kv_heads:
            raise ValueError(f"it is {kv_heads}, which does not divide heads ({heads})")
        return kv_heads


class ModelConfig(Section):
    """A Hugging Face causal language model."""

    name: Text
    """Hub id or local folder."""
    revision: Text | None
    """Branch, tag or commit on the hub; a commit makes the run reproducible."""
    dtype: Literal["float32", "bfloat16", "float16"]
    attention: Literal["eager", "sdpa", "flash_attention_2"]
    """Attention implementation; Gemma 2's soft caps need eager."""
    bos: Annotated[Literal["auto"] | bool, BeforeValidator(_auto_or_truth)] = "auto"
    """Whether texts begin with BOS; auto: as the tokenizer does it."""
    context: Annotated[Count, Field(ge=2)]
    """Tokens per window, BOS included, from 2. Longer texts are split into windows."""
    trust_remote_code: bool = False
    training_shares: dict[Code, Annotated[Real, Field(gt=0, le=1e12)]] | None = None
    """Share of the training text by language, in any unit, where it is known; None: the share of public web pages stands in."""
    shape: Shape | None = None
    """For the plan, before anything is downloaded. None: read from the model's config.json, where it is on this machine."""


class SaeSet(Section):
    """One SAE per layer."""

    release: Text
    """sae-lens release, a local folder in sae-lens's or a release's format, or a hub repository in sae-lens's format."""
    id: Text | dict[Whole, Text]
    """SAE id, or path in the folder, with `{layer}` for the layer number, `{layer+1}` where SAEs are named by the block that reads them; or an id
    for each layer."""
    width: Count | None = None
    """Latents of an SAE, for the plan. None: not known before they are loaded."""

    @field_validator("id")
    @classmethod
    def _has_layer(cls, given: str | dict[int, str]) -> str | dict[int, str]:
        if isinstance(given, str) and not re.search(r"\{layer(\+1)?\}", given):
            raise ValueError(f"'{given}' has no {{layer}}; write the layer number's place, as in 'layer_{{layer}}/width_16k/canonical'")
        if not given:
            raise ValueError("no id given; write one with {layer}, or one for each layer")
        return given

    def id_of(self, layer: int) -> str:
        """The id of a layer's SAE.

        Raises:
            UserError: ids are given one by one, and none for this layer.
        """
        if isinstance(self.id, str):
            return self.id.replace("{layer}", str(layer)).replace("{layer+1}", str(layer + 1))
        if layer not in self.id:
            raise UserError(f"sae: no id for layer {layer} (given: {', '.join(map(str, self.id))}); add it, or name the layers in sae.layers")
        return self.id[layer]


class SaeConfig(Section):
    """The SAEs that measure, and the ones kept aside to check them."""

    measuring: SaeSet
    heldout: SaeSet | None
    """Other SAEs of the same layers, which training never sees."""
    layers: Layers
    """Layers to measure, each once; the SAE of layer l reads the output of block l."""


class Splits(Section):
    """Shares of the sentences; who is in which split follows from a hash of the sentence id."""

    train: Share
    dev: Share
    heldout: Share

    @model_validator(mode="after")
    def _sums_to_one(self) -> "Splits":
        if abs(self.train + self.dev + self.heldout - 1) > 1e-9:
            raise ValueError(f"train, dev and heldout add up to {self.train + self.dev + self.heldout:g}, not to 1")
        return self


class FilesCorpus(Section):
    """Aligned text on this machine: JSONL, CSV, TSV or Parquet with one column per language code, or a folder of line-aligned `<code>.txt`.

    The columns `unit` (sentence ids) and `document` are read where they are there; in a folder, `unit.txt` and `document.txt`.
    """

    kind: Literal["files"]
    path: Place
    max_sentences: Annotated[Count, Field(ge=2)] | None
    """At least 2: fewer have no interval."""
    splits: Splits


class OnTheHub(Section):
    """A data set on the Hugging Face hub."""

    dataset: Text
    """Hub id."""
    revision: Text | None
    """Branch, tag or commit; a commit makes the run reproducible."""
    licence: Text
    """As messages name it, and whether its terms have to be accepted first."""
    split: Text
    """Of the data set; it is divided by `splits` into ours."""


class HubCorpus(OnTheHub):
    """The same sentences in every language, one configuration per language, such as FLORES+."""

    kind: Literal["hub"]
    subset: Literal["flores", "ntrex"]
    """How the configurations are named: by the codes of FLORES+ or of NTREX-128."""
    id_column: Text | None
    """Column that says which sentences belong together; None: they do line by line."""
    text_column: Text
    document_column: Text | None = None
    """Column that says which document a sentence comes from, such as its address; None: there is none."""
    documents: Literal["ntrex_128"] | None = None
    """The package's list of documents and their lengths, for a data set that has documents but no such column; None: none."""
    sentences: Count | None = None
    """How many the split has, for the plan."""
    max_sentences: Annotated[Count, Field(ge=2)] | None
    splits: Splits

    @model_validator(mode="after")
    def _documents_from_one_place(self) -> "HubCorpus":
        if self.document_column is not None and self.documents is not None:
            raise ValueError(f"documents come from the column '{self.document_column}' or from the list '{self.documents}'; set one of them to null")
        return self


class PairsCorpus(OnTheHub):
    """Sentences beside their translations, other ones for each pair of languages, one configuration per pair, such as OPUS-100.

    No sentence is common to all languages: one language at a time is measured or trained on, against the reference's side of its own pair.
    """

    kind: Literal["pairs"]
    layout: Literal["opus", "tatoeba"]
    """opus: configuration `en-ml` (alphabetical), column `translation`. tatoeba: `mal-eng`, columns `sentence1` and `sentence2` in this order."""
    max_sentences: Annotated[Count, Field(ge=2)] | None
    splits: Splits


def _a_section(value: object) -> object:
    if isinstance(value, str):
        raise ValueError(f"'{value}' is no section; to choose an option of conf/corpus/ write corpus@train_corpus={value}")
    return value


CorpusConfig = Annotated[FilesCorpus | HubCorpus | PairsCorpus, Field(discriminator="kind")]


def _refuse_many(corpus: object, reference: str, others: tuple[str, ...], one_at_a_time: str) -> None:
    """Raise where sentences that are common to several languages are wanted of a corpus that has none.

    Raises:
        ValueError: there is not one language beside the reference.
    """
    if isinstance(corpus, PairsCorpus) and len(others) != 1:
        raise ValueError(
            f"corpus '{corpus.dataset}' pairs each language with '{reference}' in sentences of its own and has none common to all, so it takes one "
            f"language beside the reference, not {len(others)} ({', '.join(others)}); {one_at_a_time}"
        )


class LanguagesConfig(Section):
    """The languages under study."""

    reference: Code
    high: Codes
    """High-resource group."""
    low: Codes
    """Medium-to-low-resource group."""

    @property
    def all(self) -> tuple[str, ...]:
        """Reference, high, low, in this order."""
        return (self.reference, *self.high, *self.low)

    @model_validator(mode="after")
    def _distinct(self) -> "LanguagesConfig":
        doubles = sorted({code for code in self.all if self.all.count(code) > 1})
        if doubles:
            raise ValueError(f"named more than once among reference, high and low: {', '.join(doubles)}")
        return self


def _enough_resamples(confidence: float, info: Any) -> float:
    if "resamples" in info.data:
        check_resamples(info.data["resamples"], confidence)
    return confidence


class Statistics(Section):
    """How activations are pooled and how sure we are of them."""

    pooling: Literal["token", "sentence"]
    resamples: Resamples
    """Paired bootstrap resamples of the documents, or else of the blocks or sentences, 100 to 100,000; at least one has to lie beyond either end of
    an interval."""
    block: Count | None = None
    """Sentences: where the corpus names no documents, so many neighbouring ones of the source are drawn together; 1 or None: each by itself."""
    confidence: Confidence
    """From 0.5, below 1."""
    early: LayerRange
    """Layers of the range `early`; third: the first third of the measured ones."""
    deep: LayerRange

    _enough_resamples = field_validator("confidence")(_enough_resamples)


class TrackingConfig(Section):
    """Weights & Biases."""

    mode: Literal["offline", "online", "disabled"]
    project: str
    """Up to 128 characters, without any of / \\ # ? % :"""
    entity: str | None
    group: str | None
    """Defaults to the sweep's folder under multirun. Up to 128 characters."""
    tags: tuple[str, ...]
    """Of 1 to 64 characters each."""

    @field_validator("project", "entity", "group", "tags")
    @classmethod
    def _names_that_are_taken(cls, given: Any, info: Any) -> Any:
        for name in given if isinstance(given, tuple) else () if given is None else (given,):
            if problem := name_problem(info.field_name, name, TAG if info.field_name == "tags" else NAME):
                raise ValueError(problem)
        return given


def _plan_by_yes_or_no(value: object) -> object:
    return {True: "only", False: "off"}[value] if isinstance(value, bool) else value


Plan = Annotated[Literal["check", "only", "off"], BeforeValidator(_plan_by_yes_or_no), Field(exclude=True)]
"""check: begin with memory and time, and refuse what cannot fit. only (true): nothing else. off (false): run without. No part of what a run is."""


class Seeded(Section):
    """What all three jobs share."""

    plan: Plan = "check"
    seed: Seed
    """Below 2**32."""
    device: Device
    """auto, cpu, cuda or cuda:N."""


class Job(Seeded):
    """What train.py and analyze.py share."""

    batch_tokens: Count
    """Padded tokens per forward pass."""
    model: ModelConfig
    sae: SaeConfig
    corpus: CorpusConfig
    languages: LanguagesConfig
    statistics: Statistics
    tracking: TrackingConfig

    @field_validator("languages")
    @classmethod
    def _common_sentences(cls, languages: LanguagesConfig, info: Any) -> LanguagesConfig:
        many = "one job for each: -m languages.high=[] languages.low=[ml],[hi]"
        _refuse_many(info.data.get("corpus"), languages.reference, (*languages.high, *languages.low), many)
        return languages


class Processes(Section):
    """How the passes over text are shared out. It changes no number, so an interrupted run may go on with another number of processes."""

    devices: Processors
    """Processes on this machine, one for each device."""
    nodes: Processors
    """Machines."""

    @field_validator("devices")
    @classmethod
    def _a_device_for_each(cls, devices: int, info: Any) -> int:
        if devices > 1 and ":" in info.data.get("device", ""):
            raise ValueError(f"it is {devices}, but device names one of them ({info.data['device']}); use device=auto or device=cuda")
        return devices


_OF_THE_MACHINE = {
    "": ("device", "devices", "nodes", "cache"),
    "trainer": (
        *("devices", "nodes", "strategy", "workers", "micro_batch", "activation_checkpointing"),
        *("checkpoint_every", "checkpoint_minutes"),
    ),
}
"""Section -> keys that say where and in which portions a run is computed. They change its numbers by their rounding at most, and with dropout its
draws."""


def of_the_run(plain: dict[str, Any]) -> dict[str, Any]:
    """A job's plain configuration without what belongs to the machine: an interrupted run may go on with other values of that."""
    kept = {key: value for key, value in plain.items() if key not in _OF_THE_MACHINE[""]}
    for section in kept.keys() & _OF_THE_MACHINE.keys():
        kept[section] = {key: value for key, value in kept[section].items() if key not in _OF_THE_MACHINE[section]}
    return kept


Measure = Literal[
    "mean", "mean_active", "firing_rate", "l0", "l2", "top_k", "per_sentence", "per_byte", "per_word", "reference_active", "norm_matched"
]
Part = Literal["by_reference", "language_model", "similarity", "features", "spliced", "causal", "random_sae", "shuffled_labels"]


class SimilarityConfig(Section):
    """Representation similarity between languages."""

    sentences: Annotated[Count, Field(ge=10)]
    """At most so many; their mean residuals are kept in memory."""


class FeaturesConfig(Section):
    """Language-specific latents."""

    min_rate: Share
    """Share of the language's tokens on which a candidate fires at least."""
    per_layer: Count
    """Candidates per language and layer."""
    alpha: Annotated[Share, Field(le=0.5)]
    """False discovery rate among the candidates, at most 0.5."""
    random_tokens: Annotated[Count, Field(ge=100)]
    """At least 100: fewer tell no rates."""
    cards: Count
    """Features per language whose strongest contexts are shown."""


class SplicedConfig(Section):
    """Cross-entropy with the residual replaced by its reconstruction."""

    sentences: Annotated[Count, Field(ge=2)]


class CausalConfig(Section):
    """Change features and see what it does to each language's cross-entropy."""

    mode: Literal["scale", "steer"]
    doses: tuple[Annotated[Real, Field(ge=-1000, le=1000)], ...]
    """scale: factors of the features' activations; steer: multiples of the residual's mean norm. From -1000 to 1000, each once."""
    features: Latents
    per_language: Count
    layers: Layers
    draws: Annotated[Count, Field(le=1000)]
    """Draws of random latents, which are averaged; at most 1000."""
    sentences: Annotated[Count, Field(ge=2)]
    """Of the confirmation half."""

    @field_validator("doses")
    @classmethod
    def _each_once(cls, doses: tuple[float, ...]) -> tuple[float, ...]:
        distinct(doses, "dose")
        return doses


class RandomSaeConfig(Section):
    """SAEs with random directions, a control."""

    draws: Annotated[int, Field(ge=1, le=100)]
    """Sets of directions, one SAE for each layer in each set. Their spread goes into the intervals; a single draw says nothing of it. 1 to 100."""


class MeasuresConfig(Section):
    """What analyze.py measures."""

    gap: Measure
    """The measure of the gap tables."""
    top_k: Count
    parts: tuple[Part, ...]
    similarity: SimilarityConfig
    features: FeaturesConfig
    spliced: SplicedConfig
    causal: CausalConfig
    random_sae: RandomSaeConfig = RandomSaeConfig(draws=1)
    """Runs from before there were several draws have one and do not say so."""

    @field_validator("parts")
    @classmethod
    def _each_once(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        if parts:
            distinct(parts, "part")
        return parts

    @model_validator(mode="after")
    def _parts_fit(self) -> "MeasuresConfig":
        if self.gap in ("reference_active", "norm_matched") and "by_reference" not in self.parts:
            raise ValueError(f"gap={self.gap} needs the part by_reference; add it to measures.parts, or use measures=full")
        if "causal" in self.parts and self.causal.features == "language_specific" and "features" not in self.parts:
            raise ValueError("the part causal needs the part features; add it, or name latents in measures.causal.features")
        return self


def _read_piece(value: object) -> object:
    """`2/4` as (1, 4): the place counts from 0 inside."""
    if isinstance(value, str):
        found = re.fullmatch(r"(\d+)/(\d+)", value)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"'{value}' is not k/n with k from 1 to n; write for instance piece=2/4 for the second of four")
        return (int(found[1]) - 1, int(found[2]))
    return value


class AnalyzeConfig(Processes, Job):
    """analyze.py."""

    split: Literal["train", "dev", "heldout", "all"]
    adapter: Text | None
    """Run folder of train.py, PEFT folder, hub id or W&B artifact: measure base and adapter on the same sentences. None: the base alone."""
    measures: MeasuresConfig
    scores: Annotated[tuple[Place, ...], BeforeValidator(_as_list)]
    """Benchmark scores: run folders of eval.py, or CSV files."""
    stats: Annotated[tuple[Place, ...], BeforeValidator(_as_list)]
    """Runs whose statistics are used instead of measuring."""
    compare: Annotated[tuple[Place, ...], BeforeValidator(_as_list)]
    """Two runs: before and after. Or trained runs and sweeps of them: their recipes against each other."""
    piece: Annotated[
        tuple[Whole, Annotated[Count, Field(le=100_000)]], BeforeValidator(_read_piece), PlainSerializer(lambda piece: f"{piece[0] + 1}/{piece[1]}")
    ]
    """(k, n): the k-th of n parts of the batches, from 0."""

    @field_validator("compare")
    @classmethod
    def _two_at_least(cls, runs: tuple[Path, ...]) -> tuple[Path, ...]:
        if len(runs) == 1 and not (runs[0] / ".jobs").is_dir():
            raise ValueError("1 given; name two runs: compare=[BEFORE,AFTER], or several runs or a sweep of train.py, whose recipes to compare")
        return runs

    @field_validator("piece")
    @classmethod
    def _core_only(cls, piece: tuple[int, int], info: Any) -> tuple[int, int]:
        # `info` is pydantic's ValidationInfo, a protocol that beartype cannot check.
        if piece[0] >= piece[1]:
            raise ValueError(f"there is no piece {piece[0] + 1} of {piece[1]}; write for instance piece=2/4 for the second of four")
        measures = info.data.get("measures")
        if piece != (0, 1) and measures is not None and measures.parts:
            raise ValueError(f"pieces measure without further parts, these were asked for: {', '.join(measures.parts)}; use measures=core")
        return piece


class GapLoss(Section):
    """The gap term on the target languages: what is brought nearer to the reference under the base model, which stays frozen."""

    objective: Literal["activation", "profile", "hinge", "contrastive", "diffmean", "norm"]
    """activation: A(l, L). profile: mean feature profile on parallel sentences. hinge: pre-activations of the reference's latents, upwards only.
    contrastive: mean-pooled translations. diffmean: mean residual, no SAE. norm: mean residual norm, a control."""
    side: Literal["two_sided", "one_sided"]
    """two_sided moves towards the reference from either side, one_sided only upwards (activation and norm)."""
    gradient: Literal["jumprelu", "straight_through"]
    """straight_through lets latents that are silent but near their threshold receive a gradient (activation and profile)."""
    bandwidth: Share
    """Width of the straight-through window below each threshold, relative to the threshold."""
    norm_matched: bool
    """Measure the loss on residuals rescaled to the base model's norm on each token, so that loudness does not pay."""
    pooling: Literal["token", "sentence"]
    """Of the activation: over all tokens, or within each sentence and then over sentences."""
    temperature: Annotated[Real, Field(ge=1e-3, le=100)]
    """Of the contrastive objective, from 0.001 to 100."""
    weight: Weight
    """0, or from 1e-6 to 1e6, as every weight of a term."""
    layers: WeightedLayers
    """Measured layers in the loss, or their weights: {2: 1.0, 3: 0.5}."""
    stop_when_closed: bool
    """End training when the gap term's mean over ten steps is below its tolerance, so that nothing overshoots."""
    tolerance: Factor
    """Of `stop_when_closed`, in the units of the term."""


class RetentionLoss(Section):
    """What holds the reference language, base being the same model with the adapter off. Weights; 0 leaves a term out."""

    kl: Weight
    """KL(base || adapter) of the next-token distributions, in nats."""
    lm: Weight
    """Cross-entropy on the reference's text."""
    activation: Weight
    """Squared relative change of the reference's activation per layer."""
    norm: Weight
    """Squared log ratio of residual norms, on reference and targets."""
    fit: Weight
    """Growth of the measuring SAEs' FVU on the targets, so that the meter stays valid."""
    target_kl: Weight
    """KL(base || adapter) on the targets' text, in nats, so that their language modelling stays."""
    top: Count | None
    """Likeliest next tokens of the base model that the KL terms keep, from one pass before training; the rest counts as one token. None: all of them,
    with a second forward pass in every step."""
    limit: Factor | None
    """Keep KL below this many nats by a multiplier that grows while it is above and shrinks while it is below (dual ascent); it starts
    from the weight `kl`. None: that weight throughout."""
    rate: Factor
    """Step of the multiplier, per nat and training step."""


class LossConfig(Section):
    """The combined loss: gap term on the target languages, retention terms on the reference, language modelling on the targets."""

    gap: GapLoss
    retention: RetentionLoss
    target_lm: Weight
    """Weight of the cross-entropy on the target languages' text."""
    warm_up: Whole
    """Steps over which the gap term's weight rises from 0."""
    control: Literal["none", "random_features", "shuffled_pairs", "wrong_language"]
    """random_features: SAEs with random directions in the gap term. shuffled_pairs: target sentences beside other sentences of the reference.
    wrong_language: text of another language in the targets' place."""

    @model_validator(mode="after")
    def _some_weight(self) -> "LossConfig":
        retention = self.retention.model_dump(include={"kl", "lm", "activation", "norm", "fit", "target_kl"})
        if not any((self.gap.weight, self.target_lm, *retention.values())):
            raise ValueError("all weights are zero: nothing would be trained")
        return self

    @model_validator(mode="after")
    def _does_what_it_says(self) -> "LossConfig":
        """Options that would change nothing, or leave nothing to train."""
        gap = self.gap
        if gap.stop_when_closed and gap.weight == 0:
            raise ValueError("gap.stop_when_closed needs a gap term, but gap.weight is 0")
        if self.control == "random_features" and self.retention.fit > 0:
            raise ValueError("retention.fit would hold the fit of SAEs with random directions; with control=random_features set it to 0")
        if gap.norm_matched and gap.objective == "norm":
            raise ValueError("gap.norm_matched takes away the very norms that gap.objective=norm would train; use one of them")
        for what, chosen, objectives in (
            ("gap.stop_when_closed", gap.stop_when_closed, ("activation", "profile", "norm")),
            ("control=shuffled_pairs", self.control == "shuffled_pairs", ("profile", "contrastive")),
            ("control=random_features", self.control == "random_features", ("activation", "profile", "hinge")),
            ("gap.gradient=straight_through", gap.gradient == "straight_through", ("activation", "profile")),
        ):
            if chosen and gap.objective not in objectives:
                raise ValueError(f"{what} changes nothing with gap.objective={gap.objective}; it goes with {' or '.join(objectives)}")
        return self


MOVE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations of LoRA (peft) that take the adapter's first weights out of the base weights, or requantise these."""


class Adapter(Section):
    """Where an adapter sits, of whatever kind. None of the kinds touches the base weights, so that the adapter switched off is the base model."""

    targets: Modules
    """Linear modules of a block, such as q_proj; all: every one, whatever the architecture calls them."""
    layers: Layers
    """Blocks with an adapter, each once."""


class LoraAdapter(Adapter):
    """W + s B A (Hu et al. 2021, 2106.09685), with s = alpha / r."""

    kind: Literal["lora"]
    r: Annotated[Count, Field(le=100_000)]
    alpha: Factor
    dropout: Dropout
    use_rslora: bool
    """s = alpha / sqrt(r) (Kalajdzievski 2023, 2312.03732)."""
    use_dora: bool
    """Direction by LoRA, magnitude by a vector of its own (Liu et al. 2024, 2402.09353)."""
    init: Literal["default", "gaussian"]
    """Of A; B starts at zero. default: Kaiming uniform. gaussian: standard deviation 1 / r."""

    @field_validator("init", mode="before")
    @classmethod
    def _leaves_the_base_alone(cls, init: object) -> object:
        if str(init).partition("_niter_")[0] in MOVE_THE_BASE:
            raise ValueError(
                f"'{init}' changes the base weights when it moves part of them into the adapter, so that the adapter switched off would no longer be "
                "the base model that retention and every comparison rest on; use default or gaussian"
            )
        return init


class VeraAdapter(Adapter):
    """W + diag(b) B diag(d) A with random frozen A, B shared by all modules; b and d are trained (Kopiczko et al. 2023, 2310.11454)."""

    kind: Literal["vera"]
    r: Annotated[Count, Field(le=100_000)]
    dropout: Dropout
    d_initial: Annotated[Factor, Field(le=1000)]
    """First value of d; b starts at zero."""


class Ia3Adapter(Adapter):
    """A factor for each output of a module, or each input (Liu et al. 2022, 2205.05638); starts at one."""

    kind: Literal["ia3"]
    feedforward: tuple[Text, ...]
    """Those of the targets whose inputs are scaled, not their outputs."""

    @model_validator(mode="after")
    def _of_the_targets(self) -> "Ia3Adapter":
        others = [name for name in self.feedforward if self.targets != "all" and name not in self.targets]
        if others:
            raise ValueError(f"feedforward names {', '.join(others)}, which targets ({', '.join(self.targets)}) does not have; add it there")
        return self


class LohaAdapter(Adapter):
    """W + s (B1 A1) * (B2 A2), an elementwise product of two low-rank matrices, with s = alpha / r (Hyeon-Woo et al. 2021, 2108.06098)."""

    kind: Literal["loha"]
    r: Annotated[Count, Field(le=100_000)]
    alpha: Factor


class LokrAdapter(Adapter):
    """W + s C (x) B A, a Kronecker product, with s = alpha / r (Yeh et al. 2023, 2309.14859)."""

    kind: Literal["lokr"]
    r: Annotated[Count, Field(le=100_000)]
    alpha: Factor


class OftAdapter(Adapter):
    """W R with an orthogonal block-diagonal R, by Cayley's map of skew-symmetric blocks (Qiu et al. 2023, 2306.07280); starts at the identity."""

    kind: Literal["oft"]
    block_size: Annotated[Count, Field(ge=2, le=100_000)]
    """Width of R's blocks; divides the input width of every target."""


PeftConfig = Annotated[LoraAdapter | VeraAdapter | Ia3Adapter | LohaAdapter | LokrAdapter | OftAdapter, Field(discriminator="kind")]
"""Adapters (peft)."""


class OptimConfig(Section):
    """AdamW with linear warm-up and cosine decay to zero."""

    lr: Annotated[Real, Field(ge=1e-10, le=1)]
    """Highest learning rate, from 1e-10 to 1."""
    weight_decay: Annotated[Real, Field(ge=0, le=1)]
    """From 0 to 1; a step takes lr times this share of the weights away."""
    warmup_steps: Whole
    """No more than the steps of the training."""


class TrainerConfig(Section):
    """Lightning trainer."""

    steps: Count
    sentences: Count
    """Aligned sentences per optimiser step; each gives one text per target language and one in the reference."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"]
    """Of the passes; for base weights in bfloat16 set model.dtype. The adapter and the loss terms stay in float32."""
    gradient_clip: Factor
    micro_batch: Count | None
    """Sentences that are read at once, for less memory: loss and gradient stay those of all `sentences` (with dropout in the adapter: but for
    other draws). None: all at once, and fewer by itself where memory runs out."""
    activation_checkpointing: bool
    """Compute each block's activations again for the gradient instead of keeping them: less memory, about a third more time."""
    workers: Annotated[Whole, Field(le=256)]
    """Processes that put batches together ahead of time, at most 256."""
    devices: Processors
    """Processes on this machine, one for each device, that share every step's sentences."""
    nodes: Processors
    """Machines."""
    strategy: Literal["ddp", "fsdp"]
    """Of several processes. ddp: each holds the whole model. fsdp: in training each holds a share of the base weights, and a block's are brought
    together when it is their turn; the adapter is whole everywhere. Before and after training the model is whole, so one device has to hold it."""
    checkpoint_every: Count
    """Steps between resumable checkpoints."""
    checkpoint_minutes: Factor = 1.0
    """Minutes, from when on a checkpoint is due all the same. One is also kept at the last step, and when the run is interrupted."""

    @model_validator(mode="after")
    def _enough_sentences(self) -> "TrainerConfig":
        if self.devices * self.nodes > self.sentences:
            raise ValueError(f"sentences is {self.sentences}, fewer than the {self.devices * self.nodes} processes that share them; give more")
        return self


class TrainConfig(Job):
    """train.py."""

    lang: Codes
    """Target languages."""
    split: Literal["dev", "heldout"]
    """The sentences on which base and adapter are compared: dev while choices are being made, heldout for the table that is told."""
    loss: LossConfig
    peft: PeftConfig
    optim: OptimConfig
    trainer: TrainerConfig
    train_corpus: Annotated[CorpusConfig | None, BeforeValidator(_a_section)] = None
    """Another corpus to train on: its split train, without the sentences that `corpus` has, too. None: the split train of `corpus`."""
    cache: Place | None
    """Folder of what the base model gives on the training sentences; runs share it. None: compute it for each."""

    @field_validator("trainer")
    @classmethod
    def _a_device_for_each(cls, trainer: TrainerConfig, info: Any) -> TrainerConfig:
        if trainer.devices > 1 and ":" in info.data.get("device", ""):
            raise ValueError(f"devices is {trainer.devices}, but device names one of them ({info.data['device']}); use device=auto or device=cuda")
        return trainer

    @field_validator("train_corpus")
    @classmethod
    def _common_training_sentences(cls, corpus: Any, info: Any) -> Any:
        languages, loss = info.data.get("languages"), info.data.get("loss")
        if languages is not None and "lang" in info.data:
            _refuse_many(corpus, languages.reference, info.data["lang"], "one job for each: -m lang=ml,hi")
        if isinstance(corpus, PairsCorpus) and loss is not None and loss.control == "wrong_language":
            raise ValueError(f"corpus '{corpus.dataset}' has no other language's text of the same sentences, which loss.control=wrong_language needs")
        return corpus

    # On the field, not on the model: a model's validator is silent while any other field is wrong, and all problems are to be reported at once.
    @field_validator("lang")
    @classmethod
    def _targets_make_sense(cls, lang: tuple[str, ...], info: Any) -> tuple[str, ...]:
        # `info` is pydantic's ValidationInfo, a protocol that beartype cannot check.
        if not lang:
            raise ValueError("no target language given; write for instance lang=ml or lang=[ml,hi]")
        if len(set(lang)) != len(lang):
            raise ValueError(f"a language is named twice in [{', '.join(lang)}]")
        languages = info.data.get("languages")
        if languages is None:
            return lang
        if languages.reference in lang:
            raise ValueError(
                f"'{languages.reference}' is the reference language and cannot be a target; name other languages, or change languages.reference"
            )
        strangers = [code for code in lang if code not in languages.all]
        if strangers:
            raise ValueError(
                f"{', '.join(strangers)} not among the languages under study ({', '.join(languages.all)}); add to languages.low or languages.high"
            )
        return lang


class OwnTask(Section):
    """A benchmark of the user's, as lm-eval task files."""

    kind: Literal["lm_eval"]
    folder: Place
    """Where the task files are; data files are named relative to their YAML."""
    task: str
    """Task name with `{lang}` for the language code."""
    key: Columns
    """Columns that together name an item in every language; none: items of different languages do not correspond."""
    facts: bool
    """The key names a fact that your other benchmarks ask, too, so that they are not independent."""
    split_by: Text | None
    """Column by which scores are split further, and by which a limited selection is kept in proportion."""


class OwnItems(Section):
    """A benchmark of the user's, as JSONL: `question`, `choices`, `answer`, and `id` if languages correspond.

    Questions and choices are texts or numbers, asked as they are written. An answer that is a number is the right choice's place from 0; a text is
    the right choice itself. Where choices are numbers, a number that is the place of one and the value of another is refused.
    """

    kind: Literal["items"]
    path: str
    """File with `{lang}` for the language code."""
    split_by: Text | None
    """As above."""

    @field_validator("path")
    @classmethod
    def _has_lang(cls, path: str) -> str:
        if "{lang}" not in path:
            raise ValueError(f"'{path}' has no {{lang}}; write the language code's place, as in 'quiz_{{lang}}.jsonl', and quote it")
        if not path.lower().endswith((".jsonl", ".json")):
            raise ValueError(f"'{path}' ends neither in .jsonl nor in .json; give a file with an item a line, or a JSON list of them")
        return path


OwnBenchmark = Annotated[OwnTask | OwnItems, Field(discriminator="kind")]


_MOST_OPTIONS = 1_000_000


def _number_or_auto(value: object) -> object:
    # Before the union, whose branches would each complain.
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{value!r} is neither auto nor a number of options, from 1 upwards")
    if isinstance(value, int) and value > _MOST_OPTIONS:
        raise ValueError(f"{value} options at once are more than any device holds; give at most {_MOST_OPTIONS}, or auto")
    return value


class TasksConfig(Section):
    """The benchmarks, and which of their items."""

    benchmarks: tuple[str, ...]
    """Names in the table of benchmarks (`lingact.benchmarks`)."""
    own: dict[Annotated[str, Field(pattern=r"^\w[\w-]*$")], OwnBenchmark]
    """Benchmarks that are not in the table, by the name they shall have: letters, digits, `_` and `-`, since files are called by it."""
    missing: Literal["refuse", "skip"]
    """What to do where a benchmark lacks a language."""
    items: Literal["shared", "all"]
    """shared: those that all its languages have, where a benchmark names its items; all: every one, as lm-eval takes them."""
    limit: Count | None
    """Items per benchmark: the same ones in every language and for every model, in proportion to the benchmark's parts. None: all."""
    fewshot: Annotated[Whole, Field(le=1000)] | None
    """Examples before each question; None: as the task says, mostly none."""
    batch_size: Annotated[Count | Literal["auto"], BeforeValidator(_number_or_auto)]
    """Options per forward pass. auto: as many as the device should hold, fewer where it does not."""

    @field_validator("benchmarks")
    @classmethod
    def _in_the_table(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            try:
                family(name)
            except UserError as error:
                raise ValueError(str(error)) from None
        if len(set(names)) < len(names):
            raise ValueError(f"a benchmark is named twice in [{', '.join(names)}]")
        return names

    @model_validator(mode="after")
    def _some_benchmark(self) -> "TasksConfig":
        both = [name for name in self.own if name in self.benchmarks]
        if both or "all" in self.own:
            raise ValueError(f"own: the name '{(both or ['all'])[0]}' is taken; give your benchmark another one")
        if not self.benchmarks and not self.own:
            raise ValueError(f"no benchmark given; name some in benchmarks ({', '.join(FAMILIES)}) or your own in own")
        return self


class LeakageConfig(Section):
    """How benchmark items are compared with the training text."""

    words: Annotated[Count, Field(ge=3, le=1000)]
    """Length of the word sequences looked for; an item shorter than that is looked for as a whole."""
    share: Share
    """Share of an item's sequences from which on it counts as overlapping with the training text."""


def _as_names(value: object) -> object:
    """One string, a list, or nothing."""
    return () if value is None else [value] if isinstance(value, str) else value


class EvalConfig(Processes, Seeded):
    """eval.py: it needs no SAE."""

    batch_tokens: Count
    """Padded tokens per forward pass over the text."""
    adapter: Annotated[tuple[Text, ...], BeforeValidator(_as_names)]
    """Run folders of train.py, sweep folders, PEFT folders, hub ids, W&B artifacts; none: the base model alone."""
    model: ModelConfig
    languages: LanguagesConfig
    tasks: TasksConfig
    corpus: CorpusConfig
    """Aligned text, for bits per byte."""
    text_split: Literal["train", "dev", "heldout", "all"] | None
    """Which of its sentences; None: leave bits per byte out."""
    leakage: LeakageConfig
    resamples: Resamples
    block: Count | None = None
    """As in `Statistics`, for bits per byte."""
    confidence: Confidence
    power: Power
    """Of the minimum detectable effect; from 0.5, below 1."""
    cache: Place | None
    """Folder of what models have answered; runs share it. None: each keeps its own."""
    tracking: TrackingConfig

    _enough_resamples = field_validator("confidence")(_enough_resamples)

    @field_validator("text_split")
    @classmethod
    def _common_sentences(cls, split: str | None, info: Any) -> str | None:
        languages = info.data.get("languages")
        if split is not None and languages is not None:
            others = (*languages.high, *languages.low)
            _refuse_many(info.data.get("corpus"), languages.reference, others, "one job for each, another corpus, or text_split=null")
        return split


SCHEMAS: dict[str, type[Section]] = {"train": TrainConfig, "analyze": AnalyzeConfig, "eval": EvalConfig}


_SECTIONS = ("measures", "model", "sae", "corpus", "languages", "loss", "peft", "optim", "trainer", "tasks", "tracking")
_FOLDERS = {**{name: name for name in _SECTIONS}, "train_corpus": "corpus"}
"""Section -> folder under conf/ with its options."""
_UNIONS = {("corpus",): 1, ("train_corpus",): 1, ("peft",): 1, ("tasks", "own"): 3}
"""Sections of several kinds, and which step of a location in them is the kind."""
_HOW_TO_GIVE = {
    "lang": "write for instance lang=ml or lang=[ml,hi]",
    "tasks.own.mine.path": "write for instance \"tasks.own.mine.path='quiz_{lang}.jsonl'\", with both quotes",
    "tasks.own.mine.folder": "write tasks.own.mine.folder=FOLDER, with your lm-eval task files",
    "tasks.own.mine.task": "write for instance \"tasks.own.mine.task='quiz_{lang}'\", with both quotes",
    "corpus.path": "write corpus.path=FILE, or corpus.path=FOLDER with one <code>.txt per language",
    "train_corpus.path": "write train_corpus.path=FILE, or train_corpus.path=FOLDER with one <code>.txt per language",
}


def _allowed_keys(schema: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Field names where `location` points into the schema; empty where it leaves the models."""
    models = [schema]
    for step in location:
        annotation = next((model.model_fields[step].annotation for model in models if step in model.model_fields), None)
        if annotation is None:  # the kind of a union, or a key of a dictionary
            models = [model for model in models if "kind" in model.model_fields and step in get_args(model.model_fields["kind"].annotation)] or models
        else:
            models = [part for part in get_args(annotation) or (annotation,) if isinstance(part, type) and issubclass(part, BaseModel)]
    return list(models[0].model_fields) if models else []


def _without_kind(location: tuple[Any, ...]) -> tuple[Any, ...]:
    place = next((place for section, place in _UNIONS.items() if location[: len(section)] == section), len(location))
    return location[:place] + location[place + 1 :]


_LONGEST = 200
"""Characters of a value that a message repeats."""


def problem_lines(error: ValidationError, schema: type[BaseModel]) -> list[str]:
    """One line per problem: key path, what came, what is allowed, where to look."""
    lines = []
    for item in error.errors():
        steps = _without_kind(item["loc"])
        path = ".".join(part for part in steps if isinstance(part, str))
        folder = f" (options: conf/{_FOLDERS[item['loc'][0]]}/)" if item["loc"] and item["loc"][0] in _FOLDERS else ""
        message = "Input should be a path" if item["type"] == "path_type" else item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            lines.append(f"{path}: unknown key{nearest(str(item['loc'][-1]), _allowed_keys(schema, item['loc'][:-1]))}{folder}")
        elif item["type"] == "missing":
            lines.append(f"{path}: missing{'; ' + _HOW_TO_GIVE[path] if path in _HOW_TO_GIVE else ''}{folder}")
        elif item["type"] == "union_tag_invalid":
            lines.append(f"{path}.kind: '{item['ctx']['tag']}' is none of {item['ctx']['expected_tags']}{folder}")
        elif item["type"] == "value_error":
            lines.append(f"{path}: {message}{folder}" if path else message)
        else:
            hint = (
                nearest(str(item["input"]), [w.strip("' ") for w in item["ctx"]["expected"].replace(" or ", ",").split(",")])
                if item["type"] == "literal_error"
                else ""
            )
            came = repr(item["input"])
            came = came if len(came) <= _LONGEST else f"{came[:_LONGEST]}... ({len(came)} characters)"
            lines.append(f"{path}: {message}; got {came}{hint}{folder}")
    return lines


S = TypeVar("S", bound=Section)


def _without_missing(node: Any) -> Any:
    """Plain values without those still `???`, so that they count as missing, not as wrong."""
    if isinstance(node, dict):
        return {key: _without_missing(value) for key, value in node.items() if value != "???"}
    return node


def validate(schema: type[S], plain: dict[str, Any]) -> S:
    """The validated configuration from plain values.

    Raises:
        UserError: with one line per problem.
    """
    try:
        return schema.model_validate(plain)
    except ValidationError as error:
        raise UserError("\n".join(problem_lines(error, schema))) from None


def judge(schema: type[S], composed: DictConfig) -> S:
    """The validated configuration from a composed one.

    Raises:
        UserError: with one line per problem.
    """
    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration does not resolve: {str(error).splitlines()[0]}") from None
    return validate(schema, _without_missing(plain))
