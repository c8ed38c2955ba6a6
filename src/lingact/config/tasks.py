"""Benchmarks, and which of their items are used."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from lingact.catalogue.benchmarks import FAMILIES, family
from lingact.config.base import Columns, ConfigSection
from lingact.config.limits import Count, Place, Share, Text, Whole
from lingact.errors import UserError


class OwnTask(ConfigSection):
    """A benchmark of the user's, given as lm-eval task files."""

    kind: Literal["lm_eval"]
    folder: Place
    """Folder of the task files; paths of data files are relative to the YAML file that names them."""
    task: str
    """Task name with `{lang}` for the language code."""
    key: Columns
    """Columns that together identify an item in every language; none: items of different languages do not correspond."""
    facts: bool
    """Whether the key names a fact that other benchmarks of the user also ask about, so that they are not independent."""
    split_by: Text | None
    """Column by which scores are split further, and by which a limited selection is kept in proportion."""


class OwnItems(ConfigSection):
    """A benchmark of the user's, given as JSONL: `question`, `choices`, `answer`, and `id` if items correspond between languages.

    Questions and choices are texts or numbers, used as written. A number as the answer is the position of the right choice, from 0; a text is the
    right choice itself. If choices are numbers, an answer that is the position of one choice and the value of another is refused.
    """

    kind: Literal["items"]
    path: str
    """Path with `{lang}` for the language code."""
    split_by: Text | None
    """As in `OwnTask`."""

    @field_validator("path")
    @classmethod
    def _has_lang(cls, path: str) -> str:
        if "{lang}" not in path:
            raise ValueError(f"'{path}' has no {{lang}}; mark the place of the language code, as in 'quiz_{{lang}}.jsonl', and quote it")
        if not path.lower().endswith((".jsonl", ".json")):
            raise ValueError(f"'{path}' ends neither in .jsonl nor in .json; give a file with one item per line, or a JSON list of items")
        return path


OwnBenchmark = Annotated[OwnTask | OwnItems, Field(discriminator="kind")]


_MOST_OPTIONS = 1_000_000


def _number_or_auto(value: object) -> object:
    # Checked before the union, because each of its branches would report an error.
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{value!r} is neither auto nor a number of options, from 1 upwards")
    if isinstance(value, int) and value > _MOST_OPTIONS:
        raise ValueError(f"{value} options at once do not fit on any device; give at most {_MOST_OPTIONS}, or auto")
    return value


class TasksConfig(ConfigSection):
    """The benchmarks, and which of their items are used."""

    benchmarks: tuple[str, ...]
    """Names in the table of benchmarks (`assets/benchmarks.yaml`)."""
    own: dict[Annotated[str, Field(pattern=r"^\w[\w-]*$")], OwnBenchmark]
    """Benchmarks that are not in the table, by name. A name has only letters, digits, `_` and `-`, because files are named after it."""
    missing: Literal["refuse", "skip"]
    """What to do if a benchmark lacks a language."""
    items: Literal["shared", "all"]
    """shared: if a benchmark names its items, only those that all its languages have; all: every item, as in lm-eval."""
    limit: Count | None
    """Items per benchmark: the same ones in every language and for every model, in proportion to the benchmark's parts. None: all."""
    fewshot: Annotated[Whole, Field(le=1000)] | None
    """Examples before each question; None: as the task says, usually none."""
    batch_size: Annotated[Count | Literal["auto"], BeforeValidator(_number_or_auto)]
    """Options per forward pass. auto: as many as should fit on the device, and fewer if they do not."""

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


class ContaminationConfig(ConfigSection):
    """How benchmark items are compared with the training text."""

    words: Annotated[Count, Field(ge=3, le=1000)]
    """Length of the word sequences that are searched for; a shorter item is searched for as a whole."""
    share: Share
    """An item counts as overlapping with the training text if at least this share of its sequences is in it."""
