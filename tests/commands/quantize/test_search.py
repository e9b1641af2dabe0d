"""The search for the nodes that stay in FP32, on sets of letters."""

import itertools

import pytest

from deploykit.commands.quantize.search import Trials, grow, shrink

LETTERS = "abcdefghijklmnop"


def needing(*needed, seconds=60.0, tried=None):
    """Trials that pass when all the needed letters are kept; notes what is tried."""

    def passes(nodes):
        if tried is not None:
            tried.append(nodes)
        return nodes >= set("".join(needed))

    return Trials(passes, seconds)


def test_grow_takes_groups_in_order():
    groups = [("a", "b"), ("c",), ("d",), ("e",), ("f",)]
    assert grow(frozenset("z"), groups, needing("cz")) == frozenset("zabc")
    assert grow(frozenset(), groups, needing("e")) == frozenset("abcde")


def test_grow_takes_few_trials():
    tried = []
    assert grow(frozenset(), list(LETTERS), needing("k", tried=tried)) == frozenset(LETTERS[:11])
    assert len(tried) <= 9


def test_grow_of_insufficient_groups():
    assert grow(frozenset(), list("abc"), needing("z")) is None


def test_grow_when_time_is_up():
    tried = []
    assert grow(frozenset(), list(LETTERS), needing("p", seconds=0, tried=tried)) is None
    assert len(tried) == 1


@pytest.mark.parametrize("needed", ["", "a", "p", "bn", "aeip", LETTERS])
def test_shrink_leaves_needed_nodes(needed):
    nodes, minimal = shrink(frozenset(LETTERS), frozenset(), needing(needed))
    assert nodes == frozenset(needed)
    assert minimal


def test_shrink_drops_all_in_one_trial():
    tried = []
    shrink(frozenset(LETTERS), frozenset(), needing("", tried=tried))
    assert len(tried) == 1


def test_shrink_keeps_pinned_nodes():
    assert shrink(frozenset("abc"), frozenset("b"), needing("c")) == (frozenset("bc"), True)


def test_shrink_drops_what_costs_most_first():
    """Either of two is enough: the cheaper one stays."""
    for costs, left in (({"a": 1.0, "b": 2.0}, "a"), ({"a": 2.0, "b": 1.0}, "b")):
        trials = Trials(lambda nodes: bool(nodes), 60)
        assert shrink(frozenset("ab"), frozenset(), trials, costs) == (frozenset(left), True)


def test_shrink_is_minimal_if_not_monotonic():
    """Two pairs, of which either is enough: the smallest set is two letters."""

    def passes(nodes):
        return nodes >= set("ab") or nodes >= set("cd")

    nodes, minimal = shrink(frozenset("abcd"), frozenset(), Trials(passes, 60))
    assert minimal
    assert passes(nodes)
    assert not any(passes(nodes - {letter}) for letter in nodes)


def test_shrink_when_time_is_up():
    trials = needing("b", seconds=0)
    assert shrink(frozenset("abc"), frozenset(), trials) == (frozenset("abc"), False)


def test_trials_try_each_set_once():
    tried = []

    def passes(nodes):
        tried.append(nodes)
        return True

    trials = Trials(passes, 60)
    for letters in itertools.repeat("ab", 3):
        assert trials(frozenset(letters))
    assert len(tried) == 1
