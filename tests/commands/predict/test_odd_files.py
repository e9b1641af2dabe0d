"""Whatever a file holds: one row, the right one, and nothing printed."""

import subprocess
import sys

import numpy as np
import pytest
from answered_files import answers, as_in_training
from odd_files import ODD_FILES

from deploykit.commands.predict.run import PredictionRun, PredictRequest


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    for odd in ODD_FILES:
        (folder / odd.name).write_bytes(odd.content)
    return folder


@pytest.fixture(scope="module")
def odd_answers(odd_folder):
    return answers(odd_folder)


@pytest.mark.parametrize("odd", ODD_FILES, ids=lambda odd: odd.name)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of the comparison's own reading
def test_read_batches_of_each_odd_file(odd, odd_answers, odd_folder):
    answer = odd_answers[odd.name]
    if odd.status == "ok":
        np.testing.assert_array_equal(answer, as_in_training(odd_folder / odd.name))
    else:
        assert answer.status == odd.status
        assert odd.reason in answer.reason
        assert answer.reason.endswith(".")


@pytest.mark.parametrize("concurrent", [False, True])
@pytest.mark.parametrize("batch_size", [1, 5, 200])
def test_read_batches_of_odd_files_at_any_size(odd_folder, odd_answers, concurrent, batch_size):
    assert len(ODD_FILES) >= 80
    found = answers(odd_folder, concurrent=concurrent, batch_size=batch_size)
    assert list(found) == sorted(odd.name for odd in ODD_FILES)
    for name, answer in found.items():
        np.testing.assert_equal(answer, odd_answers[name])


DECODE_ALL = """
import contextlib, pathlib, sys
from deploykit.images.decode import DecodeError, decode_rgb

for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    with contextlib.suppress(DecodeError):
        decode_rgb(path)
"""


@pytest.mark.skipif(
    sys.platform == "win32", reason="here libtiff is part of Pillow's library: out of reach"
)
def test_decode_of_odd_files_prints_nothing(odd_folder):
    # In a process of its own: pytest would catch what Pillow logs.
    command = [sys.executable, "-c", DECODE_ALL, str(odd_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_predict_hostile_folder_has_all_rows(exported_bundle, odd_folder):
    with PredictionRun(exported_bundle, PredictRequest(odd_folder, batch_size=5)) as run:
        rows = list(run)
    assert [row.path for row in rows] == sorted(odd.name for odd in ODD_FILES)
    status = {odd.name: odd.status for odd in ODD_FILES}
    assert {row.path: row.status for row in rows} == status
    assert all((row.label is None) == bool(row.reason) == (row.status != "ok") for row in rows)
    assert run.tally.ok == list(status.values()).count("ok")
