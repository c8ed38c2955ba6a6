"""lingact: measure, close and test activation disparities between languages in language models.

Axes in the type annotations: `batch` texts, `seq` positions with padding, `token` kept positions flattened over batch and seq,
`d_model` residual width, `d_sae` latents of an SAE, `layer` the measured layers in their order, `sentence` aligned sentences,
`item` documents of a benchmark, `cluster` the facts behind them, `seed` training runs of one recipe, `language` the languages that are pooled.
Units: activations in the SAE's units folded with its decoder norms; cross-entropy and divergences in nats per kept token.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lingact.interface import Measured, MeasureSettings, RunFolder, measure, open_run, run

__version__ = "0.1.0"
__all__ = ["MeasureSettings", "Measured", "RunFolder", "measure", "open_run", "run"]


def __getattr__(name: str) -> object:
    """The Python interface, imported when it is first used, so that `import lingact` is quick."""
    if name not in __all__:
        raise AttributeError(f"module 'lingact' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module("lingact.interface"), name)
