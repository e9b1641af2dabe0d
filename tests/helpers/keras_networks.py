"""The ResNeXt-50 of the Keras tutorial, run by Keras itself on torch: the truth for the zoo's."""

import os
import warnings

os.environ.setdefault("KERAS_BACKEND", "torch")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import keras
from keras import layers

EPSILON = 1.001e-5
GROUPS = 32
STAGES = ((128, 3, 1), (256, 4, 2), (512, 6, 2), (1024, 3, 2))


def late_slices(x, width):
    """As the tutorial: all of them read the last ``c``."""
    for c in range(GROUPS):
        yield layers.Lambda(lambda x: x[:, :, :, c * width : (c + 1) * width])(x)  # noqa: B023


def bound_slices(x, width):
    """As those write it who know."""
    for c in range(GROUPS):
        yield layers.Lambda(lambda x, c=c: x[:, :, :, c * width : (c + 1) * width])(x)


def convolution(x, filters, kernel=1, strides=1):
    x = layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False)(x)
    return layers.BatchNormalization(epsilon=EPSILON)(x)


def block(x, channels, strides, projects, slices):
    shortcut = convolution(x, 2 * channels, strides=strides) if projects else x
    y = layers.ReLU()(convolution(x, channels))
    width = channels // GROUPS
    parts = [
        layers.Conv2D(width, 3, strides, padding="same", use_bias=False)(part)
        for part in slices(y, width)
    ]
    y = layers.concatenate(parts, axis=3)
    y = layers.ReLU()(layers.BatchNormalization(epsilon=EPSILON)(y))
    return layers.ReLU()(layers.Add()([convolution(y, 2 * channels), shortcut]))


def resnext50(size, classes, slices=late_slices):
    """The network for images of a height and width."""
    inputs = layers.Input((*size, 3))
    x = layers.ZeroPadding2D(3)(inputs)
    x = layers.Conv2D(64, 7, 2)(x)
    x = layers.ReLU()(layers.BatchNormalization(epsilon=EPSILON)(x))
    x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
    for channels, blocks, strides in STAGES:
        for number in range(blocks):
            x = block(x, channels, strides if number == 0 else 1, number == 0, slices)
    outputs = layers.Dense(classes, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs)


def set_made_weights(model, rng):
    """Give a model weights as training would: none is what it began with, and answers differ."""
    weights = []
    for variable in model.variables:
        name, shape = variable.path.rpartition("/")[2], tuple(variable.shape)
        if name in ("gamma", "moving_variance"):
            weights.append(rng.uniform(0.5, 1.5, shape))
        elif name == "kernel":
            fan_in = 1
            for length in shape[:-1]:
                fan_in *= length
            weights.append(rng.standard_normal(shape) / fan_in**0.5)
        else:
            weights.append(0.1 * rng.standard_normal(shape))
    for variable, value in zip(model.variables, weights, strict=True):
        variable.assign(value.astype("float32"))


def logits(model, images):
    """The answers to images (N, H, W, 3) before the softmax of the last layer."""
    dense = model.layers[-1]
    features = keras.Model(model.inputs, dense.input)
    with keras.device("cpu"):
        found = keras.ops.convert_to_numpy(features(images, training=False))
    kernel, bias = (keras.ops.convert_to_numpy(variable) for variable in dense.weights)
    return found @ kernel + bias


def grouped_layer(size, channels, strides, slices):
    """One convolution in groups, of images (height, width, channels)."""
    inputs = layers.Input((*size, channels))
    width = channels // GROUPS
    parts = [
        layers.Conv2D(width, 3, strides, padding="same", use_bias=False)(part)
        for part in slices(inputs, width)
    ]
    return keras.Model(inputs, layers.concatenate(parts, axis=3))
