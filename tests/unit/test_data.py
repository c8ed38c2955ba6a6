"""Training batches: the same sentences in every language, all of them equally often, resumable anywhere."""

from collections import Counter

import torch

from lingact.corpus import ParallelCorpus
from lingact.data import AlignedBatches, AlignedData
from lingact.lm import LanguageModel
from lingact.tokens import TokenBatch, Tokens


def batches(lm: LanguageModel, corpus: ParallelCorpus, *, sentences: int = 5, count: int = 12, seed: int = 3) -> AlignedBatches:
    return AlignedBatches(lm.tokens, corpus, sentences=sentences, count=count, seed=seed)


def same(one: dict[str, TokenBatch], other: dict[str, TokenBatch]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[c].ids, other[c].ids) and torch.equal(one[c].sentence, other[c].sentence) for c in one)


def test_every_sentence_comes_equally_often_in_a_new_order(lm: LanguageModel, corpus: ParallelCorpus) -> None:
    # 12 batches of 5 are exactly five epochs of 12 sentences, with batches that straddle epochs.
    found = batches(lm, corpus)
    assert len(found) == 12
    order = [s for batch in found for s in batch["en"].sentence.tolist()]
    epochs = [order[i : i + 12] for i in range(0, 60, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_every_language_shows_the_same_sentences_whole(lm: LanguageModel, corpus: ParallelCorpus) -> None:
    tokens = Tokens(lm.tokenizer, 16)  # so short that most sentences take several windows
    found = AlignedBatches(tokens, corpus, sentences=4, count=3, seed=0)
    windows = {code: Counter((w.sentence, tuple(w.ids)) for w in tokens.windows(texts)) for code, texts in corpus.texts.items()}
    seen: dict[str, Counter] = {code: Counter() for code in corpus.texts}
    for number, batch in enumerate(found):
        assert set(batch) == set(corpus.texts)
        for code, b in batch.items():
            assert set(b.sentence.tolist()) == set(found.sentences_of(number))
            seen[code].update((int(s), tuple(ids[mask].tolist())) for s, ids, mask in zip(b.sentence, b.ids, b.attention, strict=True))
    assert seen == windows


def test_a_batch_may_be_larger_than_the_corpus(lm: LanguageModel, corpus: ParallelCorpus) -> None:
    [batch] = batches(lm, corpus, sentences=30, count=1)
    assert sorted(Counter(batch["en"].sentence.tolist()).values()) == [2] * 6 + [3] * 6


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
