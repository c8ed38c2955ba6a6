"""Training batches: the same sentences in every language, all of them equally often, resumable anywhere."""

from collections import Counter

import pytest
import torch

from lingact.data.corpus import ParallelCorpus
from lingact.data.tokens import Tokens
from lingact.models.lm import LanguageModel
from lingact.training.batches import AlignedBatch, AlignedBatches, AlignedData


def batches(lm: LanguageModel, corpus: ParallelCorpus, *, sentences: int = 5, count: int = 12, seed: int = 3) -> AlignedBatches:
    return AlignedBatches(lm.tokens, corpus, sentences=sentences, count=count, seed=seed)


def same(one: AlignedBatch, other: AlignedBatch) -> bool:
    pairs = [(one.texts[code], other.texts[code]) for code in one.texts]
    return one.texts.keys() == other.texts.keys() and all(torch.equal(a.ids, b.ids) and torch.equal(a.sentence, b.sentence) for a, b in pairs)


def test_every_sentence_comes_equally_often_in_a_new_order(lm: LanguageModel, corpus: ParallelCorpus) -> None:
    # 12 batches of 5 are exactly five epochs of 12 sentences, with batches that straddle epochs.
    found = batches(lm, corpus)
    assert len(found) == 12
    order = [s for batch in found for s in batch.texts["en"].sentence.tolist()]
    epochs = [order[i : i + 12] for i in range(0, 60, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_every_language_shows_the_same_sentences_whole(lm: LanguageModel, corpus: ParallelCorpus) -> None:
    tokens = Tokens(lm.tokenizer, 16)  # so short that most sentences take several windows
    found = AlignedBatches(tokens, corpus, sentences=4, count=3, seed=0)
    windows = {code: Counter((w.sentence, tuple(w.ids)) for w in tokens.windows(texts)) for code, texts in corpus.texts.items()}
    seen: dict[str, Counter] = {code: Counter() for code in corpus.texts}
    for number, batch in enumerate(found):
        assert set(batch.texts) == set(corpus.texts)
        assert batch.sentences.tolist() == found.sentences_of(number)
        for code, b in batch.texts.items():
            assert set(b.sentence.tolist()) == set(found.sentences_of(number))
            seen[code].update((int(s), tuple(ids[mask].tolist())) for s, ids, mask in zip(b.sentence, b.ids, b.attention, strict=True))
    assert seen == windows


def test_a_batch_may_be_larger_than_the_corpus(lm: LanguageModel, corpus: ParallelCorpus) -> None:
    [batch] = batches(lm, corpus, sentences=30, count=1)
    assert sorted(Counter(batch.texts["en"].sentence.tolist()).values()) == [2] * 6 + [3] * 6


def test_it_goes_on_in_the_middle_of_an_epoch(lm: LanguageModel, corpus: ParallelCorpus) -> None:
    undisturbed = list(batches(lm, corpus))
    first = batches(lm, corpus)
    walk = iter(first)
    for _ in range(4):
        next(walk)
    state = first.state_dict()
    second = batches(lm, corpus)
    second.load_state_dict(state)
    rest = list(second)
    assert len(rest) == 8
    assert all(same(a, b) for a, b in zip(undisturbed[4:], rest, strict=True))
    again = list(second)
    assert len(again) == 12, "walked to its end it starts over"
    assert same(again[0], undisturbed[0])


def test_the_seed_decides(lm: LanguageModel, corpus: ParallelCorpus) -> None:
    one, twin, other = (batches(lm, corpus, seed=seed) for seed in (1, 1, 2))
    assert [one.sentences_of(i) for i in range(12)] == [twin.sentences_of(i) for i in range(12)] != [other.sentences_of(i) for i in range(12)]
    assert AlignedData(one).train_dataloader() is one


@pytest.mark.filterwarnings("ignore:.*os.fork:DeprecationWarning")
def test_workers_change_nothing(lm: LanguageModel, corpus: ParallelCorpus) -> None:
    alone = list(batches(lm, corpus))
    found = AlignedBatches(lm.tokens, corpus, sentences=5, count=12, seed=3, workers=2)
    assert all(same(a, b) for a, b in zip(alone, found, strict=True))
    # Two workers have batches ready that nobody has asked for yet: they are not in the position.
    walk = iter(found)
    for _ in range(4):
        next(walk)
    assert found.state_dict() == {"position": 4}
    walk.close()
    found.load_state_dict({"position": 4})
    assert all(same(a, b) for a, b in zip(alone[4:], found, strict=True))


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_every_batch(lm: LanguageModel, corpus: ParallelCorpus, processes: int) -> None:
    """Counted over three epochs and two languages: every sentence three times in each, whoever read it."""
    seen: dict[str, Counter] = {"en": Counter(), "hi": Counter()}
    shares = []
    for rank in range(processes):
        own = AlignedBatches(lm.tokens, corpus.speaking(("en", "hi")), sentences=6, count=6, seed=0)
        own.rank, own.processes = rank, processes
        shares.append(list(own))
    whole = AlignedBatches(lm.tokens, corpus, sentences=6, count=6, seed=0)
    for number, parts in enumerate(zip(*shares, strict=True)):
        read = {code: [s for part in parts for s in part.texts[code].sentence[part.texts[code].first].tolist()] for code in seen}
        assert sorted(read["en"]) == sorted(read["hi"]) == sorted(whole.sentences_of(number))
        assert all(part.sentences.tolist() == whole.sentences_of(number) for part in parts)
        for code, counter in seen.items():
            counter.update(read[code])
    assert all(counter == dict.fromkeys(range(12), 3) for counter in seen.values())
