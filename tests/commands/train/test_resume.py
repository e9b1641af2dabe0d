"""Training: how it continues after an interruption, and never spoils an earlier training."""

from pathlib import Path

import pytest
import torch
from training_runs import equal, interrupt_at_epoch, notes, weights

from deploykit.commands.train.state import read_training
from deploykit.errors import ArchitectureError, CheckpointError, InputError, UsageError


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir()}


def test_resume_continues_after_the_last_finished_epoch(train, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(epochs=4, progress=lambda event: interrupt_at_epoch(event, 3))
    finished = read_training(tmp_path / "run")
    assert [epoch.number for epoch in finished.history] == [1, 2]
    assert len(contents(tmp_path / "run")) == 4  # nothing half-written lies beside them

    # A batch size that fits the memory better is no other training.
    result = train(epochs=4, batch_size=2, learning_rate=0.01, resume=True)
    assert result.history[:2] == finished.history
    assert [epoch.number for epoch in result.history] == [1, 2, 3, 4]


def test_resume_restores_weights_and_optimizer(train, tmp_path):
    train()
    before = read_training(tmp_path / "run")
    # A step of no size moves no weight, but the optimizer's memory goes on.
    train(epochs=3, learning_rate=1e-30, resume=True)
    after = read_training(tmp_path / "run")
    for name in ("head.weight", "features.0.weight"):
        assert torch.equal(after.model[name], before.model[name])
    # Two epochs of four batches, then four more steps.
    steps = [state.optimizer["state"][0]["step"].item() for state in (before, after)]
    assert steps == [8, 12]


def test_resume_of_a_finished_training_changes_nothing(train, tmp_path):
    finished = train()
    before = (tmp_path / "run/training.pt").read_bytes()
    assert train(resume=True).history == finished.history
    assert (tmp_path / "run/training.pt").read_bytes() == before


def test_resume_writes_checkpoint_after_an_interruption(train, tmp_path, photos, monkeypatch):
    train(epochs=1)
    (photos / "red").rename(photos / "green")
    replace = Path.replace

    def die_before_the_checkpoint(path, target):
        if target.name == "best_model.pth":
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die_before_the_checkpoint)
        with pytest.raises(KeyboardInterrupt):
            train(epochs=1, overwrite=True)
    assert not (tmp_path / "run/classes.txt").exists()  # the old names would be wrong
    train(epochs=1, resume=True)
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "run", "training.pt"))
    assert (tmp_path / "run/classes.txt").read_bytes() == b"blue\ngreen\n"


def test_resume_refuses_other_options(train, tmp_path):
    train()
    before = contents(tmp_path / "run")
    for changes, said in (
        ({"seed": 3}, "the seed was 0, and is now 3"),
        ({"test_fraction": 0.3}, "the test fraction was 0.2, and is now 0.3"),
        ({"arch_args": {"width": 7}}, "the arch args was {}, and is now {'width': 7}"),
        ({"input_size": 9}, "the preprocessing was resize 8x8"),
        ({"epochs": 1}, "finished 2 epochs already; 1 were asked for"),
        ({"overwrite": True}, "use one of them"),
    ):
        with pytest.raises(UsageError) as caught:
            train(resume=True, **changes)
        assert said in caught.value.message
        assert contents(tmp_path / "run") == before


def test_resume_refuses_other_images(train, photos):
    train()
    (photos / "red" / "0.png").unlink()
    (photos / "red" / "1.png").rename(photos / "blue" / "new.png")
    with pytest.raises(UsageError) as caught:
        train(resume=True)
    assert caught.value.message == (
        "This training cannot be resumed: 1 photo new: blue/new.png; "
        "2 photos gone, or cannot be read any more: red/0.png, ..."
        "."
    )


def test_resume_refuses_changed_code(train, tmp_path):
    train()
    code = tmp_path / "networks.py"
    code.write_text(code.read_text().replace("width=6", "width=7"))
    with pytest.raises(ArchitectureError, match="code of the network has changed"):
        train(resume=True)


def test_resume_without_earlier_training(train):
    with pytest.raises(UsageError, match=r"training\.pt and best_model\.pth not found"):
        train(resume=True)


def test_resume_refuses_a_damaged_state(train, tmp_path):
    train()
    state = tmp_path / "run/training.pt"
    torch.save({"weights": torch.ones(2)}, tmp_path / "foreign.pt")
    cut, foreign = state.read_bytes()[:500], (tmp_path / "foreign.pt").read_bytes()
    for content in (b"", b"\xff\xd8 a photo", cut, foreign):
        state.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            train(resume=True)
        assert caught.value.message == (
            f"{state} is not a training state that can be resumed: it is damaged, or another "
            "version of deploykit wrote it."
        )


def test_resume_tells_another_rate_and_keeps_its_own(train, tmp_path):
    train(epochs=1, learning_rate=0.003, batch_size=5)
    said = []
    resumed = train(
        epochs=2, learning_rate=None, batch_size=None, resume=True, progress=said.append
    )
    assert resumed.history[1].learning_rate == 0.003
    assert read_training(tmp_path / "run").batch_size == 5
    assert not [note for note in notes(said) if "from now on" in note]
    said.clear()
    resumed = train(epochs=3, learning_rate=0.002, batch_size=4, resume=True, progress=said.append)
    assert resumed.history[2].learning_rate == 0.002
    assert "the learning rate was 0.003, and is 0.002 from now on" in notes(said)
    assert "the batch size was 5, and is 4 from now on" in notes(said)


def test_train_refuses_an_earlier_training(train, tmp_path):
    train()
    before = contents(tmp_path / "run")
    with pytest.raises(UsageError, match=r"earlier training: best_model\.pth, classes\.txt, cur"):
        train(seed=1)
    assert contents(tmp_path / "run") == before


def test_overwrite_keeps_old_files_until_first_epoch(train, tmp_path):
    train()
    before = contents(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(seed=1, overwrite=True, progress=lambda event: interrupt_at_epoch(event, 1))
    assert contents(tmp_path / "run") == before
    train(seed=1, overwrite=True)
    assert (tmp_path / "run/best_model.pth").read_bytes() != before["best_model.pth"]


@pytest.mark.parametrize("full", ["training.pt", "best_model.pth"])
def test_overwrite_on_full_disk_keeps_old_weights(train, tmp_path, monkeypatch, full):
    train()
    before = contents(tmp_path / "run")
    save = torch.save

    def full_disk(content, path):
        if full in path.name:
            path.write_bytes(b"half")
            raise RuntimeError("PytorchStreamWriter failed writing file")
        save(content, path)

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(InputError, match=rf"{full} cannot be written: .* MiB are free"):
        train(overwrite=True)
    after = contents(tmp_path / "run")
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in ("best_model.pth", "classes.txt"))
