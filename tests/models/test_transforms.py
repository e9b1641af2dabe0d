import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from deploykit.errors import ArchitectureError, DependencyError, InputError, UsageError
from deploykit.images.preprocess import preprocess
from deploykit.models.transforms import Transform, torchvision_transform, user_transform
from deploykit.specs.preprocessing import Preprocessing

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def test_torchvision_transform_of_recorded_preprocessing():
    recorded = Preprocessing(resize=12, crop_size=(8, 10), interpolation="lanczos")
    values = torchvision_transform(recorded)(PHOTO)
    assert (values.shape, values.dtype) == ((3, 8, 10), np.float32)
    stretched = torchvision_transform(Preprocessing(resize=(8, 10), mean=(0,) * 3, std=(1,) * 3))
    expected = np.asarray(PHOTO.resize((10, 8), Image.Resampling.BILINEAR)) / 255
    assert np.allclose(stretched(PHOTO).transpose(1, 2, 0), expected, atol=1e-6)


@pytest.mark.parametrize("grayscale", [False, True])
def test_torchvision_transform_without_antialiasing_gives_the_recorded_pixels(grayscale):
    recorded = Preprocessing(resize=12, crop_size=(8, 10), antialias=False, grayscale=grayscale)
    pixels = preprocess(PHOTO, recorded)
    expected = (pixels / 255 - recorded.mean) / recorded.std
    found = torchvision_transform(recorded)(PHOTO).transpose(1, 2, 0)
    assert np.abs(found - expected).max() < 1.01 / 255 / min(recorded.std)  # a rounding
    assert np.abs(found - expected).mean() < 1e-3


def test_transform_takes_arrays_and_tensors():
    for found in (
        np.ones((3, 2, 2)),
        torch.ones(3, 2, 2, dtype=torch.float64),
        torch.ones(3, 2, 2, requires_grad=True),
    ):
        values = Transform("made", lambda image, found=found: found)(PHOTO)
        assert (values.dtype, values.flags.c_contiguous, values.sum()) == (np.float32, True, 12)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (np.ones((2, 2, 3)), r"float64 of shape \(2, 2, 3\)"),
        (torch.ones(1, 3, 2, 2), r"float32 of shape \(1, 3, 2, 2\)"),
        (torch.ones(2, 2, 2), r"float32 of shape \(2, 2, 2\)"),
        (torch.ones(3, 2, 2).half(), r"float16 of shape \(3, 2, 2\)"),
        (torch.ones(3, 2, 2).bfloat16(), r"bfloat16 of shape \(3, 2, 2\)"),
        (np.ones((3, 2, 2), np.uint8), "uint8"),
        (np.full((3, 2, 2), np.nan), "NaN"),
        (np.ones((3, 0, 2)), r"\(3, 0, 2\)"),
        ({"image": np.ones((3, 2, 2))}, "type dict"),
        (None, "type NoneType"),
    ],
)
def test_transform_refuses_other_values(found, message):
    with pytest.raises(InputError, match=f"made gives .*{message}"):
        Transform("made", lambda image: found)(PHOTO)


def test_transform_leaves_the_image_unchanged():
    def spoil(image):
        image.paste(0, (0, 0, 30, 20))
        return np.zeros((3, 2, 2))

    before = np.array(PHOTO)
    Transform("made", spoil)(PHOTO)
    assert (np.asarray(PHOTO) == before).all()


CODE = """
import numpy as np

def direct(image):
    return np.full((3, 2, 2), image.width, np.float32)

def build():
    return direct

def with_default(image, size=2):
    return direct(image)

class Holder:
    transform = staticmethod(direct)

choice = {"val": direct}

def broken(image):
    raise KeyError("size")

def broken_build():
    raise KeyError("size")

def reads_data():
    from torch.utils.data import DataLoader
    return next(iter(DataLoader([1, 2])))

text = "no transform"
"""


@pytest.fixture
def code(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(CODE, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "name", ["direct", "build", "with_default", "Holder.transform", "choice.val"]
)
def test_user_transform_kinds(code, name):
    transform = user_transform(f"{code}:{name}")
    assert transform.name == f"{code}:{name}"
    assert (transform(PHOTO) == 30).all()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("choice", UsageError, "several transforms"),
        ("choice.train", UsageError, "There is no choice.train"),
        ("Direct", UsageError, "There is no Direct"),
        ("text", InputError, "of type str"),
        ("broken_build", InputError, r"fails when it is applied, at .*train.py:\d+: KeyError"),
        ("reads_data", InputError, "reads its data when it is applied"),
    ],
)
def test_user_transform_that_cannot_be_loaded(code, name, error, message):
    with pytest.raises(error, match=message) as caught:
        user_transform(f"{code}:{name}")
    assert caught.value.hint


def test_user_transform_of_a_missing_key(code):
    with pytest.raises(UsageError) as caught:
        user_transform(f"{code}:choice.vla")
    assert "val" in caught.value.hint


VARIABLES = """
import typing
from collections.abc import Callable
from typing import Optional

import numpy as np
from torchvision import transforms
from torchvision.transforms import Compose

Steps = Optional[list[Callable[[], int]]]
SIZE = 224
val_transform = Compose([transforms.ToTensor()])
data_transforms = {"val": val_transform, "size": 3}
_hidden = Compose([])

def make():
    return val_transform

def _helper():
    pass

class Preset:
    pass
"""


def test_user_transform_of_a_missing_name(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(VARIABLES, encoding="utf-8")
    with pytest.raises(UsageError, match="There is no nothere") as caught:
        user_transform(f"{path}:nothere")
    assert caught.value.hint == "It defines: val_transform, data_transforms.val, make, Preset."
    with pytest.raises(UsageError) as caught:
        user_transform(f"{path}:val_trafo")
    assert "val_transform" in caught.value.hint


def test_user_transform_that_fails_names_the_line(code):
    with pytest.raises(InputError, match=r"train.py:\d+: KeyError: 'size'"):
        user_transform(f"{code}:broken")(PHOTO)


def test_user_transform_without_name(code):
    with pytest.raises(UsageError, match="but not the transform in it"):
        user_transform(str(code))


def test_user_transform_in_a_script_that_trains(tmp_path):
    path = tmp_path / "script.py"
    path.write_text("from torch.utils.data import DataLoader\nnext(iter(DataLoader([1])))\n")
    with pytest.raises(ArchitectureError, match="reads its data when it is imported"):
        user_transform(f"{path}:transform")
    assert next(iter(DataLoader([1]))) == 1


def test_torchvision_transform_without_torchvision(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision.transforms", None)
    with pytest.raises(DependencyError, match="torchvision"):
        torchvision_transform(Preprocessing())
