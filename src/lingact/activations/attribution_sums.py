"""Sums from which a language's activation is split into norm, dictionary and remainder. No model is needed to read them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from lingact.activations.edited_losses import finished, of_this_kind
from lingact.files.states import refuse_mismatched

NORMS = ("raw", "centred", "without_largest")
"""Kinds of residual norm: as it is; about the mean residual over all languages; over all dimensions but the 1 % of largest variance."""
OWN = "own"
MEASURES = {"mean": "raw", "centred": "centred", "without_largest": "without_largest"}
"""Measures that equalise a language's mean norm by one factor -> the norm that the factor is of."""
TOKEN_NORM = "token_norm"
"""The measure that equalises the norm of each token."""
STATES = (OWN, *MEASURES, TOKEN_NORM)
"""Residuals as they are, and with norms equalised to the reference's by each measure."""
NORM, ACTIVATION = "norms", "activation"
"""Folders of the two passes, with a file for each language."""


@dataclass(frozen=True)
class AttributionSums:
    """Sums over the kept tokens of each sentence, by language."""

    layers: tuple[int, ...]
    set_a: tuple[str, ...]
    """SAE sets of the first mix, one for each seed."""
    set_b: tuple[str, ...]
    tokens: dict[str, Int[np.ndarray, " sentence"]]
    norms: dict[str, Float[np.ndarray, "norm layer sentence"]]
    """In the order of `NORMS`."""
    activation: dict[str, Float[np.ndarray, "set state layer sentence"]]
    """Folded activations of all latents, in the order of `set_a`, `set_b` and `STATES`."""

    @classmethod
    def load(cls, folder: Path, codes: Iterable[str]) -> "AttributionSums":
        """What `attributed` saved of these languages.

        Raises:
            UserError: it is not there, damaged or not finished.
        """
        header: dict[str, str] = {}
        norms, activation = {}, {}
        for code in codes:
            path = folder / ACTIVATION / f"{code}.safetensors"
            _, norms[code] = finished(folder / NORM / path.name)
            found, activation[code] = finished(path)
            header = header or {name: value for name, value in found.items() if name != "language"}
            refuse_mismatched(found, header | {"language": code}, f"'{path}'")
        with of_this_kind(folder):
            return cls.from_arrays(header, norms, activation)

    @classmethod
    def from_arrays(
        cls, header: Mapping[str, str], norms: Mapping[str, Mapping[str, np.ndarray]], activation: Mapping[str, Mapping[str, np.ndarray]]
    ) -> "AttributionSums":
        """From the arrays of both passes, by language."""
        return cls(
            layers=tuple(json.loads(header["layers"])),
            set_a=tuple(json.loads(header["set_a"])),
            set_b=tuple(json.loads(header["set_b"])),
            tokens={code: own["tokens"] for code, own in norms.items()},
            norms={code: own["norms"] for code, own in norms.items()},
            activation={code: own["activation"] for code, own in activation.items()},
        )

    def of(self, sae_set: str, state: str, code: str) -> Float[np.ndarray, "layer sentence"]:
        """Activation of one language by one set, in one state of the residuals."""
        return self.activation[code][(*self.set_a, *self.set_b).index(sae_set), STATES.index(state)]
