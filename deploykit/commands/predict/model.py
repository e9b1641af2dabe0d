"""An open bundle that answers for single images, from Python."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from deploykit.bundle.folder import Bundle, open_bundle
from deploykit.commands.predict.run import TopK, checked_top, rows_of
from deploykit.commands.python import BundleLike, PathLike, chosen_bundle, python_words
from deploykit.errors import InputError, UsageError
from deploykit.images.decode import DecodeError, Failure, decode_rgb, decoded_rgb, rgb_of
from deploykit.images.preprocess import OversizeError, Pixels, make_grey, preprocess
from deploykit.images.scan import ImageFile, escape_name
from deploykit.inference.pipeline import AnsweredBatch
from deploykit.proof.auto import AUTO, need_embeddings, open_best, open_with_embeddings
from deploykit.proof.text import status_of_run
from deploykit.runtime.opener import GRAPH_RUNTIMES, REHEARSAL
from deploykit.specs.engine import is_flavour
from deploykit.specs.model import Precision
from deploykit.specs.prediction import Prediction
from deploykit.specs.preprocessing import format_size
from deploykit.specs.session import (
    Closing,
    Embeddings,
    EmbeddingSession,
    ImageBatch,
    Logits,
    Session,
    SessionSpec,
)
from deploykit.specs.value import Shown
from deploykit.system.progress import Progress, silent
from deploykit.system.text import visible

ImageLike: TypeAlias = PathLike | bytes | Image.Image | npt.NDArray[np.uint8]
"""A file; what it holds; an image of Pillow's; or an array (H, W, 3) of uint8, RGB, of any size."""

_BATCH = 8
_SHOWN_CLASSES = 6


class Model(Shown, Closing):
    """A bundle that is open and answers; :func:`deploykit.load` makes it.

    Use it as a context manager, or close it. Several threads may use it: they read images side by
    side and take turns to compute, with all cores. It can be pickled: a copy carries the bundle's
    path and what was chosen to run, and opens that when it is first used.
    """

    def __init__(
        self,
        folder: Path,
        options: dict[str, Any],
        top_k: TopK | None,
        progress: Progress = silent,
    ) -> None:
        self._folder = folder.absolute()
        self._options = options
        self._top_k = top_k
        self._progress = progress
        on = options["runtime"]
        # What embeddings are computed on: a runtime that was named, else what is proven.
        self._embeds_on = on if on in GRAPH_RUNTIMES and on != REHEARSAL else AUTO
        self._lock = threading.RLock()
        self._closed = False
        self._open: tuple[Bundle, Session] | None = None
        self._embedding: EmbeddingSession | None = None

    @property
    def bundle(self) -> Bundle:
        """The bundle, as it was when it was opened."""
        return self._opened()[0]

    @property
    def spec(self) -> SessionSpec:
        """What really runs: graph, runtime, precision, device, input size."""
        return self._opened()[1].spec

    def __call__(self, image: ImageLike) -> Prediction:
        """Answer for one image.

        Args:
            image: A path; the bytes of a file; an image of Pillow's, in any mode; or an array
                (H, W, 3) of uint8, RGB. All are converted, resized and cropped as files are; none
                is turned by its EXIF.

        Returns:
            Label and probability, or labels; margin and the best classes.

        Raises:
            InputError: The image cannot be read, or the answer is not finite.
            UsageError: It is no image, or the model is closed.
        """
        with python_words():
            (row,) = self._rows([image], "image")
            if not row.ok:
                raise InputError(f"{row.path}: {row.reason}", hint="Replace it, or leave it out.")
            return row

    def predict(self, images: Iterable[ImageLike]) -> list[Prediction]:
        """Answer for several images, of which each may be of another kind.

        Args:
            images: As one call takes each.

        Returns:
            One prediction an image, in their order. That of an image that cannot be read has no
            label; its ``status`` and ``reason`` tell why.

        Raises:
            UsageError: Something is no image, or the model is closed.
        """
        with python_words():
            return [*self._rows(_listed(images), "image {}")]

    def logits(self, images: ImageBatch) -> Logits:
        """Compute the logits of a batch that needs no preprocessing any more.

        Args:
            images: (N, H, W, 3) uint8, RGB, of the model's input size; or float32 in 0..255, of a
                model whose pixels training did not round. Made grey if training's images were.

        Returns:
            (N, K) float32, one column a class, in the order of ``classes``; (N, 1) of a binary
            model.

        Raises:
            UsageError: The batch has another type or shape, or the model is closed.
        """
        with python_words():
            return self._run(self._batch(images))

    def embed(self, images: Iterable[ImageLike] | ImageBatch) -> Embeddings:
        """Compute the embeddings of images: what the network's last layer takes of each.

        The graph that gives them is opened when this is first called. It computes in FP32: on the
        runtime that was named, else on the fastest on which this graph is proven.

        Args:
            images: A list of what one call takes, each of another kind if need be; or a batch as
                :meth:`logits` takes it, (N, H, W, 3) of the model's input size.

        Returns:
            (N, E) float32, in the order of the images.

        Raises:
            BundleError: The bundle was exported without embeddings.
            InputError: An image cannot be read: an array has no place to say so.
            ParityError: No runtime was named and the graph is proven on none; or its embeddings
                have been shown not to be the trained network's.
            UsageError: Something is no image, or the model is closed.
        """
        with python_words():
            need_embeddings(self.bundle)
            if isinstance(images, np.ndarray) and images.ndim == 4:
                return self._embed(self._batch(images))
            numbered = enumerate(_listed(images))
            parts: list[Embeddings] = []
            while group := [*islice(numbered, _BATCH)]:
                read = [self._readable(image, f"image {number}") for number, image in group]
                parts.append(self._embed(np.stack(read)))
            return np.concatenate(parts) if parts else self._embed(self._no_images())

    def _readable(self, image: ImageLike, unnamed: str) -> Pixels:
        """(H, W, 3) of the model's input size.

        Raises:
            InputError: The image cannot be read.
        """
        name = _name_of(image, unnamed)
        pixels = self._read(image, name)
        if isinstance(pixels, Failure):
            raise InputError(f"{name}: {pixels.reason}", hint="Replace it, or leave it out.")
        return pixels

    def _no_images(self) -> ImageBatch:
        return np.empty((0, *self.spec.input_size, 3), np.uint8)

    def _batch(self, images: ImageBatch) -> ImageBatch:
        """A batch as the session takes it.

        Raises:
            UsageError: It is none.
        """
        preprocessing = self.bundle.manifest.preprocessing
        expected, dtype = (*preprocessing.input_size, 3), np.dtype(preprocessing.pixel_type)
        if not isinstance(images, np.ndarray):
            raise UsageError(f"A batch must be a NumPy array, not {type(images).__name__}.")
        fits = images.ndim == 4 and images.shape[1:] == expected
        if images.dtype not in (np.uint8, dtype) or not fits:
            raise UsageError(
                f"A batch must be {dtype} of shape (N, {', '.join(map(str, expected))}), not "
                f"{images.dtype} of shape {images.shape}.",
                hint="model.predict(list_of_arrays) takes arrays of any size.",
            )
        if images.dtype == np.float32 and 0 < images.max(initial=0) <= 1:
            raise UsageError(
                "A batch of floats is in 0..255, as the network's own pixels were; this one is in "
                "0..1.",
                hint="Multiply it by 255.",
            )
        return make_grey(images) if preprocessing.grayscale else images

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return self.bundle.manifest.labels.names

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def close(self) -> None:
        """Free the session; closing twice is fine, and using the model afterwards is an error."""
        with self._lock:
            self._closed = True
            if self._open is not None:
                self._open[1].close()
            if self._embedding is not None:
                self._embedding.close()

    def __getstate__(self) -> dict[str, Any]:
        options = dict(self._options)
        if self._open is not None:
            spec = self._open[1].spec
            options |= {"runtime": spec.runtime, "precision": spec.precision}
            options["engine"] = spec.graph if is_flavour(spec.runtime) else None
        return {
            "made": (self._folder, options, self._top_k),
            "embeds_on": self._embeds_on,
            "closed": self._closed,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        Model.__init__(self, *state["made"])
        self._embeds_on = state["embeds_on"]  # what auto took was not named
        self._closed = state["closed"]

    def _opened(self) -> tuple[Bundle, Session]:
        if self._open is not None and not self._closed:
            return self._open  # without waiting for who computes
        with self._lock:
            if self._closed:
                raise UsageError(
                    f"The model of {self._folder} is closed.",
                    hint="Open it again: deploykit.load, and use it inside its with block.",
                )
            if self._open is None:
                bundle = open_bundle(self._folder)
                checked_top(self._top_k, len(bundle.manifest.labels))
                self._open = bundle, open_best(bundle, **self._options, progress=self._progress)
            return self._open

    def _run(self, images: ImageBatch) -> Logits:
        with self._lock:
            session = self._opened()[1]
            step = session.spec.largest_batch or max(1, len(images))
            parts = [
                session.run(np.ascontiguousarray(images[start : start + step]))
                for start in range(0, len(images), step)
            ]
        return np.concatenate(parts or [np.empty((0, session.spec.classes), np.float32)])

    def _embed(self, images: ImageBatch) -> Embeddings:
        with self._lock:
            bundle, session = self._opened()
            if self._embedding is None:
                self._embedding = open_with_embeddings(
                    bundle,
                    runtime=self._embeds_on,
                    threads=self._options["threads"],
                    tf32=self._options["tf32"],
                    progress=self._progress,
                )
            step = max(1, session.spec.largest_batch or len(images))
            parts = [
                self._embedding.run_embedded(np.ascontiguousarray(images[start : start + step]))[1]
                for start in range(0, len(images), step)
            ]
            size = need_embeddings(bundle).tap.size
        return np.concatenate(parts or [np.empty((0, size), np.float32)])

    def _rows(self, images: Iterable[ImageLike], unnamed: str) -> Iterator[Prediction]:
        """A row an image; a few images are in memory at a time."""
        labels = self.bundle.manifest.labels
        numbered = enumerate(images)
        top = checked_top(self._top_k, len(labels))
        while group := [*islice(numbered, _BATCH)]:
            files = tuple(
                ImageFile(Path(), _name_of(image, unnamed.format(number)))
                for number, image in group
            )
            read = [
                self._read(image, file.name) for (_, image), file in zip(group, files, strict=True)
            ]
            failures = tuple(each if isinstance(each, Failure) else None for each in read)
            pixels = [each for each in read if not isinstance(each, Failure)]
            batch = np.stack(pixels) if pixels else self._no_images()
            yield from rows_of(AnsweredBatch(files, failures, self._run(batch)), labels, top)

    def _read(self, image: ImageLike, name: str) -> Pixels | Failure:
        """(H, W, 3) of the model's input size; or what is wrong with the image."""
        try:
            return preprocess(_decoded(image, name), self.bundle.manifest.preprocessing)
        except DecodeError as exc:
            return exc.failure
        except OversizeError as exc:
            return Failure("too-large", exc.message)


def load(
    bundle: BundleLike | None = None,
    *,
    runtime: str = AUTO,
    precision: Precision | None = None,
    engine: str | None = None,
    tf32: bool = False,
    threads: int | None = None,
    top_k: TopK | None = None,
    artifacts: PathLike | None = None,
    progress: Progress = silent,
) -> Model:
    """Open a bundle to answer for images: what ``deploykit predict`` would run.

    Args:
        bundle: What :func:`deploykit.export` returned, a bundle's name, its folder or the
            ``.zip`` file that ``package`` made of it; None for the one there is, or the newest.
        runtime: What executes; ``auto`` for the fastest that is proven.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``; None for any.
        engine: One engine by its file's name; it says runtime and precision by itself.
        tf32: Let onnxruntime-cuda compute FP32 in TensorFloat-32.
        threads: CPU threads; None for one a core.
        top_k: How many classes a prediction ranks, or ``all``; None for at most 5.
        artifacts: The home of bundles; None for ``artifacts``.
        progress: Called with what is taken, and why.

    Raises:
        UsageError: An argument makes no sense.
        BundleError: There is no such bundle, graph or engine, or it is damaged.
        ParityError: Nothing is proven, or what runs here for the first time gives other answers.
        MissingError: The runtime's package or device is not here.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1; got {threads}.")
    options = {
        "runtime": runtime,
        "precision": precision,
        "engine": engine,
        "tf32": tf32,
        "threads": threads,
    }
    model = Model(
        chosen_bundle(bundle, artifacts, progress, packed=True).place, options, top_k, progress
    )
    model._opened()  # noqa: SLF001  # its own file's
    return model


def model_text(model: Model) -> str:
    """What a model runs, on what, and whether that is proven."""
    if model.closed:
        return "model    closed"
    spec, bundle, names = model.spec, model.bundle, model.classes
    shown = ", ".join(names[:_SHOWN_CLASSES]) + (", ..." if len(names) > _SHOWN_CLASSES else "")
    known = status_of_run(bundle, spec)
    first, *command = known.why.split("\n")
    lines = (
        f"model    {bundle.name}: {bundle.place}",
        f"runs     {spec.title}, {spec.device}",
        f"input    {format_size(spec.input_size)}: {bundle.manifest.preprocessing.describe()}",
        f"classes  {len(names)}: {shown}",
        f"status   {known.word}{f': {first}' if first else ''}",
        *command,
    )
    return "\n".join(map(visible, lines))


def _listed(images: Iterable[ImageLike]) -> Iterable[ImageLike]:
    """Several images.

    Raises:
        UsageError: It is one, or none.
    """
    is_one = isinstance(images, str | bytes | os.PathLike | Image.Image)
    if is_one or not hasattr(images, "__iter__"):
        raise UsageError(
            f"images must be a list of images, not {type(images).__name__}.",
            hint="model(image) takes one image, and deploykit.predict(folder) a folder.",
        )
    return images


def _name_of(image: ImageLike, unnamed: str) -> str:
    """An image's path as it was given; else its place in the list."""
    path = getattr(image, "filename", "") if isinstance(image, Image.Image) else image
    if isinstance(path, str | os.PathLike) and os.fspath(path):
        return escape_name(os.fspath(path))
    return unnamed


def _decoded(image: ImageLike, name: str) -> Image.Image:
    """An image in mode RGB.

    Raises:
        UsageError: It is of no kind that holds an image.
        DecodeError: It gives no pixels.
    """
    if isinstance(image, Image.Image):
        if not all(image.size):
            raise UsageError(f"{name} has no pixels: its size is {image.width}x{image.height}.")
        return rgb_of(image, name)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UsageError(
                f"An array must be uint8 of shape (H, W, 3), RGB, not {image.dtype} of shape "
                f"{image.shape}.",
                hint="Of a float image in 0..1: (image * 255).round().astype('uint8'); of (3, H, "
                "W): image.transpose(1, 2, 0).",
            )
        return Image.fromarray(np.ascontiguousarray(image))
    if isinstance(image, bytes):
        with decoded_rgb(Path(name), data=image) as decoded:
            return decoded
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        if path.is_dir() or not os.fspath(image):
            raise UsageError(
                f"{name} is a folder, not an image." if os.fspath(image) else "The path is empty.",
                hint="deploykit.predict(folder) gives a row for each of a folder's images.",
            )
        return decode_rgb(path)
    raise UsageError(
        f"An image must be a path, bytes, an image of Pillow's or an array, not "
        f"{type(image).__name__}.",
        hint="Of a tensor (3, H, W) of bytes: tensor.permute(1, 2, 0).numpy().",
    )
