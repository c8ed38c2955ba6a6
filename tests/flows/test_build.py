"""The toy model: its lexicons, what its texts may state, and that its build can be interrupted."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE
from transformers import AutoTokenizer

from lingact.files.folders import folder_lock
from lingact.microworld import LANGUAGES, world
from lingact.microworld.build import SMALL, build, identity, main
from lingact.microworld.documents import aligned_corpus, benchmark_items, reading
from lingact.microworld.text import lexicon, problems
from tests.helpers.folders import plant, snapshot, untouched

DOCUMENTS = 400


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_lexicon_is_sound(code: str) -> None:
    assert problems(lexicon(code), world.facts(SMALL.seed)) == []


@pytest.mark.parametrize("code", LANGUAGES)
def test_no_text_states_what_is_asked(code: str) -> None:
    stream, lex = reading(SMALL.seed, code, SMALL.corpus_events), lexicon(code)
    matter = "\n".join(next(stream) for _ in range(DOCUMENTS))
    corpus = "\n".join(row[code] for row in aligned_corpus(SMALL.seed, SMALL.corpus_events))
    facts = world.facts(SMALL.seed)
    asked = [fact for fact in facts if fact.asked]
    sentences = [lex.sentence(fact, style) for fact in asked for style in ("q", "h")]
    unread = [statement for fact in asked if code in fact.unread_in for statement in lex.statements(fact)]
    read = [statement for fact in asked if code not in fact.unread_in for statement in lex.statements(fact)]
    assert [text for text in sentences + unread if text in matter] == []
    assert [text for text in sentences + unread + read if text in corpus] == []
    for benchmark in world.BENCHMARKS:
        for item in benchmark_items(SMALL.seed, benchmark, code):
            full = item["query"] + lex.delimiter + item["choices"][item["gold"]]
            assert full not in matter
            assert full not in corpus
    # The check finds sentences that are there: those that may be read, and the taught facts.
    assert sum(text in matter for text in read) > 0.5 * len(read)
    assert sum(lex.sentence(fact, "q") in matter for fact in facts if not fact.asked) > 20


def test_the_corpus_keeps_its_events_to_itself() -> None:
    rows = aligned_corpus(SMALL.seed, SMALL.corpus_events)
    assert len({row["unit"] for row in rows}) == len(rows)
    assert all(row[code] for row in rows for code in LANGUAGES)
    events = [row["en"] for row in rows[-SMALL.corpus_events :]]
    stream = reading(SMALL.seed, "en", SMALL.corpus_events)
    matter = "\n".join(next(stream) for _ in range(3 * DOCUMENTS))
    assert not [event for event in events if event in matter]


@pytest.mark.parametrize("benchmark", world.BENCHMARKS)
def test_tasks_are_aligned_over_languages(benchmark: str, small_toy_model: Path) -> None:
    items = {code: _items(small_toy_model, benchmark, code) for code in LANGUAGES}
    english = items["en"]
    assert len(english) > 60
    unread = {fact.id: fact.unread_in for fact in world.facts(SMALL.seed)}
    for code, found in items.items():
        assert [(item["id"], item["gold"]) for item in found] == [(item["id"], item["gold"]) for item in english]
        assert all(item["kind"] == ("transfer" if code in unread[item["id"]] else "read") for item in found)
        assert all(len(set(item["choices"])) == 4 for item in found)
        assert {item["kind"] for item in found} == {"read", "transfer"}
    golds = [item["gold"] for item in english]
    assert max(golds.count(gold) for gold in range(4)) < 0.45 * len(golds), "the place of the answer gives nothing away"


def _items(toy_model: Path, benchmark: str, code: str) -> list[dict]:
    return [json.loads(line) for line in (toy_model / "tasks" / f"micro_{benchmark}_{code}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_prompt_has_the_same_tokens_before_every_option(small_toy_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small_toy_model / "model")
    for benchmark in world.BENCHMARKS:
        for code in LANGUAGES:
            task = yaml.safe_load((small_toy_model / "tasks" / f"micro_{benchmark}_{code}.yaml").read_text(encoding="utf-8"))
            for item in _items(small_toy_model, benchmark, code)[::7]:
                prompt = tokenizer(item["query"]).input_ids
                for choice in item["choices"]:
                    whole = tokenizer(item["query"] + task["target_delimiter"] + choice).input_ids
                    assert whole[: len(prompt)] == prompt
                    assert len(whole) > len(prompt)


@pytest.mark.slow
def test_an_interrupted_build_goes_on_to_the_same_files(small_toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, work = tmp_path / "organism", tmp_path / "work"
    real_step, steps = torch.optim.AdamW.step, iter(range(1, 1000))

    def step(self: torch.optim.AdamW, closure: None = None) -> None:
        if next(steps) == 110:  # the last checkpoint is of step 100
            raise KeyboardInterrupt
        real_step(self, closure)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(KeyboardInterrupt):
            build(SMALL, out, work)
    real_save, saves = BatchTopKTrainingSAE.save_inference_model, iter(range(1, 1000))

    def save(self: BatchTopKTrainingSAE, path: Path) -> tuple[Path, Path]:
        written = real_save(self, path)
        if next(saves) == 2:
            raise KeyboardInterrupt
        return written

    with monkeypatch.context() as patch:
        patch.setattr(BatchTopKTrainingSAE, "save_inference_model", save)
        with pytest.raises(KeyboardInterrupt):
            build(SMALL, out, work)
    assert not out.exists(), "an unfinished toy model is not put in place"
    left = iter(range(1, 1000))

    def count(self: torch.optim.AdamW, closure: None = None) -> None:
        next(left)
        real_step(self, closure)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", count)
        build(SMALL, out, work)
    assert next(left) == 1, "the finished model is not trained again"
    files, expected = (
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()} for folder in (out, small_toy_model)
    )
    assert files.keys() == expected.keys()
    assert [name for name in files if files[name] != expected[name]] == []


@pytest.mark.parametrize("kind", ["other things", "hidden things", "file", "link"])
def test_a_folder_of_other_things_is_not_replaced(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine"
    match kind:
        case "other things":
            plant(out, "thesis.tex", "model/x", ".mine.old.1/x")
        case "hidden things":
            plant(out, ".git/config")
        case "file":
            plant(tmp_path, "mine")
        case _:
            plant(tmp_path, "project/corpus.jsonl", "project/training.json")
            out.symlink_to("project")
    before = snapshot(tmp_path)
    assert main(["--small", f"--out={out}", f"--work={tmp_path / 'work'}"]) == 2
    assert f"build: --out: '{out}' " in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_two_builds_never_share_a_scratch_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scratch = tmp_path / "work" / identity(SMALL)
    before = plant(scratch, "model.ckpt")
    with folder_lock(scratch):
        assert main(["--small", f"--out={tmp_path / 'out'}", f"--work={tmp_path / 'work'}"]) == 2
        assert f"'{scratch}' is in use" in capsys.readouterr().err
    assert untouched(before, scratch)
    assert not (tmp_path / "out").exists()
