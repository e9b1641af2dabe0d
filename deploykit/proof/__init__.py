"""Whether a graph or an engine may be trusted: references, images, verdicts, the policy."""
