"""Reading a pickle as plain values: nothing that it names is imported, made or called.

torch's restricted loader calls a list of functions with whatever arguments a file gives, so a file
of a few bytes can ask for all of the memory, or for the hash of a tuple that has no end. Here only
tensors are made, by the caller; all else that is no plain value becomes a :class:`Skipped`.
"""

from __future__ import annotations

import mmap
import pickletools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

#: A pickle of weights has about thirty steps a tensor, and the loss of each iteration some more.
MAX_STEPS = 3_000_000
#: Longer whole numbers are no one's epoch, and Python itself refuses to print the longest.
_MAX_INT_BITS = 64

_PATHS = "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"
#: Data that training keeps beside weights. They are harmless because none of them is ever made.
_DATA = frozenset(
    f"{module}.{name}"
    for module, names in (
        ("argparse", "Namespace"),
        ("types", "SimpleNamespace"),
        ("uuid", "UUID SafeUUID"),
        ("decimal", "Decimal"),
        ("fractions", "Fraction"),
        ("_codecs", "encode"),  # how bytes are pickled
        ("copyreg", "_reconstructor"),
        ("builtins", "object bool bytearray bytes complex float frozenset int list range set"),
        ("builtins", "slice str tuple"),
        ("collections", "deque"),
        ("datetime", "date datetime time timedelta timezone"),
        ("zoneinfo", "ZoneInfo ZoneInfo._unpickle"),
        ("pathlib", _PATHS),
        ("pathlib._local", _PATHS),  # Python 3.13
        ("numpy", "dtype ndarray matrix"),
        ("numpy.core.multiarray", "scalar _reconstruct"),
        ("numpy.core.numeric", "_frombuffer"),
        ("numpy.ma.core", "MaskedArray _mareconstruct"),
        ("numpy.random._pickle", "__randomstate_ctor __generator_ctor __bit_generator_ctor"),
        ("numpy.random._mt19937", "MT19937"),
        ("numpy.random._pcg64", "PCG64 PCG64DXSM"),
        ("numpy.random._philox", "Philox"),
        ("numpy.random._sfc64", "SFC64"),
        ("numpy.random.bit_generator", "SeedSequence __pyx_unpickle_SeedSequence"),
        ("torch", "device strided contiguous_format channels_last preserve_format"),
        ("torch", "per_tensor_affine per_tensor_symmetric per_channel_affine"),
        ("torch", "per_channel_symmetric per_channel_affine_float_qparams"),
        ("torch.serialization", "_get_layout"),
    )
    for name in names.split()
)
#: numpy's own types of numbers, dtypes and, in the text of either version, its private modules.
_NUMPY_TYPE = re.compile(r"numpy\.(?:dtypes\.\w+DType|\w+?\d+_?|bool_?|longdouble|str_|bytes_)")
_DICTIONARIES = ("collections.OrderedDict", "collections.Counter", "builtins.dict")
_DTYPE = re.compile(r"torch\.(?:u?int|b?float|complex|bits|q?u?int|bool|half|double|long)\w*")
_STORAGE = re.compile(r"torch\.(?:cuda\.|storage\.)?(?P<kind>\w*Storage)")
#: Tensors that are no plain array of numbers, and what they are.
_UNUSABLE = {
    "torch._utils._rebuild_meta_tensor_no_storage": "a meta tensor, which has no values",
    "torch._utils._rebuild_qtensor": "quantised",
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_wrapper_subclass": "of a subclass of Tensor",
    "torch._utils._rebuild_device_tensor_from_numpy": "of a device that saves them as NumPy arrays",
}
#: Functions that make tensors, and which argument says that the numbers are to be negated.
_METADATA = {
    "torch._utils._rebuild_tensor": 4,  # has none
    "torch._utils._rebuild_tensor_v2": 6,
    "torch._utils._rebuild_tensor_v3": 7,
}
_TENSOR = frozenset(_METADATA)
_CONJUGATE = "a conjugate view"
#: What wraps a tensor, which is the first argument.
_WRAPS = frozenset(
    {
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
        "torch.nn.parameter.Parameter",
    }
)
_FROM_TYPE = frozenset(f"torch._tensor._rebuild_from_type{end}" for end in ("", "_v2"))
_TYPES = frozenset({"torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Buffer"})
_OTHER = (
    {"torch.Size", "collections.defaultdict", *_DICTIONARIES}
    | (_TENSOR | _WRAPS | _FROM_TYPE | _TYPES | _DATA)
    | _UNUSABLE.keys()
)


class DamagedPickleError(ValueError):
    """A pickle that is no pickle, or none that torch writes."""


class ClaimError(ValueError):
    """A file that takes far more memory or time than its size lets expect."""


@dataclass(frozen=True, eq=False)
class Skipped:
    """What is no plain value, and is not made.

    Attributes:
        kind: The name of its class or function.
    """

    kind: str


@dataclass(frozen=True, eq=False)
class Unusable:
    """A tensor that no network can be given.

    Attributes:
        reason: What it is.
    """

    reason: str


class StateDict(dict[object, object]):
    """What an OrderedDict becomes, with what torch keeps beside the weights in it.

    Attributes:
        _metadata: By the path of a module, a dictionary with its ``version``, by torch's own name.
    """

    _metadata: object = None


@dataclass(frozen=True, eq=False)
class Name:
    """The name of a class or function, ``collections.OrderedDict``."""

    text: str

    @property
    def storage(self) -> str:
        """``FloatStorage`` where it is the name of a storage, else empty."""
        match = _STORAGE.fullmatch(self.text)
        return match["kind"] if match else ""


@dataclass(frozen=True)
class TensorParts:
    """What a pickle says of a tensor: nothing of it is checked.

    Attributes:
        storage: What the caller made of its storage.
        offset: Of its first element in the storage, in elements.
        shape: Its dimensions.
        stride: The elements from one entry of a dimension to the next.
        dtype: The name of its type, ``torch.float8_e4m3fn``; empty where the storage has it.
        negated: Whether its numbers are those of the storage with the other sign.
    """

    storage: object
    offset: object
    shape: object
    stride: object
    dtype: str
    negated: bool


@dataclass
class Reader:
    """Reads one pickle after the other from a file.

    Attributes:
        file: Open for reading bytes.
        storage: Makes a storage of what the file says of it.
        tensor: Makes a tensor of its parts.
        code: The names that the file asks for and that are neither weights nor data. To load such
            a file is to run code.
    """

    file: BinaryIO | mmap.mmap
    storage: Callable[[object], object]
    tensor: Callable[[TensorParts], object]
    code: dict[str, None] = field(default_factory=dict)
    _steps: int = field(default=0, init=False)

    def read(self) -> object:
        """Read the next pickle.

        Raises:
            DamagedPickleError: It is no pickle of torch.
            ClaimError: It is too long.
            ValueError, LookupError, TypeError, OverflowError, RecursionError: It is damaged.
        """
        state = _State(self)
        while code := self.file.read(1):
            self._steps += 1
            if self._steps > MAX_STEPS:
                raise ClaimError(f"more than {MAX_STEPS:,} values beside its tensors")
            if code == b".":
                return state.stack.pop()
            if code not in _STEPS:
                raise DamagedPickleError(f"it has a step that torch never writes: {code!r}")
            read_arg, step = _STEPS[code]
            step(state, read_arg(self.file) if read_arg else None)
        raise DamagedPickleError("it has no end")

    def named(self, module: object, name: object) -> Name:
        """What stands for a class or function; it is noted where it is code."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise DamagedPickleError("a class in it has no name")
        # Pickles of protocol 2 call things as Python 2 did.
        renamed = (IMPORT_MAPPING.get(module, module), name)
        module, name = NAME_MAPPING.get((module, name), renamed)
        found = Name(f"{module}.{name}")
        text = re.sub(r"^numpy\._core\.", "numpy.core.", found.text)
        known = text in _OTHER or any(
            pattern.fullmatch(text) for pattern in (_NUMPY_TYPE, _DTYPE, _STORAGE)
        )
        if not known:
            self.code[found.text] = None
        return found

    def persistent(self, said: object) -> object:
        """A storage; or, in files from before torch 1.6, a network's class with its source."""
        if isinstance(said, tuple) and len(said) > 1 and said[0] == "module":
            return said[1]
        return self.storage(said)

    def made(self, what: object, args: object) -> object:
        """What takes the place of a call of a named class or function."""
        if not isinstance(args, tuple):
            raise DamagedPickleError("a call in it has no arguments")
        name = _text(what)
        if name in _TENSOR:
            bits = _bits(args, _METADATA[name])
            if bits - {"neg"}:
                return Unusable(_CONJUGATE)
            return self.tensor(_tensor_parts(name, args, negated="neg" in bits))
        if name in _UNUSABLE:
            return Unusable(_UNUSABLE[name])
        if name in _FROM_TYPE:
            inner, _, inner_args, *_ = args
            return self.made(inner, inner_args)
        if name in _WRAPS or name == "torch.Size":
            return args[0]
        if name == "collections.defaultdict":
            args = args[1:]
        elif name not in _DICTIONARIES:
            return Skipped(name)
        made: dict[object, object] = StateDict()
        first = args[0] if args else ()
        pairs: Iterable[Any] = first.items() if isinstance(first, Mapping) else first
        for key, value in pairs:
            _update(made, [key, value])
        return made


class _State:
    """Where the reading of a pickle stands."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, object] = {}

    def push(self, value: object) -> None:
        self.stack.append(value)

    def mark(self, _: object) -> None:
        self._below.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        """Take all that was pushed since the last mark."""
        items, self.stack = self.stack, self._below.pop()
        return items

    def pop(self, _: object) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.marked()

    def put(self, arg: object) -> None:
        self._memo[_index(arg)] = self.stack[-1]

    def memoize(self, _: object) -> None:
        self._memo[len(self._memo)] = self.stack[-1]

    def get(self, arg: object) -> None:
        index = _index(arg)
        if index not in self._memo:
            raise DamagedPickleError("it repeats a value that it does not have")
        self.push(self._memo[index])

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise DamagedPickleError("it ends within a tuple")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def append(self, _: object) -> None:
        item = self.stack.pop()
        _extend(self.stack[-1], [item])

    def extend(self, _: object) -> None:
        items = self.marked()
        _extend(self.stack[-1], items)

    def set_item(self, _: object) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _update(self.stack[-1], [key, value])

    def set_items(self, _: object) -> None:
        items = self.marked()
        _update(self.stack[-1], items)

    def dictionary(self, _: object) -> None:
        items = self.marked()
        self.push({})
        _update(self.stack[-1], items)

    def name(self, lines: tuple[str, str]) -> None:
        self.push(self.reader.named(*lines))

    def name_of_stack(self, _: object) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push(self.reader.named(module, name))

    def instance(self, lines: tuple[str, str]) -> None:
        self.marked()
        self.push(Skipped(self.reader.named(*lines).text))

    def object_of_stack(self, _: object) -> None:
        self.push(Skipped(_text(self.marked()[0])))

    def call(self, _: object) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.reader.made(self.stack[-1], args)

    def call_with_keywords(self, _: object) -> None:
        self.stack.pop()
        self.call(_)

    def build(self, _: object) -> None:
        """Attributes: of a state_dict, the versions of its layers; of all else they are skipped."""
        attributes, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, StateDict) and isinstance(attributes, dict):
            target._metadata = attributes.get("_metadata")  # noqa: SLF001  # torch's name

    def persistent(self, said: object) -> None:
        self.push(self.reader.persistent(said))


def _push(value: Callable[[Any], object]) -> Callable[[_State, Any], None]:
    return lambda state, arg: state.push(value(arg))


def _skip_marked(kind: str) -> Callable[[_State, Any], None]:
    def step(state: _State, _: object) -> None:
        state.marked()
        if kind:
            state.push(Skipped(kind))

    return step


def _push_skipped(kind: str) -> Callable[[_State, Any], None]:
    skipped = Skipped(kind)
    return lambda state, _: state.push(skipped)


def _whole_number(arg: Any) -> object:
    plain = isinstance(arg, int) and arg.bit_length() < _MAX_INT_BITS
    return arg if plain else Skipped("int")


#: What to do at each step of a pickle, by pickletools' names.
_BY_NAME: dict[str, Callable[[_State, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda *_: None),
    "MARK": _State.mark,
    "POP": _State.pop,
    "POP_MARK": _skip_marked(""),
    "DUP": lambda state, _: state.push(state.stack[-1]),
    "NONE": _push(lambda _: None),
    "NEWTRUE": _push(lambda _: True),
    "NEWFALSE": _push(lambda _: False),
    **dict.fromkeys(("INT", "LONG", "LONG1", "LONG4"), _push(_whole_number)),
    **dict.fromkeys(("BININT", "BININT1", "BININT2"), _State.push),
    **dict.fromkeys(("FLOAT", "BINFLOAT"), _State.push),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _State.push),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _State.push),
    **dict.fromkeys(
        ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        _push_skipped("bytes"),
    ),
    "EMPTY_SET": _push_skipped("set"),
    "FROZENSET": _skip_marked("frozenset"),
    "ADDITEMS": _skip_marked(""),
    "EMPTY_LIST": _push(lambda _: []),
    "LIST": lambda state, _: state.push(state.marked()),
    "APPEND": _State.append,
    "APPENDS": _State.extend,
    "EMPTY_TUPLE": _push(lambda _: ()),
    "TUPLE": lambda state, _: state.push(tuple(state.marked())),
    "TUPLE1": lambda state, _: state.tuple_of(1),
    "TUPLE2": lambda state, _: state.tuple_of(2),
    "TUPLE3": lambda state, _: state.tuple_of(3),
    "EMPTY_DICT": _push(lambda _: {}),
    "DICT": _State.dictionary,
    "SETITEM": _State.set_item,
    "SETITEMS": _State.set_items,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _State.put),
    "MEMOIZE": _State.memoize,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _State.get),
    "GLOBAL": _State.name,
    "STACK_GLOBAL": _State.name_of_stack,
    "INST": _State.instance,
    "OBJ": _State.object_of_stack,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _State.call),
    "NEWOBJ_EX": _State.call_with_keywords,
    "BUILD": _State.build,
    "PERSID": _State.persistent,
    "BINPERSID": lambda state, _: state.persistent(state.stack.pop()),
}


def _two_lines(file: BinaryIO | mmap.mmap) -> tuple[str, str]:
    # pickletools takes names for ASCII; Python writes UTF-8.
    module, name = (file.readline().removesuffix(b"\n").decode() for _ in range(2))
    return module, name


def _reader_of(opcode: pickletools.OpcodeInfo) -> Callable[[Any], Any] | None:
    if opcode.name in ("GLOBAL", "INST"):
        return _two_lines
    return opcode.arg.reader if opcode.arg else None


#: How a step's argument is read, and what to do with it, by the byte that stands for the step.
_STEPS = {
    opcode.code.encode("latin-1"): (_reader_of(opcode), _BY_NAME[opcode.name])
    for opcode in pickletools.opcodes
    if opcode.name in _BY_NAME
}


def _bits(args: tuple[object, ...], place: int) -> set[object]:
    """What torch notes of a view beside its numbers: ``neg``, ``conj``."""
    noted = args[place] if len(args) > place else None
    if not noted:
        return set()
    if not isinstance(noted, dict):
        raise DamagedPickleError("what it notes of a tensor is no dictionary")
    return {key for key, value in noted.items() if value}


def _tensor_parts(name: str, args: tuple[object, ...], *, negated: bool) -> TensorParts:
    storage, offset, shape, stride, *rest = args
    dtype = ""
    if name.endswith("_v3"):
        if not isinstance(rest[2], Name):
            raise DamagedPickleError("a tensor in it has no type")
        dtype = rest[2].text
    return TensorParts(storage, offset, shape, stride, dtype, negated)


def _text(what: object) -> str:
    if not isinstance(what, Name):
        raise DamagedPickleError("it calls what has no name")
    return what.text


def _index(arg: object) -> int:
    return int(str(arg))  # of PUT and GET a text


def _extend(target: object, items: list[object]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Skipped):
        raise DamagedPickleError("it appends to what is no list")


def _update(target: object, items: list[object]) -> None:
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value
    elif not isinstance(target, Skipped):
        raise DamagedPickleError("it sets entries of what is no dictionary")


def _key(key: object) -> object:
    """A key that is hashed at once: a small tuple of tuples may stand for 2**40 of them."""
    return key if isinstance(key, (str, int)) else Skipped(type(key).__name__)
