"""``deploykit.predict``: one row for each image file, from Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TypedDict, Unpack, overload

from deploykit.bundle.folder import Bundle
from deploykit.commands.predict.job import predict_into
from deploykit.commands.predict.outputs import Outputs
from deploykit.commands.predict.run import PredictionRun, PredictRequest, TopK
from deploykit.commands.predict.schedulers.choice import chosen_scheduler
from deploykit.commands.predict.tally import PredictionSummary, ShardSummary
from deploykit.commands.python import (
    BundleLike,
    PathLike,
    chosen_bundle,
    optional_path,
    python_words,
)
from deploykit.errors import UsageError
from deploykit.proof.auto import AUTO
from deploykit.specs.model import Precision
from deploykit.specs.prediction import Prediction
from deploykit.system.cloud import as_path
from deploykit.system.files import STDOUT
from deploykit.system.progress import Progress, silent


class _Options(TypedDict, total=False):
    """What each kind of call takes, for type checkers; :func:`predict` says what it means."""

    bundle: BundleLike | None
    every: str | float | None
    top_k: TopK | None
    expected: PathLike | None
    runtime: str
    precision: Precision | None
    tf32: bool
    batch_size: int | None
    threads: int | None
    artifacts: PathLike | None
    progress: Progress


class _TableOptions(_Options, total=False):
    html: PathLike | None
    embeddings: PathLike | None
    overwrite: bool


class _RunOptions(_TableOptions, total=False):
    resume: bool
    on: str | None
    workers: int | None
    gpus_per_worker: float


@overload
def predict(
    source: PathLike, *, output: None = None, **options: Unpack[_Options]
) -> Iterator[Prediction]: ...


@overload
def predict(
    source: PathLike,
    *,
    output: PathLike | Sequence[str],
    shard: None = None,
    **options: Unpack[_RunOptions],
) -> PredictionSummary: ...


@overload
def predict(
    source: PathLike,
    *,
    output: PathLike | Sequence[str],
    shard: str,
    **options: Unpack[_TableOptions],
) -> ShardSummary: ...


def predict(
    source: PathLike,
    *,
    output: PathLike | Sequence[str] | None = None,
    html: PathLike | None = None,
    embeddings: PathLike | None = None,
    overwrite: bool = False,
    resume: bool = False,
    shard: str | None = None,
    on: str | None = None,
    workers: int | None = None,
    gpus_per_worker: float = 0.0,
    bundle: BundleLike | None = None,
    every: str | float | None = None,
    top_k: TopK | None = None,
    expected: PathLike | None = None,
    runtime: str = AUTO,
    precision: Precision | None = None,
    tf32: bool = False,
    batch_size: int | None = None,
    threads: int | None = None,
    artifacts: PathLike | None = None,
    progress: Progress = silent,
) -> Iterator[Prediction] | PredictionSummary | ShardSummary:
    """Predict a folder of images: exactly one row a file, whatever is wrong with it.

    Without ``output`` rows come as they are predicted, memory stays flat, and nothing is written.
    The files are looked for when the first row is asked for. With it the tables are written as the
    command writes them, and an interruption loses no row.

    Args:
        source: A folder of images, a .txt file that lists them, a .tar, .zip or .parquet file, a
            video, one image file; or the ``s3://``, ``gs://`` or ``https://`` URL of one.
        output: A table to write, or several: ``.csv``, ``.jsonl`` or ``.parquet``.
        html: A page to write, too.
        embeddings: Where to write what the network's last layer takes of each image, too: ``.npy``
            or ``.parquet``.
        overwrite: Replace outputs that another command wrote.
        resume: Continue this call's interrupted run.
        shard: ``"3/40"``: predict the third of forty parts, as one of so many processes;
            :func:`deploykit.collect` makes the tables.
        on: ``"ray"``: predict on the Ray cluster that this machine belongs to or ``RAY_ADDRESS``
            names, else on one that is started here; or ``"ray://HOST:PORT"``.
        workers: How many processes there; None for as many as there is room for.
        gpus_per_worker: GPUs of each, or a part of one.
        bundle: What :func:`deploykit.export` returned, a bundle's name or its folder; None for the
            one there is, or the newest.
        every: Of a video, the time from one frame to the next: seconds, ``"2s"`` or ``"500ms"``.
        top_k: How many classes a row ranks, or ``all``; None for at most 5.
        expected: A CSV of what is right: a path a row, then names of classes, or columns of 0 and
            1. None for what the images' folders say, where an image is of one class.
        runtime: What executes; ``auto`` for the fastest that is proven.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``; None for any.
        tf32: Let onnxruntime-cuda compute FP32 in TensorFloat-32.
        batch_size: Images a run; None for 2 on the CPU and 8 on a GPU.
        threads: CPU threads; None for one a core, and with ``on`` for one a worker.
        artifacts: The home of bundles; None for ``artifacts``.
        progress: Called after every batch, and with notes about the runtime.

    Returns:
        An iterator over predictions, one a file, in a stable order: that of a file that cannot be
        read has no label; its ``status`` and ``reason`` tell why. With ``output`` a
        :class:`PredictionSummary`, and with ``shard`` a :class:`ShardSummary`.

    Raises:
        UsageError: An argument makes no sense.
        ImagesError: There is no image file.
        InputError: The table of what is right is not clear, or has no row for an image.
        BundleError: There is no such bundle, or it is damaged.
        ParityError: Nothing is proven, and no runtime was named.
        MissingError: The runtime's package or device is not here.
    """
    tables = [output] if isinstance(output, Path | str) else output or ()
    request = PredictRequest(
        as_path(source),
        top_k,
        runtime,
        precision,
        batch_size,
        threads,
        tf32=tf32,
        expected=optional_path(expected),
        embeddings=embeddings is not None,
        every=_seconds(every),
    )
    if not (tables or html or embeddings or resume or shard or on):
        return _rows(chosen_bundle(bundle, artifacts, progress, packed=True), request, progress)
    with Outputs(
        [_named_table(path) for path in tables],
        source=request.source,
        page=None if html is None else as_path(html),
        expected=request.expected,
        embeddings=None if embeddings is None else as_path(embeddings),
        resume=resume,
        overwrite=overwrite,
        scheduler=chosen_scheduler(shard, on, workers, gpus_per_worker),
    ) as outputs:
        return predict_into(
            outputs, chosen_bundle(bundle, artifacts, progress, packed=True), request, progress
        )


def _seconds(every: str | float | None) -> Fraction | None:
    if every is None:
        return None
    from deploykit.images.sources.video import parsed_every

    return parsed_every(every)


def _named_table(path: PathLike) -> Path:
    """A table's path.

    Raises:
        UsageError: It is stdout.
    """
    if Path(path) == STDOUT:
        raise UsageError("output must be a file: rows on stdout are the command's.")
    return as_path(path)


def _rows(bundle: Bundle, request: PredictRequest, progress: Progress) -> Iterator[Prediction]:
    with python_words(), PredictionRun(bundle, request, progress) as run:
        yield from run
