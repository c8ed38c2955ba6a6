"""SAEs of one's own: the text that they are trained on, how its languages are mixed, and how they are trained."""

import math
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field, field_validator

from lingact.catalogue.languages import LANGUAGES, Language
from lingact.config.base import Code, ConfigSection, FieldsBefore
from lingact.config.data import Codes, OnTheHub
from lingact.config.limits import Count, Factor, Layers, Place, Real, Seed, Share, Text

NAME = r"^[A-Za-z0-9][\w-]{0,63}$"
"""Names of sets: a folder is named after each."""


class RunningTextConfig(ConfigSection):
    """Running text, wherever it comes from."""

    text: Text
    """Column of the text."""
    source: Text
    """Column that says where a text comes from. A language's sources are drawn on in equal parts, as far as they go."""
    document: Text
    """Column of the document that a text belongs to. Without it each text is a document."""
    heldout: Annotated[Share, Field(lt=1)]
    """Share of the documents that no SAE is trained on."""
    epochs: Count
    """How often a text may be read at most, where a language has too little."""


class FilesText(RunningTextConfig):
    """JSONL files, or plain text with a paragraph a line; each may be compressed (.gz, .xz)."""

    kind: Literal["files"]
    path: Place
    """A file, or a folder of files."""
    language: Text
    """Column of the language code. Files without it are named by the language: `ml.jsonl.xz`."""


class HubText(OnTheHub, RunningTextConfig):
    """A data set of the hub that keeps languages apart, in configurations or in files. It is streamed: no more is downloaded than is read.

    `subset` and `files` may have `{language}` (lingact's code, `ml`), `{flores}` (`mal_Mlym`) and `{iso3}` (`mal`) in the place of the language.
    """

    kind: Literal["hub"]
    subset: Text | None
    """The name of the configurations. None: the data set has none."""
    files: Text | None
    """Which of its files are read, such as `data/{language}/*.parquet`. None: those of the configuration."""
    languages: Codes
    characters: Count
    """Of each language so many are read at most, held-out documents included."""

    @field_validator("files")
    @classmethod
    def _name_the_language(cls, files: str | None, info: FieldsBefore) -> str | None:
        given = [pattern for pattern in (info.data.get("subset"), files) if pattern is not None]
        if "subset" in info.data and not any(f"{{{name}}}" in pattern for pattern in given for name in _LANGUAGE_IN):
            said = " and ".join(f"'{pattern}'" for pattern in given) or "neither subset nor files"
            raise ValueError(f"{said} has no {{language}}; mark the place of the code, as in text.subset='20231101.{{language}}'")
        return files

    def of_language(self, pattern: str | None, code: str) -> str | None:
        """`subset` or `files` with the language filled in."""
        if pattern is None:
            return None
        for name, code_of in _LANGUAGE_IN.items():
            pattern = pattern.replace(f"{{{name}}}", code_of(LANGUAGES[code]))
        return pattern


_LANGUAGE_IN: dict[str, Callable[[Language], str]] = {
    "language": lambda language: language.code,
    "flores": lambda language: language.flores,
    "iso3": lambda language: language.flores.partition("_")[0],
}


TextConfig = Annotated[FilesText | HubText, Field(discriminator="kind")]


class SaeMix(ConfigSection):
    """A set of SAEs, one for each layer."""

    mix: dict[Code, Annotated[Real, Field(gt=0, le=1)]] | Literal["equal"]
    """Share of each language in the tokens; equal: the same for each language of the text."""
    seed: Seed | None = None
    """Of the initial weights and the order of the tokens. None: the seed of the run."""
    width: Count | None = None
    """None: as in `saes`."""
    k: Count | None = None
    """None: as in `saes`."""

    @field_validator("mix")
    @classmethod
    def _a_whole(cls, mix: dict[str, float] | str) -> dict[str, float] | str:
        if isinstance(mix, dict) and not math.isclose(sum(mix.values()), 1, abs_tol=1e-6):
            raise ValueError(f"the shares add up to {sum(mix.values()):g}; they have to add up to 1, as in {{en: 0.6, hi: 0.4}}")
        return mix


class SaeTraining(ConfigSection):
    """How SAEs are trained. All sets have it in common, so that they differ in what `sets` says alone."""

    layers: Layers
    """The SAE of layer l reads the output of block l."""
    architecture: Literal["batchtopk", "matryoshka", "topk", "jumprelu", "standard"]
    """batchtopk and matryoshka (nested dictionaries of a quarter, a half and all latents) are saved as JumpReLU SAEs."""
    width: Annotated[Count, Field(ge=2)]
    """Latents of an SAE."""
    k: Count
    """Active latents of a token, on average (batchtopk, matryoshka) or exactly (topk)."""
    sparsity: Factor
    """Weight of the sparsity penalty (jumprelu: L0, standard: L1)."""
    tokens: Annotated[Count, Field(ge=1000)]
    """Tokens that each set is trained on."""
    batch_tokens: Annotated[Count, Field(ge=16)]
    """Tokens of an optimiser step."""
    buffer_tokens: Count
    """Tokens that are shuffled together, held in memory for each set and layer."""
    context: Annotated[Count, Field(ge=8)]
    """Tokens of a window, BOS included. Texts of a language follow each other in it."""
    lr: Annotated[Real, Field(gt=0, le=1)]
    whitening: Annotated[Real, Field(ge=0, le=1)]
    """How far the variances of the directions are evened out before training: C^(-whitening/2) (x - mean), C the covariance. 0: inputs are centred
    and scaled; 1: fully whitened. It is folded into the weights afterwards."""
    dead_after: Count
    """Steps without firing after which a latent counts as dead in the auxiliary loss."""
    checkpoint_minutes: Annotated[Real, Field(gt=0, le=10_000)]
    """Minutes between checkpoints."""

    @field_validator("buffer_tokens")
    @classmethod
    def _holds_batches(cls, buffer: int, info: FieldsBefore) -> int:
        if buffer < 4 * info.data.get("batch_tokens", 0):
            raise ValueError(f"it is {buffer}; to shuffle, it has to hold at least four batches ({4 * info.data['batch_tokens']} tokens)")
        return buffer


class SaeQuality(ConfigSection):
    """How SAEs are judged on held-out text."""

    tokens: Annotated[Count, Field(ge=1000)]
    """Held-out tokens, in equal shares of the languages of the text."""
    spliced_tokens: Count
    """Tokens of each language into which reconstructions are spliced."""
