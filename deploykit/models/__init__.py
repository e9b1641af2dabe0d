"""Architectures and checkpoints: from a name and a file to an ``nn.Module`` with its weights.

This layer is torch's: importing it where torch is missing raises a DependencyError.
"""

from deploykit.system.deps import need

need("torch")
