"""lingact: measure, close and test activation disparities between languages in language models.

Axes in the type annotations: `batch` texts, `seq` positions with padding, `token` kept positions flattened over batch and seq,
`d_model` residual width, `d_sae` latents of an SAE, `layer` the measured layers in their order, `sentence` aligned sentences,
`item` documents of a benchmark, `cluster` the facts behind them, `seed` training runs of one recipe, `language` the languages that are pooled.
Units: activations in the SAE's units folded with its decoder norms; cross-entropy and divergences in nats per kept token.
"""

__version__ = "0.1.0"
