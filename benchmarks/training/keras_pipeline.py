"""An old training program, as its users would run it, for `train_throughput.py`. Never imports torch."""

import json
import resource
import sys
import time
from typing import Any

import keras
import tensorflow as tf
from keras.src.legacy.preprocessing.image import ImageDataGenerator


def build_generator(settings: dict[str, Any]) -> Any:
    """Return the training photos as `flow_from_directory` yields them."""
    side = settings["image_size"]
    generator = ImageDataGenerator(rescale=1 / 255, validation_split=0.2, **settings["augmentation"])
    return generator.flow_from_directory(
        settings["root"],
        target_size=(side, side),
        batch_size=settings["batch_size"],
        class_mode="categorical",
        subset="training",
    )


def build_model(settings: dict[str, Any]) -> Any:
    """Return the same network with the same weights as the other side's: its untrained Keras twin."""
    model = keras.models.load_model(settings["h5"], compile=False)
    for layer in model.layers:
        layer.trainable = settings["trainable"] == "all" or isinstance(layer, keras.layers.Dense)
    model.compile(
        optimizer=keras.optimizers.Adam(settings["learning_rate"]),
        loss="categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def peak_memory_mb() -> float:
    """Peak memory in MB of 10^6 bytes: the GPU's if one is used, otherwise this process's."""
    if tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    """Answer each line of input with a line of JSON."""
    answers, sys.stdout = sys.stdout, sys.stderr  # because Keras prints to stdout, too
    settings = json.loads(sys.argv[1])

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    start = time.perf_counter()
    photos, model = build_generator(settings), build_model(settings)
    device = "gpu" if tf.config.list_physical_devices("GPU") else "cpu"
    answer({"seconds": time.perf_counter() - start, "device": device})
    for command in sys.stdin:
        if command.strip() == "stop":
            answer({"peak_memory_mb": peak_memory_mb()})
            return
        start = time.perf_counter()
        history = model.fit(photos, epochs=1, verbose=0)
        seconds = time.perf_counter() - start
        answer({"seconds": seconds, "photos": photos.samples, "accuracy": history.history["accuracy"][0]})


if __name__ == "__main__":
    main()
