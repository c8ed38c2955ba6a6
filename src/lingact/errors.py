"""Errors that the user can fix: mistakes, and a machine without enough memory."""

import re

_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)


class UserError(Exception):
    """A mistake in what the user gave: shown as a message without a traceback, exit code 2.

    The text says what came, what is allowed and what to do.
    """


def out_of_memory(error: Exception) -> bool:
    """Whether a device, or the machine, had no memory left. Recognised by the words, because libraries below torch have no class for it."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error))))
