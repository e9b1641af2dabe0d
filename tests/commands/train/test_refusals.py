"""Training: what is left out aloud, and what is refused."""

import math

import pytest
from training_runs import make_photos, notes

from deploykit.commands.train import photos as _training_data
from deploykit.commands.train.history import EpochResult
from deploykit.errors import ArchitectureError, DeviceError, ImagesError, ModelError, UsageError
from deploykit.system.progress import Note, Step


def test_an_unreadable_photo_is_named_and_left_out(train, photos):
    (photos / "red" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    events: list[Note | Step] = []
    result = train(progress=events.append)
    assert result.train_photos + result.test_photos == 19
    assert "red/3.png" in notes(events)[0]


def test_a_class_of_unreadable_photos_is_refused(train, photos, tmp_path):
    for path in (photos / "red").iterdir():
        path.write_bytes(b"no photo")
    with pytest.raises(ImagesError, match="without a single readable photo: red"):
        train()
    assert not (tmp_path / "run").exists()


def test_a_class_without_photos_is_refused(train, photos):
    (photos / "green").mkdir()
    with pytest.raises(ImagesError, match="without a single photo: green"):
        train()


def test_one_class_is_refused(train, tmp_path):
    folder = make_photos(tmp_path / "two")
    (folder / "red").rename(tmp_path / "elsewhere")
    with pytest.raises(ImagesError, match="has 1 class folder: blue"):
        train(folder=folder)


def test_too_few_photos_to_split_are_refused(train, tmp_path):
    with pytest.raises(ImagesError, match="2 photos are too few to keep 20% for testing"):
        train(folder=make_photos(tmp_path / "few", 1))


def test_a_class_that_is_only_tested_is_told(train, tmp_path):
    folder = make_photos(tmp_path / "rare", 4)
    for i in range(1, 4):
        (folder / "red" / f"{i}.png").unlink()

    def warnings_of(seed: int) -> list[str]:
        events: list[Note | Step] = []
        train(f"run{seed}", folder=folder, seed=seed, test_fraction=0.4, progress=events.append)
        return [note for note in notes(events) if "happens to be of red" in note]

    assert sorted({len(warnings_of(seed)) for seed in range(6)}) == [0, 1]


def test_a_photo_that_vanishes_while_training_stops_the_run(train, photos, monkeypatch):
    monkeypatch.setattr(_training_data, "CACHE_BYTES", 0)

    def remove(history: tuple[EpochResult, ...]) -> None:
        (photos / "red" / "3.png").unlink()

    with pytest.raises(ImagesError, match=r"no longer can[\s\S]*red/3\.png"):
        train(on_epoch=remove)


def test_a_loss_that_is_no_number_stops_the_run(train, tmp_path):
    with pytest.raises(ModelError, match="In epoch 1 the training loss became nan") as caught:
        train(network="Exploding")
    assert "--learning-rate" in caught.value.hint
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("Headless", r"shape \(4, 6, 3, 3\) instead of \(4, 2\)"),
        ("Paired", "returns a tuple instead of logits"),
        ("Failing", r"fails on a training batch of shape \(4, 3, 8, 8\): shape '\[5, 7\]'"),
        ("Weightless", "no weights to train"),
    ],
)
def test_a_network_that_cannot_be_trained_is_explained(train, network, said):
    with pytest.raises(ArchitectureError, match=said):
        train(network=network)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"test_fraction": 0.0},
        {"test_fraction": 1.0},
        {"seed": -1},
        {"device": "quantum"},
    ],
)
def test_numbers_that_make_no_sense_are_refused(train, tmp_path, options):
    with pytest.raises(UsageError):
        train(**options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", ["cuda:99", "meta"])
def test_a_device_that_is_not_there_is_explained(train, device):
    with pytest.raises(DeviceError, match=f"cannot use the device '{device}'"):
        train(device=device)


def test_an_output_that_is_a_file_is_refused(train, tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(UsageError, match="cannot be written to"):
        train("taken")
    assert (tmp_path / "taken").read_text() == "mine"
