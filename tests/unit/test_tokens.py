"""Windows and batches: every token once, and only those counted that are text."""

import logging
from collections import Counter
from typing import Any

import pytest
import torch

from lingact.data.corpus import ParallelCorpus
from lingact.data.tokens import Tokens, Window
from lingact.errors import UserError

BOS, PAD = 2, 0


def test_exactly_one_bos_and_only_text_is_kept(tokenizer: Any) -> None:
    tokens = Tokens(tokenizer, 64)
    batch = tokens.collate(tokens.windows(["ab", "a<eos>b<bos>", "é<pad>"]))
    a, b, (e1, e2) = *tokenizer("ab", add_special_tokens=False).input_ids, tokenizer("é", add_special_tokens=False).input_ids
    assert batch.ids.tolist() == [[BOS, a, b, PAD, PAD], [BOS, a, 1, b, BOS], [BOS, e1, e2, PAD, PAD]]
    assert batch.attention.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert batch.keep.int().tolist() == [[0, 1, 1, 0, 0], [0, 1, 0, 1, 0], [0, 1, 1, 0, 0]]
    assert batch.kept_sentence.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.kept_sentence.shape == batch.ids[batch.keep].shape


def test_long_texts_are_cut_into_windows_of_the_same_sentence(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    tokens, text = Tokens(tokenizer, 8), "abcdefghij" * 20  # longer than the tokenizer's own limit, too
    with caplog.at_level(logging.WARNING):
        windows = tokens.windows(["x", text, "1234567", "12345678"])
    assert [len(w.ids) for w in windows if w.sentence == 1] == [8] * 28 + [5]
    assert [i for w in windows if w.sentence == 1 for i in w.ids[1:]] == tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    assert [(w.sentence, len(w.ids)) for w in windows if w.sentence != 1] == [(0, 2), (2, 8), (3, 8), (3, 2)]
    assert all(w.ids[0] == BOS and BOS not in w.ids[1:] for w in windows)
    assert not caplog.records


@pytest.mark.parametrize("batch_tokens", [1, 30, 100, 10_000])
def test_batches_cover_every_window_once(batch_tokens: int, tokenizer: Any, corpus: ParallelCorpus) -> None:
    tokens = Tokens(tokenizer, 20)
    windows = tokens.windows(corpus.texts["hi"])
    batches = list(tokens.batches(windows, batch_tokens))
    assert all(batch.ids.numel() <= batch_tokens or len(batch.ids) == 1 for batch in batches)
    found = Counter(
        (int(s), tuple(ids[mask].tolist())) for batch in batches for s, ids, mask in zip(batch.sentence, batch.ids, batch.attention, strict=True)
    )
    assert found == Counter((w.sentence, tuple(w.ids)) for w in windows)
    if batch_tokens == 100:
        assert min(len(b.ids) for b in batches[:-1]) > 1, "batches are filled"


def test_a_text_without_tokens_is_refused(tokenizer: Any) -> None:
    for text in ("", "<bos>", "<pad><eos>"):
        with pytest.raises(
            UserError, match=rf"sentence 2 of the corpus \('{text}'\) has no token left after tokenisation; remove it in every language"
        ):
            Tokens(tokenizer, 64).windows(["a", text])


def test_a_context_without_room_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"model\.context is 1, which leaves no room for text behind the BOS"):
        Tokens(tokenizer, 1)


def test_a_tokenizer_without_special_tokens_gets_none() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens = Tokens(PreTrainedTokenizerFast(tokenizer_object=core), 4)
    windows = tokens.windows(["abcde", "f"])
    assert [len(w.ids) for w in windows] == [4, 1, 1]
    assert tokens.collate(windows).keep.sum() == 6


def spelling(vocabulary: dict[str, int], **special: str) -> Any:
    """A tokenizer of single letters with these ids; BOS is put in front where there is one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if "bos_token" in special:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


@pytest.mark.parametrize(
    ("pad", "expected"), [({"pad_token": "p"}, 0), ({}, 0), ({"pad_token": "c", "eos_token": "c"}, 2)], ids=["beyond", "none", "also eos"]
)
def test_any_padding_will_do(pad: dict[str, str], expected: int) -> None:
    tokens = Tokens(spelling({"a": 0, "b": 1, "c": 2, "p": 9}, **pad), 8, rows=3)
    batch = tokens.collate(tokens.windows(["ab", "b"]))
    assert batch.ids.tolist() == [[0, 1], [1, expected]]
    assert batch.keep.tolist() == batch.attention.tolist() == [[True, True], [True, False]]


def test_padding_beyond_the_embedding_changes_no_residual(lm: Any) -> None:
    import copy

    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<far>"})
    assert tokenizer.pad_token_id == 259 == lm.model.get_input_embeddings().weight.shape[0]
    tokens, texts = Tokens(tokenizer, 64, rows=259), ["A dog.", "Who is there?"]
    for layer, residual in lm.residuals(tokens.collate(tokens.windows(texts)), (0, 2))[0].items():
        expected = lm.residuals(lm.tokens.collate(lm.tokens.windows(texts)), (0, 2))[0][layer]
        assert torch.equal(residual, expected)


def test_tokens_beyond_the_embedding_are_refused_by_name() -> None:
    tokens = Tokens(spelling({"a": 0, "b": 1, "d": 3}), 8, rows=3)
    assert [window.ids for window in tokens.windows(["ab"])] == [[0, 1]]
    with pytest.raises(UserError, match=r"gives the token 3 \('d'\) in sentence 2 of the corpus \('ad'\), and the model's embedding ends at 2: the"):
        tokens.windows(["ab", "ad"])
    with pytest.raises(UserError, match=r"gives the token 7 \('<s>'\) at the beginning of every text, and the model's embedding ends at 2"):
        Tokens(spelling({"a": 0, "<s>": 7}, bos_token="<s>"), 8, rows=3)


def test_a_vocabulary_with_holes() -> None:
    tokens = Tokens(spelling({"a": 0, "b": 5, "z": 40}), 8, rows=30)
    assert tokens.known == [0, 5]
    assert len(tokens.partial) == 6
    assert not tokens.partial[tokens.collate(tokens.windows(["ab"])).ids].any()


def test_a_batch_moves_whole(tokenizer: Any) -> None:
    batch = Tokens(tokenizer, 8).collate([Window(3, [BOS, 5])])
    moved = batch.to("meta")
    assert {moved.ids.device, moved.attention.device, moved.keep.device, moved.sentence.device} == {torch.device("meta")}
