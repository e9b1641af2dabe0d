"""What OpenVINO computes in on this CPU, for tests that need more than FP32."""

import pytest

from deploykit.system.deps import need


def _capabilities():
    core = need("openvino").Core()
    return core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


needs_bf16 = pytest.mark.skipif(
    "BF16" not in _capabilities(), reason="this CPU does not compute in BF16"
)
needs_int8 = pytest.mark.skipif(
    "INT8" not in _capabilities(), reason="this CPU does not compute in INT8"
)
