"""Training: what it learns, what it leaves behind, and what it refuses."""

import math
import multiprocessing

import pytest
import torch
from PIL import Image
from torchvision import transforms
from training_runs import (
    SMALL,
    epoch,
    equal,
    interrupt_at_epoch,
    make_photos,
    notes,
    odd_photos,
    weights,
)

from deploykit.commands.train.images import read_images
from deploykit.commands.train.run import train as train_network
from deploykit.commands.train.state import best_epoch
from deploykit.errors import ArchitectureError, DeviceError, ImagesError, ModelError, UsageError
from deploykit.images.decode import decode_rgb
from deploykit.images.preprocess import preprocess
from deploykit.runtime._base import normalised
from deploykit.specs.preprocessing import Preprocessing
from deploykit.system.progress import Note, Step, silent


def test_train_learns_and_leaves_its_files(train, tmp_path):
    result = train(epochs=8, arch_args={"width": 5})
    assert result.best.test_accuracy == 1.0
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert (result.train_images, result.test_images) == (16, 4)
    assert result.classes == ("blue", "red")
    assert result.checkpoint == tmp_path / "run" / "best_model.pth"
    state = weights(tmp_path / "run")
    assert state["features.0.weight"].shape == (5, 3, 3, 3)
    assert state["head.bias"].shape == (2,)
    assert (tmp_path / "run/classes.txt").read_bytes() == b"blue\nred\n"
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["best_model.pth", "classes.txt", "curves.png", "training.pt"]


def test_train_keeps_the_best_epoch(train, tmp_path):
    after: list[dict[str, torch.Tensor]] = []

    def remember(event: Note | Step) -> None:
        if isinstance(event, Note) and event.message.startswith("Epoch"):
            after.append(weights(tmp_path / "run", "training.pt"))

    result = train(network="Spoiling", epochs=6, progress=remember)
    assert result.best.number <= 2
    assert result.best.test_accuracy == max(epoch.test_accuracy for epoch in result.history)
    assert equal(weights(tmp_path / "run"), after[result.best.number - 1])
    assert not equal(weights(tmp_path / "run"), after[-1])


def test_best_epoch_of_equals_has_the_lower_loss():
    values = ((0.5, 0.1), (0.9, 0.4), (0.9, 0.3), (0.9, 0.3))
    history = [
        epoch(number, test_accuracy=accuracy, test_loss=loss)
        for number, (accuracy, loss) in enumerate(values, start=1)
    ]
    assert best_epoch(history).number == 3


@pytest.mark.parametrize("steps", [SMALL, Preprocessing(resize=12, crop_size=(8, 8))])
def test_read_images_has_pixels_of_prediction(tmp_path, steps):
    folder = odd_photos(tmp_path / "odd", 6)
    photos = read_images(folder, None, None, steps, 0.5, 0, silent)
    found = {(tensor.numpy().tobytes(), *target) for tensor, target in photos.train + photos.test}
    resize = transforms.Resize(steps.resize)
    crop = transforms.CenterCrop(8)
    tensor, normalise = transforms.ToTensor(), transforms.Normalize(steps.mean, steps.std)
    for path in folder.rglob("*.*g"):
        target = photos.labels.names.index(path.parent.name)
        with Image.open(path) as photo:
            torchvisions = normalise(tensor(crop(resize(photo.convert("RGB")))))
        assert (torchvisions.numpy().tobytes(), target) in found
        pixels = preprocess(decode_rgb(path), steps)
        session = torch.from_numpy(normalised(pixels[None], steps))[0]
        assert (session.numpy().tobytes(), target) in found


def test_read_images_has_float_pixels_of_prediction(tmp_path):
    folder = odd_photos(tmp_path / "odd", 6)
    steps = Preprocessing(resize=(8, 8), antialias=False, pixels="float32")
    photos = read_images(folder, None, None, steps, 0.5, 0, silent)
    found = {tensor.numpy().tobytes() for tensor, *_ in photos.train + photos.test}
    for path in folder.rglob("*.*g"):
        pixels = preprocess(decode_rgb(path), steps)
        assert normalised(pixels[None], steps)[0].tobytes() in found


def test_train_reports_batches_and_epochs(train):
    events: list[Note | Step] = []
    result = train(epochs=5, learning_rate=1e-3, progress=events.append)
    first, *epochs = notes(events)
    assert "16 photos to train on, 4 to test on, 2 classes" in first
    assert [line.partition(":")[0] for line in epochs] == [f"Epoch {i}/5" for i in range(1, 6)]
    assert "best so far" in epochs[0]
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.done for step in steps if step.stage == "epoch 2/5"] == [4, 8, 12, 16]
    assert [step.done for step in steps if step.stage == "epoch 2/5, testing"] == [4]
    rates = [epoch.learning_rate for epoch in result.history]
    assert rates == pytest.approx([1e-3] * 4 + [0.92e-3], rel=1e-12)


@pytest.mark.parametrize(("options", "same"), [({"workers": 2}, True), ({"seed": 1}, False)])
def test_train_same_seed_same_weights(train, tmp_path, options, same):
    train("one", epochs=1)
    train("two", epochs=1, **options)
    assert equal(weights(tmp_path / "one"), weights(tmp_path / "two")) == same


def test_train_with_last_batch_of_one_image(train, tmp_path):
    result = train(folder=make_photos(tmp_path / "uneven", 11), test_fraction=5 / 22)
    assert result.train_images % 4 == 1
    assert math.isfinite(result.best.train_loss)


def test_train_with_preprocessing_of_architecture(tmp_path):
    events: list[Note | Step] = []
    with pytest.raises(KeyboardInterrupt):
        train_network(
            make_photos(tmp_path / "few", 2),
            arch="resnet_cifar96",
            output=tmp_path / "own",
            test_fraction=0.5,
            device="cpu",
            progress=lambda event: events.append(event) or interrupt_at_epoch(event, 1),
        )
    assert "resize 96x96 (stretch), bilinear, RGB, mean 0.5,0.5,0.5" in notes(events)[-1]


def test_train_refuses_dataset_splits_as_classes(train, tmp_path):
    for name in ("Train", "test"):
        make_photos(tmp_path / "data" / name, 2)
    with pytest.raises(
        ImagesError, match="parts of a data set, not classes: Train, test"
    ) as caught:
        train(folder=tmp_path / "data")
    assert caught.value.hint.endswith(str(tmp_path / "data" / "Train"))


def test_train_skips_unreadable_images(train, photos):
    (photos / "red" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (photos / "red" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (photos / "red" / "notes.txt").write_text("no photo")
    events: list[Note | Step] = []
    result = train(progress=events.append)
    assert result.train_images + result.test_images == 19
    header, *reasons = notes(events)[0].splitlines()
    assert header == "2 of 21 photos cannot be read and are skipped:"
    assert reasons[0].startswith("  red/3.png: It begins as PNG, but")
    assert reasons[1].startswith("  red/phone.heic: It is HEIC, which must be converted")


def test_train_warns_of_a_class_without_training_images(train, tmp_path):
    folder = make_photos(tmp_path / "rare", 4)
    for i in range(1, 4):
        (folder / "red" / f"{i}.png").unlink()

    def warnings_of(seed: int) -> list[str]:
        events: list[Note | Step] = []
        options = {"seed": seed, "test_fraction": 0.4, "epochs": 1, "progress": events.append}
        train(f"run{seed}", folder=folder, **options)
        return [note for note in notes(events) if "All photos of red are among" in note]

    assert {len(warnings_of(seed)) for seed in range(4)} == {0, 1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda red: [path.write_bytes(b"") for path in red.iterdir()], "readable photo: red"),
        (lambda red: red.with_name("green").mkdir(), "readable photo: green"),
        (lambda red: red.rename(red.parents[1] / "gone"), "has 1 class folder: blue"),
        (
            lambda red: [path.unlink() for path in red.parent.rglob("*.png") if path.stem != "0"],
            "2 photos are too few to keep 20% for testing",
        ),
    ],
)
def test_train_refuses_unsuitable_images(train, photos, change, said):
    change(photos / "red")
    with pytest.raises(ImagesError, match=said):
        train()


@pytest.mark.parametrize("workers", [0, 1])
def test_train_stops_when_an_image_vanishes(train, photos, tmp_path, workers):
    def remove(event: Note | Step) -> None:
        if isinstance(event, Note) and event.message.startswith("Epoch 1/"):
            for path in photos.rglob("*.png"):
                path.unlink()

    with pytest.raises(ImagesError, match=r"no longer can: .*\.png: It is not there") as caught:
        train(progress=remove, workers=workers)
    assert "--resume" in caught.value.hint
    assert multiprocessing.active_children() == []
    assert (tmp_path / "run/best_model.pth").is_file()


def test_train_stops_when_loss_is_nan(train, tmp_path):
    with pytest.raises(ModelError, match="In epoch 1 the training loss became nan") as caught:
        train(network="Exploding")
    assert "--learning-rate" in caught.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("Headless", r"tensor of shape \(4, 6, 3, 3\) instead of logits of shape \(4, 2\)"),
        ("Paired", "returns a tuple instead of logits"),
        ("Failing", r"fails on a training batch of shape \(4, 3, 8, 8\): shape '\[5, 7\]'"),
        ("Weightless", "no weights to train"),
    ],
)
def test_train_explains_an_unsuitable_network(train, network, said):
    with pytest.raises(ArchitectureError, match=said):
        train(network=network)


def test_train_refuses_impossible_numbers(train, tmp_path):
    for name, values in {
        "epochs": (0,),
        "batch_size": (0,),
        "learning_rate": (0.0, math.nan, math.inf),
        "test_fraction": (0.0, 1.0),
        "seed": (-1,),
    }.items():
        for value in values:
            with pytest.raises(UsageError, match="Training needs"):
                train(**{name: value})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", ["cuda:99", "meta", "quantum"])
def test_train_explains_a_missing_device(train, device):
    with pytest.raises(DeviceError, match=f"cannot use the device '{device}'"):
        train(device=device)


def test_train_refuses_an_output_that_is_a_file(train, tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(UsageError, match="cannot be written to"):
        train("taken")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.gpu
def test_train_and_resume_on_a_gpu(train, tmp_path):
    train(device="auto")
    assert len(train(device="auto", epochs=3, resume=True).history) == 3
    assert all(tensor.device.type == "cpu" for tensor in weights(tmp_path / "run").values())
