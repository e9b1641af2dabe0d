"""Signals and stdout, seen from outside: each case is a process of its own."""

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from deploykit.console.command import command
from deploykit.console.streams import interruptions

LOUD = """
import os
import subprocess
import sys
from networks import Net as Quiet

os.write(1, b"written past Python\\n")
subprocess.run([sys.executable, "-c", "print('a child')"])


class Net(Quiet):
    def forward(self, x):
        print("printed")
        return super().forward(x)
"""
INTERRUPTED = """
import os
import signal
import time
from networks import Net as Quiet


class Net(Quiet):
    def forward(self, x):
        try:
            os.kill(os.getpid(), signal.{name})
            time.sleep(30)
        except KeyboardInterrupt:
            raise AttributeError("what a library makes of it") from None
"""


def export(tmp_path, network_file, checkpoint, code):
    (tmp_path / "networks.py").write_bytes(network_file.read_bytes())
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    return subprocess.run(
        [
            *(sys.executable, "-m", "deploykit", "export", "--arch", "mine.py:Net"),
            *("--ckpt", str(checkpoint), "--input-size", "16", "--json"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )


def test_stdout_has_only_the_result(tmp_path, network_file, checkpoint):
    done = export(tmp_path, network_file, checkpoint, LOUD)
    assert json.loads(done.stdout)["exit_code"] == done.returncode == 0
    for text in ("written past Python", "a child", "printed"):
        assert text in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process there")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_ctrl_c_converted_by_a_library_exits_with_130(name, tmp_path, network_file, checkpoint):
    done = export(tmp_path, network_file, checkpoint, INTERRUPTED.format(name=name))
    answer = json.loads(done.stdout)
    assert done.returncode == answer["exit_code"] == 130
    assert answer["error"]["message"] == "Interrupted."
    assert not (tmp_path / "artifacts").exists()


QUICK = (
    ["--help"],
    ["--version"],
    ["bench", "--help"],
    ["archs", "dpn"],
    ["archs", "dpn", "--json"],
)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without /dev/full")
@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_full_stdout_is_one_error(arguments):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "deploykit", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 4
    assert done.stderr == (
        "error: The command is done, but stdout does not take its result: "
        "No space left on device.\nLook at where stdout leads: its disk may be full.\n"
    )


@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_closed_pipe_is_no_error(arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "deploykit", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without /dev/full")
def test_full_stderr_ends_no_command():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "deploykit", "archs", "no-such-network"],
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "")


SWALLOWED = """
import os
import signal
import time
from networks import Net as Quiet


class Net(Quiet):
    def forward(self, x):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(30)
        except KeyboardInterrupt:
            pass
        return super().forward(x)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process there")
def test_ctrl_c_swallowed_by_a_library_exits_with_130(tmp_path, network_file, checkpoint):
    done = export(tmp_path, network_file, checkpoint, SWALLOWED)
    answer = json.loads(done.stdout)  # one object, and no result
    assert done.returncode == answer["exit_code"] == 130
    assert not (tmp_path / "artifacts").exists()


@pytest.fixture
def handlers():
    """The handlers of signals, put back afterwards."""
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in map(signal.Signals.__getitem__, names)}
    yield [*before]
    for number, handler in before.items():
        signal.signal(number, handler)


def test_interruptions_keep_ignored_signals_ignored(handlers):
    """``nohup``, or ``trap '' INT``, means all of the command."""
    for number in handlers:
        signal.signal(number, signal.SIG_IGN)
        with interruptions() as received:
            assert signal.getsignal(number) is signal.SIG_IGN
            signal.raise_signal(number)
        assert received == []
        assert signal.getsignal(number) is signal.SIG_IGN
        signal.signal(number, signal.SIG_DFL)
        with pytest.raises(KeyboardInterrupt), interruptions() as received:
            signal.raise_signal(number)
        assert received == [number]
        assert signal.getsignal(number) is signal.SIG_DFL


@pytest.mark.parametrize("as_json", [False, True])
def test_command_swallowed_interruption_is_no_success(as_json, handlers, capsys):
    def swallow():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)

    def swallow_and_show():
        with command("x", as_json=as_json) as console:
            swallow()
            console.result(lambda: "value", lambda: "text")

    with pytest.raises(typer.Exit) as ended:
        swallow_and_show()
    assert ended.value.exit_code == 130
    with pytest.raises(typer.Exit) as ended, command("x", as_json=as_json):
        swallow()
    assert ended.value.exit_code == 130
    shown = capsys.readouterr()
    assert "value" not in shown.out
    assert "text" not in shown.out
    assert shown.err.count("Interrupted.") == (0 if as_json else 2)


def test_command_interrupted_after_its_result_is_done(handlers, capsys):
    with command("x", as_json=True) as console:
        console.result(lambda: "value", lambda: "text")
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert json.loads(capsys.readouterr().out)["result"] == "value"
