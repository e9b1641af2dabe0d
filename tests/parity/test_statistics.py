import re
from pathlib import Path

import pytest

from deploykit.parity.statistics import paired_interval, upper_bound
from deploykit.system.text import rate_digits


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


@pytest.mark.parametrize(
    "file",
    [*sorted((Path(__file__).parents[2] / "docs").glob("*.md")), Path("README.md")],
    ids=lambda file: file.name,
)
def test_bounds_in_the_docs_are_right(file):
    """Of ``0 of 225, at most 1.3 %`` and ``(47 of 48), of such images at least 90.5 %``."""
    text = (Path(__file__).parents[2] / file).read_text(encoding="utf-8")
    for count, of, kind, told in re.findall(
        r"(\d+) of (\d+)\)?(?:,| \|) (of such images )?at (?:most|least) ([\d.]+)\s%", text
    ):
        if kind:
            assert told == f"{100 * (1 - upper_bound(int(of) - int(count), int(of))):.1f}"
        else:
            assert told == rate_digits(upper_bound(int(count), int(of)))


def test_paired_interval_of_agresti():
    """Approval of a prime minister, asked twice of 1,600 voters: 150 turned away, 86 came."""
    # Agresti, "Categorical Data Analysis": 0.04, between 0.02 and 0.06.
    low, high = paired_interval(150, 86, 1600)
    assert (low, high) == pytest.approx((0.0212, 0.0587), abs=1e-4)
    assert paired_interval(86, 150, 1600) == pytest.approx((-high, -low))


def test_paired_interval_without_a_change_is_no_certainty():
    low, high = paired_interval(0, 0, 128)
    assert (low, high) == pytest.approx((-0.01508, 0.01508), abs=1e-5)
    assert paired_interval(1, 0, 1)[1] <= 1
    with pytest.raises(ValueError, match="do not fit"):
        paired_interval(2, 0, 1)
