"""Sources of images: archives, Parquet, video and lists; nothing is unpacked."""

import io
import os
import random
import struct
import tarfile
import zipfile
import zlib
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploykit.errors import ImagesError, InputError, UsageError
from deploykit.images.decode import DecodeError, decoded_rgb
from deploykit.images.sources import container_of, containers
from deploykit.images.sources.ahead import read_ahead
from deploykit.images.sources.opening import open_source
from deploykit.images.sources.parquet import Parquet
from deploykit.images.sources.sorting import sorted_names
from deploykit.images.sources.video import parsed_every


def png(grey):
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (grey, grey, grey)).save(stream, "PNG")
    return stream.getvalue()


def tar_of(path, files, **options):
    with tarfile.open(path, "w", **options) as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def zip_of(path, files, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return path


def read(path, **options):
    """Name and bytes of each image, or status and the beginning of the reason."""
    found = []
    for file in read_ahead(open_source(path, **options)):
        try:
            with file.held() as data:
                found.append((file.name, data))
        except DecodeError as exc:
            found.append((file.name, exc.failure.status))
    return found


FILES = [("a/0.png", png(0)), ("b/1.PNG", png(10)), ("b/notes.txt", b"none"), ("c.jpg", b"")]
MAKERS = {".tar": tar_of, ".zip": zip_of}


@pytest.mark.parametrize("ending", MAKERS)
def test_archive_images_in_order(tmp_path, ending):
    path = MAKERS[ending](tmp_path / f"x{ending}", FILES)
    source = open_source(path, ["a", "b"])
    files = [*source]
    assert [(file.name, file.expected) for file in files] == [
        (f"x{ending}/a/0.png", "a"),
        (f"x{ending}/b/1.PNG", "b"),
        (f"x{ending}/c.jpg", None),
    ]
    assert source.skipped == 1
    assert read(path) == [
        (f"x{ending}/{name}", data) for name, data in FILES if name != "b/notes.txt"
    ]


def test_tar_hard_links_have_rows(tmp_path):
    """Who packs files that are the same on the disk packs links."""
    (tmp_path / "0.png").write_bytes(png(0))
    (tmp_path / "blob").write_bytes(png(5))
    for name in ("1.png", "3.png"):
        (tmp_path / name).hardlink_to(tmp_path / "0.png")
    (tmp_path / "2.png").hardlink_to(tmp_path / "blob")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("0.png", "blob", "1.png", "2.png", "3.png"):
            archive.add(tmp_path / name, name)
    expected = [("0.png", 0), ("1.png", 0), ("2.png", 5), ("3.png", 0)]
    assert read(tmp_path / "x.tar") == [(f"x.tar/{name}", png(i)) for name, i in expected]


@pytest.mark.parametrize("ending", MAKERS)
def test_archive_names_are_only_names(tmp_path, ending):
    (tmp_path / "below").mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    odd = ["../../secret.png", "/etc/x.png", "new\nline.png", "same.png", "same.png", "\udce9.png"]
    if ending == ".zip":
        odd[-1] = "é.png"
    path = tmp_path / "below" / f"x{ending}"
    with pytest.warns(UserWarning, match="Duplicate") if ending == ".zip" else nullcontext():
        MAKERS[ending](path, [(name, png(i)) for i, name in enumerate(odd)])
    before = sorted(tmp_path.rglob("*"))
    found = read(path)
    assert [data for _, data in found] == [png(i) for i in range(len(odd))]
    assert found[0][0] == f"x{ending}/../../secret.png"
    assert found[1][0] == f"x{ending}//etc/x.png"
    assert sorted(tmp_path.rglob("*")) == before


def test_tar_skips_links_and_devices(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("device.png", tarfile.CHRTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        member = tarfile.TarInfo("real.png")
        member.size = len(png(1))
        archive.addfile(member, io.BytesIO(png(1)))
    source = open_source(path)
    assert [file.name for file in source] == ["x.tar/real.png"]
    assert source.skipped == 4


def test_zip_skips_links(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("link.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("real.png", png(1))
    assert read(path) == [("x.zip/real.png", png(1))]


@pytest.mark.parametrize("ending", MAKERS)
def test_archive_cut_off_anywhere(tmp_path, ending):
    """What can be read is read, the rest is a row, and nothing is listed silently short."""
    files = [(f"{i}.png", png(i)) for i in range(3)]
    whole = MAKERS[ending](tmp_path / f"w{ending}", files).read_bytes()
    path = tmp_path / f"x{ending}"
    end = tarfile.BLOCKSIZE * 6 if ending == ".tar" else len(whole)
    for size in range(0, end, 37):
        path.write_bytes(whole[:size])
        found = read(path)
        assert found[-1] in ((f"x{ending}/", "truncated"), (f"x{ending}/", "unreadable"))
        for i, (name, data) in enumerate(found[:-1]):
            assert name == f"x{ending}/{i}.png"
            assert data in (png(i), "truncated")


@pytest.mark.parametrize("ending", MAKERS)
def test_archive_with_random_damage(tmp_path, ending):
    whole = MAKERS[ending](tmp_path / f"w{ending}", FILES).read_bytes()
    draw, path = random.Random(0), tmp_path / f"x{ending}"
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(draw.choice((1, 4, 40))):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data)
        try:
            found = read(path)
        except ImagesError:
            continue
        assert all(isinstance(name, str) for name, _ in found)


def test_zip_encrypted_member_is_a_row(tmp_path):
    path = zip_of(tmp_path / "x.zip", [("a.png", png(1)), ("b.png", png(2))])
    data = bytearray(path.read_bytes())
    data[6] |= 1  # of the first local header: encrypted
    path.write_bytes(data)
    (file, _) = open_source(path)
    with pytest.raises(DecodeError, match="It is encrypted"), file.held():
        pass
    assert read(path) == [("x.zip/a.png", "unsupported"), ("x.zip/b.png", png(2))]


def test_zip_compressed_otherwise_is_a_row(tmp_path):
    path = zip_of(tmp_path / "x.zip", [("a.png", png(1))], zipfile.ZIP_LZMA)
    assert read(path) == [("x.zip/a.png", "unsupported")]


def test_archive_bombs_are_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "MOST_BYTES", 1000)
    zeros = [("big.png", bytes(1001)), ("small.png", png(1))]
    for ending, make in MAKERS.items():
        found = read(make(tmp_path / f"x{ending}", zeros))
        assert [data for _, data in found] == ["too-large", png(1)]


def test_zip_that_holds_more_than_it_says(tmp_path):
    """Its directory promises 10 bytes, and 1 MB comes: no more than 10 are unpacked."""
    path = zip_of(tmp_path / "x.zip", [("a.png", bytes(2**20))])
    data = path.read_bytes()
    data = data.replace(struct.pack("<L", 2**20), struct.pack("<L", 10))
    path.write_bytes(data)
    assert read(path) == [("x.zip/a.png", "corrupt")]


def test_zip_sizes_behind_the_data(tmp_path):
    """As of a ZIP that was written into a pipe."""

    class Pipe(io.RawIOBase):
        def __init__(self):
            self.data = b""

        def writable(self):
            return True

        def write(self, data):
            self.data += bytes(data)
            return len(data)

    pipe, noise = Pipe(), random.Random(0).randbytes(200_000)
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a.png", "b.png"):
            with archive.open(name, "w") as file:
                file.write(noise)
    (tmp_path / "x.zip").write_bytes(b"before it" + pipe.data)
    assert read(tmp_path / "x.zip") == [("x.zip/a.png", noise), ("x.zip/b.png", noise)]


def test_zip_of_more_entries_than_16_bits(tmp_path):
    path = tmp_path / "x.zip"
    entry, count = b"", 70_000
    data = png(1)
    local = struct.pack(
        "<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, zlib.crc32(data), *[len(data)] * 2, 5, 0
    )
    body = local + b"a.png" + data
    entry = (
        struct.pack(
            "<4s6H3L5H2L",
            b"PK\x01\x02",
            20,
            20,
            0,
            0,
            0,
            0,
            zlib.crc32(data),
            *[len(data)] * 2,
            5,
            0,
            0,
            0,
            0,
            0,
            0,
        )
        + b"a.png"
    )
    directory, at = entry * count, len(body)
    end = struct.pack(
        "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), at
    )
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at + len(directory), 1)
    last = struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(directory), 2**32 - 1, 0
    )
    path.write_bytes(body + directory + end + locator + last)
    files = [*open_source(path)]
    assert len(files) == count
    with files[-1].held() as found:
        assert found == data


def test_archive_that_changes_is_noticed(tmp_path):
    path = tar_of(tmp_path / "x.tar", FILES)
    (file, *_) = open_source(path)
    tar_of(path, FILES[1:])
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputError, match="has changed since it was listed"), file.held():
        pass


def test_compressed_tar_is_refused(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(b"")
    with pytest.raises(UsageError, match="compressed as a whole"):
        open_source(tmp_path / "x.tar.gz")


def test_webdataset_by_folder_braces_glob_and_list(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for i in range(3):
        tar_of(shards / f"s-{i:03}.tar", [(f"{i}.png", png(i)), (f"{i}.cls", b"1")])
    (shards / "no.tar").mkdir()
    (tmp_path / "list.txt").write_text("shards/s-000.tar\nshards/s-001.tar\nshards/s-002.tar")
    expected = [(f"s-{i:03}.tar/{i}.png", png(i)) for i in range(3)]
    assert read(shards) == expected
    assert read(shards / "s-{000..002}.tar") == expected
    assert read(shards / "s-*.tar") == expected
    assert read(shards / "s-{002,000}.tar") == [expected[2], expected[0]]
    assert read(tmp_path / "list.txt") == [(f"shards/{name}", data) for name, data in expected]
    names = [file.name for file in open_source(shards / "s-{002..003}.tar")]
    assert names == ["s-002.tar/2.png", "s-003.tar"]  # a row says that it is not there
    with pytest.raises(ImagesError, match="No file matches"):
        open_source(shards / "x-*.tar")
    with pytest.raises(ImagesError, match="more than"):
        open_source(shards / "x-{0..99999999}.tar")


def test_folder_with_images_reads_no_archives(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "named.tar").mkdir()
    (tmp_path / "named.tar" / "b.png").write_bytes(png(2))
    tar_of(tmp_path / "x.tar", FILES)
    source = open_source(tmp_path)
    assert [file.name for file in source] == ["a.png", "named.tar/b.png"]
    assert source.skipped == 1


@pytest.fixture
def parquet():
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    from pyarrow import parquet

    def write(path, columns, **options):
        parquet.write_table(pa.table(columns), path, **options)
        return path

    return write


def test_parquet_bytes_and_names(tmp_path, parquet):
    images = [png(0), None, b"", png(3)]
    columns = {"n": [1, 2, 3, 4], "file_name": ["a", "b", None, "../d"], "content": images}
    columns["label"] = ["cat", "dog", "cat", "ox"]
    path = parquet(tmp_path / "x.parquet", columns, row_group_size=2)
    assert read(path) == [
        ("x.parquet/a", png(0)),
        ("x.parquet/b", "truncated"),
        ("x.parquet/2", "truncated"),
        ("x.parquet/../d", png(3)),
    ]
    assert [file.expected for file in open_source(path, ["cat", "dog"])] == [
        "cat",
        "dog",
        "cat",
        None,
    ]


def test_parquet_of_hugging_face(tmp_path, parquet):
    images = [{"bytes": png(i), "path": f"{i}.png"} for i in range(30)]
    images[7] = {"bytes": None, "path": "/data/7.png"}
    folder = tmp_path / "data"
    folder.mkdir()
    path = parquet(folder / "train-0.parquet", {"image": images}, row_group_size=8)
    expected = [(f"train-0.parquet/{i}.png", png(i)) for i in range(30)]
    expected[7] = ("train-0.parquet//data/7.png", "vanished")
    assert read(path) == expected
    assert read(folder) == expected
    files = [*open_source(path)]
    backwards = []
    for i in (29, 3, 4, 20, 0):
        with files[i].held() as data:
            backwards.append(data)
    assert backwards == [png(i) for i in (29, 3, 4, 20, 0)]


def test_parquet_left_in_the_middle_when_python_ends(tmp_path, parquet, monkeypatch):
    """Nothing is said when what is open goes after pyarrow's names have."""
    path = parquet(tmp_path / "x.parquet", {"jpg": [png(i) for i in range(11)]})
    container = Parquet()
    assert container.read(path, 3, None) == png(3)
    monkeypatch.setattr("pyarrow.ArrowException", None)
    container.close()


def test_sources_leave_no_file_open(tmp_path, parquet):
    """Else Windows would not let anybody remove it."""
    path = parquet(tmp_path / "x.parquet", {"jpg": [png(i) for i in range(11)]})
    for _ in read_ahead(open_source(path)):
        pass
    assert container_of(path)._open is None


def test_parquet_without_names_or_images(tmp_path, parquet):
    path = parquet(tmp_path / "x.parquet", {"jpg": [png(i) for i in range(11)]})
    assert [name for name, _ in read(path)] == [f"x.parquet/{i:02}" for i in range(11)]
    with pytest.raises(ImagesError, match="no column of bytes"):
        open_source(parquet(tmp_path / "y.parquet", {"a": [1]}))
    with pytest.raises(ImagesError, match="which column has the images: a, b"):
        open_source(parquet(tmp_path / "z.parquet", {"a": [b"1"], "b": [b"2"]}))
    (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:-9])
    assert read(tmp_path / "cut.parquet") == [("cut.parquet/", "truncated")]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Three seconds, 10 frames each, a level of grey a frame."""
    av = pytest.importorskip("av")
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(path, "w") as video:
        stream = video.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.gop_size = 7
        for i in range(30):
            pixels = np.full((32, 64, 3), 8 * i, np.uint8)
            pixels[:, :32] = 255 - 8 * i
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                video.mux(packet)
        for packet in stream.encode():
            video.mux(packet)
    return path


def greys(path, **options):
    """Name, size, and grey of the right half of each frame."""
    found = []
    for file in read_ahead(open_source(path, **options)):
        with file.held() as data, decoded_rgb(file.path, data=data) as image:
            found.append((file.name, image.size, image.getpixel((48, 16))[0]))
    return found


def test_video_frames_by_time(clip):
    for every, step in ((None, 10), ("500ms", 5), ("0.1", 1), ("2s", 20)):
        found = greys(clip, every=every and parsed_every(every))
        assert [name for name, _, _ in found] == [
            f"clip.mp4@00:00:{i // 10:02}.{i % 10}00" for i in range(0, 30, step)
        ]
        assert all(
            abs(grey - 8 * i) < 6 for i, (_, _, grey) in zip(range(0, 30, step), found, strict=True)
        )
        assert {size for _, size, _ in found} == {(64, 32)}


def test_video_frames_in_any_order(clip):
    files = [*open_source(clip, every=Fraction(1, 10))]
    for i in (29, 0, 15, 16, 3):
        with files[i].held() as data, decoded_rgb(clip, data=data) as image:
            assert abs(image.getpixel((48, 16))[0] - 8 * i) < 6


def test_video_is_upright_as_players_show_it(clip, tmp_path):
    """A phone that was held upright writes frames that lie, and a matrix beside them."""
    data = clip.read_bytes()
    at = data.index(b"tkhd") + 4 + 40
    matrix = struct.pack(">9l", 0, 2**16, 0, -(2**16), 0, 0, 0, 0, 2**30)  # 90 degrees clockwise
    path = tmp_path / "phone.mp4"
    path.write_bytes(data[:at] + matrix + data[at + 36 :])
    (file, *_) = open_source(path)
    with file.held() as frame, decoded_rgb(path, data=frame) as image:
        assert image.size == (32, 64)
        # The left half, which is white, is on top.
        assert image.getpixel((16, 8))[0] > 240
        assert image.getpixel((16, 56))[0] < 16


def test_video_damaged(clip, tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"no video")
    assert read(tmp_path / "x.mp4") == [("x.mp4/", "truncated")]
    with pytest.raises(UsageError, match="no video"):
        open_source(tmp_path, every=Fraction(1))
    for text in ("0", "1x", "-1s", "soon", "1e9"):
        with pytest.raises(UsageError, match="is no time"):
            parsed_every(text)


@pytest.mark.parametrize(("ending", "flags"), [(".mkv", ""), (".mp4", "faststart")])
def test_video_cut_off_has_a_row_for_the_rest(clip, tmp_path, ending, flags):
    import av

    whole, cut = tmp_path / f"whole{ending}", tmp_path / f"cut{ending}"
    options = {"movflags": flags} if flags else {}
    with av.open(clip) as clip_again, av.open(whole, "w", options=options) as video:
        stream = video.add_stream_from_template(clip_again.streams.video[0])
        for packet in clip_again.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                video.mux(packet)
    assert len([*open_source(whole)]) == 3
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    names = [file.name for file in open_source(cut)]
    assert names[0] == f"cut{ending}@00:00:00.000"
    assert names[-1] == f"cut{ending}/"


def test_list_streamed_without_repetition(tmp_path):
    names = [f"{i % 7}/{i % 5}.png" for i in range(100)]
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "list.txt").write_text("\r\n".join([*names, '"q x.png"']), encoding=encoding)
        found = [file.name for file in open_source(tmp_path / "list.txt")]
        assert found == [*dict.fromkeys(names), "q x.png"]
    (tmp_path / "bad.txt").write_bytes(b"a\0b.png\n")
    with pytest.raises(InputError, match="zero bytes"):
        open_source(tmp_path / "bad.txt")


def test_sorted_names_beyond_memory():
    draw = random.Random(0)
    names = [
        "".join(draw.choices("ab\n\r é\U0001f600/", k=draw.randrange(1, 9))) for _ in range(199)
    ]
    for in_memory in (7, 199, 200):
        assert [*sorted_names(iter(names), in_memory)] == sorted(names)
    assert [*sorted_names([])] == []


def test_local_files_pass_read_ahead_unread(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    source = open_source(tmp_path)
    assert [type(file).__name__ for file in read_ahead(source)] == ["ImageFile"] * 3
    assert [Path(file.path).name for file in open_source(tmp_path)] == ["0.png", "1.png", "2.png"]
