"""Random-direction SAEs: what the same statistics give when the directions mean nothing.

Arxiv 2602.14111 finds that SAEs with random directions come close to trained ones in common evaluations, so a statistic of trained latents says
something about what was learned only where it differs from that of random ones that fire as often.
"""

from bisect import bisect_left

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lingact.activations.features import kept_residuals
from lingact.data.corpus import ParallelCorpus
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries, Dictionary
from lingact.runtime.resumable_passes import token_bar

SAMPLE_TOKENS = 8192
"""Tokens of all languages together on which random SAEs are made to fire as often as the trained ones."""
_TOKENS, _LATENTS = 1024, 512
"""Sizes of chunks, which bound the memory that wide SAEs take."""


@torch.no_grad()
def random_dictionaries(dictionaries: Dictionaries, sample: dict[int, Float[Tensor, "token d_model"]], seed: int, draw: int = 1) -> Dictionaries:
    """SAEs with random directions that fire as often as the given ones (control of arXiv 2602.14111).

    Each latent reads and writes one isotropic random direction, with the norms of the encoder column and decoder row that it stands for; the decoder
    bias is kept. Its threshold is set so that on the sample it fires on as many tokens as the original (as near as can be where residuals are equal),
    hence L0 is matched there. A latent that never fires there never fires here.

    Args:
        sample: residuals by layer, on which firing rates are matched (`pooled_sample`).
        seed: together with draw and layer it determines the directions; torch's own generator is left alone.
    """
    return {
        layer: Dictionary(_random_sae(dictionary, sample[layer].to(dictionary.norms.device), (seed, draw)), layer)
        for layer, dictionary in dictionaries.items()
    }


def _random_sae(original: Dictionary, x: Float[Tensor, "token d_model"], seed: tuple[int, int]):  # noqa: ANN202 (a JumpReLUSAE, which is slow to import)
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    trained = original.sae
    config = JumpReLUSAEConfig(
        d_in=trained.cfg.d_in,
        d_sae=original.width,
        apply_b_dec_to_input=trained.cfg.apply_b_dec_to_input,
        normalize_activations=trained.cfg.normalize_activations,
        metadata=SAEMetadata(hook_name=trained.cfg.metadata.hook_name),
    )
    # The constructor draws weights, which are replaced.
    with torch.random.fork_rng(devices=[]):
        sae = JumpReLUSAE(config).to(x.device)
    normal = np.random.default_rng((*seed, original.layer)).standard_normal((original.width, trained.cfg.d_in), dtype=np.float32)
    directions = torch.nn.functional.normalize(torch.from_numpy(normal), dim=-1).to(x.device)
    sae.b_dec.data = trained.b_dec.detach().clone()
    sae.W_enc.data = (directions * trained.W_enc.norm(dim=0)[:, None]).T.contiguous()
    sae.W_dec.data = directions * trained.W_dec.norm(dim=-1)[:, None]

    counts = torch.stack([(original.encode(chunk) > 0).sum(dim=0) for chunk in x.split(_TOKENS)]).sum(dim=0)
    read = sae.process_sae_in(x)
    pairs = zip(sae.W_enc.split(_LATENTS, dim=1), counts.split(_LATENTS), strict=True)
    cut = torch.cat([cut_for(read @ columns, wanted) for columns, wanted in pairs])
    # A latent that fires on tokens with a negative pre-activation needs a bias, or the ReLU would silence it.
    sae.b_enc.data = (-cut).clamp_min(0)
    sae.threshold.data = cut.clamp_min(0)
    return sae


def cut_for(values: Float[Tensor, "token latent"], counts: Int[Tensor, " latent"]) -> Float[Tensor, " latent"]:
    """The threshold that `counts` of each latent's values exceed, half-way to the next value below; infinite for a count of 0.

    Where equal values stand at the place of the cut, it goes to the nearer end of them. Equal means up to float32's rounding, which differs between
    batches.
    """
    falling = values.sort(dim=0, descending=True).values
    below_all = falling[-1:] - falling[-1:].abs() - 1e-6
    upper, lower = falling, torch.cat([falling[1:], below_all])
    # Row r is the cut after r + 1 values.
    off = (torch.arange(1, len(values) + 1, device=values.device)[:, None] - counts).abs()
    equal = upper - lower <= 1e-6 * values.abs().amax(dim=0)
    best = off.masked_fill(equal, len(values) + 1).argmin(dim=0, keepdim=True)
    cut = ((upper + lower) / 2).gather(0, best)[0]
    return cut.masked_fill(counts == 0, torch.inf)


@torch.no_grad()
def pooled_sample(
    lm: LanguageModel, corpus: ParallelCorpus, layers: tuple[int, ...], *, tokens: int, batch_tokens: int
) -> dict[int, Float[Tensor, "token d_model"]]:
    """Residuals of all languages of the corpus by layer, on the CPU in float32: as many kept tokens of each, together at most `tokens`.

    Matched on one language alone, latents that are silent there would be silent everywhere, and which language they were matched on would make a gap.

    Args:
        corpus: the sentences to choose from, taken in the order of `ParallelCorpus.sample`; the last one of each language is cut where its share
            ends. A language with fewer tokens than its share makes the shares of the others as small.
        batch_tokens: padded tokens per forward pass.
    """
    share = max(1, tokens // len(corpus.texts))
    corpus = corpus.select(corpus.sample(share).tolist())  # more are not needed: each sentence has a token
    special = set(lm.tokens.special.tolist())
    windows = {code: lm.tokens.windows(texts) for code, texts in corpus.texts.items()}
    counts = {code: np.zeros(len(corpus.ids), np.int64) for code in windows}
    for code, own in windows.items():
        for window in own:
            counts[code][window.sentence] += sum(token not in special for token in window.ids)
    share = min(share, *(int(own.sum()) for own in counts.values()))
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    with token_bar(share * len(counts), "sampling") as bar:
        for code, own in counts.items():
            size = 1 + bisect_left(range(1, len(own)), share, key=lambda size: int(own[corpus.sample(size)].sum()))
            chosen = set(corpus.sample(size).tolist())
            before_last = set(corpus.sample(size - 1).tolist()) if size > 1 else set()
            read: dict[int, list[Tensor]] = {layer: [] for layer in layers}
            cut: list[Tensor] = []
            for batch in lm.tokens.batches([window for window in windows[code] if window.sentence in chosen], batch_tokens):
                residuals, _ = kept_residuals(lm, batch, layers)
                for layer, x in residuals.items():
                    read[layer].append(x.cpu())
                cut.append(torch.tensor([place not in before_last for place in batch.kept_sentence.tolist()]))
            order = torch.cat(cut).int().argsort(stable=True)[:share]
            for layer in layers:
                parts[layer].append(torch.cat(read[layer])[order])
            bar.update(share)
    # A token whose residual is not finite fires nothing; where there are no others, nothing that is measured there will be a number.
    sample = {}
    for layer in layers:
        x = torch.cat(parts.pop(layer))  # a layer at a time, so that the sample is held once
        finite = x[x.isfinite().all(dim=-1)]
        sample[layer] = finite if len(finite) else torch.zeros_like(x)
    return sample
