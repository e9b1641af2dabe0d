"""The folder of a run: what a kill, a power cut or an editor leaves, and who may go on with it."""

import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import msgspec
import numpy as np
import pytest
from made_fingerprints import FINGERPRINT
from made_runs import PLAN, WORK, begun, begun_with
from mutations import mutated_bytes

from deploykit.commands.predict.ledger import Ledger
from deploykit.commands.predict.outputs import only_writer
from deploykit.commands.predict.plan import Shard, kept_path, path_of, shard_size_of
from deploykit.errors import InputError, UsageError
from deploykit.images.scan import ImageFile
from deploykit.specs.prediction import Prediction, Ranked
from deploykit.specs.preprocessing import Preprocessing

ROWS = [
    Prediction(
        path=f"{i}.jpg",
        label="owl",
        probability=1 / (i + 1),
        margin=math.pi * i,
        expected="crow",
        top=(
            Ranked(label="owl", probability=1 / (i + 1)),
            Ranked(label="crow", probability=i / (i + 1)),
        ),
    )
    for i in range(5)
]
HOSTILE = [
    Prediction(path=name, status="corrupt", reason=f"{name} is no image.")
    for name in ("new\nline.jpg", "carriage\rreturn.jpg", "line\u2028end.jpg", "caf\\udce9.jpg")
]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "p.csv.run"


def rows_of(ledger):
    return [row.row for row in ledger.rows()]


def test_ledger_rows_round_trip(folder):
    rows = [*ROWS, *HOSTILE]
    ledger = begun_with(folder, rows)
    assert rows_of(Ledger(folder)) == rows
    assert ledger.parts() == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 9)]
    ledger.remove()
    assert list(folder.parent.iterdir()) == []


def test_ledger_keeps_embeddings(folder):
    ledger = begun(folder, ["0.jpg", "1.jpg"])
    values = np.array([1.5, -2, np.nan], np.float32)
    ledger.write(0, [(ROWS[0], values), (ROWS[1], None)], WORK)
    first, second = ledger.rows()
    assert np.array_equal(np.frombuffer(first.embedding, "<f4"), values, equal_nan=True)
    assert second.embedding is None


def test_ledger_escapes_invalid_unicode(folder):
    ledger = begun(folder, ["a.jpg"])
    stray = Prediction(path="a.jpg", status="corrupt", reason="\udce9 is no image.")
    ledger.write(0, [(stray, None)], WORK)
    assert rows_of(ledger)[0].reason == "\\udce9 is no image."


def test_ledger_lists_files_of_any_shards(folder, tmp_path):
    names = [f"{i}.jpg" for i in range(100)]
    (tmp_path / "7.jpg").write_bytes(b"1234")
    ledger = Ledger(folder)
    ledger.begin(PLAN, [ImageFile(tmp_path, name) for name in names])
    shards = [Shard(0, 1), Shard(7, 9), Shard(9, 12), Shard(50, 51), Shard(99, 100), Shard(3, 4)]
    found = [file.name for file in ledger.files(shards, tmp_path)]
    assert found == [f"{i}.jpg" for shard in shards for i in range(*shard)]
    lines = next(folder.glob("list-*")).read_bytes().splitlines()
    listed = [msgspec.json.decode(line) for line in lines]
    assert [each["ordinal"] for each in listed] == [*range(100)]
    assert (listed[7]["size"], "size" in listed[8]) == (4, False)
    assert ledger.changed(tmp_path) == (0, "")
    (tmp_path / "7.jpg").write_bytes(b"12345")
    (tmp_path / "9.jpg").touch()
    assert ledger.changed(tmp_path) == (2, "7.jpg")


def test_ledger_misses_the_rest_of_a_shard(folder):
    ledger = begun_with(folder, ROWS, count=3)
    assert ledger.parts() == [(0, 2), (2, 3)]
    assert [*ledger.missing()] == [(3, 4), (4, 5)]
    assert ledger.count() == 3
    with pytest.raises(InputError, match="no row of file 3 of 5") as caught:
        rows_of(ledger)
    assert "--resume" in caught.value.hint


def test_ledger_parts_written_twice_are_one(folder):
    ledger = begun_with(folder, ROWS, count=3)
    ledger.write(2, [(ROWS[2], None), (ROWS[3], None)], WORK)
    ledger.write(2, [(ROWS[2], None), (ROWS[3], None)], WORK)
    ledger.write(4, [(ROWS[4], None)], WORK)
    assert ledger.parts() == [(0, 2), (2, 4), (4, 5)]
    assert rows_of(ledger) == ROWS


def test_ledger_ignores_parts_of_other_plans(folder):
    ledger = begun_with(folder, ROWS, count=2)
    other = begun_with(folder.with_name("other"), ROWS, skipped=3, shard_size=3)
    for part in (other.folder / "parts").iterdir():
        shutil.copy(part, folder / "parts")
    (folder / "parts" / ".0000000002-0000000004-0123456789ab.jsonl.00000000").touch()
    assert ledger.parts() == [(0, 2)]
    # Under a name of ours it has another plan's checksum.
    ours, theirs = (
        folder / "parts" / f"0000000003-0000000005-{each.made.digest[:12]}.jsonl"
        for each in (ledger, other)
    )
    theirs.rename(ours)
    assert ledger.read(Shard(3, 5)) is None


def test_plan_is_made_once(folder):
    """Of those that come at once one makes it, and all have that one."""
    with ThreadPoolExecutor(8) as threads:
        made = [*threads.map(lambda i: begun(folder, [f"{i}.jpg"]).made, range(8))]
    assert len({plan.list_sha256 for plan in made}) == 1
    (name,) = (path.name for path in folder.glob("list-*"))
    assert name == f"list-{made[0].list_sha256[:12]}.jsonl"
    assert sorted(path.name for path in folder.iterdir()) == [name, "parts", "plan.json"]
    Ledger(folder).check_list()


def test_plan_is_made_without_hard_links(folder, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    first = begun(folder, ["a.jpg"]).made
    assert begun(folder, ["b.jpg"]).made == first


def test_ledger_of_random_damage_gives_no_wrong_row(folder):
    ledger = begun_with(folder, ROWS)
    part = next(path for path in (folder / "parts").iterdir() if path.name.startswith("0000000002"))
    whole, random = part.read_bytes(), Random(0)
    for _ in range(300):
        data = mutated_bytes(whole, random)
        part.write_bytes(data)
        read = ledger.read(Shard(2, 4))
        assert (read is None) == (data != whole)
    part.write_bytes(whole[:-1])
    assert ledger.drop_damaged(ledger.parts()) == 2
    assert [*ledger.missing()] == [(2, 4)]
    ledger.write(2, [(row, None) for row in ROWS[2:4]], WORK)
    assert rows_of(ledger) == ROWS


@pytest.mark.parametrize(
    "changes",
    [
        {"label": "hen"},
        {"expected": "hen"},
        {"expected_labels": ("hen",), "expected": None},
        {"top": (Ranked(label="hen", probability=0.5),)},
        {"top": ()},
        {"margin": None},
        {"status": "corrupt"},
    ],
)
def test_ledger_does_not_trust_checksums(folder, changes):
    """Of what the tables and the page cannot show nothing is read."""
    made = msgspec.structs.replace(ROWS[1], **changes)
    ledger = begun_with(folder, [ROWS[0], made])
    assert ledger.read(Shard(0, 2)) is None


def test_ledger_with_a_damaged_list_is_refused(folder):
    ledger = begun_with(folder, ROWS, count=1)
    path = next(folder.glob("list-*"))
    path.write_bytes(path.read_bytes().replace(b'"path":"3.jpg"', b'"path":"4.jpg"'))
    with pytest.raises(InputError, match="is not as the run wrote it: its checksum is another"):
        ledger.check_list()
    for spoilt in (b"", b"{}\n", b'{"ordinal":0,"path":"a\\u0000"}\n', b"[" * 100_000):
        path.write_bytes(spoilt)
        with pytest.raises(InputError, match="is not as the run wrote it"):
            list(ledger.files([Shard(0, 5)], folder))


@pytest.mark.parametrize("left", [b"", b"\0\0\0"])
def test_plan_that_a_power_cut_emptied_is_none(folder, left):
    folder.mkdir()
    (folder / "plan.json").write_bytes(left)
    assert Ledger(folder).plan is None


@pytest.mark.parametrize(
    "plan",
    [
        b"notes",
        b"{}",
        b"[" * 100_000,
        msgspec.json.encode(PLAN).replace(b'"schema":1', b'"schema":9'),
        msgspec.json.encode(PLAN).replace(b'"shard_size":2', b'"shard_size":0'),
        msgspec.json.encode(PLAN).replace(b'"files":0', b'"files":-1'),
    ],
)
def test_ledger_leaves_foreign_folders_alone(folder, plan):
    folder.mkdir()
    (folder / "plan.json").write_bytes(plan)
    with pytest.raises(InputError, match="is no plan that this version") as caught:
        Ledger(folder)
    assert "delete the folder" in caught.value.hint
    assert (folder / "plan.json").read_bytes() == plan


def test_ledger_removes_only_its_own(folder):
    ledger = begun_with(folder, ROWS)
    (folder / "notes.txt").touch()
    ledger.remove()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_ledger_that_cannot_be_used(folder):
    folder.touch()
    with pytest.raises(UsageError, match=r"p\.csv\.run cannot be used") as caught:
        Ledger(folder)
    assert "permissions" in caught.value.hint


def test_ledger_that_cannot_be_removed(folder, monkeypatch):
    def held(self, missing_ok=False):
        raise PermissionError(13, "Permission denied")

    ledger = begun_with(folder, ROWS)
    monkeypatch.setattr(Path, "unlink", held)
    with pytest.raises(InputError, match="cannot be removed: Permission denied") as caught:
        ledger.remove()
    assert "Delete it" in caught.value.hint


def test_only_writer_of_an_output(tmp_path):
    with only_writer(tmp_path / "a.csv"):
        with (
            pytest.raises(UsageError, match=r"Another run is writing .*a\.csv"),
            only_writer(tmp_path / "a.csv"),
        ):
            pass
        with only_writer(tmp_path / "b.csv"):
            pass
    (tmp_path / ".a.csv.lock").touch()  # a kill has left it
    with only_writer(tmp_path / "a.csv"):
        pass
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("files", "workers", "size"),
    [(1, 1, 1), (225, 1, 32), (10**6, 40, 32), (10**9, 40, 7630), (100, 40, 3), (3, 40, 1)],
)
def test_shard_size_of(files, workers, size):
    assert shard_size_of(files, workers) == size


@pytest.mark.parametrize("path", ["/a/b", "a\\b/c", "caf\udce9/x", "b\\u00e9"])
def test_kept_path_leads_back(path):
    kept_path(Path(path)).encode()
    assert path_of(kept_path(Path(path))) == Path(path)


# What the rows follow from ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"file": "deploy/fp16.onnx"}, "file was deploy/fp32.onnx, now deploy/fp16.onnx"),
        (
            {"sha256": "cd" * 32},
            "the SHA-256 of deploy/fp32.onnx was abababababab..., now cdcdcdcdcdcd...",
        ),
        ({"runtime": "tensorrt"}, "runtime was onnxruntime-cpu, now tensorrt"),
        ({"device": "NVIDIA RTX"}, "device was CPU, now NVIDIA RTX"),
        ({"versions": {"pillow": "13.1.0"}}, "pillow was 13.0.0, now 13.1.0"),
        ({"versions": {}}, "pillow was 13.0.0, now not installed"),
        ({"precision": "fp16"}, "precision was fp32, now fp16"),
        ({"tf32": True}, "--tf32 was False, now True"),
        ({"labels": ("crow", "hawk")}, "label 1 was 'owl', now 'hawk'"),
        ({"labels": ("crow",)}, "there were 2 labels, now 1"),
        ({"preprocessing": "resize 256"}, "preprocessing was resize 224x224 (stretch), now resize"),
        ({"top_k": 1}, "--top-k was 2, now 1"),
        ({"source": "/others"}, "what is predicted was /photos, now /others"),
        ({"top_k": 1, "tf32": True}, "--tf32 was False, now True; --top-k was 2, now 1"),
    ],
)
def test_fingerprint_says_what_changed(changes, said):
    other = msgspec.structs.replace(FINGERPRINT, **changes)
    assert said in "; ".join(FINGERPRINT.changes_to(other))


def test_fingerprint_says_a_preprocessing_in_words():
    sizes = (Preprocessing(resize=(size, size)).to_metadata() for size in (224, 64))
    before, now = (msgspec.structs.replace(FINGERPRINT, preprocessing=each) for each in sizes)
    (change,) = before.changes_to(now)
    assert change.startswith("preprocessing was resize 224x224 (stretch), bilinear")
    assert "now resize 64x64 (stretch), bilinear" in change


@pytest.mark.parametrize(
    ("before", "way"),
    [
        ({"top_k": 1}, "add --top-k 1"),
        ({"runtime": "openvino"}, "add --runtime openvino --precision fp32"),
        ({"precision": "int8"}, "add --runtime onnxruntime-cpu --precision int8"),
        ({"tf32": True}, "add --tf32"),
        ({"source": "/other photos"}, "predict '/other photos'"),
        ({"device": "GPU"}, "run it on GPU"),
        ({"versions": {"pillow": "12.0.0"}}, "install pillow 12.0.0"),
        ({"versions": {}}, "install the packages that it was begun with and no others"),
        ({"sha256": "cd" * 32}, "name the bundle that it was begun with"),
        ({"labels": ("owl", "crow")}, "name the bundle that it was begun with"),
        ({"preprocessing": "resize 8x8"}, "name the bundle that it was begun with"),
        ({"file": "engines/a.engine"}, "name the bundle that it was begun with"),
        (
            {"runtime": "openvino", "file": "deploy/int8.onnx", "precision": "int8", "top_k": 1},
            "add --runtime openvino --precision int8 --top-k 1",
        ),
    ],
)
@pytest.mark.usefixtures("posix_shell")
def test_fingerprint_says_the_way_back(before, way):
    """The hint names what differs, and nothing else."""
    said = msgspec.structs.replace(FINGERPRINT, **before).way_back(FINGERPRINT)
    assert said.startswith(way)
    assert ("--runtime" in said) == ("runtime" in before or "precision" in before)


def test_fingerprint_without_tf32_says_to_leave_it_out():
    now = msgspec.structs.replace(FINGERPRINT, tf32=True)
    assert FINGERPRINT.way_back(now) == "leave out --tf32"
