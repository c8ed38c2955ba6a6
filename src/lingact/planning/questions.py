"""How much an evaluation asks: counted where the items are on this machine, else a guess."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingact.catalogue.benchmarks import entry, family
from lingact.config.base import asset
from lingact.config.jobs import EvalConfig
from lingact.config.tasks import OwnItems, OwnTask
from lingact.files.folders import is_there
from lingact.files.records import read_json_rows
from lingact.planning.tokenizing import TokenCounter

Number = int | float
ITEMS, OPTIONS, PROMPT_TOKENS, OPTION_TOKENS = 1000, 4, 80, 10
"""Of a benchmark in one language: guesses."""
_SAMPLED = 50
"""Items whose tokens are counted."""
_OURS = "lingact:"


@dataclass(frozen=True)
class Questions:
    """What one model is asked."""

    prompts: Number
    """Tokens of all prompts, each read once."""
    further: Number
    """Tokens of all options but the last of each, which is predicted and not read."""
    scored: Number
    """Positions whose logits are computed: the end of each prompt, and these further tokens."""
    how: str
    """How it is known."""


def questions_of(config: EvalConfig, counter: TokenCounter) -> Questions:
    """The questions of all benchmarks in all languages.

    Raises:
        UserError: a file of items cannot be read.
    """
    prompts = further = scored = 0.0
    counted, guessed = [], []
    for name in (*config.tasks.benchmarks, *config.tasks.own):
        files = [_items_here(name, config, code) for code in config.languages.all]
        if all(file is None for file in files):
            count = (config.tasks.limit or ITEMS) * len(config.languages.all)
            each = [(count, PROMPT_TOKENS, OPTIONS * (OPTION_TOKENS - 1))]
            guessed.append(name)
        else:
            each = [_counted(file, config.tasks.limit, counter) for file in files if file is not None]
            counted.append(name)
        for items, of_prompt, of_options in each:
            prompts += items * of_prompt
            further += items * of_options
            scored += items * (1 + of_options)
    guess = f"{config.tasks.limit or ITEMS} items of {PROMPT_TOKENS} tokens with {OPTIONS} options of {OPTION_TOKENS} (a guess)"
    how = [f"{', '.join(counted)}: items {counter.how}"] * bool(counted) + [f"{', '.join(guessed)}: {guess}"] * bool(guessed)
    return Questions(prompts, further, scored, "; ".join(how))


def _items_here(name: str, config: EvalConfig, code: str) -> Path | None:
    """The JSONL file of a benchmark in a language, if it is the user's or embedded."""
    match config.tasks.own.get(name):
        case OwnItems(path=path):
            file = Path(path.replace("{lang}", code))
        case OwnTask(folder=folder, task=task):
            file = folder / f"{task.replace('{lang}', code)}.jsonl"
        case _:
            row = entry(family(name), code)
            if not row.folder.startswith(_OURS):
                return None
            file = Path(asset(row.folder.removeprefix(_OURS))) / f"{row.task}.jsonl"
    return file if is_there(file) and file.is_file() else None


def _counted(file: Path, limit: int | None, counter: TokenCounter) -> tuple[int, Number, Number]:
    """Items, tokens of a prompt, and tokens of all its options but the last of each; means."""
    rows = [row for _, row in read_json_rows(file) if isinstance(row, dict)]
    some = [_parts(row) for row in rows[:_SAMPLED]]
    count = max(1, len(some))
    prompts = sum(counter.count([prompt for prompt, _ in some]))
    options = [max(0, tokens - 1) for tokens in counter.count([option for _, own in some for option in own], special=False)]
    return min(limit or len(rows), len(rows)), prompts / count, sum(options) / count


def _parts(row: dict[str, Any]) -> tuple[str, Sequence[str]]:
    """Prompt and options of an item, whatever its columns are called: the longest text, and the longest list of texts."""
    texts = [value for value in row.values() if isinstance(value, str)]
    return max(texts, key=len, default=""), max(_lists(row), key=len, default=[])


def _lists(row: dict[str, Any]) -> Iterator[list[str]]:
    for value in row.values():
        if isinstance(value, list):
            yield [str(each) for each in value]
