"""A Keras model behind FastAPI, written plainly, as tutorials have it; for `serve_load.py` to compare with.

Needs nothing of this project, so that it runs with another team's Keras:

    python benchmarks/serving/bare_keras_service.py MODEL.h5 LABELS.json PORT
"""

import io
import json
import sys
from pathlib import Path

import keras
import numpy as np
import uvicorn
from fastapi import FastAPI, UploadFile

model_path, labels_path, port = sys.argv[1:]
labels = json.loads(Path(labels_path).read_text())
model = keras.models.load_model(model_path)
app = FastAPI()


@app.post("/predict")
def predict(photos: UploadFile) -> dict:
    """The likeliest label of one photo."""
    photo = keras.utils.load_img(
        io.BytesIO(photos.file.read()), target_size=labels["image_size"], interpolation=labels["interpolation"]
    )
    pixels = np.asarray(photo, "float32")[None] / 255
    probabilities = model.predict(pixels, verbose=0)[0]
    best = int(probabilities.argmax())
    return {"label": labels["class_names"][best], "probability": float(probabilities[best])}


uvicorn.run(app, port=int(port), log_level="warning")
