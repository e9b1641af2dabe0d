"""INT8 graphs as files, and what the manifest says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deploykit.bundle.folder import Bundle, require_unchanged
from deploykit.bundle.manifest import Manifest, SearchRecord, record_file, update_manifest
from deploykit.bundle.verdicts import KeptVerdict
from deploykit.commands.quantize.int8_loop import ON_CPU, Int8Loop, Int8Set
from deploykit.specs.precision import KeptNode


@dataclass(frozen=True)
class Publication:
    """What a bundle is to have of one INT8 graph.

    Attributes:
        graph: Its path in the bundle.
        path: Where it is now, on the same file system.
        kept: The nodes that stay in FP32.
        search: What chose them.
        proofs: That the graph decides rightly.
    """

    graph: str
    path: Path
    kept: tuple[KeptNode, ...]
    search: SearchRecord
    proofs: tuple[KeptVerdict, ...]


def write_graph(
    loop: Int8Loop, found: Int8Set, manifest: Manifest, path: Path
) -> tuple[tuple[KeptNode, ...], int]:
    """Write an INT8 graph.

    Args:
        loop: Which found it.
        found: The nodes to keep in FP32, and the calibration.
        manifest: The bundle's.
        path: The file to write.

    Returns:
        The nodes that it keeps in FP32, and how many compute with integers.
    """
    from deploykit.graph.files import save_graph
    from deploykit.graph.passes import MODULE_PATH

    graph = loop.converted(found.nodes, found.method)
    save_graph(graph, path, labels=manifest.labels, preprocessing=manifest.preprocessing)
    kept = tuple(
        KeptNode(
            node=node.name or "",
            operator=node.op_type,
            module=node.metadata_props.get(MODULE_PATH, ""),
            reason=found.reasons[node.name or ""],
        )
        for node in loop.integer_nodes
        if node.name in found.nodes
    )
    return kept, len(loop.integer_nodes) - len(kept)


def publish_graphs(bundle: Bundle, made: Sequence[Publication]) -> None:
    """Put INT8 graphs and what is known of them into the bundle, all at once.

    Raises:
        BundleError: Its FP32 graph is not the one they were made from any more.
    """
    fp32 = bundle.deploy_graph("fp32")

    def change(manifest: Manifest) -> Manifest:
        require_unchanged(bundle, manifest, fp32)
        for each in made:
            manifest = _with_graph(manifest, each)
        return manifest

    update_manifest(bundle.folder, change, {each.graph: each.path for each in made})


def _with_graph(manifest: Manifest, made: Publication) -> Manifest:
    """A copy with a graph and its proofs, and with none of an earlier one of its name."""
    changed = msgspec.structs.replace(
        manifest.without_verdicts_of(made.graph),
        files={**manifest.files, made.graph: record_file(made.path)},
        searches={**manifest.searches, made.graph: made.search},
    )
    for proof in made.proofs:
        changed = changed.with_verdict(proof)
    if made.graph != ON_CPU.graph:
        return msgspec.structs.replace(changed, kept_for_tensorrt=made.kept)
    return msgspec.structs.replace(
        changed,
        deploy={**manifest.deploy, "int8": made.graph},
        kept={**manifest.kept, "int8": made.kept},
    )
