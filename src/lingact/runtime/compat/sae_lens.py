"""SAELens."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def shapes_from_cache() -> Iterator[None]:
    """While open, loaders read the shapes of weights from the file in the hub's cache, which is downloaded if necessary.

    Versions: sae-lens 6.26 to 6.54.12.
    Reason: for Gemma Scope 2, SAELens requests the header of a file from the hub even if HF_HUB_OFFLINE is set and the file is in the cache.
    Upstream: none known.
    """
    from huggingface_hub import hf_hub_download
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def cached(repo_id: str, filename: str) -> dict[str, list[int]]:
        return _shapes(Path(hf_hub_download(repo_id, filename)))

    with patch.object(loaders, "get_safetensors_tensor_shapes", cached):
        yield


@contextmanager
def loaders_read(folder: Path) -> Iterator[None]:
    """While open, loaders of releases find the files of their repository in a folder on this machine.

    Versions: sae-lens 6.26 to 6.54.12.
    Reason: the loaders of Gemma Scope, Llama Scope and Qwen Scope accept only a repository on the hub. The function that reads SAEs from disk
    supports only SAELens's own format.
    Upstream: none known.

    Raises:
        EntryNotFoundError: a loader asks for a file that the folder does not have, as the hub's client raises it.
    """
    from huggingface_hub.errors import EntryNotFoundError
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def find(repo_id: str, filename: str, subfolder: str = "", **_settings: object) -> str:  # noqa: ARG001 (the client's signature)
        file = folder / subfolder / filename
        if not file.is_file():
            raise EntryNotFoundError(f"'{file}' does not exist")
        return str(file)

    with (
        patch.object(loaders, "hf_hub_download", find),
        patch.object(loaders, "get_safetensors_tensor_shapes", lambda _repo, filename: _shapes(folder / filename)),
    ):
        yield


def sparsify_autoencoder(path: str | Path, device: str, cfg_overrides: dict[str, object] | None) -> "tuple[dict[str, object], dict[str, Tensor]]":
    """Settings and weights of a top-k autoencoder that EleutherAI's sparsify has saved.

    Versions: sae-lens 6.20 to 6.54.12.
    Reason: SAELens reads the rows of the decoder as columns. If the decoder is normalised, which is sparsify's default, SAELens does not subtract
    the decoder's bias before it encodes; sparsify always does.
    Upstream: none known.
    """
    from sae_lens.loading.pretrained_sae_loaders import sparsify_disk_loader

    settings, weights = sparsify_disk_loader(path, device, cfg_overrides)
    return settings | {"apply_b_dec_to_input": True}, weights | {"W_dec": weights["W_dec"].T.contiguous()}


def _shapes(file: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as weights:
        return {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118 (not a dict)
