import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")

from fake_cuda import FakeCuda, Faults

from deploykit.errors import DeviceError
from deploykit.runtime._cuda import DeviceBuffer, Event, PinnedBuffer, Stream


@pytest.fixture
def cuda(monkeypatch):
    """Put a fake GPU in the place of CUDA; the n-th call fails on demand."""

    def make(fail_at=None):
        fake = FakeCuda(Faults(fail_at))
        monkeypatch.setattr("deploykit.runtime._cuda.cudart", fake)
        return fake

    return make


def round_trip(values):
    """Copy to the device and back, as a graph that is replayed three times."""
    with (
        PinnedBuffer(values.shape, np.int32) as source,
        PinnedBuffer(values.shape, np.int32) as target,
        DeviceBuffer(values.nbytes) as device,
        Event() as done,
        Stream() as stream,
    ):

        def there_and_back():
            stream.copy_in(device, source, values.nbytes)
            stream.copy_out(target, device, values.nbytes)

        results = []
        with stream.capture(there_and_back) as graph:
            for i in range(3):
                source.array[:] = values + i
                target.array[:] = -1
                stream.replay(graph)
                done.record(stream)
                done.wait("copying")
                results.append(target.array.copy())
        return results


def check_round_trip():
    values = np.arange(12, dtype=np.int32).reshape(3, 4)
    for i, result in enumerate(round_trip(values)):
        assert np.array_equal(result, values + i)


def test_stream_captures_and_replays(cuda):
    fake = cuda()
    check_round_trip()
    assert not fake.ledger


@pytest.mark.gpu
def test_stream_captures_and_replays_on_a_gpu():
    check_round_trip()


def test_stream_copies_only_given_bytes(cuda):
    cuda()
    with (
        PinnedBuffer((4,), np.uint8) as source,
        PinnedBuffer((4,), np.uint8) as target,
        DeviceBuffer(4) as device,
        Event() as done,
        Stream() as stream,
    ):
        source.array[:] = [1, 2, 3, 4]
        target.array[:] = 9
        stream.copy_in(device, source, 4)
        stream.copy_out(target, device, 2)
        assert target.array.tolist() == [9, 9, 9, 9]
        done.record(stream)
        done.wait("copying")
        assert target.array.tolist() == [1, 2, 9, 9]


def test_device_buffer_out_of_memory(cuda):
    cuda(fail_at=1)
    with pytest.raises(DeviceError) as caught:
        DeviceBuffer(12_345)
    assert "12345 bytes on the GPU: cudaErrorMemoryAllocation, out of memory" in str(caught.value)
    assert "--max-batch" in caught.value.hint
    cuda(fail_at=1)
    with pytest.raises(DeviceError, match="24 bytes of pinned memory"):
        PinnedBuffer((2, 3), np.float32)


def test_cuda_resources_close_twice(cuda):
    fake = cuda()
    for resource in (DeviceBuffer(4), PinnedBuffer((4,), np.uint8), Event(), Stream()):
        resource.close()
        resource.close()
    assert not fake.ledger


def test_stream_closes_after_its_work(cuda):
    cuda()
    with (
        PinnedBuffer((1,), np.uint8) as target,
        DeviceBuffer(1) as device,
    ):
        target.array[:] = 9
        with Stream() as stream:
            stream.copy_out(target, device, 1)
        assert target.array[0] != 9


def test_stream_works_after_a_failed_capture(cuda):
    fake = cuda()
    with PinnedBuffer((1,), np.uint8) as target, DeviceBuffer(1) as device, Stream() as stream:

        def fail():
            stream.copy_out(target, device, 1)
            raise DeviceError("the network does not run")

        with pytest.raises(DeviceError, match="the network does not run"):
            stream.capture(fail)
        assert not [kind for kind, _ in fake.ledger if kind in {"recording", "graph"}]
        with stream.capture(lambda: stream.copy_out(target, device, 1)) as graph:
            stream.replay(graph)
    assert not fake.ledger


def test_cuda_failed_call_frees_everything(cuda):
    fake = cuda()
    check_round_trip()
    calls = list(enumerate(fake.faults.calls, start=1))
    for number, call in calls:
        fake = cuda(fail_at=number)
        with pytest.raises(DeviceError, match="cudaError"):
            check_round_trip()
        assert not fake.ledger, f"{call}, call {number}"


def test_device_buffer_close_keeps_the_first_error(cuda):
    fake = cuda()
    with pytest.raises(ValueError, match="the first"), DeviceBuffer(4):  # noqa: PT012
        fake.faults.at = 2
        raise ValueError("the first")
    assert fake.faults.calls == ["cudaMalloc", "cudaFree"]
    assert not fake.ledger


def test_stream_without_driver(no_gpu):
    from cuda.bindings import runtime

    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("there is a driver")
    with pytest.raises(DeviceError, match=r"making a stream: cudaError\w+, ") as caught:
        Stream()
    assert caught.value.hint
    assert caught.value.exit_code == 5
