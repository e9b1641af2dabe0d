"""How sure counts of flips and of right answers make us."""

from __future__ import annotations

import math
from statistics import NormalDist

#: Of the bounds.
CONFIDENCE = 0.95
_BISECTIONS = 100  # a double has 53 bits between 0 and 1: past that the interval no longer shrinks


def upper_bound(events: int, trials: int, confidence: float = CONFIDENCE) -> float | None:
    """The exact one-sided upper confidence bound of a rate.

    Clopper and Pearson, "The use of confidence or fiducial limits", Biometrika 26 (1934).

    Args:
        events: How often it happened, 0..trials.
        trials: How often it could have.
        confidence: The probability that the bound is not below the true rate, at least.

    Returns:
        The rate at which ``events`` or fewer have the probability ``1 - confidence``; 1 when
        every trial was an event; None without a trial.
    """
    if not 0 <= events <= trials:
        raise ValueError(f"events must be in 0..trials, got {events} of {trials}")
    if trials == 0:
        return None
    if events == trials:
        return 1.0
    low, high = events / trials, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if binomial_cdf(events, trials, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def paired_interval(
    lost: int, won: int, trials: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """The two-sided confidence interval of a difference of two rates over the same trials.

    Agresti and Min, "Simple improved confidence intervals for comparing matched proportions",
    Statistics in Medicine 24 (2005): Wald's interval, with 1/2 added to each of the four counts.

    Args:
        lost: In how many trials only the first succeeded.
        won: In how many only the second did.
        trials: How many there were, at least ``lost + won``.
        confidence: The probability that the interval holds the true difference, about.

    Returns:
        The bounds of the first rate less the second, within -1..1.
    """
    if not 0 <= lost + won <= trials:
        raise ValueError(f"{lost} lost and {won} won do not fit {trials} trials")
    total, apart = trials + 2, lost + won + 1
    difference = (lost - won) / total
    error = math.sqrt(apart - (lost - won) ** 2 / total) / total
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * error
    return max(-1.0, difference - reach), min(1.0, difference + reach)


def binomial_cdf(events: int, trials: int, rate: float) -> float:
    """The probability of at most ``events`` in ``trials`` at ``rate`` (0 < rate < 1)."""
    log_rate, log_rest = math.log(rate), math.log1p(-rate)
    log_factorial = math.lgamma(trials + 1)
    return math.fsum(
        math.exp(
            log_factorial
            - math.lgamma(i + 1)
            - math.lgamma(trials - i + 1)
            + i * log_rate
            + (trials - i) * log_rest
        )
        for i in range(events + 1)
    )
