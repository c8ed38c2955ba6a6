"""Random-direction SAEs: what the same statistics give when the directions mean nothing.

Arxiv 2602.14111 finds that SAEs with random directions come close to trained ones in common evaluations, so a statistic of trained latents says
something about what was learned only where it differs from that of random ones that fire as often.
"""

from bisect import bisect_right

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lingact.corpus import ParallelCorpus
from lingact.features import kept_residuals
from lingact.lm import LanguageModel
from lingact.passes import token_bar
from lingact.sae import Dictionaries, Dictionary

_TOKENS, _LATENTS = 1024, 512
"""Sizes of chunks, which bound the memory that wide SAEs take."""


@torch.no_grad()
def random_dictionaries(dictionaries: Dictionaries, sample: dict[int, Float[Tensor, "token d_model"]], seed: int) -> Dictionaries:
    """SAEs with random directions that fire as often as the given ones (control of arXiv 2602.14111).

    Each latent reads and writes one isotropic random direction, with the norms of the encoder column and decoder row that it stands for; the decoder
    bias is kept. Its threshold is set so that on the sample it fires on as many tokens as the original (as near as can be where residuals are equal),
    hence L0 is matched there. A latent that never fires there never fires here.

    Args:
        sample: residuals by layer, on which firing rates are matched (`reference_sample`).
        seed: together with the layer it determines the directions; torch's own generator is left alone.
    """
    return {
        layer: Dictionary(_random_sae(dictionary, sample[layer].to(dictionary.norms.device), seed), layer)
        for layer, dictionary in dictionaries.items()
    }


def _random_sae(original: Dictionary, x: Float[Tensor, "token d_model"], seed: int):  # noqa: ANN202 (a JumpReLUSAE, which is slow to import)
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
    drawn = np.random.default_rng((seed, original.layer)).standard_normal((original.width, trained.cfg.d_in), dtype=np.float32)
    directions = torch.nn.functional.normalize(torch.from_numpy(drawn), dim=-1).to(x.device)
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
def reference_sample(
    lm: LanguageModel, corpus: ParallelCorpus, reference: str, layers: tuple[int, ...], *, tokens: int, batch_tokens: int
) -> dict[int, Float[Tensor, "token d_model"]]:
    """Residuals of the reference language by layer, on the CPU in float32: whole sentences, at most so many kept tokens.

    Args:
        corpus: the discovery half; sentences are taken in the order of `ParallelCorpus.sample`, one at least.
        batch_tokens: padded tokens per forward pass.
    """
    windows = lm.tokens.windows(corpus.texts[reference])
    special = set(lm.tokens.special.tolist())
    counts = np.zeros(len(corpus.ids), np.int64)
    for window in windows:
        counts[window.sentence] += sum(token not in special for token in window.ids)
    fitting = bisect_right(range(1, len(counts) + 1), tokens, key=lambda size: int(counts[corpus.sample(size)].sum()))
    chosen = set(corpus.sample(max(1, fitting)).tolist())
    parts: list[dict[int, Tensor]] = []
    with token_bar(sum(len(window.ids) for window in windows if window.sentence in chosen), f"sampling {reference}") as bar:
        for batch in lm.tokens.batches([window for window in windows if window.sentence in chosen], batch_tokens):
            residuals, _ = kept_residuals(lm, batch, layers)
            parts.append({layer: x.cpu() for layer, x in residuals.items()})
            bar.update(batch.size())
    sample = {layer: torch.cat([part[layer] for part in parts]) for layer in layers}
    # A token whose residual is not finite fires nothing; where there are no others, nothing that is measured there will be a number.
    finite = {layer: x[x.isfinite().all(dim=-1)] for layer, x in sample.items()}
    return {layer: x if len(x) else torch.zeros_like(sample[layer]) for layer, x in finite.items()}
