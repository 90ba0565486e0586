"""The errors a user can cause, each with the exit code the command line gives it.

Everything here is a `ValueError`: whoever catches `ValueError` around a call catches ours. Errors that are our
own mistake stay `AssertionError` or whatever Python raises, with their traceback.
"""

from __future__ import annotations


class HfDistillError(ValueError):
    """Root of the errors whose message tells the user what to do; the command line prints it without traceback."""

    exit_code: int = 1


class ConfigurationError(HfDistillError):
    """A recipe, an argument or an environment that cannot work."""

    exit_code = 2


class DataError(HfDistillError):
    """Data, labels or teachers that do not fit together."""

    exit_code = 3


class UnsafeFileError(HfDistillError):
    """A file whose loading could run somebody else's code."""

    exit_code = 4


class CorruptStateError(HfDistillError):
    """A saved state (checkpoint, cache, report) that is damaged or incomplete."""

    exit_code = 5


class PushError(HfDistillError):
    """The push to the Hub failed; what was trained is complete on disk."""

    exit_code = 6
