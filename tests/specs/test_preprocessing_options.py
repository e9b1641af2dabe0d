import pytest

from deploykit.errors import UsageError
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.preprocessing_options import (
    KERAS,
    TORCHVISION,
    PreprocessingOptions,
    choose_preprocessing,
    parse_channels,
    parse_options,
    parse_resize,
    parse_size,
)

TIMM = Preprocessing(resize=248, crop_size=(224, 224), interpolation="bicubic", source="timm model")
ZOO = Preprocessing(resize=(96, 96), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), source="zoo net")


def choose(default=None, **options):
    return choose_preprocessing(PreprocessingOptions(**options), default=default, timm=lambda: TIMM)


def test_choose_preprocessing_default():
    assert choose(ZOO) is ZOO
    assert choose() == Preprocessing()
    assert choose().source == "preset tutorial"


@pytest.mark.parametrize(
    ("preset", "expected"),
    [("tutorial", Preprocessing()), ("torchvision", TORCHVISION), ("timm", TIMM), ("keras", KERAS)],
)
def test_choose_preprocessing_of_a_preset(preset, expected):
    assert choose(ZOO, preset=preset) == expected


def test_choose_preprocessing_of_an_unknown_preset():
    with pytest.raises(UsageError, match="tutorial, torchvision, timm, keras"):
        choose(preset="caffe")


def test_choose_preprocessing_without_antialiasing():
    assert not choose(preset="keras", input_size=(64, 64)).antialias
    assert choose(preset="keras", antialias=True).antialias
    assert (
        choose(antialias=False)
        .describe()
        .startswith("resize 224x224 (stretch), bilinear without antialiasing")
    )
    with pytest.raises(UsageError, match="lanczos always antialiases"):
        choose(preset="keras", interpolation="lanczos")


def test_choose_preprocessing_pixels():
    assert KERAS.pixel_type == choose(pixels="float32").pixel_type == "float32"
    assert "float32 pixels" in KERAS.describe()
    rounded = choose(preset="keras", pixels="uint8")
    assert rounded.pixel_type == Preprocessing().pixel_type == "uint8"
    # Of bytes no file says anything, as before there were floats.
    assert "pixel" not in rounded.to_metadata() + rounded.describe()
    with pytest.raises(UsageError, match="no type of pixels; there are uint8, float32"):
        parse("float16")


def parse(pixels):
    sizes = dict.fromkeys(("preset", "input_size", "resize", "crop_size"))
    return parse_options(**sizes, interpolation=None, mean=None, std=None, pixels=pixels)


@pytest.mark.parametrize(
    ("options", "resize", "crop_size"),
    [
        ({"input_size": (96, 128)}, (96, 128), None),
        ({"preset": "torchvision", "input_size": (112, 112)}, 128, (112, 112)),
        ({"preset": "torchvision", "crop_size": (112, 112)}, 128, (112, 112)),
        ({"preset": "torchvision", "resize": 300}, 300, (224, 224)),
        ({"preset": "torchvision", "resize": (192, 192)}, (192, 192), None),
        ({"resize": 256}, 256, (224, 224)),
        ({"resize": 256, "crop_size": (200, 180)}, 256, (200, 180)),
        ({"resize": (256, 256), "crop_size": (224, 224)}, (256, 256), (224, 224)),
        ({"crop_size": (200, 200)}, (224, 224), (200, 200)),
        ({"resize": 256, "input_size": (224, 224)}, 256, (224, 224)),
    ],
)
def test_choose_preprocessing_sizes(options, resize, crop_size):
    chosen = choose(**options)
    assert (chosen.resize, chosen.crop_size) == (resize, crop_size)


def test_choose_preprocessing_with_changed_values():
    chosen = choose(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation="bicubic")
    assert chosen.source == "preset tutorial, changed by options"
    assert (chosen.mean, chosen.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert chosen.interpolation == "bicubic"
    assert choose(mean=Preprocessing().mean).source == "preset tutorial"


def test_choose_preprocessing_grey():
    chosen = choose(ZOO, grayscale=True, mean=(0.1307,) * 3)
    assert chosen.grayscale
    assert chosen.describe() == "grey, resize 96x96 (stretch), bilinear, mean 0.1307, std 0.5"
    three = choose(grayscale=True).describe()
    assert three.endswith("bilinear, mean 0.485,0.456,0.406, std 0.229,0.224,0.225")
    assert not choose(ZOO).grayscale


@pytest.mark.parametrize(
    "options",
    [
        {"input_size": (224, 224), "crop_size": (200, 200)},
        {"input_size": (224, 224), "resize": (256, 256)},
    ],
)
def test_choose_preprocessing_refuses_contradicting_sizes(options):
    with pytest.raises(UsageError, match="--input-size 224x224 contradicts"):
        choose(**options)


@pytest.mark.parametrize("std", [(0, 1, 1), (1, -1, 1), (1, 1, float("nan"))])
def test_choose_preprocessing_refuses_impossible_std(std):
    with pytest.raises(UsageError, match="std above 0"):
        choose(std=std)


def test_choose_preprocessing_refuses_empty_size():
    with pytest.raises(UsageError, match="at least 1 pixel"):
        choose(input_size=(0, 224))


def test_parse_size_is_height_first():
    assert parse_size("96x128", "--input-size") == (96, 128)
    assert parse_size("224", "--input-size") == (224, 224)
    assert parse_resize("256") == 256
    assert parse_resize("256x192") == (256, 192)


@pytest.mark.parametrize("text", ["", "x", "224x", "-1", "1.5", "224x224x3", "big"])
def test_parse_size_of_other_text(text):
    with pytest.raises(UsageError, match="--crop-size takes"):
        parse_size(text, "--crop-size")


def test_parse_channels_of_one_or_three_numbers():
    assert parse_channels("0.1,0.2,0.3", "--mean") == (0.1, 0.2, 0.3)
    assert parse_channels("0.5", "--mean") == (0.5, 0.5, 0.5)
    for text in ("", "a", "1,2", "1,2,3,4"):
        with pytest.raises(UsageError, match="--std takes"):
            parse_channels(text, "--std")


def test_parse_options_interpolation():
    nothing = dict.fromkeys(("preset", "input_size", "resize", "crop_size", "mean", "std"))
    assert parse_options(**nothing, interpolation="bicubic").interpolation == "bicubic"
    with pytest.raises(UsageError, match=r"'cubic' is no interpolation; there are .*bilinear"):
        parse_options(**nothing, interpolation="cubic")


def test_describe_preprocessing():
    text = TORCHVISION.describe()
    assert text == (
        "resize 256 (shorter side), centre crop 224x224, bilinear, RGB, "
        "mean 0.485,0.456,0.406, std 0.229,0.224,0.225"
    )
