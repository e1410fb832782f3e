"""Which figures a fit can monitor, to choose its best epoch or to stop."""

from typing import Any

from lightning_module.callbacks import LAST_EPOCH
from models.bad_input import BadInput

FIGURES = ("loss", "accuracy", "f1_macro")


def check_monitors(settings: Any) -> None:
    """Refuse to monitor a figure that no epoch will have.

    Args:
        settings: settings of `fit`.

    Raises:
        BadInput: there is no such figure.
    """
    sets = ["train", "val", *(["val_clean"] if settings.data.augment_validation else [])]
    known = [f"{name}/{figure}" for name in sets for figure in FIGURES if (name, figure) != ("train", "f1_macro")]
    for group, watched in (("checkpoint", [*known, LAST_EPOCH]), ("early_stopping", known)):
        if (given := settings[group].monitor) not in watched:
            hint = " With --data.augment_validation true it is there." if given.startswith("val_clean/") else ""
            raise BadInput(f"--{group}.monitor: expected one of {', '.join(watched)}, received {given!r}.{hint}")
    if settings.checkpoint.monitor == LAST_EPOCH and settings.checkpoint.mode != "max":
        raise BadInput(
            f"--checkpoint.mode: expected max with --checkpoint.monitor {LAST_EPOCH}, which keeps the last, received "
            f"{settings.checkpoint.mode!r}. Give --checkpoint.mode max."
        )
