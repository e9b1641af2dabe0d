"""``deploykit.package``: a bundle becomes what something else takes, from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploykit.commands.package.request import PackageFormat, PackageRequest
from deploykit.commands.package.run import PackageResult, package_bundle
from deploykit.commands.python import BundleLike, PathLike, chosen_bundle
from deploykit.specs.model import Precision
from deploykit.system.progress import Progress, silent


def package(
    output: PathLike,
    *,
    format: PackageFormat,  # noqa: A002  # it is the option's name
    bundle: BundleLike | None = None,
    overwrite: bool = False,
    precision: Precision | None = None,
    engine: str | Sequence[str] = (),
    preprocess: bool = False,
    max_batch: int | None = None,
    onnxruntime_web: PathLike | None = None,
    artifacts: PathLike | None = None,
    progress: Progress = silent,
) -> PackageResult:
    """Write a bundle as something else takes it; it appears whole or not at all.

    Args:
        output: The folder to write, or the ``.zip`` file.
        format: ``triton``: a model repository; ``zip``: the bundle in one file; ``container``: a
            Dockerfile with all that it copies; ``web``: a page that runs it in a browser.
        bundle: What :func:`deploykit.export` returned, a bundle's name or its folder; None for the
            one there is, or the newest.
        overwrite: Replace a package that is there.
        precision: For Triton, of the deploy graph: ``fp32``, ``fp16`` or ``int8``; None for FP32.
        engine: For Triton, a TensorRT engine instead of a graph, by its name; or several, for GPUs
            of several kinds.
        preprocess: For Triton, take image files, too.
        max_batch: For Triton, the most images in one run; None for 32, or what the engine takes.
        onnxruntime_web: For the web, a folder with that package, unpacked; None to ask npm.
        artifacts: The home of bundles; None for ``artifacts``.
        progress: Called with what is being done.

    Raises:
        UsageError: An argument makes no sense, or something else has the name.
        BundleError: There is no such bundle, graph or engine, or it is damaged.
        InputError: It cannot be packaged so, or the system fails to write.
        ParityError: What would be served has been shown to decide otherwise.
        MissingError: A Python package, or for the web npm, is not here.
    """
    request = PackageRequest(
        format=format,
        output=Path(output),
        overwrite=overwrite,
        precision=precision,
        engines=(engine,) if isinstance(engine, str) else tuple(engine),
        preprocess=preprocess,
        max_batch=max_batch,
        onnxruntime_web=None if onnxruntime_web is None else Path(onnxruntime_web),
    )
    chosen = chosen_bundle(bundle, artifacts, progress, packed=True)
    return package_bundle(chosen, request, progress)
