"""``deploykit.verify``: does the bundle decide as the checkpoint does? From Python."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from deploykit.commands.python import BundleLike, PathLike, chosen_bundle, optional_path
from deploykit.commands.verify.reports import verify_with_reports
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.result import Verification
from deploykit.commands.verify.text import verdict_text, verification_text
from deploykit.parity.budget import Budget
from deploykit.proof.reference import ReferenceRequest
from deploykit.specs.model import Precision
from deploykit.specs.session import SERVER_PROTOCOLS, ServerProtocol
from deploykit.specs.value import choice
from deploykit.system.progress import Progress, silent


def verify(
    bundle: BundleLike | None = None,
    *,
    images: PathLike | None = None,
    max_images: int | None = None,
    lowest_margins: int | None = None,
    runtime: str | None = None,
    precision: Precision | None = None,
    engine: str | None = None,
    tf32: bool = False,
    arch: str | None = None,
    ckpt: PathLike | None = None,
    arch_args: Mapping[str, object] | None = None,
    trust_pickle: bool = False,
    self_test: bool = False,
    expected: PathLike | None = None,
    server: str | None = None,
    protocol: ServerProtocol | None = None,
    against: PathLike | None = None,
    max_flips: str | float | None = None,
    max_accuracy_drop: float | None = None,
    html: PathLike | None = None,
    junit: PathLike | None = None,
    artifacts: PathLike | None = None,
    progress: Progress = silent,
) -> Verification:
    """Compare a bundle's graphs with the checkpoint, and keep in the bundle what that shows.

    A difference is a result, not an exception: see ``passed`` of what is returned.
    :func:`deploykit.diagnose` finds where it comes from.

    Args:
        bundle: What :func:`deploykit.export` returned, a bundle's name or its folder; None for the
            one there is, or the newest.
        images: Photos to compare on; None for those of the export, else ``golden.npz``.
        max_images: At most so many, even over the classes.
        lowest_margins: Only so many photos, those with the lowest margins: a flip shows after few,
            but there is no bound and no proof.
        runtime: What executes; None for all that run here.
        precision: Of the graphs and engines; None for all.
        engine: One engine, by its file's name; None for the newest.
        tf32: Let onnxruntime-cuda compute FP32 in TensorFloat-32.
        arch: Compare with this architecture, your own code included.
        ckpt: Compare with this checkpoint; None for the recorded one.
        arch_args: Further arguments of the architecture; None for the recorded ones.
        trust_pickle: Let the checkpoint run the code in it; only for files you made yourself.
        self_test: Compare with the recorded answers, which needs no torch.
        expected: A table of the photos' classes (path, then names or 0/1 columns); None for what
            their folders tell. Gives the accuracy of both sides.
        server: The address of a model server that speaks KServe v2, to compare instead of what runs
            here: ``http://HOST:8000/v2/models/NAME``, by default with the bundle's name. A key
            that it wants is read from the environment variable ``DEPLOYKIT_SERVER_KEY``.
        protocol: What the server speaks there, ``http`` or ``grpc``; None for HTTP.
        against: Another tool's table of the same photos to compare instead: a CSV, JSON lines or
            Parquet.
        max_flips: Below FP32, the part of the decisions that may change, ``"1%"`` or ``0.01``,
            instead of what the precision allows.
        max_accuracy_drop: Below FP32, by how many points the accuracy on labelled photos may fall.
        html: Where to write the certificate, a page for people.
        junit: Where to write JUnit XML, for CI systems.
        artifacts: The home of bundles; None for ``artifacts``.
        progress: Called with what is being done.

    Raises:
        UsageError: An argument makes no sense, or not beside another; or ``html`` or
            ``junit`` names a file that is no earlier report.
        BundleError: There is no such bundle, or a file of it is missing or damaged.
        InputError: The photos, or a checkpoint that was named, cannot be used.
        MissingError: The runtime needs a package or a device that is not here, or the server does
            not answer.
    """
    request = VerifyRequest(
        images=optional_path(images),
        max_images=max_images,
        lowest_margins=lowest_margins,
        budget=Budget.parse(max_flips, max_accuracy_drop),
        runtime=runtime,
        precision=precision,
        engine=engine,
        tf32=tf32,
        reference=ReferenceRequest(arch, optional_path(ckpt), arch_args, trust_pickle),
        self_test=self_test,
        expected=optional_path(expected),
        server=server,
        protocol=None if protocol is None else choice(protocol, SERVER_PROTOCOLS, "protocol"),
        against=optional_path(against),
    )
    return verify_with_reports(
        partial(chosen_bundle, bundle, artifacts, progress, packed=True),
        request,
        html=optional_path(html),
        junit=optional_path(junit),
        progress=progress,
    )


def shown_text(result: Verification) -> str:
    """The verdicts, and the one on all."""
    return f"{verification_text(result)}\n{verdict_text(result)}"
