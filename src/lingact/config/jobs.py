"""The schemas of the jobs."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator

from lingact.config.base import Codes, ConfigSection, FieldsBefore, as_list
from lingact.config.data import CorpusConfig, LanguagesConfig, PairsCorpus, refuse_many_languages, refuse_option_name
from lingact.config.limits import Confidence, Count, Device, Place, Power, Processors, Resamples, Seed, Text, Whole
from lingact.config.measures import MeasuresConfig, Statistics, enough_resamples
from lingact.config.model import ModelConfig, SaeConfig
from lingact.config.saes import NAME as SET_NAME
from lingact.config.saes import SaeMix, SaeQuality, SaeTraining, TextConfig
from lingact.config.tasks import ContaminationConfig, TasksConfig
from lingact.config.training import LossConfig, OptimConfig, PeftConfig, TrainerConfig
from lingact.hub.wandb_limits import NAME, TAG, name_problem


class TrackingConfig(ConfigSection):
    """Weights & Biases."""

    mode: Literal["offline", "online", "disabled"]
    project: str
    """Up to 128 characters, without any of / \\ # ? % :"""
    entity: str | None
    group: str | None
    """In a multirun it defaults to the name of the sweep folder. Up to 128 characters."""
    tags: tuple[str, ...]
    """Each of 1 to 64 characters."""

    @field_validator("project", "entity", "group", "tags")
    @classmethod
    def _valid_names(cls, given: str | tuple[str, ...] | None, info: FieldsBefore) -> str | tuple[str, ...] | None:
        for name in given if isinstance(given, tuple) else () if given is None else (given,):
            if problem := name_problem(str(info.field_name), name, TAG if info.field_name == "tags" else NAME):
                raise ValueError(problem)
        return given


def _plan_of_boolean(value: object) -> object:
    return {True: "only", False: "off"}[value] if isinstance(value, bool) else value


Plan = Annotated[Literal["check", "only", "off"], BeforeValidator(_plan_of_boolean), Field(exclude=True)]
"""check: estimate memory and time first, and refuse what cannot fit. only (true): only print the estimate. off (false): run without it. It is not
part of a run's configuration."""


class Seeded(ConfigSection):
    """What all jobs share."""

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
    def _common_sentences(cls, languages: LanguagesConfig, info: FieldsBefore) -> LanguagesConfig:
        many = "one job for each: -m languages.high=[] languages.low=[ml],[hi]"
        refuse_many_languages(info.data.get("corpus"), languages.reference, (*languages.high, *languages.low), many)
        return languages


class Processes(ConfigSection):
    """How processes share the passes over text. The results do not depend on it, so an interrupted run may continue with another number of them."""

    devices: Processors
    """Processes on this machine, one for each device."""
    nodes: Processors
    """Machines."""

    @field_validator("devices")
    @classmethod
    def _a_device_for_each(cls, devices: int, info: FieldsBefore) -> int:
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
"""Section -> keys that say where and in which portions a run is computed. They change results by rounding at most, and with dropout by its draws."""


def without_machine(plain: dict[str, Any]) -> dict[str, Any]:
    """A job's plain configuration without the keys that belong to the machine, which may differ when an interrupted run continues."""
    kept = {key: value for key, value in plain.items() if key not in _OF_THE_MACHINE[""]}
    for section in kept.keys() & _OF_THE_MACHINE.keys():
        kept[section] = {key: value for key, value in kept[section].items() if key not in _OF_THE_MACHINE[section]}
    return kept


def _read_shard(value: object) -> object:
    """`2/4` as (1, 4), since shards are counted from 0 internally."""
    if isinstance(value, str):
        found = re.fullmatch(r"(\d+)/(\d+)", value)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"'{value}' is not k/n with k from 1 to n; write for instance shard=2/4 for the second of four")
        return (int(found[1]) - 1, int(found[2]))
    return value


def _read_mixes(value: object) -> object:
    """Each mix as a list of folders, one for each SAE seed."""
    mixes = as_list(value)
    return [as_list(mix) for mix in mixes] if isinstance(mixes, (list, tuple)) else mixes


class AnalyzeConfig(Processes, Job):
    """analyze.py."""

    split: Literal["train", "dev", "heldout", "all"]
    adapter: Text | None
    """Run folder of train.py, PEFT folder, hub id or W&B artifact: measure base and adapter on the same sentences. None: the base alone."""
    measures: MeasuresConfig
    scores: Annotated[tuple[Place, ...], BeforeValidator(as_list)]
    """Benchmark scores: run folders of eval.py, or CSV files."""
    stats: Annotated[tuple[Place, ...], BeforeValidator(as_list)]
    """Runs whose statistics are used instead of measuring."""
    compare: Annotated[tuple[Place, ...], BeforeValidator(as_list)]
    """Two runs: before and after. Or trained runs and sweeps of them: their recipes against each other."""
    attribution: Annotated[tuple[tuple[Place, ...], ...], BeforeValidator(_read_mixes)] = ()
    """Two folders of SAEs, or two lists of them (SAE seeds of one mix): activation is split into norm, dictionary and remainder. Empty: it is not."""
    shard: Annotated[
        tuple[Whole, Annotated[Count, Field(le=100_000)]], BeforeValidator(_read_shard), PlainSerializer(lambda shard: f"{shard[0] + 1}/{shard[1]}")
    ]
    """(k, n): the k-th of n parts of the batches, from 0."""

    @field_validator("compare")
    @classmethod
    def _two_at_least(cls, runs: tuple[Path, ...]) -> tuple[Path, ...]:
        if len(runs) == 1 and not (runs[0] / ".jobs").is_dir():
            raise ValueError("1 given; name two runs, compare=[BEFORE,AFTER], or several training runs or a training sweep to compare their recipes")
        return runs

    @field_validator("attribution")
    @classmethod
    def _two_mixes(cls, mixes: tuple[tuple[Path, ...], ...]) -> tuple[tuple[Path, ...], ...]:
        if not mixes:
            return mixes
        if len(mixes) != 2:
            raise ValueError(f"{len(mixes)} given; name two folders of SAEs, attribution=[SET_A,SET_B], or two lists of them, [[A0,A1],[B0,B1]]")
        if len(mixes[0]) != len(mixes[1]) or not mixes[0]:
            raise ValueError(
                f"the first mix has {len(mixes[0])} folders and the second {len(mixes[1])}; name as many SAE seeds of one as of the other, because "
                "each is compared with that in the same place"
            )
        folders = [folder for mix in mixes for folder in mix]
        places = [os.path.realpath(folder) for folder in folders]  # which, unlike Path.resolve, puts up with links that lead nowhere
        twice = sorted({str(folder) for folder, place in zip(folders, places, strict=True) if places.count(place) > 1})
        if twice:
            raise ValueError(f"named twice: {', '.join(twice)}; an SAE set is compared with another one")
        return mixes

    @field_validator("shard")
    @classmethod
    def _core_only(cls, shard: tuple[int, int], info: FieldsBefore) -> tuple[int, int]:
        if shard[0] >= shard[1]:
            raise ValueError(f"there is no shard {shard[0] + 1} of {shard[1]}; write for instance shard=2/4 for the second of four")
        measures = info.data.get("measures")
        if shard != (0, 1) and info.data.get("attribution"):
            raise ValueError("shards cannot be attributed; leave attribution out, or measure the whole text at once")
        if shard != (0, 1) and measures is not None and measures.parts:
            raise ValueError(f"shards cannot measure further parts, but these were requested: {', '.join(measures.parts)}; use measures=core")
        return shard


class TrainConfig(Job):
    """train.py."""

    lang: Codes
    """Target languages."""
    split: Literal["dev", "heldout"]
    """The sentences on which base and adapter are compared: dev while choices are being made, heldout for final results."""
    loss: LossConfig
    peft: PeftConfig
    optim: OptimConfig
    trainer: TrainerConfig
    train_corpus: Annotated[CorpusConfig | None, BeforeValidator(refuse_option_name)] = None
    """Another corpus to train on: its split train, without the sentences that are also in `corpus`. None: the split train of `corpus`."""
    cache: Place | None
    """Folder for the base model's outputs on the training sentences, shared by runs. None: each run computes them."""

    @field_validator("trainer")
    @classmethod
    def _a_device_for_each(cls, trainer: TrainerConfig, info: FieldsBefore) -> TrainerConfig:
        if trainer.devices > 1 and ":" in info.data.get("device", ""):
            raise ValueError(f"devices is {trainer.devices}, but device names one of them ({info.data['device']}); use device=auto or device=cuda")
        return trainer

    @field_validator("train_corpus")
    @classmethod
    def _common_training_sentences(cls, corpus: CorpusConfig | None, info: FieldsBefore) -> CorpusConfig | None:
        languages, loss = info.data.get("languages"), info.data.get("loss")
        if languages is not None and "lang" in info.data:
            refuse_many_languages(corpus, languages.reference, info.data["lang"], "one job for each: -m lang=ml,hi")
        if isinstance(corpus, PairsCorpus) and loss is not None and loss.control == "wrong_language":
            raise ValueError(f"corpus '{corpus.dataset}' has no other language's text of the same sentences, which loss.control=wrong_language needs")
        return corpus

    # A validator of the field, not of the model: pydantic skips those of the model if any field is wrong, and all problems are reported at once.
    @field_validator("lang")
    @classmethod
    def _targets_make_sense(cls, lang: tuple[str, ...], info: FieldsBefore) -> tuple[str, ...]:
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
        others = [code for code in lang if code not in languages.all]
        if others:
            raise ValueError(
                f"not among the languages under study ({', '.join(languages.all)}): {', '.join(others)}; add them to languages.low or languages.high"
            )
        return lang


def _as_names(value: object) -> object:
    """A list from one string, a list, or nothing."""
    return () if value is None else [value] if isinstance(value, str) else value


class EvalConfig(Processes, Seeded):
    """eval.py: it needs no SAE, but can keep activations of the prompts."""

    batch_tokens: Count
    """Padded tokens per forward pass over the text."""
    adapter: Annotated[tuple[Text, ...], BeforeValidator(_as_names)]
    """Run folders of train.py, sweep folders, PEFT folders, hub ids, W&B artifacts; none: the base model alone."""
    model: ModelConfig
    sae: SaeConfig | None = None
    """The mean activation of these SAEs and the residual norm are kept for each prompt. None: they are not."""
    languages: LanguagesConfig
    tasks: TasksConfig
    corpus: CorpusConfig
    """Aligned text, for bits per byte."""
    text_split: Literal["train", "dev", "heldout", "all"] | None
    """Which of its sentences are used; None: bits per byte are not computed."""
    contamination: ContaminationConfig
    resamples: Resamples
    block: Count | None = None
    """As in `Statistics`, for bits per byte."""
    confidence: Confidence
    power: Power
    """Power of the minimum detectable effect; at least 0.5 and below 1."""
    cache: Place | None
    """Folder for the models' answers, shared by runs. None: each run keeps its own."""
    tracking: TrackingConfig

    _enough_resamples = field_validator("confidence")(enough_resamples)

    @field_validator("text_split")
    @classmethod
    def _common_sentences(cls, split: str | None, info: FieldsBefore) -> str | None:
        languages = info.data.get("languages")
        if split is not None and languages is not None:
            others = (*languages.high, *languages.low)
            refuse_many_languages(info.data.get("corpus"), languages.reference, others, "one job for each, another corpus, or text_split=null")
        return split


class SaesConfig(Processes, Seeded):
    """lingact saes: train SAEs of one's own."""

    batch_tokens: Count
    """Padded tokens per forward pass."""
    model: ModelConfig
    text: TextConfig
    sets: dict[Annotated[str, Field(pattern=SET_NAME)], SaeMix] | None
    """Name -> languages of the text that the set is trained on. None: one set, `equal`."""
    saes: SaeTraining
    quality: SaeQuality
    init: Place | None = None
    """Run folder of `lingact saes`, or a set in it: its SAEs are trained further. None: new ones."""
    adapter: Text | None = None
    """With `init`: the SAEs are trained further on the model with this adapter, and once more on the base model with the same tokens."""
    resamples: Resamples
    confidence: Confidence
    tracking: TrackingConfig

    _enough_resamples = field_validator("confidence")(enough_resamples)

    @field_validator("sets")
    @classmethod
    def _some_set(cls, sets: dict[str, SaeMix] | None) -> dict[str, SaeMix] | None:
        if sets is not None and not sets:
            raise ValueError("no set given; name one, such as {equal: {mix: equal}}, or leave the key out")
        return sets

    @field_validator("saes")
    @classmethod
    def _room_for_active_latents(cls, saes: SaeTraining, info: FieldsBefore) -> SaeTraining:
        for name, mix in (info.data.get("sets") or {"equal": SaeMix(mix="equal")}).items():
            width, k = mix.width or saes.width, mix.k or saes.k
            if k >= width:
                raise ValueError(f"set '{name}' would have {k} active latents (k) of {width} (width); give a smaller k, or more latents")
        return saes

    @field_validator("adapter")
    @classmethod
    def _something_to_refit(cls, adapter: str | None, info: FieldsBefore) -> str | None:
        if adapter is not None and info.data.get("init") is None:
            raise ValueError("SAEs are refitted to an adapter, so that there have to be some; give init=FOLDER, a run of lingact saes")
        return adapter

    @property
    def seeded_sets(self) -> dict[str, SaeMix]:
        """The sets, each with its seed."""
        sets = self.sets or {"equal": SaeMix(mix="equal")}
        return {name: mix.model_copy(update={"seed": self.seed if mix.seed is None else mix.seed}) for name, mix in sets.items()}


JobConfig = TrainConfig | AnalyzeConfig | EvalConfig | SaesConfig
SCHEMAS: dict[str, type[TrainConfig] | type[AnalyzeConfig] | type[EvalConfig] | type[SaesConfig]] = {
    "train": TrainConfig, "analyze": AnalyzeConfig, "eval": EvalConfig, "saes": SaesConfig
}  # fmt: skip
