"""Real builds by TensorRT for RTX, which needs no GPU for them."""

import _thread
import dataclasses
import hashlib
import queue
import subprocess
import sys
import threading
import time

import pytest
from engine_graphs import ADA, DEPLOY_GRAPH, Altered, save_graph

import deploykit.engine.build
from deploykit.engine.build import engine_from_onnx
from deploykit.engine.passport import check_plan, read_header
from deploykit.specs.engine import Profile
from deploykit.specs.model import TensorSpec


@pytest.mark.parametrize("targets", [("sm89",), ("portable",), ("sm86", "sm89")])
def test_engine_from_onnx_without_gpu(build, deploy_graph, targets):
    built = build(targets=targets)
    assert check_plan(built.plan, "tensorrt_rtx") is None
    assert read_header(built.plan).targets == targets
    assert built.graph_sha256 == hashlib.sha256(deploy_graph.read_bytes()).hexdigest()
    assert built.inputs == (TensorSpec(name="images", dtype="uint8", shape=("N", 8, 8, 3)),)
    assert built.outputs == (TensorSpec(name="logits", dtype="float32", shape=("N", 2)),)
    assert built.gpu is None
    assert 0 < built.seconds < 60


def test_engine_from_onnx_of_float_pixels(build, tmp_path):
    floats = DEPLOY_GRAPH.replace("uint8[N", "float[N")
    floats = floats.replace("    pixels = Cast <to = 1> (images)\n", "")
    graph = save_graph(tmp_path / "fp16.onnx", floats.replace("(pixels)", "(images)"))
    built = build(graph)
    assert built.inputs == (TensorSpec(name="images", dtype="float32", shape=("N", 8, 8, 3)),)


def test_engine_from_onnx_ignores_order_of_targets(build):
    assert build(targets=("sm89", "sm86")).plan == build(targets=("sm86", "sm89")).plan


BUILD = """
import hashlib, pathlib, sys
from deploykit.engine.build import engine_from_onnx
from deploykit.engine.flavour import open_flavour
from deploykit.specs.engine import Profile
built = engine_from_onnx(
    open_flavour("tensorrt_rtx"), pathlib.Path(sys.argv[1]), profile=Profile(), targets=["sm89"]
)
print(hashlib.sha256(built.plan).hexdigest())
"""


def test_engine_from_onnx_is_deterministic(build, deploy_graph):
    plan = build().plan
    assert build().plan == plan
    other = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", BUILD, str(deploy_graph)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.split() == [hashlib.sha256(plan).hexdigest()]


def test_engine_from_onnx_uses_batch_sizes(build):
    assert build(profile=Profile(max_batch=64)).plan != build().plan
    assert build(profile=Profile(min_batch=3, opt_batch=3, max_batch=3)).plan != build().plan


def test_engine_from_onnx_fp32_without_tf32(rtx, build, tmp_path, monkeypatch):
    graph = save_graph(tmp_path / "fp32.onnx", DEPLOY_GRAPH.replace("<to = 10>", "<to = 1>"))
    config = {}
    configure = deploykit.engine.build._configure

    def spy(*arguments):
        config["it"] = configure(*arguments)
        return config["it"]

    monkeypatch.setattr(deploykit.engine.build, "_configure", spy)
    build(graph)
    assert not config["it"].get_flag(rtx.trt.BuilderFlag.TF32)


def test_engine_from_onnx_steps_in_the_calling_thread(build):
    steps, threads = [], set()

    def on_step(phase, done, total):
        steps.append((phase, done, total))
        threads.add(threading.current_thread())

    build(on_step=on_step)
    assert threads == {threading.current_thread()}
    assert ("Building engine", 0, 6) in steps
    assert len({phase for phase, _, _ in steps}) > 3
    done = [done for _, done, total in steps if total == 6]
    assert len(done) == len(steps)  # the build's own steps, whatever phase it is in
    assert done == sorted(done)
    assert done[-1] >= 5  # TensorRT does not tell of the last one


def test_engine_from_onnx_stops_if_progress_raises(rtx, build):
    def fail(*step):
        raise ZeroDivisionError

    with rtx.log.capture() as lines, pytest.raises(ZeroDivisionError):
        build(on_step=fail)
    assert "BuildCanceled" in "".join(lines)
    assert build().plan


@pytest.fixture
def build_as_tensorrt(rtx, deploy_graph, monkeypatch):
    """Build as the flavour ``tensorrt`` does, whose Python interface is the same."""
    monkeypatch.setattr(deploykit.engine.build, "need_gpu", lambda: ADA)
    tensorrt = dataclasses.replace(rtx, flavour="tensorrt")

    def build(**options):
        return engine_from_onnx(
            tensorrt, deploy_graph, profile=Profile(), targets=("current",), **options
        )

    return build


def thread_names():
    return {thread.name for thread in threading.enumerate()}


@pytest.mark.filterwarnings("ignore:.*Timing cache operations:DeprecationWarning")
def test_engine_from_onnx_ctrl_c_leaves_nothing(rtx, build_as_tensorrt, deploy_graph, tmp_path):
    steps = []

    def interrupt(*step):
        steps.append(step)
        if len(steps) == 3:
            _thread.interrupt_main()

    plan, before = build_as_tensorrt().plan, thread_names()
    with rtx.log.capture() as lines, pytest.raises(KeyboardInterrupt):
        build_as_tensorrt(on_step=interrupt, timing_cache=tmp_path / "timing.cache")
    assert "BuildCanceled" in "".join(lines)
    assert thread_names() == before
    assert not list(tmp_path.iterdir())
    assert [path.name for path in deploy_graph.parent.iterdir()] == [deploy_graph.name]
    assert build_as_tensorrt().plan == plan


def test_engine_from_onnx_repeated_ctrl_c(build, alter_builder):
    """Until TensorRT takes its next step, after the third, the build cannot stop."""
    cancels, answers = [], queue.SimpleQueue()

    def build_in_silence(builder, network, config):
        for _ in range(3):
            time.sleep(0.05)  # until the main thread waits
            _thread.interrupt_main()
            answers.get(timeout=30)

    def on_cancel():
        cancels.append(threading.current_thread())
        answers.put(None)

    before = thread_names()
    alter_builder(build_serialized_network=build_in_silence)
    with pytest.raises(KeyboardInterrupt):
        build(on_cancel=on_cancel)
    assert cancels == [threading.main_thread()] * 3
    assert thread_names() == before


@pytest.mark.filterwarnings("ignore:.*Timing cache operations:DeprecationWarning")
@pytest.mark.parametrize("content", [None, b"", b"damaged"])
def test_timing_cache_is_filled(build_as_tensorrt, tmp_path, content):
    cache = tmp_path / "cache" / "timing.cache"
    if content is not None:
        cache.parent.mkdir()
        cache.write_bytes(content)
    built = build_as_tensorrt(timing_cache=cache)
    assert built.gpu == ADA
    assert len(cache.read_bytes()) > len(b"damaged")
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]
    filled = cache.read_bytes()
    build_as_tensorrt(timing_cache=cache)
    assert cache.read_bytes() == filled


@pytest.mark.filterwarnings("ignore:.*Timing cache operations:DeprecationWarning")
def test_timing_cache_that_cannot_be_written(build_as_tensorrt, tmp_path):
    (tmp_path / "file").touch()
    assert build_as_tensorrt(timing_cache=tmp_path / "file" / "timing.cache").plan


@pytest.mark.parametrize("gives", ["a cache", "nothing"])
def test_timing_cache_that_tensorrt_does_not_make(
    build_as_tensorrt, tmp_path, alter_builder, gives
):
    """TensorRT makes none, or makes one and gives it back as nothing."""

    def take(cache, ignore_mismatch):
        assert cache is not None
        return True

    def make_config(builder):
        return Altered(
            builder.create_builder_config(),
            create_timing_cache=lambda data: object() if gives == "a cache" else None,
            set_timing_cache=take,
            get_timing_cache=lambda: None,
        )

    def build_really(builder, network, config):
        return builder.build_serialized_network(network, config.real)

    alter_builder(create_builder_config=make_config, build_serialized_network=build_really)
    assert build_as_tensorrt(timing_cache=tmp_path / "timing.cache").plan
    assert not list(tmp_path.iterdir())


def test_timing_cache_not_with_tensorrt_for_rtx(build, tmp_path):
    build(timing_cache=tmp_path / "timing.cache")
    assert not list(tmp_path.iterdir())
