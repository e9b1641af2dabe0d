"""Quantize: make graphs of lower precision that decide as the checkpoint does, and prove them.

One flow for FP16 and INT8: scan or calibrate, convert, compare on the photos of the search, rank
the nodes by what they cost, keep the fewest in FP32, prove on other photos, publish.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from deploykit.bundle.folder import Bundle, deploy_graph, open_bundle, require_unchanged
from deploykit.bundle.manifest import (
    Manifest,
    SearchRecord,
    record_file,
    sha256_of,
    update_manifest,
)
from deploykit.bundle.verdicts import KeptVerdict
from deploykit.commands.diagnose.layers.failed import failure_lines
from deploykit.commands.quantize.fp16 import FP16, Fp16
from deploykit.commands.quantize.int8 import ON_CPU, Calibration, Int8, calibrate
from deploykit.commands.quantize.offers import offer_lines, offers_of, speed_text
from deploykit.commands.quantize.replaced import keep_what_is_proven, weigh_images
from deploykit.commands.quantize.request import QuantizeRequest
from deploykit.commands.quantize.search import NodeSet
from deploykit.commands.quantize.strategy import KeptSet, Scheme, Strategy
from deploykit.errors import DeploykitError, GraphError, MissingError, ParityError
from deploykit.inference.engines import Engine, engines_outdated
from deploykit.parity.calibration import CalibrationMethod
from deploykit.proof.answered import AnsweredImages, split_answers
from deploykit.proof.images import ImageSample, require_labels, split_samples
from deploykit.proof.policy import too_few_images
from deploykit.proof.reference import (
    EXPORT_PROVES,
    OpenReference,
    ReferenceRequest,
    open_reference,
)
from deploykit.proof.text import flips_text
from deploykit.proof.verdict import Verdict, kept_verdict
from deploykit.runtime.opener import OPENVINO
from deploykit.specs.model import KeptNode, Precision
from deploykit.specs.value import Shown
from deploykit.system.cpu import read_cpu, saturates_int8
from deploykit.system.deps import need
from deploykit.system.files import staged
from deploykit.system.progress import Note, Progress, silent
from deploykit.system.text import counted

if TYPE_CHECKING:
    import onnx_ir as ir

#: For the search and for the proof. INT8 adds up many small errors, which takes more photos to see
#: than FP16's few large ones.
_IMAGES: dict[Precision, tuple[int, int]] = {"fp16": (32, 32), "int8": (64, 128)}


@dataclass(frozen=True)
class QuantizedGraph:
    """A graph of lower precision that passed on the runtime that it is made for.

    Attributes:
        graph: Its path in the bundle.
        runtime: What it is made for: the search tried graphs there.
        kept: The nodes that stay in FP32, and why.
        integers: How many nodes of an INT8 graph compute with integers; None for FP16.
        weight_bits: Of an INT8 graph's weights; None for FP16.
        method: How the tensors' ranges were chosen; None for FP16.
        verdicts: Of the very file, on photos that the search did not use, one for each runtime
            that is here.
        judged: Those of them that passed or failed, as the manifest keeps them.
        searched: How many photos the search used.
        trials: How many graphs were tried.
        minimal: Whether it was shown that no single kept node can be spared.
        times_fp32: How many times as fast as FP32 it was on the runtime that it is made for, at
            batch 8; None where that is a model of another device.
    """

    graph: str
    runtime: str
    kept: tuple[KeptNode, ...]
    integers: int | None
    weight_bits: int | None
    method: CalibrationMethod | None
    verdicts: tuple[Verdict, ...]
    judged: tuple[KeptVerdict, ...]
    searched: int
    trials: int
    minimal: bool
    times_fp32: float | None

    @property
    def verdict(self) -> Verdict:
        """The verdict on the runtime that it is made for."""
        return next(each for each in self.verdicts if each.candidate.runtime == self.runtime)

    @property
    def proofs(self) -> tuple[KeptVerdict, ...]:
        """Those of the verdicts that passed, as the manifest keeps them."""
        return tuple(each for each in self.judged if each.passed)

    @property
    def proof(self) -> KeptVerdict:
        """The same as the manifest keeps it."""
        return next(each for each in self.proofs if each.runtime == self.runtime)


@dataclass(frozen=True, repr=False)
class Quantization(Shown):
    """The graphs of lower precision that were made.

    Attributes:
        bundle: The bundle, which has the graphs and their proofs now.
        graphs: Those that passed, in the order of
            :data:`deploykit.commands.quantize.request.SCHEMES`.
        refused: Why others that were asked for were not made.
        outdated: The engines that were built from an earlier graph of a name, and run no longer.
    """

    bundle: Bundle
    graphs: tuple[QuantizedGraph, ...]
    refused: tuple[DeploykitError, ...]
    outdated: tuple[Engine, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every graph that was asked for was made."""
        return not self.refused


def quantize_bundle(
    bundle: Bundle, request: QuantizeRequest | None = None, progress: Progress = silent
) -> Quantization:
    """Make graphs of lower precision from ``deploy/fp32.onnx``.

    A search chooses the nodes that stay in FP32; then the files that were written are compared on
    other photos: INT8 for CPUs on OpenVINO where it is installed and on ONNX Runtime, and must pass
    on the one that it is made for; FP16 and INT8 for TensorRT in rehearsal, which needs no
    TensorRT. Each is in the bundle once it has passed, whatever becomes of the other.

    Raises:
        DeploykitError: See :func:`deploykit.quantize`. ParityError: no set of FP32 nodes was found
            with which the first graph passes, or the one that was found fails on the photos that
            the search did not see, or they are too few to replace a graph that is proven, or most
            photos cannot be read.
    """
    request = request or QuantizeRequest()
    schemes = request.schemes()
    if request.runtime == OPENVINO:
        need("openvino")  # or a calibration of minutes would be in vain
    split = quantization_images(
        bundle, request.precision, request.images, progress, request.expected
    )
    require_labels(request.budget, split[1].expected, split[1].source)
    cpu = read_cpu()
    if ON_CPU in schemes and saturates_int8(cpu):
        progress(
            Note(
                f"{cpu.name} has no VNNI: sums of INT8 products may saturate on it, and "
                f"{ON_CPU.graph} is judged with that"
            )
        )
    with ExitStack() as stack:
        reference = open_reference(bundle, ReferenceRequest(), progress)
        stack.enter_context(reference.session)
        if reference.reason is not None:
            raise ParityError(
                f"Nothing can be proven in {request.precision.upper()}: {reference.reason}.",
                hint=EXPORT_PROVES,
            )
        counts = [counted(each.count, "photo") for each in split]
        progress(
            Note(
                f"searching on {counts[0]}, then proving on {counts[1]} that are not among them; "
                "that may take minutes"
            )
        )
        search, proof = split_answers(split, reference, progress, request.budget)
        weigh_images(bundle, schemes, proof, progress)
        folder = stack.enter_context(staged(bundle.folder)) / "made"
        maker = _Maker(bundle, request, reference, search, proof, folder, progress)
        made, refused = maker.make(schemes)
    now = open_bundle(bundle.folder)
    return Quantization(now, made, refused, engines_outdated(bundle, now))


def quantization_images(
    bundle: Bundle,
    precision: Precision,
    images: Path | None,
    progress: Progress,
    expected: Path | None = None,
) -> tuple[ImageSample, ImageSample]:
    """Photos to calibrate and search on, and others to prove on; see :func:`split_samples`."""
    search, proof = _IMAGES[precision]
    return split_samples(bundle, images, progress, search=search, proof=proof, expected=expected)


@dataclass(frozen=True)
class _Maker:
    """Makes graphs, each of the same photos, and puts each into the bundle."""

    bundle: Bundle
    request: QuantizeRequest
    reference: OpenReference
    search: AnsweredImages
    proof: AnsweredImages
    folder: Path
    progress: Progress

    def make(
        self, schemes: Sequence[Scheme]
    ) -> tuple[tuple[QuantizedGraph, ...], tuple[DeploykitError, ...]]:
        """Make what was asked for; of the graphs beside the first each that passes.

        Raises:
            DeploykitError: The first does not pass, or its runtime is not here.
        """
        first, *others = schemes
        made, refused = [self._make(first)], list[DeploykitError]()
        for scheme in others:
            try:
                made.append(self._make(scheme))
            except (ParityError, GraphError, MissingError) as exc:
                if scheme.graph in self.bundle.manifest.files:
                    self.progress(Note(f"{scheme.graph} stays as it was made before"))
                refused.append(exc)
        return tuple(made), tuple(refused)

    def _make(self, scheme: Scheme) -> QuantizedGraph:
        strategy, start = self._begin(scheme)
        try:
            found = strategy.find(start, self.request.search_seconds)
        except ParityError as exc:
            if strategy.failed is None:
                raise
            keep, verdict = strategy.failed
            self._write(scheme, strategy.converted(keep))
            error = self._with_offers(exc, strategy, strategy.failing, self.search)
            raise self._kept_failure(error, verdict, self.search) from exc
        graph = strategy.converted(found.nodes)
        path = self._write(scheme, graph)
        made = self._proven(strategy, found, strategy.kept_nodes(graph, found), path)
        self._publish(scheme, made, path)
        self.progress(Note(f"{scheme.graph} passed: it is in the bundle"))
        return made

    def _write(self, scheme: Scheme, graph: ir.Model) -> Path:
        from deploykit.graph.files import save_graph

        manifest, path = self.bundle.manifest, self.folder / scheme.graph
        path.parent.mkdir(parents=True, exist_ok=True)
        save_graph(graph, path, labels=manifest.labels, preprocessing=manifest.preprocessing)
        return path

    def _with_offers(
        self,
        error: ParityError,
        strategy: Strategy,
        failing: Sequence[tuple[NodeSet, Verdict]],
        images: AnsweredImages,
    ) -> ParityError:
        """Say beside a failure within which budget it would be none, and how to allow that.

        Args:
            error: What to say before that.
            strategy: Of the graphs.
            failing: Those that failed, as the nodes that they keep in FP32 and the verdicts.
            images: What they failed on.
        """
        where = "the proof" if images is self.proof else "the search"
        offers = offers_of(failing, self.request.budget, strategy.searched_part)
        if not offers:
            return error
        speeds = [speed_text(strategy.times_fp32(each.nodes), strategy.runtime) for each in offers]
        lines = offer_lines(offers, strategy.scheme.precision.upper(), where, speeds)
        request, others = self.request, "other photos must show the same"
        if images is self.proof:  # those have chosen the budget, and would prove it, too
            request = replace(request, images=Path("DIR"), expected=None)
            others = "photos that are not among these must show the same"
        hints = (
            f"Or allow that; {others}: {request.command(self.bundle, each.budget)}"
            for each in offers
        )
        return ParityError(
            "\n".join([error.message, *lines]), hint="\n".join([error.hint or "", *hints])
        )

    def _kept_failure(
        self, error: ParityError, verdict: Verdict, images: AnsweredImages
    ) -> ParityError:
        """Keep a written graph that failed and what it was made from, and name the node at fault.

        Args:
            error: What to say before that.
            verdict: On the graph.
            images: Those of the verdict.
        """
        fp32 = self.bundle.deploy_graph("fp32")
        shown, right = images.extremes.showing(verdict, images.images, images.logits)
        shutil.copyfile(self.bundle.checked(fp32), self.folder / fp32)
        lines = failure_lines(
            self.folder,
            self.bundle.folder,
            verdict.candidate,
            fp32,
            shown,
            right,
            self.bundle.manifest.preprocessing,
            self.progress,
            found=verdict.measurement if verdict.exceeded else None,
            diagnose=self.request.diagnose,
        )
        return ParityError("\n".join([error.message, *lines]), hint=error.hint)

    def _begin(self, scheme: Scheme) -> tuple[Strategy, tuple[dict[str, str], NodeSet]]:
        """Choose the runtime to search on: what was asked for, else the first that runs it.

        Raises:
            ParityError: See :meth:`Strategy.begin`.
            MissingError: That runtime, or every one, is not here.
            GraphError: It cannot run the graph.
        """
        wanted = self.request.runtime
        *others, last = [wanted] if wanted in scheme.runtimes else scheme.runtimes
        for runtime in others:
            strategy = self._strategy(scheme, runtime)
            try:
                return strategy, strategy.begin()
            except (MissingError, GraphError) as exc:
                self._note_skipped(scheme, runtime, exc)
        strategy = self._strategy(scheme, last)
        return strategy, strategy.begin()

    def _strategy(self, scheme: Scheme, runtime: str) -> Strategy:
        arguments = (self._fp32, scheme, runtime, self.bundle, self.search, self.progress)
        return Fp16(*arguments) if scheme == FP16 else Int8(self._seen, *arguments)

    @cached_property
    def _fp32(self) -> ir.Model:
        from deploykit.graph.files import load_graph

        return load_graph(self.bundle.checked(self.bundle.deploy_graph("fp32")))

    @cached_property
    def _seen(self) -> Calibration:
        bits = {each.weight_bits or 8 for each in self.request.schemes()}
        return calibrate(self._fp32, self.bundle, self.search.batches, bits, self.progress)

    def _proven(
        self, strategy: Strategy, found: KeptSet, kept: tuple[KeptNode, ...], path: Path
    ) -> QuantizedGraph:
        """Compare the very file that was written, on photos that no search has used.

        Raises:
            ParityError: It does not pass on the runtime of the search.
            MissingError: That one is not here any more.
            GraphError: It cannot run the graph.
        """
        scheme, runtime = strategy.scheme, strategy.runtime
        verdicts: dict[str, Verdict] = {}
        for each in scheme.runtimes:
            try:
                with strategy.open(path, each) as session:
                    # In here, because OpenVINO compiles at the first batch of several images, too.
                    verdicts[each] = self.proof.judge(session, self.bundle.manifest, self.progress)
            except (MissingError, GraphError) as exc:
                if each == runtime:
                    raise
                self._note_skipped(scheme, each, exc)
        if not verdicts[runtime].passed:
            lines = [line for verdict in verdicts.values() for line in verdict_lines(verdict)]
            lines.append(f"{counted(len(kept), 'node')} stayed in FP32.{strategy.worst_nodes()}")
            error = ParityError(
                f"{scheme.graph} passes on the photos of the search, but not on others:\n"
                + "\n".join(lines),
                hint=f"Give more photos (--images), or stay with {scheme.instead}.",
            )
            if not verdicts[runtime].failed:
                raise error
            failing = [(found.nodes, verdicts[runtime])]
            error = self._with_offers(error, strategy, failing, self.proof)
            raise self._kept_failure(error, verdicts[runtime], self.proof)
        sha256 = sha256_of(path)
        return QuantizedGraph(
            graph=scheme.graph,
            runtime=runtime,
            kept=kept,
            integers=strategy.integers(kept),
            weight_bits=scheme.weight_bits,
            method=found.method,
            verdicts=tuple(verdicts.values()),
            judged=tuple(
                kept_verdict(each, sha256, self.reference, self.proof.drawn)
                for each in verdicts.values()
                if each.passed or each.failed
            ),
            searched=len(self.search.logits),
            trials=found.trials,
            minimal=found.minimal,
            times_fp32=strategy.times_fp32(found.nodes),
        )

    def _publish(self, scheme: Scheme, made: QuantizedGraph, path: Path) -> None:
        """Put a graph and what is known of it into the bundle, all at once.

        Raises:
            BundleError: Its FP32 graph is not the one that it was made from any more.
            ParityError: It is not proven, and would replace one that is.
        """
        search = SearchRecord(
            runtime=made.runtime,
            images=tuple(sorted(self.search.digests)),
            kept=made.kept,
            integers=made.integers,
            weight_bits=made.weight_bits,
            budget=self.request.budget,
        )

        def change(manifest: Manifest) -> Manifest:
            require_unchanged(self.bundle, manifest, self.bundle.deploy_graph("fp32"))
            if all(
                reasons := [
                    too_few_images(proof.precision, proof.measurement, proof.images)
                    for proof in made.proofs
                ]
            ):
                there = Bundle(self.bundle.folder, manifest)
                keep_what_is_proven(there, scheme.graph, f"is not: {reasons[0]}")
            changed = msgspec.structs.replace(
                manifest.without_verdicts_of(made.graph),
                files={**manifest.files, made.graph: record_file(path)},
                searches={**manifest.searches, made.graph: search},
            )
            for verdict in made.judged:
                changed = changed.with_verdict(verdict)
            deploy = dict(manifest.deploy)
            if made.graph == deploy_graph(scheme.precision):
                deploy[scheme.precision] = made.graph
            elif scheme.cpu is not None:
                deploy.setdefault(scheme.precision, made.graph)
            return msgspec.structs.replace(changed, deploy=deploy)

        update_manifest(self.bundle.folder, change, {made.graph: path})

    def _note_skipped(self, scheme: Scheme, runtime: str, error: MissingError | GraphError) -> None:
        """Say that a runtime cannot run a graph, unless it is just not installed."""
        if not isinstance(error.__cause__, ModuleNotFoundError):
            self.progress(Note(f"skipped: {scheme.graph} on {runtime}: {error.message}"))


def verdict_lines(verdict: Verdict) -> Iterator[str]:
    """Why a graph or an engine failed, and which images changed their decision."""
    for reason in verdict.reasons:
        yield f"{verdict.candidate.runtime}: {reason}"
    yield from flips_text(verdict)
