"""``golden.npz`` that somebody else made, or that is damaged: never more than an error."""

import io
import struct
import zipfile

import msgspec
import numpy as np
import pytest
from bundle_files import acknowledged

from deploykit.bundle.golden import Golden, read_golden, write_golden
from deploykit.bundle.manifest import record_file
from deploykit.errors import BundleError

IMAGES, LOGITS = np.zeros((2, 16, 16, 3), np.uint8), np.ones((2, 3), np.float32)


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def saved(bundle, content):
    """The bundle with another ``golden.npz`` that its manifest calls its own."""
    path = bundle.folder / "golden.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
    return acknowledged(bundle, "golden.npz")


@pytest.mark.parametrize("logits", [LOGITS, np.asfortranarray(LOGITS)])
def test_read_golden_round_trip(bundle, logits):
    write_golden(Golden(IMAGES, logits), bundle.folder / "golden.npz")
    found = read_golden(acknowledged(bundle, "golden.npz"))
    assert (found.images == IMAGES).all()
    assert (found.logits == LOGITS).all()
    assert found.images.flags.writeable


HEADER = "{'descr': '%s', 'fortran_order': False, 'shape': %s, }"


def with_header(text):
    text = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


ODD_LOGITS = {
    "text": npy(np.array([["a", "b", "c"]] * 2)),
    "complex": npy(LOGITS.astype(np.complex64)),
    "double": npy(LOGITS.astype(np.float64)),
    "big-endian": npy(LOGITS.astype(">f4")),
    "a scalar": npy(np.float32(1)),
    "transposed": npy(np.asfortranarray(LOGITS)),
    "of one image": npy(LOGITS[:1]),
    "of other classes": npy(LOGITS[:, :2]),
    "NaN": npy(LOGITS * np.nan),
    "infinite": npy(LOGITS * np.inf),
    "objects": with_header(HEADER % ("|O", "(2, 3)")) + b"cos\nsystem\n(S'true'\ntR.",
    "27.9 TiB": with_header(HEADER % ("<f4", f"({10**13}, 3)")) + LOGITS.tobytes(),
    "negative": with_header(HEADER % ("<f4", "(-2, 3)")) + LOGITS.tobytes(),
    "too short": npy(LOGITS)[:-1],
    "too long": npy(LOGITS) + b"\0\0\0\0",
    "no array": b"logits",
    "empty": b"",
    "an unfinished header": with_header("{'descr': ("),
    "a deep header": with_header("(" * 100),
    "a call in the header": with_header("__import__('os').system('true')"),
    "of a later format": npy(LOGITS).replace(b"NUMPY\x01", b"NUMPY\x02"),
}


@pytest.mark.parametrize("logits", ODD_LOGITS.values(), ids=ODD_LOGITS)
def test_read_golden_refuses_odd_logits(bundle, logits):
    with pytest.raises(BundleError, match=r"golden\.npz is damaged: ") as caught:
        read_golden(saved(bundle, {"images.npy": npy(IMAGES), "logits.npy": logits}))
    assert caught.value.hint == "Export the bundle again."


@pytest.mark.parametrize("images", [IMAGES.astype(np.int8), IMAGES.astype(bool), IMAGES[:, :8]])
def test_read_golden_refuses_odd_images(bundle, images):
    with pytest.raises(BundleError, match=r"damaged: images\.npy is "):
        read_golden(saved(bundle, {"images.npy": npy(images), "logits.npy": npy(LOGITS)}))


def test_read_golden_refuses_a_missing_member(bundle):
    with pytest.raises(BundleError, match=r"damaged: .*logits\.npy"):
        read_golden(saved(bundle, {"images.npy": npy(IMAGES)}))


def test_read_golden_refuses_compressed_members(bundle):
    """What write_golden never makes, and an archive that inflates to gigabytes needs."""
    np.savez_compressed(bundle.folder / "golden.npz", images=IMAGES, logits=LOGITS)
    with pytest.raises(BundleError, match="is compressed"):
        read_golden(acknowledged(bundle, "golden.npz"))


def test_read_golden_refuses_encrypted_members(bundle):
    path = bundle.folder / "golden.npz"
    write_golden(Golden(IMAGES, LOGITS), path)
    content = path.read_bytes()
    content = content.replace(b"PK\x03\x04\x2d\0\0\0", b"PK\x03\x04\x2d\0\x01\0")
    content = content.replace(b"PK\x01\x02\x2d\x03\x2d\0\0\0", b"PK\x01\x02\x2d\x03\x2d\0\x01\0")
    with pytest.raises(BundleError, match=r"damaged: .*encrypted"):
        read_golden(saved(bundle, content))


def test_read_golden_refuses_claimed_sizes(bundle):
    """A member that says it has 2 GiB in an archive of some kilobytes."""
    path = bundle.folder / "golden.npz"
    write_golden(Golden(IMAGES, LOGITS), path)
    content = bytearray(path.read_bytes())
    central = content.index(b"PK\x01\x02")
    content[central + 20 : central + 28] = struct.pack("<II", 2**31, 2**31)
    with pytest.raises(BundleError, match="claims 2147483648 bytes"):
        read_golden(saved(bundle, bytes(content)))


def test_read_golden_without_images(bundle):
    with pytest.raises(BundleError, match="holds no image"):
        read_golden(saved(bundle, {"images.npy": npy(IMAGES[:0]), "logits.npy": npy(LOGITS[:0])}))


def test_read_golden_that_changed(bundle):
    (bundle.folder / "golden.npz").write_bytes(b"x")
    with pytest.raises(BundleError, match="is not the file that was exported"):
        read_golden(bundle)
    record = msgspec.structs.replace(record_file(bundle.folder / "golden.npz"))
    assert record.bytes == 1
