"""The pytest plugin: ``pytest --deploykit-bundle=DIR`` makes a test of each verdict of ``verify``.

pytest loads this file in every run wherever deploykit is installed. So it imports nothing else of
deploykit, and offers its options, until ``--deploykit-bundle`` is given.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Generator, Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

if TYPE_CHECKING:
    from deploykit.bundle.folder import Bundle
    from deploykit.commands.verify.request import VerifyRequest
    from deploykit.commands.verify.result import Verification
    from deploykit.inference.candidates import Candidate

#: Under this name a test that passed tells in ``user_properties`` what was measured.
MEASURED = "deploykit"
#: Under this one, what must be known before that.
NOTICE = "deploykit.notice"

_OPTIONS = {
    "images": ("DIR", "photos to compare on (default: those of the export, else golden.npz)"),
    "max-images": ("N", "at most so many photos, even over the classes (default: all)"),
    "runtime": ("NAME", "only candidates on this runtime"),
    "precision": ("P", "only candidates of this precision"),
    "arch": ("A", "compare with this architecture, your own code included"),
    "ckpt": ("FILE", "compare with this checkpoint"),
    "expected": ("FILE", "what the photos' classes are: a CSV (default: what their folders tell)"),
    "max-flips": ("RATE", "below FP32, allow so many changed decisions: 0.01"),
    "max-accuracy-drop": ("POINTS", "below FP32, allow the accuracy to fall by so many points"),
    "transform": ("FILE.PY:NAME", "test the stages, too: your training's transform"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer the options, all of them under deploykit's name."""
    group = parser.getgroup("deploykit", "test a bundle of deploykit")
    group.addoption(
        "--deploykit-bundle", metavar="NAME|DIR", help="test this bundle, and only paths you name"
    )
    for name, (metavar, text) in _OPTIONS.items():
        group.addoption(f"--deploykit-{name}", metavar=metavar, help=text)
    group.addoption(
        "--deploykit-trust-pickle",
        action="store_true",
        help="let the checkpoint run the code in it; only for files you made yourself",
    )


Check: TypeAlias = "Callable[[], list[tuple[str, str]]]"
"""Fails, or gives what it found: pairs for ``user_properties``."""

_CHECKS = pytest.StashKey[tuple[str, dict[str, Check]]]()
_STAND_IN = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Read the options; a mistake in them ends the run before the first test."""
    if config.getoption("deploykit_bundle") is None:
        return
    from deploykit.errors import DeploykitError

    try:
        bundle, request = read_options(config)
        config.stash[_STAND_IN] = _stand_in_lines(bundle, request, config)
        config.stash[_CHECKS] = bundle.name, checks_of(bundle, request)
    except DeploykitError as error:
        raise pytest.UsageError(str(error)) from error
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args.clear()  # else a folder of scripts and photos would be searched for tests


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say before the first test that the bundle's own graph stands in for the checkpoint."""
    return config.stash.get(_STAND_IN, [])


def _stand_in_lines(bundle: Bundle, request: VerifyRequest, config: pytest.Config) -> list[str]:
    from deploykit.proof.reference import module_options, module_reason
    from deploykit.proof.text import stand_in_text
    from deploykit.system.text import command_line

    reason = None if request.reference.named else module_reason(bundle)
    if reason is None:
        return []
    # The options of verify have the same names here.
    options = [
        word.replace("--", "--deploykit-", 1) if word.startswith("--") else word
        for word in module_options(bundle)
    ]
    given = [*config.invocation_params.args]
    command = command_line(["pytest", *map(str, given), *options])
    return [stand_in_text(reason), "This compares with the checkpoint:", command]


def read_options(config: pytest.Config) -> tuple[Bundle, VerifyRequest]:
    """The bundle that is meant, and what to verify of it; no test changes it."""
    from deploykit.bundle.folder import find_bundle
    from deploykit.commands.verify.request import VerifyRequest
    from deploykit.errors import UsageError
    from deploykit.images.scan import scan_images
    from deploykit.parity.budget import Budget
    from deploykit.proof.reference import ReferenceRequest
    from deploykit.specs.model import PRECISIONS
    from deploykit.specs.value import choice

    given = {name: config.getoption(f"deploykit_{name.replace('-', '_')}") for name in _OPTIONS}
    for name in (
        "images",
        "ckpt",
        "expected",
    ):  # relative to where pytest was called, wherever tests are run
        given[name] = given[name] and config.invocation_params.dir / given[name]
    count, precision = given["max-images"], given["precision"]
    if count is not None and not (count.isdecimal() and int(count) > 0):
        raise UsageError(f"--deploykit-max-images takes 1 or more, not {count}.")
    if given["images"] is not None:
        scan_images(given["images"])
    request = VerifyRequest(
        images=given["images"],
        max_images=count and int(count),
        runtime=given["runtime"],
        precision=precision and choice(precision, PRECISIONS, "precision"),
        reference=ReferenceRequest(
            arch=given["arch"],
            checkpoint=given["ckpt"],
            trust_pickle=config.getoption("deploykit_trust_pickle"),
        ),
        keep=False,
        stages=given["transform"] is not None,
        transform=given["transform"],
        expected=given["expected"],
        budget=Budget.parse(given["max-flips"], given["max-accuracy-drop"]),
    )
    return find_bundle(config.getoption("deploykit_bundle"), packed=True), request


def checks_of(bundle: Bundle, request: VerifyRequest) -> dict[str, Check]:
    """A check for the files, each candidate, and the stages: it tells what it found, or fails."""
    from deploykit.bundle.folder import CANONICAL_GRAPH
    from deploykit.commands.verify.run import verify_bundle
    from deploykit.inference.candidates import Candidate, named_candidates
    from deploykit.runtime.opener import CPU

    verified = cache(partial(verify_bundle, bundle, request))  # once for all tests
    candidates = named_candidates(bundle, request.runtime, request.precision)
    if request.runtime is request.precision is None:
        candidates.insert(0, Candidate(CANONICAL_GRAPH, CPU, "fp32"))
    checks: dict[str, Check] = {"files": partial(_check_files, bundle)}
    for candidate in candidates:
        checks[str(candidate)] = partial(_check_candidate, verified, candidate)
    if request.stages:
        checks["stages"] = partial(_check_stages, verified)
    return checks


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Add the bundle to the paths that are searched for tests."""
    report = yield
    name, checks = collector.config.stash.get(_CHECKS, ("", {}))
    if isinstance(collector, pytest.Session) and report.passed and checks:
        report.result.append(
            BundleTests.from_parent(collector, name=name, nodeid=name, checks=checks)
        )
    return report


class BundleTests(pytest.Collector):
    """The tests of a bundle; nothing is compared before the first of them runs."""

    def __init__(self, *, checks: dict[str, Check], **node: object) -> None:
        super().__init__(**node)  # type: ignore[arg-type]
        self._checks = checks

    def collect(self) -> Iterator[BundleTest]:
        """Make the tests."""
        for name, check in self._checks.items():
            yield BundleTest.from_parent(self, name=name, check=check)


class BundleTest(pytest.Item):
    """One of them. Being no function, it takes none of the project's fixtures."""

    def __init__(self, *, check: Check, **node: object) -> None:
        super().__init__(**node)  # type: ignore[arg-type]
        self._check = check

    def runtest(self) -> None:
        """Check, and fail in words, without a traceback of ours."""
        from deploykit.errors import DeploykitError

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # other packages' are none of the project's
                self.user_properties += self._check()
        except DeploykitError as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None

    def reportinfo(self) -> tuple[Path, None, str]:
        """Name it above a failure."""
        return self.path, None, self.nodeid.replace("::", ": ")


def _check_files(bundle: Bundle) -> list[tuple[str, str]]:
    """Whether each file is as recorded, and the graphs give the answers recorded at export."""
    from deploykit.commands.verify.request import VerifyRequest
    from deploykit.commands.verify.run import verify_bundle
    from deploykit.commands.verify.text import verification_text
    from deploykit.inference.engines import engines_not_copied, named_engine
    from deploykit.system.text import counted

    files = [file for file in bundle.manifest.files if file not in engines_not_copied(bundle)]
    for file in files:
        bundle.checked(file)
        if file in bundle.manifest.engines:
            named_engine(bundle, file)  # its passport, and the graph that it was built from
    found = verify_bundle(bundle, VerifyRequest(self_test=True, keep=False))
    if not found.passed:
        pytest.fail(verification_text(found), pytrace=False)
    told = f"{counted(len(files), 'file is', 'files are')} as recorded, and so are the answers"
    return [(MEASURED, told)]


def _check_candidate(
    verified: Callable[[], Verification], candidate: Candidate
) -> list[tuple[str, str]]:
    """What ``verify`` measured of a candidate, whose verdict decides; skipped where it has none."""
    from deploykit.commands.verify.text import verification_text
    from deploykit.proof.text import (
        few_images_text,
        images_text,
        numbers_text,
        stand_in_text,
        uniform_text,
    )

    found = verified()
    for verdict in found.verdicts:
        spec = verdict.candidate
        if (spec.graph, spec.runtime, spec.precision) != dataclasses.astuple(candidate):
            continue
        if not verdict.passed:
            alone = dataclasses.replace(found, verdicts=(verdict,), accuracy=())
            pytest.fail(verification_text(alone), pytrace=False)
        stands_in = found.reference.kind == "graph"
        notices = (
            stand_in_text(found.reference.module_reason) if stands_in else "",
            uniform_text(verdict.measurement, found.images.kind),
            *few_images_text([verdict], found.images),
        )
        against = f"against {found.reference.description}"
        told = f"{numbers_text(verdict)}; {images_text(found.images)}, {against}"
        return [*((NOTICE, notice) for notice in notices if notice), (MEASURED, told)]
    pytest.skip(found.skipped.get(candidate, "it is the reference"))


def _check_stages(verified: Callable[[], Verification]) -> list[tuple[str, str]]:
    """Whether the diagnosis finds every stage within its tolerance, and no fault."""
    from deploykit.commands.diagnose.text import diagnosis_text

    diagnosis = verified().diagnosis
    if not diagnosis.passed or diagnosis.stages is None:
        pytest.fail("\n".join(diagnosis_text(diagnosis)), pytrace=False)
    return [(MEASURED, f"{len(diagnosis.stages.steps)} stages, each within its tolerance")]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what was measured where a test passed, and first what that does not show."""
    told, notices = [], []
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == MEASURED:
                told.append(f"{report.nodeid.partition('::')[2]}: {value}")
            elif name == NOTICE:
                notices.append(str(value))
    if told:
        terminalreporter.section("deploykit")
        for line in (*dict.fromkeys(notices), *told):
            terminalreporter.line(line)
