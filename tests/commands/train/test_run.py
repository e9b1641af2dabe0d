"""Training: what it learns, and what it leaves behind."""

import math

import pytest
import torch
from training_runs import equal, interrupt_at_epoch, make_photos, notes, weights

from deploykit.commands.train import photos as _training_data
from deploykit.commands.train.history import EpochResult, best_epoch
from deploykit.commands.train.run import train_classifier
from deploykit.system.progress import Note, Step


def test_learns_to_tell_the_classes_apart(train, tmp_path):
    result = train(epochs=8)
    assert result.best.test_accuracy == 1.0
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert (result.train_photos, result.test_photos) == (16, 4)
    assert result.classes == ("blue", "red")
    assert result.checkpoint == tmp_path / "run" / "best_model.pth"


def test_leaves_a_plain_state_dict_and_the_classes(train, tmp_path):
    train(arch_args={"width": 5})
    state = weights(tmp_path / "run")
    assert state["features.0.weight"].shape == (5, 3, 3, 3)
    assert state["head.bias"].shape == (2,)
    assert (tmp_path / "run/classes.txt").read_bytes() == b"blue\nred\n"
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["best_model.pth", "classes.txt", "training.pt"]


def test_keeps_the_weights_of_the_best_epoch(train, tmp_path):
    after: list[dict[str, torch.Tensor]] = []

    def remember(_: tuple[EpochResult, ...]) -> None:
        after.append(weights(tmp_path / "run", "training.pt"))

    result = train(network="Spoiling", epochs=6, on_epoch=remember)
    assert result.best.epoch <= 2
    assert result.best.test_accuracy == max(r.test_accuracy for r in result.history)
    assert equal(weights(tmp_path / "run"), after[result.best.epoch - 1])
    assert not equal(weights(tmp_path / "run"), after[-1])


def test_among_equal_accuracies_the_lower_loss_is_best():
    def epoch(number: int, accuracy: float, loss: float) -> EpochResult:
        return EpochResult(
            epoch=number,
            learning_rate=1e-4,
            train_accuracy=1.0,
            train_loss=0.0,
            test_accuracy=accuracy,
            test_loss=loss,
            seconds=1.0,
        )

    history = [epoch(1, 0.5, 0.1), epoch(2, 0.9, 0.4), epoch(3, 0.9, 0.3), epoch(4, 0.9, 0.3)]
    assert best_epoch(history).epoch == 3


def test_the_rate_falls_every_four_epochs(train):
    rates = [result.learning_rate for result in train(epochs=9, learning_rate=1e-3).history]
    assert rates == pytest.approx([1e-3] * 4 + [0.92e-3] * 4 + [0.92**2 * 1e-3], rel=1e-12)


def test_tells_of_every_batch_and_epoch(train):
    events: list[Note | Step] = []
    histories: list[int] = []
    train(progress=events.append, on_epoch=lambda history: histories.append(len(history)))
    first, *epochs = notes(events)
    assert "16 photos to train on, 4 to test on, 2 classes" in first
    assert [line.partition(":")[0] for line in epochs] == ["Epoch 1/2", "Epoch 2/2"]
    assert "best so far" in epochs[0]
    steps = [event for event in events if isinstance(event, Step) and event.stage == "epoch 2/2"]
    assert [step.done for step in steps] == [4, 8, 12, 16, 20]
    assert histories == [1, 2]


def test_the_same_seed_gives_the_same_weights_and_another_others(train, tmp_path):
    train("one")
    train("two")
    train("three", seed=1)
    assert equal(weights(tmp_path / "one"), weights(tmp_path / "two"))
    assert not equal(weights(tmp_path / "one"), weights(tmp_path / "three"))


def test_leaves_the_callers_random_numbers_alone(train):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train()
    assert torch.equal(torch.rand(3), expected)


def test_threads_are_torchs_too_and_only_while_it_trains(train):
    before = torch.get_num_threads()
    seen: list[int] = []
    train(threads=before + 1, on_epoch=lambda _: seen.append(torch.get_num_threads()))
    assert seen == [before + 1] * 2
    assert torch.get_num_threads() == before


def test_decoding_anew_each_epoch_changes_nothing(train, tmp_path, monkeypatch):
    train("cached")
    monkeypatch.setattr(_training_data, "CACHE_BYTES", 0)
    train("streamed")
    assert equal(weights(tmp_path / "cached"), weights(tmp_path / "streamed"))


def test_a_last_batch_of_one_photo_does_not_stop_batchnorm(train, tmp_path):
    folder = make_photos(tmp_path / "uneven", 11)
    result = train(folder=folder, batch_size=4, test_fraction=5 / 22)
    assert result.train_photos % 4 == 1
    assert math.isfinite(result.best.train_loss)


def test_the_architectures_own_preprocessing_is_the_default(train, tmp_path):
    events: list[Note | Step] = []
    with pytest.raises(KeyboardInterrupt):
        train_classifier(
            make_photos(tmp_path / "few", 2),
            arch="resnet_cifar96",
            output=tmp_path / "own",
            test_fraction=0.5,
            device="cpu",
            progress=lambda event: events.append(event) or interrupt_at_epoch(event, 1),
        )
    assert "resize 96x96 (stretch), bilinear, RGB, mean 0.5,0.5,0.5" in notes(events)[0]


@pytest.mark.gpu
def test_trains_and_resumes_on_a_gpu(train, tmp_path):
    train(device="auto")
    assert len(train(device="auto", epochs=3, resume=True).history) == 3
    assert all(tensor.device.type == "cpu" for tensor in weights(tmp_path / "run").values())
