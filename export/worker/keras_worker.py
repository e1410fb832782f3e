"""Runs Keras models in a process of its own, and verifies a `.h5` for the team that received it.

    python keras_worker.py verify MODEL.h5
    python keras_worker.py REQUEST.json REPLY.json
    python keras_worker.py stream MODEL.h5

Standalone: it needs the standard library, numpy, h5py (which every Keras installs) and whichever Keras the interpreter
has, but nothing else of ShelfTwin, and never torch. So it runs under the interpreter of any team that has a Keras:
tf.keras 2.x, tf_keras, Keras 3 on any backend.

`verify` is for a team that was given a `.h5` of ShelfTwin and has neither torch nor the checkpoint; see the function.

REQUEST.json: ``{"jobs": [{"model": PATH, "tasks": [{"task": NAME, ...}, ...]}, ...]}``; `TASKS` lists what each task
takes and gives. A job may say ``"compile": false``, to leave out the file's training configuration, and ``"may_refuse":
true``: if Keras cannot load its model, its result is ``[{"refused": TEXT}]`` and the next job is done.
REPLY.json: ``{"versions": {...}, "results": [[...], ...], "processor_seconds": {...}}`` with one list for each job, or
``{"error": TEXT, "kind": "model" | "keras" | "fault"}`` with exit code 1. Arrays are passed as .npy and .npz files,
with paths in the request. Layout is Keras's, NHWC.

`stream` is for tasks that are not all known at the start. Each line of stdin is a task, each line of stdout a reply;
see the function.

Files whose model contains Lambda or other layers that are not Keras's own are refused before Keras sees them, because
they could run code.
"""

from __future__ import annotations

import base64
import faulthandler
import hashlib
import io
import json
import math
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

# Run as a script, Python puts this folder first on the import path, where our trace.py would hide the standard one.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]

from typing import TYPE_CHECKING, Any, NamedTuple  # noqa: E402

try:
    import numpy as np
except ImportError:  # reported by `check_packages`: a wrong interpreter is not a crash
    np = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# The layers that our export writes and that classifiers of the MobileNet era contain; none can run foreign code.
KNOWN_LAYERS = frozenset(
    # one string, because as a list it would be longer than the rest of this page
    """
    InputLayer Functional Model Sequential Rescaling Normalization Conv2D DepthwiseConv2D SeparableConv2D Dense
    ZeroPadding2D Cropping2D UpSampling2D BatchNormalization LayerNormalization ReLU LeakyReLU PReLU Softmax Activation
    Add Subtract Multiply Dot Concatenate Average Maximum GlobalAveragePooling2D GlobalMaxPooling2D AveragePooling2D
    MaxPooling2D Dropout SpatialDropout2D GaussianDropout AlphaDropout ActivityRegularization Flatten Reshape Permute
    Conv2DTranspose ELU ThresholdedReLU Minimum Resizing CenterCrop
    TFOpLambda SlicingOpLambda GetItem TrueDivide Divide Negative Cast Identity Relu Relu6 Sigmoid Silu Tanh Elu
    SpectralNormalization
    GroupNormalization UnitNormalization RMSNormalization SyncBatchNormalization RepeatVector TimeDistributed
    Conv1D DepthwiseConv1D SeparableConv1D MaxPooling1D AveragePooling1D GlobalAveragePooling1D GlobalMaxPooling1D
    ZeroPadding1D Cropping1D UpSampling1D
    Sum Square Power Absolute Clip Transpose ExpandDims Squeeze Normalize LeakyRelu Pad Resize Exp Softplus Softsign
    Selu HardSilu HardSigmoid LogSigmoid
    Mean Max Stack Flip SpatialDropout1D CustomScaleLayer Custom>CustomScaleLayer
    LayerScale StochasticDepth Sqrt Rsqrt Log Var Std Split Matmul Swapaxes Tile Repeat
    MultiHeadAttention GroupQueryAttention GroupedQueryAttention Attention AdditiveAttention EinsumDense
    """.split()  # noqa: SIM905
)
# Layers that change photos in training and do nothing in inference: RandomCrop only where photos have its size.
AUGMENTATION = frozenset(
    """
    RandomFlip RandomRotation RandomTranslation RandomZoom RandomContrast RandomBrightness GaussianNoise RandomCrop
    AugMix CutMix MixUp RandAugment RandomColorDegeneration RandomColorJitter RandomErasing RandomGaussianBlur
    RandomGrayscale RandomHue RandomInvert RandomPerspective RandomPosterization RandomSaturation RandomSharpness
    RandomShear Solarization RandomHeight RandomWidth
    """.split()  # noqa: SIM905
)
# What else a file may name for Keras to build: parts of layers and of the training configuration.
KNOWN_SETTINGS = frozenset(
    """
    GlorotUniform GlorotNormal HeNormal HeUniform LecunNormal LecunUniform Zeros Ones Constant RandomNormal
    RandomUniform TruncatedNormal VarianceScaling Orthogonal Identity L1 L2 L1L2 MaxNorm NonNeg UnitNorm MinMaxNorm
    DTypePolicy Policy
    FloatDTypePolicy __keras_tensor__ __tuple__ __numpy__ __tensor__ __ellipsis__ __slice__ TensorShape function
    Adam Custom>Adam AdamW Custom>AdamW SGD Custom>SGD RMSprop Custom>RMSprop Nadam Adagrad Adadelta Adamax Ftrl
    ExponentialDecay CosineDecay CosineDecayRestarts PiecewiseConstantDecay PolynomialDecay InverseTimeDecay
    CategoricalCrossentropy SparseCategoricalCrossentropy BinaryCrossentropy MeanSquaredError KLDivergence
    Accuracy CategoricalAccuracy SparseCategoricalAccuracy BinaryAccuracy TopKCategoricalAccuracy Precision Recall AUC
    Mean MeanMetricWrapper F1Score
    """.split()  # noqa: SIM905
)
# Functions that a file may name: activations, and losses and metrics of the training configuration. Older Kerases
# would look up others, in all of their modules, and call them as readily.
KNOWN_FUNCTIONS = frozenset(
    """
    celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu linear log_sigmoid
    log_softmax log_softmax_v2 softmax_v2 mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign
    sparse_plus sparse_sigmoid
    sparsemax squareplus swish tanh tanh_shrink threshold
    categorical_crossentropy sparse_categorical_crossentropy binary_crossentropy binary_focal_crossentropy
    categorical_focal_crossentropy mean_squared_error mse mean_absolute_error mae mean_absolute_percentage_error mape
    mean_squared_logarithmic_error msle kl_divergence kullback_leibler_divergence kld cosine_similarity poisson huber
    log_cosh hinge squared_hinge categorical_hinge
    accuracy acc crossentropy ce categorical_accuracy sparse_categorical_accuracy binary_accuracy
    top_k_categorical_accuracy sparse_top_k_categorical_accuracy
    """.split()  # noqa: SIM905
)
# TensorFlow's functions that a layer of Keras 2 may call; others could write files.
KNOWN_OPERATIONS = frozenset(
    """
    math.truediv math.divide math.subtract math.multiply math.add math.negative __operators__.add
    __operators__.getitem strided_slice nn.bias_add nn.relu nn.relu6 nn.sigmoid nn.softmax nn.tanh nn.elu nn.selu
    nn.gelu nn.silu nn.swish nn.softplus math.sigmoid math.tanh cast identity reshape concat math.reduce_mean
    math.reduce_max image.resize reverse math.maximum math.minimum math.exp math.softplus math.log_sigmoid
    math.reduce_sum math.square math.pow math.abs abs clip_by_value transpose compat.v1.transpose expand_dims squeeze
    compat.v1.squeeze math.l2_normalize nn.leaky_relu pad compat.v1.pad math.sqrt math.rsqrt math.log
    math.reduce_variance math.reduce_std split linalg.matmul tile repeat image.grayscale_to_rgb
    """.split()  # noqa: SIM905
)
# Where a file names one by itself, not as a `class_name`.
FUNCTION_KEYS = ("activation", "function", "fn", "loss", "metrics", "weighted_metrics")
# Modules that a file may name. Others would be imported, and importing runs code.
KNOWN_MODULES = re.compile(r"builtins|(tensorflow\.|tensorflow\.python\.)?(tf_)?keras(\.[\w.]*)?")
# The group inside the file with a few images, torch's answers and digests; every Keras ignores it.
GOLDEN_GROUP = "shelftwin_golden"
ARCHIVE_PARTS = ("config.json", "model.weights.h5", "metadata.json")  # of a `.keras` file
DIGESTED_ATTRIBUTES = ("model_config", "training_config", "shelftwin")
# Largest difference from torch's probabilities that passes, both in float32.
GOLDEN_THRESHOLD = 1e-5
COMPRESSED_LIMIT = 1 << 26  # bytes in memory of arrays that are compressed in the file
SPARE_NUMBERS = 1 << 20  # that layers may create beyond the file's arrays, as training metrics do
GOLDEN_LIMIT = 1 << 26  # numbers; more than a few images need, and few enough to read


READING_SECONDS = 60  # enough for some hundred megabytes from a slow disk
# What h5py raises for damaged or foreign files.
UNREADABLE = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, MemoryError, AssertionError)


class Refused(Exception):
    """The model file or this interpreter cannot be used; the message says why."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def check_packages() -> None:
    """Refuse an interpreter that lacks the packages needed here, all of which are installed with every Keras."""
    for package in ("numpy", "h5py"):
        try:
            import_module(package)
        except ImportError as error:
            raise Refused(
                "keras", f"{sys.executable} has no {package}, so no Keras that could load a .h5 ({error})"
            ) from error


# Keras imports them where they are installed, for what is never done here; that takes a third of its own import.
_NOT_NEEDED = ("matplotlib", "pandas", "sklearn")


@contextmanager
def without_extras() -> Iterator[None]:
    """Let Keras be imported as if those packages were not installed: it does without them by itself."""
    left_out = [name for name in _NOT_NEEDED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(left_out))  # type: ignore[arg-type] # None stops an import
    try:
        yield
    finally:
        for name in left_out:
            if sys.modules.get(name, name) is None:
                del sys.modules[name]


@without_extras()
def find_keras() -> Any:
    """The Keras of this interpreter: Keras 3 if there is one, else tf.keras, else tf_keras.

    ``TF_USE_LEGACY_KERAS=1``, TensorFlow's own switch, puts tf_keras first.
    """
    if os.environ.get("TF_USE_LEGACY_KERAS", "").lower() in ("1", "true"):
        try:
            import tf_keras

            return tf_keras
        except ImportError as error:
            raise Refused(
                "keras", f"TF_USE_LEGACY_KERAS is set, but {sys.executable} has no tf_keras: {error}"
            ) from error
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
    """Versions of all packages that compute here."""
    backend = keras.backend.backend() if hasattr(keras.backend, "backend") else "tensorflow"
    found = {"python": platform.python_version(), "keras": _version(keras), "backend": backend, "numpy": np.__version__}
    for name in ("tensorflow", "jax", "torch"):
        if name in sys.modules:
            found[name] = _version(sys.modules[name])
    return {**found, **pillow_versions()}


def pillow_versions() -> dict[str, str]:
    """Versions of the Pillow that loads photos here, and of the library in it that decodes JPEG; empty without Pillow.

    Either may give a photo other pixels. Before Pillow 8, the library does not say its version.
    """
    try:
        import PIL
        from PIL import features
    except ImportError:
        return {}
    found = {"pillow": PIL.__version__}
    if hasattr(features, "version_feature"):
        turbo, plain = features.version_feature("libjpeg_turbo"), features.version("jpg")
        if turbo or plain:
            found["libjpeg-turbo" if turbo else "libjpeg"] = str(turbo or plain)
    return found


def _version(module: Any) -> str:
    # tf.keras 2.13 to 2.15 has no version of its own: it is the package keras
    return str(getattr(module, "__version__", None) or getattr(sys.modules.get("keras"), "__version__", "unknown"))


def check_storage(path: str) -> None:
    """Refuse an `.h5` that refers to anything outside itself, claims arrays that it does not contain, or is damaged.

    Every object must have exactly one place, with a plain link to it, and every array's bytes must all be in this file.
    So no more is read than the file is long, plus `COMPRESSED_LIMIT` for compressed arrays, whatever sizes it claims.

    A child process reads everything first: the HDF5 library itself crashes on some damaged files, or hangs.
    """
    if not Path(path).is_file():
        raise Refused("model", f"{path} is no file")
    if zipfile.is_zipfile(path):
        check_archive(path)
        return
    if hasattr(os, "fork"):  # everywhere but on Windows
        ending = _ending_of_child(lambda: _read_all(path))
        if ending == _SOUND:
            return
        if ending != _RAISED:
            raise Refused("model", f"{path} is damaged: reading it {ending}")
    try:
        _read_all(path)  # if there is no child process, or to raise again what it raised
    except UNREADABLE as error:
        raise Refused("model", f"{path} is not a Keras .h5, or a damaged one: {error}") from error


def check_archive(path: str) -> None:
    """Refuse a `.keras` archive with anything besides its three files, or with weights that are refused in an `.h5`."""
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory(prefix="shelftwin-") as folder:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            if sorted(names) != sorted(set(names)) or not {*ARCHIVE_PARTS[:2]} <= set(names) <= {*ARCHIVE_PARTS}:
                raise Refused("model", f"{path} is no .keras archive of {', '.join(ARCHIVE_PARTS)} alone")
            own = Path(folder) / "weights.h5"
            with archive.open("model.weights.h5") as packed, own.open("wb") as file:
                shutil.copyfileobj(packed, file)
            check_storage(str(own))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, *UNREADABLE) as error:
        raise Refused("model", f"{path} is not a .keras archive, or a damaged one: {error}") from error


_SOUND, _RAISED = "ends well", "raises"


def _ending_of_child(work: Callable[[], None]) -> str:
    """Run `work` in a child process. Returns `_SOUND`, `_RAISED`, or a description of a crash or time-out."""
    child = os.fork()
    if not child:
        code = 1
        try:
            faulthandler.disable()  # a crash is an expected outcome here
            work()
            code = 0
        finally:
            os._exit(code)  # an exception is raised again in the parent
    deadline = time.monotonic() + READING_SECONDS
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended and os.WIFSIGNALED(status):
            return f"ends by signal {os.WTERMSIG(status)}"
        if ended:
            return _RAISED if os.WEXITSTATUS(status) else _SOUND
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return f"does not end within {READING_SECONDS} s"
        time.sleep(0.002)


def _read_all(path: str) -> None:
    """Walk through the file and read each array once; raises Refused as described in `check_storage`."""
    import h5py

    claimed, length = 0, Path(path).stat().st_size
    most = length + COMPRESSED_LIMIT
    with h5py.File(path, "r") as file:
        check_attributes(path, "/", file, length)
        groups, seen = [("", file)], {h5py.h5o.get_info(file.id).addr}
        while groups:
            place, group = groups.pop()
            for name in group:
                where = f"{place}/{name}"
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise Refused("model", f"{path}: {where} is a link to somewhere else, which is refused")
                item = group[name]
                address = h5py.h5o.get_info(item.id).addr
                if address in seen or where.count("/") > 64:
                    raise Refused(
                        "model", f"{path}: {where} is an object that has another place, too, which is refused"
                    )
                seen.add(address)
                check_attributes(path, where, item, length)
                if isinstance(item, h5py.Group):
                    groups.append((where, item))
                    continue
                claimed += checked_size(path, where, item)
                if claimed > most:
                    raise Refused("model", f"{path}: its arrays claim {claimed} bytes and more, the file has {length}")
                item[()]


def check_attributes(path: str, where: str, item: Any, length: int) -> None:
    """Refuse an attribute that claims to be larger than the file."""
    import h5py

    for name in item.attrs:
        attribute = h5py.h5a.open(item.id, name.encode())
        if math.prod(attribute.shape) * attribute.dtype.itemsize > length:
            raise Refused("model", f"{path}: attribute {name} of {where} claims more than the file has")
        item.attrs[name]


def checked_size(path: str, where: str, dataset: Any) -> int:
    """Size in bytes of an array of numbers that is completely in the file; anything else is refused."""
    import h5py

    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiub":
        raise Refused("model", f"{path}: {where} is no array of numbers")
    if dataset.is_virtual or dataset.external:
        raise Refused("model", f"{path}: {where} has its numbers in another file, which is refused")
    stored, size = dataset.id.get_storage_size(), int(dataset.size) * dataset.dtype.itemsize
    if size > (COMPRESSED_LIMIT if stored and dataset.compression else stored):
        raise Refused(
            "model",
            f"{path}: {where} claims {size} bytes and has {stored}",
        )
    return size


def read_architecture(path: str) -> dict[str, Any]:
    """The file's ``model_config``, read without Keras; of a `.keras` archive, its ``config.json``."""
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                content: dict[str, Any] = json.loads(archive.read("config.json"))
                return content
        except (zipfile.BadZipFile, *UNREADABLE) as error:
            raise Refused("model", f"{path} is not a .keras archive with an architecture: {error}") from error
    return _json_attribute(path, "model_config")


def _json_attribute(path: str, name: str, default: Any = None) -> Any:
    """A JSON attribute of the file. Refused if it is not JSON, or missing without a default."""
    import h5py

    if not Path(path).is_file():
        raise Refused("model", f"{path} is no file")
    try:
        with h5py.File(path, "r") as file:
            if name not in file.attrs and default is not None:
                return default
            return json.loads(_bytes(file.attrs[name]))
    except UNREADABLE as error:
        raise Refused("model", f"{path} is not a Keras .h5 with an architecture: {error}") from error


def check_layers(path: str, compiled: bool = True) -> None:
    """Refuse a file that names anything unknown for Keras to build. Nothing in the file has been run at this point.

    Without `compiled`, the training configuration is not looked at, because Keras is not to build it.

    This looks at everything in ``model_config`` and ``training_config``: layers, nested models, and also their
    settings, such as an activation or a loss, because Keras builds those, too. It also limits the thresholds of a
    metric, because Keras makes a list of them before it asks for weights.
    """
    try:
        architecture = read_architecture(path)
        training = architecture.pop("compile_config", None) or {}
        if not zipfile.is_zipfile(path):
            training = _json_attribute(path, "training_config", {})
        training = training if compiled else {}
        named = [*_built(architecture), *_built(training)]
        thresholds = max(_thresholds(training), default=0)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Refused("model", f"{path} is not a Keras .h5 with an architecture: {error!r}") from error
    known = KNOWN_LAYERS | AUGMENTATION | KNOWN_SETTINGS | KNOWN_FUNCTIONS | KNOWN_OPERATIONS
    unknown = sorted({name for name in named if name not in known})
    if unknown:
        raise Refused(
            "model",
            f"{path} holds layers that are refused because they could run code: {', '.join(unknown)} "
            "(layers, or functions that they name)",
        )
    if not thresholds <= SPARE_NUMBERS:
        raise Refused(
            "model", f"{path} has a metric of {thresholds:g} thresholds in its training configuration, at most "
            f"{SPARE_NUMBERS} are taken"
        )  # fmt: skip


def _thresholds(value: Any) -> Iterator[float]:
    """All values for `num_thresholds` in a piece of configuration."""
    if isinstance(value, list):
        for each in value:
            yield from _thresholds(each)
    if isinstance(value, dict):
        if value.get("num_thresholds") is not None:
            yield float(value["num_thresholds"])
        yield from _thresholds(list(value.values()))


def _built(value: Any) -> Iterator[str]:
    """Names of everything that Keras would build from a piece of configuration, including foreign modules."""
    if isinstance(value, list):
        for each in value:
            yield from _built(each)
    if not isinstance(value, dict):
        return
    if "class_name" in value:
        name, module, registered = (value.get(key) for key in ("class_name", "module", "registered_name"))
        yield str(name)
        if module is not None and not KNOWN_MODULES.fullmatch(str(module)):
            yield f"{module}.{name}"
        if name == "function":
            yield str(value.get("config"))
        # Keras's own classes have no registered name, or their own; functions have the function's
        if registered not in (None, name) and not (name == "function" and registered == value.get("config")):
            yield f"{registered} ({name})"
    for key, each in value.items():
        if key in FUNCTION_KEYS:
            yield from _strings(each)
        yield from _built(each)


def _strings(value: Any) -> Iterator[str]:
    """The names in a setting that is a function's name, or has several in a list or by output."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) or (isinstance(value, dict) and "class_name" not in value):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


@contextmanager
def no_more_weights(keras: Any, path: str) -> Iterator[None]:
    """While Keras builds a file's layers, refuse layers that ask for more numbers than the file's arrays contain.

    Keras builds layers before it loads weights, so a tiny file could name a Dense with two thousand million units. How
    much a layer asks for depends on all layers before it. So this checks `add_weight`, which every layer of every
    Keras calls before it allocates anything.
    """
    most, asked = numbers_in(path) + SPARE_NUMBERS, 0
    refusals: list[Refused] = []
    layer_class = keras.layers.Layer
    add_weight = layer_class.add_weight

    def counting(layer: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal asked
        # if not given by name, the shape is the first argument in Keras 3 and the second, after the name, in Keras 2
        shapes = [kwargs.get("shape"), *(each for each in args if not isinstance(each, str))]
        shape = next((each for each in shapes if each is not None), ())
        shape = [int(side or 1) for side in ([shape] if isinstance(shape, int) else shape)]
        asked += math.prod(shape)
        if asked > most:
            text = f"layer {layer.name} asks for weights of shape {shape}, more than the file's arrays have together"
            refusals.append(Refused("model", f"{path}: {text}"))
            raise refusals[0]
        return add_weight(layer, *args, **kwargs)

    layer_class.add_weight = counting
    try:
        yield
    except Exception as error:
        if refusals:  # Keras may have turned it into another exception
            raise refusals[0] from error
        raise
    finally:
        layer_class.add_weight = add_weight


def numbers_in(path: str) -> int:
    """How many numbers there are in all arrays of an `.h5` together."""
    import h5py

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return sum(each.file_size for each in archive.infolist()) // 2  # the smallest numbers have two bytes
    sizes: list[int] = []
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: sizes.append(int(item.size)) if isinstance(item, h5py.Dataset) else None)
    return sum(sizes)


def load(keras: Any, path: str, compiled: bool = True) -> Any:
    """`load_model(path)` as any user would call it: with what is Keras's own, compiled as the file states or not."""
    check_storage(path)
    check_layers(path, compiled)
    try:
        with no_more_weights(keras, path):
            own = not_found_by_keras(keras, path)
            return finished(keras.models.load_model(path, **own, **({} if compiled else {"compile": False})))
    except Refused:
        raise
    except Exception as error:  # layers can raise anything, and Keras passes it on
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refused("model", f"Keras {_version(keras)} cannot load {path}: {first_line}") from error


def finished(model: Any) -> Any:
    """The model, each Normalization computing by its statistics, which Keras 3 forgets of a nested model in an .h5.

    The layer has them, but it computes with what it makes of them when it is told to.
    """
    for _, layer in leaves(model):
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()
    return model


def not_found_by_keras(keras: Any, path: str) -> dict[str, Any]:
    """What `load_model` must be told: this Keras's own classes that it does not find by the names in the file."""
    layers = list(layer_configs(read_architecture(path)))
    custom = {**own_layers_of_applications(keras, layers), **bare_operations(keras, path, layers)}
    return {"custom_objects": custom} if custom else {}


# Layers that a network of keras.applications has of its own, in the module of that network.
LAYERS_OF_APPLICATIONS = {
    "LayerScale": "ConvNeXtTiny",
    "StochasticDepth": "ConvNeXtTiny",
    "CustomScaleLayer": "InceptionResNetV2",
}


def own_layers_of_applications(keras: Any, layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Those of the layers that only `keras.applications` has, by name, as far as this Keras has them."""
    found: dict[str, Any] = {}
    for name in {layer["class_name"] for layer in layers} & set(LAYERS_OF_APPLICATIONS):
        network = getattr(keras.applications, LAYERS_OF_APPLICATIONS[name], None)
        own = getattr(sys.modules.get(getattr(network, "__module__", "")), name, None)
        if own is not None:
            found[name] = _with_a_weight(own) if name == "LayerScale" and not hasattr(keras, "ops") else own
    return found


def _with_a_weight(own: Any) -> Any:
    """Keras 2's LayerScale with its weight made as other layers' are: in the layer's type, and of a size allowed."""

    def build(self: Any, input_shape: Any) -> None:
        self.gamma = self.add_weight(name="gamma", shape=(self.projection_dim,))

    return type(own.__name__, (own,), {"build": build})


def bare_operations(keras: Any, path: str, layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Keras 3's classes of the operations, such as ``x / 127.5``, that an `.h5` holds; empty for every other file.

    Keras 3 writes them into an `.h5` without their module, and does not find them again when it loads the file.
    """
    if int(_version(keras).split(".")[0]) < 3 or zipfile.is_zipfile(path):
        return {}
    names = {each["class_name"] for each in layers if is_bare_operation(each)}
    found: dict[str, Any] = {}
    for place in ("numpy", "nn", "core", "math") if names else ():
        module = import_module(f"keras.src.ops.{place}")
        found = {**{name: getattr(module, name) for name in names if hasattr(module, name)}, **found}
    return {name: _by_settings(each, getattr(keras.layers, name, each)) for name, each in found.items()}


def is_bare_operation(layer: dict[str, Any]) -> bool:
    """Whether it is an operation of Keras 3's, and not the layer of the same name, such as Add."""
    if "module" in layer or layer["class_name"] == "InputLayer":
        return ".ops." in str(layer.get("module"))
    return "trainable" not in layer["config"]


def _by_settings(operation: Any, layer: Any) -> Any:
    """A class to deserialise by: makes the layer where the settings are a layer's, and otherwise the operation."""

    def from_config(cls: Any, config: dict[str, Any]) -> Any:
        return (layer if "trainable" in config else operation).from_config(config)

    return type(operation.__name__, (), {"from_config": classmethod(from_config)})


def images(
    source: str | np.ndarray, scale: float, precision: str = "float32"
) -> tuple[int, Callable[[int, int], np.ndarray]]:
    """Source of batches from images, (N, H, W, 3), multiplied by `scale` in `precision`.

    Args:
        source: path of an .npy, which is memory-mapped; or the images themselves, which `stream` was sent.
        scale: factor; 1 leaves the values as they are.
        precision: name of the number format of the batches.
    """
    array = source if isinstance(source, np.ndarray) else np.load(source, mmap_mode="r", allow_pickle=False)
    dtype = np.dtype(precision).type

    def batch(start: int, stop: int) -> np.ndarray:
        part = np.asarray(array[start:stop]).astype(dtype)
        return part * dtype(scale) if scale != 1 else part

    return len(array), batch


# Tasks: (keras, model, task dictionary) -> result dictionary ----------------------------------------------------------


def predict(keras: Any, model: Any, task: dict[str, Any]) -> dict[str, Any]:
    """``inputs`` (N, H, W, 3) .npy, ``scale``, ``batch_size`` -> ``outputs`` .npy, float32 probabilities (N, C)."""
    count, batch = images(task["inputs"], task["scale"])
    size = task.get("batch_size", 32)
    outputs = [np.asarray(model.predict_on_batch(batch(start, start + size))) for start in range(0, count, size)]
    np.save(task["outputs"], np.concatenate(outputs))
    return {"count": count}


_EXACT: dict[str, Any] = {}  # path of a copy -> its model in float64, made once for all tasks of a job


def predict_exact(keras: Any, model: Any, task: dict[str, Any]) -> dict[str, Any]:
    """``inputs`` (N, H, W, 3) .npy, ``scale``, ``copy`` -> ``outputs`` .npy: (N, C) in float64, all at once.

    ``dtype``, which is optional, may be ``float32``: for a file that computes in half precision by itself; and
    ``batch_size`` may say how many at once.
    """
    dtype = task.get("dtype", "float64")
    count, batch = images(task["inputs"], task["scale"], dtype)
    usual = keras.backend.floatx()
    keras.backend.set_floatx(dtype)  # Keras 2 casts its inputs to this type
    try:
        size, twin = task.get("batch_size", count), exact_twin(keras, task, dtype)
        outputs = [np.asarray(twin.predict_on_batch(batch(start, start + size))) for start in range(0, count, size)]
        np.save(task["outputs"], np.concatenate(outputs))
    finally:
        keras.backend.set_floatx(usual)
    return {"count": count}


def exact_twin(keras: Any, task: dict[str, Any], dtype: str = "float64") -> Any:
    """`in_float64` of the task's ``model``; tasks that name the same ``copy`` share it.

    With ``compiled`` true it can be trained without chance, see `train`; what it predicts is the same.
    """
    if task["copy"] not in _EXACT:
        compiled = bool(task.get("compiled"))
        change = hold_still if compiled else lambda layer: None
        _EXACT[task["copy"]] = in_float64(keras, task["model"], Path(task["copy"]), compiled, change, dtype)
    return _EXACT[task["copy"]]


def hold_still(layer: dict[str, Any]) -> None:
    """Change a layer's configuration so that training it depends neither on chance nor on the rest of the batch."""
    if layer["class_name"] == "Dropout":
        layer["config"]["rate"] = 0.0
    if layer["class_name"] == "BatchNormalization":
        layer["config"]["trainable"] = False


def weights(keras: Any, model: Any, task: dict[str, Any]) -> dict[str, Any]:
    """``outputs`` .npz: the arrays as Keras holds them after loading, named ``LAYER/INDEX`` in Keras's order.

    The layers of a nested model are named ``MODEL/LAYER``.
    """
    arrays = {
        f"{name}/{index}": array for name, layer in leaves(model) for index, array in enumerate(layer.get_weights())
    }
    np.savez(task["outputs"], **arrays)
    return {"count": len(arrays)}


def leaves(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All layers with their names; a nested model is replaced by the layers inside it."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from leaves(layer, f"{prefix}{layer.name}/")
        else:
            yield prefix + layer.name, layer


def layers(keras: Any, model: Any, task: dict[str, Any]) -> dict[str, Any]:
    """``inputs`` (N, H, W, 3) float64 .npy, ``names`` -> ``folder``/INDEX.npy: each layer's output, all in float64.

    A layer of a nested model is named ``MODEL/LAYER``. ``fed_by``, which is optional, then gives for each nested model
    the layer whose output it is fed, or null if it is fed the images. ``before_activation``, which is optional, names
    layers of which what they have before their activation is wanted; INDEX goes on counting. ``images`` .npy and
    ``scale``, which are optional, are further images, of which ``answers`` .npy gets what the model gives, in float64
    as well. ``copy`` and ``compiled``, which are optional, are `exact_twin`'s.
    """
    usual = keras.backend.floatx()
    keras.backend.set_floatx("float64")  # Keras 2 casts its inputs to this type
    try:
        twin = exact_twin(keras, {"copy": str(Path(task["folder"]) / "float64.h5"), **task})
        inputs = np.load(task["inputs"], allow_pickle=False)
        values = layer_outputs(keras, twin, task["names"], inputs, task.get("fed_by", {}))
        before = before_activations(keras, twin, task.get("before_activation", []), inputs)
        if "images" in task:
            count, batch = images(task["images"], task["scale"], "float64")
            twin.run_eagerly = True
            np.save(task["answers"], np.asarray(twin.predict_on_batch(batch(0, count))))
    finally:
        keras.backend.set_floatx(usual)
    outputs = [*(values[name] for name in task["names"]), *before]
    for index, value in enumerate(outputs):
        np.save(str(Path(task["folder"]) / f"{index}.npy"), value)
    return {"count": len(outputs)}


def before_activations(keras: Any, model: Any, names: list[str], images: np.ndarray) -> list[np.ndarray]:
    """What the named layers compute before the activation that is inside them, from what the model feeds them."""
    if not names:
        return []
    named = [model.get_layer(name) for name in names]
    computing = part_model(keras, model, [layer.input for layer in named])
    computing.run_eagerly = True
    given = computing.predict_on_batch(images)
    values = []
    for layer, fed in zip(named, given if isinstance(given, list) else [given], strict=True):
        activation, layer.activation = layer.activation, keras.activations.linear
        try:
            value = layer(fed)
        finally:
            layer.activation = activation
        values.append(np.asarray(value.detach().cpu() if hasattr(value, "detach") else value))
    return values


def layer_outputs(
    keras: Any, model: Any, names: list[str], images: np.ndarray, fed_by: dict[str, str | None]
) -> dict[str, np.ndarray]:
    """Outputs of the named layers; a nested model is computed separately, from the output that it is fed."""
    wanted = list(dict.fromkeys([*names, *(feeding for feeding in fed_by.values() if feeding)]))
    values: dict[str, np.ndarray] = {}
    # in the order of computation: the outer model and earlier parts compute what later parts are fed
    parts: list[tuple[str, Any, str | None]] = [("", model, None)]
    parts += [(f"{path}/", inner_model(model, path), feeding) for path, feeding in fed_by.items()]
    # a layer's own name may contain slashes, as `Conv/BatchNorm` of MobileNetV3: it belongs to the innermost model
    owners = {name: max((each for each, *_ in parts if name.startswith(each)), key=len) for name in wanted}
    for prefix, part, feeding in parts:
        here = [name for name in wanted if owners[name] == prefix]
        if not here:
            continue
        outputs = [layer_named(part, name[len(prefix) :]).output for name in here]
        computing = part_model(keras, part, outputs)
        computing.run_eagerly = True  # for these few images it takes longer to compile a graph
        given = computing.predict_on_batch(images if feeding is None else values[feeding])
        given = given if isinstance(given, list) else [given]
        values.update((name, np.asarray(value)) for name, value in zip(here, given, strict=True))
    return values


def layer_named(model: Any, name: str) -> Any:
    """A layer of the model, or in Keras 3 one of the bare operations between them, such as ``x / 127.5`` leaves."""
    bare = [each for each in getattr(model, "operations", ()) if each.name == name]
    return bare[0] if bare else model.get_layer(name)


def inner_model(model: Any, path: str) -> Any:
    """The nested model with that path; names in it may contain slashes."""
    for layer in model.layers:
        if layer.name == path:
            return layer
        if hasattr(layer, "layers") and path.startswith(f"{layer.name}/"):
            return inner_model(layer, path[len(layer.name) + 1 :])
    raise ValueError(f"expected a nested model {path}, found none in {model.name}")


def part_model(keras: Any, part: Any, outputs: list[Any]) -> Any:
    """The model from the part's own input to the given outputs."""
    return keras.models.Model(part.inputs, outputs)


def train(keras: Any, model: Any, task: dict[str, Any]) -> dict[str, Any]:
    """``inputs`` (B, H, W, 3) and ``targets`` (B, C), float64 .npy, ``steps``, ``copy`` -> ``outputs`` .npz.

    Optimiser steps in float64 with the file's training configuration, as anyone would make who trains the model
    further; but with dropout off and BatchNorm in inference mode, see `hold_still`. The weights of ``copy`` change, so
    the tasks that share it come before. The trained arrays are named as by `weights`. Gives ``failed`` if this Keras
    does not train the model.
    """
    usual = keras.backend.floatx()
    keras.backend.set_floatx("float64")
    try:
        twin = exact_twin(keras, {**task, "compiled": True})
        inputs, targets = (np.load(task[name], allow_pickle=False) for name in ("inputs", "targets"))
        try:
            twin.run_eagerly = True  # compiling a graph takes longer than these few steps
            for _ in range(task["steps"]):
                twin.train_on_batch(inputs, targets)
        except Exception as error:  # layers can raise anything, and Keras passes it on
            return {"failed": (str(error).strip() or type(error).__name__).splitlines()[0]}
        return weights(keras, twin, task)
    finally:
        keras.backend.set_floatx(usual)


def files(keras: Any, model: Any, task: dict[str, Any]) -> dict[str, Any]:
    """``files``, ``image_size`` [h, w], ``interpolation``, ``scale``, ... -> ``pixels`` and ``outputs`` .npy.

    ``formats`` and ``most_pixels`` are those of `limit_pillow`, ``expected`` is an .npy like ``pixels``. Photos as this
    Keras loads them, uint8 (N, H, W, 3), and their probabilities (N, C). Gives ``skipped`` if Keras cannot load any
    photo, ``unreadable``: index -> reason, for the photos that it cannot load, and ``lacking``: index -> format, for
    those of a format that this Pillow was built without; the pixels of both are 0. Of photos whose pixels are not the
    expected ones, ``decoded`` has, by index, [h, w, `array_digest`] before they are resized.
    """
    pixels = np.zeros((len(task["files"]), *task["image_size"], 3), np.uint8)
    expected = np.load(task["expected"], mmap_mode="r", allow_pickle=False)
    unreadable, decoded, lacking = {}, {}, {}
    limit_pillow(task["formats"], task["most_pixels"])
    for index, path in enumerate(task["files"]):
        try:
            photo = load_photo(keras, path, task)
            pixels[index] = np.asarray(photo)
            if not np.array_equal(pixels[index], expected[index]):
                whole = np.asarray(keras.utils.load_img(path))
                decoded[str(index)] = [*whole.shape[:2], array_digest(whole)]
        except ImportError as error:
            return {"skipped": str(error)}
        except Exception as error:  # Pillow's readers can raise anything
            if lacks := lacking_format(path):
                lacking[str(index)] = lacks
            else:
                unreadable[str(index)] = (str(error).strip() or type(error).__name__).splitlines()[0]
    np.save(task["pixels"], pixels)
    predicted = predict(keras, model, {**task, "inputs": task["pixels"]})
    return {"unreadable": unreadable, "lacking": lacking, "decoded": decoded, **predicted}


def lacking_format(path: str) -> str:
    """Return the format of a photo if this Pillow was built without it, as some are without WebP; else empty text."""
    from PIL import features

    with Path(path).open("rb") as file:
        start = file.read(16)
    name = "WebP" if start[8:12] == b"WEBP" else "AVIF" if start[4:12] == b"ftypavif" else ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an older Pillow has not heard of AVIF
        return name if name and not features.check(name.lower()) else ""


def load_photo(keras: Any, path: str, task: dict[str, Any]) -> Any:
    """Load a photo as `load_img` does; with ``background`` or ``deep_grey``, of which it knows nothing, by Pillow."""
    background, deep_grey = task.get("background"), task.get("deep_grey", "clip")
    if background is None and deep_grey == "clip":
        return keras.utils.load_img(path, target_size=task["image_size"], interpolation=task["interpolation"])
    from PIL import Image

    with Image.open(path, formats=task["formats"]) as file:
        photo: Any = file
        if deep_grey == "scale" and photo.mode.startswith("I"):
            values = np.clip(np.asarray(photo).astype(np.int64), 0, 65535)
            photo = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
        if background is not None and (
            photo.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in photo.info
        ):
            under = Image.new("RGBA", photo.size, background)
            under.alpha_composite(photo.convert("RGBA"))
            photo = under
        height, width = task["image_size"]
        filters = getattr(Image, "Resampling", Image)  # Pillow 9.1 moved them
        rgb = photo.convert("RGB")
        if rgb.size != (width, height):
            rgb = rgb.resize((width, height), getattr(filters, task["interpolation"].upper()))
        return rgb


def limit_pillow(formats: list[str], most_pixels: int) -> None:
    """Let Pillow, with which Keras loads photos, open no other formats and no larger photos.

    By itself it starts another program for PostScript, and decodes some 179 million pixels.
    """
    try:
        from PIL import Image
    except ImportError:  # then `load_img` says so
        return
    Image.init()  # from here on, Pillow adds no more formats by itself
    Image.ID[:] = [each for each in Image.ID if each in formats]
    Image.MAX_IMAGE_PIXELS = most_pixels // 2  # where Pillow warns; it refuses more than twice as many


def use(keras: Any, model: Any, task: dict[str, Any]) -> dict[str, Any]:
    """``inputs``, ``scale``, ``labels`` (a class for each image), ``folder`` -> what happened when the model was used.

    Does what a team does with a file that it is given: prints the summary, trains one step on the images as the file
    states, saves the model in this Keras's formats and loads it again. Gives ``summary`` (lines), ``loss``, ``moved``
    and ``moved_though_frozen`` (layers whose weights the step changed), ``saved``: suffix -> largest difference of a
    probability after saving and loading, and ``not_loaded``: suffix -> why it could not be loaded again.
    """
    count, batch = images(task["inputs"], task["scale"])
    lines: list[str] = []
    model.summary(print_fn=lambda line, *_, **__: lines.append(line))
    before = {layer.name: array_digest(*layer.get_weights()) for layer in model.layers}
    classes = np.eye(model.output_shape[-1], dtype=np.float32)[task["labels"]]
    history = model.fit(batch(0, count), classes, batch_size=count, epochs=1, verbose=0)
    moved = [layer for layer in model.layers if array_digest(*layer.get_weights()) != before[layer.name]]
    trained = np.asarray(model.predict_on_batch(batch(0, count)))
    saved, not_loaded = {}, {}
    for suffix in saving_formats(keras):
        path = str(Path(task["folder"]) / f"again{suffix}")
        model.save(path)
        try:
            again = keras.models.load_model(path)
        except Exception as error:  # layers can raise anything, and Keras passes it on
            not_loaded[suffix] = (str(error).strip() or type(error).__name__).splitlines()[0]
            continue
        saved[suffix] = float(np.max(np.abs(np.asarray(again.predict_on_batch(batch(0, count))) - trained)))
    return {
        "summary": len("\n".join(lines).splitlines()),
        "loss": float(history.history["loss"][0]),
        "moved": [layer.name for layer in moved],
        "moved_though_frozen": [layer.name for layer in moved if not layer.trainable],
        "saved": saved,
        "not_loaded": not_loaded,
    }


def saving_formats(keras: Any) -> tuple[str, str]:
    """Suffixes of this Keras's own format and of HDF5; before 2.12, its own format was a SavedModel folder."""
    major, minor = (int(part) for part in _version(keras).split(".")[:2])
    return (".keras" if (major, minor) >= (2, 12) else ".saved_model", ".h5")


def in_float64(
    keras: Any,
    path: str,
    copy: Path,
    compiled: bool = False,
    change: Callable[[dict[str, Any]], None] = lambda layer: None,
    dtype: str = "float64",
) -> Any:
    """The same file with every layer computing in float64, by changing the dtype in its architecture.

    Args:
        keras: this interpreter's.
        path: the `.h5`, or the `.keras` archive.
        copy: where to write the changed file.
        compiled: whether to compile the model for training, as the file states.
        change: called with each layer of the architecture, to change something else in it.
        dtype: another type than float64.
    """
    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)  # otherwise jax silently computes in float32
    # Keras 3 turns promoted float64 into float32 (in BatchNorm, for one) on all backends but TensorFlow's.
    narrowing = getattr(sys.modules.get("keras.src.backend.common.dtypes"), "BIT64_TO_BIT32_DTYPE", {})
    narrowing.update({"float64": "float64"})
    config = read_architecture(path)
    for layer in layer_configs(config):
        if layer["class_name"] in AUGMENTATION:
            # Keras 2 cannot build some of them in float64. What they do to a photo is compared in float32.
            kept = {name: layer["config"][name] for name in ("name", "batch_input_shape") if name in layer["config"]}
            layer.update(class_name="Activation", config={**kept, "activation": "linear", "trainable": False})
        if not is_bare_operation(layer) or "trainable" in layer["config"]:  # it has no type of its own
            set_dtype(layer["config"], dtype)
        change(layer)
    copy = _with_architecture(path, copy, config)
    twin = finished(keras.models.load_model(str(copy), compile=compiled, **not_found_by_keras(keras, path)))
    for _, layer in leaves(twin):
        for each in (layer, getattr(layer, "activation", None), getattr(layer, "layer", None)):
            hold_settings_in_float64(keras, each)
    return twin


def set_dtype(config: dict[str, Any], dtype: str) -> None:
    """Let a layer compute in that type, and the layers that it has inside: an activation, or what a wrapper calls."""
    config["dtype"] = dtype
    for name in ("activation", "layer"):
        inner = config.get(name)
        if isinstance(inner, dict) and isinstance(inner.get("config"), dict) and "dtype" in inner["config"]:
            set_dtype(inner["config"], dtype)


def hold_settings_in_float64(keras: Any, layer: Any) -> None:
    """Keep a layer from rounding its settings to float32, as some do although they are told to compute in float64.

    The layers' weights are in float64 by themselves.
    """
    kind = type(layer).__name__
    if kind == "Rescaling":
        # as Python numbers they would be rounded to float32 before they are cast to float64
        layer.scale, layer.offset = np.asarray(layer.scale, "float64"), np.asarray(layer.offset, "float64")
    if kind == "Normalization" and layer.mean is not None:
        # Keras 3 holds them in float32 and takes the square root in float32
        for name in ("mean", "variance"):
            held = np.asarray(getattr(layer, name), "float64")
            stated = getattr(layer, f"input_{name}", None)  # None where it was adapted to photos
            exact = held if stated is None else np.asarray(stated, "float64")
            exact = exact.reshape(held.shape) if exact.size == held.size else np.broadcast_to(exact, held.shape)
            setattr(layer, name, exact)
    if kind == "ReLU" and hasattr(keras, "ops"):
        # Keras 3 casts them as it does a Rescaling's
        for name in ("max_value", "threshold"):
            if getattr(layer, name, None):
                setattr(layer, name, np.asarray(getattr(layer, name), "float64"))
    for name in ("_inverse_sqrt_key_dim", "_inverse_sqrt_head_dim"):  # of Keras 3's attention
        if isinstance(getattr(layer, name, None), float):
            setattr(layer, name, np.float64(getattr(layer, name)))  # a plain number would be rounded before it is cast
    if getattr(getattr(layer, "activation", None), "__name__", "") == "gelu":
        layer.activation = exact_gelu(keras)  # TensorFlow's own rounds the square root of 2 to float32
    if kind == "CenterCrop" or (
        kind in ("Resizing", "UpSampling2D") and getattr(layer, "interpolation", None) in RESIZED_BY
    ):
        resize_exactly(keras, layer)


def resize_exactly(keras: Any, layer: Any) -> None:
    """Let a layer that resizes do so in float64: TensorFlow's own gives float32, whatever it is given."""
    own = layer.call
    einsum = keras.ops.einsum if hasattr(keras, "ops") else import_module("tensorflow").einsum
    better = max if getattr(layer, "pad_to_aspect_ratio", False) else None
    cuts = type(layer).__name__ == "CenterCrop"  # and resizes what is too small to be cut
    better = min if cuts or getattr(layer, "crop_to_aspect_ratio", False) else better
    matrix_of = RESIZED_BY[getattr(layer, "interpolation", "bilinear")]

    def call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        sizes = tuple(inputs.shape[1:3])
        if None in sizes:
            return own(inputs, *args, **kwargs)
        results = (layer.height, layer.width) if hasattr(layer, "height") else np.multiply(sizes, layer.size)
        if cuts and sizes[0] >= results[0] and sizes[1] >= results[1]:
            return own(inputs, *args, **kwargs)
        matrices = []
        for axis in (0, 1):
            size, result = int(sizes[axis]), int(results[axis])
            # as `resize` in keras/src/backend/tensorflow/image.py, and `smart_resize` in Keras 2
            seen = better(size, int(sizes[1 - axis] * result / results[1 - axis])) if better else size
            matrix, first = matrix_of(seen, result), abs(size - seen) // 2
            if seen < size:
                matrix = np.pad(matrix, ((0, 0), (first, size - seen - first)))
            matrices.append(matrix[:, first : first + size] if seen > size else matrix)
        return einsum("rh,bhwc,sw->brsc", matrices[0], inputs, matrices[1])

    layer.call = call


def bilinear_matrix(size: int, result: int) -> np.ndarray:
    """Bilinear resizing along one axis with half-pixel centres, without antialiasing: float64 (result, size)."""
    centres = (np.arange(result) + 0.5) * (size / result) - 0.5
    below = np.floor(centres)
    share = centres - below
    matrix = np.zeros((result, size))
    for offset, weight in ((0, 1 - share), (1, share)):
        np.add.at(matrix, (np.arange(result), (below.astype(int) + offset).clip(0, size - 1)), weight)
    return matrix


def bicubic_matrix(size: int, result: int) -> np.ndarray:
    """Keys's cubic resizing along one axis, as `bilinear_matrix`; pixels outside do not count.

    Mirrors ``GetWeightsAndIndices`` in ``tensorflow/core/kernels/image/resize_bicubic_op.cc``, which looks weights up
    in a table: a place counts to the nearest 1/1024 of a pixel.
    """
    centres = (np.arange(result, dtype=np.float32) + np.float32(0.5)) * (np.float32(size) / np.float32(result))
    centres -= np.float32(0.5)
    first = np.floor(centres)
    share = np.rint((centres - first) * np.float32(1024)).astype(np.float64) / 1024
    matrix = np.zeros((result, size))
    for offset in (-1, 0, 1, 2):
        place, away = first.astype(int) + offset, np.abs(share - offset)
        near, far = (1.5 * away - 2.5) * away**2 + 1, ((-0.5 * away + 2.5) * away - 4) * away + 2
        weight = np.where(away <= 1, near, far)
        inside = (place >= 0) & (place < size)
        matrix[np.arange(result)[inside], place[inside]] = weight[inside]
    return matrix / matrix.sum(axis=1, keepdims=True)


RESIZED_BY = {"bilinear": bilinear_matrix, "bicubic": bicubic_matrix}
"""Interpolation -> matrix (result, size) along one axis."""


def _with_architecture(path: str, copy: Path, config: dict[str, Any]) -> Path:
    """Copy a file with another architecture; returns where, as Keras knows an archive by its name."""
    import h5py

    if not zipfile.is_zipfile(path):
        shutil.copy(path, str(copy))
        with h5py.File(str(copy), "r+") as file:
            file.attrs["model_config"] = json.dumps(config).encode()
        return copy
    copy = copy.with_suffix(".keras")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(str(copy), "w") as new:
        for name in old.namelist():
            if name == "config.json":
                new.writestr(name, json.dumps(config))
            elif name in ARCHIVE_PARTS:
                with old.open(name) as source, new.open(name, "w") as target:
                    shutil.copyfileobj(source, target)
    return copy


def layer_configs(model: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The architecture's entry for each layer; a nested model is replaced by the layers inside it."""
    config = model["config"]
    for layer in config if isinstance(config, list) else config["layers"]:  # Keras before 2.3 wrote a Sequential's list
        if isinstance(layer["config"], list) or isinstance(layer["config"].get("layers"), list):
            yield from layer_configs(layer)
        else:
            yield layer


def exact_gelu(keras: Any) -> Callable[[Any], Any]:
    """X * Phi(x) with constants in float64; ``erf`` is the backend's."""
    if hasattr(keras, "ops"):
        erf = keras.ops.erf
    else:
        from tensorflow import math

        erf = math.erf
    root = np.sqrt(np.float64(2))
    return lambda x: x * (erf(x / root) + 1.0) * 0.5


# Verifying a file with nothing but itself ----------------------------------------------------------------------------


def array_digest(*arrays: np.ndarray) -> str:
    """SHA-256, hexadecimal, over each array's dtype, shape and bytes in C order."""
    sha256 = hashlib.sha256()
    for array in arrays:
        sha256.update(f"{array.dtype.str}{array.shape}".encode())
        sha256.update(np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()


class GoldenData(NamedTuple):
    """The golden images, and the digests that the file states."""

    inputs: np.ndarray  # uint8 (N, H, W, 3)
    outputs: np.ndarray  # torch's, float32 (N, C)
    scale: float  # the model takes inputs * scale, in float32
    stored: dict[str, Any]  # digests in the file, by part; "layers": by layer
    actual: dict[str, str]  # digests computed now, without those of the layers, which need a Keras


def read_golden(path: str) -> GoldenData:
    """Read the golden images without Keras; raises Refused if there are none or they cannot be read."""
    import h5py

    read_architecture(path)
    try:
        with h5py.File(path, "r") as file:
            if GOLDEN_GROUP not in file:
                raise Refused("model", f"{path} has no golden images: not ShelfTwin's, or saved again by Keras")
            group = file[GOLDEN_GROUP]
            for name, dtype in (("inputs", np.uint8), ("outputs", np.float32)):
                if group[name].dtype != dtype or group[name].size > GOLDEN_LIMIT:
                    raise Refused("model", f"{path} has golden {name} of another type, or more than there can be")
            inputs, outputs = group["inputs"][()], group["outputs"][()]
            stored = json.loads(_bytes(group.attrs["sha256"]))
            if not isinstance(stored, dict) or not isinstance(stored.get("layers"), dict):
                raise Refused("model", f"{path} has no digests of its layers")
            texts = {name: _bytes(file.attrs[name]) for name in DIGESTED_ATTRIBUTES}
        raw = json.loads(texts["shelftwin"]).get("input_range") == "raw"
    except UNREADABLE as error:
        raise Refused("model", f"{path} has golden images that cannot be read: {error}") from error
    actual = {name: array_digest(np.frombuffer(text, np.uint8)) for name, text in texts.items()}
    actual = {**actual, "inputs": array_digest(inputs), "outputs": array_digest(outputs)}
    # multiplying by the rounded 1/255 is what ImageDataGenerator(rescale=1/255) does
    return GoldenData(inputs, outputs, float(np.float32(1 if raw else 1 / 255)), stored, actual)


def _bytes(text: Any) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode("utf-8", "surrogateescape")


def verify(keras: Any, model: Any, task: dict[str, Any]) -> dict[str, Any]:
    """``model`` (path) -> ``passed``, ``lines``: is this copy intact, and does this Keras compute what torch did?

    The digests reveal damage and edits, even in the last bit of a weight. They are not a signature: someone who wants
    to deceive can compute them again.
    """
    golden = read_golden(task["model"])
    checks = {
        "contents": contents_check(golden),
        "weights": loaded_weights_check(golden, model),
        "probabilities": probabilities_check(golden, model),
    }
    lines = [f"{'pass' if passed else 'FAIL'}  {name}: {text}" for name, (passed, text) in checks.items()]
    return {"passed": all(passed for passed, _ in checks.values()), "lines": lines}


def contents_check(golden: GoldenData) -> tuple[bool, str]:
    """Whether architecture, training configuration, facts and golden images have the digests stated in the file."""
    parts = sorted({*golden.stored, *golden.actual} - {"layers"})
    changed = [part for part in parts if golden.stored.get(part) != golden.actual.get(part)]
    return not changed, f"changed: {', '.join(changed)}" if changed else f"{', '.join(parts)} are as written"


def loaded_weights_check(golden: GoldenData, model: Any) -> tuple[bool, str]:
    """Whether every layer's weights, as this Keras holds them after loading, have the digest stated in the file."""
    arrays = {layer.name: layer.get_weights() for layer in model.layers}
    loaded = {name: array_digest(*each) for name, each in arrays.items() if each}
    expected = golden.stored["layers"]
    changed = [name for name in [*expected, *(loaded.keys() - expected)] if expected.get(name) != loaded.get(name)]
    if changed:
        return False, f"changed in {len(changed)} of {len(expected)} layers, first in {changed[0]}"
    return True, f"those of {len(loaded)} layers are as written, bit for bit"


def probabilities_check(golden: GoldenData, model: Any) -> tuple[bool, str]:
    """Whether the golden images give torch's probabilities and torch's labels."""
    expected, count = golden.outputs, len(golden.inputs)
    if not count or golden.inputs.shape[1:] != tuple(model.input_shape[1:]):
        return False, f"the model takes {model.input_shape}, the golden images are {golden.inputs.shape}"
    gave = np.asarray(model.predict_on_batch(golden.inputs.astype(np.float32) * np.float32(golden.scale)))
    if gave.shape != expected.shape:
        return False, f"the model gives {gave.shape}, torch gave {expected.shape}"
    difference = float(np.max(np.abs(gave - expected)))
    labels = int(np.sum(same_labels(expected, gave, GOLDEN_THRESHOLD)))
    text = (
        f"largest difference {difference:.2g} (at most {GOLDEN_THRESHOLD:g}), {labels} of {count} labels equal torch's"
    )
    return difference <= GOLDEN_THRESHOLD and labels == count, text


def same_labels(expected: np.ndarray, gave: np.ndarray, tie: float) -> np.ndarray:
    """For each image, whether both sides put the same class first, or one that is equally likely; bool, (N,).

    If two classes are equally likely, as for an image of a single colour, rounding decides which comes first. So
    another label counts as the same if its expected probability is within `tie` of the largest. Of a single
    probability, the label is whether it is above a half.

    Args:
        expected: torch's probabilities, (N, C).
        gave: the other side's; if their shape differs, no image agrees.
        tie: the largest difference between two probabilities that count as equally likely.
    """
    if expected.shape != gave.shape:
        return np.zeros(len(expected), bool)
    if expected.shape[1] == 1:  # a yes or no: its label is that of the likelier of the two
        expected, gave = (np.concatenate([1 - each, each], axis=1) for each in (expected, gave))
    exact = expected.astype(np.float64)
    of_label = np.take_along_axis(exact, gave.argmax(axis=1)[:, None], axis=1)[:, 0]
    # a row with NaN has no label
    return (exact.max(axis=1) - of_label <= tie) & np.isfinite(gave).all(axis=1)


def verify_and_say(path: str) -> int:
    """Load the file as any user would and `verify` it; the last line says PASS or FAIL.

    Returns:
        The exit code: 0: the file passed; 1: it differs; 2: it could not be checked.
    """
    # The proof needs exact float32, so no GPU unless asked for. This must be set before any Keras is imported.
    for name, value in (("CUDA_VISIBLE_DEVICES", "-1"), ("TF_CPP_MIN_LOG_LEVEL", "3")):
        os.environ.setdefault(name, value)
    try:
        check_packages()
        check_storage(path)
        read_golden(path)  # fail early, before Keras is started
        keras = find_keras()
        result = verify(keras, load(keras, path), {"model": path})
    except Refused as refused:
        print(f"FAIL: not checked: {refused}")
        return 2
    except Exception:
        traceback.print_exc()
        print(f"FAIL: not checked: {path} makes this Keras fail")
        return 2
    print(", ".join(f"{name} {version}" for name, version in versions(keras).items()))
    print(*result["lines"], "PASS" if result["passed"] else "FAIL", sep="\n")
    return 0 if result["passed"] else 1


TASKS = {
    "predict": predict,
    "predict_exact": predict_exact,
    "weights": weights,
    "layers": layers,
    "train": train,
    "files": files,
    "use": use,
    "verify": verify,
}


def application(keras: Any, name: str, settings: dict[str, Any]) -> str:
    """The architecture of a network of keras.applications, as its ``to_json`` says it, without weights."""
    build = getattr(keras.applications, name, None)
    if not name.isalnum() or isinstance(build, type(keras)) or not callable(build):
        known = [each for each in dir(keras.applications) if each[0].isupper()]
        raise Refused(
            "architecture", f"keras.applications of Keras {_version(keras)} has no {name}, it has {', '.join(known)}"
        )
    settings = dict(settings)
    if "size" in settings:
        height, *width = settings.pop("size")
        settings["input_shape"] = (height, *(width or [height]), 3)
    try:
        return str(build(weights=None, **settings).to_json())
    except (TypeError, ValueError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refused("architecture", f"Keras {_version(keras)} does not build this {name}: {first_line}") from error


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Do the jobs in order. Each job loads its model once and does its tasks with it.

    A request may have an ``application`` (``name`` and ``settings``) instead, and gets its ``architecture``.
    """
    check_packages()
    spent = {"imports": 0.0}
    with counted(spent, "imports"):
        keras = find_keras()
    if "application" in request:
        return {"versions": versions(keras), "architecture": application(keras, **request["application"])}
    results = []
    for job in request["jobs"]:
        try:
            with counted(spent, "loading"):
                model = load(keras, job["model"], job.get("compile", True))
        except Refused as refused:
            if not job.get("may_refuse"):
                raise
            results.append([{"refused": str(refused)}])
            continue
        done = []
        for task in job["tasks"]:
            with counted(spent, task["task"]):
                done.append(TASKS[task["task"]](keras, model, {**task, "model": job["model"]}))
        results.append(done)
        _EXACT.clear()
    return {"versions": versions(keras), "results": results, "processor_seconds": spent}


@contextmanager
def counted(spent: dict[str, float], what: str) -> Iterator[None]:
    """Add the processor seconds of what is done inside."""
    start = time.process_time()
    try:
        yield
    finally:
        spent[what] = round(spent.get(what, 0.0) + time.process_time() - start, 3)


def stream(opened: Callable[[], tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]]) -> int:
    """Open a model and do tasks with it as they arrive, each a line of JSON on stdin, until stdin ends.

    A task may have ``inputs_bytes`` in place of the paths ``inputs`` and ``outputs``: so many bytes of an .npy follow
    its line, and the result has ``outputs_base64``, an .npy as well. So photos need not be in files.

    Every reply is a line of JSON on stdout. The first, once the model is open, says what it is; then comes the result
    of each task. An error is reported as in ``REPLY.json`` and ends the stream.

    Args:
        opened: opens the model; returns the first reply, with ``versions``, ``input_shape`` and ``output_shape``, and
            what does a task.

    Returns:
        The exit code: 0 only if every task was done.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # anything else that is printed goes to stderr, not among the replies

    def reply(content: dict[str, Any]) -> None:
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    try:
        about, do = opened()
        reply(about)
        for line in iter(sys.stdin.buffer.readline, b""):
            task = json.loads(line)
            outputs = io.BytesIO()
            if "inputs_bytes" in task:
                content = sys.stdin.buffer.read(task["inputs_bytes"])
                task.update(inputs=np.load(io.BytesIO(content), allow_pickle=False), outputs=outputs)
            result = do(task)
            if "inputs_bytes" in task:
                result["outputs_base64"] = base64.b64encode(outputs.getvalue()).decode()
            reply(result)
    except Refused as refused:
        reply({"error": str(refused), "kind": refused.kind})
        return 1
    except Exception:
        reply({"error": traceback.format_exc(), "kind": "fault"})
        return 1
    return 0


def opened_model(path: str) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """A Keras model for `stream`."""
    check_packages()
    keras = find_keras()
    model = load(keras, path)
    shapes = {"input_shape": _shape_of(model, "input_shape"), "output_shape": _shape_of(model, "output_shape")}
    return {"versions": versions(keras), **shapes}, lambda task: TASKS[task["task"]](
        keras, model, task | {"model": path}
    )


def _shape_of(model: Any, name: str) -> list[Any] | None:
    """The model's input or output shape; None if it has several, or none."""
    shape = getattr(model, name, None)
    if not isinstance(shape, (tuple, list)) or any(isinstance(size, (tuple, list, dict)) for size in shape):
        return None
    return list(shape)


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
        print(__doc__, file=sys.stderr)
        sys.exit(2)  # nothing was checked; 1 would mean that the file differs
    if sys.argv[1] == "verify":
        sys.exit(verify_and_say(sys.argv[2]))
    if sys.argv[1] == "stream":
        sys.exit(stream(lambda: opened_model(sys.argv[2])))
    sys.exit(main(sys.argv[1], sys.argv[2]))
