"""What ``gpu.py --all`` runs, and the page that it writes.

Each step is a process of its own with a time limit. A step that fails, hangs or crashes is written
down, and the others go on; only what needs its files is not run.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from deploykit.runtime.opener import precisions_of
from deploykit.specs.model import Precision
from deploykit.system.files import replacing
from deploykit.system.gpu import Gpu
from deploykit.system.text import command_line, visible

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "gpu-results.md"
TOTAL_S = 600.0
#: The network of the tutorial whose speed on a GPU is published.
ARCH = "dpn92"
CLASSES = ("across", "down", "rings", "squares")
IMAGES_A_CLASS = 50
#: Of what a step printed, the page keeps the end.
MOST_LINES = 120
MOST_LETTERS = 100

_HEAD = """# Results on GPUs

`python benchmarks/gpu.py --all` writes this page, a section for each GPU, the last one first. It
trains {arch} for two epochs on made images, exports it, and compares and measures every engine and
CUDA precision. What failed is listed, too.
"""
_ENDS = {
    0: "done",
    1: "failed",
    3: "comparison failed or unproven",
    4: "bad input",
    5: "a dependency or the device is missing",
}


@dataclass(frozen=True)
class Step:
    """A command.

    Attributes:
        name: What the page calls it.
        command: Its words, the program first.
        limit_s: Seconds until it is ended.
        needs: The step without whose files it makes no sense; "" for none.
    """

    name: str
    command: tuple[str, ...]
    limit_s: float
    needs: str = ""


class Result(NamedTuple):
    """What became of a step.

    Attributes:
        step: The step.
        end: ``done``, or why not.
        seconds: Of its run; 0 if it was not run.
        output: All that it printed.
    """

    step: Step
    end: str
    seconds: float = 0.0
    output: str = ""


#: From a command, its seconds and the file for all that it prints, to its exit code.
Runner = Callable[[Sequence[str], float, Path], int]


def steps_in(work: Path, arch: str = ARCH) -> list[Step]:
    """The steps, those that tell most first.

    Args:
        work: A folder for all that they make.
        arch: The architecture.
    """
    python, images, bundle = sys.executable, str(work / "images"), str(work / "artifacts" / "gpu")
    train, given = work / "train", ("--bundle", bundle, "--images", images)

    def deploykit(name: str, *words: str, limit_s: float = 60, needs: str = "export") -> Step:
        return Step(name, (python, "-m", "deploykit", *words), limit_s, needs)

    def verified(runtime: str, precision: Precision, *options: str, needs: str) -> Step:
        which = ("--runtime", runtime, "--precision", precision, *options)
        name = " ".join(("verify", runtime, precision, *options))
        return deploykit(name, "verify", *given, *which, needs=needs)

    def engines(precision: Precision, graph: str) -> Iterable[Step]:
        for flavour in ("tensorrt_rtx", "tensorrt"):
            name = f"build {flavour} {precision}"
            kind = ("--flavour", flavour, "--precision", precision)
            yield deploykit(name, "build-trt", *given, *kind, limit_s=90, needs=graph)
            yield verified(flavour, precision, needs=name)

    fitted = ("--arch", arch, "--epochs", "2", "--batch-size", "16")
    exported = ("--arch", arch, "--ckpt", str(train / "best_model.pth"), "--images", images)
    placed = ("--name", "gpu", "--artifacts", str(work / "artifacts"))
    return [
        deploykit("doctor", "doctor", needs=""),
        Step("TensorRT for RTX probe", (python, str(ROOT / "benchmarks" / "probe_rtx.py")), 60),
        # On the CPU where torch is not for CUDA: the rest needs only its checkpoint.
        deploykit("train", "train", images, *fitted, "--output", str(train), limit_s=150, needs=""),
        deploykit("export", "export", *exported, *placed, limit_s=90, needs="train"),
        deploykit("fp16 graph", "quantize", "--precision", "fp16", *given),
        verified("onnxruntime-cuda", "fp32", needs="export"),
        verified("onnxruntime-cuda", "fp32", "--tf32", needs="export"),
        *(
            verified("onnxruntime-cuda", each, needs=f"{each} graph")
            for each in precisions_of("onnxruntime-cuda")
            if each != "fp32"
        ),
        *engines("fp16", "fp16 graph"),
        *engines("fp32", "export"),
        Step(
            "sessions beside torch",
            (python, str(ROOT / "benchmarks" / "gpu.py"), bundle, "--seconds", "0.5"),
            90,
            "export",
        ),
        deploykit("bench", "bench", *given, "--seconds", "20", limit_s=120),
        Step("tests", (python, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider"), 200),
        deploykit(
            "int8 graph", "quantize", "--precision", "int8", "--search-seconds", "20", *given,
            limit_s=120,
        ),
        *engines("int8", "int8 graph"),
    ]  # fmt: skip


def run_all(steps: Iterable[Step], runner: Runner, total_s: float = TOTAL_S) -> list[Result]:
    """Run steps one after the other, and say how each ends.

    Args:
        steps: The steps.
        runner: What runs one, see :func:`run_process`.
        total_s: Seconds for all: what has not begun by then is not run.
    """
    results: dict[str, Result] = {}
    start = time.monotonic()
    for step in steps:
        left = total_s - (time.monotonic() - start)
        needed = results.get(step.needs)
        if needed is not None and needed.end != "done":
            result = Result(step, f"not run: it needs the step {step.needs}")
        elif left <= 0:
            result = Result(step, f"not run: the {total_s:g} s were over")
        else:
            result = _run(step, runner, min(step.limit_s, left))
        print(f"{step.name:<40} {result.seconds:6.1f} s  {result.end}", flush=True)
        results[step.name] = result
    return [*results.values()]


def _run(step: Step, runner: Runner, limit_s: float) -> Result:
    start = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "output.txt"
        log.touch()
        try:
            code = runner(step.command, limit_s, log)
            end = _ENDS.get(code, f"crashed ({code})" if code < 0 else f"exit code {code}")
        except subprocess.TimeoutExpired:
            end = f"ended after its {limit_s:.0f} s"
        except OSError as exc:
            end = f"did not start: {exc}"
        seconds = time.monotonic() - start
        return Result(step, end, seconds, log.read_text(encoding="utf-8", errors="replace"))


def run_process(command: Sequence[str], limit_s: float, log: Path) -> int:
    """Run a command from the checkout; its children end with it.

    What it prints goes to a file, because a pipe stays open as long as a child of its lives.

    Raises:
        subprocess.TimeoutExpired: It took longer than it may.
        OSError: It does not start.
    """
    settings = {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | settings,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=os.name == "posix",
        )
        try:
            return process.wait(limit_s)
        finally:
            if os.name == "posix":
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # whoever is left of it
            process.kill()
            process.wait()


def make_images(folder: Path, classes: Sequence[str] = CLASSES) -> None:
    """Make stripes across, stripes down, rings and squares in noise, a sub-folder a class."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:240, 0:320]
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(IMAGES_A_CLASS):
            period, shift = rng.uniform(12, 40), rng.uniform(0, 40, 2)
            down, right = (y + shift[0]) * 2 * np.pi / period, (x + shift[1]) * 2 * np.pi / period
            pattern = {
                "across": np.sin(down),
                "down": np.sin(right),
                "rings": np.sin(np.hypot(y - 120, x - 160) * 2 * np.pi / period),
                "squares": np.sin(down) * np.sin(right),
            }[name]
            colour = rng.uniform(30, 110, 3)
            noisy = 128 + pattern[..., None] * colour + rng.normal(0, 25, (240, 320, 3))
            image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
            image.save(folder / name / f"{i:02}.png")


def section(gpu: Gpu, results: Sequence[Result], hidden: Mapping[str, str]) -> str:
    """A GPU's section: a row for each step, then what each printed.

    Args:
        gpu: The GPU.
        results: Of all steps.
        hidden: What stands in the page for folders of this machine.
    """
    major, minor = gpu.cuda_version
    lines = [
        f"## {visible(gpu.name)}",
        "",
        f"{time.strftime('%Y-%m-%d')}; {gpu.target}, CUDA up to {major}.{minor}; driver and "
        "versions are what `doctor` printed.",
        "",
        "| step | result | seconds | its last line |",
        "|---|---|---|---|",
        *map(_row, results),
    ]
    for each in results:
        words = [Path(each.step.command[0]).stem, *each.step.command[1:]]
        # Indented, and not fenced: whatever is printed, no line of it ends the block.
        printed = [f"    $ {command_line(words)}", *_printed(each.output)]
        lines += ["", f"### {each.step.name}: {each.end}", "", *printed]
    text = "\n".join(lines) + "\n"
    for folder, name in hidden.items():
        text = text.replace(folder, name)
    return text


def _row(result: Result) -> str:
    """A row of the table; the last line of tests and of a verification is their verdict."""
    last = ([line.strip() for line in _printed(result.output)] or [""])[-1]
    last = last[:MOST_LETTERS].replace("|", "/")
    return f"| {result.step.name} | {result.end} | {result.seconds:.0f} | {last} |"


def _printed(output: str) -> list[str]:
    """The last lines of an output as a terminal would show them, without colours."""
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", output)
    # A bar of progress overwrites its line.
    shown = [line.rstrip().rpartition("\r")[2] for line in plain.split("\n")]
    shown = [f"    {visible(line, lines=True)}".rstrip() for line in shown]
    while shown and not shown[-1]:
        shown.pop()
    cut = len(shown) - MOST_LINES
    return [f"    ({cut} lines before)", *shown[cut:]] if cut > 0 else shown


def with_section(page: str, new: str, arch: str = ARCH) -> str:
    """The page with a GPU's section first, in the place of an older one of the same GPU."""
    title = new.partition("\n")[0]
    sections = re.split(r"^(?=## )", page, flags=re.MULTILINE)[1:]
    others = [each for each in sections if each.partition("\n")[0] != title]
    return "\n".join((_HEAD.format(arch=arch), new, *others)).rstrip() + "\n"


def prepare_and_run(gpu: Gpu, page: Path = PAGE, runner: Runner = run_process) -> int:
    """Make the images, run every step, and write the page.

    Returns:
        0 if every step was done, else 3; the page is written either way.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        work = Path(folder).resolve()
        make_images(work / "images")
        results = run_all(steps_in(work), runner)
        folders = {work: "WORK", ROOT: ".", Path(sys.prefix): "PYTHON", Path.home(): "~"}
        hidden = {str(folder): name for folder, name in folders.items() if folder.name}
        new = section(gpu, results, hidden)
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    with replacing(page) as partial:
        partial.write_text(with_section(old, new), encoding="utf-8", newline="\n")
    print(f"written {page}")
    return 0 if all(each.end == "done" for each in results) else 3
