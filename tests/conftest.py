"""Fixtures that several folders share, and which marked tests run here."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fp16_networks import export_network
from made_engines import MadeEngines
from PIL import Image

from deploykit.bundle.folder import Bundle, open_bundle
from deploykit.commands.build.run import BuildResult, build_engine
from deploykit.commands.export.request import ExportRequest
from deploykit.commands.export.run import export_bundle
from deploykit.engine.flavour import open_flavour
from deploykit.specs.engine import TensorRT
from deploykit.specs.preprocessing_options import PreprocessingOptions
from deploykit.system.gpu import DRIVER_LIBRARY, Gpu

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell's background jobs ignore Ctrl+C, and the tests of it would wait in vain.
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: A user's own file: a small network that tells colours apart, and what tests need beside it.
NETWORK = '''
import torch
from torch import nn


class Net(nn.Module):
    """Two convolutions and a linear layer, for 16x16 images."""

    def __init__(self, num_classes, width=8):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class RandomNet(Net):
    """Makes a fresh layer in its forward, as one tutorial does."""

    def forward(self, x):
        fresh = nn.Conv2d(3, 3, 1)
        return super().forward(fresh(x))


class MixingNet(Net):
    """Answers with respect to the other images of the batch."""

    def forward(self, x):
        return super().forward(x - x.mean(0, keepdim=True))


class PairNet(Net):
    """Answers with more than the logits."""

    def forward(self, x):
        return super().forward(x), x
'''
CLASSES = ("blue", "green", "red")
SMALL = PreprocessingOptions(input_size=(16, 16))


def pytest_configure(config: pytest.Config) -> None:
    """Make a run quicker that does what it always did."""
    if not hasattr(config, "workerinput"):
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the other workers have the other cores
    import torch

    torch.set_num_threads(1)
    with contextlib.suppress(ImportError):  # torch's own, and it may move
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        # torch parses the source of 500 functions in each export: more than half of its time here.
        ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    try:
        ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no NVIDIA driver on this machine"))


@pytest.fixture(autouse=True)
def exact_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """INT8 graphs are made and chosen as on a CPU with VNNI, on whichever CPU the tests run."""
    for module in ("commands.quantize.request", "commands.quantize.run", "inference.candidates"):
        monkeypatch.setattr(f"deploykit.{module}.saturates_int8", lambda cpu: False)


class SameTimes(dict[str, float]):
    """1 ms for each node that is asked for."""

    def get(self, name: str, default: object = None) -> float:
        return 1.0


@pytest.fixture(autouse=True)
def same_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a search each node takes as long as any other: networks of microseconds are all noise."""
    times = SameTimes(any=1.0)
    monkeypatch.setattr(
        "deploykit.commands.quantize.int8.node_milliseconds", lambda graph, feeds: times
    )


@pytest.fixture
def no_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without the extra ``openvino``."""
    monkeypatch.setitem(sys.modules, "openvino", None)


@pytest.fixture
def posix_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are shown as a POSIX shell takes them, which ``shlex`` reads on every system."""
    monkeypatch.setattr("deploykit.system.text.os", SimpleNamespace(name="posix"))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without an NVIDIA driver, wherever the test runs."""
    put_driver(monkeypatch, None)


@pytest.fixture
def rtx_4070(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A machine whose driver tells of this GPU, on which nothing can run."""
    gpu = Gpu("NVIDIA GeForce RTX 4070", (8, 9), (13, 0))
    put_driver(monkeypatch, gpu)
    return gpu


def put_driver(monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None) -> None:
    """Let NVIDIA's driver, and no other library, be one that tells of a GPU, or be missing."""
    load = ctypes.CDLL

    def load_other(name: str, *arguments: Any, **options: Any) -> Any:
        if name != DRIVER_LIBRARY:
            return load(name, *arguments, **options)
        if gpu is None:
            raise OSError(f"{name}: cannot open shared object file")
        return made_driver(gpu)

    monkeypatch.setattr("deploykit.system.gpu.ctypes.CDLL", load_other)


def made_driver(gpu: Gpu) -> SimpleNamespace:
    """What :mod:`deploykit.system.gpu` asks of the driver; 0 is success."""

    def tell_name(buffer: Any, size: int, device: Any) -> int:
        buffer.value = gpu.name.encode()
        return 0

    def tell_version(version: Any) -> int:
        major, minor = gpu.cuda_version
        version._obj.value = 1000 * major + 10 * minor
        return 0

    def tell_attribute(value: Any, attribute: int, device: Any) -> int:
        major, minor = 75, 76
        value._obj.value = gpu.compute_capability[(major, minor).index(attribute)]
        return 0

    return SimpleNamespace(
        cuInit=lambda flags: 0,
        cuDeviceGet=lambda device, ordinal: 0,
        cuDeviceGetName=tell_name,
        cuDriverGetVersion=tell_version,
        cuDeviceGetAttribute=tell_attribute,
    )


@pytest.fixture(scope="session")
def rtx() -> TensorRT:
    """TensorRT for RTX, which builds on a CPU."""
    pytest.importorskip("tensorrt_rtx")
    return open_flavour("tensorrt_rtx")


@pytest.fixture(scope="session")
def network_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's own ``networks.py``."""
    path = tmp_path_factory.mktemp("code") / "networks.py"
    path.write_text(NETWORK, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 noisy pictures of odd sizes, in folders named after their dominant colour."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for channel, name in ((2, "blue"), (1, "green"), (0, "red")):
        (root / name).mkdir()
        for i in range(15):
            height, width = rng.integers(17, 60, 2)
            pixels = rng.integers(0, 120, (height, width, 3))
            pixels[..., channel] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:02}.png")
    return root


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, network_file: Path) -> Path:
    """``best_model.pth`` of ``networks.py:Net``, whose answer is the dominant colour."""
    import torch

    from deploykit.models.registry import resolve_architecture

    torch.manual_seed(0)
    module = resolve_architecture(f"{network_file}:Net", allow_user_code=True).build(len(CLASSES))
    with torch.no_grad():
        # Channel i of the features becomes colour i's mean, and class i's logit its excess.
        for layer in (module.features[0], module.features[3]):
            layer.weight.mul_(0.05)
            layer.bias.fill_(0.5)
        for i, channel in enumerate((2, 1, 0)):
            module.features[0].weight[i, channel, 1, 1] = 1.0
            module.features[3].weight[i, i, 1, 1] = 1.0
        module.head.weight.mul_(0.1)
        for i in range(3):
            module.head.weight[i, i] += 2.0
    path = tmp_path_factory.mktemp("training") / "best_model.pth"
    torch.save(module.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def exported_bundle(
    tmp_path_factory: pytest.TempPathFactory,
    network_file: Path,
    checkpoint: Path,
    photo_folder: Path,
) -> Bundle:
    """A bundle of ``networks.py:Net``; tests that change it copy it first."""
    request = ExportRequest(
        arch=f"{network_file}:Net",
        checkpoint=checkpoint,
        classes=str(photo_folder),
        preprocessing=SMALL,
        name="colours",
        artifacts=tmp_path_factory.mktemp("artifacts"),
    )
    return export_bundle(request).bundle


@pytest.fixture(scope="session")
def built_engine(
    tmp_path_factory: pytest.TempPathFactory, exported_bundle: Bundle, rtx: TensorRT
) -> BuildResult:
    """What ``build-trt`` made of that bundle without a GPU; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("engines") / "colours"
    shutil.copytree(exported_bundle.folder, folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        put_driver(monkeypatch, None)
        return build_engine(open_bundle(folder))


@pytest.fixture
def bundle(tmp_path, exported_bundle):
    """A copy of the exported bundle that a test may change."""
    folder = tmp_path / "colours"
    shutil.copytree(exported_bundle.folder, folder)
    return open_bundle(folder)


@pytest.fixture
def engine_bundle(tmp_path, built_engine):
    """A copy of the bundle with an engine that a test may change."""
    folder = tmp_path / "engines" / "colours"
    shutil.copytree(built_engine.bundle.folder, folder)
    return open_bundle(folder)


@pytest.fixture
def engines(monkeypatch, rtx_4070, exported_bundle):
    """Engines of that bundle open on a GPU, and answer rightly."""
    made = MadeEngines(exported_bundle, rtx_4070)
    monkeypatch.setattr("deploykit.inference.engines.open_engine", made)
    return made


@pytest.fixture(scope="session")
def export_toy(tmp_path_factory, photo_folder):
    """Export a network of ``fp16_networks``, each once."""

    @functools.cache
    def export(name):
        return export_network(name, photo_folder, tmp_path_factory.mktemp(name))

    return export


@pytest.fixture
def toy(tmp_path, export_toy):
    """Copy a bundle of a network of ``fp16_networks``, to change it."""

    def copy(name):
        folder = tmp_path / "toys" / name.lower()
        shutil.copytree(export_toy(name).folder, folder)
        return open_bundle(folder)

    return copy


@pytest.fixture
def no_onnx(monkeypatch):
    """An installation without the extra ``graph``."""
    for name in [name for name in sys.modules if name.startswith("deploykit.graph")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
