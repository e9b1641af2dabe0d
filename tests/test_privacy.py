"""Nothing is written where nobody asked for it, and nobody is told that deploykit runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

#: What a user might have set: none of it may hide what a fresh machine would get.
SETTINGS = ("ORT_DISABLE_TELEMETRY", "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
#: The stages find fault with a network that has seen one epoch; whether INT8 passes, and what is
#: proven for ``bench``, depends on the CPU; and nobody but its author knows the network.
EXIT_CODES = {"verify": (0, 3), "quantize": (0, 3), "bench": (0, 3), "identify": (4,)}
COMMANDS = """
train photos --arch networks.py:Net --input-size 16x16 --epochs 1 --output run
export --arch networks.py:Net --ckpt run/best_model.pth --classes photos --input-size 16x16
verify --images photos --arch networks.py:Net --stages --layers --html page.html --junit parity.xml
predict photos --output rows.csv --output rows.parquet --html rows.html --runtime onnxruntime-cpu
quantize --images photos --search-seconds 1
build-trt --images photos --precision fp32
bench --images photos --seconds 0.1 --batch-sizes 2
inspect
package repository --format triton --preprocess
package bundle.zip --format zip
identify run/best_model.pth
archs
"""


#: Each command in turn, in one process: most of the time goes into importing torch. ``doctor``,
#: which starts one for each runtime, has a test of its own that looks at the home, too; and
#: ``identify`` compares with a network of each kind instead of with a thousand.
EVERY_COMMAND = f"""
import json, os, sys
from pathlib import Path
from deploykit.commands.app import run
from deploykit.models import registry

known = registry.list_architectures()
registry.list_architectures = lambda: {{origin: names[:1] for origin, names in known.items()}}
found = []
for line in {COMMANDS.strip().splitlines()!r}:
    code = run(line.split())
    found.append((line, code, [str(path) for path in Path(os.environ["HOME"]).rglob("*")]))
Path("found.json").write_text(json.dumps(found))
"""


@pytest.fixture
def call(tmp_path):
    """Run Python in a process of its own whose user has an empty home."""
    home = str(tmp_path / "home")
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    environment |= {"HOME": home, "USERPROFILE": home, "LOCALAPPDATA": home}
    Path(home).mkdir()

    def run(code, **more):
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment | more,
            capture_output=True,
            text=True,
        )

    return run


def test_home_stays_empty_after_every_command(call, tmp_path, network_file, photo_folder):
    (tmp_path / "networks.py").write_bytes(network_file.read_bytes())
    shutil.copytree(photo_folder, tmp_path / "photos")
    done = call(EVERY_COMMAND)
    assert done.returncode == 0, done.stderr
    for line, code, left in json.loads((tmp_path / "found.json").read_text()):
        assert code in EXIT_CODES.get(line.split()[0], (0,)), f"{line}: {code}: {done.stderr}"
        assert left == [], line


def test_home_stays_empty_after_write_curves(call, tmp_path):
    code = """
from pathlib import Path
from deploykit.commands.train.curves import write_curves
from deploykit.commands.train.state import Epoch
from deploykit.specs.heads import SingleLabel

values = dict.fromkeys(Epoch.__struct_fields__, 1)
for _ in range(2):
    write_curves([Epoch(**values)], Path("curves.png"), SingleLabel())
"""
    assert call(code).stderr == ""
    assert (tmp_path / "curves.png").is_file()
    assert list((tmp_path / "home").rglob("*")) == []


def test_import_disables_onnxruntime_telemetry(call):
    told = "import deploykit, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert call(told).stdout == "1\n"
    assert call(told, ORT_DISABLE_TELEMETRY="0").stdout == "0\n"  # the user decides
