"""Fixtures of the suite's tests."""

import shutil

import pytest
from fp16_networks import tune_fp16
from suite_runs import run_suite

from deploykit.bundle.folder import open_bundle


@pytest.fixture(scope="session")
def tuned_bundle(tmp_path_factory, exported_bundle, photo_folder):
    """The exported bundle with its FP16 graph; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("tuned") / "colours"
    shutil.copytree(exported_bundle.folder, folder)
    return tune_fp16(open_bundle(folder), images=photo_folder).bundle


@pytest.fixture
def bundle(tmp_path, tuned_bundle):
    """A copy of that bundle that a test may change."""
    folder = tmp_path / "bundles" / "colours"
    shutil.copytree(tuned_bundle.folder, folder)
    return open_bundle(folder)


@pytest.fixture(scope="session")
def sound_run(tmp_path_factory, tuned_bundle, photo_folder, network_file):
    """One run of the suite against a sound bundle, from a folder with a project's own settings."""
    project = tmp_path_factory.mktemp("project")
    (project / "pytest.ini").write_text(
        "[pytest]\naddopts = --strict-markers --strict-config -W error -p no:cacheprovider\n"
        "xfail_strict = true\n"
    )
    (project / "conftest.py").write_text(
        "import pytest\n\n"
        "@pytest.fixture(autouse=True)\n"
        "def bundle():\n    return 'the project has a fixture of this name, too'\n"
    )
    arch = f"{network_file}:Net"
    junit = project / "junit.xml"
    return run_suite(
        project, tuned_bundle, photo_folder, "--deploykit-arch", arch, f"--junitxml={junit}"
    ), junit.read_text(encoding="utf-8")
