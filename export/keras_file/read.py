"""Keras HDF5 (`.h5`) -> architecture, weights and facts, without Keras. Damaged or hostile files are refused."""

from __future__ import annotations

import json
import re
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from export.worker.keras_worker import GOLDEN_GROUP, UNREADABLE, Refused, check_storage
from models.bad_input import BadInput

# Tells Keras which generation's weight layout the file has; 2.x is the one that every Keras accepts.
KERAS_VERSION = b"2.10.0"
# The attribute with the facts about the network that Keras has no place for, as JSON.
DETAILS_ATTRIBUTE = "shelftwin"


@dataclass(frozen=True)
class KerasFile:
    """The contents of a Keras `.h5`.

    Attributes:
        config: the model's architecture, Keras's ``model_config``.
        training_config: loss, metrics and optimiser; None if the file has none.
        details: ShelfTwin's own facts (class names, input range, ...); empty for files by others.
        weights: layer name -> its arrays in Keras's order and layout.
        weight_names: layer name -> the arrays' names in the file, in the same order.
        marks: everything else in the file: version and backend of the Keras that saved it, and further groups.
    """

    config: dict[str, Any]
    training_config: dict[str, Any] | None
    details: dict[str, Any]
    weights: dict[str, list[np.ndarray]]
    weight_names: dict[str, list[str]]
    marks: dict[str, str]

    @property
    def generation(self) -> int:
        """2 or 3: which Keras saved it, or rather whose form it has, as our own files have Keras 2's."""
        return 3 if self.marks.get("keras_version", "2").startswith("3") else 2


def read_keras_file(path: Path) -> KerasFile:
    """Read a Keras file of any form without Keras: by what it is, not by its name.

    Args:
        path: a `.h5` or `.hdf5`, a `.keras` archive, or a zip with one of them, such as Teachable Machine's
            `converted_keras.zip`. Nothing is unpacked to disk.

    Raises:
        BadInput: the file is missing, is damaged, or holds no Keras model.
    """
    path = Path(path)
    if path.is_file() and zipfile.is_zipfile(path):
        return _read_zip(path)
    return read_keras_h5(path)


def is_keras_file(path: Path) -> bool:
    """Whether a file is HDF5, or an archive that is named `.keras`; no other file of a network is."""
    if path.suffix.lower() == ".keras" and zipfile.is_zipfile(path):
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


def read_keras_h5(path: Path) -> KerasFile:
    """Read a Keras `.h5` without Keras.

    Raises:
        BadInput: the file is missing, is not HDF5, or holds no Keras model.
    """
    if (path / "saved_model.pb").is_file():
        raise BadInput(
            f"expected a Keras .h5 or .keras file, got {path}, a SavedModel. In the Keras 2 that wrote it: "
            "keras.models.load_model(FOLDER).save('WHOLE.h5'), and give that file."
        )
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise BadInput(f"expected a Keras .h5 or .keras file, got {path}, which {what}. Check the path.")
    if path.suffix.lower() == ".keras" and not h5py.is_hdf5(path):
        raise BadInput(
            f"expected a .keras archive, got {path}, which is no zip as such an archive is. It was not written to the "
            "end, or only a part of it has come: copy, download or save it again."
        )
    try:
        check_storage(str(path))
        with h5py.File(path, "r") as file:
            named = any(each.startswith("layer_names") for each in file.attrs)
            if "model_config" not in file.attrs and (named or "layers" in file or _TF in file):
                raise BadInput(
                    f"expected a Keras file with architecture and weights, got {path}, which has weights alone, as "
                    "save_weights and ModelCheckpoint(save_weights_only=True) write them. Give the network beside it: "
                    "--architecture FILE.json, with what model.to_json() says, or a network of keras.applications as "
                    "in --architecture MobileNetV2,alpha=0.35,size=96,classes=4"
                )
            return file_contents(file)
    except Refused as refused:
        raise BadInput(
            f"expected a Keras .h5 as Keras or this project saves it, got one that is refused: {refused}. Save it "
            "again in the Keras that it comes from, or export it again with: lightning export CKPT OUT.h5"
        ) from refused
    except UNREADABLE as error:
        raise BadInput(
            f"expected a Keras .h5 file with architecture and weights, got {path}, which cannot be read as one "
            f"({type(error).__name__}: {error}). Name another, or export it again with: lightning export CKPT OUT.h5"
        ) from error


# No classifier's architecture is as long, and none of its files has as many bytes; larger ones are not unpacked.
_MOST_JSON = 64 << 20
_MOST_BYTES = 4 << 30
_MOST_LABELS = 1 << 20
# Keras 2's name for the group "layers" in a `.keras` archive.
_TF = "_layer_checkpoint_dependencies"
# What a `.keras` archive has at least.
KERAS_ARCHIVE = ("config.json", "model.weights.h5")


def _read_zip(path: Path) -> KerasFile:
    """A `.keras` archive, or a zip in which a Keras file lies."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if set(KERAS_ARCHIVE) <= set(names):
                config = json.loads(_unpacked(archive, "config.json", _MOST_JSON))
                metadata = (
                    json.loads(_unpacked(archive, "metadata.json", _MOST_JSON)) if "metadata.json" in names else {}
                )
                with _h5_in(archive, "model.weights.h5") as file:
                    return _of_archive(config, metadata, file)
            inside = packed_h5(archive)
            if inside is None:
                raise BadInput(
                    f"expected a .keras archive, or a zip with one .h5 in it, got {path} with "
                    f"{', '.join(names[:6]) or 'nothing'}. Give the Keras file itself."
                )
            with _h5_in(archive, inside) as file:
                return file_contents(file)
    except Refused as refused:
        raise BadInput(
            f"expected a Keras file as Keras saves it, got {path}, which is refused: {refused}. Save it again in "
            "the Keras that it comes from."
        ) from refused
    except (zipfile.BadZipFile, NotImplementedError, EOFError, *UNREADABLE) as error:
        raise BadInput(
            f"expected a .keras archive or a zip with a Keras .h5, got {path}, which cannot be read as one "
            f"({type(error).__name__}: {str(error)[:120]}). Download or save it again."
        ) from error


def _unpacked(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """One file of an archive, in memory; what it claims to be is checked, and what it is."""
    with archive.open(name) as packed:
        content = packed.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{name} is larger than {most >> 20} MiB")
    return content


def packed_h5(archive: zipfile.ZipFile) -> str | None:
    """Name of the only HDF5 file in a zip, such as Teachable Machine's; None for a `.keras` archive, or several."""
    names = archive.namelist()
    inside = [name for name in names if name.lower().endswith((".h5", ".hdf5")) and "__MACOSX" not in name]
    return inside[0] if len(inside) == 1 and not set(KERAS_ARCHIVE) <= set(names) else None


def packed_labels(path: Path) -> str | None:
    """The text of the only ``labels.txt`` in a zip, as Teachable Machine packs it beside the network; else None.

    Raises:
        BadInput: the zip cannot be read, or the text is none.
    """
    if not (path.is_file() and zipfile.is_zipfile(path)):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.rpartition("/")[2].lower() == "labels.txt"]
            names = [name for name in names if "__MACOSX" not in name]
            return _unpacked(archive, names[0], _MOST_LABELS).decode("utf-8-sig") if len(names) == 1 else None
    except (zipfile.BadZipFile, NotImplementedError, EOFError, *UNREADABLE) as error:
        raise BadInput(
            f"expected a readable labels.txt in {path}, got one that cannot be read ({type(error).__name__}: "
            f"{str(error)[:120]}). Download it again, or unpack the zip and give the .h5 in it and --labels."
        ) from error


def unpack_h5(archive: zipfile.ZipFile, name: str, place: Path) -> None:
    """Write a file of a zip under a name of our own; what it unpacks to is counted, whatever it claims.

    Raises:
        ValueError: it is larger than any classifier's.
    """
    left = _MOST_BYTES
    with archive.open(name) as packed, place.open("wb") as file:
        while piece := packed.read(1 << 20):
            left -= len(piece)
            if left < 0:
                raise ValueError(f"{name} is larger than {_MOST_BYTES >> 30} GiB")
            file.write(piece)


@contextmanager
def _h5_in(archive: zipfile.ZipFile, name: str) -> Iterator[h5py.File]:
    """An HDF5 file inside an archive: as a temporary file under a name of our own, for the check of its storage."""
    with tempfile.TemporaryDirectory(prefix="shelftwin-") as folder:
        own = Path(folder) / "weights.h5"
        unpack_h5(archive, name, own)
        check_storage(str(own))
        with h5py.File(own, "r") as opened:
            yield opened


def loadable(path: Path, folder: Path) -> Path:
    """The file that Keras itself loads: of a zip with one `.h5` in it, that `.h5`, unpacked into `folder`.

    Raises:
        BadInput: the zip cannot be read.
    """
    if not (path.is_file() and zipfile.is_zipfile(path)):
        return path
    try:
        with zipfile.ZipFile(path) as archive:
            inside = packed_h5(archive)
            if inside is None:
                return path
            unpack_h5(archive, inside, folder / "unpacked.h5")
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError) as error:
        raise BadInput(
            f"expected a zip with a Keras .h5, got {path}, which cannot be unpacked ({type(error).__name__}: "
            f"{str(error)[:120]}). Download it again."
        ) from error
    return folder / "unpacked.h5"


def _version(attributes: Any, config: dict[str, Any], metadata: dict[str, Any] | None = None) -> dict[str, str]:
    found = (metadata or {}).get("keras_version") or config.get("keras_version") or attributes.get("keras_version", "2")
    return {"keras_version": found.decode() if isinstance(found, bytes) else str(found)}


def _of_archive(config: dict[str, Any], metadata: dict[str, Any], file: h5py.File) -> KerasFile:
    """From a `.keras` archive, or the weights of one: arrays lie under the classes of their layers, without names."""
    weights: dict[str, dict[str, np.ndarray]] = {}
    root = next((name for name in ("layers", _TF) if name in file), "")
    if not root:
        raise ValueError("the weights have no layers")
    if "layers" in config["config"]:  # else a class of its own, which is refused by its name
        _collect(config["config"], file, (), weights)
    names = {key: list(arrays) for key, arrays in weights.items()}
    arrays = {key: list(each.values()) for key, each in weights.items()}
    compiled: Any = config.get("compile_config")
    training = {"optimizer_config": compiled["optimizer"], **compiled} if _has_optimiser(compiled) else None
    return KerasFile(config, training, {}, arrays, names, _version(file.attrs, config, metadata))


def _has_optimiser(compiled: Any) -> bool:
    return isinstance(compiled, dict) and isinstance(compiled.get("optimizer"), dict)


def _collect(config: Any, group: h5py.Group, path: tuple[str, ...], found: dict[str, dict[str, np.ndarray]]) -> None:
    """Arrays by the layer's key. A group is named by the layer's class, with a number from the second on.

    Mirrors ``_save_container_state`` in ``keras/src/saving/saving_lib.py``. Where the group says its layer's name, as
    newer Kerases write it, that must be this layer's, but for the number that Keras gives it: code that is run again
    makes dense_1 of dense. Keras 2 counts a layer with weights twice.
    """
    inside = next((group[name] for name in ("layers", _TF) if name in group), None)
    seen: dict[str, int] = {}
    for layer in config["layers"]:
        if ".ops." in str(layer.get("module")):
            continue  # a bare operation is no layer
        kind = snake_case(_OWN_NAMES.get(layer["class_name"], layer["class_name"]))
        number = seen.get(kind, 0)
        name = layer.get("name") or layer["config"]["name"]
        own = None if inside is None else inside.get(f"{kind}_{number}" if number else kind)
        seen[kind] = number + (2 if own is not None and _TF in group and _has_arrays(own) else 1)
        if own is not None and isinstance(layer["config"].get("layer"), dict):
            own = own.get("layer")  # what is inside a TimeDistributed, which has no arrays itself
        if own is None:
            continue
        if "layers" in layer["config"]:
            _collect(layer["config"], own, (*path, name), found)
        elif "vars" in own:
            stated = name if "layer" in layer["config"] else own["vars"].attrs.get("name", name)
            if _unnumbered(stated) != _unnumbered(name):
                raise ValueError(f"the weights of {stated} lie where those of {name} should")
            arrays = _numbered(own["vars"])
            if layer["class_name"] in COMPOSED:
                parts = [part for part in own if part.endswith("_dense")]
                arrays = {
                    f"{part}/{place}": each for part in parts for place, each in _numbered(own[part]["vars"]).items()
                }
            if arrays:
                found["/".join((*path, name))] = arrays


def _numbered(group: h5py.Group) -> dict[str, np.ndarray]:
    return {str(place): group[str(place)][()] for place in range(len(group))}


# Layers that consist of layers, whose arrays have the part's name before their own: query/kernel.
COMPOSED = ("MultiHeadAttention", "GroupQueryAttention", "GroupedQueryAttention")
# What Keras calls a class outside -> the class's own name, after which a group is named.
_OWN_NAMES = {"GroupQueryAttention": "GroupedQueryAttention"}


def _has_arrays(group: h5py.Group) -> bool:
    return bool(group.visititems(lambda name, item: isinstance(item, h5py.Dataset) or None))


def _unnumbered(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def snake_case(class_name: str) -> str:
    """Mirrors ``to_snake_case`` in ``keras/src/utils/naming.py``: the names of the groups in a `.keras` archive."""
    name = re.sub(r"\W+", "", class_name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def file_contents(file: h5py.File) -> KerasFile:
    """Read an open file without any checks; if something cannot be read, h5py's or json's exception is raised."""
    weights, names = _read_weights(file["model_weights"])
    return KerasFile(
        config=_json_attribute(file, "model_config"),
        training_config=_json_attribute(file, "training_config") if "training_config" in file.attrs else None,
        details=_json_attribute(file, DETAILS_ATTRIBUTE) if DETAILS_ATTRIBUTE in file.attrs else {},
        weights=weights,
        weight_names=names,
        marks=_marks(file),
    )


def _json_attribute(file: h5py.File, name: str) -> dict[str, Any]:
    value = file.attrs[name]
    content = json.loads(value.decode() if isinstance(value, bytes) else value)
    if not isinstance(content, dict):
        raise ValueError(f"{name} is no JSON object")
    return content


# What our own files contain besides architecture, training configuration, details and weights.
OWN_MARKS = {
    "backend": "tensorflow",
    "keras_version": KERAS_VERSION.decode(),
    "model_weights/backend": "tensorflow",
    "model_weights/keras_version": KERAS_VERSION.decode(),
    "groups": f"model_weights {GOLDEN_GROUP}",
}


def _marks(file: h5py.File) -> dict[str, str]:
    elsewhere = ("model_config", "training_config", DETAILS_ATTRIBUTE, "layer_names")
    places = {"": file, "model_weights/": file["model_weights"]}
    marks = {
        place + name: value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        for place, group in places.items()
        for name, value in group.attrs.items()
        if name not in elsewhere and not re.fullmatch(r"layer_names\d+", name)
    }
    return {**marks, "groups": " ".join(sorted(file))}


def _read_weights(group: h5py.Group) -> tuple[dict[str, list[np.ndarray]], dict[str, list[str]]]:
    """Arrays and their names by layer. Each dataset of the group must be listed exactly once."""
    weights, names = {}, {}
    for layer_name in _names(group, "layer_names"):
        layer_group = group[layer_name]
        names[layer_name] = _names(layer_group, "weight_names")
        weights[layer_name] = [layer_group[name][()] for name in names[layer_name]]
    listed = sorted(f"{layer}/{name}" for layer, each in names.items() for name in each)
    stored: list[str] = []
    group.visititems(lambda name, item: stored.append(name) if isinstance(item, h5py.Dataset) else None)
    if listed != sorted(stored):
        different = sorted(set(listed) ^ set(stored)) or listed
        raise ValueError(f"{different[0]} is not both stored and listed, once")
    return weights, names


def _names(group: h5py.Group, attribute: str) -> list[str]:
    parts = [group.attrs[attribute]] if attribute in group.attrs else _parts(group, attribute)
    return [name.decode() if isinstance(name, bytes) else str(name) for part in parts for name in part]


def _parts(group: h5py.Group, attribute: str) -> list[Any]:
    count = sum(re.fullmatch(rf"{attribute}\d+", name) is not None for name in group.attrs)
    if not count:
        raise KeyError(f"no {attribute}")
    return [group.attrs[f"{attribute}{place}"] for place in range(count)]


# HDF5 holds no attribute of more than 64 KiB; Keras splits what comes near it.
_MOST_ATTRIBUTE = 64512


def names_attributes(attribute: str, names: list[str]) -> dict[str, np.ndarray]:
    """Attributes that hold a list of names: one, or where it would be too long ``attribute0``, ``attribute1``, ...

    Mirrors ``save_attributes_to_hdf5_group`` in ``keras/src/legacy/saving/legacy_h5_format.py``.
    """
    array = np.array([name.encode() for name in names], dtype=None if names else "S1")
    count = max(1, -(-array.nbytes // _MOST_ATTRIBUTE))
    if count == 1:
        return {attribute: array}
    return {f"{attribute}{place}": part for place, part in enumerate(np.array_split(array, count + 1))}
