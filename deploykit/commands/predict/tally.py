"""The tally of a prediction: what its rows add up to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from deploykit.specs.prediction import Prediction


@dataclass
class Tally:
    """What the rows so far add up to.

    Attributes:
        rows: Image files.
        failures: Rows that are not ok, by status.
        labels: Rows that are ok, by label.
        labelled: Rows that are ok and whose class the folder names.
        correct: Those of them whose label is that class.
        skipped: Other files in the folder, which have no row.
        seconds: Since the first file was read.
        earlier: Rows with a prediction that an interrupted run has left: not in ``seconds``.
    """

    rows: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    labelled: int = 0
    correct: int = 0
    skipped: int = 0
    seconds: float = 0.0
    earlier: int = 0

    @property
    def ok(self) -> int:
        """Rows with a prediction."""
        return self.rows - self.failures.total()

    @property
    def accuracy(self) -> float | None:
        """The part of labelled rows that is correct, 0..1; None without any."""
        return self.correct / self.labelled if self.labelled else None

    @property
    def images_per_second(self) -> float | None:
        """This run's rows with a prediction a second, reading included."""
        return (self.ok - self.earlier) / self.seconds if self.seconds > 0 else None

    def add(self, row: Prediction) -> None:
        """Count a row."""
        self.rows += 1
        if row.label is None:
            self.failures[row.status] += 1
            return
        self.labels[row.label] += 1
        if row.expected is not None:
            self.labelled += 1
            self.correct += row.label == row.expected

    def add_earlier(self, row: Prediction) -> None:
        """Count a row that an interrupted run has left."""
        self.add(row)
        self.earlier += row.ok


def describe_failures(tally: Tally) -> str:
    """The rows that are not ok, by kind: ``2 corrupt, 1 truncated``."""
    return ", ".join(f"{count} {status}" for status, count in tally.failures.most_common())
