"""What of a repository Triton would not load."""

import shutil

import pytest

from deploykit.commands.package.triton_config import check_repository, write_config
from deploykit.errors import InputError


@pytest.fixture(scope="module")
def written(tmp_path_factory, exported_bundle):
    """A right repository."""
    from deploykit.commands.package.request import PackageRequest
    from deploykit.commands.package.run import package_bundle

    folder = tmp_path_factory.mktemp("written") / "repository"
    package_bundle(exported_bundle, PackageRequest(format="triton", output=folder, preprocess=True))
    return folder


@pytest.fixture
def repository(written, tmp_path):
    """A copy to change."""
    return shutil.copytree(written, tmp_path / "repository")


def change(repository, model, old, new):
    config = repository / model / "config.pbtxt"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new, 1))


def test_check_repository_takes_what_was_written(repository):
    check_repository(repository)


@pytest.mark.parametrize(
    ("model", "old", "new", "message"),
    [
        ("colours", "max_batch_size", "most_images", r"config.pbtxt is no .*\d+:\d+"),
        ("colours", "TYPE_UINT8", "TYPE_UINT9", r"config.pbtxt is no .*\d+:\d+"),
        ("colours", '"colours"', '"birds"', "its configuration is that of 'birds'"),
        ("colours", "max_batch_size: 32", "max_batch_size: 4", "a warm-up of 8 images is above"),
        ("colours", "max_batch_size: 32", "max_batch_size: 0", "max_batch_size is 0"),
        (
            "colours",
            "max_queue_delay",
            "preferred_batch_size: 33 max_queue_delay",
            "a preferred batch of 33 is not within 1 to 32",
        ),
        ("colours", '"labels.txt"', '"other.txt"', "label file 'other.txt' is not there"),
        ("colours", '"labels.txt"', '"../colours/labels.txt"', "is not there"),
        ("colours", '"model.onnx"', '"../1/model.onnx"', "has no file"),
        ("colours", '"model.onnx"', '"net.onnx"', "version 1 has no file 'net.onnx'"),
        ("colours", "dims: 16", "dims: 0", "has the shape"),
        ("colours", 'name: "logits"', 'name: "probabilities"', "have the same name"),
        ("colours", "data_type: TYPE_UINT8", "", "has no type"),
        ("colours", 'key: "images"', 'key: "pixels"', "has the inputs"),
        ("colours", "batch_size: 8", "batch_size: 9", "needs 6912 bytes"),
        ("colours", "dims: 3\n  label", "dims: 4\n  label", "has 3 lines for 4 classes"),
        ("colours_image", '"colours_preprocess"', '"none"', "uses the model 'none'"),
        ("colours_image", 'key: "logits"', 'key: "loggits"', "has no loggits"),
        ("colours_image", 'value: "logits"', 'value: "other"', "no model gives its output"),
        ("colours_image", "TYPE_STRING", "TYPE_UINT8", "is not given what its 'image' takes"),
        ("colours_image", "max_batch_size: 32", "max_batch_size: 64", "is above that of"),
    ],
)
def test_check_repository_finds(model, old, new, message, repository):
    change(repository, model, old, new)
    with pytest.raises(InputError, match=message):
        check_repository(repository)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("colours/1/model.onnx", "version 1 has no file 'model.onnx'"),
        ("colours/labels.txt", "label file"),
        ("colours/warmup/golden-images", "bytes of 'golden-images'"),
        ("colours/config.pbtxt", "cannot be read"),
        ("colours_preprocess/1/model.py", "version 1 has no file 'model.py'"),
    ],
)
def test_check_repository_misses(path, message, repository):
    (repository / path).unlink()
    with pytest.raises(InputError, match=message):
        check_repository(repository)


def test_check_repository_without_a_version_or_a_model(repository, tmp_path):
    shutil.rmtree(repository / "colours" / "1")
    with pytest.raises(InputError, match="it has no version"):
        check_repository(repository)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no model"):
        check_repository(tmp_path / "empty")


def test_write_config_escapes(tmp_path):
    write_config(tmp_path, {"name": 'a"b\n}', "max_batch_size": 1})
    assert r"a\"b\n}" in (tmp_path / "config.pbtxt").read_text()
