"""The journal: what a kill, a power cut or a full disk leaves, and who may go on with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from random import Random

import msgspec
import pytest
from made_fingerprints import FINGERPRINT

from deploykit.commands.predict.journal import Journal
from deploykit.errors import InputError, UsageError
from deploykit.specs.prediction import Prediction, Ranked

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
    for i in range(4)
]
BROKEN = Prediction(path="b.jpg", status="truncated", reason="The file ends too early.")
HOSTILE = [
    Prediction(path=name, status="corrupt", reason=f"{name} is no image.")
    for name in ("new\nline.jpg", "carriage\rreturn.jpg", "line\u2028end.jpg", "caf\\udce9.jpg")
]


class KilledError(Exception):
    """Stands for whatever ends a run."""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "p.csv"


def leave(table: Path, rows: Iterable[Prediction]) -> Path:
    """What a run leaves that was killed after some rows: its journal."""
    with suppress(KilledError), Journal(table, resume=False) as journal:
        journal.begin(FINGERPRINT)
        for row in rows:
            journal.write(row)
        raise KilledError
    return journal.path


def resumed(table: Path, rows: Iterable[Prediction] = ()) -> list[Prediction]:
    """All rows after another run has added some."""
    with Journal(table, resume=True) as journal:
        journal.begin(FINGERPRINT)
        for row in rows:
            journal.write(row)
        rows = list(journal.rows())
        journal.remove()
    return rows


def test_journal_rows_round_trip(table: Path) -> None:
    rows = [*ROWS, BROKEN, *HOSTILE]
    with Journal(table, resume=False) as journal:
        journal.begin(FINGERPRINT)
        for row in rows:
            journal.write(row)
        assert list(journal.rows()) == rows
        assert journal.count == len(rows)
        journal.remove()
    assert list(table.parent.iterdir()) == []


def test_journal_is_json_lines_beside_the_table(table: Path) -> None:
    path = leave(table, [*ROWS, *HOSTILE])
    assert path == table.with_name("p.csv.journal")
    lines = path.read_bytes().split(b"\n")
    assert msgspec.json.decode(lines[0])["fingerprint"]["labels"] == ["crow", "owl"]
    assert [msgspec.json.decode(line)["path"] for line in lines[1:-1]] == [
        row.path for row in [*ROWS, *HOSTILE]
    ]
    assert lines[-1] == b""


def test_journal_escapes_invalid_unicode(table: Path) -> None:
    stray = Prediction(path="caf\udce9", status="corrupt", reason="\udce9 is no image.")
    leave(table, [stray, BROKEN])
    first, second = resumed(table)
    assert (first.path, first.reason) == ("caf\\udce9", "\\udce9 is no image.")
    assert second == BROKEN


def test_journal_writes_each_row_at_once(table: Path) -> None:
    with Journal(table, resume=False) as journal:
        journal.begin(FINGERPRINT)
        for count, row in enumerate(ROWS, start=1):
            journal.write(row)
            assert len(journal.path.read_bytes().splitlines()) == 1 + count


@pytest.mark.parametrize(("seconds", "synced"), [(0.0, 4), (3600.0, 0)])
def test_journal_syncs_at_intervals(
    table: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, synced: int
) -> None:
    calls: list[int] = []
    monkeypatch.setattr("deploykit.commands.predict.journal._SYNC_SECONDS", seconds)
    monkeypatch.setattr("deploykit.commands.predict.journal.os.fsync", calls.append)
    with Journal(table, resume=False) as journal:
        journal.begin(FINGERPRINT)
        for row in ROWS:
            journal.write(row)
        assert len(calls) == synced


def test_journal_resumes_after_a_kill(table: Path) -> None:
    leave(table, ROWS[:2])
    with Journal(table, resume=True) as journal:
        assert journal.done == {"0.jpg", "1.jpg"}
        assert journal.count == 2
        journal.begin(FINGERPRINT)
        for row in ROWS[2:]:
            journal.write(row)
        assert list(journal.rows()) == ROWS
        assert journal.count == 4
        journal.remove()
    assert list(table.parent.iterdir()) == []


def test_journal_killed_at_any_byte_keeps_whole_rows(table: Path) -> None:
    path = leave(table, ROWS[:3])
    whole = path.read_bytes()
    ends = [end for end, byte in enumerate(whole, start=1) if byte == ord("\n")][1:]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = sum(end <= size for end in ends)
        with Journal(table, resume=True) as journal:
            assert journal.damaged == 0
        assert resumed(table, ROWS[kept:]) == ROWS


def damaged(table: Path) -> int:
    """See that a journal with other bytes than were written gives only what was; count its rows."""
    path = table.with_name("p.csv.journal")
    try:
        with Journal(table, resume=True) as journal:
            kept = len(journal.done)
    except InputError:  # of the header, which says what the rows follow from
        with pytest.raises(InputError, match="is no journal"), Journal(table, resume=False):
            pass
        path.unlink()
        return 0
    assert resumed(table, ROWS[kept:]) == ROWS
    return kept


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [*lines[:3], b"\0" * 40 + b"\n", *lines[4:]],
        lambda lines: [*lines[:3], b"{}\n", *lines[4:]],
        lambda lines: [*lines[:3], b"\xff\n", *lines[4:]],
        lambda lines: [*lines[:3], b"[" * 100_000 + b"\n", *lines[4:]],
        lambda lines: [*lines[:3], lines[3].replace(b"0.333", b"-0.33"), *lines[4:]],
        lambda lines: [*lines[:3], lines[3].replace(b'"ok"', b'"ok\\u0000"'), *lines[4:]],
        lambda lines: [*lines[:3], lines[3].replace(b"owl", b"hen"), *lines[4:]],
        lambda lines: [*lines[:3], lines[3].replace(b"owl", b"\xffwl"), *lines[4:]],
        lambda lines: [*lines[:3], lines[3].replace(b":", b": ", 1), *lines[4:]],
        lambda lines: [*lines[:3], lines[2], *lines[3:]],
        lambda lines: [*lines[:3], lines[4], lines[3]],
        lambda lines: [*lines[:3], lines[4]],
        lambda lines: [*lines[:3], lines[3][:50], *lines[4:]],
    ],
)
def test_journal_damaged_keeps_rows_before_damage(
    table: Path, damage: Callable[[list[bytes]], list[bytes]]
) -> None:
    path = leave(table, ROWS)
    lines = path.read_bytes().splitlines(keepends=True)
    spoilt = damage(lines)
    assert spoilt != lines
    path.write_bytes(b"".join(spoilt))
    with Journal(table, resume=True) as journal:
        assert journal.done == {"0.jpg", "1.jpg"}
        assert journal.damaged == sum(
            line.endswith(b"\n") for line in b"".join(spoilt[3:]).splitlines(keepends=True)
        )
    with (
        pytest.raises(UsageError, match=r"holds the 2 rows .* are damaged"),
        Journal(table, resume=False),
    ):
        pass
    assert resumed(table, ROWS[2:]) == ROWS


def test_journal_of_random_damage_gives_no_wrong_row(table: Path) -> None:
    whole = leave(table, ROWS).read_bytes()
    random = Random(0)
    kept = set()
    for _ in range(300):
        table.with_name("p.csv.journal").write_bytes(mutated(whole, random))
        kept.add(damaged(table))
    assert kept >= {0, 1, 2, 3}


def mutated(data: bytes, random: Random) -> bytes:
    """The data with a few bytes changed, removed, put in or moved."""
    at = random.randrange(len(data))
    part = data[at : at + random.randrange(1, 40)]
    put = random.choice(
        (
            b"",
            part[::-1],
            part + part,
            bytes([part[0] ^ 1 << random.randrange(8)]) + part[1:],
            random.randbytes(len(part)),
            bytes(len(part)),
            random.choice((b"-", b"0", b"\n", b'"', b"\\u0000", b"\xff", b"[" * 5000)),
        )
    )
    return data[:at] + put + data[at + len(part) :]


@pytest.mark.parametrize(
    "changes",
    [
        {"probability": -0.216},
        {"margin": -1.0},
        {"label": "hen"},
        {"expected": "hen"},
        {"status": "ok\0"},
        {"status": "no-such-status", "label": None, "probability": None, "margin": None, "top": ()},
        {"top": ROWS[1].top[::-1]},
        {"top": ROWS[1].top[:1]},
        {"path": "a\0.jpg"},
        {"path": ROWS[0].path},
    ],
)
def test_journal_with_impossible_rows_does_not_trust_checksums(
    table: Path, changes: dict[str, object]
) -> None:
    made = msgspec.structs.replace(ROWS[1], **changes)
    leave(table, [ROWS[0], made, ROWS[2]])
    with Journal(table, resume=True) as journal:
        assert (journal.done, journal.damaged) == ({"0.jpg"}, 2)
    assert resumed(table, ROWS[1:]) == ROWS


def test_journal_damaged_in_use_makes_no_table(table: Path) -> None:
    with Journal(table, resume=False) as journal:
        journal.begin(FINGERPRINT)
        for row in ROWS:
            journal.write(row)
        data = journal.path.read_bytes()
        journal.path.write_bytes(data.replace(b'"path":"2.jpg"', b'"path":"7.jpg"'))
        with pytest.raises(InputError, match="of its 4 rows the first 2 are whole") as caught:
            list(journal.rows())
    assert "--resume" in str(caught.value.hint)
    assert resumed(table, ROWS[2:]) == ROWS


def test_journal_with_rows_needs_resume(table: Path) -> None:
    path = leave(table, ROWS)
    before = path.read_bytes()
    with (
        pytest.raises(UsageError, match="holds the 4 rows") as caught,
        Journal(table, resume=False),
    ):
        pass
    assert "--resume" in str(caught.value.hint)
    assert "delete" in str(caught.value.hint)
    assert path.read_bytes() == before
    assert [entry.name for entry in table.parent.iterdir()] == [path.name]


def test_journal_without_rows_is_removed(table: Path) -> None:
    leave(table, [])
    assert list(table.parent.iterdir()) == []


@pytest.mark.parametrize("left", [b"", b'{"journal":', b"\0\0\0"])
@pytest.mark.parametrize("resume", [False, True])
def test_journal_empty_or_torn_is_overwritten(table: Path, left: bytes, resume: bool) -> None:
    table.with_name("p.csv.journal").write_bytes(left)
    with Journal(table, resume=resume) as journal:
        assert journal.done == frozenset()
        journal.begin(FINGERPRINT)
        journal.write(BROKEN)
        assert list(journal.rows()) == [BROKEN]
        journal.remove()
    assert list(table.parent.iterdir()) == []


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
def test_journal_of_another_run_is_refused(
    table: Path, changes: dict[str, object], said: str
) -> None:
    path = leave(table, ROWS)
    before = path.read_bytes()
    other = msgspec.structs.replace(FINGERPRINT, **changes)
    with pytest.raises(UsageError) as caught, Journal(table, resume=True) as journal:
        journal.begin(other)
    assert said in caught.value.message
    assert "To start again, delete that file" in str(caught.value.hint)
    assert path.read_bytes() == before
    assert [entry.name for entry in table.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("rows_of_the_first", [0, 1])
def test_journal_has_one_writer(table: Path, resume: bool, rows_of_the_first: int) -> None:
    with Journal(table, resume=False) as journal:
        journal.begin(FINGERPRINT)
        for row in ROWS[:rows_of_the_first]:
            journal.write(row)
        with (
            pytest.raises(UsageError, match=r"Another run is writing .*p\.csv") as caught,
            Journal(table, resume=resume),
        ):
            pass
        assert "--output" in str(caught.value.hint)
        journal.write(BROKEN)
        assert list(journal.rows()) == [*ROWS[:rows_of_the_first], BROKEN]
        journal.remove()
    assert list(table.parent.iterdir()) == []


def test_journal_of_two_simultaneous_runs(table: Path) -> None:
    with Journal(table, resume=False) as first, Journal(table, resume=False) as second:
        first.begin(FINGERPRINT)
        with pytest.raises(UsageError, match="Another run is writing"):
            second.begin(FINGERPRINT)
        first.write(BROKEN)
        assert list(first.rows()) == [BROKEN]


def test_journal_ignores_a_stale_lock(table: Path) -> None:
    leave(table, ROWS[:1])
    table.with_name("p.csv.journal.lock").touch()
    assert resumed(table) == ROWS[:1]


def test_journal_opened_only_makes_no_file(table: Path) -> None:
    with Journal(table, resume=True) as journal:
        assert journal.done == frozenset()
        assert list(table.parent.iterdir()) == []


@pytest.mark.parametrize(
    "header",
    [
        b"path,status\n",
        b"notes",
        b'{"journal":"deploykit predict","schema":2}\n',
        b'{"journal":"deploykit predict","schema":' + b"[" * 100_000 + b"\n",
        msgspec.json.encode({"journal": "other", "schema": 2, "fingerprint": FINGERPRINT}) + b"\n",
    ],
)
def test_journal_leaves_foreign_files_alone(table: Path, header: bytes) -> None:
    path = table.with_name("p.csv.journal")
    path.write_bytes(header + b"something\n")
    for resume in (False, True):
        with (
            pytest.raises(InputError, match="is no journal") as caught,
            Journal(table, resume=resume),
        ):
            pass
        assert "delete it" in str(caught.value.hint)
    assert path.read_bytes() == header + b"something\n"


def test_journal_path_that_is_a_folder(table: Path) -> None:
    table.with_name("p.csv.journal").mkdir()
    with (
        pytest.raises(UsageError, match=r"p\.csv\.journal cannot be used") as caught,
        Journal(table, resume=False),
    ):
        pass
    assert "permissions" in str(caught.value.hint)


def test_journal_that_cannot_be_removed(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> None:
        with Journal(table, resume=False) as journal:
            journal.begin(FINGERPRINT)
            journal.write(BROKEN)
            monkeypatch.setattr(Path, "unlink", held)
            journal.remove()

    def held(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(InputError, match="cannot be removed: Permission denied") as caught:
        run()
    assert "Delete it" in str(caught.value.hint)


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
def test_journal_of_another_run_says_the_way_back(
    table: Path, before: dict[str, object], way: str
) -> None:
    """The hint names what differs, and nothing else."""
    row = msgspec.structs.replace(BROKEN)
    with suppress(KilledError), Journal(table, resume=False) as journal:
        journal.begin(msgspec.structs.replace(FINGERPRINT, **before))
        journal.write(row)
        raise KilledError
    with Journal(table, resume=True) as journal, pytest.raises(UsageError) as caught:
        journal.begin(FINGERPRINT)
    hint = str(caught.value.hint)
    assert hint.startswith(f"Continue it as it was begun: {way}")
    assert ("--runtime" in hint) == ("runtime" in before or "precision" in before)


def test_journal_of_another_run_without_tf32(table: Path) -> None:
    leave(table, ROWS)
    with Journal(table, resume=True) as journal, pytest.raises(UsageError) as caught:
        journal.begin(msgspec.structs.replace(FINGERPRINT, tf32=True))
    assert "begun: leave out --tf32. To" in str(caught.value.hint)


def test_journal_closes_its_file_if_the_disk_fails(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows removes no file that is open."""

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    opened = []
    with Journal(table, resume=False) as journal:
        journal.begin(FINGERPRINT)
        opened.append(journal._stream)
        monkeypatch.setattr("deploykit.commands.predict.journal.os.fsync", fail)
    assert opened[0].closed
    assert not journal.path.exists()
