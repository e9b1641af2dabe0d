"""The suite's look at engines, which needs no GPU."""

import hashlib
import shutil

import msgspec
import pytest
from suite_runs import acknowledged, outcomes, run_suite

from deploykit.bundle.folder import open_bundle
from deploykit.engine.passport import passport_path, read_passport, write_passport


@pytest.fixture
def engine_bundle(tmp_path, built_engine):
    """A copy of the bundle with an engine that a test may change."""
    folder = tmp_path / "engines" / "colours"
    shutil.copytree(built_engine.bundle.folder, folder)
    return open_bundle(folder)


@pytest.fixture
def check(tmp_path, engine_bundle):
    def run():
        return run_suite(tmp_path, engine_bundle, None, "-k", "passport or unchanged", "-rs")

    return run


def test_an_engine_with_its_passport_passes(engine_bundle, check):
    run = check()
    (engine,) = engine_bundle.manifest.engines
    assert run.returncode == 0, run.stdout
    assert outcomes(run)[f"test_passport[{engine}]"] == "PASSED"


def test_an_engine_of_another_graph_fails(engine_bundle, check):
    graph = engine_bundle.folder / "deploy/fp16.onnx"
    shutil.copy(engine_bundle.folder / "deploy/fp32.onnx", graph)
    acknowledged(engine_bundle, "deploy/fp16.onnx")
    run = check()
    (engine,) = engine_bundle.manifest.engines
    assert outcomes(run)[f"test_passport[{engine}]"] == "FAILED"
    assert "was built from another deploy/fp16.onnx than the bundle has now" in run.stdout


def test_an_engine_that_its_header_calls_another_fails(engine_bundle, check):
    (file,) = engine_bundle.manifest.engines
    path = engine_bundle.folder / file
    plan = bytearray(path.read_bytes())
    plan[24] += 1  # the major version
    path.write_bytes(plan)
    passport = read_passport(passport_path(path))
    sha256 = hashlib.sha256(plan).hexdigest()
    write_passport(passport_path(path), msgspec.structs.replace(passport, engine_sha256=sha256))
    acknowledged(engine_bundle, file)
    acknowledged(engine_bundle, f"{file}.json")
    run = check()
    assert outcomes(run)[f"test_passport[{file}]"] == "FAILED"
    assert f"; its passport says {passport.version}" in run.stdout


def test_a_copy_without_its_engines_passes(engine_bundle, check):
    shutil.rmtree(engine_bundle.folder / "engines")
    run = check()
    assert run.returncode == 0, run.stdout
    assert "the bundle has no engine here" in run.stdout
