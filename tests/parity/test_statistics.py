import pytest

from deploykit.parity.statistics import upper_bound


@pytest.mark.parametrize(
    ("events", "trials", "expected"),
    [
        # 1 - 0.05 ** (1 / n) for no event; the others are Clopper-Pearson's 95 % one-sided limits
        # from tables of the beta distribution's 0.95 quantile, Beta(k + 1, n - k).
        (0, 225, 1 - 0.05 ** (1 / 225)),
        (0, 1, 0.95),
        (1, 10, 0.394163),
        (5, 10, 0.777559),
        (2, 100, 0.061619),
    ],
)
def test_upper_bound_is_clopper_pearson(events, trials, expected):
    assert upper_bound(events, trials) == pytest.approx(expected, abs=1e-6)


def test_upper_bound_of_all_events():
    assert upper_bound(7, 7) == 1.0


def test_upper_bound_without_trials():
    assert upper_bound(0, 0) is None


def test_upper_bound_of_many_trials():
    assert upper_bound(50, 1_000_000) == pytest.approx(6.3287e-05, rel=1e-3)


@pytest.mark.parametrize(("events", "trials"), [(-1, 5), (6, 5)])
def test_upper_bound_refuses_impossible_counts(events, trials):
    with pytest.raises(ValueError, match="events"):
        upper_bound(events, trials)
