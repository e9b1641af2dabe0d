"""Keras' files and the tutorial's ResNeXt-50, against Keras itself on torch."""

import json
import shutil
import sys
import zipfile

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from deploykit.errors import CheckpointError, DependencyError
from deploykit.images.preprocess import preprocess
from deploykit.models.checkpoint import read_weights
from deploykit.models.contents import read_contents
from deploykit.models.identify import matches
from deploykit.models.keras_config import OtherNetworkError, read_config
from deploykit.models.loading import load_model
from deploykit.models.registry import resolve_architecture
from deploykit.models.zoo.resnext_keras import GroupedConv2d, LastSliceConv2d
from deploykit.specs.preprocessing_options import KERAS

h5py = pytest.importorskip("h5py")

pytestmark = pytest.mark.filterwarnings("ignore")  # of Keras and what it imports

#: Odd on the way (11 => 6, 9 => 5), so that "same" pads one row more at one end, or at both.
SIZE = (44, 36)
CLASSES = 3
NAMES = {False: "resnext50_keras", True: "resnext50_keras_grouped"}


@pytest.fixture(scope="module")
def networks():
    pytest.importorskip("optree", reason="Keras is not installed")
    import keras_networks

    return keras_networks


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(0, 255, (2, *SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def tutorial(networks):
    """The tutorial's network in Keras, with weights as training leaves them."""
    model = networks.resnext50(SIZE, CLASSES)
    networks.set_made_weights(model, np.random.default_rng(0))
    return model


@pytest.fixture(scope="module")
def config(networks, tutorial):
    """``config.json`` of its ``.keras`` file."""
    return json.dumps(networks.keras.saving.serialize_keras_object(tutorial))


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory, tutorial):
    path = tmp_path_factory.mktemp("keras") / "model.weights.h5"
    tutorial.save_weights(path)
    return path


@pytest.fixture(scope="module")
def hollow_file(tmp_path_factory, weights_file):
    """The same groups and shapes without numbers: a small file, whose first array has them."""
    path = tmp_path_factory.mktemp("hollow") / "model.weights.h5"
    with h5py.File(weights_file) as whole, h5py.File(path, "w") as hollow:

        def copy(name, item):
            if isinstance(item, h5py.Dataset):
                hollow.create_dataset(name, item.shape, item.dtype)

        whole.visititems(copy)
        hollow["layers/conv2d/vars/0"][...] = 1
    return path


def load(arch, path):
    return load_model(resolve_architecture(arch, allow_user_code=False), path, SIZE)


def error_of_scale(arch, path, images, expected):
    module = load(arch, path).module
    found = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    return np.abs(found - expected).max() / np.abs(expected).max()


def with_config(path, weights, text):
    """A ``.keras`` file."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", text)
        archive.write(weights, "model.weights.h5")
    return path


def test_load_model_gives_the_answers_of_keras(networks, tutorial, weights_file, images):
    expected = networks.logits(tutorial, images)
    assert error_of_scale("resnext50_keras", weights_file, images, expected) < 1e-5


@pytest.mark.parametrize(("stride", "size"), [(1, (8, 8)), (2, (8, 8)), (2, (7, 8)), (2, (9, 11))])
@pytest.mark.parametrize("kind", [LastSliceConv2d, GroupedConv2d])
def test_convolution_in_groups_gives_the_answers_of_keras(networks, kind, stride, size):
    bound = kind is GroupedConv2d
    slices = networks.bound_slices if bound else networks.late_slices
    model = networks.grouped_layer(size, 64, stride, slices)
    x = np.random.default_rng(2).standard_normal((2, *size, 64)).astype(np.float32)
    expected = networks.keras.ops.convert_to_numpy(model(x))
    kernels = np.concatenate([np.asarray(kernel) for kernel in model.get_weights()], axis=-1)
    layer = kind(64, stride)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(kernels.transpose(3, 2, 0, 1)))
        found = layer(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    assert np.abs(found.numpy().transpose(0, 2, 3, 1) - expected).max() < 1e-5


def test_preprocess_gives_the_pixels_of_keras(networks):
    """As ``image_dataset_from_directory`` resizes; the numbers of a photo as large as usual."""
    pixels = np.random.default_rng(4).integers(0, 256, (50, 2401, 3), dtype=np.uint8)
    resize = networks.keras.ops.image.resize
    x = networks.keras.ops.convert_to_tensor(pixels, "float32")
    expected = networks.keras.ops.convert_to_numpy(resize(x, (23, 90), data_format="channels_last"))
    recorded = msgspec.structs.replace(KERAS, resize=(23, 90))
    found = preprocess(Image.fromarray(pixels), recorded)
    assert np.abs(found - expected).max() < 1e-4  # of a grey level
    assert (KERAS.mean, KERAS.std) == ((0.0,) * 3, (1 / 255,) * 3)  # 0..255 as they are


def test_load_model_says_what_weights_alone_do_not_tell(weights_file):
    (weights,) = read_weights(weights_file)
    assert weights.arch == ""
    assert "does not tell which slice" in weights.notes[0]


def test_load_model_refuses_the_other_network_than_the_file_tells(tmp_path, config, weights_file):
    path = with_config(tmp_path / "model.keras", weights_file, config)
    assert load("resnext50_keras", path).notes == ()
    with pytest.raises(
        CheckpointError, match="holds the weights of resnext50_keras, not"
    ) as caught:
        load("resnext50_keras_grouped", path)
    assert caught.value.hint == "Name it: --arch resnext50_keras"


def test_read_contents_tells_which_networks_fit(tmp_path, config, weights_file):
    path = with_config(tmp_path / "model.keras", weights_file, config)
    contents = read_contents(path)
    assert (contents.container, contents.arch, contents.classes) == ("keras", NAMES[False], CLASSES)
    found = [match for name in NAMES.values() for match in matches([name], contents.tensors)]
    assert [match.classes for match in found] == [CLASSES, CLASSES]  # shapes do not tell


def edited(config, change):
    """The configuration with each Lambda changed, by its number in its block."""
    tree = json.loads(config)
    numbers = {}
    for layer in tree["config"]["layers"]:
        if layer["class_name"] == "Lambda":
            place = str(layer["inbound_nodes"])
            numbers[place] = numbers.get(place, -1) + 1
            width = layer["build_config"]["input_shape"][-1] // 32
            change(layer, numbers[place], width)
    return tree


def bind_default(layer, c, width):
    layer["config"]["function"]["config"] |= {"defaults": [c], "closure": [width]}


def bind_both_ends(layer, c, width):
    ends = [c * width, (c + 1) * width]
    layer["config"]["function"]["config"] |= {"defaults": ends, "closure": None}


def bind_closure(layer, c, width):
    layer["config"]["function"]["config"]["closure"] = [c, width]


def bind_argument(layer, c, width):
    layer["config"]["function"]["config"]["closure"] = None
    layer["config"]["arguments"] = {"c": c}


def as_in_keras_2(layer, c, width):
    layer["config"]["function"] = ["4wEAAA==", [c], [width]]


def slice_by_numbers(layer, c, width):
    layer["class_name"] = "GetItem"
    ends = {"start": c * width, "stop": (c + 1) * width, "step": None}
    whole = {"class_name": "__ellipsis__", "config": {}}
    ends = {"class_name": "__slice__", "config": ends}
    layer["inbound_nodes"][0]["args"].append([whole, ends])


@pytest.mark.parametrize(
    "change",
    [bind_default, bind_both_ends, bind_closure, bind_argument, as_in_keras_2, slice_by_numbers],
)
def test_read_config_tells_slices_of_their_own(config, change):
    assert read_config(edited(config, change)).is_bound is True


def test_read_config_tells_the_last_slice(config):
    assert read_config(json.loads(config)).is_bound is False

    def in_keras_2(layer, c, width):
        layer["config"]["function"] = ["4wEAAA==", None, [31, width]]

    assert read_config(edited(config, in_keras_2)).is_bound is False


def test_read_config_does_not_guess(config):
    def forget(layer, c, width):
        layer["config"]["function"]["config"]["closure"] = None

    assert read_config(edited(config, forget)).is_bound is None


def test_read_config_refuses_slices_in_another_order(config):
    def mirror(layer, c, width):
        bind_default(layer, 31 - c, width)

    with pytest.raises(OtherNetworkError, match="slice with 31, 30, 29"):
        read_config(edited(config, mirror))


def test_read_config_ends_at_a_layer_that_takes_itself():
    layer = {"class_name": "Dropout", "config": {"name": "a"}, "inbound_nodes": [[["a", 0, 0, {}]]]}
    model = {"layers": [layer], "output_layers": [["a", 0, 0]]}
    with pytest.raises(ValueError, match="takes its own output"):
        read_config({"class_name": "Functional", "config": model})


def first(tree, kind):
    return next(each for each in tree["config"]["layers"] if each["class_name"] == kind)


@pytest.mark.parametrize(
    ("kind", "setting", "value", "message"),
    [
        ("BatchNormalization", "epsilon", 1e-3, "has epsilon 0.001, not 1.001e-05"),
        ("Conv2D", "strides", [1, 1], r"has strides \[1, 1\], not \[2, 2\]"),
        ("Dense", "activation", "sigmoid", "has activation 'sigmoid', not softmax or linear"),
        ("ReLU", "max_value", 6.0, "has max_value 6.0, not None"),
        ("Conv2D", "data_format", "channels_first", "channels_first"),
    ],
)
def test_read_config_refuses_what_weights_do_not_show(config, kind, setting, value, message):
    tree = json.loads(config)
    first(tree, kind)["config"][setting] = value
    with pytest.raises(OtherNetworkError, match=message):
        read_config(tree)


def test_read_config_refuses_a_rescaling_before_the_network(config):
    tree = json.loads(config)
    name = first(tree, "InputLayer")["config"]["name"]
    text = json.dumps(tree).replace(f'["{name}", 0, 0]', '["rescaling", 0, 0]', 1)
    tree = json.loads(text)
    padding = json.loads(json.dumps(first(tree, "ZeroPadding2D")).replace("rescaling", name))
    padding |= {"class_name": "Rescaling", "config": {"name": "rescaling", "scale": 1 / 255}}
    tree["config"]["layers"].insert(1, padding)
    with pytest.raises(OtherNetworkError, match=r"'rescaling' \(Rescaling\) changes the images"):
        read_config(tree)


def test_read_config_takes_the_terms_of_a_sum_in_either_order(config):
    tree = json.loads(config)
    before = read_config(tree).places
    for layer in tree["config"]["layers"]:
        if layer["class_name"] == "Add":
            layer["inbound_nodes"][0]["args"][0].reverse()
    assert read_config(tree).places == before


def rewrite(path, change):
    with h5py.File(path, "a") as file:
        del file["layers/conv2d/vars/0"]
        change(file, "layers/conv2d/vars/0")


SHAPE = (7, 7, 3, 64)


def soft_link(file, name):
    file[name] = h5py.SoftLink("/layers/conv2d_1/vars/0")


def external_link(file, name):
    file[name] = h5py.ExternalLink("other.h5", "/secret")


def external_storage(file, name):
    file.create_dataset(name, SHAPE, "f4", external=[("secret.bin", 0, 37632)])


def virtual(file, name):
    layout = h5py.VirtualLayout(SHAPE, "f4")
    layout[...] = h5py.VirtualSource("other.h5", "secret", SHAPE)
    file.create_virtual_dataset(name, layout)


def compressed(file, name):
    file.create_dataset(name, SHAPE, "f4", np.ones(SHAPE), compression="gzip")


def references(file, name):
    file.create_dataset(name, SHAPE, h5py.ref_dtype)


def texts(file, name):
    file.create_dataset(name, SHAPE, h5py.string_dtype())


def whole_numbers(file, name):
    file.create_dataset(name, SHAPE, "i4", np.ones(SHAPE))


def enormous(file, name):
    file.create_dataset(name, (1 << 20, 1 << 20, 64, 64), "f4")


def unwritten(file, name):
    file.create_dataset(name, SHAPE, "f4")


def empty(file, name):
    file.create_dataset(name, data=h5py.Empty("f4"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (soft_link, "not hold the ResNeXt-50"),
        (external_link, "not hold the ResNeXt-50"),
        (external_storage, "is not stored as Keras does"),
        (virtual, "is not stored as Keras does"),
        (compressed, "is not stored as Keras does"),
        (references, "is of the type object"),
        (texts, "is of the type object"),
        (whole_numbers, "is of the type int32"),
        (enormous, "is 1048576x1048576x64x64, not 7x7x3x64"),
        (unwritten, "has not the 37,632 bytes that it says"),
        (empty, "not hold the ResNeXt-50"),
    ],
)
def test_read_weights_refuses_what_keras_does_not_write(tmp_path, hollow_file, change, message):
    path = tmp_path / "model.weights.h5"
    shutil.copy(hollow_file, path)
    (tmp_path / "secret.bin").write_bytes(bytes(37632))
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = np.ones(SHAPE, np.float32)
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_weights(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_read_weights_refuses_another_keras_network(tmp_path, networks):
    layers = networks.layers
    model = networks.keras.Sequential([layers.Input((4,)), layers.Dense(2)])
    for name in ("model.weights.h5", "model.keras"):
        path = tmp_path / name
        model.save_weights(path) if name.endswith(".h5") else model.save(path)
        with pytest.raises(CheckpointError, match="does not hold the ResNeXt-50") as caught:
            read_weights(path)
        assert "the one Keras network" in caught.value.hint


@pytest.mark.parametrize("keep", [0.0005, 0.3, 0.9999])
def test_read_weights_of_a_cut_file(tmp_path, hollow_file, keep):
    whole = hollow_file.read_bytes()
    path = tmp_path / "model.weights.h5"
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        read_weights(path)


def test_read_weights_ends_at_groups_that_hold_themselves(tmp_path, hollow_file):
    path = tmp_path / "model.weights.h5"
    shutil.copy(hollow_file, path)
    with h5py.File(path, "a") as file:
        for number in range(50):
            file[f"layers/conv2d/again{number}"] = file["layers"]
    with pytest.raises(CheckpointError, match=r"has not the [\d,]+ bytes that it says"):
        read_weights(path)


def test_read_weights_refuses_more_objects_than_a_network_has(monkeypatch, hollow_file):
    monkeypatch.setattr("deploykit.models.keras_file._MOST_OBJECTS", 1000)
    with pytest.raises(CheckpointError, match="more than 1,000 groups"):
        read_weights(hollow_file)


def test_read_weights_without_h5py_names_the_extra(monkeypatch, hollow_file):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DependencyError) as caught:
        read_weights(hollow_file)
    assert "deploykit[keras]" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("bound", [False, True])
def test_read_weights_of_every_file_of_keras(tmp_path, networks, tutorial, images, bound):
    model = networks.resnext50(SIZE, CLASSES, networks.bound_slices) if bound else tutorial
    networks.set_made_weights(model, np.random.default_rng(3))  # and Keras' counters have gone on
    expected = networks.logits(model, images)
    older, alone = tmp_path / "model.h5", tmp_path / "alone.h5"
    model.save(older)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    with h5py.File(older) as whole, h5py.File(alone, "w") as file:  # as Keras 2's save_weights
        for layer, group in whole["model_weights"].items():
            whole.copy(group, file, layer)
    module = resolve_architecture(NAMES[bound], allow_user_code=False).build(CLASSES).eval()
    for path in (older, alone, tmp_path / "model.keras", tmp_path / "model.weights.h5"):
        (weights,) = read_weights(path)
        assert weights.arch == (NAMES[bound] if path.name in ("model.h5", "model.keras") else "")
        module.load_state_dict(weights.state_dict, strict=False)
        with torch.no_grad():
            found = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
