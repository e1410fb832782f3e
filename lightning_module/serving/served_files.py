"""Finds the twins in a run's folder, or among files, and makes sure that they belong together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from export.exported_facts import format_of
from lightning_module.evaluation.labellers import Device, KerasFileLabeller, Labeller, is_hdf5
from lightning_module.run.run_folder import RunFolder
from models.bad_input import BadInput
from models.digests import file_digest

TwinChoice = Literal["both", "torch", "keras"]


class ServedFiles(NamedTuple):
    """The files of the twins.

    Attributes:
        checkpoints: for torch, those that may be the one; empty if torch is not served.
        h5: for Keras; None if Keras is not served.
    """

    checkpoints: list[Path]
    h5: Path | None

    @property
    def first(self) -> Path:
        """The file that stands for all of them: beside it are the run's other files."""
        return self.checkpoints[0] if self.checkpoints else self.h5 or Path()


def find_files(given: Sequence[Path], twin: TwinChoice | None) -> ServedFiles:
    """Return which files are served.

    Args:
        given: a run's folder; or a checkpoint, a `.h5`, or both.
        twin: None for what is there.

    Raises:
        BadInput: there is none, or too many.
    """
    checkpoints: list[Path] = []
    h5s: list[Path] = []
    for each in given:
        if each.is_dir():
            run = RunFolder(each)
            checkpoints += [file for file in (run.best_checkpoint, run.calibrated_checkpoint) if file.is_file()]
            h5s += [run.model_h5] if run.model_h5.is_file() else []
            if not checkpoints and not h5s:
                raise BadInput(
                    f"expected a run's folder, received {each}, which has neither {run.best_checkpoint.name} nor "
                    f"{run.model_h5.name}. Name the folder that `lightning fit` wrote."
                )
        elif is_hdf5(each):
            h5s.append(each)
        elif other := format_of(each):
            raise BadInput(
                f"expected a checkpoint or a Keras .h5, received {each}, which is {other}. Name the run's folder; "
                "`lightning predict` labels photos with this one."
            )
        else:
            checkpoints.append(each)
    if len(h5s) > 1 or len({each.parent for each in checkpoints}) > 1 or (len(given) > 1 and len(checkpoints) > 1):
        raise BadInput(
            f"expected a run's folder, or one checkpoint and one .h5, received {', '.join(map(str, given))}. One "
            "service has one model: start another for the other, with --port."
        )
    if twin == "torch" or (twin is None and not h5s):
        h5s = []
    if twin == "keras" or (twin is None and not checkpoints):
        checkpoints = []
    missing = {"both": not (checkpoints and h5s), "torch": not checkpoints, "keras": not h5s}
    if twin is not None and missing[twin]:
        wanted = {"both": "a checkpoint and a .h5", "torch": "a checkpoint", "keras": "a .h5"}[twin]
        raise BadInput(
            f"--twin {twin}: expected {wanted}, received {', '.join(map(str, given))}. Leave --twin out, or name the "
            "missing file: `lightning export` writes a checkpoint's .h5."
        )
    return ServedFiles(checkpoints, h5s[0] if h5s else None)


def make_labellers(
    files: ServedFiles,
    device: Device = "auto",
    keras_python: Path | None = None,
    labels: dict[str, Any] | None = None,
) -> dict[str, Labeller]:
    """Return the labellers by the twin's name, torch first.

    Args:
        files: of `find_files`.
        device: as for `CheckpointLabeller`.
        keras_python: as for `KerasFileLabeller`, likewise the labels.
        labels: for a `.h5` that does not state its own.

    Raises:
        BadInput: a file cannot be used, or they are no twins.
    """
    keras = KerasFileLabeller(files.h5, labels, keras_python) if files.h5 else None
    if not files.checkpoints:
        assert keras is not None
        return {"keras": keras}
    from lightning_module.evaluation.torch_labeller import CheckpointLabeller  # a .h5 alone needs no torch

    checkpoint = files.checkpoints[0]
    if keras is not None and keras.checkpoint_digest is not None:
        fitting = [each for each in files.checkpoints if file_digest(each) == keras.checkpoint_digest]
        if not fitting:
            raise BadInput(
                f"expected twins, received {files.h5}, which was made of another checkpoint than {checkpoint}. Make "
                "its own with `lightning export`, or serve one of them with --twin."
            )
        checkpoint = fitting[0]
    torch = CheckpointLabeller(checkpoint, device)
    if keras is None:
        return {"torch": torch}
    ours, theirs = facts_of(torch), facts_of(keras)
    size_known = keras.image_size != (0, 0)
    differ = [name for name in ours if ours[name] != theirs[name] and (name != "image_size" or size_known)]
    if differ:
        raise BadInput(
            f"expected twins, received {checkpoint} with {differ[0]} {ours[differ[0]]} and {files.h5} with "
            f"{theirs[differ[0]]}. Serve one of them with --twin, or name those that belong together."
        )
    return {"torch": torch, "keras": keras}


def facts_of(labeller: Labeller) -> dict[str, Any]:
    """Return what twins have in common, in plain types."""
    return {
        "class_names": list(labeller.class_names),
        "image_size": list(labeller.image_size),
        "interpolation": labeller.interpolation,
        **labeller.loading._asdict(),
    }
