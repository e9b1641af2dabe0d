"""Whether OpenVINO is there, and what it computes in on this CPU."""

from __future__ import annotations

from deploykit.commands.doctor.findings import Finding
from deploykit.commands.doctor.packages import imported, reinstall_command, version_of
from deploykit.errors import DependencyError

_NAME = "openvino"


def openvino_finding() -> Finding:
    """OpenVINO, asked itself; without it there is ONNX Runtime."""
    version = version_of(_NAME)
    if version is None:
        return Finding(
            name=_NAME,
            status="absent-but-fine",
            detail="not installed; it computes on the CPU, where BF16 needs it",
            remedies=(f'pip install "deploykit[{_NAME}]"',),
        )
    try:
        core = imported(_NAME).Core()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except (DependencyError, RuntimeError) as exc:
        return Finding(
            name=_NAME,
            status="broken",
            detail=exc.message if isinstance(exc, DependencyError) else f"it does not start: {exc}",
            remedies=(reinstall_command(_NAME),),
        )
    precisions = ", ".join(each for each in ("FP32", "BF16", "INT8") if each in capabilities)
    return Finding(name=_NAME, status="ok", detail=f"{version}, which has {precisions} here")
