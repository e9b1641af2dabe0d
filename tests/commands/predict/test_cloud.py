"""Photos, tables and the run's folder on S3: a server of its own on this machine."""

import csv
import io
import json
import tarfile

import pytest
from cloud_storage import s3_server
from interrupted_runs import interrupt_after

import deploykit
from deploykit.commands.app import run
from deploykit.commands.predict import plan
from deploykit.commands.predict.ledger import Ledger
from deploykit.images.sources.ahead import read_ahead
from deploykit.images.sources.opening import open_source
from deploykit.system.cloud import as_path, file_system

pytest.importorskip("moto")
pytest.importorskip("s3fs")

OUTPUT = "s3://rows/rows.csv"


@pytest.fixture(scope="module")
def server(photo_folder):
    """The photos in a bucket, and an empty bucket for rows."""
    with pytest.MonkeyPatch.context() as monkeypatch, s3_server(monkeypatch) as fs:
        fs.mkdir("photos")
        photos = sorted(photo_folder.rglob("*.png"))
        fs.pipe({f"photos/all/{p.relative_to(photo_folder)}": p.read_bytes() for p in photos})
        yield fs


@pytest.fixture
def s3(server):
    server.mkdir("rows")
    yield server
    server.rm("rows", recursive=True)


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "_SHARD_FILES", 8)

    def call(*words):
        code = run([*map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def predict(call, exported_bundle):
    def predict(source, *options):
        return call("predict", source, "--bundle", exported_bundle.folder, *options)

    return predict


@pytest.fixture
def local(predict, photo_folder, tmp_path):
    """The table of the same photos as files."""
    assert predict(photo_folder, "--output", "local.csv")[0] == 0
    return (tmp_path / "local.csv").read_bytes()


def keys(s3, bucket):
    return sorted(s3.find(bucket))


def test_predict_a_prefix_is_the_table_of_the_folder(predict, s3, local, tmp_path):
    code, out, err = predict("s3://photos/all/", "--output", "cloud.csv")
    assert code == 0, err
    assert out.startswith("45 rows: 45 predicted\n")
    assert (tmp_path / "cloud.csv").read_bytes() == local


def test_predict_into_a_bucket(predict, call, s3, local, photo_folder):
    code, _, err = predict(photo_folder, "--output", OUTPUT, "--html", "s3://rows/rows.html")
    assert code == 0, err
    assert s3.cat_file("rows/rows.csv") == local
    assert b"<html" in s3.cat_file("rows/rows.html")
    assert keys(s3, "rows") == ["rows/.rows.csv.run", "rows/rows.csv", "rows/rows.html"]
    assert predict(photo_folder, "--output", OUTPUT)[0] == 0  # the same command replaces its own
    code, _, err = predict(photo_folder, "--output", OUTPUT, "--top-k", 1)
    assert code == 2
    assert "s3://rows/rows.csv is not from this command" in err


def test_predict_in_a_bucket_is_resumed(predict, s3, local, monkeypatch):
    interrupt_after(monkeypatch, 20)
    code, _, err = predict("s3://photos/all", "--output", OUTPUT)
    assert code == 130
    assert "20 rows are kept in s3://rows/rows.csv.run" in err
    assert len(keys(s3, "rows/rows.csv.run/parts")) == 3
    code, _, err = predict("s3://photos/all", "--output", OUTPUT)
    assert code == 2
    assert "holds the 20 rows" in err
    red, blue = (s3.cat_file(f"photos/all/{name}") for name in ("red/14.png", "blue/00.png"))
    s3.pipe_file("photos/all/red/14.png", b"another")
    s3.rm_file("photos/all/blue/00.png")
    code, _, err = predict("s3://photos/all", "--output", OUTPUT, "--resume")
    assert code == 0, err
    assert "20 rows are in s3://rows/rows.csv.run: resuming" in err
    assert "2 files changed or vanished since the run began, the first is blue/00.png" in err
    s3.pipe({"photos/all/red/14.png": red, "photos/all/blue/00.png": blue})
    rows = [*csv.DictReader(io.StringIO(s3.cat_file("rows/rows.csv").decode("utf-8-sig")))]
    before = [*csv.DictReader(io.StringIO(local.decode("utf-8-sig")))]
    assert rows[:44] == before[:44]
    assert rows[44]["status"] == "unsupported"
    assert not keys(s3, "rows/rows.csv.run")


def test_shards_in_a_bucket_are_collected(predict, call, s3, local):
    for number in (3, 1, 2):
        options = ("--output", OUTPUT, "--shard", f"{number}/3")
        code, _, err = predict("s3://photos/all", *options)
        assert code == 0, err
    code, _, err = call("collect", "s3://rows/rows.csv.run")
    assert code == 0, err
    assert s3.cat_file("rows/rows.csv") == local
    assert json.loads(s3.cat_file("rows/rows.csv.run/_SUCCESS.json"))["rows"] == 45


def test_plan_in_a_bucket_is_made_once(s3):
    from made_runs import begun

    first = begun(as_path("s3://rows/a.csv.run"), ["a.jpg", "b.jpg"])
    second = begun(as_path("s3://rows/a.csv.run"), ["a.jpg", "b.jpg", "c.jpg"])
    assert second.made == first.made
    assert Ledger(as_path("s3://rows/a.csv.run")).made.files == 2
    assert len(keys(s3, "rows/a.csv.run")) == 2  # the other's list is gone


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("s3://nowhere/photos", "the bucket nowhere does not exist"),
        ("s3://photos/empty", "No image in s3://photos/empty"),
        ("https://127.0.0.1:9/photos/", "a web server does not tell which files it has"),
    ],
)
def test_predict_says_which_name_is_missing(predict, s3, source, said):
    code, _, err = predict(source)
    assert code == 4
    assert said in err


def test_predict_into_a_missing_bucket(predict, s3, photo_folder):
    code, _, err = predict(photo_folder, "--output", "s3://nowhere/rows.csv")
    assert code in (2, 4)
    assert "the bucket nowhere does not exist" in err


def test_predict_says_what_is_forbidden(predict, s3, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(s3), "call_s3", refuse)
    code, _, err = predict("s3://photos/all")
    assert code == 4
    assert "s3://photos/all: permission denied (Access Denied)" in err


def test_predict_without_credentials(predict, s3, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    file_system.cache_clear()
    code, _, err = predict("s3://photos/all")
    monkeypatch.undo()
    file_system.cache_clear()
    assert code == 4
    assert "there are no credentials for s3://photos/all; set AWS_ACCESS_KEY_ID" in err


def test_predict_ends_when_the_service_does(predict, s3, monkeypatch):
    """What is true of all objects becomes no row."""

    def fail(*_, **__):
        raise OSError("Connection reset")

    monkeypatch.setattr(type(s3), "cat_file", fail)
    code, _, err = predict("s3://photos/all", "--output", "rows.csv")
    assert code == 4
    assert "blue/00.png cannot be read" in err
    assert "--resume" in err


def test_list_of_files_and_objects(s3, photo_folder, exported_bundle, tmp_path):
    s3.pipe_file("photos/odd//two slashes.png", s3.cat_file("photos/all/red/00.png"))
    lines = [
        f"{photo_folder}/red/01.png",
        "s3://photos/all/red/02.png",
        "s3://photos/odd//two slashes.png",
        "s3://photos/not there.png",
        "s3://photos/all/red/02.png",
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    rows = [*deploykit.predict(tmp_path / "list.txt", bundle=exported_bundle)]
    assert [(row.path, row.status, row.label) for row in rows] == [
        (lines[0], "ok", "red"),
        (lines[1], "ok", "red"),
        (lines[2], "ok", "red"),
        (lines[3], "vanished", None),
    ]


def test_tar_in_a_bucket(predict, s3, photo_folder, tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.add(photo_folder / "red", "red")
    s3.pipe_file("photos/shards/a-0.tar", stream.getvalue())
    s3.pipe_file("photos/shards/a-1.tar", stream.getvalue())
    code, out, err = predict("s3://photos/shards/a-{0..1}.tar", "--output", "rows.csv")
    assert code == 0, err
    assert out.startswith("30 rows: 30 predicted\n")
    code, out, err = predict("s3://photos/shards", "--output", "rows2.csv")
    assert code == 0, err
    first, second = (tmp_path / name for name in ("rows.csv", "rows2.csv"))
    assert first.read_bytes() == second.read_bytes()
    assert "\na-1.tar/red/14.png,ok,,red" in first.read_text(encoding="utf-8-sig")


def test_listing_a_prefix_page_by_page(s3, monkeypatch):
    fs = file_system("s3")
    call, pages = type(fs).call_s3, []

    def call_few(self, method, **options):
        pages.append(options)
        return call(self, method, **options, MaxKeys=7)

    monkeypatch.setattr(type(fs), "call_s3", call_few)
    files = [*open_source(as_path("s3://photos/all"), ["blue", "green", "red"])]
    assert len(pages) == 7
    names = [file.name for file in files]
    assert names == sorted(names)
    assert len(names) == 45
    assert [file.expected for file in files] == [name.partition("/")[0] for name in names]
    assert all(
        file.changed == s3.info(f"photos/all/{file.name}")["ETag"].strip('"')
        for file in files[::20]
    )


def test_objects_are_read_ahead_within_bytes(s3):
    files = open_source(as_path("s3://photos/all"))
    largest = max(file.size for file in open_source(as_path("s3://photos/all")))
    read = read_ahead(files, limit=4 * largest)
    first = next(read)
    with first.held() as data:
        assert data == s3.cat_file(f"photos/all/{first.name}")
    rest = []
    for file in read:
        with file.held() as data:
            rest.append(len(data) == file.size)
    assert rest == [True] * 44
