"""What ``benchmarks/gpu.py --all`` runs and writes, with a runner that needs no GPU."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import deploykit
from deploykit.commands.app import app
from deploykit.system.gpu import Gpu

FILE = Path(deploykit.__file__).parents[1] / "benchmarks" / "gpu_steps.py"
GPU = Gpu("NVIDIA GeForce RTX 4070", (8, 9), (13, 0))


@pytest.fixture(scope="module")
def gpu_steps():
    if not FILE.exists():
        pytest.skip("not run from a checkout")
    spec = importlib.util.spec_from_file_location("gpu_steps", FILE)
    module = sys.modules["gpu_steps"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_steps"]


def test_steps_are_commands_that_exist(gpu_steps, tmp_path):
    gpu_steps.make_images(tmp_path / "images", classes=("rings",))
    group = typer.main.get_command(app)
    steps = gpu_steps.steps_in(tmp_path)
    names = [step.name for step in steps]
    assert len(names) == len({*names})
    for place, step in enumerate(steps):
        assert step.needs in ("", *names[:place])
        assert all(Path(word).exists() for word in step.command if word.endswith(".py"))
        if step.command[1:3] == ("-m", "deploykit"):
            _, _, _, name, *options = step.command
            command = group.get_command(group.make_context("deploykit", [name]), name)
            command.make_context(name, options)
    for kind in ("onnxruntime-cuda fp32 --tf32", "onnxruntime-cuda fp16", "tensorrt_rtx int8"):
        assert f"verify {kind}" in names


def made_step(gpu_steps, name, program, limit_s=60.0, needs=""):
    return gpu_steps.Step(name, (sys.executable, "-c", program), limit_s, needs)


def test_run_all_writes_down_what_fails_and_goes_on(gpu_steps, capsys):
    hang = "import time; print('begun', flush=True); time.sleep(60)"
    steps = [
        made_step(gpu_steps, "fails", "import sys; print('no device'); sys.exit(5)"),
        made_step(gpu_steps, "hangs", hang, limit_s=2),
        made_step(gpu_steps, "needs", "print('never')", needs="fails"),
        gpu_steps.Step("missing", ("no-such-program",), 5),
        made_step(gpu_steps, "works", "print('here')"),
    ]
    results = {each.step.name: each for each in gpu_steps.run_all(steps, gpu_steps.run_process)}
    assert results["fails"].end == "a dependency or the device is missing"
    assert results["fails"].output == "no device\n"
    assert results["hangs"].end == "ended after its 2 s"
    assert results["hangs"].output == "begun\n"
    assert results["needs"].end == "not run: it needs the step fails"
    assert results["missing"].end.startswith("did not start: ")
    assert (results["works"].end, results["works"].output) == ("done", "here\n")
    assert len(capsys.readouterr().out.splitlines()) == len(steps)


def test_run_all_stops_when_the_time_is_over(gpu_steps):
    step = made_step(gpu_steps, "late", "")
    (result,) = gpu_steps.run_all([step], gpu_steps.run_process, total_s=0)
    assert result.end == "not run: the 0 s were over"


@pytest.mark.skipif(sys.platform == "win32", reason="no process groups")
def test_run_process_ends_children(gpu_steps, tmp_path):
    child = "import time; time.sleep(1.5); open('late', 'w')"
    program = f"import os, subprocess, sys, time; os.chdir({str(tmp_path)!r}); "
    program += f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    with pytest.raises(subprocess.TimeoutExpired):
        gpu_steps.run_process([sys.executable, "-c", program], 0.7, tmp_path / "log")
    subprocess.run([sys.executable, "-c", "import time; time.sleep(1.7)"], check=True)
    assert not (tmp_path / "late").exists()


def test_page_keeps_other_gpus_and_replaces_its_own(gpu_steps, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_steps, "make_images", lambda folder: None)

    def runner(command, limit_s, log):
        log.write_text(f"{command[-1]}\r  50 %\r\x1b[32mdone\x1b[0m\n## no title\n```\n")
        return 3 if "--tf32" in command else 0

    page = tmp_path / "gpu-results.md"
    page.write_text("# Results on GPUs\n\nNot run on a GPU.\n", encoding="utf-8")
    for gpu in (GPU, Gpu("NVIDIA H200", (9, 0), (13, 0)), GPU):
        assert gpu_steps.prepare_and_run(gpu, page, runner) == 3
    text = page.read_text(encoding="utf-8")
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["## NVIDIA GeForce RTX 4070", "## NVIDIA H200"]
    assert "Not run" not in text
    row = "| verify onnxruntime-cuda fp32 --tf32 | comparison failed or unproven | 0 | ``` |"
    assert row in text
    assert "\n    done\n    ## no title\n    ```\n" in text
    assert "--bundle WORK/artifacts/gpu" in text.replace("\\", "/")
    assert not (tmp_path / ".gpu-results.md").exists()


def test_page_of_long_outputs_keeps_their_end(gpu_steps):
    step = made_step(gpu_steps, "chatty", "")
    result = gpu_steps.Result(step, "done", 1.0, "\n".join(map(str, range(500))) + "\n\n")
    text = gpu_steps.section(GPU, [result], {})
    assert "    (380 lines before)\n    380\n" in text
    assert text.endswith("    499\n")
