"""A bundle as a web page: what is written and refused, and where onnxruntime-web comes from."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from deploykit.bundle.folder import Bundle
from deploykit.bundle.golden import read_golden
from deploykit.commands.app import run
from deploykit.commands.package import web_runtime
from deploykit.commands.package.request import PackageRequest
from deploykit.commands.package.run import package_bundle
from deploykit.commands.package.web_runtime import FILES, VERSION, copy_runtime
from deploykit.errors import BundleError, InputError, MissingError, ParityError
from deploykit.specs.preprocessing import Preprocessing

posix = pytest.mark.skipif(os.name != "posix", reason="the made npm is a shell script")


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that passes for onnxruntime-web, unpacked."""
    folder = tmp_path / "node_modules" / "onnxruntime-web"
    (folder / "dist").mkdir(parents=True)
    made = {name: f"made {name}".encode() for name in FILES}
    for name, content in made.items():
        (folder / "dist" / name).write_bytes(content)
        monkeypatch.setitem(FILES, name, hashlib.sha256(content).hexdigest())
    return folder


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a shell script in npm's place."""

    def put(script: str) -> None:
        path = tmp_path / "bin" / "npm"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")

    return put


def package(bundle: Bundle, output: Path, runtime: Path | None) -> Path:
    request = PackageRequest(format="web", output=output, onnxruntime_web=runtime)
    return package_bundle(bundle, request).output


def with_preprocessing(bundle: Bundle, preprocessing: Preprocessing) -> Bundle:
    manifest = msgspec.structs.replace(bundle.manifest, preprocessing=preprocessing)
    return Bundle(bundle.folder, manifest)


def settings_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="settings">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def test_package_web_has_all_that_the_page_loads(
    exported_bundle: Bundle, tmp_path: Path, runtime: Path
) -> None:
    made = package(exported_bundle, tmp_path / "page", runtime)
    files = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert files == {
        *("index.html", "answers.js", "pixels.js", "model.onnx", "deploykit.json"),
        *("golden/images.bin", "golden/logits.bin"),
        *(f"runtime/{name}" for name in FILES),
    }
    graph = (exported_bundle.folder / "deploy" / "fp32.onnx").read_bytes()
    assert (made / "model.onnx").read_bytes() == graph
    golden = read_golden(exported_bundle)
    assert (made / "golden/images.bin").read_bytes() == golden.images.tobytes()
    logits = np.frombuffer((made / "golden/logits.bin").read_bytes(), "<f4")
    assert np.array_equal(logits.reshape(golden.logits.shape), golden.logits)


def test_package_web_page_names_no_other_place(
    exported_bundle: Bundle, tmp_path: Path, runtime: Path
) -> None:
    made = package(exported_bundle, tmp_path / "page", runtime)
    page = (made / "index.html").read_text(encoding="utf-8")
    found = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert found
    policy = dict(part.split(" ", 1) for part in found[1].replace("&#39;", "'").split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == policy["worker-src"] == "'self'"
    assert policy["img-src"] == "data: blob:"
    assert policy["trusted-types"] == "default"
    assert policy["script-src"].endswith(" 'self' 'wasm-unsafe-eval'")
    for text in (page, *((made / name).read_text() for name in ("pixels.js", "answers.js"))):
        assert "://" not in text
    settings = settings_of(page)
    assert settings["labels"] == ["blue", "green", "red"]
    assert settings["golden"]["decidable"] == [True] * 8


@pytest.mark.parametrize(
    ("preprocessing", "reason"),
    [
        (Preprocessing(resize=(16, 16), pixels="float32"), "its pixels are float32"),
        (Preprocessing(resize=(16, 16), antialias=False), "bilinear without antialiasing"),
    ],
    ids=["float32", "no antialias"],
)
def test_package_web_refuses_other_pixels(
    exported_bundle: Bundle,
    tmp_path: Path,
    runtime: Path,
    preprocessing: Preprocessing,
    reason: str,
) -> None:
    with pytest.raises(BundleError, match=reason):
        package(with_preprocessing(exported_bundle, preprocessing), tmp_path / "page", runtime)
    assert not (tmp_path / "page").exists()


def test_package_web_tells_whether_photos_are_shown(
    exported_bundle: Bundle, tmp_path: Path, runtime: Path
) -> None:
    request = PackageRequest(format="web", output=tmp_path / "page", onnxruntime_web=runtime)
    notes = " ".join(package_bundle(exported_bundle, request).written.notes)
    assert "gets the golden images, which are some of your photos" in notes
    manifest = msgspec.structs.replace(exported_bundle.manifest, golden="generated")
    request = PackageRequest(format="web", output=tmp_path / "other", onnxruntime_web=runtime)
    private = package_bundle(Bundle(exported_bundle.folder, manifest), request)
    assert "your photos" not in " ".join(private.written.notes)
    assert "deploy/fp32.onnx is proven on onnxruntime-cpu, CPU" in notes


def test_package_web_refuses_a_failed_graph(
    exported_bundle: Bundle, tmp_path: Path, runtime: Path
) -> None:
    kept = [
        msgspec.structs.replace(each, reasons=("3 of 8 images changed their class",))
        for each in exported_bundle.manifest.verdicts
    ]
    manifest = msgspec.structs.replace(exported_bundle.manifest, verdicts=tuple(kept))
    with pytest.raises(ParityError, match=r"deploy/fp32\.onnx has failed its comparison: .*3 of 8"):
        package(Bundle(exported_bundle.folder, manifest), tmp_path / "page", runtime)
    assert not (tmp_path / "page").exists()


def test_package_web_command(
    folder: Path, tmp_path: Path, runtime: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = ["package", str(tmp_path / "page"), "--bundle", str(folder), "--json"]
    source = ["--onnxruntime-web", str(runtime)]
    assert run([*page, *source, "--format", "web"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert result["format"] == "web"
    assert "index.html" in result["files"]
    assert result["command"].startswith("python -m http.server --bind 127.0.0.1 --directory ")
    assert run([*page, *source, "--format", "triton", "--overwrite"]) == 2
    assert "--onnxruntime-web" in json.loads(capsys.readouterr().out)["error"]["message"]


# onnxruntime-web.


def test_copy_runtime_takes_what_another_page_has(tmp_path: Path, runtime: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, source in ((first, runtime), (second, first)):
        folder.mkdir()
        copy_runtime(folder, source)
        assert {path.name for path in folder.iterdir()} == {*FILES}


def test_copy_runtime_refuses_other_files(tmp_path: Path, runtime: Path) -> None:
    name = next(iter(FILES))
    (runtime / "dist" / name).write_bytes(b"changed")
    with pytest.raises(InputError, match=f"{name} of .* is not that of onnxruntime-web {VERSION}"):
        copy_runtime(tmp_path, runtime)
    (runtime / "dist" / name).unlink()
    with pytest.raises(InputError, match=f"has no {name}") as caught:
        copy_runtime(tmp_path, runtime)
    assert caught.value.hint
    assert caught.value.hint.endswith(f"npm pack onnxruntime-web@{VERSION}")


def test_copy_runtime_without_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="npm is not installed") as caught:
        copy_runtime(tmp_path)
    assert caught.value.exit_code == 5
    assert "--onnxruntime-web" in str(caught.value.hint)


@posix
def test_copy_runtime_tells_what_npm_says(tmp_path: Path, npm: Callable[[str], None]) -> None:
    npm("echo 'npm error code ENOTFOUND' >&2; exit 1")
    with pytest.raises(MissingError, match="ENOTFOUND"):
        copy_runtime(tmp_path)


@posix
@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ("echo another > onnxruntime-web.tgz", InputError, "is not that: its hash is sha512-"),
        ("exit 0", MissingError, "npm wrote 0 archives"),
        ("exec sleep 60", MissingError, "npm did not do its work"),
    ],
    ids=["another archive", "nothing", "hangs"],
)
def test_copy_runtime_refuses_what_is_not_pinned(
    tmp_path: Path,
    npm: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.setattr(web_runtime, "_SECONDS", 0.5)
    npm(script)
    with pytest.raises(error, match=message):
        copy_runtime(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"bin"}
