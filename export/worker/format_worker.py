"""Converts a Keras `.h5` to other formats and runs them, in a process of its own; request and reply are files.

    python format_worker.py REQUEST.json REPLY.json
    python format_worker.py stream FORMAT MODEL

Needs an interpreter with TensorFlow and the format's packages (tf2onnx and onnxruntime, or onnx2tf). Of ShelfTwin's own
files it needs only `keras_worker.py` beside it, which loads the `.h5` and refuses any that could run code.

REQUEST.json: ``{"tasks": [{"task": NAME, ...}, ...]}``; `TASKS` lists what each task takes and gives. REPLY.json:
``{"versions": {...}, "results": [...]}`` with one result for each task, or ``{"error": TEXT, "kind": "model" | "keras"
| "package" | "fault"}`` with exit code 1. A result of ``{"failed": TEXT}`` means that this task failed; the others are
still done. Arrays are passed as .npy files, images in NHWC.

`stream` opens one model of one of `RUNNERS` and does ``predict`` tasks with it as they come, as `keras_worker.stream`
says; it needs nothing but what runs that format.
"""

from __future__ import annotations

# This import must come first. Run as a script, Python looks for modules in this folder first, where our trace.py would
# hide the standard library's. Importing keras_worker takes the folder off the import path again.
import keras_worker

# isort: split
import functools
import json
import os
import platform
import shutil
import sys
import time
import traceback
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever the user has set: the converters need TensorFlow's graphs
# Name of the file with the facts about the network, in formats that have no attributes of their own.
FACTS_FILE = "labels.json"
# Old enough for the runtimes in phones and browsers, and sufficient for these networks.
OPSET = 15
ONNX2TF_SAMPLES = "calibration_image_sample_data_20x128x128x3_float32.npy"
PACKAGES = ("tensorflow", "keras", "tf_keras", "tf2onnx", "onnx2tf", "onnx", "onnxruntime", "numpy")


# Making: (`.h5`, where to, task dictionary) -> nothing ----------------------------------------------------------------


@functools.cache
def keras_model(h5: str) -> Any:
    """The `.h5`, loaded only once for all the formats that are made from it."""
    return keras_worker.load(keras_worker.find_keras(), h5)


@functools.cache
def exported(h5: str, beside: Path) -> Path:
    """Keras's own export of the `.h5` in a folder of its own, made only once for all formats that start from it."""
    folder = beside / ".exported"
    keras_model(h5).export(str(folder), format="tf_saved_model", verbose=False)
    return folder


def make_saved_model(h5: str, path: Path, task: dict[str, Any]) -> None:
    """Keras's own export, batch size free; the facts go into ``assets.extra``, SavedModel's folder for users' files."""
    shutil.copytree(exported(h5, path.parent), path)
    extra = path / "assets.extra"
    extra.mkdir(exist_ok=True)
    (extra / FACTS_FILE).write_text(json.dumps(task["details"], indent=2))


def make_onnx(h5: str, path: Path, task: dict[str, Any]) -> None:
    """With tf2onnx: float32, NHWC as in Keras, batch size free; the facts go into ``metadata_props``."""
    import onnx
    import tensorflow as tf
    import tf2onnx

    model = keras_model(h5)
    image = tf.TensorSpec(model.input_shape, tf.float32, name="image")
    proto, _ = tf2onnx.convert.from_keras(model, input_signature=(image,), opset=OPSET)
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in task.get("details", {}).items()
        if value is not None
    }
    onnx.helper.set_model_props(proto, texts)
    onnx.checker.check_model(proto)
    onnx.save(proto, str(path))


def make_tflite(h5: str, path: Path, task: dict[str, Any]) -> None:
    """With the TFLite converter, float32."""
    write_tflite(path, tflite_converter(h5, path).convert(), task["details"])


def make_tflite_float16(h5: str, path: Path, task: dict[str, Any]) -> None:
    """With the TFLite converter: weights in float16, half the size; it computes in float32 where nothing else is."""
    import tensorflow as tf

    converter = tflite_converter(h5, path)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    write_tflite(path, converter.convert(), task["details"])


def make_tflite_int8(h5: str, path: Path, task: dict[str, Any]) -> None:
    """With the TFLite converter: int8 weights and activations, uint8 in and out; ranges from representative photos."""
    import tensorflow as tf

    count, batch = keras_worker.images(task["photos"]["inputs"], task["photos"]["scale"])
    white = np.float32(255 if task["photos"]["scale"] == 1 else 1)

    def representative() -> Iterator[list[np.ndarray]]:
        # An all-black and an all-white image, so that the input range is exactly 0..255: then a step of the input is
        # one level of a uint8 photo, and a photo's bytes can be used unchanged.
        yield [np.zeros_like(batch(0, 1))]
        yield [np.full_like(batch(0, 1), white)]
        for index in range(count):
            yield [batch(index, index + 1)]

    converter = tflite_converter(h5, path)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative
    # Nothing may fall back to float: an integer-only accelerator could not run it.
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.uint8
    content = converter.convert()
    step, zero = tf.lite.Interpreter(model_content=content).get_input_details()[0]["quantization"]
    if zero != 0 or not np.isclose(step * 255, white):
        raise RuntimeError(f"a photo's bytes do not go in as they are: the input's step is {step}, its zero {zero}")
    write_tflite(path, content, task["details"])


def tflite_converter(h5: str, path: Path) -> Any:
    """A converter that starts from the SavedModel that Keras exports: the best tested way into TFLite."""
    import tensorflow as tf

    return tf.lite.TFLiteConverter.from_saved_model(str(exported(h5, path.parent)))


def write_tflite(path: Path, content: bytes, details: dict[str, Any]) -> None:
    """Write the model and append a zip archive with the facts, which is TFLite's own way to pack files with a model."""
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(FACTS_FILE, json.dumps(details, indent=2))


# Running: a file -> function of a float32 batch (N, H, W, 3) that gives float32 (N, C) ----------------------------


class Runner(NamedTuple):
    """A model in its runtime.

    Attributes:
        run: float32 (N, H, W, 3) -> float32 (N, C).
        input_shape: as the file states it, with None for what may vary.
        output_shape: the same.
        is_quantised: whether the outputs are integers, which do not add up to 1.
    """

    run: Callable[[np.ndarray], np.ndarray]
    input_shape: list[int | None]
    output_shape: list[int | None]
    is_quantised: bool = False


def run_keras(path: str) -> Runner:
    """Keras itself."""
    model = keras_model(path)
    shapes = list(model.input_shape), list(model.output_shape)
    return Runner(lambda batch: np.asarray(model.predict_on_batch(batch)), *shapes)


def run_saved_model(path: str) -> Runner:
    """TensorFlow, through the default signature for serving."""
    import tensorflow as tf

    model = tf.saved_model.load(path)
    serve = model.signatures["serving_default"]
    ((name, given),) = serve.structured_input_signature[1].items()
    (gives,) = serve.structured_outputs.values()

    def run(batch: np.ndarray) -> np.ndarray:
        # through the model, as the signature does not keep the weights alive
        (output,) = model.signatures["serving_default"](**{name: tf.constant(batch)}).values()
        return output.numpy()

    return Runner(run, given.shape.as_list(), gives.shape.as_list())


def run_onnx(path: str) -> Runner:
    """ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,), (gives,) = session.get_inputs(), session.get_outputs()
    takes, shape = ([side if isinstance(side, int) else None for side in each.shape] for each in (given, gives))
    return Runner(lambda batch: session.run(None, {given.name: batch})[0], takes, shape)


def run_tflite(path: str) -> Runner:
    """TFLite's interpreter, TensorFlow's or LiteRT's; a quantised model's numbers are scaled as its file states."""
    try:
        from tensorflow import lite
    except ModuleNotFoundError:  # an environment of somebody who has LiteRT alone
        from ai_edge_litert import interpreter as lite

    interpreter = lite.Interpreter(path)
    given, gives = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    shapes: list[tuple[int, ...]] = []

    def run(batch: np.ndarray) -> np.ndarray:
        if shapes != [batch.shape]:
            interpreter.resize_tensor_input(given["index"], batch.shape)
            interpreter.allocate_tensors()
            shapes[:] = [batch.shape]
        interpreter.set_tensor(given["index"], quantised(batch, given))
        interpreter.invoke()
        return dequantised(interpreter.get_tensor(gives["index"]), gives)

    takes, shape = ([None if side < 0 else int(side) for side in each["shape_signature"]] for each in (given, gives))
    return Runner(run, takes, shape, is_quantised=gives["dtype"] != np.float32)


def quantised(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """Float32 values as the tensor holds them."""
    if tensor["dtype"] == np.float32:
        return values
    scale, zero = tensor["quantization"]
    limits = np.iinfo(tensor["dtype"])
    return np.clip(np.round(values / scale) + zero, limits.min, limits.max).astype(tensor["dtype"])


def dequantised(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """The tensor's values as float32."""
    if tensor["dtype"] == np.float32:
        return values
    scale, zero = tensor["quantization"]
    return (values.astype(np.float32) - zero) * np.float32(scale)


# The facts, read back from a file as its user would -------------------------------------------------------------------


def facts_of_keras(path: str) -> dict[str, Any]:
    """From the attribute ``shelftwin``."""
    import h5py

    with h5py.File(path, "r") as file:
        return json.loads(file.attrs["shelftwin"])


def facts_of_saved_model(path: str) -> dict[str, Any]:
    """From ``assets.extra``."""
    return json.loads((Path(path) / "assets.extra" / FACTS_FILE).read_text())


def facts_of_onnx(path: str) -> dict[str, Any]:
    """From ``metadata_props``, where lists are JSON."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    texts = session.get_modelmeta().custom_metadata_map
    return {name: json.loads(text) if text.startswith("[") else text for name, text in texts.items()}


def facts_of_tflite(path: str) -> dict[str, Any]:
    """From the zip archive that is appended to the model."""
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(FACTS_FILE))


MAKERS = {
    "saved_model": make_saved_model,
    "onnx": make_onnx,
    "tflite": make_tflite,
    "tflite_float16": make_tflite_float16,
    "tflite_int8": make_tflite_int8,
}
RUNNERS = {
    "keras": run_keras,
    "saved_model": run_saved_model,
    "onnx": run_onnx,
    "tflite": run_tflite,
    "tflite_float16": run_tflite,
    "tflite_int8": run_tflite,
}
READERS = {
    "keras": facts_of_keras,
    "saved_model": facts_of_saved_model,
    "onnx": facts_of_onnx,
    "tflite": facts_of_tflite,
    "tflite_float16": facts_of_tflite,
    "tflite_int8": facts_of_tflite,
}


# Tasks: task dictionary -> result dictionary --------------------------------------------------------------------------


def make(task: dict[str, Any]) -> dict[str, Any]:
    """``h5``, ``format``, ``path``, ``details`` (JSON facts), for tflite_int8 ``photos`` -> the file or folder."""
    MAKERS[task["format"]](task["h5"], Path(task["path"]), task)
    return {}


def from_onnx(task: dict[str, Any]) -> dict[str, Any]:
    """``onnx``, ``path`` -> a SavedModel folder there, by onnx2tf."""
    import onnx2tf

    # onnx2tf runs onnxsim as a command; without it, computed paddings stay computed and end up on the wrong axes.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    # onnx2tf tries its operations on sample photos; it would download them if they were not in the working directory.
    folder = Path(task["path"]).parent
    os.chdir(folder)
    np.save(str(folder / ONNX2TF_SAMPLES), np.random.default_rng(0).random((20, 128, 128, 3), np.float32))
    try:
        onnx2tf.convert(
            input_onnx_file_path=task["onnx"],
            output_folder_path=task["path"],
            output_signaturedefs=True,
            non_verbose=True,
        )
    except SystemExit as leaving:  # this is how onnx2tf reports a failure
        raise RuntimeError(f"onnx2tf gave up on {task['onnx']} with exit code {leaving.code}") from leaving
    return {}


def predict(task: dict[str, Any]) -> dict[str, Any]:
    """``format``, ``path``, ``inputs`` (N, H, W, 3) .npy, ``scale``, ``batch_size`` -> ``outputs`` .npy, (N, C)."""
    run = opened(task["format"], task["path"]).run
    count, batch = keras_worker.images(task["inputs"], task["scale"])
    size = task["batch_size"]
    np.save(task["outputs"], np.concatenate([run(batch(start, start + size)) for start in range(0, count, size)]))
    return {"count": count}


@functools.cache
def opened(name: str, path: str) -> Runner:
    """A file in its runtime; opened only once for all sets of images."""
    return RUNNERS[name](path)


def facts(task: dict[str, Any]) -> dict[str, Any]:
    """``format``, ``path`` -> ``facts``: the facts stored in the file."""
    return {"facts": READERS[task["format"]](task["path"])}


TASKS = {"make": make, "from_onnx": from_onnx, "predict": predict, "facts": facts}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Do the tasks in order; if one fails, the others are still done."""
    results = []
    for task in request["tasks"]:
        start = time.perf_counter()
        try:
            result = TASKS[task["task"]](task)
        except keras_worker.Refused:
            raise
        except ModuleNotFoundError as error:
            raise keras_worker.Refused("package", f"{sys.executable} lacks a package: {error}") from error
        except Exception as error:  # a converter can raise anything
            traceback.print_exc()
            result = {"failed": (str(error).strip() or type(error).__name__).splitlines()[0]}
        results.append({**result, "seconds": round(time.perf_counter() - start, 2)})
    return {"versions": versions(), "results": results}


def opened_file(name: str, path: str) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """A file of a format for `keras_worker.stream`.

    Raises:
        keras_worker.Refused: its runtime is not installed, or does not take the file.
    """
    try:
        found = opened(name, path)
    except ModuleNotFoundError as error:
        raise keras_worker.Refused("package", f"{sys.executable} lacks a package: {error}") from error
    except Exception as error:  # a runtime can raise anything
        traceback.print_exc()
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise keras_worker.Refused("format", f"{path} cannot be run as {name}: {first_line}") from error
    about = {"input_shape": found.input_shape, "output_shape": found.output_shape, "is_quantised": found.is_quantised}
    return {"versions": versions(), **about}, lambda task: predict({**task, "format": name, "path": path})


def versions() -> dict[str, str]:
    """Versions of all packages that computed here."""
    computed = {package: version(package) for package in PACKAGES if package in sys.modules}
    return {"python": platform.python_version(), **computed}


if __name__ == "__main__":
    if sys.argv[1:2] == ["stream"] and len(sys.argv) == 4:
        sys.exit(keras_worker.stream(lambda: opened_file(*sys.argv[2:])))
    sys.exit(keras_worker.main(sys.argv[1], sys.argv[2], run) if len(sys.argv) == 3 else __doc__)
