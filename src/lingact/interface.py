"""lingact from Python: run a job, open a run, measure texts with a model and SAEs in memory. Import these names from `lingact`.

    import lingact

    run = lingact.run("train", ["lang=ml"])                 # like `lingact train lang=ml`
    run = lingact.open_run("outputs/train/2026-11-26")      # an earlier run
    run.table("change_by_layer")                            # a pandas DataFrame
    gaps = lingact.measure(model, saes, {"en": [...], "ml": [...]}, "en", tokenizer=tokenizer)
    gaps.table("gap_by_layer")

Mistakes raise `lingact.errors.UserError`, which says what is wrong and how to fix it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lingact.catalogue.languages import nearest
from lingact.errors import UserError
from lingact.files.records import read_json_object, read_run_config
from lingact.runtime.tracking import read_manifest

if TYPE_CHECKING:
    import pandas as pd
    from sae_lens import SAE
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lingact.models.lm import LanguageModel
    from lingact.models.sae import Dictionaries

# --- runs ----------------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunFolder:
    """The results of a run. Runs of earlier versions get the names of this version. Files are read when they are accessed."""

    folder: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What was run, with which data, and how it ended (`manifest.json`).

        Raises:
            UserError: the file is damaged.
        """
        return read_manifest(self.folder)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The complete configuration (`config.yaml`), with the keys of this version.

        Raises:
            UserError: the file is missing or damaged.
        """
        return read_run_config(self.folder / "config.yaml", "put it back, or run again")

    @cached_property
    def summary(self) -> dict[str, float | None]:
        """The numbers of the run by name (`summary.json`); None where a number is not finite.

        Raises:
            UserError: the run has not finished, or the file is damaged.
        """
        path = self.folder / "summary.json"
        if not path.is_file():
            raise UserError(f"'{self.folder}' has no summary (status: {self.manifest['status']}); finish the run with resume={self.folder}")
        return read_json_object(path, "put it back, or let the run make it again")

    @property
    def tables(self) -> tuple[str, ...]:
        """The names of the tables, such as `gap_by_layer`."""
        from lingact.files.run_tables import table_files

        return tuple(table_files(self.folder))

    def table(self, name: str) -> "pd.DataFrame":
        """A table. Its columns are explained in the report of the run.

        Args:
            name: one of `tables`.

        Raises:
            UserError: there is no such table (the message lists the existing ones), or it is damaged.
        """
        from lingact.files.run_tables import read_run_table, table_files

        files = table_files(self.folder)
        _refuse_unknown(name, files, f"'{self.folder}'")
        return read_run_table(files[name])


def open_run(folder: str | Path) -> RunFolder:
    """Open the folder of a run, finished or not.

    Raises:
        UserError: it is not a run folder, or its manifest is damaged.
    """
    run = RunFolder(Path(folder))
    _ = run.manifest  # refuses another folder
    return run


def run(job: Literal["train", "analyze", "eval"], overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> RunFolder:
    """Run a job as the command line does, and open its run.

    Args:
        job: what to do; the same as `lingact train`, `lingact analyze`, `lingact eval`.
        overrides: the arguments of the command, such as `["lang=ml", "trainer.steps=50"]`.
        config_dir: a folder with your own options, which take precedence over those of the package.

    Raises:
        UserError: the problems that the command line would report, one per line.
    """
    from lingact.cli.main import run_job

    return open_run(run_job(job, list(overrides), config_dir))


def _refuse_unknown(name: str, names: Collection[str], where: str) -> None:
    if name not in names:
        raise UserError(f"{where} has no table '{name}'{nearest(name, names)} (tables: {', '.join(names) or 'none'})")


# --- in memory -----------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeasureSettings:
    """How `measure` reads texts and computes intervals. The defaults are those of `lingact analyze`."""

    context: int = 512
    """Tokens per window, including BOS. Longer texts are split into windows."""
    batch_tokens: int = 4096
    """Padded tokens per forward pass."""
    gap: str = "mean"
    """The measure of activation in the gap tables; `gap_by_measure` has all measures."""
    pooling: Literal["token", "sentence"] = "token"
    resamples: int = 2000
    """Resamples of the paired bootstrap over sentences."""
    confidence: float = 0.95
    seed: int = 0
    """Seed of the resamples."""
    device: str = "auto"
    """Device for a model that is given by name."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights of a model that is given by name."""


@dataclass(frozen=True)
class Measured:
    """Gaps of texts in memory, with the same members as a run. The tables have the same columns as those of `lingact analyze`."""

    summary: dict[str, float]
    """`gap/<language>/<layer>`, `gap/<language>/<range>` (mean) and `gap/<language>/<range>_max`."""
    frames: "dict[str, pd.DataFrame]"

    @property
    def tables(self) -> tuple[str, ...]:
        """The names of the tables: gap_by_layer, gap_by_range, gap_by_measure, confounds."""
        return tuple(self.frames)

    def table(self, name: str) -> "pd.DataFrame":
        """A table.

        Args:
            name: one of `tables`.

        Raises:
            UserError: there is no such table.
        """
        _refuse_unknown(name, self.frames, "the measurement")
        return self.frames[name]


def measure(
    model: "PreTrainedModel | str",
    saes: "Mapping[int, SAE[Any]] | tuple[str, str]",
    texts: Mapping[str, Sequence[str]],
    reference: str,
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    settings: MeasureSettings = MeasureSettings(),
) -> Measured:
    """Measure how far languages fall short of a reference language, with the code of `lingact analyze`.

    The gap of a language at a layer is `1 - A(language) / A(reference)`, where A is the mean folded activation per token of the layer's SAE.

    Args:
        model: a causal language model of transformers, or its hub id or folder.
        saes: SAEs by layer, each of which reads the output of that block; they are frozen and moved to the model's device, in float32. Or a release
            and an id with `{layer}` for the layer number; then every layer is measured.
        texts: language code -> sentences; translations of one sentence have the same position. At least two languages and two sentences.
        reference: code of the language that the others are compared with.
        tokenizer: the tokenizer of a model that is in memory.
        settings: how texts are read and intervals computed.

    Returns:
        Tables gap_by_layer, gap_by_range, gap_by_measure and confounds, and their summary. Duplicate sentences count once.

    Raises:
        UserError: model, SAEs, languages or texts are missing or do not match.
    """
    import torch

    from lingact.activations.measurement import BASE
    from lingact.activations.passes import Wanted
    from lingact.activations.passes import measure as read
    from lingact.analysis.tables import GROUP_GAPS, confound_table, disparities, gap_summary, layer_table, measure_table, range_table
    from lingact.config.data import LanguagesConfig
    from lingact.config.measures import Statistics
    from lingact.config.validation import validate
    from lingact.data.corpus_files import aligned_corpus

    languages = validate(LanguagesConfig, {"reference": reference, "high": (), "low": tuple(code for code in texts if code != reference)})
    given = {"pooling": settings.pooling, "resamples": settings.resamples, "confidence": settings.confidence, "early": "third", "deep": "third"}
    statistics = validate(Statistics, given)
    _check_texts(texts, reference)
    places = [f"sentence {number}" for number in range(1, len(texts[reference]) + 1)]
    corpus = aligned_corpus("texts", {code: list(texts[code]) for code in languages.all}, None, None, places)
    corpus.resampling(None).check_enough("in texts")
    lm = _loaded(model, tokenizer, settings)
    dictionaries = _dictionaries(saes, lm)
    training = lm.model.training
    lm.model.eval()
    try:
        with torch.no_grad():
            identity = {"model": lm.identity["sha256"], "corpus": corpus.sha256}
            measured = read(lm, {"measuring": dictionaries}, corpus, batch_tokens=settings.batch_tokens, identity=identity, wanted=Wanted())
    finally:
        lm.model.train(training)
    stats = measured.of("measuring", BASE)
    found = disparities(stats, languages, statistics, settings.seed, measure=settings.gap)
    frames = {
        "gap_by_layer": layer_table(found),
        "gap_by_range": range_table(found),
        "gap_by_measure": measure_table(stats, languages, statistics, settings.seed),
    }
    # There is only one group of languages.
    frames = {name: frame[~frame["name"].isin(GROUP_GAPS)].reset_index(drop=True) for name, frame in frames.items()}
    frames["confounds"] = confound_table(stats, statistics, settings.seed)
    summary = {key: value for key, value in gap_summary(found).items() if key.split("/")[1] not in GROUP_GAPS}
    return Measured(summary, frames)


def _check_texts(texts: Mapping[str, Sequence[str]], reference: str) -> None:
    if reference not in texts or len(texts) < 2:
        raise UserError(f"texts has {', '.join(texts) or 'no language'}; it needs the reference '{reference}' and at least one other language")
    strings = [code for code, sentences in texts.items() if isinstance(sentences, str)]
    if strings:
        raise UserError(f"texts: {', '.join(strings)} is a single text; give a list of sentences for each language")
    if len({len(sentences) for sentences in texts.values()}) > 1:
        counted = ", ".join(f"{code} {len(sentences)}" for code, sentences in texts.items())
        raise UserError(f"texts: every language needs the same sentences in the same order, but the numbers differ: {counted}")


def _loaded(model: "PreTrainedModel | str", tokenizer: "PreTrainedTokenizerBase | None", settings: MeasureSettings) -> "LanguageModel":
    from lingact.config.model import ModelConfig
    from lingact.config.validation import validate
    from lingact.models.lm import load_model, model_in_memory

    if isinstance(model, str):
        wanted = {"name": model, "revision": None, "dtype": settings.dtype, "attention": "eager", "context": settings.context}
        return load_model(validate(ModelConfig, wanted), settings.device)
    if tokenizer is None:
        raise UserError("tokenizer: a model in memory does not include one; give tokenizer=AutoTokenizer.from_pretrained(...)")
    return model_in_memory(model, tokenizer, settings.context)


def _dictionaries(saes: "Mapping[int, SAE[Any]] | tuple[str, str]", lm: "LanguageModel") -> "Dictionaries":
    from lingact.config.model import SaeSet
    from lingact.config.validation import validate
    from lingact.models.sae import dictionaries_of, load_dictionaries

    if isinstance(saes, Mapping):
        return dictionaries_of(saes, lm)
    release, sae_id = saes
    return load_dictionaries(validate(SaeSet, {"release": release, "id": sae_id}), tuple(range(len(lm.blocks))), lm)[0]
