"""Checkpoints in several files, which an index names."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from deploykit.bundle.checkpoint_files import checkpoint_sha256
from deploykit.errors import CheckpointError
from deploykit.models.checkpoint import read_weights
from deploykit.models.contents import read_contents

FIRST = {"conv.weight": torch.arange(6.0).reshape(2, 3)}
SECOND = {"fc.weight": torch.ones(4, 2), "fc.bias": torch.zeros(4)}


def sharded(folder: Path, ending: str = "safetensors", stem: str = "model") -> Path:
    """Write two shards and their index, whose path it returns."""
    names = [f"{stem}-0000{number}-of-00002.{ending}" for number in (1, 2)]
    for name, state in zip(names, (FIRST, SECOND), strict=True):
        if ending == "safetensors":
            safetensors.torch.save_file(state, folder / name)
        else:
            torch.save(state, folder / name)
    weight_map = dict.fromkeys(FIRST, names[0]) | dict.fromkeys(SECOND, names[1])
    return write_index(folder / f"{stem}.{ending}.index.json", weight_map)


def write_index(path: Path, weight_map: object) -> Path:
    content = {"metadata": {"total_size": 72}, "weight_map": weight_map}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def refusal(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(("ending", "stem"), [("safetensors", "model"), ("bin", "pytorch_model")])
def test_read_weights_joins_shards(tmp_path: Path, ending: str, stem: str) -> None:
    path = sharded(tmp_path, ending, stem)
    (weights,) = read_weights(path)
    assert weights.state_dict.keys() == {*FIRST, *SECOND}
    for name, tensor in {**FIRST, **SECOND}.items():
        assert torch.equal(weights.state_dict[name], tensor)
    contents = read_contents(path)
    assert contents.container == "shards"
    assert contents.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())


def test_read_weights_of_one_shard_names_the_index(tmp_path: Path) -> None:
    path = sharded(tmp_path)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    error = refusal(shard)
    assert "is one of 2 shards" in error.message
    assert error.hint == f"Name the index, which joins them: {path}"
    path.unlink()
    assert "download all shards and model.safetensors.index.json" in refusal(shard).hint


def test_read_weights_of_the_only_shard(tmp_path: Path) -> None:
    path = tmp_path / "model-00001-of-00001.safetensors"
    safetensors.torch.save_file(FIRST, path)
    assert read_weights(path)[0].state_dict.keys() == FIRST.keys()


def test_read_weights_of_an_index_without_a_shard(tmp_path: Path) -> None:
    path = sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    message = refusal(path).message
    assert "1 of its 2 shards are not in its folder: model-00002-of-00002" in message


@pytest.mark.parametrize(
    "shard", ["../secret.pth", "/etc/passwd", "a/b.pth", "..", "", ".", "C:x.pth", "a\\b", "i.json"]
)
def test_read_weights_of_an_index_that_leaves_its_folder(tmp_path: Path, shard: str) -> None:
    torch.save(FIRST, tmp_path / "secret.pth")
    folder = tmp_path / "given"
    folder.mkdir()
    path = write_index(folder / "i.json.index.json", {"conv.weight": shard})
    assert "which is no weights' file in its folder" in refusal(path).message


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"weight_map": {"a": 1}}', b"[" * 100_000, b"\xff{}"]
)
def test_read_weights_of_a_damaged_index(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(content)
    assert "is no index of shards" in refusal(path).message


def test_read_weights_of_an_index_beyond_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sharded(tmp_path)
    monkeypatch.setattr("deploykit.bundle.checkpoint_files._MAX_INDEX_BYTES", 10)
    assert "cannot be read: it has more than 10 bytes" in refusal(path).message


def test_checkpoint_sha256_of_a_file_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    path = sharded(tmp_path)
    monkeypatch.setattr("deploykit.bundle.checkpoint_files.sha256_of", refuse)
    with pytest.raises(CheckpointError) as caught:
        checkpoint_sha256(path)
    assert caught.value.message == f"{path} cannot be read: Permission denied."
    assert "may be read" in caught.value.hint


def test_read_weights_of_a_shard_without_its_tensor(tmp_path: Path) -> None:
    torch.save(FIRST, tmp_path / "a.pth")
    path = write_index(tmp_path / "model.bin.index.json", {"fc.weight": "a.pth"})
    assert "a.pth lacks 'fc.weight', which model.bin.index.json names" in refusal(path).message


def test_checkpoint_sha256_covers_shards(tmp_path: Path) -> None:
    path = sharded(tmp_path)
    before = checkpoint_sha256(path)
    changed = {**SECOND, "fc.bias": torch.ones(4)}
    safetensors.torch.save_file(changed, tmp_path / "model-00002-of-00002.safetensors")
    assert checkpoint_sha256(path) != before
