"""The passes that turn the canonical graph into the FP32 deploy graph, by name and in order."""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from deploykit.graph.optimise import DEPLOY_RULES
from deploykit.graph.passes import Pass
from deploykit.graph.preprocessing import fuse_preprocessing
from deploykit.specs.preprocessing import Preprocessing


class NamedPass(NamedTuple):
    """A pass that a report can name.

    Attributes:
        name: What it does, in words.
        run: The pass.
    """

    name: str
    run: Pass


def deploy_passes(preprocessing: Preprocessing) -> tuple[NamedPass, ...]:
    """The passes for a bundle with this preprocessing."""
    return (
        *(NamedPass(rule.__name__.replace("_", " "), rule) for rule in DEPLOY_RULES),
        NamedPass("normalisation inside the graph", fuse_preprocessing(preprocessing)),
    )


def apply_deploy_passes(canonical: ir.Model, preprocessing: Preprocessing) -> ir.Model:
    """Make the FP32 deploy graph of a canonical graph, which is changed."""
    for each in deploy_passes(preprocessing):
        canonical, _ = each.run(canonical)
    return canonical
