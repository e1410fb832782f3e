"""The card's code: how the handed-over file is loaded in each framework; a test runs what it says."""

from collections.abc import Mapping
from typing import Any

_KERAS = """\
Keras, 2 or 3, with nothing else:

```python
import json

import keras
import numpy

labels = json.load(open("labels.json"))
model = keras.models.load_model("model.h5")
photo = keras.utils.load_img("photo.jpg", target_size=labels["image_size"], interpolation=labels["interpolation"])
probabilities = model.predict(numpy.asarray(photo, "float32")[None]{scale})[0]
print(labels["class_names"][probabilities.argmax()], probabilities.max())
```"""
_SHELFTWIN = """\
ShelfTwin, for many photos and a table of their labels; `lightning import` makes a PyTorch checkpoint of it:

```
lightning predict model.h5 PHOTOS
lightning import model.h5 best.ckpt
```"""
_PYTORCH = """\
PyTorch, with that checkpoint and ShelfTwin:

```python
from pathlib import Path

import torch
from datamodule import load_photo
from export.checkpoint import read_checkpoint

checkpoint = read_checkpoint(Path("best.ckpt"))
pixels = load_photo(Path("photo.jpg"), checkpoint.image_size, checkpoint.interpolation, checkpoint.loading)
image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
with torch.inference_mode():
    probabilities = checkpoint.network(image).softmax(dim=1)[0]
print(checkpoint.class_names[int(probabilities.argmax())], float(probabilities.max()))
```"""
_OTHERS = """\
Other runtimes have their own formats, each proved before it is written. ShelfTwin's `docs/service/deploy.md` has the
code for TensorFlow Serving, ONNX Runtime, LiteRT and OpenVINO.

```
lightning export best.ckpt model.h5 --format saved_model,onnx,tflite,tflite_float16
```

ONNX Runtime and Pillow; the file itself says its classes and size:

```python
import json

import numpy
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
height, width = json.loads(facts["image_size"])
photo = Image.open("photo.jpg", formats=["JPEG", "PNG"]).convert("RGB")
photo = photo.resize((width, height), Image.Resampling[facts["interpolation"].upper()])
pixels = numpy.asarray(photo, "float32")[None]{scale}
probabilities = session.run(None, {{session.get_inputs()[0].name: pixels}})[0][0]
print(json.loads(facts["class_names"])[probabilities.argmax()], probabilities.max())
```"""


def loading_code(labels: Mapping[str, Any]) -> str:
    """Return the code as Markdown.

    Args:
        labels: content of labels.json.
    """
    scale = " / 255" if labels["input_range"] == "unit" else ""
    return "\n\n".join((_KERAS.format(scale=scale), _SHELFTWIN, _PYTORCH, _OTHERS.format(scale=scale)))
