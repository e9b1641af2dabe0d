"""The pytest plugin: ``pytest --deploykit-bundle=DIR`` makes a test of each verdict of ``verify``.

pytest loads this file in every run wherever deploykit is installed. So it imports nothing else of
deploykit, and offers its options, until ``--deploykit-bundle`` is given.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Generator, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from deploykit.bundle.folder import Bundle
    from deploykit.commands.verify.result import Verification
    from deploykit.commands.verify.run import VerifyRequest
    from deploykit.errors import DeploykitError
    from deploykit.inference.candidates import Candidate

#: Under this name a test that passed tells in ``user_properties`` what was measured.
MEASURED = "deploykit"

_OPTIONS = {
    "images": ("DIR", "photos to compare on (default: those of the export, else golden.npz)"),
    "max-images": ("N", "at most so many photos, even over the classes (default: all)"),
    "runtime": ("NAME", "only candidates on this runtime"),
    "precision": ("P", "only candidates of this precision"),
    "arch": ("A", "compare with this architecture, your own code included"),
    "ckpt": ("FILE", "compare with this checkpoint"),
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


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is tested.

    Attributes:
        bundle: The bundle; no test changes it.
        candidates: What is to be compared, whether it can run here or not.
        request: How.
        transform: The training's own transform, ``file.py:name``; None to test no stages.
    """

    bundle: Bundle
    candidates: tuple[Candidate, ...]
    request: VerifyRequest
    transform: str | None

    @cached_property
    def outcome(self) -> Verification | DeploykitError:
        """What ``verify`` finds, or why it finds nothing; it runs once for all tests."""
        from deploykit.commands.verify.run import verify_bundle
        from deploykit.errors import DeploykitError

        try:
            return verify_bundle(self.bundle, self.request)
        except DeploykitError as error:
            return error


_SUBJECT = pytest.StashKey[Subject]()


def pytest_configure(config: pytest.Config) -> None:
    """Read the options; a mistake in them ends the run before the first test."""
    if config.getoption("deploykit_bundle") is None:
        return
    from deploykit.errors import DeploykitError

    try:
        config.stash[_SUBJECT] = _read_subject(config)
    except DeploykitError as error:
        raise pytest.UsageError(str(error)) from error
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args.clear()  # else a folder of scripts and photos would be searched for tests


def _read_subject(config: pytest.Config) -> Subject:
    from deploykit.bundle.folder import CANONICAL_GRAPH, default_artifacts, find_bundle
    from deploykit.commands.verify.run import VerifyRequest
    from deploykit.errors import UsageError
    from deploykit.images.scan import scan_images
    from deploykit.inference.candidates import Candidate, named_candidates
    from deploykit.proof.reference import ReferenceRequest
    from deploykit.runtime.opener import CPU
    from deploykit.specs.model import PRECISIONS
    from deploykit.specs.value import choice

    def option(name: str) -> str | None:
        value: str | None = config.getoption(f"deploykit_{name}")
        return value

    def path(name: str) -> Path | None:
        text = option(name)  # relative to where pytest was called, wherever tests are run
        return None if text is None else config.invocation_params.dir / text

    count, precision = option("max_images"), option("precision")
    if count is not None and not (count.isdecimal() and int(count) > 0):
        raise UsageError(f"--deploykit-max-images takes 1 or more, not {count}.")
    request = VerifyRequest(
        images=path("images"),
        max_images=None if count is None else int(count),
        runtime=option("runtime"),
        precision=None if precision is None else choice(precision, PRECISIONS, "precision"),
        reference=ReferenceRequest(
            arch=option("arch"),
            checkpoint=path("ckpt"),
            trust_pickle=config.getoption("deploykit_trust_pickle"),
        ),
        keep=False,
    )
    if request.images is not None:
        scan_images(request.images)
    bundle, _ = find_bundle(option("bundle"), default_artifacts())
    candidates = named_candidates(bundle, request.runtime, request.precision)
    if request.runtime is request.precision is None:
        candidates.insert(0, Candidate(CANONICAL_GRAPH, CPU, "fp32"))
    return Subject(bundle, tuple(candidates), request, option("transform"))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Add the bundle to the paths that are searched for tests."""
    report = yield
    subject = collector.config.stash.get(_SUBJECT, None)
    if isinstance(collector, pytest.Session) and report.passed and subject is not None:
        name = subject.bundle.name
        bundle = BundleTests.from_parent(collector, name=name, nodeid=name, subject=subject)
        report.result.append(bundle)
    return report


class BundleTests(pytest.Collector):
    """The tests of a bundle: its files, each candidate's verdict, and the stages."""

    def __init__(self, *, subject: Subject, **node: object) -> None:
        super().__init__(**node)  # type: ignore[arg-type]
        self._subject = subject

    def collect(self) -> Iterator[BundleTest]:
        """Make the tests; nothing is compared before the first of them runs."""
        subject = self._subject
        checks = {"files": partial(check_files, subject)}
        for candidate in subject.candidates:
            checks[str(candidate)] = partial(check_candidate, subject, candidate)
        if subject.transform is not None:
            checks["stages"] = partial(check_stages, subject)
        for name, check in checks.items():
            yield BundleTest.from_parent(self, name=name, check=check)


class BundleTest(pytest.Item):
    """One of them. Being no function, it takes none of the project's fixtures."""

    def __init__(self, *, check: Callable[[], str], **node: object) -> None:
        super().__init__(**node)  # type: ignore[arg-type]
        self._check = check

    def runtest(self) -> None:
        """Check, and fail in words, without a traceback of ours."""
        from deploykit.errors import DeploykitError

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # other packages' are none of the project's
                self.user_properties.append((MEASURED, self._check()))
        except DeploykitError as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None

    def reportinfo(self) -> tuple[Path, None, str]:
        """Name it above a failure."""
        assert self.parent is not None  # noqa: S101
        return self.path, None, f"{self.parent.name}: {self.name}"


def check_files(subject: Subject) -> str:
    """Whether each file is as recorded, and the graphs give the answers recorded at export."""
    from deploykit.commands.verify.run import VerifyRequest, verify_bundle
    from deploykit.commands.verify.text import verification_text
    from deploykit.inference.engines import engines_left_out, named_engine
    from deploykit.system.text import counted

    bundle = subject.bundle
    files = [file for file in bundle.manifest.files if file not in engines_left_out(bundle)]
    for file in files:
        bundle.checked(file)
        if file in bundle.manifest.engines:
            named_engine(bundle, file)  # its passport, and the graph that it was built from
    found = verify_bundle(bundle, VerifyRequest(self_test=True, keep=False))
    if not found.passed:
        pytest.fail(verification_text(found), pytrace=False)
    return f"{counted(len(files), 'file is', 'files are')} as recorded, and so are the answers"


def check_candidate(subject: Subject, candidate: Candidate) -> str:
    """What ``verify`` measured of a candidate, whose verdict decides; skipped where it has none."""
    from deploykit.commands.verify.text import numbers_text, verification_text
    from deploykit.errors import DeploykitError
    from deploykit.proof.text import photos_text

    found = subject.outcome
    if isinstance(found, DeploykitError):
        raise found
    for verdict in found.verdicts:
        spec = verdict.candidate
        if (spec.graph, spec.runtime, spec.precision) != dataclasses.astuple(candidate):
            continue
        if not verdict.passed:
            alone = dataclasses.replace(found, verdicts=(verdict,), accuracy=())
            pytest.fail(verification_text(alone), pytrace=False)
        return f"{numbers_text(verdict)}; {photos_text(found.photos)}, against {found.reference}"
    pytest.skip(found.skipped.get(candidate, "it is the reference"))


def check_stages(subject: Subject) -> str:
    """Whether ``verify --stages`` finds every step within its tolerance, and no fault."""
    from deploykit.commands.diagnose.stages.run import StagesRequest, diagnose_stages
    from deploykit.commands.diagnose.text import stage_report_text

    request = subject.request
    wanted = StagesRequest(
        images=request.images,
        max_images=request.max_images,
        transform=subject.transform,
        reference=request.reference,
        runtime=request.runtime,
        precision=request.precision,
    )
    report = diagnose_stages(subject.bundle, wanted)
    if not report.passed:
        pytest.fail(stage_report_text(report), pytrace=False)
    return f"{len(report.steps)} stages, each within its tolerance"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what was measured where a test passed: that is what the run is for."""
    told = [
        f"{report.nodeid.partition('::')[2]}: {value}"
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == MEASURED
    ]
    if told:
        terminalreporter.section("deploykit")
        for line in told:
            terminalreporter.line(line)
