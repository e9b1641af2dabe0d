"""The command that mends a bundle: run, it gives the same bundle but for what is changed."""

import shlex
import shutil

import msgspec
import pytest
import torch
from bundle_files import edited

from deploykit.bundle.folder import open_bundle
from deploykit.commands.app import run
from deploykit.commands.export.again import export_command
from deploykit.models.registry import resolve_architecture
from deploykit.parity.diagnosis import Finding

pytestmark = pytest.mark.usefixtures("posix_shell")

STD = ("--std", "0.2,0.3,0.4")
#: What two exports of the same never share.
_OF_ITS_OWN = ("created", "files", "verdicts", "labels", "preprocessing")


@pytest.fixture
def place(tmp_path, monkeypatch, network_file, checkpoint, photo_folder):
    """A folder with a space in its name that has the network, its checkpoint and the photos."""
    folder = tmp_path / "my runs"
    shutil.copytree(photo_folder, folder / "photos")
    shutil.copy(network_file, folder)
    shutil.copy(checkpoint, folder)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def export(place):
    """Export what is there with these options."""

    def call(*options, ckpt="best_model.pth"):
        code = run(
            [
                *("export", "--arch", f"{place / 'networks.py'}:Net", "--ckpt", str(place / ckpt)),
                *("--name", "colours", "--artifacts", str(place / "artifacts")),
                *map(str, options),
            ]
        )
        assert code == 0
        return open_bundle(place / "artifacts" / "colours")

    return call


def finding(*options):
    return Finding(stage="normalise", message="wrong", hint="See there.", options=options)


def words_of(bundle, *findings):
    command = export_command(bundle, findings)
    assert command is not None
    return shlex.split(command, comments=True)


def again(bundle, *findings):
    """Run the command; gives the new manifest."""
    words = words_of(bundle, *findings)
    assert words[0] == "deploykit"
    assert run(words[1:]) == 0
    return open_bundle(bundle.folder).manifest


def assert_same(old, new, **preprocessing):
    """But for what is said of the preprocessing, and what is of each export its own."""
    for field in msgspec.structs.fields(old):
        if field.name not in _OF_ITS_OWN:
            assert getattr(new, field.name) == getattr(old, field.name), field.name
    assert new.labels.names == old.labels.names
    assert new.preprocessing == msgspec.structs.replace(
        old.preprocessing, source=new.preprocessing.source, **preprocessing
    )
    old_photos, new_photos = old.verdicts[0].images, new.verdicts[0].images
    assert (new_photos.kind, new_photos.count) == (old_photos.kind, old_photos.count)


SMALL = ("--input-size", "16x16")
CROPPED = ("--resize", "20", "--crop-size", "16x16", "--interpolation", "bicubic")


@pytest.mark.parametrize(
    "options",
    [
        [*SMALL, "--classes", "blue,red,green", "--images", "photos"],
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in (
                [*CROPPED, "--mean", "0.1,0.2,0.3", "--golden", "generated", "--images", "photos"],
                [*SMALL, "--opset", "20", "--arch-arg", "width=8", "--no-antialias"],
                [*SMALL, "--pixels", "float32"],
            )
        ),
    ],
)
def test_export_command_repeats_the_export(export, place, options):
    old = export(*(place / word if word == "photos" else word for word in options))
    new = again(old, finding(STD))
    assert_same(old.manifest, new, std=(0.2, 0.3, 0.4))


@pytest.mark.slow
def test_export_command_with_antialiasing_again(export):
    old = export(*SMALL, "--no-antialias")
    wanted = finding(("--interpolation", "bicubic"), ("--antialias", ""))
    assert_same(old.manifest, again(old, wanted), interpolation="bicubic", antialias=True)


def test_export_command_of_another_label_order(export, place):
    """The folder that named the classes was the one of the photos, too."""
    old = export(*SMALL, "--classes", place / "photos")
    new = again(old, finding(("--classes", "red,green,blue")))
    assert new.labels.names == ("red", "green", "blue")
    assert new.images == old.manifest.images
    assert new.verdicts[0].images.kind == "photos"


@pytest.mark.slow
def test_export_command_with_folder_of_same_name(export, place):
    """Of the photos that were kept for testing, one class has none."""
    shutil.copytree(place / "photos", place / "test" / "photos")
    shutil.rmtree(place / "test" / "photos" / "green")
    old = export(*SMALL, "--classes", place / "photos", "--images", place / "test" / "photos")
    assert_same(old.manifest, again(old, finding(STD)), std=(0.2, 0.3, 0.4))


def test_export_command_names_labels_if_classes_file_differs(export, place):
    beside = place / "classes.txt"
    beside.write_text("blue\nred\ngreen", encoding="utf-8")
    old = export(*SMALL)
    assert "--classes" not in words_of(old, finding(STD))
    beside.write_text("one\ntwo\nthree\nfour", encoding="utf-8")
    assert_same(old.manifest, again(old, finding(STD)), std=(0.2, 0.3, 0.4))
    beside.unlink()
    assert_same(old.manifest, again(old, finding(STD)), std=(0.2, 0.3, 0.4))


@pytest.fixture
def many(place):
    """A checkpoint of 24 classes, and a text file with their names."""
    torch.manual_seed(0)
    module = resolve_architecture(f"{place / 'networks.py'}:Net", allow_user_code=True).build(24)
    with torch.no_grad():
        module.head.weight.mul_(20)
    torch.save(module.state_dict(), place / "many.pth")
    path = place / "names.txt"
    path.write_text("\n".join(f"bird {i}, of {i}" for i in range(24)), encoding="utf-8")
    return path


def test_export_command_with_labels_file(export, many):
    old = export(*SMALL, "--classes", many, ckpt="many.pth")
    command = export_command(old, [finding(STD)])
    assert command.endswith(
        f"  # FILE: a text file with the labels of '{old.folder / 'bundle.json'}', one a line"
    )
    words = words_of(old, finding(STD))
    assert words[words.index("--classes") + 1] == "FILE"
    words[words.index("--classes") + 1] = str(many)
    assert run(words[1:]) == 0
    new = open_bundle(old.folder).manifest
    assert_same(old.manifest, new, std=(0.2, 0.3, 0.4))
    command = export_command(old, [finding(("--classes", "FILE"))])
    assert command.endswith("the labels of the finding, one a line")


@pytest.mark.slow
def test_export_command_resize_sets_crop(export):
    old = export(*CROPPED)
    new = again(old, finding(("--resize", "16x16")))
    assert_same(old.manifest, new, resize=(16, 16), crop_size=None)
    new = again(old, finding(("--resize", "18"), ("--crop-size", "16x16")))
    assert_same(old.manifest, new, resize=18)


def test_export_command_of_contradicting_findings(bundle):
    stretch = finding(("--resize", "16x16"))
    crop = finding(("--resize", "20"), ("--crop-size", "16x16"), ("--interpolation", "bicubic"))
    words = words_of(bundle, stretch, crop)
    assert words[words.index("--resize") + 1] == "16x16"
    assert "--crop-size" not in words
    assert words[words.index("--interpolation") + 1] == "bilinear"
    words = words_of(bundle, crop, stretch)
    assert words[words.index("--resize") + 1] == "20"
    assert words[words.index("--crop-size") + 1] == "16x16"
    words = words_of(bundle, finding(("--mean", "0.5,0.5,0.5")), stretch)
    assert words[words.index("--mean") + 1] == "0.5,0.5,0.5"
    assert words[words.index("--resize") + 1] == "16x16"


def test_export_command_without_options_is_none(bundle):
    assert export_command(bundle, []) is None
    assert export_command(bundle, [finding()]) is None


@pytest.mark.parametrize("value", [8, 0.5, True, None, "relu", "8", "none", 'a "b"é', [1, 2], []])
def test_export_command_keeps_arch_args(bundle, value):
    from deploykit.models.registry import parse_arch_args

    recorded = msgspec.structs.replace(bundle.manifest.architecture, args={"width": value})
    words = words_of(edited(bundle, architecture=recorded), finding(STD))
    assert parse_arch_args([words[words.index("--arch-arg") + 1]]) == {"width": value}
