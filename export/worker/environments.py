"""The environments of our own: onnx2tf, for its second opinion, and tf_keras, which loads what Keras 3 does not."""

from __future__ import annotations

from export.worker.own_environment import OwnEnvironment

VERSION = "1.28.8"
_ONNX2TF = (
    f"onnx2tf=={VERSION}",
    "tensorflow==2.21.0",
    "tf-keras==2.21.0",
    "onnx==1.23.2",
    "onnx-graphsurgeon==0.6.1",
    "onnxruntime==1.32.0",
    "onnxsim==0.8.1",
    "sng4onnx==2.0.1",
    "ai-edge-litert==2.3.0",
    "psutil==7.2.2",
    "h5py==3.14.0",
    "numpy==2.4.6",
)
_TENSORFLOW = ("tensorflow==2.21.0", "tf-keras==2.21.0", "h5py==3.14.0", "numpy==2.4.6")

# onnx2tf declares none of its dependencies.
ONNX2TF = OwnEnvironment(f"onnx2tf-{VERSION}", "onnx2tf", _ONNX2TF, "leave onnx2tf out of --second_opinions")
TF_KERAS = OwnEnvironment(
    "tf_keras-2.21.0",
    "tf_keras",
    _TENSORFLOW,
    "name an interpreter whose Keras loads the old file with --keras_python",
)
