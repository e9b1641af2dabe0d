"""What is said of NVIDIA's drivers that do not work; made ones, whose calls fail."""

import ctypes

import pytest

from deploykit.errors import DeviceError
from deploykit.system.gpu import Gpu, find_gpu, need_gpu

#: In the words of NVIDIA's driver.
WORDS = {
    100: b"no CUDA-capable device is detected",
    803: b"system has unsupported display driver / cuda driver combination",
    999: b"unknown error",
}


@pytest.fixture
def failing(rtx_4070, monkeypatch):
    """Let a call of the driver's give an error."""
    load = ctypes.CDLL

    def fail(call, status):
        def tell_error(status, words):
            words._obj.value = WORDS.get(status)
            return 0 if status in WORDS else 1

        def load_failing(name, *arguments, **options):
            driver = load(name, *arguments, **options)
            setattr(driver, call, lambda *_: status)
            driver.cuGetErrorString = tell_error
            return driver

        monkeypatch.setattr("deploykit.system.gpu.ctypes.CDLL", load_failing)

    return fail


def refusal():
    assert find_gpu() is None
    with pytest.raises(DeviceError) as caught:
        need_gpu()
    assert ": deploykit doctor" in caught.value.hint
    return caught.value


def test_need_gpu_asks_the_driver(rtx_4070):
    assert need_gpu() == rtx_4070 == Gpu("NVIDIA GeForce RTX 4070", (8, 9), (13, 0))
    assert rtx_4070.target == "sm89"


def test_need_gpu_without_driver(no_gpu):
    error = refusal()
    assert "There is no NVIDIA driver on this machine" in error.message
    assert "Install NVIDIA's driver" in error.hint
    assert "--gpus all" in error.hint


@pytest.mark.parametrize(
    ("status", "message", "hint"),
    [
        (100, "no CUDA-capable device is detected (100)", "Unset CUDA_VISIBLE_DEVICES"),
        (803, "cuda driver combination (803)", "Restart the machine"),
        (999, "unknown error (999)", "update NVIDIA's driver"),
        (12345, "error 12345", "update NVIDIA's driver"),
    ],
)
def test_need_gpu_with_driver_that_does_not_start(failing, status, message, hint):
    failing("cuInit", status)
    error = refusal()
    assert error.message.startswith("The NVIDIA driver does not start: ")
    assert error.message.endswith(f"{message}.")
    assert hint in error.hint


@pytest.mark.parametrize(
    "call", ["cuDeviceGet", "cuDeviceGetName", "cuDriverGetVersion", "cuDeviceGetAttribute"]
)
def test_need_gpu_of_a_silent_driver(failing, call):
    failing(call, 999)
    assert "does not tell of its GPU" in refusal().message
    assert "unknown error (999)" in refusal().message
