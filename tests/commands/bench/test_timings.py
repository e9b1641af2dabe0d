"""Whether one option is faster than another by more than chance."""

import math

import numpy as np
import pytest

from deploykit.commands.bench.timings import EndToEnd


def at(*rates):
    """Predictions that gave these images/s, round after round."""
    return EndToEnd(batch_size=2, photos=8, rates=tuple(map(float, rates)))


def is_faster(logs):
    """Whether an option is, whose ratios to another have these logarithms."""
    return at(*np.exp(logs)).is_faster_than(at(*np.ones(len(logs))))


def test_images_per_second_are_the_geometric_mean():
    assert at(10, 40).images_per_second == pytest.approx(20)
    fast, slow = at(20, 90, 30), at(10, 30, 20)
    ratio = fast.images_per_second / slow.images_per_second
    assert ratio == pytest.approx((20 / 10 * 90 / 30 * 30 / 20) ** (1 / 3))


@pytest.mark.parametrize("rounds", [1, 2])
def test_fewer_than_three_rounds_decide_nothing(rounds):
    assert not at(*[90] * rounds).is_faster_than(at(*[10] * rounds))
    assert at(90, 90, 90).is_faster_than(at(10, 10, 10))


def test_where_the_rounds_do_not_differ_the_mean_decides():
    assert at(11, 22, 44).is_faster_than(at(10, 20, 40))
    assert not at(10, 20, 40).is_faster_than(at(11, 22, 44))
    assert not at(10, 20, 40).is_faster_than(at(10, 20, 40))


def test_rounds_are_compared_with_each_other():
    """The machine was three times as fast in the second round, for both."""
    assert at(11.0, 33.3, 22.4).is_faster_than(at(10, 30, 20))


def test_more_in_every_round_may_be_chance():
    """As three tosses are: the gain must be large against how it differs."""
    assert not at(10.1, 14, 10.2).is_faster_than(at(10, 10, 10))
    assert at(13.5, 14, 14.5).is_faster_than(at(10, 10, 10))


def test_less_in_one_round_of_many_may_be_chance():
    assert at(*[12, 13, 12, 9.9, 13, 12]).is_faster_than(at(*[10] * 6))


@pytest.mark.parametrize("rounds", [3, 5, 9, 40])
def test_equal_options_are_told_apart_once_in_twenty(rounds):
    noise = np.random.default_rng(rounds).normal(0, 0.05, (4000, rounds))
    share = np.mean([is_faster(logs) for logs in noise])
    assert 0.04 <= share <= 0.06


@pytest.mark.parametrize("degrees", [2, 4, 10, 20, 30])
def test_the_critical_values_leave_five_percent_above(degrees):
    """By the density of Student's t, and the largest mean that is not yet clear."""
    signs = np.resize([1.0, -1.0], degrees + 1)
    signs -= signs.mean()
    error = np.std(signs, ddof=1) / math.sqrt(len(signs))
    low, high = 0.0, 10.0
    for _ in range(60):
        mean = (low + high) / 2
        low, high = (low, mean) if is_faster(signs + mean * error) else (mean, high)
    step = 5e-4
    t = np.arange(high + step / 2, 300, step)
    density = (1 + t**2 / degrees) ** (-(degrees + 1) / 2)
    scale = math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2) / math.sqrt(degrees * math.pi)
    assert scale * step * density.sum() == pytest.approx(0.05, abs=1e-4)


def test_no_options_are_faster_than_each_other_in_a_circle():
    rng = np.random.default_rng(0)
    for _ in range(300):
        options = [at(*rates) for rates in rng.lognormal(0, 0.3, (3, 5))]
        for circle in ((0, 1, 2), (2, 1, 0)):
            a, b, c = (options[place] for place in circle)
            assert not (a.is_faster_than(b) and b.is_faster_than(c) and c.is_faster_than(a))
