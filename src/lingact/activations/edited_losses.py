"""Cross-entropies under edits of the residual stream, summed per sentence, and the names of the edits. No model is needed to read them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from lingact.errors import UserError
from lingact.files.states import load_state


def finished(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Header and arrays that a pass saved when it was through."""
    header, arrays, (done, steps) = load_state(path)
    if done < steps:
        raise UserError(f"'{path}' holds {done} of {steps} steps; let the run that wrote it finish, with resume=<its folder>")
    return header, arrays


@contextmanager
def of_this_kind(path: Path) -> Iterator[None]:
    """Turn the errors of a file with other contents into a user's mistake.

    Raises:
        UserError: the message names the file.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"'{path}' holds something else ({type(error).__name__}: {error}); delete it and let the run make it again") from None


# --- spliced cross-entropy -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplicedLosses:
    """Sums of next-token cross-entropies in nats, with the residual of one layer at a time replaced on the kept tokens."""

    layers: tuple[int, ...]
    predicted: dict[str, Int[np.ndarray, " sentence"]]
    """Language -> predicted tokens."""
    base: dict[str, Float[np.ndarray, " sentence"]]
    """Language -> the model as it is."""
    zero: dict[str, Float[np.ndarray, "layer sentence"]]
    """Language -> zeros in place of the residual."""
    spliced: dict[str, dict[str, Float[np.ndarray, "layer sentence"]]]
    """SAE set -> language -> the SAE's reconstruction in place of the residual."""

    @classmethod
    def load(cls, path: Path) -> "SplicedLosses":
        """What `spliced_losses` saved.

        Raises:
            UserError: the file is not there, damaged, of something else or not finished.
        """
        header, arrays = finished(path)
        with of_this_kind(path):
            return cls.from_arrays(tuple(json.loads(header["layers"])), json.loads(header["sae_sets"]), header["order"].split(), arrays)

    @classmethod
    def from_arrays(cls, layers: tuple[int, ...], sae_sets: Sequence[str], codes: Sequence[str], arrays: dict[str, np.ndarray]) -> "SplicedLosses":
        """From the arrays of a pass that is through."""
        blocks = {code: arrays[f"nll.{code}"][1:].reshape(1 + len(sae_sets), len(layers), -1) for code in codes}
        return cls(
            layers=layers,
            predicted={code: arrays[f"predicted.{code}"] for code in codes},
            base={code: arrays[f"nll.{code}"][0] for code in codes},
            zero={code: block[0] for code, block in blocks.items()},
            spliced={sae_set: {code: block[row] for code, block in blocks.items()} for row, sae_set in enumerate(sae_sets, start=1)},
        )


# --- causal checks -------------------------------------------------------------------------------------------------------------------------------

Kind = Literal["specific", "random", "diffmean"]
"""The language's own latents, random latents that fire as often, or its DiffMean direction."""
Mode = Literal["scale", "steer"]
NEUTRAL: dict[Mode, float] = {"scale": 1.0, "steer": 0.0}
"""The dose that changes nothing."""
NAMED = "named"
ABLATION = 0.0
"""The dose of `scale` that takes away."""


@dataclass(frozen=True)
class Arm:
    """What an intervention is called. Interventions of the same name are repeats, such as several draws of random latents."""

    owner: str
    """Language that the latents or directions belong to, or `NAMED` for latents that the user has named."""
    kind: Kind
    mode: Mode
    dose: float


@dataclass(frozen=True)
class CausalLosses:
    """Sums of next-token cross-entropies in nats under every intervention."""

    arms: tuple[Arm, ...]
    predicted: dict[str, Int[np.ndarray, " sentence"]]
    """Language -> predicted tokens."""
    base: dict[str, Float[np.ndarray, " sentence"]]
    """Language -> the model as it is."""
    nll: dict[str, Float[np.ndarray, "arm sentence"]]
    """Language -> under each intervention."""

    @classmethod
    def load(cls, path: Path) -> "CausalLosses":
        """What `causal_losses` saved.

        Raises:
            UserError: the file is not there, damaged, of something else or not finished.
        """
        header, arrays = finished(path)
        with of_this_kind(path):
            return cls.from_arrays(tuple(Arm(*arm) for arm in json.loads(header["arms"])), header["order"].split(), arrays)

    @classmethod
    def from_arrays(cls, arms: tuple[Arm, ...], codes: Sequence[str], arrays: dict[str, np.ndarray]) -> "CausalLosses":
        """From the arrays of a pass that is through."""
        sums = {code: arrays[f"nll.{code}"] for code in codes}
        predicted = {code: arrays[f"predicted.{code}"] for code in codes}
        return cls(arms, predicted, {code: s[0] for code, s in sums.items()}, {code: s[1:] for code, s in sums.items()})
