"""Files of torch.save are read as torch reads them; made ones are refused before they cost much."""

import io
import itertools
import random
import struct
import time
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint import read_checkpoint, read_weights
from deploykit.models.contents import read_contents

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.tensor([0.5, -1.0])}


def saved(content: object, folder: Path, **options: object) -> Path:
    path = folder / "best.pth"
    torch.save(content, path, **options)
    return path


def refusal(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_contents(path)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


def with_pickle(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """A file of torch.save that holds the storage of one number, with another pickle."""
    buffer = io.BytesIO()
    torch.save({"x": torch.zeros(1)}, buffer)
    with zipfile.ZipFile(buffer) as honest, zipfile.ZipFile(path, "w", compression) as made:
        for name in honest.namelist():
            made.writestr(name, pickled if name.endswith("data.pkl") else honest.read(name))
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"


def tensor(shape: bytes, stride: bytes, offset: int = 0) -> bytes:
    """The steps of a pickle that make a tensor of the file's one number."""
    storage = (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\1tQ"
    )
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K" + bytes([offset])
    return rebuild + shape + stride + b"\x89}tR"


BASE = torch.arange(24.0).reshape(4, 6)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "value",
    [
        *(
            torch.tensor([0, 1, 1]).to(t)
            for t in (torch.bool, torch.uint8, torch.int8, torch.int16)
        ),
        *(torch.tensor([0.5, -2]).to(t) for t in (torch.half, torch.bfloat16, torch.double)),
        torch.tensor([1.0, -2]).to(torch.float8_e4m3fn),
        torch.tensor([1, 2**15]).to(torch.uint16),
        torch.zeros(0, 3),
        torch.tensor(3.5),
        BASE[1:3, ::2].t(),
        torch.zeros(1).expand(5, 7),
        nn.Parameter(torch.ones(3)),
        torch.tensor([[1 + 2j, 3 - 4j], [0, -1j]]).conj().imag,  # a negated view
        torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    ],
)
def test_read_checkpoint_reads_as_torch_does(tmp_path: Path, value: Tensor, zipped: bool) -> None:
    if not zipped and value.dtype in (torch.float8_e4m3fn, torch.uint16):
        pytest.skip("torch itself reads no older file with this type")
    content = {"a.weight": value, "whole": BASE, "row": BASE[2]}  # with shared storages
    path = saved(content, tmp_path, _use_new_zipfile_serialization=zipped)
    loaded = read_checkpoint(path).loaded
    expected = torch.load(path)
    assert loaded.keys() == expected.keys()
    for name, theirs in expected.items():
        ours = loaded[name]
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert theirs.is_neg() or ours.stride() == theirs.stride()
        assert torch.equal(ours.float(), theirs.float())


def test_read_weights_of_a_compressed_archive(tmp_path: Path) -> None:
    path = tmp_path / "small.pth"
    with (
        zipfile.ZipFile(saved(STATE, tmp_path)) as honest,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in honest.namelist():
            small.writestr(name, honest.read(name))
    (weights,) = read_weights(path)
    assert all(torch.equal(weights.state_dict[name], STATE[name]) for name in STATE)


def test_read_weights_of_unaligned_members(tmp_path: Path) -> None:
    path = tmp_path / "odd.pth"
    with zipfile.ZipFile(saved(STATE, tmp_path)) as honest, zipfile.ZipFile(path, "w") as odd:
        odd.writestr("best/.odd", b"1")
        for name in honest.namelist():
            odd.writestr(name, honest.read(name))
    (weights,) = read_weights(path)
    assert all(torch.equal(weights.state_dict[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (torch.zeros(4, 2, device="meta"), "a meta tensor, which has no values"),
        (torch.zeros(4, 2, dtype=torch.complex64), "complex"),
        (torch.ones(4, 2, dtype=torch.complex64).conj(), "a conjugate view"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_read_checkpoint_refuses_what_no_network_takes(
    tmp_path: Path, bad: Tensor, reason: str, zipped: bool
) -> None:
    content = {**STATE, "fc.weight": bad}
    path = saved(content, tmp_path, _use_new_zipfile_serialization=zipped)
    assert f"no network can be given: fc.weight is {reason}." in refusal(path).message
    saved({"bad": content, "model": STATE}, tmp_path, _use_new_zipfile_serialization=zipped)
    contents = read_contents(path)
    assert contents.entry == "model"
    told = f"no network can be given the weights of the entry 'bad': fc.weight is {reason}"
    assert told in contents.notes


STEPS = [bytes([number]) for number in range(61)]
REPEATED = b"".join(b"0h" + a + b"h" + a + b"\x86q" + b for a, b in itertools.pairwise(STEPS))
LISTS = b"".join(b"]q" + b + b"(h" + a + b"h" + a + b"e" for a, b in itertools.pairwise(STEPS))
ONE, MANY = numbers(1), numbers(*[1] * 2000)
PICKLES = {
    "lists, each twice the one before": (b"]q\x00" + LISTS, "no weights|type list"),
    "a tuple of 2**60 as a key": (b"}K\1q\x00" + REPEATED + b"K\1s", "no weights"),
    "a dictionary in itself": (b"}q\x00" + text("model") + b"h\x00s", "no weights"),
    "300,000 dictionaries, each in the one before": (
        b"}" + (text("a") + b"}") * 300_000 + b"s" * 300_000,
        "no weights",
    ),
    "a gigabyte of zeros from a call": (
        b"}" + text("a") + b"cbuiltins\nbytearray\n(J\0\0\0\x40tRs",
        "no weights",
    ),
    "a tensor from a call": (
        b"ctorch\nFloatTensor\n(J\0\0\0\x40tR",
        r"run code \(torch.FloatTensor",
    ),
    "a quantised tensor": (
        b"}" + text("fc.weight") + b"ctorch._utils\n_rebuild_qtensor\n)Rs",
        "given: fc.weight is quantised",
    ),
    "a memo at 2**31": (b"}r\xff\xff\xff\x7f", "no weights"),
    "an expanded tensor": (
        b"}" + text("fc.weight") + tensor(numbers(200_000_000, 512), numbers(0, 0)) + b"s",
        "claims far more than it holds: the file has 1 numbers for a tensor of 200000000x512",
    ),
    "many sets": (b"\x8f" * 3_100_000, "more than 3,000,000 values"),
    "a tensor beyond its storage": (tensor(ONE, ONE, offset=1), "has only 1 numbers"),
    "a negative stride": (tensor(ONE, numbers(-1)), "a size in it is -1"),
    "2,000 dimensions": (tensor(MANY, MANY), "number of dimensions"),
    "code under a name of two lines": (
        b"\x8c\x02os\x8c\x07sys\ntem\x93",
        r"run code \('os.sys\\ntem",
    ),
    "no end": (b"}", "has no end"),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_read_checkpoint_refuses_a_made_pickle(tmp_path: Path, kind: str) -> None:
    resource = pytest.importorskip("resource")
    steps, message = PICKLES[kind]
    end = b"" if kind == "no end" else b"."
    path = with_pickle(tmp_path / "made.pth", b"\x80\x02" + steps + end)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(CheckpointError, match=message):
        read_contents(path)
    assert time.perf_counter() - start < 10  # 0.5 s each; without end before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_read_checkpoint_refuses_a_text_that_inflates(tmp_path: Path) -> None:
    pickled = b"\x80\x02" + text("A" * 40_000_000) + b"."
    path = with_pickle(tmp_path / "long.pth", pickled, zipfile.ZIP_DEFLATED)
    assert "bytes and says that it unpacks to 40," in refusal(path).message


def test_read_checkpoint_refuses_members_that_share_their_bytes(tmp_path: Path) -> None:
    path = saved(STATE, tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("best/data/9", b"\0" * 100_000)
        for number in range(10, 60):
            info = zipfile.ZipInfo(f"best/data/{number}")
            same = archive.getinfo("best/data/9")
            info.header_offset, info.CRC = same.header_offset, same.CRC
            info.file_size, info.compress_size = same.file_size, same.compress_size
            archive.filelist.append(info)
    assert "says that it unpacks to 5,1" in refusal(path).message


def test_read_checkpoint_refuses_a_member_twice(tmp_path: Path) -> None:
    path = saved(STATE, tmp_path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("best/data/0", b"\0" * 24)
    assert "two of its members have one name" in refusal(path).message


def rezipped(whole: bytes, choice: random.Random) -> bytes:
    """An archive with members renamed, left out, cut, changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as honest, zipfile.ZipFile(out, "w") as made:
        for name in honest.namelist():
            content = honest.read(name)
            other = choice.choice(
                [name + "x", "../" + name, "\x1b" + name, "é", name + "/", "a\0b"]
            )
            made.writestr(other if choice.random() < 0.05 else name, mutated(content, choice, 0.2))
    return out.getvalue()


def mutated(content: bytes, choice: random.Random, rate: float = 1) -> bytes:
    data = bytearray(content)
    if choice.random() > rate or not data:
        return content
    for _ in range(choice.choice((1, 2, 8))):
        place = choice.randrange(len(data) + 1)
        length = choice.choice((0, 1, 4, 30))
        data[place : place + length] = choice.choice(
            (b"", b"\xff\xff\xff\x7f", b"\0\0\0\0", choice.randbytes(2), data[: length + 1])
        )
    return bytes(data)


FUZZED = {"zip": rezipped, "zip's bytes": mutated, "legacy": mutated, "safetensors": mutated}


@pytest.mark.parametrize("kind", FUZZED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pickles with wrong escapes
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_read_contents_of_damaged_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "best.pth"
    state = {**nn.BatchNorm2d(3).state_dict(), "half": torch.ones(2).half()}
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        content = {"model": state, 1: STATE, "epoch": 3, "log": [0.5, None]}
        torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    whole, change = path.read_bytes(), FUZZED[kind]
    choice = random.Random(14)
    outcomes = [outcome(path, change(whole, choice)) for _ in range(200)]
    assert sum(map(bool, outcomes)) > 50
    assert not any("\n" in reason for reason in outcomes)


def outcome(path: Path, content: bytes) -> str:
    """Why a file of this content is refused; empty where it is read."""
    path.unlink()  # a mapped file is not written into
    path.write_bytes(content)
    try:
        read_contents(path)
    except CheckpointError as error:
        return error.message
    return ""
