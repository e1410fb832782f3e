"""Computes probabilities of photos with a `.h5` in a Keras process; `torch_labeller.py` does it with a checkpoint.

`exported_labeller.py` does it with other formats. Nothing here imports torch, because a `.h5` does not need it and
importing it takes time.
"""

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, get_args

import h5py
import numpy as np

from export.keras_file.read import DETAILS_ATTRIBUTE
from export.worker.keras_process import KerasStream
from export.worker.keras_worker import UNREADABLE, Refused, check_storage
from models.bad_input import BadInput
from models.choices import INTERPOLATIONS, MOST_PIXELS, Formats, Loading, stated_formats

Device = Literal["auto", "cpu", "cuda"]
InputRange = Literal["unit", "raw", "tf"]
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
SECONDS_PER_PHOTO, SECONDS_TO_START = 30.0, 600.0
"""Time limits for Keras: far more than it needs, so that only a process that hangs is stopped."""


class Labeller(Protocol):
    """Computes the probabilities of photos; a context manager.

    Attributes:
        class_names: in the order of the probabilities.
        image_size: (height, width) in pixels that photos must have.
        interpolation: how photos must be resized to that size.
        loading: how their colours must become RGB.
        formats: which files were photos in training.
        checkpoint_digest: SHA-256 of the checkpoint that it is, or was made of; None if that is not known.
    """

    class_names: list[str]
    image_size: tuple[int, int]
    interpolation: str
    loading: Loading
    formats: Formats
    checkpoint_digest: str | None

    def __enter__(self) -> Self:
        """Start what is needed to compute probabilities."""
        ...

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        """Release all resources."""
        ...

    def probabilities(self, photos: np.ndarray) -> np.ndarray:
        """Compute probabilities in float32, shape (N, C), of photos, uint8 (N, H, W, 3), RGB."""
        ...

    def exact(self, photos: np.ndarray) -> np.ndarray:
        """Compute the same in float64."""
        ...


def is_hdf5(path: Path) -> bool:
    """Return whether a file begins like an HDF5 file, whatever its name.

    Raises:
        BadInput: there is no such file, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE
    except OSError as error:
        raise BadInput(
            f"expected a checkpoint or a Keras .h5, received {path}: {error.strerror}. `lightning fit` writes "
            "RUN/best.ckpt and RUN/model.h5."
        ) from error


class KerasFileLabeller:
    """A `.h5` in a separate Keras process, one for all batches; photos and probabilities pass through pipes.

    Args:
        h5: a file of `lightning fit` or `lightning export`, or any other one together with its labels.
        labels: `class_names` and `input_range`; also `image_size` and `interpolation`, if they are not the model's
            input size and `nearest`. They must not contradict what is stated in the file. A model whose one output is
            a sigmoid has two classes, as in `lightning import`; where one name is stated, it is the second's.
        python: interpreter that has Keras; None for the one that runs this process.

    Raises:
        BadInput: no such file, no such Keras, or the model's inputs and outputs are not known.
        KerasFailed: the process crashed or ran out of time.
    """

    def __init__(self, h5: Path, labels: dict[str, Any] | None = None, python: Path | None = None) -> None:
        self.h5, self.python = h5, python
        facts = _checked_facts(h5, self._stated(h5), labels or {})
        names: list[str] = facts["class_names"]
        self.class_names = [f"not {names[0]}", *names] if len(names) == 1 else names
        self.checkpoint_digest: str | None = facts.get("checkpoint_sha256")
        self._is_sigmoid: bool = facts["output"] == "sigmoid"
        self._has_one_output = False
        self.interpolation: str = facts["interpolation"]
        self.loading = Loading(facts["background"], facts["deep_grey"])
        self.formats: Formats = facts["formats"]
        self.input_range: InputRange = facts["input_range"]
        self.image_size: tuple[int, int] = facts.get("image_size", (0, 0))  # (0, 0): the model's input size

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shelftwin-")))
            self._keras = stack.enter_context(self._process())
            self.image_size = self._checked_size()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def probabilities(self, photos: np.ndarray) -> np.ndarray:
        """Compute probabilities in float32, shape (N, C), of photos, uint8 (N, H, W, 3), RGB."""
        return self._ask("predict", photos, np.float32)

    def exact(self, photos: np.ndarray) -> np.ndarray:
        """Compute the same in float64."""
        return self._ask("predict_exact", photos, np.float64)

    def _stated(self, path: Path) -> dict[str, Any]:
        """Return what the file says of itself."""
        return _facts_in(path)

    def _process(self) -> KerasStream:
        """Start the process."""
        return KerasStream(self.h5, self.python, SECONDS_TO_START)

    def _ask(self, task: str, photos: np.ndarray, dtype: type) -> np.ndarray:
        # Keras builds a new graph for each batch size, so batches are padded to a power of two
        filled = 1 << (len(photos) - 1).bit_length()
        images = np.concatenate([photos, np.zeros((filled - len(photos), *photos.shape[1:]), np.uint8)])
        scale = {"unit": 1 / 255, "raw": 1.0, "tf": 1.0}[self.input_range]
        if self.input_range == "tf":  # the same as in mobilenet_v2.preprocess_input
            images = images.astype(dtype) / dtype(127.5) - dtype(1)
        asked = {"task": task, "scale": scale, "batch_size": filled, "copy": str(self._folder / "float64.h5")}
        limit = SECONDS_TO_START + SECONDS_PER_PHOTO * filled  # the first batch of a size includes building the graph
        answers = self._keras.compute(asked, images, limit)[: len(photos)]
        return np.concatenate([1 - answers, answers], axis=1) if self._has_one_output else answers

    def _checked_size(self) -> tuple[int, int]:
        given, takes, gives = self.image_size, self._keras.input_shape, self._keras.output_shape
        if takes is None or len(takes) != 4 or takes[3] not in (3, None):
            raise BadInput(
                f"{self.h5}: expected a model of one RGB image, (N, height, width, 3), received one of {takes}. "
                "Another model is needed."
            )
        self._has_one_output = gives is not None and len(gives) == 2 and gives[1] == 1 and self._is_sigmoid
        outputs = 1 if self._has_one_output else len(self.class_names)
        if gives is None or len(gives) != 2 or gives[1] != outputs or (outputs == 1 and len(self.class_names) != 2):
            one = ", whose one output is no sigmoid" if gives is not None and gives[1:] in ((1,), [1]) else ""
            raise BadInput(
                f"{self.h5}: expected a probability for each of {len(self.class_names)} class names, received a model "
                f"that gives {gives}{one}. Give the names that belong to it with --labels."
            )
        size: tuple[int, int] = given if given != (0, 0) else (takes[1] or 0, takes[2] or 0)
        differs = any(own not in (None, side) for own, side in zip(takes[1:3], size, strict=True))
        if 0 in size or size[0] * size[1] > MOST_PIXELS or differs:
            raise BadInput(
                f"{self.h5}: expected image_size, [height, width] in pixels that the model takes ({takes[1:3]}), at "
                f"most {MOST_PIXELS // 10**6} megapixels, received {list(given) if given != (0, 0) else 'none'}. State "
                "it in the file given with --labels."
            )
        return size


def _facts_in(h5: Path) -> dict[str, Any]:
    """Return what a `.h5` of ours states; of any other, whether its output is a sigmoid."""
    try:
        check_storage(str(h5))
        with h5py.File(h5, "r") as file:
            stated = dict(json.loads(file.attrs[DETAILS_ATTRIBUTE])) if DETAILS_ATTRIBUTE in file.attrs else {}
            stated.setdefault("output", "sigmoid" if _ends_in_sigmoid(file) else "")
    except Refused as refused:
        raise BadInput(f"expected a Keras .h5, received one that is refused: {refused}.") from refused
    except UNREADABLE as error:
        raise BadInput(f"expected a Keras .h5, received {h5}, which cannot be read as one ({error}).") from error
    return stated


def _checked_facts(h5: Path, stated: dict[str, Any], labels: dict[str, Any]) -> dict[str, Any]:
    """Return class names, input range, interpolation and, if it is stated, image size."""
    names = ("class_names", "input_range", "interpolation", "background", "deep_grey", "formats", "image_size")
    own, given = ({name: each[name] for name in names if name in each} for each in (stated, labels))
    different = [name for name in own if name in given and own[name] != given[name]]
    if different:
        name = different[0]
        raise BadInput(
            f"--labels: expected {name} as {h5} has it, {own[name]}, received {given[name]}. Leave --labels out: the "
            "file says itself what it takes and gives."
        )
    facts = {"interpolation": "nearest", "background": None, "deep_grey": "clip", "formats": "keras", **given, **own}
    try:
        Loading.stated(facts)
        stated_formats(facts)
    except ValueError as error:
        raise BadInput(f"{h5}: expected to know how photos are loaded, received {error}. Mend --labels.") from error
    fits = {
        "class_names": isinstance(facts.get("class_names"), list) and len(facts["class_names"]) > 0,
        "input_range": facts.get("input_range") in get_args(InputRange),
        "interpolation": facts["interpolation"] in INTERPOLATIONS,
        "image_size": facts.get("image_size") is None or _is_size(facts["image_size"]),
    }
    wrong = [name for name, fit in fits.items() if not fit]
    if wrong:
        received = facts.get(wrong[0], "none: the file does not say it")
        raise BadInput(
            f"{h5}: expected {', '.join(wrong)} to be known, received {received}. Give a labels.json with --labels "
            '({"class_names": [...], "input_range": "unit", "raw" (0 to 255) or "tf" (-1 to 1)}); '
            "`lightning fit` writes one."
        )
    if "image_size" in facts:
        facts["image_size"] = tuple(facts["image_size"])
    return {**facts, "output": stated["output"], "checkpoint_sha256": stated.get("checkpoint_sha256")}


def _ends_in_sigmoid(file: h5py.File) -> bool:
    """Return whether the model's last layer has a sigmoid, as files that do not state their output have it."""
    try:
        layers = json.loads(file.attrs["model_config"])["config"]["layers"]
        return bool(layers[-1]["config"].get("activation") == "sigmoid")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return False  # no model: Keras says what is wrong with it


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(side, int) and side > 0 for side in value)
