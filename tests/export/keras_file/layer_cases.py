"""One small network for each layer and setting that a classifier may have, saved by whatever Keras runs this file.

    KERAS_PYTHON layer_cases.py FOLDER [CASE ...]
    KERAS_PYTHON layer_cases.py FOLDER --together 16 [CASE ...]

No test: `test_layer_cases.py` runs it. Writes CASE.h5, in Keras 3 CASE.keras as well, and CASE.npz with `images` and
`answer`, what this Keras gave for them. What this Keras does not have, or does not compute, is named and left out.
Needs Keras and numpy; `benchmarks/keras_files.py FOLDER` upgrades what is written.
"""

import logging
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np

# Beside a tf.keras there is a package keras that is not to be used; the worker knows which one is.
sys.path.insert(0, str(Path(__file__).parents[3] / "export" / "worker"))
from keras_worker import find_keras

keras = find_keras()
logging.getLogger("absl").setLevel(logging.ERROR)  # Keras 3 warns of every .h5
L = keras.layers
V3 = str(getattr(keras, "__version__", "2")).startswith("3")
HEIGHT, WIDTH, CHANNELS = 12, 10, 6

# Case -> what is done to a map (12, 10, 6); what comes out is flattened and classified.
OF_MAPS = {
    "group_norm": lambda x: L.GroupNormalization(groups=3)(x),
    "group_norm_each": lambda x: L.GroupNormalization(groups=-1)(x),
    "group_norm_all": lambda x: L.GroupNormalization(groups=1, epsilon=1e-5, center=False)(x),
    "group_norm_plain": lambda x: L.GroupNormalization(groups=2, scale=False)(x),
    "group_norm_rows": lambda x: L.GroupNormalization(groups=4, axis=1)(x),
    "layer_norm": lambda x: L.LayerNormalization(epsilon=1e-6, scale=False)(x),
    "layer_norm_map": lambda x: L.LayerNormalization(axis=[1, 2, 3])(x),
    "layer_norm_places": lambda x: L.LayerNormalization(axis=[1, 2])(x),
    "layer_norm_rows": lambda x: L.LayerNormalization(axis=1)(x),
    "layer_norm_rms": lambda x: L.LayerNormalization(rms_scaling=True)(x),
    "rms_norm": lambda x: L.RMSNormalization()(x),
    "unit_norm": lambda x: L.UnitNormalization()(x),
    "unit_norm_rows": lambda x: L.UnitNormalization(axis=1)(x),
    "unit_norm_map": lambda x: L.UnitNormalization(axis=[1, 2, 3])(x),
    "batch_norm_rows": lambda x: L.BatchNormalization(axis=1)(x),
    "batch_norm_columns": lambda x: L.BatchNormalization(axis=2)(x),
    "batch_norm_last": lambda x: L.BatchNormalization(axis=3, scale=False)(x),
    "batch_norm_together": lambda x: L.BatchNormalization(synchronized=True)(x),
    "batch_norm_renorm": lambda x: L.BatchNormalization(renorm=True)(x),
    "batch_norm_sync": lambda x: L.experimental.SyncBatchNormalization()(x),
    "softmax_channels": lambda x: L.Softmax()(x),
    "softmax_rows": lambda x: L.Softmax(axis=1)(x),
    "softmax_places": lambda x: L.Softmax(axis=[1, 2])(x),
    "softmax_map": lambda x: L.Activation("softmax")(x),
    "concatenate_rows": lambda x: L.Concatenate(axis=1)([x, L.ReLU()(x)]),
    "concatenate_columns": lambda x: L.Concatenate(axis=-2)([x, L.ReLU()(x), L.Cropping2D((0, 2))(x)]),
    "concatenate_rows_1": lambda x: L.Concatenate(axis=1)([L.Cropping2D(((11, 0), (0, 0)))(x), x]),
    "permute": lambda x: L.Permute((3, 1, 2))(x),
    "permute_2": lambda x: L.Permute((2, 1))(L.Reshape((HEIGHT * WIDTH, CHANNELS))(x)),
    "cropping": lambda x: L.Cropping2D(((1, 2), (0, 3)))(x),
    "zero_padding": lambda x: L.ZeroPadding2D(((1, 0), (2, 3)))(x),
    "upsampling": lambda x: L.UpSampling2D((2, 3))(x),
    "upsampling_bilinear": lambda x: L.UpSampling2D((2, 3), interpolation="bilinear")(x),
    "upsampling_bicubic": lambda x: L.UpSampling2D(2, interpolation="bicubic")(x),
    "upsampling_lanczos": lambda x: L.UpSampling2D(2, interpolation="lanczos3")(x),
    "upsampling_area": lambda x: L.UpSampling2D(2, interpolation="area")(x),
    "resizing": lambda x: L.Resizing(7, 9)(x),
    "resizing_nearest": lambda x: L.Resizing(17, 5, interpolation="nearest")(x),
    "resizing_bicubic": lambda x: L.Resizing(7, 15, interpolation="bicubic")(x),
    "resizing_lanczos": lambda x: L.Resizing(7, 15, interpolation="lanczos5")(x),
    "resizing_area": lambda x: L.Resizing(7, 5, interpolation="area")(x),
    "resizing_cropped": lambda x: L.Resizing(6, 8, crop_to_aspect_ratio=True)(x),
    "resizing_padded": lambda x: L.Resizing(6, 8, pad_to_aspect_ratio=True)(x),
    "center_crop": lambda x: L.CenterCrop(7, 5)(x),
    "center_crop_larger": lambda x: L.CenterCrop(14, 9)(x),
    "random_crop": lambda x: L.RandomCrop(8, 8)(x),
    "random_crop_same": lambda x: L.RandomCrop(12, 10)(x),
    "separable": lambda x: L.SeparableConv2D(5, 3, padding="same", depth_multiplier=2, activation="relu")(x),
    "separable_strided": lambda x: L.SeparableConv2D(5, (3, 3), strides=2, use_bias=False)(x),
    "separable_dilated": lambda x: L.SeparableConv2D(5, 3, dilation_rate=2, padding="same")(x),
    "transposed": lambda x: L.Conv2DTranspose(4, 3, strides=2, padding="same", activation="relu")(x),
    "transposed_valid": lambda x: L.Conv2DTranspose(4, (2, 4), strides=(3, 2))(x),
    "transposed_odd": lambda x: L.Conv2DTranspose(4, 3, strides=2, output_padding=1)(x),
    "transposed_dilated": lambda x: L.Conv2DTranspose(4, 3, dilation_rate=2)(x),
    "depthwise": lambda x: L.DepthwiseConv2D(3, depth_multiplier=2, activation="relu6")(x),
    "depthwise_dilated": lambda x: L.DepthwiseConv2D(3, dilation_rate=2, padding="same")(x),
    "depthwise_strided": lambda x: L.DepthwiseConv2D((5, 3), strides=2, padding="same", use_bias=False)(x),
    "grouped": lambda x: L.Conv2D(9, 3, groups=3, padding="same")(x),
    "grouped_each": lambda x: L.Conv2D(12, 3, groups=6)(x),
    "grouped_one": lambda x: L.Conv2D(6, 3, groups=6)(x),
    "dilated": lambda x: L.Conv2D(5, 3, dilation_rate=(2, 3), padding="same")(x),
    "even_kernel": lambda x: L.Conv2D(5, (4, 2), strides=(2, 1), padding="same")(x),
    "convolution_gelu": lambda x: L.Conv2D(5, 3, activation="gelu")(x),
    "convolution_layer_inside": lambda x: L.Conv2D(5, 3, activation=L.LeakyReLU(0.1))(x),
    "leaky": lambda x: L.LeakyReLU()(x),
    "leaky_0": lambda x: L.LeakyReLU(0.0)(x),
    "leaky_steep": lambda x: L.LeakyReLU(1.5)(x),
    "prelu": lambda x: L.PReLU()(x),
    "prelu_shared": lambda x: L.PReLU(shared_axes=[1, 2])(x),
    "prelu_rows": lambda x: L.PReLU(shared_axes=[2])(x),
    "prelu_all": lambda x: L.PReLU(shared_axes=[1, 2, 3])(x),
    "thresholded": lambda x: L.ThresholdedReLU(0.3)(x),
    "relu_slope": lambda x: L.ReLU(negative_slope=0.2)(x),
    "relu_steep": lambda x: L.ReLU(negative_slope=1.5)(x),
    "relu_threshold": lambda x: L.ReLU(threshold=0.2)(x),
    "relu_of_all": lambda x: L.ReLU(max_value=0.8, negative_slope=0.1, threshold=0.2)(x),
    "relu_threshold_slope": lambda x: L.ReLU(negative_slope=0.1, threshold=0.2)(x),
    "elu": lambda x: L.ELU(alpha=0.4)(x),
    "minimum": lambda x: L.Minimum()([x, L.ReLU()(x), L.Activation("tanh")(x)]),
    "maximum": lambda x: L.Maximum()([x, L.Activation("tanh")(x)]),
    "average": lambda x: L.Average()([x, L.ReLU()(x), L.Activation("tanh")(x)]),
    "subtract": lambda x: L.Subtract()([x, L.ReLU()(x)]),
    "multiply": lambda x: L.Multiply()([x, L.ReLU()(x), L.Activation("tanh")(x)]),
    "multiply_itself": lambda x: L.Multiply()([x, x]),
    "add_rows": lambda x: L.Add()([x, L.AveragePooling2D((12, 1))(x)]),
    "maximum_place": lambda x: L.Maximum()([x, L.AveragePooling2D((12, 10))(x)]),
    "spatial_attention": lambda x: L.Multiply()([x, L.Conv2D(1, 7, padding="same", activation="sigmoid")(x)]),
    "squeeze": lambda x: L.Multiply()([
        x, L.Reshape((1, 1, 6))(L.Dense(6, activation="sigmoid")(L.GlobalAveragePooling2D()(x)))]),
    "squeeze_bare": lambda x: L.Multiply()([x, L.Dense(6, activation="sigmoid")(L.GlobalMaxPooling2D()(x))]),
    "squeeze_kept": lambda x: L.Multiply()([
        x, L.Conv2D(6, 1, activation="hard_sigmoid")(L.GlobalAveragePooling2D(keepdims=True)(x))]),
    "pool_strided": lambda x: L.MaxPooling2D((3, 2), strides=(1, 2), padding="same")(x),
    "average_same": lambda x: L.AveragePooling2D(3, strides=2, padding="same")(x),
    "dense_on_map": lambda x: L.Dense(4, activation="relu")(x),
    "noise": lambda x: L.AlphaDropout(0.1)(L.GaussianDropout(0.1)(L.GaussianNoise(0.1)(L.SpatialDropout2D(0.2)(x)))),
    "activity": lambda x: L.ActivityRegularization(l1=0.1)(x),
    "dropout_shape": lambda x: L.Dropout(0.2, noise_shape=(None, 1, 1, 6))(x),
    "rescaling": lambda x: L.Rescaling([1, 2, 3, 4, 5, 0.5], offset=0.3)(x),
    "rescaling_rows": lambda x: L.Rescaling(np.arange(1.0, 13.0).reshape(12, 1, 1).tolist())(x),
    "normalization": lambda x: L.Normalization(mean=[0.1] * 6, variance=[1.5] * 6)(x),
    "normalization_one": lambda x: L.Normalization(axis=None, mean=0.2, variance=2.0)(x),
    "normalization_invert": lambda x: L.Normalization(mean=[0.1] * 6, variance=[1.5] * 6, invert=True)(x),
    "normalization_rows": lambda x: L.Normalization(axis=1, mean=list(range(12)), variance=[1.5] * 12)(x),
    "tokens_pooled": lambda x: L.GlobalAveragePooling1D()(L.Reshape((HEIGHT * WIDTH, CHANNELS))(x)),
    "tokens_largest": lambda x: L.GlobalMaxPooling1D()(L.Reshape((HEIGHT * WIDTH, CHANNELS))(x)),
    "tokens_convolved": lambda x: L.Conv1D(4, 3, padding="same", activation="relu")(
        L.Reshape((HEIGHT, WIDTH * CHANNELS))(x)),
    "tokens_causal": lambda x: L.Conv1D(4, 3, padding="causal")(L.Reshape((HEIGHT, WIDTH * CHANNELS))(x)),
    "tokens_max_pooled": lambda x: L.MaxPooling1D(2)(L.Reshape((HEIGHT, WIDTH * CHANNELS))(x)),
    "tokens_average_pooled": lambda x: L.AveragePooling1D(3, strides=2, padding="same")(
        L.Reshape((HEIGHT, WIDTH * CHANNELS))(x)),
    "tokens_cropped": lambda x: L.ZeroPadding1D((1, 2))(L.Cropping1D((2, 1))(L.Reshape((12, 60))(x))),
    "tokens_upsampled": lambda x: L.UpSampling1D(2)(L.Reshape((12, 60))(x)),
    "tokens_dropped": lambda x: L.SpatialDropout1D(0.2)(L.Reshape((12, 60))(x)),
    "tokens_normalised": lambda x: L.BatchNormalization()(L.Reshape((12, 60))(x)),
    "tokens_dense": lambda x: L.LayerNormalization()(L.Dense(5)(L.Reshape((12, 60))(x))),
    "dot_tokens": lambda x: L.Dot(axes=(1, 1))([
        L.Reshape((120, 6))(x), L.Reshape((120, 6))(L.Activation("tanh")(x))]),
    "dot_last": lambda x: L.Dot(axes=2)([L.Reshape((20, 36))(x), L.Reshape((20, 36))(L.Activation("tanh")(x))]),
    "dot_normalised": lambda x: L.Dot(axes=1, normalize=True)([
        L.Reshape((120, 6))(x), L.Reshape((120, 6))(L.Activation("tanh")(x))]),
    "nested": lambda x: keras.Sequential([
        L.Conv2D(4, 3, name="c"), keras.Sequential([L.BatchNormalization(), L.ReLU()], name="inner")], name="outer")(x),
    "spectral": lambda x: L.SpectralNormalization(L.Conv2D(4, 3))(x),
    "time_distributed": lambda x: L.TimeDistributed(L.Dense(4))(L.Reshape((12, 60))(x)),
    "time_distributed_map": lambda x: L.TimeDistributed(L.Conv2D(2, 3))(L.Reshape((3, 8, 5, 3))(L.Cropping2D(0)(x))),
    "identity": lambda x: L.Identity()(x),
    "repeat": lambda x: L.RepeatVector(3)(L.GlobalAveragePooling2D()(x)),
    "masking": lambda x: L.Masking(7.0)(L.Reshape((12, 60))(x)),
    "equalization": lambda x: L.Equalization()(x),
    "heads_of_map": lambda x: L.MultiHeadAttention(2, 4)(x, x),
    "heads_of_columns": lambda x: L.MultiHeadAttention(2, 4, attention_axes=(2,))(x, x),
    "convnext": lambda x: of_application("ConvNeXtTiny").ConvNeXtBlock(6, 0.2, 0.5, name="block")(x),
    "convnext_nested": lambda x: nested_convnext()(x),
    "inception_resnet": lambda x: of_application("InceptionResNetV2").inception_resnet_block(x, 0.2, "block35", 1),
}  # fmt: skip
# Case -> what is done to tokens, (20, 36), and others, (30, 24).
OF_TOKENS = {
    "heads": lambda t, u: L.MultiHeadAttention(3, 4)(t, t),
    "heads_crossed": lambda t, u: L.MultiHeadAttention(2, 5, value_dim=3, output_shape=7, use_bias=False)(
        t, value=u, key=L.Activation("tanh")(u)),
    "heads_dropped": lambda t, u: L.MultiHeadAttention(2, 4, dropout=0.3, attention_axes=1)(t, u),
    "heads_nested": lambda t, u: with_names_of_parts()(t),
    "heads_grouped": lambda t, u: L.GroupQueryAttention(5, 6, 2)(t, t),
    "heads_causal": lambda t, u: L.MultiHeadAttention(3, 4)(t, t, use_causal_mask=True),
    "heads_masked": lambda t, u: L.MultiHeadAttention(3, 4)(t, t, attention_mask=np.tri(20)[None] > 0),
    "heads_scores": lambda t, u: L.MultiHeadAttention(3, 4)(t, t, return_attention_scores=True)[0],
    "attention": lambda t, u: L.Attention()([t, L.Dense(36)(u)]),
    "attention_scaled": lambda t, u: L.Attention(use_scale=True, dropout=0.1)([t, L.Dense(36)(u), L.Dense(36)(u)]),
    "attention_joined": lambda t, u: L.Attention(use_scale=True, score_mode="concat")([t, L.Dense(36)(u)]),
    "attention_causal": lambda t, u: L.Attention()([t, t], use_causal_mask=True),
    "attention_additive": lambda t, u: L.AdditiveAttention()([t, L.Dense(36)(u), L.Dense(36)(u)]),
    "attention_additive_plain": lambda t, u: L.AdditiveAttention(use_scale=False)([t, L.Dense(36)(u)]),
    "einsum": lambda t, u: L.EinsumDense("abc,cd->abd", (20, 5), bias_axes="d", activation="relu")(t),
    "einsum_apart": lambda t, u: L.EinsumDense("abc,cde->abde", (20, 2, 5), bias_axes="de")(t),
    "einsum_together": lambda t, u: L.EinsumDense("abde,dec->abc", (20, 5), bias_axes="c")(L.Reshape((20, 9, 4))(t)),
    "einsum_dots": lambda t, u: L.EinsumDense("...x,xy->...y", 4)(t),
    "einsum_rows": lambda t, u: L.EinsumDense("abc,bd->adc", (5, 36))(t),
    "transformer": lambda t, u: vision_transformer(t),
}  # fmt: skip
# Case -> what is done to a vector of 6 numbers.
OF_VECTORS = {
    "dot": lambda x: L.Dot(axes=1)([L.Dense(4)(x), L.Dense(4, activation="tanh")(x)]),
    "cosine": lambda x: L.Dot(axes=1, normalize=True)([L.Dense(4)(x), L.Dense(4, activation="tanh")(x)]),
    "vector_group_norm": lambda x: L.GroupNormalization(groups=2)(x),
    "vector_unit_norm": lambda x: L.UnitNormalization()(x),
    "vector_layer_norm": lambda x: L.LayerNormalization()(x),
    "vector_batch_norm": lambda x: L.BatchNormalization(momentum=0.9)(x),
    "vector_prelu": lambda x: L.PReLU()(x),
    "vector_dense_layer": lambda x: L.Dense(5, activation=L.ELU(0.5))(x),
    "vector_softmax_list": lambda x: L.Softmax(axis=[-1])(x),
    "vector_concatenated": lambda x: L.Concatenate(axis=1)([x, L.Dense(3)(x)]),
    "vector_as_map": lambda x: L.Conv2D(4, 2)(L.Reshape((2, 3, 1))(x)),
    "vector_turned": lambda x: L.Conv1D(4, 3)(L.Reshape((6, 1))(x)),
    "highway": lambda x: L.Add()([
        L.Multiply()([L.Dense(6, activation="sigmoid", name="gate")(x), L.Dense(6, activation="relu")(x)]), x]),
}  # fmt: skip
ACTIVATIONS = (
    "elu exponential gelu hard_sigmoid linear relu relu6 selu sigmoid softmax softplus softsign swish tanh celu "
    "hard_shrink hard_silu hard_tanh leaky_relu log_sigmoid log_softmax mish silu soft_shrink sparse_plus "
    "sparse_sigmoid sparsemax squareplus tanh_shrink threshold"
)


def of_application(name):
    """The module of a network of keras.applications, with the parts that it is made of."""
    module = sys.modules[getattr(keras.applications, name).__module__]
    module.layers = module.layers or L  # in Keras 2 the network's function sets it
    return module


def nested_convnext():
    own = keras.Input((HEIGHT, WIDTH, CHANNELS))
    block = of_application("ConvNeXtTiny").ConvNeXtBlock
    return keras.Model(own, block(6, 0.1, 0.4, name="second")(block(6, 0.1, 0.3, name="first")(own)), name="base")


def with_names_of_parts():
    """A model inside in which other layers are called as the parts of an attention are."""
    own = keras.Input((20, 36))
    x = L.Dense(36, name="key")(L.Dense(36, name="query", activation="tanh")(own))
    return keras.Model(own, L.MultiHeadAttention(2, 4, name="first")(x, L.MultiHeadAttention(2, 3)(x, own)), name="own")


def vision_transformer(tokens):
    """Of Keras's own layers; where a token is, a constant says."""
    x = L.Dense(12)(tokens) + np.random.default_rng(3).normal(0, 1, (1, 20, 12)).astype("float32")
    for _ in range(2):
        y = L.LayerNormalization(epsilon=1e-6)(x)
        x = L.Add()([x, L.MultiHeadAttention(3, 4, dropout=0.1)(y, y)])
        y = L.Dense(24, activation="gelu")(L.LayerNormalization(epsilon=1e-6)(x))
        x = L.Add()([x, L.Dropout(0.1)(L.Dense(12)(y))])
    return L.GlobalAveragePooling1D()(L.LayerNormalization(epsilon=1e-6)(x))


def operations():
    """Case -> what is done to a map by functions, not layers."""
    if V3:
        ops = keras.ops
        return {
            "op_square": lambda x: x**2,
            "op_square_2": lambda x: ops.square(x),
            "op_absolute": lambda x: ops.abs(x),
            "op_clip": lambda x: ops.clip(x, -0.5, 0.5),
            "op_sum": lambda x: ops.sum(x, axis=(1, 2)),
            "op_mean_rows": lambda x: ops.mean(x, axis=1),
            "op_mean_channels": lambda x: ops.mean(x, axis=-1, keepdims=True),
            "op_max_channels": lambda x: ops.max(x, axis=-1, keepdims=True),
            "op_concatenate": lambda x: ops.concatenate([x, ops.relu(x)], axis=-1),
            "op_transpose": lambda x: ops.transpose(x, (0, 2, 1, 3)),
            "op_expand": lambda x: ops.squeeze(ops.expand_dims(ops.mean(x, axis=(1, 2)), 1), 1),
            "op_maximum": lambda x: ops.maximum(x, 0.1),
            "op_minimum": lambda x: ops.minimum(x, ops.tanh(x)),
            "op_product": lambda x: x * ops.sigmoid(x),
            "op_difference": lambda x: 1.0 - x,
            "op_quotient": lambda x: x / (1.0 + ops.exp(x)),
            "op_softmax": lambda x: ops.softmax(x, axis=-1),
            "op_normalise": lambda x: ops.normalize(x, axis=-1),
            "op_reshape": lambda x: ops.reshape(x, (-1, 120, 6)),
            "op_pad": lambda x: ops.pad(x, ((0, 0), (1, 1), (2, 0), (0, 0))),
            "op_leaky": lambda x: ops.leaky_relu(x, 0.1),
            "op_cut": lambda x: x[:, 1:-1, ::2, :],
            "op_split": lambda x: ops.add(*ops.split(x, 2, axis=-1)),
            "op_sqrt": lambda x: ops.sqrt(ops.relu(x) + 1.0),
            "op_rsqrt": lambda x: ops.rsqrt(ops.relu(x) + 1.0),
            "op_log": lambda x: ops.log(ops.relu(x) + 0.5),
            "op_var": lambda x: ops.var(x, axis=(1, 2)),
            "op_std": lambda x: ops.std(x, axis=-1, keepdims=True),
            "op_split_sizes": lambda x: ops.split(x, [2, 5], axis=-1)[1],
            "op_swapped": lambda x: ops.swapaxes(x, 1, -2),
            "op_repeated": lambda x: ops.repeat(ops.mean(x, axis=-1, keepdims=True), 3, axis=-1),
            "op_tiled": lambda x: ops.tile(ops.mean(x, axis=-1, keepdims=True), [1, 1, 1, 3]),
            "op_heads": lambda x: ops.matmul(x, ops.transpose(ops.tanh(x), (0, 1, 3, 2))),
            "op_hard_silu": lambda x: ops.hard_silu(x),
            "op_einsum": lambda x: ops.matmul(ops.reshape(x, (-1, 12, 60)), ops.reshape(x, (-1, 60, 12))),
            "op_pooling": lambda x: ops.max_pool(x, 2, 2, "same"),
            "op_resize": lambda x: ops.image.resize(x, (7, 9)),
        }
    import tensorflow as tf

    return {
        "op_square": lambda x: x**2,
        "op_square_2": lambda x: tf.square(x),
        "op_absolute": lambda x: tf.abs(x),
        "op_clip": lambda x: tf.clip_by_value(x, -0.5, 0.5),
        "op_sum": lambda x: tf.reduce_sum(x, axis=[1, 2]),
        "op_mean_rows": lambda x: tf.reduce_mean(x, axis=1),
        "op_mean_channels": lambda x: tf.reduce_mean(x, axis=-1, keepdims=True),
        "op_max_channels": lambda x: tf.reduce_max(x, axis=3, keepdims=True),
        "op_concatenate": lambda x: tf.concat([x, tf.nn.relu(x)], axis=-1),
        "op_transpose": lambda x: tf.transpose(x, [0, 2, 1, 3]),
        "op_expand": lambda x: tf.squeeze(tf.expand_dims(tf.reduce_mean(x, axis=[1, 2]), 1), 1),
        "op_maximum": lambda x: tf.maximum(x, 0.1),
        "op_minimum": lambda x: tf.minimum(x, tf.tanh(x)),
        "op_product": lambda x: x * tf.sigmoid(x),
        "op_difference": lambda x: 1.0 - x,
        "op_quotient": lambda x: x / (1.0 + tf.exp(x)),
        "op_softmax": lambda x: tf.nn.softmax(x, axis=-1),
        "op_normalise": lambda x: tf.math.l2_normalize(x, axis=-1),
        "op_reshape": lambda x: tf.reshape(x, [-1, 120, 6]),
        "op_pad": lambda x: tf.pad(x, [[0, 0], [1, 1], [2, 0], [0, 0]]),
        "op_leaky": lambda x: tf.nn.leaky_relu(x, 0.1),
        "op_cut": lambda x: x[:, 1:-1, ::2, :],
        "op_split": lambda x: tf.add(*tf.split(x, 2, axis=-1)),
        "op_sqrt": lambda x: tf.sqrt(tf.nn.relu(x) + 1.0),
        "op_rsqrt": lambda x: tf.math.rsqrt(tf.nn.relu(x) + 1.0),
        "op_log": lambda x: tf.math.log(tf.nn.relu(x) + 0.5),
        "op_var": lambda x: tf.math.reduce_variance(x, axis=[1, 2]),
        "op_std": lambda x: tf.math.reduce_std(x, axis=-1, keepdims=True),
        "op_split_sizes": lambda x: tf.split(x, [2, 3, 1], axis=-1)[1],
        "op_repeated": lambda x: tf.repeat(tf.reduce_mean(x, axis=-1, keepdims=True), 3, axis=-1),
        "op_tiled": lambda x: tf.tile(tf.reduce_mean(x, axis=-1, keepdims=True), [1, 1, 1, 3]),
        "op_grey": lambda x: tf.image.grayscale_to_rgb(x[..., :1]),
        "op_heads": lambda x: tf.matmul(x, tf.tanh(x), transpose_b=True),
        "op_hard_silu": lambda x: x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0),
        "op_einsum": lambda x: tf.matmul(tf.reshape(x, [-1, 12, 60]), tf.reshape(x, [-1, 60, 12])),
        "op_pooling": lambda x: tf.nn.max_pool2d(x, 2, 2, "SAME"),
        "op_resize": lambda x: tf.image.resize(x, [7, 9]),
    }


def network(changes):
    """All changes of one map side by side, each with a Dense of its own; their average is classified."""
    photo = keras.Input((HEIGHT + 2, WIDTH + 2, 3))
    first = L.Conv2D(CHANNELS, 3, name="first")(L.Rescaling(1 / 127.5, offset=-1)(photo))
    outputs = []
    for name, change in changes.items():
        try:
            outputs.append(L.Dense(3, activation="tanh", name=f"of_{name}")(L.Flatten()(change(first))))
        except Exception as error:  # not every Keras has every layer
            print("could not build", name, type(error).__name__, str(error)[:150].replace("\n", " "), flush=True)
    last = L.Dense(3, activation="softmax", name="last")
    return keras.Model(photo, last(L.Average()(outputs) if len(outputs) > 1 else outputs[0]))


def of_vector(change):
    return lambda x: change(L.GlobalAveragePooling2D()(x))


def of_activation(name):
    return lambda x: L.Concatenate()([L.Activation(name)(x), L.Conv2D(4, 1, activation=name)(x)])


def of_tokens(change):
    return lambda x: change(L.Reshape((20, 36))(x), L.Reshape((30, 24))(L.Activation("tanh")(x)))


CASES = {
    **OF_MAPS,
    **{name: of_tokens(change) for name, change in OF_TOKENS.items()},
    **{name: of_vector(change) for name, change in OF_VECTORS.items()},
    **{f"activation_{name}": of_activation(name) for name in ACTIVATIONS.split()},
    **operations(),
}
if not V3:  # it forgets the setting when it saves the layer
    del CASES["normalization_invert"]


def fill(model):
    """Random weights; no statistic and no bias is trivially right."""
    rng = np.random.default_rng(0)
    arrays = []
    for weight, own in zip(model.weights, model.get_weights(), strict=True):
        role = (getattr(weight, "path", None) or weight.name).split("/")[-1].partition(":")[0]
        if not np.issubdtype(own.dtype, np.floating) or role in ("mean", "variance"):
            arrays.append(own)
        elif "variance" in role or role == "gamma":
            arrays.append(rng.uniform(0.5, 1.5, own.shape))
        elif own.ndim > 1 and "kernel" in role:
            arrays.append(rng.normal(0, 1 / np.sqrt(np.prod(own.shape[:-1])), own.shape))
        else:
            arrays.append(rng.normal(0, 0.4, own.shape))
    model.set_weights(arrays)


def save(name, changes, folder):
    """Save one network and what it gives; bare operations come back from Keras 3's .keras alone."""
    model = network(changes)
    fill(model)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (3, *model.input_shape[1:])).astype("float32")
    answer = np.asarray(model(images, training=False))
    for ending in ("h5", "keras") if V3 else ("h5",):
        model.save(str(folder / f"{name}.{ending}"))
    np.savez(folder / f"{name}.npz", images=images, answer=answer)


def main():
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    folder.mkdir(parents=True, exist_ok=True)
    together = int(names[1]) if names[:1] == ["--together"] else 1
    names = (names[2:] if together > 1 else names) or list(CASES)
    for start in range(0, len(names), together):
        keras.backend.clear_session()
        part = names[start : start + together]
        name = part[0] if together == 1 else f"{part[0]}_to_{part[-1]}"
        try:
            save(name, {each: CASES[each] for each in part if each in CASES}, folder)
        except Exception as error:  # nor does every one compute every layer on a processor
            print("could not save", name, type(error).__name__, str(error)[:150].replace("\n", " "), flush=True)


if __name__ == "__main__":
    main()
