"""Hydra."""

from typing import TYPE_CHECKING

from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra


def composer() -> "Hydra":
    """The object that composes configurations, runs jobs and handles Hydra's flags, after `initialize_config_dir`.

    Versions: hydra-core 1.3.2 to 1.3.8.
    Reason: lingact checks a command before Hydra runs it, and Hydra exports this object without its class.
    Upstream: none known.
    """
    found = GlobalHydra.instance().hydra
    assert found is not None
    return found


def returned_value(job: JobReturn) -> object:
    """What a job returned, or the exception that ended it.

    Versions: hydra-core 1.3.2 to 1.3.8.
    Reason: the public `JobReturn.return_value` raises the exception and writes to the terminal, also in a callback that only records it.
    Upstream: https://github.com/facebookresearch/hydra/issues/1377, closed with this behaviour.
    """
    return job._return_value
