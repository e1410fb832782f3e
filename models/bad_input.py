"""The one error class for input that the user can correct, and what its messages have in common."""

from collections.abc import Sequence


class BadInput(ValueError):
    """Input that cannot be used, with a message that tells the user how to correct it.

    The message states what was expected, what was received, and what to do. The command line prints it without a
    traceback and exits with code 2; any other exception is our own bug and keeps its traceback.
    """


def some_of(names: Sequence[object], most: int = 20) -> str:
    """Return names as text, `most` of them at most and how many more there are, so that no message fills a screen."""
    shown = ", ".join(str(name) if len(str(name)) <= 80 else f"{str(name)[:77]}..." for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
