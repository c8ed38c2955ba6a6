"""Every place where lingact patches a library or uses a private part of one; a module for each library.

The docstring of each function names the versions that need it, the reason, and the upstream issue. `tests/unit/test_compat.py` has a test for each
function that fails as soon as the library no longer needs it. The modules import nothing of lingact, so that every package may use them.
"""
