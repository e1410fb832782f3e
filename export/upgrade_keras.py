"""Old Keras file -> `.h5` for every Keras: read, write, prove. Nothing changes but the file."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.keras_file.architecture import KerasGraph, read_keras_graph
from export.keras_file.read import KerasFile, loadable, read_keras_file
from export.keras_file.upgraded import UpgradedLayers, upgraded_layers, upgraded_training
from export.keras_file.weights_alone import whole_file
from export.keras_file.write import own_version, write_keras_h5
from export.proof.report import PASS
from export.proof.upgrade_proof import Upgrade, UpgradeProof, check_upgrade
from models.atomic_write import replacing
from models.bad_input import BadInput
from models.digests import file_digest

# A file that takes images of any size is read at these two; where both give the same layers, so does every other.
_OPEN_SIZES = ((224, 224), (195, 161))


class UpgradeDiffers(Exception):
    """The new file does not compute what the old one does; nothing was written."""

    def __init__(self, upgraded: Upgraded) -> None:
        super().__init__(upgraded.proof.report.last_line())
        self.upgraded = upgraded


@dataclass(frozen=True)
class Upgraded:
    """What was done.

    Attributes:
        kinds: Keras's class -> how many layers of it the old file has.
        input_shape: NHWC, with None where any size is taken.
        outputs: how many numbers the model gives for an image.
        ends_in: what the last layer does: ``softmax``, ``sigmoid``, or ``logits``.
        compiled: whether the new file has a training configuration.
        notes: what does not come over.
        proof: the outcome of the proof.
    """

    kinds: dict[str, int]
    input_shape: list[int | None]
    outputs: int
    ends_in: str
    compiled: bool
    notes: list[str]
    proof: UpgradeProof


def write_upgrade(
    old: Path,
    new: Path,
    class_names: Sequence[str] | None = None,
    keras_python: Path | None = None,
    architecture: dict[str, Any] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Upgraded:
    """Write an old Keras classifier as a file that every Keras loads, and prove that both compute the same.

    Args:
        old: `.h5`, `.hdf5`, a `.keras` archive, or a zip with one `.h5` in it; it is only read.
        new: the `.h5` to write; it appears, or replaces an older one, only if the proof passes.
        class_names: in the order of the outputs, to be kept in the file; None: left out.
        keras_python: interpreter whose Keras loads the old file; None: this environment's, or else `tf_keras` in an
            environment of its own.
        architecture: for a file of weights alone, from `given_architecture`.
        progress: called with a short text at each step.

    Raises:
        BadInput: the old file cannot be read or loaded, or the new one not written.
        UpgradeDiffers: the proof failed.
        KerasFailed: a Keras process crashed or ran out of time.
    """
    old, new = Path(old), Path(new)
    _check_places(old, new)
    with tempfile.TemporaryDirectory(prefix="shelftwin-") as folder:
        whole = old if architecture is None else whole_file(old, architecture, Path(folder))
        return _write(old, whole, new, class_names, keras_python, progress)


def _write(
    old: Path,
    whole: Path,
    new: Path,
    class_names: Sequence[str] | None,
    keras_python: Path | None,
    progress: Callable[[str], None],
) -> Upgraded:
    file = read_keras_file(whole)
    source, translated = _translate(file)
    outputs = source.graph.output.shape[0]
    if class_names is not None and len(class_names) not in (outputs, 2 if outputs == 1 else outputs):
        raise BadInput(
            f"--labels, or labels.txt in the zip: expected {outputs} names, as many as the model has outputs, received "
            f"{len(class_names)}. Give --labels with each class once, in the order of the outputs."
        )
    training, notes = upgraded_training(file.training_config)
    details: dict[str, Any] = {"upgraded_from": file_digest(old), "shelftwin_version": own_version()}
    if class_names is not None:
        details["class_names"] = list(class_names)
    with tempfile.TemporaryDirectory(prefix="shelftwin-") as folder, replacing(new) as temporary:
        # Keras knows a file by its ending, and the temporary name has another
        written = Path(folder) / "new.h5"
        write_keras_h5(
            written,
            translated.layers,
            model_name=_model_name(file),
            details=details,
            training=training,
            frozen=translated.frozen,
        )
        proof = check_upgrade(
            Upgrade(loadable(whole, Path(folder)), written, source, translated), keras_python, progress
        )
        proof.report.checkpoint["path"], proof.report.model["path"] = str(old), str(new)
        upgraded = Upgraded(
            dict(Counter(layer.class_name for layer in source.layers.values())),
            translated.layers[0].config["batch_input_shape"],
            outputs,
            _ends_in(source),
            training is not None,
            [*translated.notes, *notes],
            proof,
        )
        if proof.report.verdict != PASS:
            raise UpgradeDiffers(upgraded)
        shutil.copyfile(written, temporary)
    return upgraded


def _check_places(old: Path, new: Path) -> None:
    if new.suffix.lower() not in (".h5", ".hdf5"):
        raise BadInput(f"expected a name that ends in .h5 for the new file, got {new}. Keras knows the format by it.")
    if not new.parent.is_dir():
        raise BadInput(
            f"expected a folder to write {new.name} into, got {new.parent}, which does not exist. Make it first."
        )
    if new.is_dir() or (old.exists() and new.exists() and new.samefile(old)):
        raise BadInput(
            f"expected a place for the new file, got {new}, which is {'a folder' if new.is_dir() else 'the old one'}. "
            "Name another file: the old one stays as it is."
        )


def _translate(file: KerasFile) -> tuple[KerasGraph, UpgradedLayers]:
    if not _is_open(file.config):
        source = read_keras_graph(file, fold_padding=False)
        return source, upgraded_layers(source)
    both = [read_keras_graph(file, size, fold_padding=False) for size in _OPEN_SIZES]
    translated = [upgraded_layers(source, open_size=True) for source in both]
    first, second = ([(layer.class_name, layer.config) for layer in each.layers] for each in translated)
    if first != second:
        raise BadInput(
            "expected a model that does the same at every size, or one that states its size, got one whose layers "
            "depend on the size of the image, which the file leaves open. Load it in its own Keras, call it on "
            "keras.Input((height, width, 3)), and save keras.Model of the two."
        )
    return both[0], translated[0]


def _is_open(config: dict[str, Any]) -> bool:
    """Whether the outermost input leaves height or width open."""
    model = config.get("config")
    layers = model if isinstance(model, list) else model.get("layers") if isinstance(model, dict) else None
    first = layers[0] if isinstance(layers, list) and layers and isinstance(layers[0], dict) else {}
    own = first.get("config")
    own = own if isinstance(own, dict) else {}
    shape = own.get("batch_input_shape") or own.get("batch_shape")
    return isinstance(shape, list) and len(shape) == 4 and None in shape[1:3]


def _model_name(file: KerasFile) -> str:
    model = file.config.get("config")
    name = model.get("name") if isinstance(model, dict) else None
    return name if isinstance(name, str) and name else "model"


def _ends_in(source: KerasGraph) -> str:
    last = source.graph.output
    if last.op == "activation":
        return str(last.attributes["function"])
    return "softmax" if last.op == "softmax" else "logits"
