"""The page's modules in Node, where there is one: what they compute, without a browser."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import deploykit

#: Reads ``[module, function, arguments]`` lists and answers with what the functions return.
_RUNNER = """
import { readFileSync } from "node:fs";
const calls = JSON.parse(readFileSync(0, "utf8"));
const sent = (value) => {
  if (Array.isArray(value)) return value.map(sent);
  if (value === null || typeof value !== "object") return value;
  if ("base64" in value) return new Uint8Array(Buffer.from(value.base64, "base64"));
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, sent(each)]));
};
const answers = [];
for (const [module, name, parameters] of calls) {
  const found = (await import(module))[name](...sent(parameters));
  const isBytes = found instanceof Uint8Array;
  answers.push(isBytes ? { base64: Buffer.from(found).toString("base64") } : found);
}
process.stdout.write(JSON.stringify(answers));
"""
_TEMPLATES = Path(deploykit.__file__).parent / "commands" / "package" / "templates"


def call_all(module: str, calls: list[tuple[str, list[Any]]]) -> list[Any]:
    """What functions of a module of the page answer; bytes go there and come back as bytes.

    Args:
        module: ``pixels.js``.
        calls: Names of functions and their arguments.
    """
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node on this machine")
    url = (_TEMPLATES / module).as_uri()
    done = subprocess.run(
        [node, "--input-type=module", "--no-warnings", "--eval", _RUNNER],
        input=json.dumps([[url, *call] for call in calls], default=_encoded),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[Any] = json.loads(done.stdout, object_hook=_decoded)
    return answers


def _encoded(value: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(value).decode()}


def _decoded(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["base64"]) if value.keys() == {"base64"} else value
