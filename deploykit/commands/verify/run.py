"""Verify: do a bundle's graphs decide as the reference does, on these images?"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from deploykit.bundle.folder import CANONICAL_GRAPH, GOLDEN, Bundle
from deploykit.bundle.golden import read_golden
from deploykit.bundle.verdicts import ImageKind, ReferenceKind
from deploykit.commands.verify.lowest_margins import (
    accuracy_reason,
    judge_lowest,
    mining_of,
    rank_images,
)
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.result import Verification
from deploykit.errors import BundleError, GraphError, MissingError, UsageError
from deploykit.images.truth import known_classes
from deploykit.inference.candidates import (
    Candidate,
    by_reason,
    engine_candidate,
    for_other_cpus,
    named_candidates,
    open_candidate,
    with_embedded,
)
from deploykit.inference.engines import engine_files, named_engine
from deploykit.parity.accuracy import accuracies, changes_by_candidate
from deploykit.parity.budget import Budget
from deploykit.proof.extremes import answer_extremes, judge_extremes
from deploykit.proof.images import (
    listed_images,
    mostly_unreadable,
    read_sample,
    require_labels,
)
from deploykit.proof.policy import budgets_of
from deploykit.proof.reference import (
    GOLDEN_REFERENCE,
    OpenReference,
    open_reference,
)
from deploykit.proof.similarity import (
    compare_embeddings,
    keep_similarities,
    refused_by_embeddings,
)
from deploykit.proof.verdict import answer_images, judge_answers, keep_verdicts
from deploykit.runtime.opener import CPU, CUDA, HOST_RUNTIMES, OPENVINO
from deploykit.specs.engine import is_flavour
from deploykit.specs.model import Precision
from deploykit.specs.session import Logits, Session, SessionSpec
from deploykit.system.deps import installed_versions
from deploykit.system.gpu import find_gpu
from deploykit.system.progress import Note, Progress, silent, without_repeats
from deploykit.system.text import now


def verify_bundle(
    bundle: Bundle,
    request: VerifyRequest | None = None,
    progress: Progress = silent,
    *,
    reference: OpenReference | None = None,
) -> Verification:
    """Compare a bundle's graphs with the reference, and keep in the manifest what that shows.

    A failed verdict is a result, not an exception. What passed becomes the candidate's proof, and
    what failed takes it away: the last verdict on at least as many images counts. Nothing is kept
    when the user named other weights than the bundle's, or the reference is itself not proven.

    Args:
        bundle: The bundle.
        request: What to verify.
        progress: Called with what is being done.
        reference: What ``request.reference`` names, open already; it stays open. None to open it
            here, and to close it again.

    Raises:
        DeploykitError: See :func:`deploykit.verify`.
    """
    request = request or VerifyRequest()
    request.check()
    if request.self_test and reference is not None:
        raise UsageError(
            "A self-test compares with the recorded answers, and with no other reference.",
            hint="Leave out the reference, or the self-test.",
        )
    if request.is_elsewhere:
        from deploykit.commands.verify.elsewhere import compare_elsewhere

        return compare_elsewhere(bundle, request, progress, reference)
    if not request.diagnoses:
        return _kept(_compare(bundle, request, progress, reference), bundle, request, progress)
    from deploykit.commands.export.again import export_command
    from deploykit.commands.verify.diagnosis import diagnose, prepare_diagnosis

    progress = without_repeats(progress)  # comparison and diagnosis choose the same images
    plan = prepare_diagnosis(bundle, request, progress)
    with ExitStack() as stack:
        if reference is None:
            reference = open_reference(bundle, request.reference, progress)
            stack.enter_context(reference.session)
        result = _compare(bundle, request, progress, reference)
        diagnosis = diagnose(bundle, request, result, plan, reference, progress)
    again = None
    if diagnosis.stages and reference.is_recorded:  # another checkpoint's faults are not ours
        again = export_command(bundle, diagnosis.stages.findings)
    # Not before: who interrupts a command expects nothing of it.
    _kept(result, bundle, request, progress)
    return replace(result, diagnosis=diagnosis, export_command=again)


def _kept(
    found: Verification, bundle: Bundle, request: VerifyRequest, progress: Progress
) -> Verification:
    """Keep in the manifest what a comparison shows, unless it is no proof of the bundle."""
    reference = found.reference
    if not reference.is_recorded:
        progress(Note("no proof of the bundle: other weights or code than it was exported from"))
    elif request.keep and reference.reason is None:
        keep_verdicts(bundle, found.verdicts, reference, found.images, progress)
        keep_similarities(bundle, found.similarities, reference.kind, found.images, progress)
    return found


def _compare(
    bundle: Bundle, request: VerifyRequest, progress: Progress, reference: OpenReference | None
) -> Verification:
    bundle.checked(GOLDEN)  # which no graph's hash covers, and the next machine relies on
    start = time.perf_counter()
    labels, preprocessing = bundle.manifest.labels, bundle.manifest.preprocessing
    folder = ranking = None
    known: Mapping[str, tuple[str, ...]] = {}
    if request.lowest_margins is not None:
        folder = listed_images(bundle, request.images, progress)
        known = known_classes(folder, labels, request.expected, progress)
        sample = read_sample(folder.path, (), preprocessing)  # chosen below
    else:
        sample = request.sample_of(bundle, progress)
        require_labels(request.budget, sample.expected, sample.source)
    with ExitStack() as stack:
        if reference is None and not request.self_test:
            reference = open_reference(bundle, request.reference, progress)
            stack.enter_context(reference.session)
        right = reference.session if reference else _recorded_answers(bundle)
        compared_with = reference or GOLDEN_REFERENCE
        candidates, skipped = _open_candidates(bundle, request, compared_with.kind, stack, progress)
        calibration = bundle.manifest.calibration_images(each.spec.graph for each in candidates)
        if folder is not None:
            # Not before: that may take minutes, and what cannot run here should fail at once.
            ranking = rank_images(bundle, folder, calibration, progress)
            chosen = ranking.files[: request.lowest_margins]
            sample = read_sample(folder.path, chosen, preprocessing, known)
        stack.callback(sample.close)
        sample.skip(frozenset() if request.self_test else calibration)
        compared = compare_embeddings(bundle, reference, candidates, stack, progress)
        answers = answer_images(
            *compared.instead_of(right, candidates), sample, labels, progress, count=sample.count
        )
        specs = [candidate.spec for candidate in candidates]
        budgets = _budgets(bundle, request, specs, sample.kind, progress)
        expected = answers.known(sample.expected)
        mining = None
        if ranking is None:
            verdicts = judge_answers(
                answers, specs, labels, kind=sample.kind, expected=expected, budgets=budgets
            )
        else:
            mining = mining_of(ranking, answers, specs, labels.head)
            verdicts = judge_lowest(ranking, mining, answers, specs, labels, budgets)
        if reference is not None:  # recorded answers are to other images
            right_extremes = answer_extremes(reference.session, progress)
            verdicts = judge_extremes(verdicts, candidates, right_extremes)
    drawn, unreadable, readable = sample.drawn(), sample.unreadable, sample.readable
    if ranking is not None:
        unreadable += ranking.unreadable
        readable = len(ranking.files) + ranking.skipped
    for reason in filter(None, (mostly_unreadable(unreadable, readable), compared_with.reason)):
        verdicts = tuple(verdict.refused(reason) for verdict in verdicts)
    similarities = compared.found(answers.paths)
    verdicts = refused_by_embeddings(verdicts, similarities, compared_with.kind)
    return Verification(
        reference=compared_with,
        images=drawn,
        unreadable=unreadable,
        verdicts=verdicts,
        skipped=skipped,
        answers=answers,
        expected=expected,
        truth="" if request.expected is None else request.expected.name,
        head=labels.head,
        # The closest decisions tell nothing about the accuracy on all.
        accuracy=() if mining else accuracies(answers, expected, labels),
        created=now(),
        versions=installed_versions(),
        mining=mining,
        seconds=time.perf_counter() - start,
        folder=bundle.place,
        similarities=similarities,
        class_changes={} if mining else changes_by_candidate(answers, specs, expected, labels),
    )


def _budgets(
    bundle: Bundle,
    request: VerifyRequest,
    specs: Sequence[SessionSpec],
    kind: ImageKind,
    progress: Progress,
) -> dict[str, Budget]:
    """What the user allows now, else what the graphs and engines were made within."""
    if request.budget is None:
        return budgets_of(bundle.manifest, [spec.graph for spec in specs], kind)
    if all(spec.precision == "fp32" for spec in specs):
        options = " ".join(request.budget.options)
        progress(Note(f"{options} allows nothing here: all that is compared computes in FP32"))
    return {spec.graph: request.budget for spec in specs}


def _recorded_answers(bundle: Bundle) -> Logits:
    """The answers recorded at export; every file of the bundle is checked with them."""
    engines = engine_files(bundle)
    for file in bundle.manifest.files:
        if file not in engines:  # opening an engine checks it; a damaged one stops nothing else
            bundle.checked(file)
    return read_golden(bundle).logits


def _open_candidates(
    bundle: Bundle,
    request: VerifyRequest,
    against: ReferenceKind,
    stack: ExitStack,
    progress: Progress,
) -> tuple[list[Session], dict[Candidate, str]]:
    """Open what is to be compared; never the reference with itself.

    Args:
        bundle: The bundle.
        request: What is meant. What the user named must run.
        against: What it is compared with.
        stack: Closes the sessions.
        progress: Told what is skipped.

    Returns:
        Open sessions, and why other candidates are skipped.

    Raises:
        UsageError: A runtime, precision or engine that makes no sense.
        BundleError: A file of the bundle is missing or damaged.
        MissingError: Nothing of what is meant can run here.
    """
    named = (request.runtime, request.precision, request.engine) != (None, None, None)
    if request.engine is not None:
        candidates = [engine_candidate(named_engine(bundle, request.engine))]
    else:
        named_ones = named_candidates(bundle, request.runtime, request.precision, progress)
        candidates = with_embedded(bundle, named_ones)
    sessions: list[Session] = []
    if against == "module" and not named:
        canonical = open_candidate(bundle, Candidate(CANONICAL_GRAPH, CPU, "fp32"))
        sessions.append(stack.enter_context(canonical))
    opened = defaultdict[tuple[str, Precision], list[str]](list)
    missing: dict[Candidate, MissingError] = {}
    judgeable, skipped = _judgeable(bundle, request, candidates, progress)
    skipped |= _for_other_cpus(bundle, candidates, progress)
    made_for = {} if request.runtime is not None else _made_for(bundle, judgeable)
    for candidate in sorted(judgeable, key=made_for.__contains__):
        if reason := _needless(candidate, made_for.get(candidate), opened):
            skipped[candidate] = reason
            continue
        try:
            session = open_candidate(bundle, candidate, tf32=request.tf32)
        except MissingError as exc:
            missing[candidate] = exc
            skipped[candidate] = exc.message
            continue
        except (BundleError, GraphError) as exc:
            if named or not is_flavour(candidate.runtime):
                raise
            progress(Note(f"skipped: {candidate}: {exc.message}"))
            skipped[candidate] = exc.message
            continue
        opened[candidate.runtime, candidate.precision].append(candidate.file)
        sessions.append(stack.enter_context(session))
    if missing and not opened:
        raise next(iter(missing.values()))
    optional = {each for each, exc in missing.items() if _is_optional(each, exc)}
    of_interest = {*missing, *made_for} - optional
    for line in by_reason([each for each in skipped.items() if each[0] in of_interest]):
        progress(Note(f"skipped: {line}"))
    return sessions, skipped


def _for_other_cpus(
    bundle: Bundle, candidates: Sequence[Candidate], progress: Progress
) -> dict[Candidate, str]:
    """The INT8 graph of other CPUs beside this one's, with the reason why it is skipped."""
    other = for_other_cpus(bundle)
    on_cpu = any(c.precision == "int8" and c.runtime in HOST_RUNTIMES for c in candidates)
    if other is None or not on_cpu:
        return {}
    graph, reason = other
    progress(Note(f"skipped: {graph}: {reason}"))
    return {Candidate(graph, CPU, "int8"): reason}


def _needless(
    candidate: Candidate,
    made_for: str | None,
    opened: Mapping[tuple[str, Precision], Sequence[str]],
) -> str:
    """Why a candidate need not be compared beside those that are open; empty where it must."""
    files = opened.get((candidate.runtime, candidate.precision), ())
    if is_flavour(candidate.runtime) and files:  # the newest came first; graphs are one of a kind
        return "a newer engine was compared"
    if candidate.file in opened.get((made_for or "", candidate.precision), ()):
        return f"it is made for {made_for}; --runtime {candidate.runtime} compares it"
    return ""


def _made_for(bundle: Bundle, candidates: Sequence[Candidate]) -> dict[Candidate, str]:
    """INT8 graphs on another of the CPU's runtimes than they are made for, and on which they are.

    There they may round otherwise, and that they fail is no fault of theirs.
    """
    searches = bundle.manifest.searches
    return {
        each: searches[each.file].runtime
        for each in candidates
        if each.precision == "int8"
        and each.runtime in HOST_RUNTIMES
        and each.file in searches
        and searches[each.file].runtime != each.runtime
    }


def _judgeable(
    bundle: Bundle, request: VerifyRequest, candidates: Sequence[Candidate], progress: Progress
) -> tuple[Sequence[Candidate], dict[Candidate, str]]:
    """The candidates that the images can judge, and why they cannot judge the others.

    Raises:
        UsageError: They can judge none.
    """
    if request.lowest_margins is None or request.budget is not None:
        return candidates, {}
    made = budgets_of(bundle.manifest, [each.file for each in candidates], "photos")
    reasons = [(each, accuracy_reason(made.get(each.file))) for each in candidates]
    skipped = {each: reason for each, reason in reasons if reason is not None}
    lines = [*by_reason([*skipped.items()])]
    if lines and len(skipped) == len(candidates):
        raise UsageError(
            f"Nothing can be compared: {lines[0]}.",
            hint="Compare all photos, without --lowest-margins; or judge by flips: --max-flips 1%",
        )
    for line in lines:
        progress(Note(f"skipped: {line}"))
    return [each for each in candidates if each not in skipped], skipped


def _is_optional(candidate: Candidate, reason: MissingError) -> bool:
    """Whether nobody who did not ask for a runtime misses it: no GPU, or no OpenVINO at all."""
    if candidate.runtime == OPENVINO:
        return isinstance(reason.__cause__, ModuleNotFoundError)
    return candidate.runtime == CUDA and find_gpu() is None
