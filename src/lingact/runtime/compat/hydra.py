"""Hydra."""

from argparse import ArgumentParser

from hydra.core.utils import JobReturn


def argument_parser() -> ArgumentParser:
    """Hydra's own parser of the command line, with all of its flags.

    Versions: hydra-core 1.3.2 to 1.3.8.
    Reason: lingact checks a command before Hydra does, and Hydra exports no parser.
    Upstream: none known.
    """
    from hydra._internal.utils import get_args_parser

    return get_args_parser()


def returned_value(job: JobReturn) -> object:
    """What a job returned, or the exception that ended it.

    Versions: hydra-core 1.3.2 to 1.3.8.
    Reason: the public `JobReturn.return_value` raises the exception and writes to the terminal, also in a callback that only records it.
    Upstream: https://github.com/facebookresearch/hydra/issues/1377, closed with this behaviour.
    """
    return job._return_value
