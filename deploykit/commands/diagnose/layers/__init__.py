"""Which node of a graph moved an answer."""
