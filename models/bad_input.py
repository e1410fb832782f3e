"""The one error class for input that the user can correct, and what its messages have in common."""

from collections.abc import Sequence


class BadInput(ValueError):
    """Input that cannot be used, with a message that tells the user how to correct it.

    The message states what was expected, what was received, and what to do. The command line prints it without a
    traceback and exits with code 2; any other exception is our own bug, exits with 70, and its traceback goes to a
    file.
    """


def some_of(names: Sequence[object], most: int = 20) -> str:
    """Return names as text, `most` of them at most and how many more there are, so that no message fills a screen."""
    shown = ", ".join(_shortened(str(name)) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def some_lines_of(lines: Sequence[object], most: int = 20) -> str:
    """Return lines, indented, `most` of them at most and how many more there are."""
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join(f"  {line}" for line in [*lines[:most], *more])


def other_names(expected: Sequence[str], received: Sequence[str]) -> str:
    """Return in what two lists of class names differ, whatever their order."""
    lists = {"missing": {*expected} - {*received}, "foreign": {*received} - {*expected}}
    return ", ".join(f"{what}: {quoted(sorted(names))}" for what, names in lists.items())


def quoted(names: Sequence[str]) -> str:
    """Return names as `some_of` does, in quotation marks and brackets."""
    return f"[{some_of([repr(name) for name in names])}]"


def _shortened(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:77]}..."
