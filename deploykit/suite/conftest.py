"""What the suite's tests are given; and their failures in words, without a traceback of ours."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import pytest

from deploykit.bundle.folder import Bundle
from deploykit.errors import DeploykitError, MissingError
from deploykit.inference.candidates import Candidate, open_candidate
from deploykit.specs.session import Session
from deploykit.suite._subject import (
    Images,
    ReferenceAnswers,
    Subject,
    ask_reference,
    check_subject,
    read_images,
    read_subject,
)
from deploykit.suite.plugin import CANDIDATE

_SUBJECT = pytest.StashKey[Subject]()
_REFUSAL = pytest.StashKey[str]()
_NO_ENGINE = pytest.param(
    None, id="none", marks=pytest.mark.skip(reason="the bundle has no engine here")
)


def pytest_configure(config: pytest.Config) -> None:
    """Read the options, once it is known that the suite is asked for."""
    try:
        config.stash[_SUBJECT] = read_subject(config)
    except DeploykitError as error:
        config.stash[_REFUSAL] = str(error)


def pytest_collection_modifyitems(config: pytest.Config) -> None:
    """End the run where the options make no sense: only here does pytest take that for usage.

    A worker of pytest-xdist must not end so; there every test fails, with the same words.
    """
    if _SUBJECT in config.stash:
        try:
            check_subject(config.stash[_SUBJECT])
        except DeploykitError as error:
            config.stash[_REFUSAL] = str(error)
    if _REFUSAL in config.stash and not hasattr(config, "workerinput"):
        raise pytest.UsageError(config.stash[_REFUSAL])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each candidate, each file and each engine."""
    subject = metafunc.config.stash.get(_SUBJECT, None)
    if subject is None:
        return
    if "candidate" in metafunc.fixturenames:
        names = [f"{c.file}-{c.runtime}-{c.precision}" for c in subject.candidates]
        metafunc.parametrize(
            "candidate", subject.candidates, ids=names, indirect=True, scope="module"
        )
    if "file" in metafunc.fixturenames:
        metafunc.parametrize("file", subject.files)
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", subject.engines or [_NO_ENGINE])


@pytest.hookimpl(wrapper=True, trylast=True)  # inside of pytest's own, which expect to end well
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    """Say for the tally, even of a test that will be skipped, which candidate it is about."""
    if _REFUSAL in item.config.stash:
        pytest.fail(item.config.stash[_REFUSAL], pytrace=False)
    callspec = getattr(item, "callspec", None)
    chosen = callspec.params.get("candidate") if callspec is not None else None
    if isinstance(chosen, Candidate):
        item.user_properties.append((CANDIDATE, str(chosen)))
    with _in_words():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Tell what a test ran into as the command line would."""
    del item
    with _in_words():
        return (yield)


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except DeploykitError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def record_property(request: pytest.FixtureRequest) -> Callable[[str, object], None]:
    """Do what pytest's own does, without a warning a test under ``--junitxml``.

    pytest warns because one of the schemas that files are held against has no properties of a test.
    """
    properties: list[tuple[str, object]] = request.node.user_properties
    return lambda name, value: properties.append((name, value))


@pytest.fixture(scope="session")
def subject(pytestconfig: pytest.Config) -> Subject:
    """What is tested."""
    return pytestconfig.stash[_SUBJECT]


@pytest.fixture(scope="session")
def bundle(subject: Subject) -> Bundle:
    """The bundle that is tested."""
    return subject.bundle


@pytest.fixture(scope="session")
def images(subject: Subject) -> Images:
    """The images, read once."""
    return read_images(subject)


@pytest.fixture(scope="session")
def reference(subject: Subject, images: Images) -> ReferenceAnswers:
    """What the reference answers, asked once."""
    return ask_reference(subject, images)


@pytest.fixture(scope="module")
def candidate(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Session]:
    """A candidate, opened once for all of its tests."""
    try:
        session = open_candidate(bundle, request.param)
    except MissingError as error:
        pytest.skip(f"it cannot run here: {error.message}")
    with session:
        yield session
