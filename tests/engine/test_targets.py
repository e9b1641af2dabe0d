import pytest
from engine_graphs import ADA, AMPERE

from deploykit.engine.passport import parse_targets, runs_on
from deploykit.errors import UsageError
from deploykit.system.gpu import Gpu


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], ("portable",)),
        (["Portable"], ("portable",)),
        (["current", "current"], ("current",)),
        (["SM89", "sm86", "sm89"], ("sm86", "sm89")),
        (["sm120", "sm75"], ("sm75", "sm120")),
    ],
)
def test_targets_are_sorted_and_unique(texts, expected):
    assert parse_targets(texts) == expected


def test_parsing_twice_changes_nothing():
    once = parse_targets(["sm120", "sm86"])
    assert parse_targets(once) == once


@pytest.mark.parametrize("other", ["portable", "current"])
def test_some_targets_stand_alone(other):
    with pytest.raises(UsageError, match=f"{other} and sm89 exclude each other"):
        parse_targets(["sm89", other])


@pytest.mark.parametrize(("text", "near"), [("sm98", "sm89"), ("potable", "portable")])
def test_an_unknown_target_gets_a_close_match(text, near):
    with pytest.raises(UsageError, match="there are portable, current, sm75") as caught:
        parse_targets([text])
    assert caught.value.hint == f"Did you mean {near}?"


def test_an_unknown_target_without_a_close_match_explains_the_spelling():
    with pytest.raises(UsageError) as caught:
        parse_targets(["8.9"])
    assert "RTX 40 sm89" in caught.value.hint


def test_tensorrt_builds_for_the_gpu_at_hand_only():
    assert parse_targets([], "tensorrt") == ("current",)
    assert parse_targets(["current"], "tensorrt") == ("current",)
    with pytest.raises(UsageError, match="not for sm89") as caught:
        parse_targets(["sm89"], "tensorrt")
    assert "--flavour tensorrt_rtx" in caught.value.hint


def test_which_gpus_targets_run_on():
    assert runs_on(("sm86", "sm89"), ADA)
    assert not runs_on(("sm89",), AMPERE)
    # Turing has to be asked for; what is newer than the documentation may be tried.
    assert not runs_on(("portable",), Gpu("NVIDIA GeForce RTX 2080", (7, 5), (13, 0)))
    assert runs_on(("portable",), Gpu("NVIDIA H100", (9, 0), (13, 0)))
