"""What ``bench`` times, and whether two options differ by more than what disturbs them."""

from __future__ import annotations

import math
import statistics

from deploykit.specs.value import Value

#: Fewer rounds tell no difference from noise.
LEAST_ROUNDS = 3
#: Fewer runs give no percentile worth its name.
LEAST_FOR_PERCENTILES = 100
_PERCENTILES = (90, 95, 99)
#: What Student's t is above by chance in 5 % of experiments, by its degrees of freedom from 1 on.
#: Source: NIST/SEMATECH, "e-Handbook of Statistical Methods", section 1.3.6.7.2.
_CRITICAL_T = (
    *(6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812),
    *(1.796, 1.782, 1.771, 1.761, 1.753, 1.746, 1.740, 1.734, 1.729, 1.725),
    *(1.721, 1.717, 1.714, 1.711, 1.708, 1.706, 1.703, 1.701, 1.699, 1.697),
)
#: The same of the normal distribution, which Student's comes near.
_CRITICAL_NORMAL = 1.645


class Timing(Value, frozen=True):
    """The runs of a session alone, one at a time.

    Attributes:
        batch: Images a run.
        seconds: Of each run, from images in memory to logits in memory.
    """

    batch: int
    seconds: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """The median latency."""
        return 1000 * statistics.median(self.seconds)

    @property
    def range_ms(self) -> tuple[float, float]:
        """The shortest and the longest latency."""
        return 1000 * min(self.seconds), 1000 * max(self.seconds)

    @property
    def images_per_second(self) -> float:
        """At the median latency."""
        return self.batch / statistics.median(self.seconds)

    @property
    def percentiles_ms(self) -> dict[int, float]:
        """Latencies by percentile, nearest rank; none of fewer than a hundred runs."""
        if len(self.seconds) < LEAST_FOR_PERCENTILES:
            return {}
        ranked = sorted(self.seconds)
        return {p: 1000 * ranked[math.ceil(p / 100 * len(ranked)) - 1] for p in _PERCENTILES}


class EndToEnd(Value, frozen=True):
    """Predictions, from photo files to logits, as ``predict`` makes them.

    Attributes:
        batch_size: The most photos that a run of the session took.
        photos: How many each of the measured predictions had.
        rates: The images/s of each, one a round.
    """

    batch_size: int
    photos: int
    rates: tuple[float, ...]

    @property
    def images_per_second(self) -> float:
        """The geometric mean: of two options' the ratio is the geometric mean of their ratios."""
        return statistics.geometric_mean(self.rates)

    def is_faster_than(self, other: EndToEnd) -> bool:
        """Whether it is more than chance that it has more images/s: a paired t-test at 5 %.

        The test is one-sided, on the logarithms of the rounds' ratios: what disturbs the machine
        for longer than a turn is in both rates of a round, and twice as fast is as far from equal
        as half as fast. Where the ratio is the same in every round, it decides by itself; fewer
        rounds than :data:`LEAST_ROUNDS` decide nothing. What is faster has the higher geometric
        mean, so that no options are faster than each other in a circle.

        Source: Student, "The probable error of a mean", Biometrika 6 (1908).

        Args:
            other: Another option's, of the same rounds.
        """
        pairs = zip(self.rates, other.rates, strict=True)
        logs = [math.log(ours / theirs) for ours, theirs in pairs]
        if len(logs) < LEAST_ROUNDS:
            return False
        error_of_mean = statistics.stdev(logs) / math.sqrt(len(logs))
        return statistics.fmean(logs) > _critical_t(len(logs) - 1) * error_of_mean


def _critical_t(degrees: int) -> float:
    return _CRITICAL_T[degrees - 1] if degrees <= len(_CRITICAL_T) else _CRITICAL_NORMAL
