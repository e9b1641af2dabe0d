"""``--format triton``: a model repository of NVIDIA's Triton Inference Server."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.bundle.folder import Bundle
from deploykit.bundle.golden import read_golden
from deploykit.commands.package.proof_notes import proof_notes
from deploykit.commands.package.request import MAX_BATCH, PackageRequest, Written, plain_name
from deploykit.commands.package.triton_config import LABELS, check_repository, write_config
from deploykit.commands.package.triton_image import write_image_models
from deploykit.engine.passport import check_plan
from deploykit.errors import InputError, ParityError, UsageError
from deploykit.inference.engines import BUILD_AGAIN, Engine, named_engine
from deploykit.runtime.opener import open_probe
from deploykit.specs.model import Precision
from deploykit.specs.tensors import DATATYPES, PROBABILITIES
from deploykit.system.deps import need
from deploykit.system.files import open_file
from deploykit.system.progress import Progress, Step
from deploykit.system.text import command_line

#: How long a request waits for others to share a run with.
_MAX_DELAY_US = 2000
_WARMUP = "golden-images"
_HEADER_BYTES = 64
#: Between the probabilities of ONNX's float32 and of deploykit's float64.
_MOST_DIFFERENCE = 1e-5


@dataclass(frozen=True)
class _Served:
    """What the model's folder gets.

    Attributes:
        files: What is proven of it, by its path in the bundle.
        fields: Those of the configuration that tell the file and what runs it.
        max_batch: The most images in one run.
        preferred: The batch that it is tuned for; None for any.
        has_probabilities: Whether it gives them.
        notes: What its user has to know.
    """

    files: tuple[str, ...]
    fields: dict[str, Any]
    max_batch: int
    preferred: int | None
    has_probabilities: bool
    notes: tuple[str, ...]


def write(bundle: Bundle, made: Path, request: PackageRequest, progress: Progress) -> Written:
    """Write a repository and check it as it was written.

    Raises:
        UsageError: The bundle's name is none for a model, or an option does not fit.
        InputError: An engine is none that Triton runs, or the repository is not right.
        ParityError: What would be served has failed its comparison.
        DependencyError: onnx is not installed.
    """
    need("onnx")  # and protobuf, which comes with it
    name = plain_name(bundle)
    folder = made / name
    version = folder / "1"
    version.mkdir(parents=True)
    progress(Step("writing", detail=name))
    if request.engines:
        served = _put_engines(bundle, version, request)
    else:
        served = _put_graph(bundle, version, request)
    fields = _config(bundle, served)
    (folder / LABELS).write_text(_lines(bundle.manifest.labels.names), "utf-8", newline="\n")
    fields["model_warmup"] = _put_warmup(bundle, folder, served.max_batch)
    write_config(folder, fields)
    notes = [*served.notes, *proof_notes(bundle, served.files)]
    if request.preprocess:
        notes += write_image_models(bundle, made, fields, (folder / LABELS).read_bytes())
    check_repository(made)
    models = ", ".join(sorted(path.name for path in made.iterdir()))
    return Written(
        content=f"a model repository for Triton: {models}",
        notes=tuple(notes),
        command=command_line(["tritonserver", "--model-repository", str(request.output)]),
    )


def _lines(names: Sequence[str]) -> str:
    return "".join(f"{name}\n" for name in names)


# The model ----------------------------------------------------------------------------------------


def _put_graph(bundle: Bundle, version: Path, request: PackageRequest) -> _Served:
    """Write the deploy graph with probabilities, once it has given the same logits."""
    from deploykit.graph.files import load_graph, save_graph
    from deploykit.graph.probabilities import with_probabilities

    precision: Precision = request.precision or "fp32"
    file = bundle.deploy_graph(precision)
    manifest = bundle.manifest
    path = bundle.checked(file)
    target = version / "model.onnx"
    model = with_probabilities(load_graph(path), manifest.labels)
    save_graph(model, target, labels=manifest.labels, preprocessing=manifest.preprocessing)
    _check_same_logits(bundle, path, target)
    return _Served(
        files=(file,),
        fields={"backend": "onnxruntime", "default_model_filename": target.name},
        max_batch=request.max_batch or MAX_BATCH,
        preferred=None,
        has_probabilities=True,
        notes=(),
    )


def _check_same_logits(bundle: Bundle, original: Path, copy: Path) -> None:
    """Check on the golden images that a graph with probabilities gives the very logits.

    Raises:
        ParityError: It does not, or its probabilities are others than deploykit's.
    """
    feeds = {bundle.manifest.deploy_input.name: read_golden(bundle).images}
    answers = []
    for path in (original, copy):
        with open_probe(path) as probe:
            answers.append(probe.run(feeds))
    before, after = (each[bundle.manifest.output.name] for each in answers)
    found = answers[1][PROBABILITIES]
    expected = bundle.manifest.labels.head.probabilities(after)
    changed = not np.array_equal(before, after, equal_nan=True)
    if changed or not np.allclose(found, expected, rtol=0, atol=_MOST_DIFFERENCE):
        what = "logits" if changed else "probabilities"
        raise ParityError(
            f"With probabilities as its second output {original.name} gives other {what}.",
            hint="Report it, with the bundle: nothing was written.",
        )


def _put_engines(bundle: Bundle, version: Path, request: PackageRequest) -> _Served:
    """Copy engines, each for its compute capability."""
    engines = [_checked_engine(bundle, name) for name in request.engines]
    capabilities = [".".join(map(str, _built_on(each))) for each in engines]
    repeated = [each for each in capabilities if capabilities.count(each) > 1]
    versions = sorted({engine.passport.version for engine in engines})
    if repeated:
        raise UsageError(
            f"Two of the engines are for compute capability {repeated[0]}.",
            hint="Triton takes one for each: leave one of them out.",
        )
    if len(versions) > 1:
        raise InputError(
            f"The engines are of TensorRT {' and '.join(versions)}, and a server has one version.",
            hint="Build them with the same: deploykit build-trt --flavour tensorrt",
        )
    largest = min(engine.passport.profile.max_batch for engine in engines)
    if (request.max_batch or 1) > largest:
        raise UsageError(
            f"--max-batch {request.max_batch} is above the {largest} that the engine takes.",
            hint="Leave it out, or build another engine.",
        )
    names = {}
    for engine, capability in zip(engines, capabilities, strict=True):
        file = "model.plan" if len(engines) == 1 else f"model-{capability}.plan"
        shutil.copyfile(bundle.checked(engine.file), version / file)
        names[capability] = file
    max_batch = request.max_batch or largest
    head = bundle.manifest.labels.head
    return _Served(
        files=tuple(engine.file for engine in engines),
        fields={
            "backend": "tensorrt",
            "default_model_filename": next(iter(names.values())),
            "cc_model_filenames": names,
            "parameters": {"tensorrt_version": {"string_value": versions[0]}},
        },
        max_batch=max_batch,
        preferred=min(max_batch, min(each.passport.profile.opt_batch for each in engines)),
        has_probabilities=False,
        notes=(
            f"the server must have TensorRT {versions[0]}, and a GPU of compute capability "
            f"{' or '.join(capabilities)}",
            "an engine gives logits alone, for it cannot be changed: the probabilities are their "
            f"{head.activation}, computed by whoever asks",
        ),
    )


def _checked_engine(bundle: Bundle, name: str) -> Engine:
    """An engine that Triton's TensorRT backend can run.

    Raises:
        InputError: It is one of TensorRT for RTX, or takes no single image.
        BundleError: There is none of that name, or it is damaged.
    """
    engine = named_engine(bundle, name)
    passport = engine.passport
    if passport.flavour != "tensorrt":
        raise InputError(
            f"{engine.file} is an engine of TensorRT for RTX, which Triton's TensorRT backend does "
            "not read.",
            hint="Serve the graph: leave --engine out. Or build one where the server will be: "
            "deploykit build-trt --flavour tensorrt",
        )
    if passport.profile.min_batch > 1:
        raise InputError(
            f"{engine.file} takes at least {passport.profile.min_batch} images, and a request may "
            "have one.",
            hint="Build one that takes a single image: deploykit build-trt --min-batch 1",
        )
    bundle.checked(passport.deploy_graph)  # which tells labels and preprocessing
    path = bundle.checked(engine.file)
    with open_file(path) as file:
        reason = check_plan(file.read(_HEADER_BYTES), passport.flavour, path.stat().st_size)
    if reason is not None:
        raise InputError(f"{engine.file}: {reason}.", hint=BUILD_AGAIN)
    return engine


def _built_on(engine: Engine) -> tuple[int, int]:
    gpu = engine.passport.gpu
    if gpu is None:
        raise InputError(f"{engine.file} does not tell for which GPU it is.")
    return gpu.compute_capability


# Its configuration --------------------------------------------------------------------------------


def _config(bundle: Bundle, served: _Served) -> dict[str, Any]:
    manifest, labels = bundle.manifest, bundle.manifest.labels
    source = manifest.deploy_input
    outputs = [
        {"name": manifest.output.name, "data_type": "TYPE_FP32", "dims": [labels.logits]},
        {"name": PROBABILITIES, "data_type": "TYPE_FP32", "dims": [len(labels)]},
    ]
    for output in outputs:
        if output["dims"] == [len(labels)]:
            output["label_filename"] = LABELS
    batching: dict[str, Any] = {"max_queue_delay_microseconds": _MAX_DELAY_US}
    if served.preferred is not None:
        batching["preferred_batch_size"] = [served.preferred]
    kind = "KIND_GPU" if served.fields["backend"] == "tensorrt" else "KIND_AUTO"
    return {
        "name": bundle.name,
        **served.fields,
        "max_batch_size": served.max_batch,
        "input": [
            {
                "name": source.name,
                "data_type": f"TYPE_{DATATYPES[source.dtype]}",
                "dims": [*manifest.preprocessing.input_size, 3],
            }
        ],
        "output": outputs if served.has_probabilities else outputs[:1],
        "instance_group": [{"count": 1, "kind": kind}],
        "version_policy": {"latest": {"num_versions": 1}},
        "dynamic_batching": batching,
    }


def _put_warmup(bundle: Bundle, folder: Path, max_batch: int) -> list[dict[str, Any]]:
    """Let the server run golden images before it takes a request: alone, and together."""
    images = read_golden(bundle).images
    (folder / "warmup").mkdir()
    (folder / "warmup" / _WARMUP).write_bytes(np.ascontiguousarray(images).tobytes())
    source = bundle.manifest.deploy_input
    given = {
        "data_type": f"TYPE_{DATATYPES[source.dtype]}",
        "dims": [*images.shape[1:]],
        "input_data_file": _WARMUP,
    }
    return [
        {"name": f"{size} golden", "batch_size": size, "inputs": {source.name: given}}
        for size in sorted({1, min(len(images), max_batch)})
    ]
