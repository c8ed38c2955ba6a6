"""What single latents respond to: their strongest tokens in context, and how often they fire on tokens without any meaning."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int

from lingact.activations.features import kept_residuals
from lingact.data.corpus import ParallelCorpus
from lingact.data.tokens import TokenBatch, Tokens, Window
from lingact.errors import UserError
from lingact.files.atomic import write_json
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries, Dictionary
from lingact.runtime.resumable_passes import resumable, token_bar

PER_LATENT = 5
"""Contexts kept of each latent."""
AROUND = 12
"""Tokens shown on either side of the strongest one."""
RANDOM_TOKENS, RANDOM_WINDOW = 8192, 32
"""Random tokens read in all, and in a window."""
_EMPTY = -1

# --- random tokens ---------------------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def random_token_rates(
    lm: LanguageModel,
    sae_sets: dict[str, Dictionaries],
    *,
    seed: int,
    batch_tokens: int,
    header: dict[str, str],
    tokens: int = RANDOM_TOKENS,
    path: Path | None = None,
) -> dict[str, dict[int, Float[np.ndarray, " d_sae"]]]:
    """Share of uniformly random tokens on which each latent fires, by SAE set and layer (random-token filter of arXiv 2604.03532).

    Windows hold `RANDOM_WINDOW` tokens of the vocabulary, no special ones, behind BOS where the model expects it.

    Args:
        sae_sets: sets of SAEs by name; all have the same layers.
        header: identity of model and SAEs.
        path: keep the counts there, and go on from what is there. None: nothing is kept.
    """
    windows = _random_windows(lm.tokens, tokens, seed)
    counts = {f"{sae_set}/{layer}": np.zeros(d.width, np.int64) for sae_set, dictionaries in sae_sets.items() for layer, d in dictionaries.items()}
    layers = tuple(next(iter(sae_sets.values())))

    def add(batch: TokenBatch) -> None:
        residuals, _ = kept_residuals(lm, batch, layers)
        for sae_set, dictionaries in sae_sets.items():
            for layer, dictionary in dictionaries.items():
                counts[f"{sae_set}/{layer}"] += (dictionary.encode(residuals[layer]) > 0).sum(dim=0).cpu().numpy()

    steps = list(lm.tokens.batches(windows, batch_tokens))
    described = header | {"random_tokens": str(tokens), "seed": str(seed), "batch_tokens": str(batch_tokens)}
    with token_bar(sum(len(window.ids) for window in windows), "random tokens") as bar:
        resumable(path, described, counts, steps, add, tokens=TokenBatch.size, bar=bar)
    return {sae_set: {layer: counts[f"{sae_set}/{layer}"] / tokens for layer in dictionaries} for sae_set, dictionaries in sae_sets.items()}


def _random_windows(tokens: Tokens, count: int, seed: int) -> list[Window]:
    ordinary = np.setdiff1d(np.array(tokens.known), tokens.special.numpy())
    sampled = np.random.default_rng(seed).choice(ordinary, count).tolist()
    size = min(RANDOM_WINDOW, tokens.room)
    return [Window(place, tokens.prefix + sampled[start : start + size]) for place, start in enumerate(range(0, count, size))]


# --- strongest contexts ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Context:
    """A token on which a latent is strong, and the text around it: `before + token + after`."""

    layer: int
    latent: int
    language: str
    sentence_id: str
    activation: float
    """Folded."""
    before: str
    token: str
    """The text of the token, its leading space included; its name in the vocabulary where it is a part of a character."""
    after: str


@dataclass(frozen=True)
class _Strongest:
    """The strongest tokens of some latents in one language so far, strongest first, at most one of a sentence."""

    value: Float[np.ndarray, "latent kept"]
    sentence: Int[np.ndarray, "latent kept"]
    """Place in the corpus; empty places hold `_EMPTY`, here and in `ids`."""
    ids: Int[np.ndarray, "latent kept stretch"]
    """The token in the middle, `AROUND` more to either side."""

    @classmethod
    def empty(cls, latents: int) -> "_Strongest":
        return cls(
            np.zeros((latents, PER_LATENT), np.float32),
            np.full((latents, PER_LATENT), _EMPTY),
            np.full((latents, PER_LATENT, 2 * AROUND + 1), _EMPTY),
        )

    def arrays(self, layer: int) -> dict[str, np.ndarray]:
        """What is kept of a layer's latents, by name, not copied."""
        return {f"{name}.{layer}": array for name, array in vars(self).items()}

    def add(self, features: Float[np.ndarray, "token latent"], batch: TokenBatch) -> None:
        """Take in the kept tokens of a batch."""
        keep, sentence = batch.keep.numpy(), batch.sentence.numpy()
        dense = np.zeros((*keep.shape, features.shape[1]), np.float32)
        dense[keep] = features
        position = dense.argmax(axis=1)
        value = np.take_along_axis(dense, position[:, None], axis=1)[:, 0]
        padded = np.pad(np.where(keep, batch.ids.numpy(), _EMPTY), ((0, 0), (AROUND, AROUND)), constant_values=_EMPTY)
        stretch = np.arange(2 * AROUND + 1)
        rivals = (value > 0) & (value >= self.value[:, -1])
        for latent in np.flatnonzero(rivals.any(axis=0)):
            rows = np.flatnonzero(rivals[:, latent])
            ids = padded[rows[:, None], position[rows, latent][:, None] + stretch]
            self._merge(latent, value[rows, latent], sentence[rows], ids)

    def take(self, other: "_Strongest") -> None:
        """Take in those of other batches."""
        for latent in np.flatnonzero((other.sentence != _EMPTY).any(axis=1)):
            held = other.sentence[latent] != _EMPTY
            self._merge(latent, other.value[latent][held], other.sentence[latent][held], other.ids[latent][held])

    def _merge(
        self, latent: np.integer, value: Float[np.ndarray, " row"], sentence: Int[np.ndarray, " row"], ids: Int[np.ndarray, "row stretch"]
    ) -> None:
        held = self.sentence[latent] != _EMPTY
        value = np.concatenate([self.value[latent][held], value])
        sentence = np.concatenate([self.sentence[latent][held], sentence])
        ids = np.concatenate([self.ids[latent][held], ids])
        # Equally strong: the earlier sentence, so that the order of the batches does not matter.
        order = np.lexsort((sentence, -value))
        _, first = np.unique(sentence[order], return_index=True)
        best = order[np.sort(first)][:PER_LATENT]
        self.value[latent, : len(best)], self.sentence[latent, : len(best)], self.ids[latent, : len(best)] = value[best], sentence[best], ids[best]


@torch.no_grad()
def strongest_contexts(
    lm: LanguageModel,
    dictionaries: Dictionaries,
    corpus: ParallelCorpus,
    wanted: dict[int, list[int]],
    *,
    batch_tokens: int,
    header: dict[str, str],
    folder: Path | None = None,
) -> list[Context]:
    """The `PER_LATENT` strongest tokens of each wanted latent over all languages of the corpus, at most one of each sentence and language.

    Args:
        wanted: layer -> latents.
        batch_tokens: padded tokens per forward pass.
        header: identity of model, SAEs and corpus.
        folder: keep the state there, a file for each language, and go on from what is there. None: nothing is kept.

    Returns:
        In the order of `wanted`, strongest first; equally strong ones in the order of the corpus' languages and sentences.
    """
    layers = tuple(wanted)
    if not layers:
        return []
    latents = {layer: torch.tensor(chosen, device=dictionaries[layer].norms.device) for layer, chosen in wanted.items()}
    digest = hashlib.sha256(json.dumps(sorted(wanted.items())).encode()).hexdigest()
    described = header | {"latents": digest, "batch_tokens": str(batch_tokens)}
    by_language = {code: {layer: _Strongest.empty(len(chosen)) for layer, chosen in wanted.items()} for code in corpus.texts}

    def add(strongest: dict[int, _Strongest], batch: TokenBatch) -> None:
        residuals, _ = kept_residuals(lm, batch, layers)
        for layer, x in residuals.items():
            features = dictionaries[layer].encode(x)[:, latents[layer]]
            strongest[layer].add(features.cpu().numpy(), batch)

    def merge(strongest: dict[int, _Strongest], other: dict[str, np.ndarray]) -> None:
        for layer, own in strongest.items():
            own.take(_Strongest(*(other[name] for name in own.arrays(layer))))

    with token_bar(sum(lm.tokens.count(texts) for texts in corpus.texts.values()), "contexts") as bar:
        for code, texts in corpus.texts.items():
            bar.set_postfix_str(code)
            own = by_language[code]
            state = {name: array for layer, strongest in own.items() for name, array in strongest.arrays(layer).items()}
            # A language's batches at a time: memory does not grow with the corpus.
            steps = list(lm.tokens.batches(lm.tokens.windows(texts), batch_tokens))
            path = folder / f"{code}.safetensors" if folder is not None else None
            mine = described | {"language": code}
            resumable(path, mine, state, steps, partial(add, own), tokens=TokenBatch.size, bar=bar, merge=partial(merge, own))
    return list(_over_languages(lm.tokens, corpus, wanted, by_language))


def _over_languages(
    tokens: Tokens, corpus: ParallelCorpus, wanted: dict[int, list[int]], by_language: dict[str, dict[int, _Strongest]]
) -> Iterator[Context]:
    for layer, chosen in wanted.items():
        for row, latent in enumerate(chosen):
            found = [
                (float(own[layer].value[row, slot]), code, own[layer].sentence[row, slot], own[layer].ids[row, slot])
                for code, own in by_language.items()
                for slot in np.flatnonzero(own[layer].sentence[row] != _EMPTY)
            ]
            # The sort is stable, so equals stay in the order of languages and sentences.
            for value, code, sentence, ids in sorted(found, key=lambda entry: -entry[0])[:PER_LATENT]:
                yield Context(layer, latent, code, corpus.ids[sentence], value, *_as_text(tokens, ids))


def _as_text(tokens: Tokens, stretch: Int[np.ndarray, " stretch"]) -> tuple[str, str, str]:
    """Text before, of and after the middle token.

    Tokens are decoded in company, since a decoder may treat the first one differently and joins the bytes of a character.
    """
    tokenizer = tokens.tokenizer
    before, (token,), after = (part[part != _EMPTY].tolist() for part in np.split(stretch, [AROUND, AROUND + 1]))

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    cut = "\N{REPLACEMENT CHARACTER}"
    start, through, whole = decode(before), decode([*before, token]), decode([*before, token, *after])
    if not tokens.partial[token] and through.startswith(start) and whole.startswith(through):
        # Characters are cut at the ends of the stretch by us, not by the text.
        return start.lstrip(cut), through[len(start) :], whole[len(through) :].rstrip(cut)
    return start.lstrip(cut), str(tokenizer.convert_ids_to_tokens(token)), decode(after).rstrip(cut)


def neuronpedia_url(dictionary: Dictionary, latent: int) -> str | None:
    """The latent's page at Neuronpedia, None where the SAE is not known there."""
    known_as = dictionary.sae.cfg.metadata.neuronpedia_id
    return f"https://www.neuronpedia.org/{known_as}/{latent}" if known_as else None


# --- on disk ---------------------------------------------------------------------------------------------------------------------------------------


def save_contexts(path: Path, contexts: list[Context]) -> None:
    """Write contexts as JSON, a row each."""
    write_json(path, [asdict(context) for context in contexts])


def load_contexts(path: Path) -> list[Context]:
    """What `save_contexts` wrote.

    Raises:
        UserError: it is not there, or not that.
    """
    if not path.is_file():
        raise UserError(f"'{path}' does not exist; the run has not saved its contexts")
    try:
        return [Context(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise UserError(f"'{path}' cannot be read as contexts ({error}); delete it and let the run make it again") from None
