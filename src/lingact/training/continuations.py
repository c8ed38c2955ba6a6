"""Greedy continuations of the same prompts with and without the adapter. They show degenerate text, which numbers alone can hide."""

from collections.abc import Sequence
from inspect import signature

import pandas as pd
import regex
import torch

from lingact.data.corpus import ParallelCorpus
from lingact.models.adapters import base_behaviour, without_adapter
from lingact.models.lm import LanguageModel

PROMPTS, NEW_TOKENS = 4, 24
_WORD_BOUNDARY = regex.compile(r"(?wV1)\b")
_CONTROL = regex.compile(r"[\x00-\x1f\x7f-\x9f]")


def continuation_table(lm: LanguageModel, corpus: ParallelCorpus, codes: Sequence[str]) -> pd.DataFrame:
    """Continue the first halves of a few sentences with the base model and with the adapter. All languages use the same sentences.

    Args:
        lm: the model with an adapter attached, in eval mode.
        corpus: where the sentences are taken from (`ParallelCorpus.sample`).
        codes: the languages.

    Returns:
        One row per language and sentence: `language`, `sentence_id`, `prompt`, `original` (the rest of the sentence), `base`, `adapter` (what the
        models write instead, at most `NEW_TOKENS` tokens each), `repetition_base`, `repetition_adapter` (their `repetition`). Control characters are
        written as escapes.
    """
    chosen = corpus.select(corpus.sample(PROMPTS).tolist())
    rows = []
    for code in codes:
        texts = [window.ids[len(lm.tokens.prefix) :] for window in lm.tokens.windows(chosen.texts[code]) if window.first]
        prompts = [ids[: _middle(lm, ids)] for ids in texts]
        with base_behaviour(lm.model):
            bases = greedy(lm, prompts)
        for sentence_id, ids, prompt, base, adapter in zip(chosen.ids, texts, prompts, bases, greedy(lm, prompts), strict=True):
            rest = ids[len(prompt) : len(prompt) + NEW_TOKENS]
            original, by_base, by_adapter = (_text_after(lm, prompt, new) for new in (rest, base, adapter))
            rows.append(
                {
                    "language": code,
                    "sentence_id": sentence_id,
                    "prompt": _visible(_text(lm, prompt)).lstrip(),
                    "original": original,
                    "base": by_base,
                    "adapter": by_adapter,
                    "repetition_base": repetition(base),
                    "repetition_adapter": repetition(adapter),
                }
            )
    return pd.DataFrame(rows)


def repetition_summary(table: pd.DataFrame) -> dict[str, float]:
    """`repetition/<lang>`: mean repetition of the text that the adapter wrote."""
    return {f"repetition/{code}": float(shares.mean()) for code, shares in table.groupby("language", sort=False)["repetition_adapter"]}


@torch.no_grad()
def greedy(lm: LanguageModel, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The most likely tokens after each prompt, up to the first special token (such as EOS), `NEW_TOKENS` tokens or the end of the context.

    transformers' `generate` is not used: it applies the generation settings of a model, such as a penalty on repetition, which would hide what this
    table is meant to show.
    """
    special = set(lm.tokens.special.tolist())
    starts = [[*lm.tokens.prefix, *prompt] for prompt in prompts]
    limits = [min(NEW_TOKENS, lm.tokens.context - len(start)) for start in starts]
    accepted = signature(without_adapter(lm.model).forward).parameters
    # Padded on the left, so that all rows go on at the same place.
    width = max(map(len, starts))
    ids = unread = torch.tensor([[lm.tokens.pad] * (width - len(start)) + start for start in starts], device=lm.device)
    mask = torch.tensor([[0] * (width - len(start)) + [1] * len(start) for start in starts], device=lm.device)
    cache = None
    found: list[list[int]] = [[] for _ in starts]
    going = {row for row, limit in enumerate(limits) if limit > 0}
    while going:
        # A row that has ended is computed, too, but never beyond the positions that the model knows.
        positions = (mask.cumsum(dim=1) - 1).clamp(0, lm.tokens.context - 1)[:, -unread.shape[1] :]
        options = {"past_key_values": cache, "position_ids": positions, "logits_to_keep": 1}
        given = {name: value for name, value in options.items() if name in accepted and value is not None}
        output = lm.model(input_ids=unread, attention_mask=mask, use_cache=True, **given)
        token = output.logits[:, -1:].argmax(dim=-1)
        for row, new in enumerate(token.flatten().tolist()):
            if row in going and new not in special:
                found[row].append(new)
            if new in special or len(found[row]) == limits[row]:
                going.discard(row)
        ids, mask = torch.cat([ids, token], dim=1), torch.cat([mask, torch.ones_like(token)], dim=1)
        cache = getattr(output, "past_key_values", None)
        unread = ids if cache is None else token  # a model that keeps no keys and values (a state-space model) reads all of it again
    return found


def repetition(tokens: Sequence[int]) -> float:
    """Share of tokens in a trigram that occurs more than once (occurrences may overlap); 0 for fewer than four tokens.

    `a b c a b c d` has the trigram `a b c` twice, which covers six of seven tokens. Greedy text of a damaged model ends in loops
    (Holtzman et al. 2020).
    """
    trigrams = [tuple(tokens[place : place + 3]) for place in range(len(tokens) - 2)]
    repeated = {place + i for place, trigram in enumerate(trigrams) if trigrams.count(trigram) > 1 for i in range(3)}
    return len(repeated) / len(tokens) if tokens else 0.0


def _middle(lm: LanguageModel, ids: Sequence[int]) -> int:
    """After how many tokens to cut: at the word boundary nearest to the middle, or in the middle if there is none."""
    whole = _text(lm, ids)

    def between_words(cut: int) -> bool:
        prompt = _text(lm, ids[:cut])  # no prefix of the whole text if the cut splits a character
        return whole.startswith(prompt) and _WORD_BOUNDARY.match(whole, len(prompt)) is not None

    places = filter(between_words, range(1, len(ids)))
    return min(places, key=lambda cut: abs(cut - len(ids) / 2), default=max(1, len(ids) // 2))


def _text(lm: LanguageModel, ids: Sequence[int]) -> str:
    # Cleaning up would remove spaces, so that a prompt might no longer be a prefix of its continuation.
    return str(lm.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _text_after(lm: LanguageModel, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The text that the new tokens add. Decoded alone they might lose a leading space. An incomplete character at the end is left out."""
    return _visible(_text(lm, [*prompt, *new]).removeprefix(_text(lm, prompt)).rstrip("\N{REPLACEMENT CHARACTER}"))


def _visible(text: str) -> str:
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
