"""Training: how it goes on after an interruption, and never loses an earlier run."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from training_runs import contents, equal, interrupt_at_epoch, scores, weights

from deploykit.errors import CheckpointError, UsageError
from deploykit.specs.preprocessing import Preprocessing


def test_a_resumed_run_equals_one_that_went_through(train, tmp_path):
    straight = train("straight", epochs=4)
    train("resumed", epochs=2)
    resumed = train("resumed", epochs=4, resume=True)
    assert scores(resumed.history) == scores(straight.history)
    for file in ("best_model.pth", "training.pt"):
        assert equal(weights(tmp_path / "straight", file), weights(tmp_path / "resumed", file))


def test_an_interrupted_run_can_be_resumed(train, tmp_path):
    straight = train("straight", epochs=3)
    with pytest.raises(KeyboardInterrupt):
        train("cut", epochs=3, progress=lambda event: interrupt_at_epoch(event, 3))
    assert not list((tmp_path / "cut").glob("*.partial"))
    resumed = train("cut", epochs=3, resume=True)
    assert scores(resumed.history) == scores(straight.history)
    state = weights(tmp_path / "straight", "training.pt")
    assert equal(state, weights(tmp_path / "cut", "training.pt"))


def test_resuming_a_finished_run_changes_nothing(train, tmp_path):
    finished = train()
    before = (tmp_path / "run/training.pt").read_bytes()
    assert train(resume=True).history == finished.history
    assert (tmp_path / "run/training.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rate": 0.5}, "learning rate was 0.02, now 0.5"),
        ({"batch_size": 2}, "batch size was 4, now 2"),
        ({"seed": 3}, "seed was 0, now 3"),
        ({"test_fraction": 0.3}, "test fraction was 0.2, now 0.3"),
        ({"arch_args": {"width": 7}}, "arch args was {}, now {'width': 7}"),
        ({"preprocessing": Preprocessing(resize=(9, 9))}, "preprocessing was resize 8x8"),
        ({"epochs": 1}, "finished 2 epochs already; 1 were asked for"),
    ],
)
def test_refuses_to_resume_with_other_options(train, tmp_path, changes, said):
    train()
    before = (tmp_path / "run/training.pt").read_bytes()
    with pytest.raises(UsageError) as caught:
        train(resume=True, **changes)
    assert said in caught.value.message
    assert (tmp_path / "run/training.pt").read_bytes() == before


def test_an_argument_that_json_has_no_tuples_for_is_still_the_same(train):
    again = {"network": "Tiny", "arch_args": {"stride": (2, 2)}}
    train(**again)
    assert len(train(**again, epochs=3, resume=True).history) == 3


def test_refuses_to_resume_on_other_photos(train, photos):
    train()
    Image.new("RGB", (10, 12)).save(photos / "red" / "0.png")
    with pytest.raises(UsageError, match="the photos are others"):
        train(resume=True)


def test_refuses_to_resume_what_is_not_there(train, tmp_path):
    with pytest.raises(UsageError, match=r"training\.pt and best_model\.pth not found"):
        train(resume=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xd8 a photo", "cut", "foreign", "newer"])
def test_a_damaged_state_is_refused(train, tmp_path, content):
    train()
    state = tmp_path / "run/training.pt"
    if isinstance(content, bytes):
        state.write_bytes(content)
    elif content == "cut":
        state.write_bytes(state.read_bytes()[:500])
    else:
        torch.save({"schema": 99} if content == "newer" else {"weights": torch.ones(2)}, state)
    with pytest.raises(CheckpointError, match="is not a training state that can be resumed"):
        train(resume=True)


def test_refuses_to_run_over_an_earlier_run(train, tmp_path):
    train()
    before = (tmp_path / "run/best_model.pth").read_bytes()
    with pytest.raises(UsageError, match=r"earlier run: best_model\.pth, classes\.txt, training"):
        train(seed=1)
    assert (tmp_path / "run/best_model.pth").read_bytes() == before


def test_overwrite_keeps_the_old_until_an_epoch_is_done(train, tmp_path):
    train()
    before = (tmp_path / "run/best_model.pth").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        train(seed=1, overwrite=True, progress=lambda event: interrupt_at_epoch(event, 1))
    assert (tmp_path / "run/best_model.pth").read_bytes() == before
    train(seed=1, overwrite=True)
    assert (tmp_path / "run/best_model.pth").read_bytes() != before


def test_weights_that_cannot_be_written_leave_the_old_run_whole(
    train, tmp_path, photos, monkeypatch
):
    train()
    before = contents(tmp_path / "run")
    (photos / "red").rename(photos / "green")
    save = torch.save

    def full_disk(content, path):
        if "best_model" in path.name:
            path.write_bytes(b"half")
            raise RuntimeError("PytorchStreamWriter failed writing file")
        save(content, path)

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UsageError, match=r"best_model\.pth cannot be written"):
        train(overwrite=True)
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_old_weights_never_lie_beside_new_names(train, tmp_path, photos, monkeypatch, renames):
    train()
    before = contents(tmp_path / "run")
    (photos / "red").rename(photos / "green")
    replace, done = Path.replace, []

    def die_after_some(path, target):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(target)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", die_after_some)
    with pytest.raises(KeyboardInterrupt):
        train(overwrite=True)
    after = contents(tmp_path / "run")
    new_weights = after["best_model.pth"] != before["best_model.pth"]
    assert new_weights == (renames > 0)
    assert after.get("classes.txt") in (None, b"blue\ngreen\n" if new_weights else b"blue\nred\n")


def test_names_that_stay_the_same_are_there_all_the_time(train, tmp_path, monkeypatch):
    train()
    replace, seen = Path.replace, []

    def look(path, target):
        seen.append((tmp_path / "run/classes.txt").read_bytes())
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", look)
    train(overwrite=True)
    assert set(seen) == {b"blue\nred\n"}


def test_resume_and_overwrite_exclude_each_other(train):
    with pytest.raises(UsageError, match="use one of them"):
        train(resume=True, overwrite=True)
