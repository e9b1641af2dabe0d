"""The configuration in a Keras file: is it the tutorial's ResNeXt-50, and which layer is which.

The weights do not tell epsilon, strides, an activation or a layer without weights, but the
configuration does. It is followed from the output to the input; anything else than the zoo's
network has is an error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from deploykit.models.zoo.resnext_keras import (
    GROUPS,
    NORM_EPS,
    STAGES,
    resnext50_keras,
    resnext50_keras_grouped,
)

Places: TypeAlias = dict[str, list[str]]
"""Names of the zoo's layers to those of Keras' layers: of a convolution in groups there are 32."""

#: The zoo's network by whether each group has a slice of its own.
ARCHITECTURES = {False: resnext50_keras.__name__, True: resnext50_keras_grouped.__name__}
#: Layers that do nothing when a trained network runs.
_IDLE = frozenset(
    {"ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise"}
    | {"RandomBrightness", "RandomContrast", "RandomFlip", "RandomRotation", "RandomTranslation"}
    | {"RandomZoom", "SpatialDropout2D"}
)
#: What slices: with code, whose values for ``c`` are recorded, or by numbers.
_SLICES = ("Lambda", "GetItem", "SlicingOpLambda", "Split")


@dataclass(frozen=True)
class Told:
    """What a configuration tells.

    Attributes:
        places: Where the zoo's layers are.
        layers: Names of Keras' layers by their class, in the order of ``model.layers``.
        is_bound: Whether each group convolves a slice of its own; None where it does not tell.
    """

    places: Places
    layers: Mapping[str, list[str]]
    is_bound: bool | None


class OtherNetworkError(Exception):
    """A Keras file holds another network than the tutorial's, or does not tell enough.

    Args:
        reason: What differs.
        hint: What to do, if it is not to make the network in torch.
    """

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.hint = hint or (
            "That is the one Keras network that deploykit knows. Make another in torch, and "
            "export that: --arch train.py:Net --ckpt weights.pth."
        )


@dataclass(frozen=True)
class _Layer:
    """A layer of a configuration.

    Attributes:
        kind: Its class.
        settings: Its arguments.
        inputs: The layers that it takes, each with the number of its output.
        numbers: The whole numbers that it slices with.
        texts: The code that it slices with, as it is stored; it is compared only.
    """

    kind: str
    settings: Mapping[str, Any]
    inputs: tuple[tuple[str, int], ...]
    numbers: tuple[int, ...]
    texts: tuple[str, ...]

    @property
    def words(self) -> str:
        """``layer 'lambda_7' (Lambda)``."""
        return f"layer {self.settings['name']!r:.60} ({self.kind!s:.60})"


def read_config(config: Any) -> Told:
    """Follow a model's configuration.

    Args:
        config: What ``config.json`` or the attribute ``model_config`` holds.

    Raises:
        OtherNetworkError: It is another network.
        LookupError, TypeError, ValueError, AttributeError, RecursionError: It is damaged.
    """
    if config["class_name"] not in ("Functional", "Model"):
        raise OtherNetworkError(f"it is a {config['class_name']!r:.60} model")
    model = config["config"]
    layers = {str(entry["config"]["name"]): _layer(entry) for entry in model["layers"]}
    outputs = list(_histories(model["output_layers"]))
    if len(outputs) != 1:
        raise OtherNetworkError(f"it has {len(outputs)} outputs")
    by_kind: defaultdict[str, list[str]] = defaultdict(list)
    for name, layer in layers.items():
        by_kind[layer.kind].append(name)
    follower = _Follower(layers)
    follower.follow(outputs[0][0])
    bound = set(follower.bound)
    if len(bound) > 1:
        raise OtherNetworkError("its blocks slice in different ways")
    return Told(follower.places, by_kind, bound.pop())


def _layer(entry: Mapping[str, Any]) -> _Layer:
    kind, settings, nodes = str(entry["class_name"]), entry["config"], entry["inbound_nodes"]
    if len(nodes) > 1:
        raise OtherNetworkError(f"its layer {settings['name']!r:.60} is used {len(nodes)} times")
    function = settings.get("function") if kind == "Lambda" else None
    values = [function, settings.get("arguments")] if kind == "Lambda" else nodes
    return _Layer(
        kind,
        settings,
        inputs=tuple(_histories(nodes)),
        numbers=tuple(_numbers(values)),
        texts=tuple(_texts(function)),
    )


def _history(value: Any) -> tuple[str, int] | None:
    """``["conv2d", 0, 0]`` (Keras 2 adds a dictionary): a layer, and the number of its output."""
    match value:
        case {"class_name": "__keras_tensor__", "config": {"keras_history": inner}}:
            return _history(inner)
        case [str(name), int(), int(output), *_]:
            return name, output
    return None


def _histories(value: Any) -> Iterator[tuple[str, int]]:
    found = _history(value)
    if found is not None:
        yield found
    elif isinstance(value, (list, dict)):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _histories(child)


def _numbers(value: Any) -> Iterator[int]:
    """The whole numbers in a value, but for those that name a layer's output."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield value
    elif _history(value) is not None:
        yield from _numbers(value[3:] if isinstance(value, list) else [])
    elif isinstance(value, (list, dict)):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _numbers(child)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _texts(child)


class _Follower:
    """Goes from layer to layer, and holds each against the zoo's network.

    Attributes:
        places: Where the zoo's layers are.
        bound: For each block, whether its groups have slices of their own.
    """

    def __init__(self, layers: Mapping[str, _Layer]) -> None:
        self._layers = layers
        self.places: Places = {}
        self.bound: list[bool | None] = []

    def follow(self, output: str) -> None:
        """Follow the whole network."""
        x = output
        activations: tuple[str, ...] = ("softmax", "linear")
        if self._at(x).kind in ("Activation", "Softmax"):
            x = self._input(x, ("Activation", "Softmax"), activation="softmax", axis=-1)
            activations = ("linear",)
        x = self._input(x, ("Dense",), "classifier", activation=activations)
        x = self._input(x, ("GlobalAveragePooling2D",), keepdims=False)
        for stage, (channels, blocks, stride) in reversed([*enumerate(STAGES)]):
            for block in range(blocks - 1, 0, -1):
                x = self._block(x, f"stages.{stage}.{block}", channels)
            x = self._block(x, f"stages.{stage}.0", channels, stride)
        x = self._input(x, ("MaxPooling2D",), pool_size=[3, 3], strides=[2, 2], padding="valid")
        x = self._input(x, ("ZeroPadding2D",), padding=[[1, 1], [1, 1]])
        x = self._normalised(self._rectified(x), "norm")
        x = self._convolved(x, "conv", 64, 7, 2, padding="valid", use_bias=True)
        x = self._input(x, ("ZeroPadding2D",), padding=[[3, 3], [3, 3]])
        if self._at(x).kind != "InputLayer":
            raise OtherNetworkError(f"its {self._at(x).words} changes the images first")

    def _block(self, x: str, name: str, channels: int, stride: int | None = None) -> str:
        """Follow a block to its input; one without a stride has no convolution in its shortcut."""
        add = self._layer(self._rectified(x), ("Add",))
        # Either term may be the shortcut.
        main, shortcut = sorted((term for term, _ in add.inputs), key=self._is_shortcut)
        y = self._convolved(self._normalised(main, f"{name}.norm3"), f"{name}.conv3", 2 * channels)
        y = self._normalised(self._rectified(y), f"{name}.norm2")
        y = self._groups(y, f"{name}.conv2", channels, stride or 1)
        y = self._normalised(self._rectified(y), f"{name}.norm1")
        y = self._convolved(y, f"{name}.conv1", channels)
        if stride is not None:
            shortcut = self._normalised(shortcut, f"{name}.shortcut.norm")
            shortcut = self._convolved(
                shortcut, f"{name}.shortcut.conv", 2 * channels, stride=stride
            )
        if self._at(y) is not self._at(shortcut):
            raise OtherNetworkError(f"its {self._at(shortcut).words} is no shortcut")
        return y

    def _is_shortcut(self, x: str) -> bool:
        """Whether a term of a sum does not come from convolutions in groups."""
        for _ in range(3):  # the normalisation, the convolution, the ReLU
            layer = self._at(x)
            if layer.kind not in ("BatchNormalization", "Conv2D", "ReLU", "Activation"):
                return True
            x = layer.inputs[0][0]
        return self._at(x).kind != "BatchNormalization"

    def _groups(self, x: str, name: str, channels: int, stride: int) -> str:
        """Follow the convolutions of the groups to what they slice."""
        if self._at(x).kind == "Conv2D":
            self.bound.append(True)
            return self._convolved(x, name, channels, 3, stride, padding="same", groups=GROUPS)
        parts = [part for part, _ in self._layer(x, ("Concatenate",), axis=(3, -1)).inputs]
        if len(parts) != GROUPS:
            raise OtherNetworkError(f"it has {len(parts)} groups in a block")
        width = channels // GROUPS
        slices = [self._convolved(part, name, width, 3, stride, padding="same") for part in parts]
        found = [self._layer(each, _SLICES, axis=(3, -1)) for each in slices]
        if len({(layer.kind, layer.inputs) for layer in found}) > 1:
            raise OtherNetworkError("the groups in a block do not slice one tensor")
        rows = [layer.numbers for layer in found]
        if found[0].kind == "Split":  # into a number of parts, of which each takes one
            rows = [(self._at(part).inputs[0][1] * width,) for part in parts]
            if any(layer.settings["indices_or_sections"] != GROUPS for layer in found):
                raise OtherNetworkError("a block is split into other parts")
        self.bound.append(_is_bound(found, rows, width))
        return found[0].inputs[0][0]

    def _rectified(self, x: str) -> str:
        kinds = ("ReLU", "Activation")
        return self._input(
            x, kinds, max_value=None, negative_slope=0, threshold=0, activation="relu"
        )

    def _normalised(self, x: str, name: str) -> str:
        axis = (-1, 3, [3])
        return self._input(
            x, ("BatchNormalization",), name, axis=axis, epsilon=NORM_EPS, center=True, scale=True
        )

    def _convolved(
        self, x: str, name: str, filters: int, kernel: int = 1, stride: int = 1, **settings: Any
    ) -> str:
        wanted = {"use_bias": False, "groups": 1, **settings}
        return self._input(
            x,
            ("Conv2D",),
            name,
            filters=filters,
            kernel_size=[kernel, kernel],
            strides=[stride, stride],
            dilation_rate=[1, 1],
            activation="linear",
            **wanted,
        )

    def _input(self, x: str, kinds: Sequence[str], name: str = "", **settings: Any) -> str:
        """The one input of a layer; see :meth:`_layer`."""
        return self._layer(x, kinds, name, **settings).inputs[0][0]

    def _layer(self, x: str, kinds: Sequence[str], name: str = "", **settings: Any) -> _Layer:
        """A layer that must be of a class and have settings.

        Args:
            x: Its name.
            kinds: Its possible classes.
            name: The zoo's layer that it is, if it has weights.
            settings: What it must have, where its class has such a setting; a tuple for any of
                several values.
        """
        layer = self._at(x)
        if layer.kind not in kinds:
            raise OtherNetworkError(f"it has {layer.words} in the place of {' or '.join(kinds)}")
        wanted = {"data_format": "channels_last", **settings}
        for key, values in wanted.items():
            value = layer.settings.get(key, values)
            several = values if isinstance(values, tuple) else (values,)
            if value is not values and value not in several:
                raise OtherNetworkError(
                    f"its {layer.words} has {key} {value!r:.40}, not "
                    f"{' or '.join(map(str, several))}"
                )
        if name:
            self.places.setdefault(name, []).append(str(layer.settings["name"]))
        return layer

    def _at(self, x: str) -> _Layer:
        """The layer of that name, or before it the first that does something."""
        for _ in self._layers:
            layer = self._layers[x]
            if layer.kind not in _IDLE:
                return layer
            x = layer.inputs[0][0]
        raise ValueError(f"its layer {x!r:.60} takes its own output")


def _is_bound(layers: Sequence[_Layer], rows: Sequence[tuple[int, ...]], width: int) -> bool | None:
    """Whether groups have slices of their own, by the numbers that each slices with.

    Of a Lambda these are what its code has bound: ``c`` as a default value, as an argument, or as
    a variable of the function around it, where it has the last value for all.

    Returns:
        Whether they have; None where the numbers do not tell.

    Raises:
        OtherNetworkError: They have, and not each its own in order.
    """
    columns = [*zip(*rows, strict=True)]
    numbers = range(GROUPS)
    if len({layer.texts for layer in layers}) > 1:
        return None  # each has its own code
    by_code = layers[0].kind == "Lambda"
    starts = [tuple(number * width for number in numbers)]
    stops = [tuple((number + 1) * width for number in numbers)]
    own = [*starts, *stops, *([tuple(numbers)] if by_code else [])]
    varying = [column for column in columns if len({*column}) > 1]
    if varying:
        if not all(column in own for column in varying):
            raise OtherNetworkError(
                f"its groups slice with {', '.join(map(str, varying[0][:4]))} ..."
            )
        return True
    lasts = {own_column[-1] for own_column in own if own_column not in stops}
    return False if any(column[0] in lasts for column in columns) else None
