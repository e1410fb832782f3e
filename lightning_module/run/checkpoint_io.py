"""Checkpoints that are written whole or not at all."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from models.atomic_write import replacing
from models.bad_input import BadInput


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint beside its place, flushes it to the disk and renames it.

    Lightning's own is written to the system's temporary folder and moved: where that is another disk the move is a
    copy, which a kill cuts in half, and nothing is flushed.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write it; an older one at `path` is whole until the new one is.

        Raises:
            BadInput: it cannot be written there, as when the disk is full.
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
                # Of a Python file, not by its name: torch's own writer says nothing of why it failed.
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # torch.save closes its archive while the disk's error is under way, which fails, too.
                raise next((each for each in _causes(error) if isinstance(each, OSError)), error) from error


def _causes(error: BaseException) -> list[BaseException]:
    """An exception and those during whose handling it was raised, the last first."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return found
