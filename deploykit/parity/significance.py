"""Whether what was counted can be chance: an exact test."""

from __future__ import annotations

import math
from collections.abc import Iterable

#: What happens by chance less often than this is taken for no chance.
SIGNIFICANT = 0.01
#: Images of one class stand and fall together, as with a network that gives one answer to all: what
#: only one class shows is one observation, however many images it has.
_FEWEST_CLASSES = 2


def sign_test(gained: int, lost: int, hypotheses: int = 1) -> float:
    """How likely a change that helps nobody would help as often as this one.

    The exact one-sided sign test, which for pairs of right and wrong answers is McNemar's.
    Source: McNemar, "Note on the sampling error of the difference between correlated proportions
    or percentages", Psychometrika 12 (1947).

    Args:
        gained: Images that the change makes right.
        lost: Images that it makes wrong.
        hypotheses: How many changes were tried: the best of many looks good by chance (Bonferroni).

    Returns:
        A probability, at most 1.
    """
    changed = gained + lost
    tail = sum(math.comb(changed, count) for count in range(gained, changed + 1))
    return min(1.0, hypotheses * tail / (1 << changed))


def several(classes: Iterable[str]) -> bool:
    """Whether images are of classes enough to be told from one observation.

    Args:
        classes: Each image's right class.
    """
    return len(set(classes)) >= _FEWEST_CLASSES
