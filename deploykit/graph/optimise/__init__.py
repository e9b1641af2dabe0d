"""Graph rules: the canonical graph computed with less memory traffic, and the same numbers.

Each is a pass that leaves alone what it is not made for, and has measured faster on some runtime
and slower on none: docs/graph.md has the table, benchmarks/graph_rules.py makes it.
"""

from __future__ import annotations

from deploykit.graph.optimise.activations import move_activations_before_concats
from deploykit.graph.optimise.relus import drop_needless_relus
from deploykit.graph.optimise.slices import forward_slices_of_concats
from deploykit.graph.optimise.split_convs import split_sliced_convs
from deploykit.graph.passes import Pass

#: In their order: each makes room for the next.
DEPLOY_RULES: tuple[Pass, ...] = (
    split_sliced_convs,
    move_activations_before_concats,
    drop_needless_relus,
    forward_slices_of_concats,
)
