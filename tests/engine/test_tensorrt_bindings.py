"""Every name of TensorRT's that our code uses is in the real bindings, of both flavours.

``tensorrt`` cannot be imported without libraries that no public registry has, so that nothing else
would notice a name that TensorRT 11 no longer has.
"""

import ast
from pathlib import Path

import pytest
from bindings import find_bindings, members_of, relax

import deploykit
from deploykit.engine.passport import COMPUTE_CAPABILITIES

PACKAGE = Path(deploykit.__file__).parent

#: The class of each of TensorRT's objects, by what our code calls it; a leading underscore does not
#: count. The module itself is the empty name.
BUILDING = {
    "trt": "",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "tensor": "ITensor",
    "dtype": "DataType",
    "optimization": "IOptimizationProfile",
    "config": "IBuilderConfig",
    "cache": "ITimingCache",
    "severity": "ILogger.Severity",
}
RUNNING = {
    "trt": "",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "config": "IRuntimeConfig",
}
#: Doctor's probes do a little of both; an error there is an exception of Python's.
PROBED = {name: kind for name, kind in {**RUNNING, **BUILDING}.items() if name != "error"}
FILES = {
    "commands/doctor/probes.py": PROBED,
    "specs/engine.py": BUILDING,
    "engine/flavour.py": BUILDING,
    "engine/build.py": BUILDING,
    "engine/audit.py": RUNNING,
    "runtime/_tensorrt.py": RUNNING,
}
#: What only TensorRT for RTX has; our code asks for the flavour, or with hasattr, before it.
RTX_ONLY = {
    ("", "ComputeCapability"),
    ("", "CudaGraphStrategy"),
    ("", "DynamicShapesKernelSpecializationStrategy"),
    ("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE"),
    ("DynamicShapesKernelSpecializationStrategy", "EAGER"),
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
    ("IRuntimeConfig", "create_runtime_cache"),
    ("IRuntimeConfig", "cuda_graph_strategy"),
    ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
    ("IRuntimeConfig", "set_runtime_cache"),
}
#: What TensorRT calls on our own subclasses.
OVERRIDDEN = {
    ("ILogger", "log"),
    ("IProgressMonitor", "phase_finish"),
    ("IProgressMonitor", "phase_start"),
    ("IProgressMonitor", "step_complete"),
}


def attributes_in(file: str) -> list[ast.Attribute]:
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]


def class_of(owner: ast.expr, objects: dict[str, str]) -> str | None:
    """The TensorRT class of what is before a dot: ``self._engine``, ``trt.ILogger.Severity``."""
    if isinstance(owner, ast.Name):
        return objects.get(owner.id)
    if not isinstance(owner, ast.Attribute):
        return None
    known = objects.get(owner.attr.lstrip("_"))
    outer = class_of(owner.value, objects)
    if known is not None or outer is None or not owner.attr[0].isupper():
        return known
    return f"{outer}.{owner.attr}".lstrip(".")


def used_in(file: str) -> set[tuple[str, str]]:
    """What a file uses, as (class, name)."""
    found = {(class_of(node.value, FILES[file]), node.attr) for node in attributes_in(file)}
    return {(owner, name) for owner, name in found if owner is not None}


USED = set().union(OVERRIDDEN, *(used_in(file) for file in FILES))


@pytest.fixture(scope="module")
def rtx_members():
    pytest.importorskip("tensorrt_rtx")
    return members_of("tensorrt_rtx")


@pytest.fixture(scope="module")
def tensorrt_members(tmp_path_factory):
    module = find_bindings()
    if module is None:
        pytest.skip("tensorrt-cu13-bindings is not installed; it is for x86-64 Linux")
    folder = tmp_path_factory.mktemp("bindings")
    relax(module, folder)
    return members_of("tensorrt", folder)


def missing(used, members):
    return sorted((owner, name) for owner, name in used if name not in members.get(owner, ()))


def test_binding_scan_finds_known_uses():
    assert {
        ("", "Builder"),
        ("Builder", "build_serialized_network"),
        ("ILogger.Severity", "INTERNAL_ERROR"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("ITimingCache", "serialize"),
        ("IExecutionContext", "set_input_shape"),
        ("IExecutionContext", "execute_async_v3"),
    } <= USED


def test_tensorrt_has_all_used_names(tensorrt_members):
    assert missing(USED - RTX_ONLY, tensorrt_members) == []


def test_tensorrt_for_rtx_has_all_used_names(rtx_members):
    assert missing(USED | RTX_ONLY, rtx_members) == []
    assert (
        missing({("ComputeCapability", sm.upper()) for sm in COMPUTE_CAPABILITIES}, rtx_members)
        == []
    )


def test_rtx_only_names_are_not_in_tensorrt(tensorrt_members):
    assert missing(RTX_ONLY, tensorrt_members) == sorted(RTX_ONLY)
    assert RTX_ONLY <= USED


def test_binding_scan_notices_dropped_names(tensorrt_members):
    dropped = {("BuilderFlag", "FP16"), ("Builder", "platform_has_fast_fp16")}
    assert missing(dropped, tensorrt_members) == sorted(dropped)


def test_binding_scan_knows_every_variable(rtx_members):
    """Else the scan would pass over it."""
    known = {owner.partition(".")[0] for owner, _ in USED if owner}
    methods = {name for owner in known for name in rtx_members[owner] if "_" in name.strip("_")}
    for file, objects in FILES.items():
        for node in attributes_in(file):
            if node.attr in methods:
                assert class_of(node.value, objects), f"{file}:{node.lineno}: {ast.unparse(node)}"


def test_binding_scan_covers_every_file():
    speaking = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if "trt" in (getattr(node, "attr", None), getattr(node, "id", None)):
                speaking.add(path.relative_to(PACKAGE).as_posix())
    assert speaking <= FILES.keys()
