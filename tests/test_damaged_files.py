"""Bundles, checkpoints and runs that are damaged, or made to do harm: mutations of good ones.

Whatever is in them, they can be used, or they are refused with an error that is the user's to
mend: no traceback, no code of theirs run, no end that never comes, no memory filled. As many
mutations are tried as ``DEPLOYKIT_MUTATIONS`` says, which is how a release is checked (20000);
``DEPLOYKIT_SEED`` begins with another.
"""

import json
import os
import random
import shutil
import signal
import sys
import traceback

import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch
from made_runs import begun_with
from mutations import mutated_bytes, mutated_json, mutated_npz, mutated_onnx, mutated_pickle
from PIL import Image

import deploykit
from deploykit.bundle.manifest import record_file
from deploykit.commands.predict.ledger import Ledger
from deploykit.engine.passport import BuiltOn, Passport, passport_path, write_passport
from deploykit.errors import DeploykitError
from deploykit.models.loading import load_model
from deploykit.models.registry import Architecture
from deploykit.specs.engine import Profile
from deploykit.specs.prediction import Prediction, Ranked

FEW = int(os.environ.get("DEPLOYKIT_MUTATIONS", "40"))
SEED = int(os.environ.get("DEPLOYKIT_SEED", "0"))
SECONDS = 60
MOST_MEMORY = 2 * 2**30
TRAP = "CODE_RAN"
GRAPHS = ("model.onnx", "deploy/fp32.onnx")
MUTATIONS = {
    "bundle.json": mutated_json,
    "golden.npz": mutated_npz,
    "model.onnx": mutated_onnx,
    "deploy/fp32.onnx": mutated_onnx,
    "engine.json": mutated_json,
}


@pytest.fixture(scope="module")
def whole(exported_bundle, tmp_path_factory):
    """A bundle with an engine, which is none but for its passport."""
    folder = tmp_path_factory.mktemp("whole") / "colours"
    shutil.copytree(exported_bundle.folder, folder)
    manifest = exported_bundle.manifest
    (folder / "engines").mkdir()
    engine, graph = folder / "engine", "deploy/fp32.onnx"
    engine.write_bytes(b"vtrt" + bytes(100))
    passport = Passport(
        schema=2,
        flavour="tensorrt_rtx",
        version="1.7.1.120",
        targets=("current",),
        gpu=BuiltOn(name="NVIDIA GeForce RTX 4070", compute_capability=(8, 9)),
        profile=Profile(),
        workspace_bytes=None,
        inputs=(manifest.deploy_input,),
        outputs=(manifest.output,),
        precision="fp32",
        kept=(),
        deploy_graph=graph,
        deploy_graph_sha256=manifest.files[graph].sha256,
        engine_sha256=record_file(engine).sha256,
        engine_bytes=104,
        build_seconds=1.0,
        created="2026-01-01T00:00:00+00:00",
        proof=manifest.verdicts[-1],
    )
    path = engine.rename(folder / "engines" / passport.engine)
    write_passport(passport_path(path), passport)
    content = json.loads((folder / "bundle.json").read_bytes())
    for each in (path, passport_path(path)):
        content["files"][f"engines/{each.name}"] = msgspec.to_builtins(record_file(each))
    content["engines"] = [f"engines/{path.name}"]
    content["checkpoint"]["path"] = "/nowhere/best_model.pth"
    content["images"] = None
    (folder / "bundle.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def photo(tmp_path):
    """One image in a folder."""
    path = tmp_path / "photos" / "a.png"
    path.parent.mkdir()
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(path)
    return path


def mutate(folder, rng):
    """Damage a file of a bundle's copy; a forger's manifest has the hash of what he changed."""
    kind = rng.choice([*MUTATIONS])
    name = kind
    if kind == "engine.json":
        name = next((folder / "engines").glob("*.json")).relative_to(folder).as_posix()
    path = folder / name
    before = path.read_bytes()
    if rng.randrange(3):
        after = MUTATIONS[kind](before, rng, str(folder / TRAP))
    else:
        after = mutated_bytes(before, rng)
    path.write_bytes(after)
    if name != "bundle.json" and rng.randrange(20):
        content = json.loads((folder / "bundle.json").read_bytes())
        content["files"][name] = msgspec.to_builtins(record_file(path))
        for verdict in content["verdicts"]:
            if verdict["graph"] == name:
                verdict["graph_sha256"] = content["files"][name]["sha256"]
        (folder / "bundle.json").write_text(json.dumps(content))
    return name


def uses(folder, photo, rng):
    """Use a bundle as commands do, in one of several ways; those that take long come seldom."""
    match rng.choice("aaabbbbbcccddddeeefgh"):
        case "a":
            with deploykit.load(folder) as model:
                model(photo)
        case "b":
            with deploykit.load(folder, runtime="onnxruntime-cpu", precision="fp32") as model:
                model(photo)
        case "c":
            repr(deploykit.verify(folder, self_test=True, runtime="onnxruntime-cpu"))
        case "d":
            repr(deploykit.inspect(folder))
        case "e":
            repr(deploykit.inspect(folder / rng.choice(GRAPHS)))
        case "f":
            with deploykit.load(folder, runtime="openvino", precision="fp32") as model:
                model(photo)
        case "g":
            repr(deploykit.verify(folder, images=photo.parent))
        case _:
            repr(deploykit.diagnose(folder, images=photo.parent, runtime="onnxruntime-cpu"))


def try_mutation(seed, whole, folder, photo):
    """Use a damaged bundle once; returns what was wrong with that, empty where nothing was."""
    rng = random.Random(seed)
    name = mutate(folder, rng)
    wrong = ""
    try:
        uses(folder, photo, rng)
    except DeploykitError as exc:
        if exc.exit_code not in (3, 4):
            wrong = repr(exc)
    except Exception as exc:  # noqa: BLE001  # any is what must not come
        wrong = "".join(traceback.format_exception(exc)[-4:])
    if (folder / TRAP).exists():
        wrong = "code ran"
    for changed in (name, "bundle.json"):
        shutil.copyfile(whole / changed, folder / changed)
    return wrong and f"seed {seed}, {name}: {wrong}"


def stop(signum, frame):
    raise AssertionError(f"no end after {SECONDS} s")


@pytest.fixture
def memory():
    """Fails if the process has grown by more than a bound."""
    resource = pytest.importorskip("resource")  # Windows has none
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    yield
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    assert after - before < MOST_MEMORY


def try_mutations(count, whole, folder, photo):
    shutil.copytree(whole, folder)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        wrong = []
        for seed in range(SEED, SEED + count):
            signal.alarm(SECONDS)
            wrong.append(try_mutation(seed, whole, folder, photo))
        assert "\n".join(filter(None, wrong)) == ""
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


STATE = {"fc.weight": torch.arange(12.0).reshape(4, 3), "fc.bias": torch.ones(4)}
TINY = Architecture("tiny", "zoo", lambda num_classes: Tiny(num_classes))
ROWS = [
    Prediction(f"{i}.jpg", label="owl", probability=1.0, margin=1.0, top=(Ranked("owl", 1.0),))
    for i in range(3)
]


class Tiny(torch.nn.Module):
    """A layer on the mean colour."""

    def __init__(self, num_classes):
        super().__init__()
        self.fc = torch.nn.Linear(3, num_classes)

    def forward(self, x):
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def inputs(tmp_path):
    """A folder with each kind of file, beside a bundle, that a command reads."""
    content = {"model": STATE, "ema": STATE, "epoch": 3, "args": {"lr": 0.1, "out": ["a", None]}}
    torch.save(content, tmp_path / "zip.pth")
    torch.save(content, tmp_path / "pickle.pth")
    torch.save(content, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(STATE, tmp_path / "weights.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(STATE, "weights.safetensors")}
    (tmp_path / "m.index.json").write_text(json.dumps(index), encoding="utf-8")
    begun_with(tmp_path / "t.csv.run", ROWS)
    return tmp_path


MUTATED_INPUTS = {
    "zip.pth": None,
    "pickle.pth": mutated_pickle,
    "legacy.pth": None,
    "weights.safetensors": None,
    "m.index.json": mutated_json,
    "t.csv.run/plan.json": mutated_json,
    "t.csv.run/list-*": None,
    "t.csv.run/parts/0*2-*": None,
}


def use_input(path):
    """Read an input as commands do."""
    run = next((each for each in path.parents if each.suffix == ".run"), None)
    if run is not None:
        ledger = Ledger(run)
        if ledger.plan == begun_with(run.with_name("other"), ROWS).plan:
            ledger.check_list()
            found = [ledger.read(part) for part in ledger.parts()]
            assert [row.row for part in found if part for row in part[0]] in (ROWS, ROWS[2:])
        return
    repr(deploykit.inspect(path))
    load_model(TINY, path, (8, 8))


def try_input(seed, folder):
    """Use a damaged input once; returns what was wrong with that, empty where nothing was."""
    rng = random.Random(seed)
    name = rng.choice([*MUTATED_INPUTS])
    path, trap, mutated = next(folder.glob(name)), folder / TRAP, MUTATED_INPUTS[name]
    before = path.read_bytes()
    if mutated is None or rng.randrange(3) == 0:
        path.write_bytes(mutated_bytes(before, rng))
    else:
        path.write_bytes(mutated(before, rng, str(trap)))
    wrong = ""
    try:
        use_input(path)
    except DeploykitError as exc:
        if exc.exit_code not in (2, 4):
            wrong = repr(exc)
    except Exception as exc:  # noqa: BLE001  # any is what must not come
        wrong = "".join(traceback.format_exception(exc)[-4:])
    if trap.exists():
        wrong = "code ran"
    path.write_bytes(before)
    return wrong and f"seed {seed}, {name}: {wrong}"


def try_inputs(count, folder):
    before = signal.signal(signal.SIGALRM, stop)
    try:
        wrong = []
        for seed in range(SEED, SEED + count):
            signal.alarm(SECONDS)
            wrong.append(try_input(seed, folder))
        assert "\n".join(filter(None, wrong)) == ""
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("default")
def test_damaged_inputs_are_refused(inputs, memory):
    try_inputs(2 * FEW, inputs)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("default")
def test_more_damaged_inputs_are_refused(inputs, memory):
    try_inputs(max(FEW, 5000), inputs)


@pytest.mark.filterwarnings("default")
def test_damaged_files_are_refused(whole, tmp_path, photo, memory):
    try_mutations(FEW, whole, tmp_path / "colours", photo)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("default")
def test_more_damaged_files_are_refused(whole, tmp_path, photo, memory):
    try_mutations(max(FEW, 5000), whole, tmp_path / "colours", photo)
