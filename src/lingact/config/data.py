"""Corpora and languages."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lingact.config.base import Code, Codes, ConfigSection
from lingact.config.limits import Count, Place, Share, Text


class Splits(ConfigSection):
    """Shares of the sentences. A hash of the sentence id decides which split a sentence is in."""

    train: Share
    dev: Share
    heldout: Share

    @model_validator(mode="after")
    def _sums_to_one(self) -> "Splits":
        if abs(self.train + self.dev + self.heldout - 1) > 1e-9:
            raise ValueError(f"train, dev and heldout add up to {self.train + self.dev + self.heldout:g}, not to 1")
        return self


CORPUS_FORMATS = "a JSONL, CSV, TSV or Parquet file or a folder of <code>.txt"
"""What a corpus on this machine may be, as messages name it."""


class FilesCorpus(ConfigSection):
    """Aligned text on this machine: JSONL, CSV, TSV or Parquet with one column per language code, or a folder of line-aligned `<code>.txt`.

    The columns `unit` (sentence ids) and `document` are read if they exist; in a folder, `unit.txt` and `document.txt`.
    """

    kind: Literal["files"]
    path: Place
    max_sentences: Annotated[Count, Field(ge=2)] | None
    """At least 2, because fewer have no interval."""
    splits: Splits


class OnTheHub(ConfigSection):
    """A data set on the Hugging Face hub."""

    dataset: Text
    """Hub id."""
    revision: Text | None
    """Branch, tag or commit; a commit makes the run reproducible."""
    licence: Text
    """As messages name it, including whether its terms have to be accepted first."""
    split: Text
    """A split of the data set on the hub, which `splits` divides further."""


class HubCorpus(OnTheHub):
    """The same sentences in every language, one configuration per language, such as FLORES+."""

    kind: Literal["hub"]
    subset: Literal["flores", "ntrex"]
    """How the configurations are named: by the codes of FLORES+ or of NTREX-128."""
    id_column: Text | None
    """Column that says which sentences are translations of each other; None: those in the same line are."""
    text_column: Text
    document_column: Text | None = None
    """Column that says which document a sentence comes from, such as its address; None: there is none."""
    documents: Literal["ntrex_128"] | None = None
    """The package's list of documents and their lengths, for a data set that has documents but no such column; None: no list."""
    sentences: Count | None = None
    """Number of sentences in the split, used by the plan."""
    max_sentences: Annotated[Count, Field(ge=2)] | None
    splits: Splits

    @model_validator(mode="after")
    def _documents_from_one_place(self) -> "HubCorpus":
        if self.document_column is not None and self.documents is not None:
            raise ValueError(f"documents come either from the column '{self.document_column}' or from the list '{self.documents}'; set one to null")
        return self


class PairsCorpus(OnTheHub):
    """Sentence pairs, different ones for each pair of languages, with one configuration per pair, such as OPUS-100.

    No sentence is common to all languages, so one language at a time is measured or trained on, against the reference's side of the same pairs.
    """

    kind: Literal["pairs"]
    layout: Literal["opus", "tatoeba"]
    """opus: configuration `en-ml` (alphabetical), column `translation`. tatoeba: `mal-eng`, columns `sentence1` and `sentence2` in this order."""
    max_sentences: Annotated[Count, Field(ge=2)] | None
    splits: Splits


def refuse_option_name(value: object) -> object:
    """Refuse the name of an option in place of its values."""
    if isinstance(value, str):
        raise ValueError(f"'{value}' is not a section; to choose an option of conf/corpus/ write corpus@train_corpus={value}")
    return value


CorpusConfig = Annotated[FilesCorpus | HubCorpus | PairsCorpus, Field(discriminator="kind")]


def refuse_many_languages(corpus: object, reference: str, others: tuple[str, ...], one_at_a_time: str) -> None:
    """Refuse several languages for a corpus that has no sentences common to them.

    Raises:
        ValueError: there is not exactly one language besides the reference.
    """
    if isinstance(corpus, PairsCorpus) and len(others) != 1:
        raise ValueError(
            f"corpus '{corpus.dataset}' has different sentences for each language that it pairs with '{reference}' and none common to all, so it "
            f"allows one language besides the reference, not {len(others)} ({', '.join(others)}); {one_at_a_time}"
        )


class LanguagesConfig(ConfigSection):
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
