"""The one error that is the user's to mend."""


class UserError(Exception):
    """A mistake in what the user gave: shown as a message without a traceback, exit code 2.

    The text says what came, what is allowed and what to do.
    """
