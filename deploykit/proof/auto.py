"""Which runtime a bundle runs on: the one that was asked for, or the best that is proven."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias, cast

from deploykit.bundle.accepted import Accepted
from deploykit.bundle.embeddings import EmbeddingsRecord
from deploykit.bundle.folder import Bundle
from deploykit.errors import (
    BundleError,
    DeploykitError,
    DeviceError,
    InputError,
    MissingError,
    ParityError,
    UsageError,
)
from deploykit.inference.candidates import (
    Candidate,
    all_candidates,
    by_reason,
    embedded,
    engine_candidate,
    named_candidates,
    only_embedded,
    open_candidate,
)
from deploykit.proof.accepted import accepted_here, candidate_of, tell_accepted
from deploykit.proof.embeddings_text import failure_text
from deploykit.proof.policy import Status, has_run, how_to_prove, similarity_of_run, status
from deploykit.runtime.opener import CPU, CUDA, HOST_RUNTIMES, OPENVINO, graph_precision
from deploykit.specs.engine import is_flavour
from deploykit.specs.model import Precision
from deploykit.specs.session import EmbeddingSession, Session, SessionSpec
from deploykit.system.gpu import find_gpu, need_gpu
from deploykit.system.progress import Note, Progress, silent

_Opener: TypeAlias = Callable[[Bundle, Candidate], Session]

AUTO = "auto"
#: What is usually the fastest first. The order on a CPU was measured; that on a GPU is an
#: assumption, and nothing of it was measured. ``deploykit bench`` measures a machine.
_PREFERENCE: tuple[tuple[str, Precision], ...] = (
    ("tensorrt", "int8"),
    ("tensorrt_rtx", "int8"),
    ("tensorrt", "fp16"),
    ("tensorrt_rtx", "fp16"),
    ("tensorrt", "fp32"),
    ("tensorrt_rtx", "fp32"),
    ("onnxruntime-cuda", "fp16"),
    ("onnxruntime-cuda", "fp32"),
    ("openvino", "int8"),
    ("openvino", "bf16"),
    ("onnxruntime-cpu", "int8"),
    ("openvino", "fp32"),
    ("onnxruntime-cpu", "fp32"),
)
#: The largest share of the nodes that could compute with integers and stay in FP32, at which INT8
#: still comes before BF16. Measured on dpn92, images/s of OpenVINO on one thread: BF16 9.7, INT8
#: with none of 131 nodes in FP32 17.3, with 40 of them 8.2. They break even at about a fifth; below
#: that INT8 gains little, and has the larger errors.
_MOST_IN_FP32 = 0.1


def open_best(
    bundle: Bundle,
    *,
    runtime: str = AUTO,
    precision: Precision | None = None,
    engine: str | None = None,
    threads: int | None = None,
    pipelined: bool = False,
    tf32: bool = False,
    embeddings: bool = False,
    progress: Progress = silent,
) -> Session:
    """Open one of a bundle's deploy graphs or engines.

    Args:
        bundle: The bundle.
        runtime: A runtime's name, which is used or fails; or ``auto`` for what the user accepted
            from ``bench`` on this machine, else what is usually the fastest; in either case with an
            ``executed`` proof without a decidable flip.
        precision: A precision; None for any.
        engine: One engine by its name, which says all of this itself.
        threads: For computing on the CPU; None for one a core.
        pipelined: Whether several batches will be under way at once.
        tf32: Whether a GPU may compute FP32 in TensorFloat-32.
        embeddings: Whether the graph with embeddings takes the place of the FP32 graph, and no
            other is taken.
        progress: Called with a note of what ``auto`` takes or leaves that was accepted, built or
            proven, and why, and when a runtime that was asked for has no proof.

    Raises:
        UsageError: No such runtime, or one that does not compute in that precision; or TF32 for one
            that has none.
        BundleError: No graph of that precision, no engine, or it is damaged.
        ParityError: ``auto``, and nothing is proven; an engine does not give the recorded answers;
            or embeddings have been shown not to be the trained network's.
        MissingError: The runtime's package or device is not here.
    """
    if runtime == AUTO and tf32:
        raise UsageError(
            "auto takes only what is proven, and nothing is with TF32.",
            hint=f"Name the runtime: --runtime {CUDA} --tf32",
        )
    open_it = partial(open_candidate, threads=threads, pipelined=pipelined, tf32=tf32)
    if engine is not None:
        from deploykit.inference.engines import named_engine

        named = engine_candidate(named_engine(bundle, engine))
        if runtime not in (AUTO, named.runtime) or precision not in (None, named.precision):
            raise UsageError(
                f"{named.file} runs on {named.runtime} in {named.precision}.",
                hint="Leave out --runtime and --precision.",
            )
        return _open_named(bundle, named.runtime, lambda: [named], open_it, progress)
    if runtime != AUTO:

        def named_ones() -> list[Candidate]:
            named = named_candidates(bundle, runtime, precision, progress)
            return only_embedded(bundle, named) if embeddings else named

        return _open_named(bundle, runtime, named_ones, open_it, progress)
    return _open_auto(bundle, precision, open_it, progress, embeddings)


def need_embeddings(bundle: Bundle) -> EmbeddingsRecord:
    """The record of a bundle's graph with embeddings.

    Raises:
        BundleError: It has none.
    """
    record = bundle.manifest.embeddings
    if record is None:
        raise BundleError(
            f"Bundle {bundle.name} has no graph that gives embeddings.",
            hint="Export it again with --embeddings, which makes and proves one: "
            "deploykit export --arch NAME --ckpt FILE --embeddings --overwrite",
        )
    return record


def open_with_embeddings(
    bundle: Bundle,
    *,
    runtime: str = AUTO,
    precision: Precision | None = None,
    threads: int | None = None,
    pipelined: bool = False,
    tf32: bool = False,
    progress: Progress = silent,
) -> EmbeddingSession:
    """Open the graph with embeddings, which computes in FP32.

    The arguments are those of :func:`open_best`. ``auto`` takes the fastest runtime on which this
    graph is proven; a note says so where an engine or another precision could run without
    embeddings.

    Raises:
        BundleError: The bundle has no such graph, or it is damaged.
        UsageError: What was named has no embeddings: an engine, or a precision below FP32.
        ParityError: ``auto``, and the graph is proven nowhere here; or its embeddings have been
            shown not to be the trained network's.
        DeploykitError: See :func:`open_best`.
    """
    need_embeddings(bundle)
    if precision not in (None, "fp32"):
        raise UsageError(
            f"Embeddings are computed in FP32; --precision {precision} has none.",
            hint="Leave out --precision.",
        )
    if is_flavour(runtime):
        raise UsageError(
            f"An engine gives no embeddings, so --runtime {runtime} has none.",
            hint=f"On an NVIDIA GPU: --runtime {CUDA}",
        )
    session = open_best(
        bundle,
        runtime=runtime,
        precision="fp32",
        threads=threads,
        pipelined=pipelined,
        tf32=tf32,
        embeddings=True,
        progress=progress,
    )
    if runtime == AUTO and precision is None and _runs_otherwise(bundle):
        taken = session.spec
        progress(
            Note(
                "embeddings are computed in FP32, and so are the logits beside them: taking "
                f"{taken.graph} on {taken.runtime}, {taken.device}"
            )
        )
    return cast(EmbeddingSession, session)


def _runs_otherwise(bundle: Bundle) -> bool:
    """Whether an engine or another precision than FP32 passed, which gives no embeddings."""
    return any(
        status(bundle, each).proof
        for each in by_preference(bundle, None, silent)
        if each.precision != "fp32" or is_flavour(each.runtime)
    )


def _check_embeddings(bundle: Bundle, spec: SessionSpec) -> None:
    """Check that nothing has been shown against the embeddings of a session, if it gives any.

    Raises:
        ParityError: They are not the trained network's.
    """
    known = similarity_of_run(bundle, spec)
    if known is None or known.similarity.passed:
        return
    from deploykit.proof.reference import module_options, module_reason

    reason = failure_text(known.similarity, known.reference_kind)
    options: tuple[str, ...] = ()
    if known.reference_kind == "module" and module_reason(bundle):
        options = module_options(bundle)  # the canonical graph would not take this away
    raise ParityError(
        f"The embeddings on {spec.runtime}, {spec.device}, are not the trained network's: "
        f"{reason}.",
        hint="Name another --runtime, or export the bundle again with --embeddings. This compares "
        f"it again: {how_to_prove(bundle, spec.runtime, spec.precision, *options)}",
    )


def _open_auto(
    bundle: Bundle,
    precision: Precision | None,
    open_it: _Opener,
    progress: Progress,
    embeddings: bool,
) -> Session:
    candidates = by_preference(bundle, precision, progress)
    accepted = accepted_here(bundle, precision, candidates, progress)
    first = None if accepted is None else candidate_of(accepted)
    if embeddings:
        first = None if first is None else embedded(bundle, first)
        candidates = only_embedded(bundle, candidates)
    candidates.sort(key=lambda each: each != first)
    skipped: list[tuple[Candidate, str]] = []
    errors: list[DeploykitError] = []
    try:
        for candidate in candidates:
            is_engine, is_accepted = is_flavour(candidate.runtime), candidate == first
            known = status(bundle, candidate)
            enough = partial(_is_enough, accepted if is_accepted else None)
            found = _attempt(bundle, candidate, known, enough, open_it)
            error = found if isinstance(found, DeploykitError) else None
            # Of what was accepted it is only told: the others have their turns.
            if isinstance(found, InputError) and (not accepted or candidate.file != accepted.file):
                raise found
            if accepted and is_accepted:
                tell_accepted(bundle, accepted, error.message if error else "", progress)
            # It is told of one that somebody compared, or built as an engine.
            elif error and (is_engine or (known.verdict and not known.verdict.is_recorded)):
                skipped.append((candidate, error.message))
            if not isinstance(found, DeploykitError):
                return found
            if not isinstance(found, ParityError) or found.hint:
                errors.append(found)
    finally:
        for line in by_reason(skipped):
            progress(Note(f"not taken: {line}"))
    if errors:
        # A damaged graph first, which can be mended.
        raise min(reversed(errors), key=lambda each: isinstance(each, MissingError))
    raise _nothing_proven(bundle, precision, candidates, embeddings)


def _attempt(
    bundle: Bundle,
    candidate: Candidate,
    known: Status,
    enough: Callable[[Status], bool],
    open_it: _Opener,
) -> Session | InputError | MissingError | ParityError:
    """Open a candidate whose status is enough, on the very device that it runs on.

    Args:
        bundle: The bundle.
        candidate: One of its graphs or engines.
        known: Its status on any device.
        enough: Whether a status is enough.
        open_it: Opens it.

    Returns:
        The session; or that it is a damaged graph, that its runtime is not here, or why else not,
        with a hint where a proof would not help.
    """
    if not enough(known):
        return ParityError(_why_not(candidate, known))
    try:
        session = open_it(bundle, candidate)
    except MissingError as exc:
        return exc
    except InputError as exc:  # a damaged engine is a reason like others
        return ParityError(exc.message) if is_flavour(candidate.runtime) else exc
    here = status(bundle, candidate, session.spec.device)
    try:
        _check_embeddings(bundle, session.spec)
    except ParityError as exc:
        session.close()
        return exc
    if enough(here):
        return session
    session.close()
    return ParityError(here.why)


def _is_enough(accepted: Accepted | None, known: Status) -> bool:
    """Whether a candidate is proven, or no worse than the user accepted it."""
    if accepted is None or accepted.status == "proven":
        return known.word == "proven"
    return known.is_within(accepted.budget)


def _why_not(candidate: Candidate, known: Status) -> str:
    if is_flavour(candidate.runtime):
        try:
            need_gpu()
        except DeviceError as exc:
            return exc.message  # without one a proof would not help
    return known.why


def _nothing_proven(
    bundle: Bundle, precision: Precision | None, candidates: list[Candidate], embeddings: bool
) -> ParityError:
    if precision is not None and not candidates:
        bundle.deploy_graph(graph_precision(precision))
    if all(candidate.runtime not in HOST_RUNTIMES for candidate in candidates):
        need_gpu()  # without one a proof would not help
    option = () if precision is None else ("--precision", precision)
    command = bundle.command("verify", "--images", "DIR", *option)
    graph = "graph" if precision is None else f"{precision.upper()} graph"
    what = f"No {graph} of bundle {bundle.name} is proven to decide as the checkpoint does."
    if embeddings:
        what = f"The graph with embeddings of bundle {bundle.name} is not proven here."
    return ParityError(
        what,
        hint=f"Name a --runtime to run it unproven, or prove it: {command}",
    )


def _open_named(
    bundle: Bundle,
    runtime: str,
    candidates: Callable[[], list[Candidate]],
    open_it: _Opener,
    progress: Progress,
) -> Session:
    """Open what was named; an engine at its first run on a GPU is tested, the newest that fits."""
    flavour = is_flavour(runtime)
    try:
        if flavour:
            need_gpu()  # or an engine would have to be built first, and in vain
        named = candidates()
        candidate, session = _open_first(bundle, named if flavour else named[:1], open_it)
    except MissingError as exc:
        if not flavour:
            raise
        instead = _instead(bundle)
        raise DeviceError(
            f"{runtime} cannot run here: {exc.message}{instead}",
            # Where what runs instead is said, nobody needs to be told to get a GPU.
            hint=exc.hint if find_gpu() or not instead else None,
        ) from exc
    spec = session.spec
    known, elsewhere = status(bundle, candidate, spec.device), status(bundle, candidate).verdict
    is_new = flavour and not has_run(bundle, candidate, spec.device)
    # It passed, but on a CPU with other instruction sets.
    is_elsewhere = known.verdict is None and elsewhere is not None and elsewhere.passed
    try:
        _check_embeddings(bundle, spec)
        if is_new or (not flavour and is_elsewhere):
            from deploykit.proof.self_test import self_test

            how = how_to_prove(bundle, spec.runtime, spec.precision)
            instead = (
                "--precision fp32 decides the same on every CPU; or see by how much this one "
                f"differs: {how}"
            )
            self_test(bundle, session, progress, hint=None if flavour else instead)
    except BaseException:
        session.close()
        raise
    if spec.tf32:
        what = f"{spec.precision} with TF32 on {runtime}, {spec.device}"
        progress(Note(f"{what}, is never proven: proofs are of plain FP32"))
    elif known.proof is None:
        progress(Note(f"{candidate}, {spec.device}: {known.why}"))
    return session


def _open_first(
    bundle: Bundle, candidates: list[Candidate], open_it: _Opener
) -> tuple[Candidate, Session]:
    """Open the first that can run here.

    Raises:
        MissingError: None can; what the first one lacks.
    """
    errors = []
    for candidate in candidates:
        try:
            return candidate, open_it(bundle, candidate)
        except MissingError as exc:
            errors.append(exc)
    raise errors[0]


def _instead(bundle: Bundle) -> str:
    """What would run without a --runtime, found out by opening it."""
    try:
        with open_best(bundle) as session:
            spec = session.spec
    except DeploykitError:
        return ""
    instead = Candidate(spec.graph, spec.runtime, spec.precision)
    return f" Without --runtime, {instead} would run."


def by_preference(
    bundle: Bundle, precision: Precision | None, progress: Progress
) -> list[Candidate]:
    """What ``auto`` may take, the usually fastest first.

    Args:
        bundle: The bundle.
        precision: What was asked for; None for any.
        progress: Called with a note of each engine that is skipped because it is damaged.
    """
    wanted = [
        candidate
        for candidate in all_candidates(bundle, progress)
        if (candidate.runtime, candidate.precision) in _PREFERENCE
        and precision in (None, candidate.precision)
    ]
    return sorted(wanted, key=lambda each: _rank(bundle, each))


def _rank(bundle: Bundle, candidate: Candidate) -> tuple[bool, int, bool]:
    """A candidate's place in the order, the lowest first.

    INT8 on a CPU comes last if its graph is made for another runtime, because then it gains next to
    nothing. On OpenVINO it comes right after BF16 if many of its nodes compute in FP32.
    """
    kind = candidate.runtime, candidate.precision
    search = bundle.manifest.searches.get(candidate.file)
    if kind in ((CPU, "int8"), (OPENVINO, "int8")):
        if search is None or search.runtime != candidate.runtime:
            return True, _PREFERENCE.index(kind), False
        kept, integers = len(search.kept), search.integers
        most = kept if integers is None else _MOST_IN_FP32 * (kept + integers)
        if candidate.runtime == OPENVINO and kept > most:
            return False, _PREFERENCE.index((OPENVINO, "bf16")), True
    return False, _PREFERENCE.index(kind), False
