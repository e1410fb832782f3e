"""Distillation: a student learns from what larger networks say of the very photos that it sees.

"Consistent and patient teaching" (Beyer et al. 2022): teacher and student get the same augmented, mixed photos, and the
student matches the teacher's probabilities (Hinton et al. 2015). Teachers are in no checkpoint and in no twin.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from export.checkpoint import OwnCheckpoint, read_checkpoint
from models.bad_input import BadInput, quoted
from models.frozen_backbone import Compile, FrozenBackbone, FrozenPrecision


@dataclass(frozen=True)
class Distillation:
    """How a student learns from its teachers.

    Attributes:
        temperature: logits of teacher and student are divided by it, above 0; the higher, the more the unlikely
            classes count.
        weight: the teachers' share of the loss, 0 to 1; the labels have the rest.

    Raises:
        BadInput: a setting is out of its range.
    """

    temperature: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name, expected, fits in (
            ("temperature", "a number above 0", 0 < self.temperature < math.inf),
            ("weight", "a share from 0 to 1", 0 <= self.weight <= 1),
        ):
            if not fits:
                raise BadInput(f"--model.distillation.{name}: expected {expected}, received {getattr(self, name)!r}.")

    def loss(self, logits: Tensor, taught: Tensor) -> Tensor:
        """Return the Kullback-Leibler divergence of the student from its teachers, the mean over photos, a scalar.

        It is multiplied by the temperature's square, so that its gradients stay as large as those of the labels'
        cross-entropy (Hinton et al. 2015, section 2).

        Args:
            logits: the student's, shape (B, C).
            taught: the teachers' probabilities at this temperature, shape (B, C).
        """
        student = nn.functional.log_softmax(logits / self.temperature, dim=1)
        return nn.functional.kl_div(student, taught, reduction="batchmean") * self.temperature**2


class Teachers:
    """Trained networks whose mean probabilities a student learns.

    They are not submodules of the student, so that no checkpoint, optimiser or twin has anything of them. Each computes
    by the fast pass of a frozen backbone.

    Args:
        checkpoints: files of this project's checkpoints; at least one.
        class_names: the student's classes, in the order of its outputs.
        precision: number format of their backbones.
        compile: whether their backbones are compiled.

    Raises:
        BadInput: a file is no checkpoint of this project, or lacks a class of the student's.
    """

    def __init__(
        self,
        checkpoints: Sequence[str | Path],
        class_names: Sequence[str],
        precision: FrozenPrecision = "auto",
        compile: Compile = "auto",
    ) -> None:
        self._teachers = [read_checkpoint(Path(path)) for path in checkpoints]
        self._columns = [_columns(teacher, class_names) for teacher in self._teachers]
        for teacher in self._teachers:
            teacher.network.requires_grad_(False).to(memory_format=torch.channels_last)
        self._backbones = [FrozenBackbone(teacher.network, precision, compile) for teacher in self._teachers]

    def expect(self, photos: float, device: torch.device) -> None:
        """Move to a device, and announce how many photos will come at most, which decides whether to compile."""
        for teacher, backbone in zip(self._teachers, self._backbones, strict=True):
            teacher.network.to(device)
            backbone.expect(photos, device)

    @torch.no_grad()
    def probabilities(self, images: Tensor, temperature: float) -> Tensor:
        """Return the mean of the teachers' probabilities, at a temperature, of the student's classes.

        A teacher that was trained on photos of another size gets them at its own size.

        Args:
            images: float32, shape (B, 3, H, W), RGB, 0 to 1, as the student sees them.
            temperature: what the logits are divided by.

        Returns:
            float32, shape (B, C); each row adds up to 1.
        """
        taught = []
        for teacher, backbone, columns in zip(self._teachers, self._backbones, self._columns, strict=True):
            seen = images
            if tuple(images.shape[-2:]) != teacher.image_size:
                seen = nn.functional.interpolate(images, teacher.image_size, mode="bilinear", antialias=True)
            with torch.autocast(images.device.type, enabled=False):
                logits = teacher.network.head(backbone.features(seen.float()))
            taught.append((logits[:, columns] / temperature).softmax(dim=1))
        return torch.stack(taught).mean(dim=0)


def _columns(teacher: OwnCheckpoint, class_names: Sequence[str]) -> list[int]:
    """The teacher's output for each class of the student."""
    missing = [name for name in class_names if name not in teacher.class_names]
    if missing:
        raise BadInput(
            f"--model.teacher: expected a teacher of all classes of the photos, received {teacher.path}, which knows "
            f"{quoted(teacher.class_names)} and not {quoted(missing)}. Train it on the same photos."
        )
    return [teacher.class_names.index(name) for name in class_names]
