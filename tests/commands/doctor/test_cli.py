"""``deploykit doctor`` from outside, with what is really installed here."""

import json
import os
import subprocess
import sys

CODE = """
import sys
from deploykit.commands.app import run

before = set(sys.modules)
assert run(["doctor", "--json"]) == 0
print(*sorted(set(sys.modules) - before), file=sys.stderr)
"""


def test_doctor_on_this_machine_loads_no_training_code_and_leaves_home_empty(tmp_path):
    home = dict.fromkeys(("HOME", "USERPROFILE", "LOCALAPPDATA"), str(tmp_path))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "MPLCONFIG"))}
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=kept | home
    )
    assert list(tmp_path.rglob("*")) == []
    answer = json.loads(done.stdout)
    assert (answer["command"], answer["exit_code"]) == ("doctor", 0)
    result = answer["result"]
    assert set(result) == {"machine", "versions", "findings"}
    assert result["machine"]["cores"] >= 1
    assert result["machine"]["memory_bytes"] > 2**28
    assert result["machine"]["cpu"]
    assert result["versions"]["deploykit"]
    findings = {finding["name"]: finding for finding in result["findings"]}
    assert findings["onnxruntime-cpu"]["status"] == "works"
    assert set(findings["onnxruntime-cpu"]) == {"name", "status", "detail", "remedy"}

    loaded = done.stderr.split()
    assert "deploykit.commands.doctor.run" in loaded
    ours = ("deploykit.commands.train", "deploykit.commands.export", "deploykit.models")
    heavy = ("torch", "torchvision", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
    assert [name for name in loaded if name.startswith(ours)] == []
    assert [name for name in loaded if name.partition(".")[0] in heavy] == []
