"""What damage or an attacker makes of the files of a bundle: other bytes, or another sense."""

import io
import json
import pickle
import struct
import warnings
import zipfile
from random import Random
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message

ODD_TEXTS = (
    "",
    "\0",
    "../../x",
    "\x1b[2J",
    "=1+1",
    "x" * 5000,
    "\u202e",
    "deploy/fp32.onnx",
    "NaN",
)
ODD_NUMBERS = (0, -1, 1, 2**31, -(2**31), 2**63 - 1, 2**64, 10**400, 1e308, 5e-324, 0.5)
ODD_VALUES = (*ODD_TEXTS, *ODD_NUMBERS, None, True, [], {}, [[]], {"": None}, [0] * 1000)
DTYPES = ("u1", "i1", "f2", "f4", "f8", ">f4", "c8", "c16", "U3", "S3", "?", "O", "M8[s]", "V4")


class Payload:
    """Runs code when it is unpickled: it makes a file."""

    def __init__(self, trap: str) -> None:
        self.trap = trap

    def __reduce__(self) -> Any:
        return open, (self.trap, "w")


def mutated_bytes(content: bytes, rng: Random) -> bytes:
    """The same with one to four bits, stretches or ends that are others."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(data) + 1)
        length = rng.choice((1, 1, 2, 4, 8, 64, 1000))
        match rng.randrange(6):
            case 0 if start < len(data):
                data[start] ^= 1 << rng.randrange(8)
            case 1:
                data[start : start + length] = rng.randbytes(length)
            case 2:
                del data[start : start + length]
            case 3:
                data[start:start] = data[: rng.randrange(1, 200)]
            case 4:
                del data[start:]
            case _:
                data[start : start + length] = bytes([rng.choice((0, 0x7F, 0xFF))]) * length
    return bytes(data)


def mutated_json(content: bytes, rng: Random, trap: str) -> bytes:
    """The same with a value that is another, missing, or there twice."""
    del trap
    value = json.loads(content)
    holders: list[Any] = []
    collect(value, holders)
    for _ in range(rng.randint(1, 2)):
        holder = rng.choice(holders)
        key = rng.choice([*holder] if isinstance(holder, dict) else range(len(holder)))
        match rng.randrange(4):
            case 0 if isinstance(holder, dict):
                holder[rng.choice(ODD_TEXTS)] = holder[key]
            case 1 if isinstance(holder, list):
                holder.append(holder[key])
            case _:
                holder[key] = rng.choice(ODD_VALUES)
    text = json.dumps(value)
    match rng.randrange(12):
        case 0:
            text = text.replace('"', '"schema": 4, "', 1)
        case 1:
            text = text.replace("null", rng.choice(("NaN", "-Infinity", "1e999", "[" * 10**5)))
        case 2:
            return text.encode("utf-16")
        case 3:
            return text.encode().replace(b"a", b"\xff", 1)
    return text.encode()


def collect(value: Any, holders: list[Any]) -> None:
    """Find all objects and lists that have something in them."""
    if isinstance(value, dict | list) and value:
        holders.append(value)
        for each in value.values() if isinstance(value, dict) else value:
            collect(each, holders)


def mutated_npz(content: bytes, rng: Random, trap: str) -> bytes:
    """The same with an array that is another, or none, in an archive that is odd."""
    with np.load(io.BytesIO(content)) as data:
        members = {f"{name}.npy": npy(array) for name, array in data.items()}
        arrays = dict(data)
    name = rng.choice([*members])
    odd = odd_array(arrays[name.removesuffix(".npy")], rng, trap)
    if rng.randrange(8):
        members[name] = odd
    else:
        members[rng.choice(("x.npy", "../x.npy", "images", "logits.npy/"))] = members.pop(name)
    return odd_archive(members, rng)


def odd_array(array: Any, rng: Random, trap: str) -> bytes:
    """An array's file with others of its kind: types, shapes, headers, numbers."""
    shapes = ("()", "(10000000000000, 3)", "(-1, 3)", "(8,)", "[8, 3]", "8", "x")
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {rng.choice(shapes)}, }}"
    odd_headers = ("(" * 5000, "open('x', 'w')", "{'descr': ", "1" * 6000, "\\x", "")
    with warnings.catch_warnings(action="ignore"):
        made = (
            npy(array.astype(rng.choice(DTYPES))),
            npy(np.array([Payload(trap)], dtype=object)),
            pickle.dumps(Payload(trap)),
            npy(array.reshape(rng.choice([(-1,), (1, -1), (*array.shape, 1)]))),
            with_header(header) + array.tobytes(),
            with_header(rng.choice(odd_headers)),
            npy(np.full_like(array, rng.choice((0, 255, np.nan, np.inf)))),
            mutated_bytes(npy(array), rng),
        )
    return rng.choice(made)


def odd_archive(members: dict[str, bytes], rng: Random) -> bytes:
    """An archive, which is often another than ``numpy.savez`` makes."""
    stream = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED,) * 4 + (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(stream, "w", method) as archive:
        for each, data in members.items():
            archive.writestr(each, data)
    made = bytearray(stream.getvalue())
    central = made.find(b"PK\x01\x02")
    match rng.randrange(8):
        case 0:
            made[central + 8] |= 1  # encrypted
        case 1:
            made[central + 20 : central + 28] = struct.pack("<II", *[2**32 - 2] * 2)
        case 2:
            made[central + 10] = rng.randrange(256)  # how it is compressed
        case 3:
            return mutated_bytes(bytes(made), rng)
    return bytes(made)


def npy(array: Any) -> bytes:
    """What ``numpy.save`` writes."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def mutated_pickle(content: bytes, rng: Random, trap: str) -> bytes:
    """A file of ``torch.save`` in a whole archive, with another pickle in it."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {each.filename: archive.read(each) for each in archive.infolist()}
    (name,) = (each for each in members if each.endswith("data.pkl"))
    harmful = pickle.dumps(Payload(trap), protocol=2)
    made = mutated_bytes(members[name], rng)
    # Behind its beginning, so that a reader that goes on comes upon it.
    members[name] = rng.choice((made, made, made, harmful, members[name][:-1] + harmful[2:]))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for each, data in members.items():
            archive.writestr(each, data)
    return stream.getvalue()


def with_header(text: str) -> bytes:
    """The first bytes of an array's file."""
    header = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def mutated_onnx(content: bytes, rng: Random, trap: str) -> bytes:
    """The same with one to three fields that are others, missing, or there twice."""
    del trap
    model = onnx.ModelProto.FromString(content)
    for _ in range(rng.randint(1, 3)):
        mutate_message(rng.choice([*messages(model)]), rng)
    return model.SerializeToString()


def messages(message: Message) -> Any:
    """A message and all within."""
    yield message
    for field, value in message.ListFields():
        if field.message_type:
            for each in value if is_repeated(message, field) else (value,):
                yield from messages(each)


def is_repeated(message: Message, field: Any) -> bool:
    """Whether a field is a list."""
    return hasattr(getattr(message, field.name), "append")


def mutate_message(message: Message, rng: Random) -> None:
    """Change one field of a message."""
    field = rng.choice(message.DESCRIPTOR.fields)
    value = getattr(message, field.name)
    if rng.randrange(3) == 0:
        message.ClearField(field.name)
    elif field.message_type:
        if not is_repeated(message, field):
            value.SetInParent()
        elif value:
            match rng.randrange(3):
                case 0:
                    value.add().CopyFrom(rng.choice(value))
                case 1:
                    del value[rng.randrange(len(value))]
                case _:
                    value.add()
    else:
        new = odd_scalar(field, rng)
        if not is_repeated(message, field):
            setattr(message, field.name, new)
        elif value and rng.randrange(2):
            value[rng.randrange(len(value))] = new
        else:
            value.append(new)


def odd_scalar(field: Any, rng: Random) -> Any:
    """A value of a field's type."""
    match field.cpp_type:
        case field.CPPTYPE_STRING:
            if field.type == field.TYPE_BYTES:
                return rng.randbytes(rng.choice((0, 1, 3, 4, 1000)))
            return rng.choice(ODD_TEXTS)
        case field.CPPTYPE_FLOAT | field.CPPTYPE_DOUBLE:
            return rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
        case field.CPPTYPE_ENUM:
            return rng.choice([each.number for each in field.enum_type.values])
        case field.CPPTYPE_INT64:
            return rng.choice((0, -1, 1, 2, 3, 7, 2**31, 2**62, -(2**62)))
        case field.CPPTYPE_INT32:
            return rng.choice((0, -1, 1, 2, 10, 16, 17, 99, 2**31 - 1))
        case _:
            return rng.choice((0, 1, 2**31 - 1))
