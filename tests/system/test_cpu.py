import sys
from types import SimpleNamespace

import pytest

from deploykit.system import cpu
from deploykit.system.cpu import Cpu, cpu_device, describe_cpu, read_cpu, saturates_int8


@pytest.fixture
def system_tells(tmp_path, monkeypatch):
    """Let the system tell of a CPU with these flags, or of none."""

    def tell(flags):
        file = tmp_path / "cpuinfo"
        if flags is not None:
            file.write_text(f"model name\t: Some CPU\nflags\t\t: fpu {flags}\n", encoding="utf-8")
        monkeypatch.setattr(cpu, "_CPUINFO", file)
        monkeypatch.setattr(cpu.platform, "processor", lambda: "Family 6 Model 154")

    return tell


@pytest.mark.parametrize(
    ("flags", "precision", "device"),
    [
        ("avx2 avx512f avx512_bf16", "fp32", "CPU"),
        ("avx2 avx512f avx512_bf16", "bf16", "CPU (avx512_bf16)"),
        ("avx512_bf16 amx_tile amx_bf16", "bf16", "CPU (amx_bf16)"),
        ("avx2 avx512f avx512_vnni", "int8", "CPU (avx512_vnni)"),
        ("avx2 avx512f", "int8", "CPU (avx512f)"),
        ("avx2 avx_vnni", "int8", "CPU (avx_vnni)"),
        ("sse4_2", "int8", "CPU (Some CPU)"),
        (None, "int8", "CPU (Family 6 Model 154)"),
        (None, "fp16", "CPU"),
    ],
)
def test_cpu_device_by_precision(system_tells, flags, precision, device):
    system_tells(flags)
    assert cpu_device(precision) == device


def test_read_cpu_instruction_sets(system_tells):
    system_tells("avx2 aes amx_int8")
    assert read_cpu() == cpu.Cpu("Some CPU", ("avx2", "amx_int8"))
    system_tells("aes")
    assert read_cpu().instruction_sets == ()


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (("avx2",), True),
        (("avx2", "avx512f"), True),
        (("avx2", "avx_vnni"), False),
        (("avx2", "avx512f", "avx512_vnni"), False),
        (("avx2", "avx512f", "amx_int8"), False),
        ((), True),  # SSE has the same instruction
    ],
)
def test_saturates_int8_without_vnni(monkeypatch, sets, told):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert saturates_int8(Cpu("Some CPU", sets)) == told


@pytest.mark.parametrize("sets", [(), ("asimddp", "i8mm")])
def test_saturates_int8_not_on_arm(monkeypatch, sets):
    """Without asimddp, too, it widens to 32 bits."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert not saturates_int8(Cpu("Some CPU", sets))


@pytest.mark.parametrize(("machine", "told"), [("AMD64", True), ("x86_64", True), ("arm64", False)])
def test_saturates_int8_where_no_system_tells(monkeypatch, machine, told):
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert saturates_int8(Cpu("Some CPU", None)) == told


@pytest.mark.parametrize(
    ("found", "described"),
    [
        (
            {"brand_raw": "Intel Core i7", "flags": ["aes", "avx2", "avx512vnni"]},
            Cpu("Intel Core i7", ("avx2", "avx512_vnni")),
        ),
        ({"brand_raw": "Apple M3"}, Cpu("Apple M3", None)),
        ({}, Cpu("Family 6 Model 154", None)),
    ],
)
def test_describe_cpu_outside_linux(system_tells, monkeypatch, found, described):
    system_tells(None)
    monkeypatch.setitem(sys.modules, "cpuinfo", SimpleNamespace(get_cpu_info=lambda: found))
    assert describe_cpu() == described
    # What py-cpuinfo finds is too little for a proof: it does not know avx_vnni.
    assert cpu_device("int8") == "CPU (Family 6 Model 154)"


@pytest.mark.skipif(sys.platform != "linux", reason="compares with what Linux tells")
def test_describe_cpu_by_py_cpuinfo(system_tells):
    here = describe_cpu()
    assert here == read_cpu()
    system_tells(None)
    described = describe_cpu()
    assert described.name
    assert set(described.instruction_sets or ()) <= set(here.instruction_sets)
