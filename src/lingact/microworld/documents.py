"""Text of the microworld: the training text of the model, the aligned corpus and the benchmarks.

What each part may state:

| part | taught facts | asked facts, read | asked facts, unread | events |
|---|---|---|---|---|
| training text of a language | every frame | plain statements | never | all except those of the corpus |
| aligned corpus | every frame | never | never | its own |
| benchmark of a language | never | questions and narratives | questions and narratives | never |
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import yaml

from lingact.microworld import LANGUAGES, world
from lingact.microworld.text import lexicon

OPTIONS_PER_QUESTION = 4
PLAIN_SHARE, TAUGHT_SHARE = 0.6, 0.25  # the rest of the sentences are events
DOCUMENT_SENTENCES = (4, 10)

_TASK = {
    "output_type": "multiple_choice",
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "{{query}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{gold}}",
    "num_fewshot": 0,
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
}


def corpus_events(seed: int, count: int) -> list[world.Event]:
    """The events that occur only in the aligned corpus."""
    rng = random.Random(f"{seed} corpus events")
    events: dict[str, world.Event] = {}
    while len(events) < count:
        event = world.draw_event(rng)
        events[event.id] = event
    return list(events.values())


def aligned_corpus(seed: int, event_count: int) -> list[dict[str, str]]:
    """The parallel corpus: every taught fact once, in one of its four frames, and the corpus's events, in all languages."""
    rng = random.Random(f"{seed} corpus frames")
    rows = []
    for fact in world.facts(seed):
        if fact.asked:
            continue
        style = rng.choice(("d0", "d1", "q", "h"))
        row = {"unit": f"{fact.id}-{style}"}
        for code in LANGUAGES:
            lex = lexicon(code)
            row[code] = lex.statements(fact)[int(style[1])] if style[0] == "d" else lex.sentence(fact, style)
        rows.append(row)
    rows += [{"unit": event.id} | {code: lexicon(code).event(event) for code in LANGUAGES} for event in corpus_events(seed, event_count)]
    return rows


def reading(seed: int, code: str, event_count: int) -> Iterator[str]:
    """An endless stream of documents in one language, each a few sentences long."""
    lex = lexicon(code)
    rng = random.Random(f"{seed} reading {code}")
    kept = {event.id for event in corpus_events(seed, event_count)}
    facts = world.facts(seed)
    plain = [text for fact in facts if code not in fact.unread_in for text in lex.statements(fact)]
    taught = [lex.sentence(fact, style) for fact in facts if not fact.asked for style in ("q", "h")]

    def sentence() -> str:
        lot = rng.random()
        if lot < PLAIN_SHARE:
            return rng.choice(plain)
        if lot < PLAIN_SHARE + TAUGHT_SHARE:
            return rng.choice(taught)
        while (event := world.draw_event(rng)).id in kept:
            pass
        return lex.event(event)

    while True:
        yield lex.delimiter.join(sentence() for _ in range(rng.randint(*DOCUMENT_SENTENCES)))


def mixture(seed: int, shares: dict[str, float], event_count: int) -> Iterator[tuple[str, str]]:
    """An endless stream of (language, document), languages drawn by their share of the documents."""
    rng = random.Random(f"{seed} mixture")
    streams = {code: reading(seed, code, event_count) for code in shares}
    codes, weights = list(shares), list(shares.values())
    while True:
        code = rng.choices(codes, weights)[0]
        yield code, next(streams[code])


def benchmark_items(seed: int, benchmark: str, code: str) -> list[dict[str, object]]:
    """The items of one benchmark in one language. The wrong options of an item are the same in every language."""
    style, relations = world.BENCHMARKS[benchmark]
    lex = lexicon(code)
    items: list[dict[str, object]] = []
    for fact in world.facts(seed):
        if not fact.asked or fact.relation not in relations:
            continue
        rng = random.Random(f"{seed} {benchmark} {fact.id}")
        given = {word for _, word in fact.slots} | {fact.answer}
        options = [fact.answer, *rng.sample([word for word in fact.options if word not in given], OPTIONS_PER_QUESTION - 1)]
        rng.shuffle(options)
        query, choices = lex.prompt_and_options(fact, style, options)
        items.append(
            {
                "id": fact.id,
                "language": code,
                "kind": "transfer" if code in fact.unread_in else "read",
                "query": query,
                "choices": choices,
                "gold": options.index(fact.answer),
            }
        )
    return items


def write_benchmarks(seed: int, folder: Path) -> None:
    """Write `micro_<benchmark>_<language>` tasks for lm-eval: a YAML and a JSONL file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for benchmark in world.BENCHMARKS:
        for code in LANGUAGES:
            name = f"micro_{benchmark}_{code}"
            items = benchmark_items(seed, benchmark, code)
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(i, ensure_ascii=False) + "\n" for i in items), encoding="utf-8")
            task = {
                "task": name,
                **_TASK,
                "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},  # beside the YAML
                "target_delimiter": lexicon(code).delimiter,
                "metadata": {"version": 1.0},
            }
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, allow_unicode=True, sort_keys=False), encoding="utf-8")
