"""Silences Lightning's advice that does not apply here."""

import logging
import warnings
from pathlib import Path

_UNASKED = (
    "litlogger", "litmodels",  # advertisements
    "TPU available", "to estimate number of stepping batches", "Found current_model_state in the checkpoint",
    "GPU available: False",  # an unused GPU is still reported
    "Restoring states from the checkpoint path", "Loaded model weights from the checkpoint at",  # replaced by our own
)  # fmt: skip
"""Lightning's log messages that users of this command do not need."""


def _plain_where_ours(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format this project's warnings like its other messages, because users do not need the line of code."""
    ours = Path(filename).is_relative_to(Path(__file__).parents[3]) and "site-packages" not in filename
    return f"lightning: {message}\n" if ours else _format_others(message, category, filename, lineno, line)


_format_others = warnings.formatwarning  # Lightning's own, which is imported by now


def quieten() -> None:
    """Silence advice that does not apply here; everything else stays."""
    for message in (
        r".*in eval mode at the start of training.*",  # a frozen backbone is in eval mode on purpose
        r".*Checkpoint directory .* exists and is not empty.*",  # see RunFolder for what happens to old files
        r".*The dirpath has changed from.*",  # an evaluation in another folder than the run's
        r".*Experiment logs directory .* exists and is not empty.*",
        r".*is smaller than the logging interval.*",  # figures are logged per epoch
        r".*does not have many workers.*",  # photos come from memory
        r".*isinstance\(treespec, LeafSpec\).*",  # a matter between Lightning and torch
        r".*the following callbacks.*",  # callbacks in a checkpoint that only a fit needs
        r".*find_unused_parameters=True was specified.*",  # there are some while only the head is trained
    ):
        warnings.filterwarnings("ignore", message=message)
    warnings.formatwarning = _plain_where_ours
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not any(text in record.getMessage() for text in _UNASKED)
    )
