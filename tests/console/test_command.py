"""One command's voice: what is the result's, what is everybody's, and what an end means."""

import csv
import io
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import typer
from filelock import FileLock

from deploykit.commands.app import run
from deploykit.console.command import Console, command
from deploykit.errors import InputError
from deploykit.system.progress import Note, Step
from deploykit.system.text import table_text, visible


class Terminal(io.StringIO):
    """A stream that someone watches."""

    def isatty(self):
        return True


def put_terminal(monkeypatch):
    """Make stderr a terminal; a fixture would do so before pytest puts its own stream there."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    return stream


def test_progress_replaces_the_stage_before(monkeypatch):
    terminal = put_terminal(monkeypatch)
    console = Console("train", sys.stdout, as_json=False)
    for epoch in range(40):
        console.progress(Step(f"epoch {epoch}", 5, 8))
    console.progress(Step("saving"))
    (task,) = console._bar.tasks
    assert (task.description, task.completed, task.total) == ("saving", 0, None)
    console.progress(Step("saving", 1, 2))
    (task,) = console._bar.tasks
    assert (task.description, task.completed, task.total) == ("saving", 1, 2)
    console.close()
    assert "epoch 0" in terminal.getvalue()


def test_progress_detail_keeps_the_bar(monkeypatch):
    put_terminal(monkeypatch)
    console = Console("build-trt", sys.stdout, as_json=False)
    console.progress(Step("building", 0, 6, detail="cloning"))
    (first,) = console._bar.tasks
    console.progress(Step("building", 1, 6, detail="timing"))
    (task,) = console._bar.tasks
    assert task is first
    assert (task.description, task.completed, task.total) == ("building: timing", 1, 6)
    console.close()


def shown(console):
    """The bar's line as it stands."""
    from rich.console import Console as RichConsole

    stream = io.StringIO()
    RichConsole(file=stream, width=100).print(console._bar.get_renderable())
    return stream.getvalue()


@pytest.mark.parametrize(("unit", "rate"), [("images", "50.0 images/s"), ("", None)])
def test_progress_shows_speed_of_units(monkeypatch, unit, rate):
    put_terminal(monkeypatch)
    console = Console("predict", sys.stdout, as_json=False)
    console.progress(Step("scanning"))
    now = 0
    monkeypatch.setattr(console._bar, "get_time", lambda: now)
    # What an interrupted run had done already is no speed of this one.
    for done in (5000, 5100, 5200):
        console.progress(Step("predicting", done, 6000, unit=unit))
        now += 2
    line = shown(console)
    console.close()
    assert "5200/6000" in line
    assert "0:00:16" in line
    assert (rate in line) if rate else "/s" not in line


def test_progress_notes_are_above_the_bar(monkeypatch):
    terminal = put_terminal(monkeypatch)
    console = Console("train", sys.stdout, as_json=False)
    console.progress(Step("epoch 1", 0, 8))
    console.progress(Note("[bold]epoch 1: 95 %"))
    console.close()
    assert "[bold]epoch 1: 95 %\n" in terminal.getvalue()


def test_progress_without_terminal_prints_only_notes(capsys):
    console = Console("train", sys.stdout, as_json=False)
    console.progress(Step("epoch 1", 0, 8))
    console.progress(Note("epoch 1: 95 %"))
    console.close()
    assert capsys.readouterr() == ("", "epoch 1: 95 %\n")


@pytest.mark.parametrize("as_json", [False, True])
def test_command_stdout_has_only_results(capsys, as_json):
    before = sys.stdout
    with command("verify", as_json=as_json) as console:
        print("printed by a network")
        console.result(lambda: 42, lambda: "forty-two")
        print("printed while it ends")
    assert sys.stdout is before
    out, err = capsys.readouterr()
    assert (json.loads(out)["result"] if as_json else out) == (42 if as_json else "forty-two\n")
    assert err == "printed by a network\nprinted while it ends\n"


def test_command_stdout_beside_a_bar(capsys, monkeypatch):
    terminal = put_terminal(monkeypatch)
    with command("verify", as_json=True) as console:
        console.progress(Step("comparing", 1, 2))
        print("printed by a network")
        console.result(lambda: 42, lambda: "forty-two")
    assert sys.stderr is terminal
    assert json.loads(capsys.readouterr().out)["result"] == 42
    assert "printed by a network\n" in terminal.getvalue()


def test_command_error_as_json_is_alone_on_stdout(capsys):
    with pytest.raises(typer.Exit), command("verify", as_json=True):
        1 / print("printed by a network")
    out, err = capsys.readouterr()
    assert json.loads(out)["exit_code"] == 1
    assert err == "printed by a network\n"


def test_command_within_a_command_prints_to_stderr(capsys):
    before = sys.stdout
    with command("demo", as_json=True) as outer:
        with command("verify", as_json=True) as inner:
            inner.result(lambda: "inner", lambda: "")
        outer.result(lambda: "outer", lambda: "")
    assert sys.stdout is before
    out, err = capsys.readouterr()
    assert json.loads(out)["result"] == "outer"
    assert json.loads(err)["result"] == "inner"


def test_command_child_process_has_real_stdout(capfd):
    with command("demo", as_json=False):
        subprocess.run([sys.executable, "-c", "print('child')"], check=True)
    assert capfd.readouterr() == ("child\n", "")


@pytest.mark.parametrize("code", [0, None, 3, "Give me a folder."])
def test_command_sys_exit_is_an_error(capsys, code):
    with pytest.raises(typer.Exit) as caught, command("verify", as_json=False):
        sys.exit(code)
    assert caught.value.exit_code == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: The program was told to end, by sys.exit({code!r}).\n")
    assert "-v shows where" in err
    assert "Traceback" not in err


def test_command_verbose_shows_sys_exit(capsys):
    with pytest.raises(typer.Exit), command("verify", as_json=False, verbose=True):
        sys.exit(0)
    assert 'test_command.py", line' in capsys.readouterr().err


def test_command_names_an_output_that_fails(capsys):
    with pytest.raises(typer.Exit) as caught, command("train", as_json=False):
        raise OSError(28, "No space left on device", "run/best_model.pth")
    assert caught.value.exit_code == 4
    message, hint = capsys.readouterr().err.splitlines()
    assert message == "error: run/best_model.pth: No space left on device."
    assert hint == "Make room on its disk, or write somewhere else."


PRINTING = """
import sys
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = nn.Linear(3, num_classes)

    def forward(self, x):
        print("in forward")
        sys.stdout.write("and again")
        return self.layer(x.mean((2, 3)))
"""


def test_export_of_a_printing_network_as_json(tmp_path, monkeypatch, capfd):
    import torch

    from deploykit.models.registry import resolve_architecture

    monkeypatch.chdir(tmp_path)
    Path("printing.py").write_text(PRINTING, encoding="utf-8")
    module = resolve_architecture("printing.py:Net", allow_user_code=True).build(2)
    torch.save(module.state_dict(), "net.pth")
    capfd.readouterr()
    arguments = ["export", "--arch", "printing.py:Net", "--ckpt", "net.pth", "--classes", "a,b"]
    code = run([*arguments, "--input-size", "16", "--json"])
    out, err = capfd.readouterr()
    assert code == 0, err
    assert json.loads(out)["exit_code"] == 0
    assert "in forward\nand again" in err


@pytest.mark.parametrize("as_json", [False, True])
def test_predict_without_prediction_writes_its_table(exported_bundle, tmp_path, capsys, as_json):
    photos, table = tmp_path / "photos", tmp_path / "rows.csv"
    photos.mkdir()
    for name in ("a.png", "b.png"):
        (photos / name).touch()
    arguments = ["predict", str(photos), "--bundle", str(exported_bundle.folder)]
    code = run([*arguments, "--output", str(table), *(["--json"] if as_json else [])])
    captured = capsys.readouterr()
    assert code == 4
    said = json.loads(captured.out)["error"] if as_json else captured.err
    assert "has a prediction, of 2" in str(said)
    assert "rows.csv says what is wrong with each" in str(said)
    with table.open(encoding="utf-8-sig", newline="") as stream:
        assert [row["path"] for row in csv.DictReader(stream)] == ["a.png", "b.png"]
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == [".rows.csv.run", "photos", "rows.csv"]


def test_predict_refuses_a_table_with_a_writer(exported_bundle, photo_folder, tmp_path, capsys):
    output = tmp_path / "rows.csv"
    arguments = ["predict", str(photo_folder / "red"), "--bundle", str(exported_bundle.folder)]
    with FileLock(output.with_name(".rows.csv.lock")):
        assert run([*arguments, "--output", str(output)]) == 2
    assert "Another run is writing" in capsys.readouterr().err
    assert run([*arguments, "--output", str(output)]) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without /dev/full")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_inspect_to_full_stdout_exits_with_4(exported_bundle, options):
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "deploykit", "inspect", exported_bundle.folder, *options],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert process.returncode == 4
    assert "No space left" in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_inspect_to_closed_stdout_exits_with_0(exported_bundle, options):
    process = subprocess.Popen(
        [sys.executable, "-m", "deploykit", "inspect", exported_bundle.folder, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0
    process.stderr.close()


#: A colour, a title of the window, a C1 sequence, a line that begins again, text that runs
#: backwards, half a character, a byte that is not Unicode, and what rich would take for markup.
WICKED = "a\x1b[31mb\x1b]0;t\x07c\x9b2Jd\re\u202ef\ud800g\udcffh[red]:dog:"
SHOWN = r"a\x1b[31mb\x1b]0;t\x07c\x9b2Jd\re\u202ef\ud800g\xffh[red]:dog:"


def test_visible_leaves_writing_alone():
    """Persian with a joiner, an emoji of several, a wide space, CJK, accents."""
    text = "\u0645\u06cc\u200c\u062e 👩\u200d🔬 a\u3000b 鹰 é [x] {y}"
    assert visible(text) == text
    assert visible("a\tb\nc") == r"a\tb\nc"
    assert visible("a\tb\nc", lines=True) == "a\tb\nc"
    assert visible("a\u2028b\u061cc\xad") == r"a\u2028b\u061cc\xad"


def test_table_cell_is_one_visible_line():
    table = table_text(("label", "count"), [(f"{WICKED}\nPASSED", "1"), ("plain", "2")])
    header, rule, row, plain = table.splitlines()
    assert row.startswith(SHOWN + r"\nPASSED")
    assert (header[:5], {*rule}, plain[:5]) == ("label", {"-", "+"}, "plain")


@pytest.mark.parametrize("bar", [False, True])
def test_command_shows_no_controls(capsys, monkeypatch, bar):
    terminal = put_terminal(monkeypatch)

    def work():
        with command("verify", as_json=False) as console:
            if bar:
                console.progress(Step("comparing", 1, 2, detail=WICKED))
                assert SHOWN in shown(console)
            console.note(f"note {WICKED}")
            console.result(lambda: WICKED, lambda: f"result {WICKED}")
            raise InputError(f"error {WICKED}", hint=f"hint {WICKED}")

    with pytest.raises(typer.Exit):
        work()
    assert capsys.readouterr().out == f"result {SHOWN}\n"
    told = terminal.getvalue()
    for what in ("note", "error: error", "hint"):
        assert f"{what} {SHOWN}\n" in told
    assert not {"\x07", "\x9b", "\u202e"} & {*told}


def test_command_warnings_show_no_controls():
    before = warnings.formatwarning
    with command("verify", as_json=False):
        assert SHOWN in warnings.formatwarning(WICKED, UserWarning, "file.py", 1)
    assert warnings.formatwarning is before


def test_error_has_no_line_that_looks_like_ours(capsys):
    with pytest.raises(typer.Exit), command("verify", as_json=False):
        raise InputError("There is no bundle a\nPASSED in artifacts:\n  b", hint="Look.")
    assert capsys.readouterr().err == (
        "error: There is no bundle a\n  PASSED in artifacts:\n  b\nLook.\n"
    )


def test_command_traceback_shows_no_controls(capsys):
    with pytest.raises(typer.Exit), command("verify", as_json=False, verbose=True):
        raise RuntimeError(WICKED)
    err = capsys.readouterr().err
    assert f"RuntimeError: {SHOWN}\n" in err
    assert "Traceback" in err
    assert "\x1b" not in err


def test_command_json_is_exact(capsys):
    with command("verify", as_json=True) as console:
        console.result(lambda: {"label": WICKED}, lambda: "")
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out)["result"]["label"] == WICKED


def test_usage_error_shows_no_controls(capsys):
    assert run(["archs", f"--{WICKED}"]) == 2
    err = capsys.readouterr().err
    assert r"No such option: --a\x1b[31mb" in err
    assert not {"\x1b", "\x07", "\x9b", "\r", "\u202e"} & {*err}


def test_command_completes_hints_with_the_bundle(capsys):
    hint = "Try deploykit verify --images DIR; `deploykit build-trt` makes one, deploykit archs not"

    def work():
        with command("bench", as_json=False, bundle="my bundle", artifacts=Path("a")) as console:
            console.result(lambda: 1, lambda: "next deploykit bench --bundle /other --accept")
            raise InputError("it is not proven: deploykit verify --runtime openvino", hint=hint)

    with pytest.raises(typer.Exit):
        work()
    out, err = capsys.readouterr()
    assert out == "next deploykit bench --bundle /other --accept\n"
    given = "--bundle 'my bundle' --artifacts a"
    assert err == (
        f"error: it is not proven: deploykit verify {given} --runtime openvino\n"
        f"Try deploykit verify {given} --images DIR; `deploykit build-trt {given}` makes one, "
        "deploykit archs not\n"
    )
