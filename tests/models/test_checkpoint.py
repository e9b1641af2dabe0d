import argparse
import collections
import datetime as dt
import functools
import os
import pathlib
import pickle
import types
import uuid
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError
from deploykit.models import checkpoint
from deploykit.models.checkpoint import Weights

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.tensor([0.5, -1.0])}
TINY = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2, 2))


def read_weights(path: Path, *, trust_pickle: bool = False) -> Weights:
    """The first set of weights in a file."""
    return checkpoint.read_weights(path, trust_pickle=trust_pickle)[0]


def saved(content: object, folder: Path, **options: object) -> Path:
    path = folder / "best.pth"
    torch.save(content, path, **options)
    return path


def assert_state(weights: Weights, expected: dict[str, Tensor] = STATE) -> None:
    assert list(weights.state_dict) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(weights.state_dict[name], tensor)


def refusal(path: Path, **options: bool) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_weights(path, **options)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("zipped", [True, False])
def test_read_weights_of_a_plain_state_dict(tmp_path: Path, zipped: bool) -> None:
    path = saved(STATE, tmp_path, _use_new_zipfile_serialization=zipped)
    weights = read_weights(path)
    assert_state(weights)
    assert weights.notes == ()


def test_read_weights_of_a_non_ascii_file_name(tmp_path: Path) -> None:
    folder = tmp_path / "鸟类"
    folder.mkdir()
    assert_state(read_weights(saved(STATE, folder)))


def test_read_weights_of_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    safetensors.torch.save_file(STATE, path)
    assert set(read_weights(path).state_dict) == set(STATE)


@pytest.mark.parametrize(
    ("content", "entry"),
    [
        ({"state_dict": STATE, "epoch": 3}, "state_dict"),
        ({"epoch": 3, "acc": torch.tensor(0.9), "model_state_dict": STATE}, "model_state_dict"),
        ({"checkpoint": {"net": {"params": STATE}}}, "checkpoint.net.params"),
        ({"my_birds": STATE, "lr": 1e-4}, "my_birds"),
        ([3, STATE], "1"),
    ],
)
def test_read_weights_finds_wrapped_weights(tmp_path: Path, content: object, entry: str) -> None:
    weights = read_weights(saved(content, tmp_path))
    assert_state(weights)
    assert weights.notes == (f"taken from the entry '{entry}'",)


def test_read_weights_skips_the_optimizer(tmp_path: Path) -> None:
    module = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    path = saved({"optimizer": optimizer.state_dict(), "model": module.state_dict()}, tmp_path)
    assert set(read_weights(path).state_dict) == {"weight", "bias"}


def test_read_weights_prefers_trained_to_average(tmp_path: Path) -> None:
    average = {name: tensor + 1 for name, tensor in STATE.items()}
    weights = read_weights(saved({"model_ema": average, "model": STATE}, tmp_path))
    assert_state(weights)
    assert weights.name == "model"


def test_read_weights_has_every_set(tmp_path: Path) -> None:
    average = {name: tensor + 1 for name, tensor in STATE.items()}
    nested = {**STATE, "ema": average, "_extra_state": {"scale": torch.ones(1)}}
    sets = checkpoint.read_weights(saved(nested, tmp_path))
    assert [each.name for each in sets] == ["", "ema", "_extra_state"]
    assert_state(sets[0])
    assert_state(sets[1], average)


def test_read_weights_beside_loss_centers(tmp_path: Path) -> None:
    content = {"state_dict": STATE, "centers": torch.ones(4, 2)}
    assert [each.name for each in checkpoint.read_weights(saved(content, tmp_path))] == [
        "state_dict"
    ]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "module.module."])
def test_read_weights_removes_wrapper_prefixes(tmp_path: Path, prefix: str) -> None:
    wrapped = {f"{prefix}{name}": tensor for name, tensor in STATE.items()}
    weights = read_weights(saved(wrapped, tmp_path))
    assert_state(weights)
    assert weights.notes == (f"prefix '{prefix}' removed",)


def test_read_weights_keeps_a_partial_prefix(tmp_path: Path) -> None:
    mixed = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert_state(read_weights(saved(mixed, tmp_path)), mixed)


def test_read_weights_of_an_averaged_model(tmp_path: Path) -> None:
    average = torch.optim.swa_utils.AveragedModel(TINY)
    weights = read_weights(saved(average.state_dict(), tmp_path))
    assert list(weights.state_dict) == list(TINY.state_dict())
    assert weights.notes[0] == "entry 'n_averaged' of an averaged model skipped"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_read_weights_of_other_precisions(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"w": torch.tensor([0.1, 3.0], dtype=dtype), "n": torch.tensor(7)}
    weights = read_weights(saved(state, tmp_path))
    assert_state(weights, state)  # load_state_dict converts those of the set that is chosen
    name = str(dtype).removeprefix("torch.")
    assert weights.notes == (f"{name} weights converted to float32",)


def test_read_weights_skips_other_entries(tmp_path: Path) -> None:
    weights = read_weights(saved({**STATE, "version": 2}, tmp_path))
    assert_state(weights)
    assert weights.notes == ("skipped what is no tensor: version",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"run": functools.partial(print), "model": STATE}, "functools.partial"),
        ({"args": argparse.Namespace(func=os.getcwd), "model": STATE}, f"{os.name}.getcwd"),
        (TINY, "torch.nn.modules.container.Sequential"),
    ],
)
def test_read_weights_refuses_code(
    tmp_path: Path, content: object, named: str, zipped: bool
) -> None:
    path = saved(content, tmp_path, _use_new_zipfile_serialization=zipped)
    error = refusal(path)
    assert f"would run code ({named}" in error.message
    assert "torch.save(model.state_dict()" in error.hint
    assert "--trust-pickle" in error.hint


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "beside",
    [
        [np.float64(0.9), np.int64(3), np.float32(0.5), np.bool_(1), np.float64],
        [np.arange(4.0), np.zeros(2, [("a", "f4")]), np.array(["a", None]), np.dtype("f4")],
        [np.random.default_rng(0), np.random.RandomState(0)],
        [np.datetime64("2026-11-29"), dt.datetime.now(dt.UTC), dt.timedelta(1)],
        argparse.Namespace(lr=0.1, out=pathlib.Path("runs/1"), best=np.float64(0.9)),
        types.SimpleNamespace(lr=0.1),
        collections.defaultdict(list, loss=[0.3, 0.2]),
        [collections.OrderedDict(lr=0.1), collections.Counter("ab"), collections.deque([1])],
        [torch.device("cpu"), torch.Size([1]), torch.float16, torch.get_rng_state()],
        [b"a", bytearray(b"a"), {1}, frozenset({1}), 1j, 2**100, uuid.UUID(int=1), range(3)],
    ],
)
def test_read_weights_beside_harmless_objects(
    tmp_path: Path, beside: object, zipped: bool, protocol: int
) -> None:
    content = {"beside": beside, "model": STATE}
    options = {"_use_new_zipfile_serialization": zipped, "pickle_protocol": protocol}
    assert_state(read_weights(saved(content, tmp_path, **options)))


def test_read_weights_beside_keys_that_are_no_names(tmp_path: Path) -> None:
    keys = (1, (2, 3), None, "fc.weight\x1b[31m")
    weights = read_weights(saved({**dict.fromkeys(keys, torch.ones(3)), **STATE}, tmp_path))
    assert_state(weights)
    assert weights.notes == ("skipped 4 tensors whose keys are no names",)


@pytest.mark.parametrize(
    ("written", "elsewhere"),
    [
        (b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"),  # by numpy 1
        (b"cpathlib\nPosixPath\n", b"cpathlib\nWindowsPath\n"),
        (b"cpathlib\nPosixPath\n", b"cpathlib._local\nPosixPath\n"),  # by Python 3.13
    ],
)
def test_read_weights_beside_objects_of_other_systems(
    tmp_path: Path, written: bytes, elsewhere: bytes
) -> None:
    content = {"acc": np.float64(0.9), "out": pathlib.PurePosixPath("runs"), "model": STATE}
    path = saved(content, tmp_path, _use_new_zipfile_serialization=False)
    data = path.read_bytes().replace(b"PurePosixPath\n", b"PosixPath\n")
    if b"pathlib._local" in data:  # this Python writes the newer name
        data = data.replace(b"pathlib._local", b"pathlib")
    assert written in data
    path.write_bytes(data.replace(written, elsewhere))
    assert_state(read_weights(path))


def test_read_weights_makes_no_numpy_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved({"best_acc": np.float64(0.9), **STATE}, tmp_path)
    # dtype() trusts the flags in a file: whoever crafts them chooses what memory is read.
    monkeypatch.setattr(np, "dtype", None)
    monkeypatch.setattr(np._core.multiarray, "scalar", None)
    assert read_weights(path).notes == ("skipped what is no tensor: best_acc",)


def test_read_weights_of_a_harmless_object_alone(tmp_path: Path) -> None:
    error = refusal(saved(argparse.Namespace(lr=0.1), tmp_path))
    assert "holds an object of type argparse.Namespace, not weights" in error.message


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.filterwarnings("ignore:Sparse invariant")  # torch 2.11, on reading
def test_read_weights_refuses_sparse_weights(tmp_path: Path) -> None:
    sparse = torch.eye(3).to_sparse()
    error = refusal(saved({"w": sparse, "v": torch.zeros(2)}, tmp_path))
    assert "no network can be given: w is sparse." in error.message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "loss": torch.tensor(0.1)}, "holds no weights; its entries: epoch, loss"),
        ({}, "holds no weights; its entries: none"),
        (torch.optim.SGD([torch.zeros(1)]).state_dict(), "an optimizer's state"),
        (torch.zeros(3), "type Tensor, not weights"),
        (3, "type int, not weights"),
    ],
)
def test_read_weights_of_files_without_weights(
    tmp_path: Path, content: object, message: str
) -> None:
    assert message in refusal(saved(content, tmp_path)).message


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_read_weights_of_truncated_files(tmp_path: Path, kind: str, keep: float) -> None:
    path = tmp_path / "best.pth"
    state = {"weight": torch.randn(64, 64)}
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    error = refusal(path)
    assert "cut short or damaged" in error.message
    assert "again" in error.hint


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.pth", b"\xff\xd8\xff\xe0JFIF", "a JPEG image"),
        ("a.pth", b"\n<!DOCTYPE html><html>", "a web page"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("a.pth", b"\x08\x08\x12\x07pytorch", "an ONNX graph"),
        ("a.onnx", b"\x0a\x03abc", "an ONNX graph"),
        ("saved_model.pb", b"\x08\x01\x10\x01", "a TensorFlow graph"),
        ("a.pth", b"\x1c\x00\x00\x00TFL3", "a TensorFlow Lite model"),
        ("a.pth", b"\x1f\x8b\x08\x00", "a gzip archive"),
        ("a.pth", b"x" * 257 + b"ustar", "a tar archive"),
        ("a.engine", b"ftrt\x00\x00", "a TensorRT engine"),
        ("a.pth", pickle.dumps(STATE), "a pickle that torch.save did not write"),
        ("a.pth", b"hello world", "an unknown kind of file (it starts with b'hello wo')"),
    ],
)
def test_read_weights_names_foreign_files(
    tmp_path: Path, name: str, content: bytes, kind: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    error = refusal(path)
    assert f"{path} is not a PyTorch checkpoint: it is {kind}" in error.message


@pytest.mark.parametrize(
    ("member", "kind"),
    [
        ("model/constants.pkl", "a TorchScript archive"),
        ("model/archive_format", "a program that torch.export saved"),
        ("holiday/001.jpg", "a zip archive that torch.save did not write"),
    ],
)
def test_read_weights_names_foreign_archives(tmp_path: Path, member: str, kind: str) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"")
    assert kind in refusal(path).message


def test_read_weights_names_torch_export_archives(tmp_path: Path) -> None:
    path = tmp_path / "program.pt2"
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), path)
    assert "torch.export" in refusal(path).message


def test_read_weights_of_missing_or_empty_file_or_folder(tmp_path: Path) -> None:
    assert "There is no checkpoint" in refusal(tmp_path / "lost.pth").message
    saved(STATE, tmp_path)
    assert refusal(tmp_path / "lost.pth").hint == "There is: best.pth."
    assert "is a folder" in refusal(tmp_path).message
    empty = tmp_path / "empty.pth"
    empty.touch()
    assert "is empty" in refusal(empty).message


def test_read_weights_in_a_folder_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    path = saved(STATE, tmp_path)
    monkeypatch.setattr(Path, "is_dir", refuse)
    assert refusal(path).message == f"{path} cannot be read: Permission denied."


def test_read_weights_of_a_pipe(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(tmp_path / "best.pth")
    assert "is a device or a pipe" in refusal(tmp_path / "best.pth").message
