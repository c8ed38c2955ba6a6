"""Build the toy model from its seed: `python -m lingact.microworld.build`.

Stages that are already done are skipped, so an interrupted build can be continued; the language model continues from its last checkpoint. Scratch
files are in a folder named after a hash of recipe and lexicons, so a different recipe starts from the beginning.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path

from lingact.config.base import asset
from lingact.errors import UserError
from lingact.files.atomic import write_atomically, write_json
from lingact.files.folders import folder_lock, listed, make_folders, put_in_place, temporary_beside
from lingact.microworld import LANGUAGES
from lingact.microworld.documents import aligned_corpus, write_benchmarks
from lingact.microworld.recipe import DictionaryRecipe, Recipe

SMALL = Recipe(
    corpus_events=60,
    tokenizer_documents=1500,
    vocabulary=1400,
    steps=120,
    warmup_steps=20,
    hidden_size=32,
    intermediate_size=64,
    layers=3,
    heads=2,
    kv_heads=1,
    dictionary_tokens=12_000,
    sae=DictionaryRecipe(width=64, k=8, train_tokens=40_000, batch_tokens=512),
    sae_heldout=DictionaryRecipe(width=96, k=8, train_tokens=40_000, batch_tokens=512),
)
"""A small recipe that takes about a minute, only for tests."""


def identity(recipe: Recipe) -> str:
    """Hash of the recipe and the lexicons."""
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    for code in LANGUAGES:
        digest.update((files("lingact.microworld") / "lexicon" / f"{code}.yaml").read_bytes())
    return digest.hexdigest()[:16]


def build(recipe: Recipe, out: Path, work: Path) -> Path | None:
    """Make text, tokenizer, model, SAEs and benchmarks in a scratch folder, then move them into place together.

    Args:
        out: folder of the finished toy model. A different toy model in it is moved aside.
        work: parent of the scratch folder.

    Returns:
        The new path of the toy model that was moved aside. None if there was none.

    Raises:
        UserError: `out` contains something else, or another process is building the same toy model in `work`.
    """
    from lingact.microworld.dictionaries import train_dictionaries
    from lingact.microworld.pretrain import train_model, train_tokenizer

    _refuse_others(out)
    scratch = work / identity(recipe)
    made = scratch / "made"
    make_folders(made)
    with folder_lock(scratch):
        write_benchmarks(recipe.seed, made / "tasks")
        rows = aligned_corpus(recipe.seed, recipe.corpus_events)
        write_atomically(made / "corpus.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        if not (made / "training.json").exists():
            tokenizer = train_tokenizer(recipe, scratch / "tokenizer")
            losses = train_model(recipe, tokenizer, made / "model", scratch)
            write_json(made / "training.json", {"recipe": asdict(recipe), "identity": identity(recipe), "loss_every_10_steps": losses})
        train_dictionaries(recipe, made / "model", made, scratch)
        unfinished = temporary_beside(out)
        try:
            shutil.copytree(made, unfinished)
            return put_in_place(unfinished, out)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _refuse_others(out: Path) -> None:
    """Refuse an existing path that is not a toy model.

    Raises:
        UserError: it is not one.
    """
    if not os.path.lexists(out):
        return
    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    if out.is_dir() and (not names or {"training.json", "corpus.jsonl", "model", "tasks"} <= set(names)):
        return
    what = f"contains other things ({listed(names)})" if out.is_dir() else "is not a folder"
    raise UserError(f"--out: '{out}' {what} and is not an earlier toy model; name a new folder")


def main(arguments: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m lingact.microworld.build", description="Rebuild the embedded toy model from its seed.")
    parser.add_argument("--out", type=Path, default=Path(asset("microworld")), help="where the toy model goes (default: into the package)")
    parser.add_argument("--work", type=Path, default=Path("outputs/microworld"), help="scratch folder, from which an interrupted build continues")
    parser.add_argument("--small", action="store_true", help="a small toy model in about a minute")
    parser.add_argument("--seed", type=int, help="use this seed instead of the recipe's")
    given = parser.parse_args(arguments)
    recipe = SMALL if given.small else Recipe()
    if given.seed is not None:
        recipe = replace(recipe, seed=given.seed)
    try:
        aside = build(recipe, given.out, given.work)
    except UserError as error:
        sys.stderr.write(f"build: {error}\n")
        return 2
    sys.stdout.write(f"built {identity(recipe)} in {given.out}\n" + ("" if aside is None else f"kept: {aside} (what was there before)\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
