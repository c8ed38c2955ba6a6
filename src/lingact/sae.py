"""Load sparse autoencoders, check that they fit the model, read features before and after their threshold."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from safetensors import SafetensorError
from torch import Tensor

from lingact.config import SaeConfig, SaeSet
from lingact.errors import UserError
from lingact.languages import nearest


class Dictionary:
    """The frozen SAE of one layer. Activations come folded with the norms of its decoder's rows.

    Not an `nn.Module`, so that it is never part of a checkpoint or an optimiser.
    """

    def __init__(self, sae: SAE[Any], layer: int) -> None:
        self.sae = sae.requires_grad_(False).eval()
        self.layer = layer
        norms: Float[Tensor, " d_sae"] = sae.W_dec.norm(dim=-1)
        # Some top-k SAEs fold by themselves.
        self.norms = torch.ones_like(norms) if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False) else norms
        """Decoder norms: multiply the SAE's own activations to get folded ones."""
        threshold = getattr(sae, "threshold", None)
        self.threshold: Float[Tensor, " d_sae"] | None = threshold.detach() if threshold is not None else None
        """JumpReLU threshold in the SAE's own units, or None for other architectures."""

    @property
    def width(self) -> int:
        """Number of latents."""
        return self.norms.shape[0]

    def encode(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_sae"]:
        """Activations f >= 0 behind the threshold, folded. A latent that is silent on a token passes no gradient to it."""
        return self.sae.encode(x) * self.norms

    def encode_straight_through(self, x: Float[Tensor, "token d_model"], bandwidth: float) -> Float[Tensor, "token d_sae"]:
        """The same values as `encode`; the gradient is that of a ReLU which opens at `(1 - bandwidth)` of each threshold.

        Latents below their threshold by less than that share receive the gradient they would have if they fired.

        Raises:
            UserError: the SAE has no threshold.
        """
        if self.threshold is None:
            raise UserError(
                f"loss.gap.gradient=straight_through needs JumpReLU SAEs; layer {self.layer} has '{self.sae.cfg.architecture()}'. Use "
                "loss.gap.gradient=jumprelu"
            )
        pre = self.pre_activations(x)
        gate = pre > self.threshold
        # A latent whose threshold is zero keeps a window of its own: everything the plain gate lets through.
        window = gate | (pre > self.threshold * (1 - bandwidth))
        opened = pre * window
        return (opened + (pre.relu() * gate - opened).detach()) * self.norms

    def pre_activations(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_sae"]:
        """What the SAE compares with its threshold, in its own units."""
        caught: list[Tensor] = []
        handle = self.sae.hook_sae_acts_pre.register_forward_hook(lambda _m, _i, output: caught.append(output))
        try:
            self.sae.encode(x)
        finally:
            handle.remove()
        return caught[0]

    def folded_pre_activations(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_sae"]:
        """Pre-activations in the units of `encode`, which do not change when a latent is scaled up in the encoder and down in the decoder."""
        return self.pre_activations(x) * self.norms

    def decode(self, features: Float[Tensor, "token d_sae"]) -> Float[Tensor, "token d_model"]:
        """The residual that folded activations stand for."""
        # A latent without a decoder row is never active.
        return self.sae.decode(features / self.norms.clamp_min(1e-12))


Dictionaries = dict[int, Dictionary]
"""Layer number -> its SAE."""


def chosen_layers(config: SaeConfig, block_count: int) -> tuple[int, ...]:
    """The layers to measure.

    Raises:
        UserError: a layer the model does not have.
    """
    if config.layers == "all":
        return tuple(range(block_count))
    beyond = [layer for layer in config.layers if layer >= block_count]
    if beyond:
        raise UserError(f"sae.layers: {beyond} out of range; the model has layers 0 to {block_count - 1}")
    return tuple(sorted(set(config.layers)))


def load_dictionaries(
    spec: SaeSet,
    layers: tuple[int, ...],
    d_model: int,
    device: torch.device,
) -> tuple[Dictionaries, dict[str, Any]]:
    """The SAEs of the given layers in float32, checked against the model, and who they are.

    Raises:
        UserError: a release, id or file is missing, or an SAE does not fit the model.
    """
    dictionaries = {}
    for layer in layers:
        sae_id = spec.id.format(layer=layer)
        sae = _load(spec.release, sae_id, device)
        _check_fit(sae, f"{spec.release} {sae_id}", layer, d_model)
        dictionaries[layer] = Dictionary(sae, layer)
    norms = torch.cat([d.norms for d in dictionaries.values()])
    identity = {
        "release": spec.release,
        "id": spec.id,
        "layers": list(layers),
        "sha256": weights_digest(dictionaries),
        "architecture": sorted({d.sae.cfg.architecture() for d in dictionaries.values()}),
        "width": sorted({d.width for d in dictionaries.values()}),
        "decoder_norms": [round(norms.min().item(), 6), round(norms.max().item(), 6)],
        "folded": True,
    }
    return dictionaries, identity


def weights_digest(dictionaries: Dictionaries) -> str:
    """sha256 over settings and weights of all SAEs, layer by layer in name order."""
    digest = hashlib.sha256()
    for dictionary in dictionaries.values():
        settings = {name: value for name, value in dictionary.sae.cfg.to_dict().items() if name not in ("device", "dtype", "metadata")}
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        for name, weight in sorted(dictionary.sae.state_dict().items()):
            digest.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _load(release: str, sae_id: str, device: torch.device) -> SAE[Any]:
    folder = Path(release)
    if folder.is_absolute() or folder.is_dir():
        path = folder / sae_id
        if not (path / "cfg.json").is_file():
            siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserError(f"no SAE in '{path}' (no cfg.json){nearest(path.name, siblings)} There: {', '.join(sorted(siblings)[:8]) or 'nothing'}")
        try:
            return SAE.load_from_disk(path, device=str(device), dtype="float32")
        except (json.JSONDecodeError, FileNotFoundError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
            raise UserError(f"the SAE in '{path}' cannot be read: {str(error).splitlines()[0]}") from error
    try:
        return SAE.from_pretrained(release, sae_id, device=str(device), dtype="float32")
    except ValueError as error:
        raise UserError(f"sae '{release}' '{sae_id}': {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise UserError(
            f"sae '{release}' '{sae_id}' is not in the cache and cannot be fetched: {str(error).splitlines()[0]} For a gated release accept "
            "its licence on its hub page and run `hf auth login`"
        ) from error


def _check_fit(sae: SAE[Any], name: str, layer: int, d_model: int) -> None:
    if sae.cfg.d_in != d_model:
        raise UserError(f"SAE {name} reads vectors of {sae.cfg.d_in}, the model's residual stream has {d_model}; choose SAEs made for this model")
    hook = sae.cfg.metadata.hook_name
    if hook is None:
        return
    # TransformerLens and Hugging Face names for "output of block N".
    fitting = (f"blocks.{layer}.hook_resid_post", f"model.layers.{layer}")
    if hook not in fitting:
        raise UserError(
            f"SAE {name} was trained on '{hook}', lingact measures the output of block {layer} ('{fitting[0]}'); choose residual-stream "
            f"SAEs and an id whose {{layer}} matches"
        )
