"""Which image files a folder, a list or a path means, and whether they are still there."""

from __future__ import annotations

import os
import shutil
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploykit.errors import ImagesError, InputError, UsageError
from deploykit.images.decode import DecodeError, decode_rgb
from deploykit.images.scan import (
    IMAGE_EXTENSIONS,
    FolderPresence,
    ImageFile,
    class_folders,
    read_file_list,
    sample_images,
    scan_images,
)

posix_names = pytest.mark.skipif(
    sys.platform in {"win32", "darwin"}, reason="this system's file names are always Unicode"
)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def link(path: Path, target: str, *, folder: bool = False) -> None:
    try:
        path.symlink_to(target, target_is_directory=folder)
    except OSError as exc:
        pytest.skip(f"this system does not let us make links: {exc}")


def names(path: Path) -> list[str]:
    return [file.name for file in scan_images(path).files]


def test_scan_images_recursive_in_order_of_names(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.png", "b/10.PNG", "a.Jpg", "b/deep/er/x.webp", "c/.hidden/y.tiff")
    scan = scan_images(tmp_path)
    assert [file.name for file in scan.files] == [
        "a.Jpg",
        "b/10.PNG",
        "b/2.png",
        "b/deep/er/x.webp",
        "c/.hidden/y.tiff",
    ]
    assert scan.files[1].path == tmp_path / "b" / "10.PNG"
    assert scan.root == tmp_path


def test_scan_images_counts_other_files(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "classes.txt", "b/Thumbs.db", "b/noending", "b/jpg")
    scan = scan_images(tmp_path)
    assert len(scan.files) == 1
    assert scan.skipped == 4


def test_scan_images_of_folder_named_like_an_image(tmp_path: Path) -> None:
    touch(tmp_path, "album.jpg/one.png")
    assert names(tmp_path) == ["album.jpg/one.png"]


def test_scan_images_knows_extensions_of_image_folder() -> None:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert set(IMG_EXTENSIONS) <= IMAGE_EXTENSIONS


def test_scan_images_expected_from_first_folder(tmp_path: Path) -> None:
    touch(tmp_path, "dog/a.jpg", "dog/puppies/b.jpg", "holiday/dog/c.jpg", "dog.jpg")
    expected = {file.name: file.expected for file in scan_images(tmp_path, ["cat", "dog"]).files}
    assert expected == {
        "dog/a.jpg": "dog",
        "dog/puppies/b.jpg": "dog",
        "holiday/dog/c.jpg": None,
        "dog.jpg": None,
    }
    assert {file.expected for file in scan_images(tmp_path).files} == {None}


def test_scan_images_expected_below_splits(tmp_path: Path) -> None:
    touch(
        tmp_path, "train/dog/a.jpg", "Test/cat/b/c.jpg", "val/d.jpg", "dog/e.jpg", "other/dog/f.jpg"
    )
    expected = {file.name: file.expected for file in scan_images(tmp_path, ["cat", "dog"]).files}
    assert expected == {
        "Test/cat/b/c.jpg": "cat",
        "dog/e.jpg": "dog",
        "other/dog/f.jpg": None,
        "train/dog/a.jpg": "dog",
        "val/d.jpg": None,
    }


def test_scan_images_train_may_be_a_class(tmp_path: Path) -> None:
    touch(tmp_path, "train/steam/a.jpg", "plane/b.jpg")
    files = scan_images(tmp_path, ["plane", "steam", "train"]).files
    assert [file.expected for file in files] == ["plane", "train"]


def test_scan_images_of_one_file(tmp_path: Path) -> None:
    touch(tmp_path, "photo.dat", "other.jpg")
    scan = scan_images(tmp_path / "photo.dat", ["dog"])
    assert scan.files == (ImageFile(tmp_path, "photo.dat", None),)
    assert scan.root == tmp_path


def test_scan_images_of_a_list(tmp_path: Path) -> None:
    touch(tmp_path, "photos/dog/a.jpg", "photos/dog/b.dat")
    (tmp_path / "list.TXT").write_text("photos/dog/b.dat\nphotos/gone.jpg\nphotos/dog/a.jpg\n")
    scan = scan_images(tmp_path / "list.TXT", ["photos", "dog"])
    assert [(file.name, file.expected) for file in scan.files] == [
        ("photos/dog/b.dat", "dog"),
        ("photos/gone.jpg", "photos"),
        ("photos/dog/a.jpg", "dog"),
    ]
    assert (scan.root, scan.skipped) == (tmp_path, 0)
    assert [file.path.exists() for file in scan.files] == [True, False, True]


def test_scan_images_of_a_list_with_paths_elsewhere(tmp_path: Path) -> None:
    touch(tmp_path, "dog/a.jpg", "cat/b.jpg", "lists/c.jpg")
    absolute = tmp_path / "dog" / "a.jpg"
    listed = f"{absolute}\n../cat/b.jpg\nc.jpg\n"
    (tmp_path / "lists" / "list.txt").write_text(listed, encoding="utf-8")
    files = scan_images(tmp_path / "lists" / "list.txt", ["cat", "dog", "lists"]).files
    assert [file.name for file in files] == [absolute.as_posix(), "../cat/b.jpg", "c.jpg"]
    assert [file.expected for file in files] == ["dog", "cat", None]
    assert all(file.path.exists() for file in files)


def test_scan_images_memory_per_file(tmp_path: Path) -> None:
    touch(tmp_path, *(f"dog/photo_{i:05}.jpg" for i in range(2000)))
    scan_images(tmp_path, ["dog"])
    tracemalloc.start()
    try:
        scan = scan_images(tmp_path, ["dog"])
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    names_bytes = sum(sys.getsizeof(file.name) for file in scan.files)
    assert (held - names_bytes) / len(scan.files) < 100
    assert (peak - names_bytes) / len(scan.files) < 150


def test_scan_images_of_a_missing_path(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match="does not exist") as caught:
        scan_images(tmp_path / "nowhere")
    assert caught.value.hint


def test_scan_images_of_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match="it is empty"):
        scan_images(tmp_path)
    touch(tmp_path, "a.txt", "b.txt", "c.csv")
    with pytest.raises(ImagesError, match=r"other files: 3, \.txt, \.csv") as caught:
        scan_images(tmp_path)
    assert ".jpeg" in str(caught.value.hint)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_scan_images_opens_no_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    touch(tmp_path, "a.jpg")
    assert names(tmp_path) == ["a.jpg"]
    with pytest.raises(ImagesError, match="neither a folder nor a file"):
        scan_images(tmp_path / "pipe.jpg")


def test_scan_images_keeps_dangling_and_circular_links(tmp_path: Path) -> None:
    link(tmp_path / "gone.jpg", "nothing.jpg")
    link(tmp_path / "circle.jpg", "circle.jpg")
    assert names(tmp_path) == ["circle.jpg", "gone.jpg"]


def test_scan_images_lists_a_linked_folder_once(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "z/real.jpg", "own.jpg")
    touch(tmp_path / "elsewhere", "far.jpg", "sub/deep.jpg")
    link(root / "a", "z", folder=True)  # already listed under its own name, though that comes later
    link(root / "z" / "up", "..", folder=True)
    link(root / "x", str(tmp_path / "elsewhere"), folder=True)
    link(root / "y", str(tmp_path / "elsewhere"), folder=True)
    assert names(root) == ["own.jpg", "x/far.jpg", "x/sub/deep.jpg", "z/real.jpg"]


def test_scan_images_of_an_unreadable_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Simulated, because permission bits do not bind root.
    touch(tmp_path, "a.jpg", "secret/b.jpg")
    scandir = os.scandir

    def guarded(path: Path) -> object:
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert names(tmp_path) == ["a.jpg", "secret/"]
    assert scan_images(tmp_path).files[1].path == tmp_path / "secret"
    with pytest.raises(ImagesError, match="secret cannot be read: Permission denied"):
        scan_images(tmp_path / "secret")


def test_scan_images_keeps_files_before_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.jpg", "worn/b.jpg")
    scandir = os.scandir

    @contextmanager
    def failing(path: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        def entries() -> Iterator[os.DirEntry[str]]:
            yield from listed
            if Path(path).name == "worn":
                raise OSError(5, "Input/output error")

        with scandir(path) as listed:
            yield entries()

    monkeypatch.setattr(os, "scandir", failing)
    assert names(tmp_path) == ["a.jpg", "worn/", "worn/b.jpg"]


@posix_names
def test_scan_images_escapes_names_that_are_not_unicode(tmp_path: Path) -> None:
    raw = [
        b"plain.jpg",
        b"caf\xe9.jpg",
        b"caf\\udce9.jpg",  # what the one above would be taken for
        b"back\\slash.jpg",
        b"both\\\xff.jpg",
        b"caf\\\\udce9.jpg",
        "中文\u2028.jpg".encode(),
    ]
    for name in raw:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    shown = names(tmp_path)
    assert len(set(shown)) == len(raw)
    assert "plain.jpg" in shown
    assert "back\\slash.jpg" in shown
    assert "caf\\udce9.jpg" in shown
    assert all(name.encode() for name in shown)
    assert {os.fsencode(file.path.name) for file in scan_images(tmp_path).files} == set(raw)
    assert all(file.path.exists() for file in scan_images(tmp_path).files)


@posix_names
def test_scan_images_label_that_is_not_unicode(tmp_path: Path) -> None:
    touch(tmp_path, os.fsdecode(b"\xff/") + "a.jpg")
    labels = class_folders(tmp_path)
    (file,) = scan_images(tmp_path, labels).files
    assert file.expected == labels[0] == "\\udcff"
    assert file.path.exists()


def test_class_folders_in_order_of_image_folder(tmp_path: Path) -> None:
    from torchvision.datasets.folder import find_classes

    touch(tmp_path, *(f"{name}/x.jpg" for name in ("10", "2", "a", "Zoo", ".hidden", "ä")))
    touch(tmp_path, "notes.txt")
    assert class_folders(tmp_path) == find_classes(str(tmp_path))[0]
    assert class_folders(tmp_path)[:3] == [".hidden", "10", "2"]


def test_class_folders_needs_sub_folders(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    for path, problem in [
        (tmp_path, "no sub-folders"),
        (tmp_path / "nowhere", "No such file|cannot find"),
        (tmp_path / "a.jpg", "cannot be read"),
    ]:
        with pytest.raises(UsageError, match=problem) as caught:
            class_folders(path)
        assert caught.value.hint


@pytest.mark.parametrize(
    ("names", "given"),
    [
        (("val", "Train", "test", ".cache"), "Train"),
        (("valid", "test"), "valid"),
        (("VALIDATION",), "VALIDATION"),
        (("testing", "Training"), "Training"),
        (("test_set", "training_set"), "training_set"),
        (("eval", "TRAIN"), "TRAIN"),
    ],
)
def test_class_folders_refuses_dataset_splits(tmp_path: Path, names, given) -> None:
    touch(tmp_path, *(f"{name}/robin/x.jpg" for name in names))
    with pytest.raises(ImagesError, match="are parts of a data set, not classes: ") as caught:
        class_folders(tmp_path)
    assert caught.value.exit_code == 4
    assert caught.value.hint.endswith(str(tmp_path / given))
    touch(tmp_path, "robin/x.jpg")  # beside a class, they are classes too
    assert class_folders(tmp_path) == sorted([*names, "robin"])


def made_files(**counts: int) -> list[ImageFile]:
    return [
        ImageFile(Path(), f"{label}/{i}.jpg", label)
        for label, count in counts.items()
        for i in range(count)
    ]


def test_sample_images_even_over_classes() -> None:
    sample = sample_images(made_files(bird=100, dog=3, food=20), 15)
    by_class = {label: sum(file.expected == label for file in sample) for label in ("bird", "dog")}
    assert by_class == {"bird": 6, "dog": 3}
    assert len(sample) == 15


def test_sample_images_even_over_folders() -> None:
    files = [ImageFile(f.root, f.name) for f in made_files(a=50, b=2)]
    assert [file.name for file in sample_images(files, 4) if file.name.startswith("b")] == [
        "b/0.jpg",
        "b/1.jpg",
    ]


def test_sample_images_is_ordered_and_repeatable() -> None:
    files = made_files(bird=30, dog=30)
    sample = sample_images(files, 10)
    assert sample == sorted(sample, key=files.index)
    assert sample == sample_images(list(files), 10)
    assert sample != sample_images(files, 10, seed=1)
    assert sample_images(files, 99) == files
    # The draw is part of what a proof rests on: it must not change from release to release.
    assert [file.name for file in sample_images(made_files(bird=9), 3)] == [
        "bird/3.jpg",
        "bird/7.jpg",
        "bird/8.jpg",
    ]


def test_sample_images_after_a_file_is_removed() -> None:
    files = made_files(bird=30)
    sample = sample_images(files, 10)
    gone = sample[4]
    rest = sample_images([file for file in files if file != gone], 10)
    assert set(sample) - {gone} <= set(rest)


def test_sample_images_refuses_a_count_of_zero() -> None:
    with pytest.raises(UsageError, match="sample of 0"):
        sample_images(made_files(bird=3), 0)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_scan_images_without_permission(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "secret/b.jpg")
    (tmp_path / "secret").chmod(0)
    try:
        assert names(tmp_path) == ["a.jpg", "secret/"]
    finally:
        (tmp_path / "secret").chmod(0o700)
        shutil.rmtree(tmp_path / "secret")


def test_folder_presence_without_its_files(tmp_path):
    (tmp_path / "a.png").touch()
    presence = FolderPresence(tmp_path)
    (tmp_path / "a.png").unlink()
    presence.check()


def test_folder_presence_of_a_removed_folder(tmp_path):
    folder = tmp_path / "stick"
    folder.mkdir()
    presence = FolderPresence(folder)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="stick went away while its images were read") as caught:
        presence.check()
    assert "--resume" in caught.value.hint


def test_folder_presence_of_another_drive(tmp_path, monkeypatch):
    presence = FolderPresence(tmp_path)
    elsewhere = os.stat_result([0, 0, tmp_path.stat().st_dev + 1, *[0] * 7])
    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "stat", lambda path: elsewhere)
        with pytest.raises(InputError, match="another drive is in its place"):
            presence.check()
    presence.check()


def test_folder_presence_never_listable(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        presence = FolderPresence(tmp_path)
        presence.check()
    presence.check()


def test_folder_presence_no_longer_listable(tmp_path, monkeypatch):
    def refuse(path):
        raise OSError(107, "Transport endpoint is not connected")

    presence = FolderPresence(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        with pytest.raises(InputError, match="Transport endpoint"):
            presence.check()


def listed(folder: Path, content: bytes) -> list[str]:
    path = folder / "list.txt"
    path.write_bytes(content)
    return read_file_list(path)


def test_read_file_list_keeps_order(tmp_path: Path) -> None:
    assert listed(tmp_path, b"b.jpg\nsub/a.jpg\n-rf.png\n=1.png") == [
        "b.jpg",
        "sub/a.jpg",
        "-rf.png",
        "=1.png",
    ]


def test_read_file_list_skips_blanks_and_repetitions(tmp_path: Path) -> None:
    assert listed(tmp_path, b"\n a.jpg\t\r\n\r\n   \nb c.jpg\n./a.jpg\na.jpg\n") == [
        "a.jpg",
        "b c.jpg",
    ]


def test_read_file_list_removes_quotes(tmp_path: Path) -> None:
    assert listed(tmp_path, b'"a b.jpg"\n"half.jpg\n"\n""\n') == ["a b.jpg", '"half.jpg', '"', '""']


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_read_file_list_encodings(tmp_path: Path, encoding: str) -> None:
    text = "\u5c71\u96c0.jpg\r\nseparated\u2028name.jpg\r\n\U0001f426.jpg\r\n"
    assert listed(tmp_path, text.encode(encoding)) == [
        "\u5c71\u96c0.jpg",
        "separated\u2028name.jpg",
        "\U0001f426.jpg",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="this system's file names are always Unicode")
def test_read_file_list_bytes_that_are_not_utf_8(tmp_path: Path) -> None:
    (name,) = listed(tmp_path, b"caf\xe9.jpg\n")
    assert name == "caf\\udce9.jpg"


def test_read_file_list_refuses_bytes_if_names_are_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "getfilesystemencodeerrors", lambda: "surrogatepass")
    with pytest.raises(InputError, match=r"not text in UTF-8: .* at byte 3") as caught:
        listed(tmp_path, b"caf\xe9.jpg\n")
    assert "UTF-8" in str(caught.value.hint)


def test_read_file_list_refuses_torn_utf_16(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not text in UTF-16"):
        listed(tmp_path, "a.jpg".encode("utf-16")[:-1])


def test_read_file_list_separators(tmp_path: Path) -> None:
    (name,) = listed(tmp_path, bytes(Path("dog", "a.jpg")))
    assert name == "dog/a.jpg"


def test_read_file_list_keeps_urls_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "photos.txt"
    path.write_text("https://example.org/a//b.jpg\nx//y.jpg\n", encoding="utf-8")
    assert read_file_list(path) == ["https://example.org/a//b.jpg", "x/y.jpg"]
    file = scan_images(path).files[0]
    with pytest.raises(DecodeError, match=r"https://example\.org/a/b\.jpg: It is a URL"):
        decode_rgb(file.path)


def test_scan_images_of_a_url() -> None:
    with pytest.raises(ImagesError, match=r"https://example\.org/a\.jpg does not exist"):
        scan_images(Path("https://example.org/a.jpg"))


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
def test_read_file_list_without_names(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ImagesError, match="names no file") as caught:
        listed(tmp_path, content)
    assert caught.value.hint


def test_read_file_list_unreadable(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read") as caught:
        read_file_list(tmp_path)
    assert caught.value.hint
