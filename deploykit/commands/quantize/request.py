"""Searches for the nodes that must stay in FP32, as a user asks for them, and what they give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploykit.bundle.verdicts import KeptVerdict
from deploykit.proof.verdict import Verdict
from deploykit.specs.precision import KeptNode

SEARCH_SECONDS = 300.0


@dataclass(frozen=True)
class SearchRequest:
    """How to make a graph below FP32.

    Attributes:
        images: A folder of photos, of which one sample is for the search, and INT8's calibration,
            and another for the proof; None for the one given at export, else the golden images.
        search_seconds: How long the search for each graph may begin new trials.
    """

    images: Path | None = None
    search_seconds: float = SEARCH_SECONDS


@dataclass(frozen=True)
class SearchedGraph:
    """A graph below FP32 that passed, and what it took.

    Attributes:
        kept: The nodes that stay in FP32, and why.
        verdict: Of the very file, on photos that the search did not use.
        proof: The same as the manifest keeps it.
        searched: How many photos the search used.
        trials: How many graphs were tried.
        minimal: Whether it was shown that no single kept node can be spared.
    """

    kept: tuple[KeptNode, ...]
    verdict: Verdict
    proof: KeptVerdict
    searched: int
    trials: int
    minimal: bool
