import pytest

from deploykit.engine.history import Build, BuildHistory
from deploykit.specs.engine import Profile

LIKE = ("tensorrt", "fp16", ("current",), Profile(), None)


def record(seconds, like=LIKE):
    flavour, precision, targets, profile, workspace_bytes = like
    return Build(
        flavour=flavour,
        precision=precision,
        targets=targets,
        profile=profile,
        seconds=seconds,
        workspace_bytes=workspace_bytes,
    )


@pytest.fixture
def history(tmp_path):
    return BuildHistory(tmp_path / "cache" / "builds.json")


def test_the_estimate_is_the_median_of_builds_like_this(history):
    assert history.estimate_seconds(*LIKE) is None
    for seconds in (10.0, 30.0, 11.0):
        history.add(record(seconds))
    assert history.estimate_seconds(*LIKE) == 11.0
    assert [path.name for path in history.path.parent.iterdir()] == ["builds.json"]


@pytest.mark.parametrize(
    "other",
    [
        ("tensorrt_rtx", "fp16", ("current",), Profile(), None),
        ("tensorrt", "fp32", ("current",), Profile(), None),
        ("tensorrt", "fp16", ("sm89",), Profile(), None),
        ("tensorrt", "fp16", ("current",), Profile(max_batch=64), None),
        ("tensorrt", "fp16", ("current",), Profile(), 2**29),
    ],
    ids=["flavour", "precision", "targets", "profile", "workspace"],
)
def test_other_builds_tell_nothing(history, other):
    history.add(record(10.0, other))
    assert history.estimate_seconds(*LIKE) is None
    assert history.estimate_seconds(*other) == 10.0


def test_only_the_last_fifty_are_remembered(history):
    for seconds in range(60):
        history.add(record(float(seconds)))
    assert [build.seconds for build in history.builds()] == [float(s) for s in range(10, 60)]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{}", b'[{"flavour": "tensorrt"}]', b"\xff\xfe"],
)
def test_a_damaged_history_starts_afresh(history, content):
    history.path.parent.mkdir()
    history.path.write_bytes(content)
    assert history.estimate_seconds(*LIKE) is None
    history.add(record(10.0))
    assert history.builds() == (record(10.0),)


def test_a_history_with_impossible_batch_sizes_starts_afresh(history):
    history.add(record(10.0))
    text = history.path.read_text(encoding="utf-8")
    history.path.write_text(text.replace('"min_batch":1', '"min_batch":9'), encoding="utf-8")
    assert history.builds() == ()


def test_a_history_that_cannot_be_written_is_no_obstacle(tmp_path):
    (tmp_path / "cache").touch()
    history = BuildHistory(tmp_path / "cache" / "builds.json")
    history.add(record(10.0))
    assert history.builds() == ()
