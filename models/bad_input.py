"""The one error class for input that the user can correct."""


class BadInput(ValueError):
    """Input that cannot be used, with a message that tells the user how to correct it.

    The message states what was expected, what was received, and what to do. The command line prints it without a
    traceback and exits with code 2; any other exception is our own bug, exits with 70, and its traceback goes to a
    file.
    """
