import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from deploykit.errors import ArchitectureError, DependencyError, UsageError
from deploykit.models.registry import resolve_architecture

Write = Callable[..., Path]

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(code: str, name: str = "net.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(code), encoding="utf-8")
        return path

    return write


def outputs(name: str, num_classes: int = 3, **arch_args: object) -> int:
    module = resolve_architecture(name, allow_user_code=True).build(num_classes, arch_args)
    return module(torch.zeros(1, 3, 8, 8)).shape[1]


def failure(name: str) -> ArchitectureError:
    with pytest.raises(ArchitectureError) as caught:
        resolve_architecture(name, allow_user_code=True).build(3)
    return caught.value


def test_user_code_class_in_a_file(write: Write) -> None:
    path = write(NETWORK)
    architecture = resolve_architecture(f"{path}:Net", allow_user_code=True)
    assert (architecture.name, architecture.origin) == (f"{path}:Net", "user")
    assert architecture.preprocessing is None
    assert outputs(f"{path}:Net") == 3
    assert not (path.parent / "__pycache__").exists()


def test_user_code_relative_path_with_arguments(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(NETWORK)
    monkeypatch.chdir(write(NETWORK).parent)
    module = resolve_architecture("net.py:Net", allow_user_code=True).build(3, {"width": 9})
    assert module.get_parameter("fc.weight").shape == (3, 9)


def test_user_code_in_a_package_of_current_folder(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(NETWORK, "birds_project/net.py")
    root = write("", "birds_project/__init__.py").parent.parent
    monkeypatch.chdir(root)
    search = list(sys.path)
    assert outputs("birds_project.net:Net", 5) == 5
    assert sys.path == search


@pytest.mark.parametrize("argument", ["num_classes", "n_class", "n_classes", "classes"])
def test_user_code_names_for_number_of_classes(write: Write, argument: str) -> None:
    path = write(NETWORK + f"\ndef make({argument}=4): return Net({argument})")
    assert outputs(f"{path}:make", 6) == 6


def test_user_code_with_kwargs(write: Write) -> None:
    path = write(NETWORK + "\ndef make(**kwargs): return Net(**kwargs)")
    assert outputs(f"{path}:make", 6, width=2) == 6


def test_user_code_of_fixed_classes(write: Write) -> None:
    path = write(NETWORK + "\ndef birds(): return Net(7)")
    assert outputs(f"{path}:birds", 3) == 7


def test_user_code_static_method(write: Write) -> None:
    path = write(
        NETWORK
        + """
class Zoo:
    @staticmethod
    def small(num_classes): return Net(num_classes, 2)
"""
    )
    assert outputs(f"{path}:Zoo.small", 5) == 5


def test_user_code_imports_files_beside_it(write: Write) -> None:
    write("WIDTH = 6", "sibling_at_import.py")
    write("SCALE = 2", "sibling_at_call.py")
    path = write(
        NETWORK
        + """
from sibling_at_import import WIDTH
def make(num_classes):
    from sibling_at_call import SCALE
    return Net(num_classes, WIDTH * SCALE)
"""
    )
    module = resolve_architecture(f"{path}:make", allow_user_code=True).build(2)
    assert module.get_parameter("fc.weight").shape == (2, 12)


def test_user_code_prints_to_stderr(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        NETWORK + "\nprint('importing')\ndef make(n_class): print('making'); return Net(2)"
    )
    resolve_architecture(f"{path}:make", allow_user_code=True).build(2)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "importing\nmaking\n"


TRAINS_BY_BACKWARD = "loss = Net(2)(torch.zeros(1, 3, 8, 8)).sum()\nloss.backward()\n"
TRAINS_BY_STEP = "torch.optim.Adam(Net(2).parameters()).step()\n"
READS_DATA = "for batch in torch.utils.data.DataLoader([1, 2]): pass\n"
SWALLOWS = "try:\n    torch.zeros(1, requires_grad=True).sum().backward()\nexcept Exception: pass\n"


@pytest.mark.parametrize(
    ("script", "what"),
    [
        (TRAINS_BY_BACKWARD, "trains"),
        (TRAINS_BY_STEP, "trains"),
        (SWALLOWS, "trains"),
        (READS_DATA, "reads its data"),
        ("raise SystemExit(2)\n", "ends the program"),
    ],
)
def test_user_code_script_that_trains_is_explained(write: Write, script: str, what: str) -> None:
    path = write(NETWORK + script)
    error = failure(f"{path}:Net")
    assert re.search(rf"net\.py {what} when it is imported, at .*net\.py:\d+", error.message)
    assert "if __name__ ==" in error.hint


def test_user_code_script_with_main_guard(write: Write) -> None:
    script = textwrap.indent(TRAINS_BY_BACKWARD, "    ")
    path = write(f'{NETWORK}\nif __name__ == "__main__":\n{script}')
    assert outputs(f"{path}:Net") == 3


def test_user_code_failed_leaves_torch_working(write: Write) -> None:
    failure(f"{write(NETWORK + READS_DATA)}:Net")
    module = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    batch = next(iter(torch.utils.data.DataLoader(torch.ones(1, 2))))
    before = module.weight.detach().clone()
    module(batch).sum().backward()
    optimizer.step()
    assert not torch.equal(module.weight, before)


def test_user_code_exception_while_importing(write: Write) -> None:
    path = write("import os\n\ndef load():\n    os.listdir('D:/no/such/photos')\n\nload()\n")
    error = failure(f"{path}:Net")
    assert f"{path}:4: FileNotFoundError: " in error.message
    assert "if __name__ ==" in error.hint


def test_user_code_exception_in_a_library(write: Write) -> None:
    path = write("import json\n\njson.loads('{')\n")
    assert f"{path}:3: JSONDecodeError: " in failure(f"{path}:Net").message


def test_user_code_syntax_error(write: Write) -> None:
    path = write("x = 1\nclass Net(\n")
    assert f"{path}:2: SyntaxError: " in failure(f"{path}:Net").message


def test_user_code_missing_package(write: Write) -> None:
    path = write("import no_such_package_1")
    with pytest.raises(DependencyError, match="No module named 'no_such_package_1'") as caught:
        resolve_architecture(f"{path}:Net", allow_user_code=True)
    assert caught.value.exit_code == 5
    assert caught.value.hint.endswith("install it: pip install no_such_package_1")


def test_user_code_missing_package_of_another_pip_name(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DependencyError) as caught:
        resolve_architecture(f"{write('import cv2')}:Net", allow_user_code=True)
    assert caught.value.hint.endswith("install it: pip install opencv-python")


def test_user_code_package_of_another_version(write: Write) -> None:
    with pytest.raises(DependencyError) as caught:
        resolve_architecture(f"{write('import torch.no_such_part')}:Net", allow_user_code=True)
    assert "torch is here, without no_such_part" in caught.value.hint


def test_user_code_folder_named_like_a_package(write: Write) -> None:
    write("loss 0.3", "no_such_logger/run.log")
    path = write("import no_such_logger", "code/net.py")
    with pytest.raises(DependencyError):
        resolve_architecture(f"{path}:Net", allow_user_code=True)


def test_user_code_missing_own_module(write: Write) -> None:
    write("", "own_parts/__init__.py")
    path = write("import own_parts.layers")
    assert f"{path.parent} has no own_parts.layers" in failure(f"{path}:Net").hint


def test_user_code_module_in_a_folder_above(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write("WIDTH = 4", "own_widths/sizes.py").parent.parent
    path = write("from own_widths.sizes import WIDTH\n" + NETWORK, "own_nets/net.py")
    error = failure(f"{path}:Net")
    assert error.hint.startswith(f"own_widths is in {root}: run from there")
    monkeypatch.chdir(root)
    assert outputs("own_nets.net:Net") == 3


def test_user_code_relative_import(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("WIDTH = 4", "own_birds/layers.py")
    path = write("from .layers import WIDTH\n" + NETWORK, "own_birds/net.py")
    error = failure(f"{path}:Net")
    assert "attempted relative import" in error.message
    assert f"{path.parent.parent}, and name it package.module:Name" in error.hint
    assert "--arch own_birds.MODULE:NAME" in error.hint
    monkeypatch.chdir(path.parent.parent)
    assert outputs("own_birds.net:Net") == 3


def test_user_code_that_takes_no_num_classes(write: Write) -> None:
    path = write(NETWORK + "\ndef make(*args, **kw): return nn.Linear(3, 3, **kw)")
    error = failure(f"{path}:make")
    assert "unexpected keyword argument 'num_classes'" in error.message
    assert "deploykit added num_classes" in error.hint


def test_user_code_exception_in_the_constructor(write: Write) -> None:
    path = write("def make(num_classes):\n    return {}['heads']\n")
    error = failure(f"{path}:make")
    assert "make fails when it is called" in error.message
    assert f"{path}:2: KeyError: 'heads'" in error.message


def test_user_code_class_that_takes_a_config(write: Write) -> None:
    path = write("class DPN:\n    def __init__(self, cfg): pass\n")
    error = failure(f"{path}:DPN")
    assert f"{path}:DPN needs cfg, which has no default" in error.message
    assert "def make(num_classes): return DPN(cfg=...)" in error.hint


def test_user_code_missing_argument(write: Write) -> None:
    path = write(NETWORK + "\ndef make(in_channel, num_classes): return Net(num_classes)")
    assert "--arch-arg in_channel=VALUE" in failure(f"{path}:make").hint
    assert outputs(f"{path}:make", 4, in_channel=3) == 4


def test_user_code_unknown_argument(write: Write) -> None:
    architecture = resolve_architecture(f"{write(NETWORK)}:Net", allow_user_code=True)
    with pytest.raises(UsageError, match="takes no argument depth") as caught:
        architecture.build(3, {"depth": 2})
    assert caught.value.hint == "It takes: width."


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("net = Net(3)", r":net is of type Net; it does not make a network"),
        ("net = 3", r":net is of type int; it does not make a network"),
        (
            "def net(num_classes): return Net(3).state_dict()",
            "returns OrderedDict, not",
        ),
        ("net = dict", "returns dict, not"),
    ],
)
def test_user_code_that_makes_no_network(write: Write, code: str, message: str) -> None:
    assert re.search(message, failure(f"{write(NETWORK + code)}:net").message)


def test_user_code_that_returns_nothing(write: Write) -> None:
    assert "returns NoneType" in failure(f"{write('def net(): pass')}:net").message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/file.py:Net", "no file"),
        (r"C:\no such\file.py:Net", r"no file C:\no such\file.py"),
        (r"C:\no such\file.py", "names a file, but not the network in it"),
        ("file.py", "names a file, but not the network in it"),
        ("no_such_module_1.net:Net", "no module no_such_module_1.net"),
    ],
)
def test_user_code_names_that_do_not_exist(name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_architecture(name, allow_user_code=True)
    assert message in caught.value.message.replace("/", "\\" if "\\" in message else "/")


def test_user_code_misspelt_class(write: Write) -> None:
    with pytest.raises(UsageError, match="There is no Nett in") as caught:
        resolve_architecture(f"{write(NETWORK)}:Nett", allow_user_code=True)
    assert caught.value.hint == "It defines: Net."


def test_user_code_misspelt_among_several(write: Write) -> None:
    write("from torch import nn\nclass Elsewhere(nn.Module): pass", "own_elsewhere.py")
    code = "from torch.nn import Linear\nfrom own_elsewhere import Elsewhere\n" + NETWORK
    path = write(f"{code}\nclass Np(Net): pass\nclass Config: pass\ndef make(): return Net(2)\n")
    with pytest.raises(UsageError) as caught:
        resolve_architecture(f"{path}:Nope", allow_user_code=True)
    assert caught.value.hint == "It defines: Np, Elsewhere, Net, make."
