"""The pytest plugin: the suite's options, what it measured, and that it fails where nothing ran.

pytest loads this file in every run wherever deploykit is installed. So it imports nothing else of
deploykit, and without ``--deploykit-bundle`` it does nothing but offer the options.
"""

from __future__ import annotations

import pytest

#: Under these names the suite's tests tell, in ``user_properties``, what they are about.
CANDIDATE = "deploykit.candidate"
MEASURED = "deploykit.measured"
REFERENCE = "deploykit.reference"
IMAGES = "deploykit.images"

DEFAULT_MAX_IMAGES = 64


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer the suite's options, all of them under deploykit's name."""
    group = parser.getgroup("deploykit", "parity of a deploykit bundle: --pyargs deploykit.suite")
    group.addoption("--deploykit-bundle", metavar="NAME|DIR", help="the bundle to test")
    group.addoption(
        "--deploykit-images",
        metavar="DIR",
        help="photos to compare on (default: those of the export, else the bundle's golden images)",
    )
    group.addoption(
        "--deploykit-max-images",
        metavar="N",
        type=int,
        default=DEFAULT_MAX_IMAGES,
        help="at most so many, even over the classes; 0 for all (default: %(default)s)",
    )
    group.addoption("--deploykit-runtime", metavar="NAME", help="only candidates on this runtime")
    group.addoption("--deploykit-precision", metavar="P", help="only candidates of this precision")
    group.addoption(
        "--deploykit-arch",
        metavar="A",
        help="compare with this architecture, your own code included",
    )
    group.addoption("--deploykit-ckpt", metavar="FILE", help="compare with this checkpoint")
    group.addoption(
        "--deploykit-trust-pickle",
        action="store_true",
        help="let the checkpoint run the code in it; only for files you made yourself",
    )
    group.addoption(
        "--deploykit-transform",
        metavar="FILE.PY:NAME",
        help="the transform of your training, to compare the recorded preprocessing with",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keep a tally in the one process that sees every report."""
    if config.getoption("deploykit_bundle") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Tally(), "deploykit-tally")


class Tally:
    """What the candidates' tests measured, and whether one was compared with a reference."""

    def __init__(self) -> None:
        self._told: dict[str, None] = {}
        self._ran: set[str] = set()
        self._skipped: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what a test measured, and whether a candidate ran or why it was skipped."""
        told = {name: str(value) for name, value in report.user_properties}
        if report.when == "call":
            for name in (REFERENCE, IMAGES, MEASURED):
                if name in told:
                    self._told.setdefault(f"{name.rpartition('.')[2]:<9}  {told[name]}")
        if CANDIDATE in told and report.skipped:
            self._skipped.setdefault(told[CANDIDATE], _reason(report))
        elif CANDIDATE in told and REFERENCE in told and report.when == "call":
            self._ran.add(told[CANDIDATE])

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Fail a run in which every candidate was skipped: nothing was compared."""
        if exitstatus == pytest.ExitCode.OK and self._nothing_ran:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show the measurements of what passed, too: they are what the run is for."""
        if not (self._told or self._nothing_ran):
            return
        terminalreporter.section("deploykit")
        for line in self._told:
            terminalreporter.line(line)
        if self._nothing_ran:
            for candidate, reason in self._skipped.items():
                terminalreporter.line(f"skipped    {candidate}: {reason}")
            terminalreporter.line("FAILED     no candidate was compared with anything", red=True)

    @property
    def _nothing_ran(self) -> bool:
        return bool(self._skipped) and not self._ran


def _reason(report: pytest.TestReport) -> str:
    """Why a test was skipped."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr)
