import pytest

from deploykit.errors import UsageError
from deploykit.specs.model import Labels
from deploykit.specs.prediction import Prediction
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.value import Value


def test_values_are_frozen():
    """A struct that inherits from a frozen one is not frozen by itself."""
    import deploykit.bundle.manifest
    import deploykit.bundle.verdicts
    import deploykit.specs.session  # noqa: F401 - defines values

    values = Value.__subclasses__()
    assert len(values) > 10
    assert all(cls.__struct_config__.frozen for cls in values)
    assert all(cls.__struct_config__.forbid_unknown_fields for cls in values)


def test_preprocessing_input_size():
    assert Preprocessing(resize=256, crop_size=(224, 200)).input_size == (224, 200)
    assert Preprocessing(resize=(96, 128)).input_size == (96, 128)


def test_preprocessing_resize_needs_a_crop():
    with pytest.raises(UsageError, match="different shapes"):
        Preprocessing(resize=256)


@pytest.mark.parametrize(
    "values", [{"mean": (123.7, 116.3, 103.5)}, {"std": (58.4, 57.1, 57.4)}], ids=["mean", "std"]
)
def test_preprocessing_refuses_values_for_bytes(values):
    with pytest.raises(UsageError, match=r"image in 0..1") as caught:
        Preprocessing(**values)
    assert "by 255" in caught.value.hint


def test_labels_are_unique():
    assert len(Labels(names=("a", "b"), source="test")) == 2
    with pytest.raises(UsageError, match="repeated: b"):
        Labels(names=("a", "b", "b"), source="test")
    assert Labels.numbered(2).names == ("class_0", "class_1")


def test_prediction_is_ok_by_default():
    assert Prediction(path="a.jpg").ok
    assert not Prediction(path="a.jpg", status="corrupt").ok
