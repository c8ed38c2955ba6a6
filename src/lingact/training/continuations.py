"""The same prompts continued greedily with and without the adapter, so that degenerate text is seen; numbers alone can hide it."""

from collections.abc import Sequence

import pandas as pd
import regex
import torch

from lingact.data.corpus import ParallelCorpus
from lingact.models.adapters import base_behaviour
from lingact.models.lm import LanguageModel

PROMPTS, NEW_TOKENS = 4, 24
_WORD_BOUNDARY = regex.compile(r"(?wV1)\b")
_CONTROL = regex.compile(r"[\x00-\x1f\x7f-\x9f]")


def continuation_table(lm: LanguageModel, corpus: ParallelCorpus, codes: Sequence[str]) -> pd.DataFrame:
    """Continue the first halves of a few sentences, the same ones in every language, with base and adapter.

    Args:
        lm: the model with an adapter attached, in eval mode.
        corpus: where the sentences are taken from (`ParallelCorpus.sample`).
        codes: the languages.

    Returns:
        One row per language and sentence: `language`, `sentence_id`, `prompt`, `original` (how the sentence goes on), `base`, `adapter` (what the
        model writes instead; each at most `NEW_TOKENS` tokens), `repetition_base`, `repetition_adapter` (`repetition` of it). Control characters are
        written as escapes.
    """
    chosen = corpus.select(corpus.sample(PROMPTS).tolist())
    rows = []
    for code in codes:
        windows = [window for window in lm.tokens.windows(chosen.texts[code]) if window.first]
        for sentence_id, window in zip(chosen.ids, windows, strict=True):
            ids = window.ids[len(lm.tokens.prefix) :]
            cut = _middle(lm, ids)
            with base_behaviour(lm.model):
                base = greedy(lm, ids[:cut])
            adapter = greedy(lm, ids[:cut])
            original, by_base, by_adapter = (_text_behind(lm, ids[:cut], new) for new in (ids[cut : cut + NEW_TOKENS], base, adapter))
            rows.append(
                {
                    "language": code,
                    "sentence_id": sentence_id,
                    "prompt": _visible(_text(lm, ids[:cut])).lstrip(),
                    "original": original,
                    "base": by_base,
                    "adapter": by_adapter,
                    "repetition_base": repetition(base),
                    "repetition_adapter": repetition(adapter),
                }
            )
    return pd.DataFrame(rows)


def repetition_summary(table: pd.DataFrame) -> dict[str, float]:
    """`repetition/<lang>`: mean over the prompts of what the adapter wrote."""
    return {f"repetition/{code}": float(shares.mean()) for code, shares in table.groupby("language", sort=False)["repetition_adapter"]}


@torch.no_grad()
def greedy(lm: LanguageModel, prompt: Sequence[int]) -> list[int]:
    """The most likely next token, again and again, up to the first special token (such as EOS), `NEW_TOKENS` tokens or the end of the context.

    Not the library's `generate`: it takes over what a model brings along for chatting, such as a penalty on repetition, which would hide just
    what is looked for here.
    """
    special = set(lm.tokens.special.tolist())
    start = [*lm.tokens.prefix, *prompt]
    ids = torch.tensor([start], device=lm.device)
    for _ in range(min(NEW_TOKENS, lm.tokens.context - len(start))):
        logits = lm.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        token = logits[:, -1:].argmax(dim=-1)
        if token.item() in special:
            break
        ids = torch.cat([ids, token], dim=1)
    return ids[0, len(start) :].tolist()


def repetition(tokens: Sequence[int]) -> float:
    """Share of the tokens that lie in a trigram which occurs more than once (occurrences may overlap); 0 of fewer than four tokens.

    `a b c a b c d` has the trigram `a b c` twice: six of seven tokens. Greedy text of a damaged model ends in loops (Holtzman et al. 2020).
    """
    trigrams = [tuple(tokens[place : place + 3]) for place in range(len(tokens) - 2)]
    repeated = {place + i for place, trigram in enumerate(trigrams) if trigrams.count(trigram) > 1 for i in range(3)}
    return len(repeated) / len(tokens) if tokens else 0.0


def _middle(lm: LanguageModel, ids: Sequence[int]) -> int:
    """Behind how many tokens to cut: the place nearest to the middle that is between two words, or the middle where there is none."""
    whole = _text(lm, ids)

    def between_words(cut: int) -> bool:
        prompt = _text(lm, ids[:cut])  # no beginning of the whole where the cut would split a character
        return whole.startswith(prompt) and _WORD_BOUNDARY.match(whole, len(prompt)) is not None

    places = filter(between_words, range(1, len(ids)))
    return min(places, key=lambda cut: abs(cut - len(ids) / 2), default=max(1, len(ids) // 2))


def _text(lm: LanguageModel, ids: Sequence[int]) -> str:
    # Cleaning up would move spaces, and a prompt would no longer be the beginning of its continuation.
    return str(lm.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _text_behind(lm: LanguageModel, prompt: Sequence[int], new: Sequence[int]) -> str:
    """What the new tokens add; decoded by themselves they might lose their leading space. A character cut at the end is left out."""
    return _visible(_text(lm, [*prompt, *new]).removeprefix(_text(lm, prompt)).rstrip("\N{REPLACEMENT CHARACTER}"))


def _visible(text: str) -> str:
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
