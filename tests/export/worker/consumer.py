"""What people do with a file that they were given: run as `PY consumer.py MODEL.h5 IMAGES.npy OUT.npz`, in any Keras.

No test: `test_consumers.py` runs it, in the Keras here and in an old one.
"""

import json
import sys
from pathlib import Path

import numpy as np

# Beside a tf.keras there is a package keras that is not to be used; the worker knows which one is.
sys.path.insert(0, str(Path(__file__).parents[3] / "export" / "worker"))
from keras_worker import find_keras

keras = find_keras()
import tensorflow as tf  # noqa: E402


def another_head(model, images):
    """The usual lines for other classes, and a fit with tf.data."""
    features = model.layers[-2].output
    outputs = keras.layers.Dense(3, activation="softmax", name="mine")(features)
    other = keras.Model(model.inputs, outputs)
    for layer in other.layers[:-1]:
        layer.trainable = False
    other.compile("adam", "sparse_categorical_crossentropy")
    data = tf.data.Dataset.from_tensor_slices((images, np.arange(len(images)) % 3)).batch(2).prefetch(1)
    loss = other.fit(data, epochs=1, verbose=0).history["loss"][0]
    assert np.isfinite(loss)
    return keras.Model(model.inputs, features).predict(images, verbose=0)


def cloned(model, images):
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    return clone.predict(images, verbose=0)


def from_json(model, images):
    other = keras.models.model_from_json(model.to_json())
    other.set_weights(model.get_weights())
    return other.predict(images, verbose=0)


def grad_cam(model, images):
    """Where the likeliest class is seen: gradients of its probability by the last convolution's output."""
    last = [layer for layer in model.layers if type(layer).__name__ in ("Conv2D", "DepthwiseConv2D")][-1]
    both = keras.Model(model.inputs, [last.output, model.output])
    with tf.GradientTape() as tape:
        maps, probabilities = both(tf.constant(images))
        best = tf.reduce_max(probabilities, axis=1)
    weights = tf.reduce_mean(tape.gradient(best, maps), axis=(1, 2), keepdims=True)
    return tf.reduce_sum(weights * maps, axis=-1).numpy()


def tflite(model, images):
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    place = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(place, images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(place, images)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def quantised(model, images):
    """Quantisation-aware training, where it is installed; it is made for Keras 2 alone. See docs/from_keras.md."""
    if keras.__version__.startswith("3"):
        return np.zeros(0)
    try:
        from tensorflow_model_optimization.quantization import keras as quantization
    except ImportError:
        return np.zeros(0)

    class AsItIs(quantization.QuantizeConfig):
        """For a layer that the package does not know, such as Rescaling: its numbers stay float32."""

        def get_weights_and_quantizers(self, layer):
            return []

        get_activations_and_quantizers = get_output_quantizers = get_weights_and_quantizers

        def set_quantize_weights(self, layer, weights):
            pass

        set_quantize_activations = set_quantize_weights

        def get_config(self):
            return {}

    def annotated(layer):
        config = AsItIs() if isinstance(layer, keras.layers.Rescaling) else None
        return quantization.quantize_annotate_layer(layer, config)

    marked = keras.models.clone_model(model, clone_function=annotated)
    marked.set_weights(model.get_weights())
    with quantization.quantize_scope({"AsItIs": AsItIs}):
        aware = quantization.quantize_apply(marked)
    aware.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    losses = aware.fit(images, np.arange(len(images)) % 4, epochs=12, verbose=0).history["loss"]
    assert min(losses) < 0.9 * losses[0], losses
    return aware.predict(images, verbose=0)


if __name__ == "__main__":
    images = np.load(sys.argv[2])
    found = {"answers": keras.models.load_model(sys.argv[1]).predict(images, verbose=0)}
    for use in (another_head, cloned, from_json, grad_cam, tflite, quantised):
        found[use.__name__] = np.asarray(use(keras.models.load_model(sys.argv[1]), images))
    np.savez(sys.argv[3], **found)
    print(json.dumps({name: list(value.shape) for name, value in found.items()}))
