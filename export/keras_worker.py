"""Runs Keras models in a process of its own, for whoever asks through files.

    python keras_worker.py REQUEST.json REPLY.json

Standalone: the standard library, numpy, h5py (which every Keras brings) and whichever Keras the interpreter has;
nothing of ShelfTwin's, and never our torch. It therefore runs under the interpreter of any team that has a Keras:
tf.keras 2.x, tf_keras, Keras 3 on any backend.

REQUEST.json: ``{"jobs": [{"model": PATH, "tasks": [{"task": NAME, ...}, ...]}, ...]}``; `TASKS` says what each task
takes and gives. REPLY.json: ``{"versions": {...}, "results": [[...], ...]}``, a list for each job, or
``{"error": TEXT, "kind": "model" | "keras" | "fault"}``
with exit code 1. Arrays travel as .npy and .npz files, paths in the request. Layout is Keras's, NHWC.

Files whose model holds Lambda or other layers that are not Keras's own are refused before Keras sees them: they could
run code.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
import traceback
from pathlib import Path

# Run by path, Python puts this folder first on the import path, where our trace.py would hide the standard one.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]

from typing import TYPE_CHECKING, Any  # noqa: E402

import numpy as np  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# What `keras_h5.py` writes and what classifiers of the MobileNet era hold; none of these can run foreign code.
KNOWN_LAYERS = frozenset(
    (
        "InputLayer",
        "Rescaling",
        "Normalization",
        "Conv2D",
        "DepthwiseConv2D",
        "SeparableConv2D",
        "ZeroPadding2D",
        "Cropping2D",
        "BatchNormalization",
        "LayerNormalization",
        "ReLU",
        "LeakyReLU",
        "PReLU",
        "Softmax",
        "Activation",
        "Add",
        "Subtract",
        "Multiply",
        "Concatenate",
        "Average",
        "Maximum",
        "GlobalAveragePooling2D",
        "GlobalMaxPooling2D",
        "AveragePooling2D",
        "MaxPooling2D",
        "Dropout",
        "SpatialDropout2D",
        "Dense",
        "Flatten",
        "Reshape",
        "Permute",
        "UpSampling2D",
        "Functional",
        "Model",
        "Sequential",
    )
)


class Refused(Exception):
    """The model file, or this interpreter, cannot be used; the text says why."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def find_keras() -> Any:
    """The Keras of this interpreter: Keras 3 where there is one, else tf.keras, else tf_keras."""
    failures = []
    try:
        import keras

        if int(keras.__version__.split(".")[0]) >= 3:
            return keras
    except ImportError as error:
        failures.append(f"keras: {error}")
    try:
        from tensorflow import keras

        return keras
    except ImportError as error:
        failures.append(f"tensorflow.keras: {error}")
    try:
        import tf_keras

        return tf_keras
    except ImportError as error:
        failures.append(f"tf_keras: {error}")
    raise Refused("keras", f"{sys.executable} has no Keras ({'; '.join(failures)})")


def versions(keras: Any) -> dict[str, str]:
    """Versions of all that computes here."""
    backend = keras.backend.backend() if hasattr(keras.backend, "backend") else "tensorflow"
    found = {"python": platform.python_version(), "keras": _version(keras), "backend": backend, "numpy": np.__version__}
    for name in ("tensorflow", "jax", "torch"):
        if name in sys.modules:
            found[name] = _version(sys.modules[name])
    return found


def _version(module: Any) -> str:
    # tf.keras 2.13 to 2.15 is the package keras without its version
    return str(getattr(module, "__version__", None) or getattr(sys.modules.get("keras"), "__version__", "unknown"))


def read_architecture(path: str) -> dict[str, Any]:
    """The file's ``model_config``, read without Keras."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            config = file.attrs["model_config"]
            return json.loads(config.decode() if isinstance(config, bytes) else config)
    except (OSError, KeyError, ValueError) as error:
        raise Refused("model", f"{path} is not a Keras .h5 with an architecture: {error}") from error


def check_layers(path: str) -> None:
    """Refuse a file with layers that are not known; nothing in the file has been run by then."""
    unknown = sorted(set(_class_names(read_architecture(path))) - KNOWN_LAYERS)
    if unknown:
        raise Refused(
            "model", f"{path} holds layers that are refused because they could run code: {', '.join(unknown)}"
        )


def _class_names(config: dict[str, Any]) -> Iterator[str]:
    """Class names of a model and of all layers in it, nested models included."""
    yield config["class_name"]
    inner = config.get("config", {})
    for layer in inner.get("layers", []) if isinstance(inner, dict) else []:
        yield from _class_names(layer)
    if isinstance(inner, dict) and isinstance(inner.get("layer"), dict):
        yield from _class_names(inner["layer"])


def load(keras: Any, path: str) -> Any:
    """`load_model(path)` as any user would: no custom objects, compiled as the file says."""
    check_layers(path)
    try:
        return keras.models.load_model(path)
    except Exception as error:  # Keras raises whatever its layers raise
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refused("model", f"Keras {_version(keras)} cannot load {path}: {first_line}") from error


def images(path: str, scale: float) -> tuple[int, Callable[[int, int], np.ndarray]]:
    """Source of batches: an .npy of shape (N, H, W, 3), memory-mapped; values are multiplied by `scale`, in float32."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)

    def batch(start: int, stop: int) -> np.ndarray:
        part = np.asarray(array[start:stop]).astype(np.float32)
        return part * np.float32(scale) if scale != 1 else part

    return len(array), batch


# Tasks: (keras, model, task dictionary) -> result dictionary ----------------------------------------------------------


def predict(keras: Any, model: Any, task: dict[str, Any]) -> dict[str, Any]:
    """``inputs`` (N, H, W, 3) .npy, ``scale``, ``batch_size`` -> ``outputs`` .npy, float32 probabilities (N, C)."""
    count, batch = images(task["inputs"], task["scale"])
    size = task.get("batch_size", 32)
    outputs = [np.asarray(model.predict_on_batch(batch(start, start + size))) for start in range(0, count, size)]
    np.save(task["outputs"], np.concatenate(outputs))
    return {"count": count}


def weights(keras: Any, model: Any, task: dict[str, Any]) -> dict[str, Any]:
    """``outputs`` .npz: the arrays as Keras holds them after loading, ``LAYER/INDEX`` in Keras's order."""
    arrays = {
        f"{layer.name}/{index}": array for layer in model.layers for index, array in enumerate(layer.get_weights())
    }
    np.savez(task["outputs"], **arrays)
    return {"count": len(arrays)}


def layers(keras: Any, model: Any, task: dict[str, Any]) -> dict[str, Any]:
    """``inputs`` (N, H, W, 3) float64 .npy, ``names`` -> ``folder``/INDEX.npy: each layer's output, all in float64."""
    usual = keras.backend.floatx()
    keras.backend.set_floatx("float64")  # Keras 2 casts what it is given to this
    try:
        twin = in_float64(keras, task["model"], Path(task["folder"]) / "float64.h5")
        outputs = [twin.get_layer(name).output for name in task["names"]]
        values = keras.models.Model(twin.inputs, outputs).predict_on_batch(np.load(task["inputs"], allow_pickle=False))
    finally:
        keras.backend.set_floatx(usual)
    for index, value in enumerate(values):
        np.save(str(Path(task["folder"]) / f"{index}.npy"), np.asarray(value))
    return {"count": len(values)}


def train(keras: Any, model: Any, task: dict[str, Any]) -> dict[str, Any]:
    """``inputs`` (B, H, W, 3) and ``targets`` (B, C), float64 .npy, ``steps``, ``copy`` -> ``outputs`` .npz.

    Optimiser steps in float64 with the training configuration that the file has, as whoever goes on training makes
    them; dropout off and BatchNorm in inference mode, so that they are no matter of chance or of the batch. The arrays
    afterwards are named as by `weights`. Gives ``failed`` where this Keras does not train the model.
    """

    def hold_still(layer: dict[str, Any]) -> None:
        if layer["class_name"] == "Dropout":
            layer["config"]["rate"] = 0.0
        if layer["class_name"] == "BatchNormalization":
            layer["config"]["trainable"] = False

    usual = keras.backend.floatx()
    keras.backend.set_floatx("float64")
    try:
        twin = in_float64(keras, task["model"], Path(task["copy"]), compiled=True, change=hold_still)
        inputs, targets = (np.load(task[name], allow_pickle=False) for name in ("inputs", "targets"))
        try:
            for _ in range(task["steps"]):
                twin.train_on_batch(inputs, targets)
        except Exception as error:  # Keras raises whatever its layers raise
            return {"failed": (str(error).strip() or type(error).__name__).splitlines()[0]}
        return weights(keras, twin, task)
    finally:
        keras.backend.set_floatx(usual)


def files(keras: Any, model: Any, task: dict[str, Any]) -> dict[str, Any]:
    """``files``, ``image_size`` [h, w], ``interpolation``, ``scale`` -> ``pixels`` and ``outputs`` .npy.

    Photos as this Keras loads them, uint8 (N, H, W, 3), and their probabilities (N, C). Gives ``skipped`` where Keras
    cannot load any, and ``unreadable``: index -> reason, of those it cannot load, whose pixels are zeros.
    """
    pixels = np.zeros((len(task["files"]), *task["image_size"], 3), np.uint8)
    unreadable = {}
    for index, path in enumerate(task["files"]):
        try:
            photo = keras.utils.load_img(path, target_size=task["image_size"], interpolation=task["interpolation"])
            pixels[index] = np.asarray(photo)
        except ImportError as error:
            return {"skipped": str(error)}
        except Exception as error:  # Pillow raises whatever its readers raise
            unreadable[str(index)] = (str(error).strip() or type(error).__name__).splitlines()[0]
    np.save(task["pixels"], pixels)
    return {"unreadable": unreadable, **predict(keras, model, {**task, "inputs": task["pixels"]})}


def in_float64(
    keras: Any,
    path: str,
    copy: Path,
    compiled: bool = False,
    change: Callable[[dict[str, Any]], None] = lambda layer: None,
) -> Any:
    """The same file with every layer computing in float64: only the dtype in its architecture is changed.

    Args:
        keras: this interpreter's.
        path: of the `.h5`.
        copy: where the changed file goes.
        compiled: as the file says, for training.
        change: what else is to be changed in a layer of the architecture.
    """
    import h5py

    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)  # without it jax computes float64 in float32, silently
    shutil.copy(path, str(copy))
    config = read_architecture(path)
    for layer in config["config"]["layers"]:
        layer["config"]["dtype"] = "float64"
        change(layer)
    with h5py.File(str(copy), "r+") as file:
        file.attrs["model_config"] = json.dumps(config).encode()
    twin = keras.models.load_model(str(copy), compile=compiled)
    for layer in twin.layers:
        if type(layer).__name__ == "Rescaling":
            # Python numbers would be rounded to float32 before they are cast to float64
            layer.scale, layer.offset = np.asarray(layer.scale, "float64"), np.asarray(layer.offset, "float64")
        if type(layer).__name__ == "Activation" and getattr(layer.activation, "__name__", "") == "gelu":
            layer.activation = exact_gelu(keras)  # TensorFlow's rounds the square root of 2 to float32
    return twin


def exact_gelu(keras: Any) -> Callable[[Any], Any]:
    """X * Phi(x) with constants in float64; ``erf`` is the backend's."""
    if hasattr(keras, "ops"):
        erf = keras.ops.erf
    else:
        from tensorflow import math

        erf = math.erf
    root = np.sqrt(np.float64(2))
    return lambda x: x * (erf(x / root) + 1.0) * 0.5


TASKS = {"predict": predict, "weights": weights, "layers": layers, "train": train, "files": files}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Do the jobs in order; each loads its model once and does its tasks."""
    keras = find_keras()
    results = []
    for job in request["jobs"]:
        model = load(keras, job["model"])
        results.append([TASKS[task["task"]](keras, model, {**task, "model": job["model"]}) for task in job["tasks"]])
    return {"versions": versions(keras), "results": results}


def main(request_path: str, reply_path: str, run: Callable[[dict[str, Any]], dict[str, Any]] = run) -> int:
    """Read the request, write the reply; exit code 0 only if every task was done."""
    request = json.loads(Path(request_path).read_text())
    try:
        reply = run(request)
    except Refused as refused:
        reply = {"error": str(refused), "kind": refused.kind}
    except Exception:
        reply = {"error": traceback.format_exc(), "kind": "fault"}
    Path(reply_path).write_text(json.dumps(reply))
    return 1 if "error" in reply else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2]))
