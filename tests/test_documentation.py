"""The documentation: its commands and programs run, its links lead somewhere, its site builds."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import typer
from PIL import Image, ImageOps
from training_transforms import TRANSFORMS

import deploykit
from deploykit.commands.app import COMMANDS, app, run
from deploykit.models.registry import resolve_architecture

ROOT = Path(deploykit.__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [page for page in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))] if page.exists()]
#: What follows its marker ``<!-- needs: a GPU -->`` is not run here.
BLOCK = re.compile(r"(?:<!-- needs: ([^>]+) -->\n)?^```(\w*)\n(.*?)^```", re.M | re.S)
PROGRAMS = ("deploykit", "pip", "pytest", "python", "mkdocs", "docker", "curl", "ray", "npm")
#: Their programs, their cluster and their million of images are other tests' own.
RUN_ELSEWHERE = {
    "frameworks.md": "test_frameworks.py",
    "ray.md": "commands/predict/test_on_ray.py",
    "scale.md": "test_scale.py",
}
#: What ``best_model.pth`` is of on the pages about one network, whose commands run with it.
NETWORKS = {
    "quick-starts/densenet.md": ("densenet", {"k": 2}),
    "quick-starts/dpn.md": ("dpn92", {}),
    "quick-starts/resnet.md": ("resnet_cifar96", {}),
    "quick-starts/resnext50.md": ("resnext50_keras", {}),
}
#: The pages whose commands take few seconds; the others are slow tests.
QUICK = {
    "clusters.md",
    "diagnose.md",
    "engines.md",
    "precision.md",
    "predict.md",
    "quick-starts/resnet.md",
}


class Block(NamedTuple):
    """A fenced block: what it needs that is not here, its language, its text."""

    needs: str
    kind: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Its commands, one by one."""
        if self.kind not in ("", "bash"):
            return []
        return [
            command.strip()
            for line in self.text.splitlines()
            for command in line.split(" && ")
            if command.split(" ")[0] in PROGRAMS
        ]


def name_of(page):
    return page.name if page.parent == ROOT else page.relative_to(DOCS).as_posix()


def blocks_of(page):
    return [Block(*found) for found in BLOCK.findall(page.read_text(encoding="utf-8"))]


def commands_of(page):
    return [line for block in blocks_of(page) if not block.needs for line in block.commands]


LINES = [
    pytest.param(line, id=f"{name_of(page)}: {line}")
    for page in PAGES
    for block in blocks_of(page)
    for line in block.commands
]
#: They run with the network that they speak of, and not again elsewhere with a small one.
QUICK_STARTS = {
    line for page in PAGES if page.parent.name == "quick-starts" for line in commands_of(page)
}


@pytest.mark.skipif(not LINES, reason="not run from a checkout")
def test_documentation_has_commands():
    assert len(LINES) >= 6


@pytest.mark.parametrize("line", LINES)
def test_documentation_commands_parse(line):
    program, *words = shlex.split(line)
    if program == "pip":
        settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        named = re.findall(r"\.\[(.+)\]", line)  # of deploykit itself
        extras = {extra for names in named for extra in names.split(",")}
        assert extras <= settings["project"]["optional-dependencies"].keys()
    elif program == "deploykit":
        name, *arguments = words
        group = typer.main.get_command(app)
        command = group.get_command(group.make_context("deploykit", [name]), name)
        command.make_context(name, arguments)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page,
            id=name_of(page),
            marks=[] if name_of(page) in QUICK else [pytest.mark.slow, pytest.mark.timeout(900)],
        )
        for page in PAGES
        if name_of(page) not in RUN_ELSEWHERE and commands_of(page)
    ],
)
def test_documentation_commands_run(page, request, monkeypatch, capsys):
    """One after the other, as a reader types them."""
    special = name_of(page) in NETWORKS
    folder = request.getfixturevalue("trained_folder" if special else "user_folder")
    if special:
        request.getfixturevalue("save_network")(name_of(page))
    monkeypatch.chdir(folder)
    if any("build-trt" in line for line in commands_of(page)):
        request.getfixturevalue("rtx")  # skips the page where nothing can build
    for line in commands_of(page):
        program, *words = shlex.split(line)
        if program == "pip" or (not special and line in QUICK_STARTS):
            continue
        if program == "deploykit":
            code = run(words)
        else:
            assert program == "pytest", f"mark it: <!-- needs: ... --> before {line}"
            code = subprocess.run([sys.executable, "-m", "pytest", *words], check=False).returncode
        captured = capsys.readouterr()
        assert code == 0, f"{line}\n{captured.out}\n{captured.err}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_documentation_python_examples_run(page, request, monkeypatch):
    blocks = [block for block in blocks_of(page) if block.kind == "python"]
    if page.name in ("README.md", "python.md"):
        assert blocks
    if page.name in RUN_ELSEWHERE:
        assert (ROOT / "tests" / RUN_ELSEWHERE[page.name]).exists()
        return
    if examples := [block.text for block in blocks if not block.needs]:
        monkeypatch.chdir(request.getfixturevalue("user_folder"))
        names: dict[str, object] = {}
        for example in examples:
            exec(example, names)


@pytest.fixture
def photos(tmp_path, photo_folder):
    """A folder with the photos of the examples, under the names that they have there."""
    for name in ("bird_photos", "photos", "other_photos", "cifar10"):
        shutil.copytree(photo_folder, tmp_path / name)
    rows = ["path,labels"]
    for path in sorted(photo_folder.rglob("*.png")):
        color, mirrored = path.parent.name, f"{path.stem}_mirrored.png"
        with Image.open(path) as image:  # 45 are too few to make an INT8 graph with
            ImageOps.mirror(image).save(tmp_path / "bird_photos" / color / mirrored)
        rows.append(f"{color}/{path.name},{color}")
    (tmp_path / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    shutil.copy(photo_folder / "red" / "00.png", tmp_path / "robin.jpg")
    return tmp_path


@pytest.fixture
def user_folder(photos, network_file, checkpoint, exported_bundle, monkeypatch):
    """What the examples name: photos, checkpoints with their code, and a bundle."""
    network = network_file.read_text(encoding="utf-8")
    own = network.replace("class Net(", "class BirdNet(").replace("(Net)", "(BirdNet)")
    made = f"{own}\n\ndef make_net(num_classes):\n    return BirdNet(num_classes)\n"
    (photos / "my_package").mkdir()
    for name, text in {
        "train_birds.py": own,
        "my_package/__init__.py": "",
        "my_package/models.py": made,
        "train.py": f"{network}\n{TRANSFORMS}\nval_transform = same\n",
        "mnist.py": network.replace("nn.Conv2d(3,", "nn.Conv2d(1,"),
    }.items():
        (photos / name).write_text(text, encoding="utf-8")
    weights = torch.load(checkpoint)
    torch.save(weights, photos / "best_model.pth")
    names = {"__name__": "__main__"}
    exec(network, names)
    # As a script saves its own network: pickle looks for its class there.
    monkeypatch.setattr(sys.modules["__main__"], "Net", names["Net"], raising=False)
    module = names["Net"](3)
    module.load_state_dict(weights)
    torch.save(module, photos / "whole.pth")
    weights["features.0.weight"] = weights["features.0.weight"].sum(1, keepdim=True)
    torch.save(weights, photos / "mnist_cnn.pt")
    shutil.copytree(exported_bundle.folder, photos / "artifacts" / "dpn92")
    return photos


@pytest.fixture
def trained_folder(photos):
    """Three photos a class, for networks that take their time."""
    for folder in ("bird_photos", "cifar10"):
        for path in (photos / folder).rglob("*.png"):
            if path.stem not in ("00", "01", "02"):
                path.unlink()
    return photos


@pytest.fixture
def save_network(photos):
    """Save the checkpoint that a page speaks of, with random weights."""

    def save(page):
        arch, arguments = NETWORKS[page]
        torch.manual_seed(0)
        if arch != "resnext50_keras":
            module = resolve_architecture(arch, allow_user_code=False).build(3, arguments)
            torch.save(module.state_dict(), photos / "best_model.pth")
            return
        pytest.importorskip("optree", reason="Keras is not installed")
        import keras_networks

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Keras and what it imports
            model = keras_networks.resnext50((224, 224), 3)
            keras_networks.set_made_weights(model, np.random.default_rng(0))
            model.save(photos / "model.keras")

    return save


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_documentation_links_exist(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    pictures = re.findall(r'src(?:set)?="([^":]+)"', text)
    for target in links + pictures:
        assert (page.parent / target).exists(), target


def test_readme_install_table_has_every_extra():
    """Or its reader meets a command that fails for a package that no line names."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What to install")[2]
    rows = [line.split("|") for line in text.splitlines() if line.startswith("|")]
    named = {extra for row in rows for extra in re.findall(r"`(\w+)`", row[2])}
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert named | {"dev"} == settings["project"]["optional-dependencies"].keys()


def load_script(name):
    """A file of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_site_builds(tmp_path):
    """Strictly: each page is in the navigation, and each link and anchor leads somewhere."""
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "CI": "1"}
    )
    assert built.returncode == 0, built.stderr
    for name in COMMANDS:
        page = (tmp_path / "reference" / f"{name}.html").read_text(encoding="utf-8")
        assert f"<code>deploykit {name} " in page
    start = (tmp_path / "index.html").read_text(encoding="utf-8")
    pictures = re.findall(r'src="(pictures/[\w-]+\.png)#only-(light|dark)"', start)
    assert len(pictures) == 4
    for picture, scheme in pictures:
        assert picture.endswith(f"-{scheme}.png")
        assert (tmp_path / picture).exists(), picture
    bench = (tmp_path / "bench.html").read_text(encoding="utf-8")
    assert '">What "proven" means</a>' in bench
    assert ".md</a>" not in bench
    predict = (tmp_path / "reference" / "predict.html").read_text(encoding="utf-8")
    assert "<code>--top-k K|all</code>" in predict
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img|iframe)[^>]*src="?http', text), page
        assert not re.search(r'<link[^>]*href="?http', text), page


def test_reference_has_every_option_and_error():
    pages = load_script("hooks").pages()
    assert "| `--lowest-margins N` |" in pages["reference/verify.md"]
    assert "| `SOURCE" in pages["reference/predict.md"]
    assert "## Preprocessing options" in pages["reference/export.md"]
    assert "| `CheckpointError` | 4 |" in pages["reference/errors.md"]
    assert "| `UnreadableImagesError` | 6 |" in pages["reference/errors.md"]


def test_pictures_are_those_of_their_script():
    script = load_script("pictures")
    for name, made in script.pictures().items():
        with Image.open(DOCS / "pictures" / name) as kept:
            difference = np.asarray(kept, int) - np.asarray(made, int)
        assert np.abs(difference).max() <= 2, f"python docs/pictures.py ({name})"
    assert script.proof() == (DOCS / "pictures" / "proof.svg").read_text(encoding="utf-8")
