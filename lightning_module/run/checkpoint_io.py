"""Checkpoints that are written completely or not at all."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from models.atomic_write import replacing
from models.bad_input import BadInput
from models.state_dicts import check_undamaged


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint to a temporary file beside its target, flushes it to the disk and renames it.

    Lightning writes checkpoints to the system's temporary folder and moves them, without flushing. If that folder is on
    another disk, the move is a copy, and killing the process leaves half a file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint; an older one at `path` stays intact until the new one is complete.

        Raises:
            BadInput: it cannot be written, for example because the disk is full.
        """
        if storage_options is not None:
            raise TypeError("storage_options are for remote places; this writes files")
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"expected a folder that can be made for {path}, got: {error.strerror or error}.") from error
        with replacing(path) as temporary, temporary.open("wb") as file:
            try:
                # Pass a Python file and not a path: torch's own writer does not report why it failed.
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # After an error of the disk, torch.save closes its archive, which fails, too. Raise the disk's error.
                raise next((each for each in _causes(error) if isinstance(each, OSError)), error) from error

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Read a checkpoint, as Lightning does, after its checksums.

        Raises:
            BadInput: it is damaged.
        """
        check_undamaged(Path(path))
        content: dict[str, Any] = super().load_checkpoint(path, *arguments, **options)
        return content


def _causes(error: BaseException) -> list[BaseException]:
    """Return an exception and the chain of exceptions that led to it, the latest first."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return found
