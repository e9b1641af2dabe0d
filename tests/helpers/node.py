"""The page's modules in Node, where there is one: what they compute, without a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import deploykit

#: Reads ``[module, function, arguments]`` lists; bytes are files, and an answer of bytes as well.
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
  const isBytes = ArrayBuffer.isView(found);
  answers.push(isBytes ? { base64: Buffer.from(found.buffer, found.byteOffset, found.byteLength).toString("base64") } : found);
}
process.stdout.write(JSON.stringify(answers));
"""
_TEMPLATES = Path(deploykit.__file__).parent / "commands" / "package" / "templates"


def call_all(module: str, calls: list[tuple[str, list[Any]]]) -> list[Any]:
    """What functions of a module of the page answer; bytes travel as ``{"base64": ...}``.

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
        input=json.dumps([[url, name, arguments] for name, arguments in calls]),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[Any] = json.loads(done.stdout)
    return answers
