"""Triton's model configuration: written by Triton's own protobuf, and checked as it was written.

``templates/triton_model_config.pb`` is the descriptor of Triton's ``model_config.proto``
(triton-inference-server/common, BSD-3-Clause: see the ``.LICENSE`` beside it), as ``tritonclient``
2.73.0 carries it. That package itself would bring a protobuf of another version than ONNX has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from deploykit.errors import InputError
from deploykit.system.files import read_file

CONFIG_NAME, LABELS = "config.pbtxt", "labels.txt"
_MAX_CONFIG_BYTES = 2**22
#: Bytes of an element, by Triton's type.
_SIZES = {"TYPE_UINT8": 1, "TYPE_FP32": 4}
#: What a version's folder must hold, by the backend, where the configuration names no file.
_DEFAULT_FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan", "python": "model.py"}


def write_config(folder: Path, fields: Mapping[str, Any]) -> None:
    """Write the ``config.pbtxt`` of a model.

    Args:
        folder: The model's.
        fields: Those of Triton's message ``ModelConfig``, by their names in it.
    """
    from google.protobuf import json_format, text_format

    message = json_format.ParseDict(fields, _message())
    text = text_format.MessageToString(message, as_utf8=True)
    (folder / CONFIG_NAME).write_text(text, "utf-8", newline="\n")


def check_repository(folder: Path) -> None:
    """Check every model of a repository, as it was written.

    Raises:
        InputError: A configuration is not Triton's, or Triton would not load its model.
    """
    models = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}
    if not models:
        raise InputError(f"{folder} has no model: no folder with a {CONFIG_NAME}.")
    configs = {name: _read(path / CONFIG_NAME) for name, path in models.items()}
    for name, path in models.items():
        for reason in _reasons(path, configs[name], configs):
            raise InputError(
                f"Triton would not load {path}: {reason}.",
                hint="Write the repository again: deploykit package --format triton",
            )


def _message() -> Any:
    """An empty ``ModelConfig``, of a pool of its own: tritonclient may be imported, too."""
    from google.protobuf import descriptor_pool, message_factory

    pool = descriptor_pool.DescriptorPool()
    here = resources.files("deploykit.commands.package") / "templates"
    pool.AddSerializedFile((here / "triton_model_config.pb").read_bytes())
    kind = pool.FindMessageTypeByName("inference.ModelConfig")
    return message_factory.GetMessageClass(kind)()


def _read(path: Path) -> Any:
    """A configuration.

    Raises:
        InputError: It cannot be read, or has a field or a value that Triton does not know.
    """
    from google.protobuf import text_format

    try:
        return text_format.Parse(read_file(path, limit=_MAX_CONFIG_BYTES).decode(), _message())
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror or exc}.") from exc
    except (text_format.ParseError, ValueError) as exc:
        raise InputError(f"{path} is no configuration of Triton's: {exc}") from exc


def _reasons(folder: Path, config: Any, all_configs: Mapping[str, Any]) -> Iterator[str]:
    """What protobuf does not see."""
    if config.name not in ("", folder.name):
        yield f"its configuration is that of {config.name!r}"
    yield from _file_reasons(folder, config)
    yield from _tensor_reasons(folder, config)
    yield from _batch_reasons(config)
    yield from _warmup_reasons(folder, config)
    if config.platform == "ensemble":
        yield from _ensemble_reasons(config, all_configs)


def _file_reasons(folder: Path, config: Any) -> Iterator[str]:
    versions = [each for each in folder.iterdir() if each.is_dir() and _is_version(each.name)]
    if not versions:
        yield "it has no version: no folder with a number from 1"
    if config.platform == "ensemble":
        return
    default = config.default_model_filename or _DEFAULT_FILES.get(config.backend, "")
    files = {*config.cc_model_filenames.values(), *filter(None, [default])}
    for version in versions:
        for name in sorted(files):
            if Path(name).name != name or not (version / name).is_file():
                yield f"version {version.name} has no file {name!r}"


def _is_version(name: str) -> bool:
    return name.isdecimal() and name.isascii() and not name.startswith("0")


def _tensor_reasons(folder: Path, config: Any) -> Iterator[str]:
    for what, tensors in (("input", config.input), ("output", config.output)):
        if not tensors:
            yield f"it has no {what}"
        names = [tensor.name for tensor in tensors]
        if len({*names}) < len(names):
            yield f"two of its {what}s have the same name"
        for tensor in tensors:
            if not tensor.dims or any(side == 0 or side < -1 for side in tensor.dims):
                yield f"{what} {tensor.name!r} has the shape {[*tensor.dims]}"
            if _type_of(tensor) == "TYPE_INVALID":
                yield f"{what} {tensor.name!r} has no type"
    for output in config.output:
        name = output.label_filename
        if name:
            yield from _label_reasons(folder, name, math.prod(output.dims))


def _label_reasons(folder: Path, name: str, classes: int) -> Iterator[str]:
    path = folder / name
    if Path(name).name != name or not path.is_file():
        yield f"its label file {name!r} is not there"
        return
    lines = path.read_text(encoding="utf-8").split("\n")
    if len(lines) != classes + 1 or lines[-1]:
        yield f"{name} has {len(lines) - 1} lines for {classes} classes"


def _type_of(tensor: Any) -> str:
    field = tensor.DESCRIPTOR.fields_by_name["data_type"]
    return str(field.enum_type.values_by_number[tensor.data_type].name)


def _batch_reasons(config: Any) -> Iterator[str]:
    if config.max_batch_size < 0:
        yield f"max_batch_size is {config.max_batch_size}"
    preferred = [*config.dynamic_batching.preferred_batch_size]
    for size in preferred:
        if not 1 <= size <= config.max_batch_size:
            yield f"a preferred batch of {size} is not within 1 to {config.max_batch_size}"
    if config.HasField("dynamic_batching") and config.max_batch_size < 1:
        yield "it batches requests, and max_batch_size is 0"


def _warmup_reasons(folder: Path, config: Any) -> Iterator[str]:
    inputs = {tensor.name: tensor for tensor in config.input}
    for sample in config.model_warmup:
        if sample.batch_size > config.max_batch_size:
            yield f"a warm-up of {sample.batch_size} images is above max_batch_size"
        if {*sample.inputs} != {*inputs}:
            yield f"the warm-up {sample.name!r} has the inputs {sorted(sample.inputs)}"
            continue
        for name, given in sample.inputs.items():
            wanted = inputs[name]
            if [*given.dims] != [*wanted.dims] or given.data_type != wanted.data_type:
                yield (
                    f"the warm-up {sample.name!r} has {name!r} as {_type_of(given)} "
                    f"{[*given.dims]}, not {_type_of(wanted)} {[*wanted.dims]}"
                )
                continue
            count = max(1, sample.batch_size) * math.prod(given.dims)
            bytes_needed = count * _SIZES.get(_type_of(given), 1)
            path = folder / "warmup" / given.input_data_file
            if not path.is_file() or path.stat().st_size < bytes_needed:
                yield f"the warm-up {sample.name!r} needs {bytes_needed} bytes of {path.name!r}"


def _ensemble_reasons(config: Any, all_configs: Mapping[str, Any]) -> Iterator[str]:
    known = {tensor.name: tensor for tensor in config.input}
    for step in config.ensemble_scheduling.step:
        model = all_configs.get(step.model_name)
        if model is None:
            yield f"it uses the model {step.model_name!r}, which is not there"
            return
        for side, tensors in ((step.input_map, model.input), (step.output_map, model.output)):
            unknown = {*side} - {tensor.name for tensor in tensors}
            if unknown:
                yield f"{step.model_name!r} has no {', '.join(sorted(unknown))}"
                return
        for tensor in model.input:
            given = known.get(step.input_map.get(tensor.name, ""))
            if given is None or not _fits(given, tensor):
                yield f"{step.model_name!r} is not given what its {tensor.name!r} takes"
        if model.max_batch_size < config.max_batch_size:
            yield f"max_batch_size is above that of {step.model_name!r}"
        known |= {step.output_map[t.name]: t for t in model.output if t.name in step.output_map}
    for output in config.output:
        given = known.get(output.name)
        if given is None or not _fits(given, output):
            yield f"no model gives its output {output.name!r}"


def _fits(given: Any, taken: Any) -> bool:
    return given.data_type == taken.data_type and [*given.dims] == [*taken.dims]
