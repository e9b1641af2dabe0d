"""What ``inspect`` found, as text and as values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from deploykit.bundle.folder import (
    INT8_AVX2_GRAPH,
    INT8_TENSORRT_GRAPH,
    Bundle,
    deploy_graph,
    open_bundle,
)
from deploykit.bundle.manifest import Manifest
from deploykit.commands.inspect.bundle import BundleInspection
from deploykit.commands.inspect.engine import EngineInspection
from deploykit.commands.inspect.graph import GraphInspection
from deploykit.commands.inspect.run import CheckpointInspection, Inspection
from deploykit.commands.quantize.text import made_for
from deploykit.engine.passport import Passport
from deploykit.errors import BundleError
from deploykit.inference.candidates import Candidate
from deploykit.proof.embeddings_text import record_text, similarity_lines
from deploykit.proof.policy import status_of
from deploykit.proof.text import kept_verdict_text, status_value
from deploykit.specs.model import KeptNode, TensorSpec
from deploykit.specs.value import plain_value
from deploykit.system.text import command_line, counted, visible

_INT8_GRAPHS = (deploy_graph("int8"), INT8_AVX2_GRAPH, INT8_TENSORRT_GRAPH)
_CONTAINERS = {
    "zip": "torch.save",
    "legacy": "torch.save, from before torch 1.6",
    "safetensors": "safetensors",
    "shards": "an index with its shards",
    "keras": "Keras",
}
_SHOWN_NAMES = 12
_SHOWN_NODES = 12
_WIDTH = 15


def bundle_text(bundle: Bundle) -> str:
    """What a bundle is and what of it is proven, as it is now if it is still there."""
    try:
        now = open_bundle(bundle.place)
    except BundleError as exc:
        return "\n".join([_line("bundle", f"{bundle.place}, as it was"), _line("", exc.message)])
    lines = [_line("bundle", f"{now.place}, exported {now.manifest.created[:10]}")]
    lines += [*_origin_lines(now.manifest)][:-1]  # not with which versions
    for kept in now.manifest.verdicts:
        known = status_of(now, kept)
        candidate = Candidate(kept.graph, kept.runtime, kept.precision)
        first, *command = known.why.split("\n")
        lines += (_line(known.word, f"{candidate}{f': {first}' if first else ''}"), *command)
    return "\n".join(lines)


def inspection_text(found: Inspection) -> str:
    """What was found, a line each thing."""
    match found:
        case BundleInspection():
            lines = _bundle_lines(found)
        case GraphInspection():
            lines = _graph_lines(found)
        case EngineInspection():
            lines = _engine_lines(found)
        case CheckpointInspection():
            lines = _checkpoint_lines(found)
    return "\n".join(lines)


def inspection_value(found: Inspection) -> dict[str, Any]:
    """The same for ``--json``; numbers that are not finite become null."""
    value: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(found))
    if isinstance(found, BundleInspection):
        value["verdicts"] = [
            {**status_value(status), "verdict": plain_value(each)}
            for each, status in found.verdicts
        ]
    kind = type(found).__name__.removesuffix("Inspection").lower()
    return {"kind": kind, "sound": found.sound, **value}


def _bundle_lines(found: BundleInspection) -> Iterator[str]:
    manifest = found.manifest
    yield _line("bundle", f"{found.folder}, exported {manifest.created[:10]}")
    yield from _origin_lines(manifest)
    for name, state in found.files.items():
        told = "" if state == "ok" else f"  {state.upper()}"
        yield _line("file", f"{name}, {_size(manifest.files[name].bytes)}{told}")
    yield from (_line("DAMAGED", reason) for reason in found.damage)
    yield from _search_lines(manifest)
    for engine in found.engines:
        yield from _engine_lines(engine)
    for kept, status in found.verdicts:
        candidate = Candidate(kept.graph, kept.runtime, kept.precision)
        yield _line(status.word, f"{candidate}: {kept_verdict_text(kept)}")
        if status.why:
            first, *command = status.why.split("\n")
            yield from (_line("", first), *command)
    if not found.verdicts:
        yield _line("unproven", "nothing was compared; this does:")
        yield command_line(
            ["deploykit", "verify", "--bundle", str(found.folder), "--images", "DIR"]
        )
    if manifest.embeddings is not None:
        yield _line("embeddings", record_text(manifest.embeddings))
        yield from (_line("", line) for line in similarity_lines(manifest))
    for accepted in manifest.accepted:
        machine = accepted.machine
        yield _line(
            "accepted",
            f"{accepted}, {accepted.status}, {accepted.images_per_second:.1f} images/s on "
            f"{machine.cpu}, "
            f"{machine.cpus} threads{f', {machine.gpu}' if machine.gpu else ''}; "
            f"{accepted.created[:10]}",
        )
    yield _line("auto", found.runs or "nothing would run here")
    yield from (_line("", reason) for reason in found.reasons)


def _search_lines(manifest: Manifest) -> Iterator[str]:
    """What the graphs below FP32 are made for, and which of their nodes stay in FP32."""
    for graph in _INT8_GRAPHS:
        if (search := manifest.searches.get(graph)) is not None:
            yield _line("made for", f"{made_for(search.runtime, search.weight_bits)}: {graph}")
    for graph in manifest.searches:
        kept = () if graph in manifest.engines else manifest.kept_in(graph)
        if kept:
            stay = counted(len(kept), f"node of {graph} stays", f"nodes of {graph} stay")
            yield _line("kept", f"{stay} in FP32")
        yield from _kept_lines(kept)


def _origin_lines(manifest: Manifest) -> Iterator[str]:
    architecture, checkpoint = manifest.architecture, manifest.checkpoint
    arguments = "".join(f", {key}={value!r}" for key, value in architecture.args.items())
    yield _line(
        "network",
        f"{architecture.name}{arguments}, {architecture.parameters:,} parameters, "
        f"{len(manifest.labels)} classes",
    )
    yield _line("checkpoint", f"{checkpoint.path} ({checkpoint.sha256[:12]})")
    if manifest.labels.head.thresholds:
        yield _line("head", manifest.labels.head.describe(manifest.labels.names))
    yield _line("classes", f"{_names(manifest.labels.names)} ({manifest.labels.source})")
    preprocessing = manifest.preprocessing
    yield _line("preprocessing", f"{preprocessing.describe()} ({preprocessing.source})")
    yield _line("images", manifest.images or "none given at export")
    yield _line(
        "exported with",
        f"opset {manifest.opset}, "
        + ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
    )


def _graph_lines(found: GraphInspection) -> Iterator[str]:
    opsets = ", ".join(f"{name or 'opset'} {version}" for name, version in found.opsets.items())
    producer = f", made by {found.producer}" if found.producer else ""
    yield _line("graph", f"{found.path}, {_size(found.bytes)}, {opsets}{producer}")
    yield from (_line("input", _tensor(spec)) for spec in found.inputs)
    yield from (_line("output", _tensor(spec)) for spec in found.outputs)
    yield _line("precision", found.precision)
    weights = ", ".join(f"{count:,} {dtype}" for dtype, count in found.weights.items())
    yield _line("weights", weights or "none")
    yield _line("operators", _counts(found.operators))
    if found.kept:
        yield _line("kept", f"{len(found.kept)} nodes compute in FP32")
    yield from _kept_lines(found.kept)
    if found.head is not None:
        yield _line("head", found.head.describe(found.labels or ()))
    yield _line("classes", _names(found.labels) if found.labels else "it carries none")
    preprocessing = found.preprocessing
    yield _line("preprocessing", preprocessing.describe() if preprocessing else "it carries none")
    yield from (_line("DAMAGED", note) for note in found.notes)


def _engine_lines(found: EngineInspection) -> Iterator[str]:
    yield _line("engine", f"{found.path}, {_size(found.bytes)}")
    header = found.header
    if header is None:
        yield _line("  header", "unknown")
    else:
        facts = (header.flavour, header.version, " ".join(header.targets or ()))
        yield _line("  header", ", ".join(filter(None, facts)))
    if found.passport is not None:
        yield from _passport_lines(found.passport)
    yield from (_line("  UNUSABLE", reason) for reason in found.reasons)


def _passport_lines(passport: Passport) -> Iterator[str]:
    profile = passport.profile
    yield _line(
        "  passport",
        f"{passport.flavour} {passport.version}, runs on {passport.needs}, {passport.precision}, "
        f"batches of {profile.min_batch} to {profile.max_batch} (best at {profile.opt_batch})",
    )
    yield _line(
        "  built",
        f"{passport.created[:10]} from {passport.deploy_graph} "
        f"({passport.deploy_graph_sha256[:12]}), in {passport.build_seconds:.1f} s",
    )
    yield _line(
        "  its graph", kept_verdict_text(passport.proof) if passport.proof else "not proven"
    )


def _checkpoint_lines(found: CheckpointInspection) -> Iterator[str]:
    contents = found.contents
    container = _CONTAINERS[contents.container]
    yield _line("checkpoint", f"{found.path}, {_size(found.bytes)}, {container}")
    yield _line("weights", f"{len(contents.tensors)} tensors, {contents.parameters:,} numbers")
    if contents.arch:
        yield _line("architecture", contents.arch)
    if contents.entry:
        yield _line("entry", contents.entry)
    yield _line("types", _counts(contents.dtypes))
    if contents.classes is not None:
        yield _line("classes", f"{contents.classes}, if {contents.last_layer} is the last layer")
    for name, value in contents.told.items():
        yield _line("it says", f"{name} = {value}")
    yield from (_line("note", note) for note in contents.notes)
    if contents.non_finite:
        yield _line("DAMAGED", f"NaN or infinity in {_names(contents.non_finite)}")


def _kept_lines(kept: tuple[KeptNode, ...]) -> Iterator[str]:
    for node in kept[:_SHOWN_NODES]:
        module = f" of {node.module}" if node.module else ""
        reason = f": {node.reason}" if node.reason else ""
        yield _line("", f"{node.node} ({node.operator}{module}){reason}")
    if len(kept) > _SHOWN_NODES:
        yield _line("", f"... and {len(kept) - _SHOWN_NODES} more")


def _line(name: str, text: str) -> str:
    return f"{name:<{_WIDTH}}{visible(text)}"


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.name}: {spec.dtype} [{', '.join(map(str, spec.shape))}]"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _names(names: tuple[str, ...]) -> str:
    more = f", ... ({len(names)})" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
