"""Ask the real Keras what its old generator does. Runs in a process of its own, so that the tests never import Keras.

Reads jobs from stdin, one JSON object per line: {"task": name, "answer": path, **arguments}. Writes the arrays of each
answer to its path as .npz, then one line to stdout: "done", or what went wrong. Keras needs SciPy for `transform`.
"""

import inspect
import json
import os
import sys
import traceback

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # before Keras: TensorFlow reads it as it starts

import numpy as np
from keras.src.legacy.preprocessing.image import ImageDataGenerator
from keras.utils import img_to_array, load_img


def split(root, validation_split):
    generator = ImageDataGenerator(validation_split=validation_split)
    answer = {}
    for subset in ("training", "validation"):
        flow = generator.flow_from_directory(root, subset=subset, shuffle=False, class_mode="sparse")
        answer[f"{subset}_files"] = np.array(flow.filenames, dtype=np.str_)
        answer[f"{subset}_labels"] = flow.classes
    answer["class_names"] = np.array(sorted(flow.class_indices, key=flow.class_indices.get), dtype=np.str_)
    return answer


def load(paths, image_size, interpolation):
    """Load each path; those that Keras cannot load are missing in the answer."""
    answer = {}
    for row, path in enumerate(paths):
        try:
            answer[str(row)] = img_to_array(load_img(path, target_size=image_size, interpolation=interpolation))
        except Exception as error:
            print(f"{path}: {type(error).__name__}: {error}", file=sys.stderr)
    return answer


def batch(root, image_size, interpolation, validation_split, subset, augmentation=None):
    generator = ImageDataGenerator(rescale=1 / 255, validation_split=validation_split, **augmentation or {})
    flow = generator.flow_from_directory(
        root, subset=subset, shuffle=False, class_mode="sparse", target_size=image_size, interpolation=interpolation
    )
    images, labels = flow[0]
    return {"images": images, "labels": labels}


def transform(photos, parameters, settings):
    """Transform photo by photo; `photos` names an .npy file, parameters are lists, one entry per photo."""
    generator = ImageDataGenerator(**settings)
    images = [
        generator.apply_transform(photo.astype(np.float32), {name: values[row] for name, values in parameters.items()})
        for row, photo in enumerate(np.load(photos))
    ]
    return {"images": np.stack(images)}


def draw(settings, image_shape, count, seed):
    np.random.seed(seed)
    generator = ImageDataGenerator(**settings)
    drawn = [generator.get_random_transform(image_shape) for _ in range(count)]
    return {name: np.array([np.nan if d[name] is None else d[name] for d in drawn], dtype=float) for name in drawn[0]}


def settings():
    return {"names": np.array(list(inspect.signature(ImageDataGenerator).parameters), dtype=np.str_)}


TASKS = {"settings": settings, "split": split, "load": load, "batch": batch, "transform": transform, "draw": draw}

if __name__ == "__main__":
    replies, sys.stdout = sys.stdout, sys.stderr  # Keras prints what it found
    for line in sys.stdin:
        job = json.loads(line)
        task, answer = TASKS[job.pop("task")], job.pop("answer")
        try:
            np.savez(answer, **task(**job))
            reply = "done"
        except Exception:
            reply = traceback.format_exc()
        print(json.dumps(reply), file=replies, flush=True)
