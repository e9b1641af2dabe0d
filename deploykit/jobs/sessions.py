"""Open a bundle's graphs."""

from __future__ import annotations

from deploykit.bundle import Bundle
from deploykit.runtime.opener import open_graph
from deploykit.session import Session
from deploykit.specs import Precision


def open_bundle_graph(
    bundle: Bundle,
    graph: str,
    *,
    runtime: str,
    precision: Precision,
    threads: int | None = None,
) -> Session:
    """Open one of a bundle's graphs, once its hash has been checked.

    Args:
        bundle: The bundle.
        graph: Relative to the bundle, ``deploy/fp32.onnx``.
        runtime: One of :data:`deploykit.runtime.opener.RUNTIMES`.
        precision: The graph's.
        threads: For computing on the CPU; None for one a core.

    Raises:
        BundleError: The file is missing or changed.
        DeploykitError: See :func:`deploykit.runtime.opener.open_graph`.
    """
    manifest = bundle.manifest
    return open_graph(
        bundle.checked(graph),
        name=graph,
        runtime=runtime,
        precision=precision,
        preprocessing=manifest.preprocessing,
        labels=manifest.labels,
        threads=threads,
    )
