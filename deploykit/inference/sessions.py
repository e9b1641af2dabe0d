"""Open a bundle's graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.bundle.folder import Bundle
from deploykit.runtime.opener import REHEARSAL, open_graph
from deploykit.specs.model import Labels, Precision
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.session import Session

if TYPE_CHECKING:
    import onnx_ir as ir


def open_bundle_graph(
    bundle: Bundle,
    graph: str,
    *,
    runtime: str,
    precision: Precision,
    threads: int | None = None,
    pipelined: bool = False,
    tf32: bool = False,
) -> Session:
    """Open one of a bundle's graphs, once its hash has been checked.

    INT8 is rehearsed by running the very graph, FP16 by running it with FP32 kernels.

    Args:
        bundle: The bundle.
        graph: Relative to the bundle, ``deploy/fp32.onnx``.
        runtime: One of :data:`deploykit.runtime.opener.RUNTIMES`.
        precision: The graph's, or one that the runtime takes the graph for.
        threads: For computing on the CPU; None for one a core.
        pipelined: Whether several batches will be under way at once.
        tf32: Whether a GPU may compute FP32 in TensorFloat-32.

    Raises:
        BundleError: The file is missing or changed.
        DependencyError: A rehearsal without onnx.
        DeploykitError: See :func:`deploykit.runtime.opener.open_graph`.
    """
    manifest = bundle.manifest
    path = bundle.checked(graph)
    if runtime == REHEARSAL and precision == "fp16":
        from deploykit.graph.files import load_graph

        return open_rehearsal(
            load_graph(path),
            name=graph,
            preprocessing=manifest.preprocessing,
            labels=manifest.labels,
            threads=threads,
        )
    return open_graph(
        path,
        name=graph,
        runtime=runtime,
        precision=precision,
        preprocessing=manifest.preprocessing,
        labels=manifest.labels,
        threads=threads,
        pipelined=pipelined,
        tf32=tf32,
    )


def open_rehearsal(
    graph: ir.Model,
    *,
    name: str,
    preprocessing: Preprocessing,
    labels: Labels,
    threads: int | None = None,
) -> Session:
    """Open an FP16 graph's rehearsal: FP32 kernels, each tensor rounded through FP16.

    Args:
        graph: ``deploy/fp16.onnx``.
        name: What reports call it.
        preprocessing: See :func:`deploykit.runtime.opener.open_graph`, as the arguments below.
        labels: The classes' names.
        threads: For computing; None for one a core.
    """
    from deploykit.graph.instruments import model_bytes
    from deploykit.graph.rehearsal import rehearsal_of

    return open_graph(
        model_bytes(rehearsal_of(graph)),
        name=name,
        runtime=REHEARSAL,
        precision="fp16",
        preprocessing=preprocessing,
        labels=labels,
        threads=threads,
    )
