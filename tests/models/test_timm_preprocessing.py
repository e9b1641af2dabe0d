import numpy as np
import pytest
import torch
from PIL import Image

from deploykit.errors import UsageError
from deploykit.models.registry import resolve_architecture, timm_preprocessing
from deploykit.specs.preprocessing import IMAGENET_MEAN, Preprocessing


def applied(preprocessing: Preprocessing, photo: Image.Image) -> torch.Tensor:
    """Do what a Preprocessing says, with torchvision's transforms."""
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    filter_name = InterpolationMode(preprocessing.interpolation)
    steps = [
        transforms.Resize(preprocessing.resize, filter_name),
        transforms.CenterCrop(preprocessing.crop_size),
        transforms.ToTensor(),
        transforms.Normalize(preprocessing.mean, preprocessing.std),
    ]
    return transforms.Compose(steps)(photo)


@pytest.mark.parametrize(
    "name",
    ["resnet18.tv_in1k", "dpn92", "dm_nfnet_f0", "coat_lite_medium_384"],
)
def test_it_is_timms_own_transform(name: str) -> None:
    import timm.data

    pixels = np.random.default_rng(0).integers(0, 256, (300, 417, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    settings = timm.get_pretrained_cfg(name).to_dict()
    config = timm.data.resolve_data_config(pretrained_cfg=settings)
    theirs = timm.data.create_transform(**config)(photo)
    ours = applied(
        timm_preprocessing(resolve_architecture(f"timm/{name}", allow_user_code=False)), photo
    )
    assert torch.equal(ours, theirs)


def test_its_values_and_their_source() -> None:
    assert timm_preprocessing(
        resolve_architecture("timm/resnet18.tv_in1k", allow_user_code=False)
    ) == Preprocessing(
        resize=256, crop_size=(224, 224), mean=IMAGENET_MEAN, source="timm resnet18.tv_in1k"
    )


def test_only_timm_has_it() -> None:
    with pytest.raises(UsageError, match="dpn92 is not a timm network"):
        timm_preprocessing(resolve_architecture("dpn92", allow_user_code=False))


def test_what_a_preprocessing_cannot_say_is_refused() -> None:
    with pytest.raises(UsageError, match="3x546x546, crop mode border"):
        timm_preprocessing(resolve_architecture("timm/deepseek_vit_412m", allow_user_code=False))
