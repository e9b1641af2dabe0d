"""ONNX graphs: export, clean-up, rewrites.

This layer is onnx's: importing it where onnx is missing raises a DependencyError.
"""

from deploykit.system.deps import need

need("onnx")
need("onnx_ir")
need("onnxscript")
