"""A CUDA runtime without a GPU, as honest as its tests need it.

What is put into a stream happens when somebody waits for it, in order, so that a wait that is
missing shows as wrong numbers. A ledger knows what is allocated, so that a leak shows, and so does
the use of what was freed. The n-th call of all fails on demand.
"""

# ruff: noqa: N802, N815 -- the names are CUDA's

import ctypes
import itertools

import numpy as np
from cuda.bindings import runtime as real

SUCCESS = real.cudaError_t.cudaSuccess
FAILURE = real.cudaError_t.cudaErrorMemoryAllocation
INVALIDATED = real.cudaError_t.cudaErrorStreamCaptureInvalidated


class Faults:
    """Counts the calls and says which one fails.

    Args:
        at: The number of the call that fails, from 1; None for none.
    """

    def __init__(self, at=None):
        self.at = at
        self.calls = []

    def strike(self, call):
        self.calls.append(call)
        return len(self.calls) == self.at


class Stream:
    def __init__(self):
        self.pending = []
        self.recording = None
        self.spoilt = False

    def add(self, work):
        (self.pending if self.recording is None else self.recording).append(work)

    def run(self, count=None):
        work = self.pending[:count]
        self.pending = self.pending[len(work) :]
        for each in work:
            each()


class FakeCuda:
    """Takes the place of ``cuda.bindings.runtime``."""

    cudaError_t = real.cudaError_t
    cudaMemcpyKind = real.cudaMemcpyKind
    cudaStreamCaptureMode = real.cudaStreamCaptureMode
    cudaStreamNonBlocking = real.cudaStreamNonBlocking
    cudaEventBlockingSync = real.cudaEventBlockingSync
    cudaEventDisableTiming = real.cudaEventDisableTiming
    cudaHostAllocDefault = real.cudaHostAllocDefault
    cudaGetErrorString = staticmethod(real.cudaGetErrorString)

    def __init__(self, faults=None):
        self.faults = faults or Faults()
        self.ledger = {}
        self.freed = []
        self.last_error = SUCCESS
        self._numbers = itertools.count(1)

    def bytes_at(self, address):
        """The memory that begins at an address, which must be allocated."""
        kinds = [kind for kind, where in self.ledger if where == address and kind in MEMORY]
        assert kinds, f"{address:#x} is not allocated"
        return self.ledger[kinds[0], address]

    def stream(self, handle):
        return self.ledger["stream", int(handle)]

    def cudaGetLastError(self):
        error, self.last_error = self.last_error, SUCCESS
        return (error,)

    # Memory

    def cudaMalloc(self, size):
        assert size > 0
        if self.faults.strike("cudaMalloc"):
            return FAILURE, None
        address = 0xD0000000 + 4096 * next(self._numbers)
        self.ledger["device", address] = np.full(size, 0xCD, np.uint8)
        return SUCCESS, address

    def cudaHostAlloc(self, size, flags):
        if self.faults.strike("cudaHostAlloc"):
            return FAILURE, None
        memory = (ctypes.c_ubyte * size)()
        address = ctypes.addressof(memory)
        self.ledger["pinned", address] = np.frombuffer(memory, np.uint8)
        return SUCCESS, address

    def cudaFree(self, address):
        return self._free("cudaFree", "device", address)

    def cudaFreeHost(self, address):
        # Kept alive, or an array that somebody still has would crash the test instead of failing.
        self.freed.append(self.ledger["pinned", address])
        return self._free("cudaFreeHost", "pinned", address)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        if self.faults.strike("cudaMemcpyAsync"):
            return (FAILURE,)
        sides = {
            real.cudaMemcpyKind.cudaMemcpyHostToDevice: ("pinned", "device"),
            real.cudaMemcpyKind.cudaMemcpyDeviceToHost: ("device", "pinned"),
        }[kind]
        assert (sides[0], source) in self.ledger
        assert (sides[1], target) in self.ledger

        def copy():
            self.bytes_at(target)[:size] = self.bytes_at(source)[:size]

        self.stream(stream).add(copy)
        return (SUCCESS,)

    # Streams and events

    def cudaStreamCreateWithFlags(self, flags):
        assert flags == real.cudaStreamNonBlocking
        if self.faults.strike("cudaStreamCreateWithFlags"):
            return FAILURE, None
        return SUCCESS, real.cudaStream_t(self._new("stream", Stream()))

    def cudaStreamSynchronize(self, stream):
        self.stream(stream).run()
        return (FAILURE if self.faults.strike("cudaStreamSynchronize") else SUCCESS,)

    def cudaStreamDestroy(self, stream):
        assert self.stream(stream).recording is None
        return self._free("cudaStreamDestroy", "stream", int(stream))

    def cudaEventCreateWithFlags(self, flags):
        if self.faults.strike("cudaEventCreateWithFlags"):
            return FAILURE, None
        return SUCCESS, real.cudaEvent_t(self._new("event", None))

    def cudaEventRecord(self, event, stream):
        if self.faults.strike("cudaEventRecord"):
            return (FAILURE,)
        queue = self.stream(stream)

        def reached():
            self.ledger["event", int(event)] = None

        self.ledger["event", int(event)] = queue
        queue.add(reached)
        return (SUCCESS,)

    def cudaEventSynchronize(self, event):
        while (queue := self.ledger["event", int(event)]) is not None:
            queue.run(count=1)
        return (FAILURE if self.faults.strike("cudaEventSynchronize") else SUCCESS,)

    def cudaEventDestroy(self, event):
        return self._free("cudaEventDestroy", "event", int(event))

    # Graphs

    def cudaStreamBeginCapture(self, stream, mode):
        assert mode == real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        if self.faults.strike("cudaStreamBeginCapture"):
            return (FAILURE,)
        self.stream(stream).recording = []
        return (SUCCESS,)

    def cudaStreamEndCapture(self, stream):
        queue = self.stream(stream)
        recording, queue.recording = queue.recording, None
        spoilt, queue.spoilt = queue.spoilt, False
        if self.faults.strike("cudaStreamEndCapture") or spoilt:
            self.last_error = INVALIDATED
            return INVALIDATED, None
        return SUCCESS, real.cudaGraph_t(self._new("recording", recording))

    def cudaGraphInstantiate(self, recording, flags):
        if self.faults.strike("cudaGraphInstantiate"):
            return FAILURE, None
        work = self.ledger["recording", int(recording)]
        return SUCCESS, real.cudaGraphExec_t(self._new("graph", work))

    def cudaGraphLaunch(self, graph, stream):
        if self.faults.strike("cudaGraphLaunch"):
            return (FAILURE,)
        for work in self.ledger["graph", int(graph)]:
            self.stream(stream).add(work)
        return (SUCCESS,)

    def cudaGraphDestroy(self, recording):
        return self._free("cudaGraphDestroy", "recording", int(recording))

    def cudaGraphExecDestroy(self, graph):
        return self._free("cudaGraphExecDestroy", "graph", int(graph))

    def _new(self, kind, content):
        number = next(self._numbers)
        self.ledger[kind, number] = content
        return number

    def _free(self, call, kind, number):
        """Free, even when it answers with an error: CUDA tells here what failed earlier."""
        del self.ledger[kind, number]
        return (FAILURE if self.faults.strike(call) else SUCCESS,)


MEMORY = ("device", "pinned")
