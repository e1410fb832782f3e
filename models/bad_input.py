"""The one error class for input that a person can mend."""


class BadInput(ValueError):
    """Input that cannot be used, said in a way its owner can act on.

    The message states what was expected, what came, and what to do. The command line prints it without a
    traceback and exits 2; any other exception is a fault of ours and keeps its traceback.
    """
