"""INT8 graphs: calibrated, searched, proven on other photos, and published."""

import re
import shutil
import sys

import msgspec
import onnx
import pytest
from bundle_files import contents, edited
from fp16_networks import BRIGHT, DIM, make_photos
from openvino_cpu import needs_int8
from PIL import Image

from deploykit.bundle.folder import INT8_AVX2_GRAPH, INT8_TENSORRT_GRAPH, deploy_graph, open_bundle
from deploykit.bundle.manifest import record_file
from deploykit.commands.quantize.int8 import ON_CPU, Int8, moved_by_takers
from deploykit.commands.quantize.request import QuantizeRequest
from deploykit.commands.quantize.run import quantization_images, quantize_bundle
from deploykit.commands.quantize.text import quantization_text
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle
from deploykit.errors import DependencyError, DeviceError, GraphError, ParityError, UsageError
from deploykit.graph.files import load_graph
from deploykit.graph.int8 import integer_nodes
from deploykit.inference.candidates import named_candidates
from deploykit.proof.answered import AnsweredImages
from deploykit.proof.auto import open_best
from deploykit.runtime.opener import CPU, OPENVINO, REHEARSAL
from deploykit.system.cpu import Cpu, cpu_device, saturates_int8
from deploykit.system.progress import Note, silent

INT8 = deploy_graph("int8")
STRATEGY = "deploykit.commands.quantize.int8"
BOTH = (INT8, INT8_TENSORRT_GRAPH)


def said(events):
    return [event.message for event in events if isinstance(event, Note)]


def refuses_tensorrt(photos, spec):
    """On the 23 photos of the proof, and not on the 22 of the search."""
    return photos == 23 and spec.graph == INT8_TENSORRT_GRAPH


@pytest.fixture
def judged(monkeypatch):
    """Let a function have the last word on every verdict; gives what was judged on what."""
    judge, asked = AnsweredImages.judge, []

    def with_last_word(word):
        def judged(photos, candidate, *arguments):
            asked.append(candidate.spec.runtime)
            verdict = judge(photos, candidate, *arguments)
            reason = word(len(photos.logits), candidate.spec)
            return verdict if reason is None else verdict.refused(reason)

        monkeypatch.setattr(AnsweredImages, "judge", judged)
        return asked

    return with_last_word


def failing(monkeypatch, runtime, error, *, after=0):
    """Let a runtime fail to open INT8 graphs, always, or once at the call ``after``."""
    from deploykit.runtime.opener import open_graph

    calls = []

    def open_or_fail(graph, **options):
        if options["runtime"] == runtime:
            calls.append(options["name"])
            if not after or len(calls) == after:
                raise error
        return open_graph(graph, **options)

    monkeypatch.setattr(f"{STRATEGY}.open_graph", open_or_fail)
    return calls


@pytest.fixture(scope="session")
def quantized(export_toy, tmp_path_factory):
    """``Outliers`` quantized, to be looked at only."""
    folder = tmp_path_factory.mktemp("quantized") / "outliers"
    shutil.copytree(export_toy("Outliers").folder, folder)
    return quantize_bundle(open_bundle(folder), QuantizeRequest())


def test_quantize_keeps_planted_node_in_fp32(quantized):
    assert quantized.passed
    assert [graph.graph for graph in quantized.graphs] == list(BOTH)
    for graph in quantized.graphs:
        assert [(kept.operator, kept.module) for kept in graph.kept] == [("Conv", "middle.1")]
        assert "to INT8 moves a probability by" in graph.kept[0].reason
        assert (graph.integers, graph.minimal) == (3, True)
        assert graph.verdict.measurement.max_probability_change < 0.05


def test_quantize_updates_the_manifest(quantized):
    manifest, folder = quantized.bundle.manifest, quantized.bundle.folder
    assert manifest.deploy == {"fp32": "deploy/fp32.onnx", "int8": INT8}
    for_cpu, for_tensorrt = quantized.graphs
    assert manifest.kept_in(INT8) == for_cpu.kept
    assert manifest.kept_in(INT8_TENSORRT_GRAPH) == for_tensorrt.kept
    for graph in quantized.graphs:
        assert manifest.files[graph.graph] == record_file(folder / graph.graph)
        assert [p for p in manifest.verdicts if p.graph == graph.graph] == list(graph.proofs)
    proof = for_cpu.proofs[-1]
    assert (proof.runtime, proof.kind, proof.device) == (CPU, "executed", cpu_device("int8"))
    assert (for_tensorrt.proof.runtime, for_tensorrt.proof.kind) == (REHEARSAL, "rehearsed")
    assert proof.images.count == 23


def test_quantize_graphs_keep_metadata_and_signature(quantized):
    folder, manifest = quantized.bundle.folder, quantized.bundle.manifest
    fp32 = onnx.load(folder / "deploy/fp32.onnx")
    for name in BOTH:
        graph = onnx.load(folder / name)
        told = {prop.key: prop.value for prop in graph.metadata_props}
        assert told["deploykit.labels"] == manifest.labels.metadata["deploykit.labels"]
        assert told["deploykit.preprocessing"] == manifest.preprocessing.to_metadata()
        assert (graph.graph.input, graph.graph.output) == (fp32.graph.input, fp32.graph.output)
    kinds = [
        {str(v.dtype) for v in load_graph(folder / name).graph.initializers.values()}
        for name in BOTH
    ]
    assert "UINT8" in kinds[0]
    assert "UINT8" not in kinds[1]


@needs_int8
def test_quantize_proves_openvino_and_onnx_runtime(quantized, tmp_path):
    for_cpu, _ = quantized.graphs
    assert [proof.runtime for proof in for_cpu.proofs] == [OPENVINO, CPU]
    bundle = open_bundle(shutil.copytree(quantized.bundle.folder, tmp_path / "outliers"))
    others = make_photos(tmp_path / "others", BRIGHT - 20)  # auto wants 29 photos, 23 were left
    verify_bundle(bundle, VerifyRequest(precision="int8", images=others))
    with open_best(open_bundle(bundle.folder)) as session:
        assert (session.spec.runtime, session.spec.precision) == (OPENVINO, "int8")


def test_verify_and_predict_take_int8_graphs(quantized):
    result = verify_bundle(quantized.bundle, VerifyRequest(precision="int8"))
    assert result.passed
    ran = {(verdict.candidate.graph, verdict.candidate.runtime) for verdict in result.verdicts}
    assert ran == {(INT8, quantized.graphs[0].runtime), (INT8_TENSORRT_GRAPH, REHEARSAL)}
    if quantized.graphs[0].runtime == OPENVINO:
        (reason,) = (why for each, why in result.skipped.items() if each.runtime == CPU)
        assert reason == "it is made for openvino; --runtime onnxruntime-cpu compares it"
        assert verify_bundle(
            quantized.bundle, VerifyRequest(precision="int8", runtime=CPU)
        ).verdicts
    with open_best(quantized.bundle, runtime=CPU, precision="int8") as session:
        assert session.spec.graph == INT8


def test_quantize_proof_is_on_other_images_than_search(quantized):
    searched, proven = quantization_images(quantized.bundle, "int8", None, silent)
    for photos in (searched, proven):
        list(photos)
    assert quantized.graphs[0].proof.images == proven.drawn()
    assert quantized.graphs[0].searched == searched.drawn().count == 22


def test_quantize_of_a_healthy_network_keeps_nothing(toy):
    for graph in quantize_bundle(toy("Colours")).graphs:
        assert (graph.kept, graph.trials, graph.minimal) == ((), 2, True)


@needs_int8
@pytest.mark.parametrize(("times_as_fast", "integers"), [(1.04, 4), (1.06, 5)])
def test_quantize_takes_the_less_exact_of_two_shortcuts_if_it_is_faster(
    toy, monkeypatch, times_as_fast, integers
):
    order = iter((2, 3, 0, 1))  # of the graphs as they are made: the last two are more exact
    monkeypatch.setattr(f"{STRATEGY}._preference", lambda verdict: next(order))
    monkeypatch.setattr(Int8, "_seconds", lambda *graphs: [times_as_fast, 1.0])
    (graph,) = quantize_bundle(toy("Shortcut"), QuantizeRequest(graphs=(INT8,))).graphs
    assert (graph.trials, graph.integers) == (4, integers)


def test_quantize_search_is_stricter_than_its_proof(toy, monkeypatch):
    bundle = toy("Colours")
    before = contents(bundle)
    monkeypatch.setattr(f"{STRATEGY}.Int8.searched_part", 1e-6)
    words = "the 99th percentile of the changes of probability is .*; at most 1e-07 is allowed"
    notes = []
    with pytest.raises(ParityError, match=f"{words} on the images of the search"):
        quantize_bundle(bundle, QuantizeRequest(), notes.append)
    assert any(re.search(f"does not pass yet: .*{words}", line) for line in said(notes))
    assert contents(bundle) == before


def test_quantize_again_replaces_graphs_and_proofs(toy, tmp_path):
    first = quantize_bundle(toy("Colours"))
    dim = make_photos(tmp_path / "dim", DIM)
    second = quantize_bundle(first.bundle, QuantizeRequest(images=dim))
    manifest = second.bundle.manifest
    for graph in second.graphs:
        assert manifest.files[graph.graph] != first.bundle.manifest.files[graph.graph]
        assert [p for p in manifest.verdicts if p.graph == graph.graph] == list(graph.proofs)
        assert graph.proof.images.source == str(dim)


def test_quantize_refused_names_the_worst_nodes(toy, monkeypatch):
    bundle = toy("Outliers")
    conv = next(
        n
        for n in load_graph(bundle.folder / "deploy/fp32.onnx").graph
        if n.metadata_props.get("module") == "middle.1"
    )
    monkeypatch.setattr("deploykit.commands.quantize.strategy.grow", lambda *arguments: None)
    with pytest.raises(ParityError) as caught:
        quantize_bundle(bundle)
    assert (
        f"rounding around these moves the answers most: {conv.name} (middle.1)"
        in caught.value.message
    )
    assert "images changed their class" in caught.value.message, caught.value.message


def test_quantize_failed_on_proof_images_changes_nothing(toy, tmp_path):
    bundle = toy("Colours")
    folder = make_photos(tmp_path / "photos", brightness=40)
    _, proof = quantization_images(bundle, "int8", folder, silent)
    for name in [name for names, _ in proof for name in names]:
        # So bright that all three channels are clipped to the same value.
        Image.new("RGB", (16, 16), (180, 200, 220)).save(folder / name)
    before = contents(bundle)
    with pytest.raises(ParityError, match="but not on others") as caught:
        quantize_bundle(bundle, QuantizeRequest(images=folder))
    assert "0 nodes stayed in FP32.\nDiagnosis of deploy/int8.onnx" in caught.value.message
    assert "--images" in caught.value.hint
    assert contents(bundle) == before


@pytest.mark.parametrize("there", [False, True], ids=["new", "again"])
def test_quantize_refused_for_tensorrt_keeps_cpu_graph(toy, judged, there):
    bundle = toy("Colours")
    if there:
        bundle = quantize_bundle(bundle).bundle

    judged(lambda photos, spec: "for the test" if refuses_tensorrt(photos, spec) else None)
    notes = []
    result = quantize_bundle(bundle, progress=notes.append)
    assert not result.passed
    (refused,) = result.refused
    message = str(refused)
    assert "but not on others:\nrehearsal: for the test\n0 nodes stayed in FP32." in message
    manifest = result.bundle.manifest
    assert INT8 in manifest.files
    assert (INT8_TENSORRT_GRAPH in manifest.files) == there
    assert [p for p in manifest.verdicts if p.graph == INT8_TENSORRT_GRAPH] == [
        p for p in bundle.manifest.verdicts if p.graph == INT8_TENSORRT_GRAPH
    ]
    assert (f"{INT8_TENSORRT_GRAPH} stays as it was made before" in said(notes)) == there


def test_quantize_refused_for_another_cpu_makes_the_rest(toy, judged):
    judged(lambda photos, spec: "for the test" if spec.graph == INT8_AVX2_GRAPH else None)
    result = quantize_bundle(toy("Colours"), QuantizeRequest(runtime=CPU, cpu="any"))
    assert [each.graph for each in result.graphs] == [INT8, INT8_TENSORRT_GRAPH]
    assert [INT8_AVX2_GRAPH in str(each) for each in result.refused] == [True]
    assert not result.passed


def test_quantize_moved_by_takers_adds_up_squares():
    """Of an Add's two inputs both are spared where the Add stays in FP32."""
    takers = {"x": ("sum",), "y": ("sum",), "z": ("sum", "conv")}
    found = moved_by_takers(takers, {"x": 3.0, "z": 1.0, "y": 4.0})
    assert found == {("sum",): 5.0, ("sum", "conv"): 1.0}


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_quantize_search_of_no_time_is_refused(seconds):
    with pytest.raises(UsageError, match="--search-seconds must be at least 0"):
        QuantizeRequest(search_seconds=seconds).schemes()


def test_quantize_without_the_named_runtime_is_refused_first(toy, no_openvino):
    events = []
    with pytest.raises(DependencyError, match="openvino is not installed"):
        quantize_bundle(toy("Colours"), QuantizeRequest(runtime=OPENVINO), events.append)
    assert events == []


def test_quantize_on_undecidable_images_is_refused(toy, tmp_path):
    bundle = toy("Colours")
    dark = make_photos(tmp_path / "dark", brightness=0)
    for shade, path in enumerate(dark.rglob("*.png")):
        Image.new("RGB", (16, 16), (shade, shade, shade)).save(path)
    with pytest.raises(ParityError, match=r"int8\.onnx cannot be judged on these photos") as caught:
        quantize_bundle(bundle, QuantizeRequest(images=dark))
    assert "margin" in caught.value.message
    assert "--images" in caught.value.hint


@pytest.mark.parametrize(
    ("machine", "sets", "told"),
    [
        ("x86_64", ("avx2",), True),
        ("x86_64", ("avx2", "avx512_vnni"), False),
        ("aarch64", ("asimddp",), False),
    ],
)
def test_quantize_warns_of_saturating_cpus(toy, monkeypatch, machine, sets, told):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("deploykit.commands.quantize.run.saturates_int8", saturates_int8)
    monkeypatch.setattr("deploykit.commands.quantize.run.read_cpu", lambda: Cpu("Old CPU", sets))
    notes = []
    request = QuantizeRequest(cpu="vnni", graphs=(INT8,))
    quantize_bundle(toy("Colours"), request, notes.append)
    assert any("Old CPU has no VNNI" in message for message in said(notes)) == told


def test_open_best_tests_int8_of_another_cpu(quantized, toy):
    bundle = quantize_bundle(toy("Colours")).bundle
    other = tuple(
        msgspec.structs.replace(proof, device="CPU (other)") if proof.graph == INT8 else proof
        for proof in bundle.manifest.verdicts
    )
    notes = []
    with open_best(
        edited(bundle, verdicts=other), runtime=CPU, precision="int8", progress=notes.append
    ):
        pass
    assert any("gives the recorded answers" in message for message in said(notes))


def times_of(bundle, **milliseconds):
    """By the names of the nodes of INT8 what they take, by their modules; 1 ms for others."""
    nodes = integer_nodes(load_graph(bundle.folder / deploy_graph("fp32")))
    names = {node.name: node.metadata_props.get("module", "").replace(".", "_") for node in nodes}
    return {name: milliseconds.get(module, 1.0) for name, module in names.items()}


def test_quantize_stops_where_fp32_would_take_most_of_the_time(toy, monkeypatch):
    bundle = toy("Outliers")
    times = times_of(bundle, middle_1=9.0)
    monkeypatch.setattr(f"{STRATEGY}.node_milliseconds", lambda graph, feeds: times)
    notes, request = [], QuantizeRequest(runtime=CPU, graphs=(INT8,), diagnose=False)
    with pytest.raises(ParityError) as caught:
        quantize_bundle(bundle, request, notes.append)
    assert "which would not take more than half of the time in FP32" in caught.value.message
    assert INT8 not in open_bundle(bundle.folder).manifest.files


class Weighed(Int8):
    """Of a graph that is never asked for."""

    def __init__(self, costs, moved):
        self.scheme, self.costs = ON_CPU, costs
        self._moved = {tuple(names): each for names, each in moved.items()}
        self._weighted = frozenset(costs)


def test_int8_search_passes_over_what_takes_too_long():
    """The first by value takes most of the time: those behind it are tried all the same."""
    strategy = Weighed({"a": 6.0, "b": 3.0, "c": 1.0}, {"a": 9.0, "bx": 0.3, "c": 0.2})
    groups = strategy.by_value([("a", "most"), (("b", "x"), "some"), ("c", "little")])
    assert [why for _, why in groups] == ["most", "little", "some"]
    assert [why for _, why in strategy._worth_trying(frozenset(), groups)] == ["little", "some"]


def test_quantize_by_real_times(toy, monkeypatch):
    from deploykit.runtime.opener import node_milliseconds

    told = []

    def measured(graph, feeds):
        told.append(node_milliseconds(graph, feeds))
        return told[-1]

    monkeypatch.setattr(f"{STRATEGY}.node_milliseconds", measured)
    monkeypatch.setattr(f"{STRATEGY}._MOST_FP32_TIME", 1.0)  # of microseconds
    bundle = toy("Outliers")
    (graph,) = quantize_bundle(bundle, QuantizeRequest(runtime=CPU, graphs=(INT8,))).graphs
    assert "middle.1" in [node.module for node in graph.kept]
    assert {node.node for node in graph.kept} <= told[0].keys()


def test_quantize_tells_how_much_faster_it_is(toy):
    result = quantize_bundle(toy("Colours"), QuantizeRequest(runtime=CPU, graphs=(INT8,)))
    (times,) = (graph.times_fp32 for graph in result.graphs)
    assert times > 0
    (line,) = (line for line in quantization_text(result).split("\n") if "made for" in line)
    assert line.endswith(f"; {times:.1f} times as fast as FP32 on {CPU}")


@pytest.mark.parametrize(("times", "told"), [(0.5, True), (2.0, False)])
def test_quantize_tells_how_to_avoid_a_slower_graph(toy, monkeypatch, times, told):
    monkeypatch.setattr(f"{STRATEGY}.Int8.times_fp32", lambda *arguments: times)
    bundle = toy("Colours")
    result = quantize_bundle(bundle, QuantizeRequest(runtime=CPU, graphs=(INT8,)))
    lines = quantization_text(result).split("\n")
    assert any("slower than FP32" in line for line in lines) is told
    assert (bundle.command("bench", "--accept") in lines) is told


def test_quantize_without_openvino_uses_onnx_runtime(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    result = quantize_bundle(toy("Outliers"))
    for_cpu, _ = result.graphs
    assert [proof.runtime for proof in for_cpu.proofs] == [CPU]
    assert [kept.module for kept in for_cpu.kept] == ["middle.1"]


@needs_int8
def test_quantize_keeps_no_proof_of_a_failed_runtime(toy, judged):
    judged(lambda photos, spec: "for the test" if spec.runtime == CPU else None)
    result = quantize_bundle(toy("Colours"))
    for_cpu, _ = result.graphs
    assert for_cpu.runtime == OPENVINO
    assert [verdict.passed for verdict in for_cpu.verdicts] == [True, False]
    assert [proof.runtime for proof in for_cpu.proofs] == [OPENVINO]
    assert "UNPROVEN" in quantization_text(result)


@needs_int8
@pytest.mark.parametrize("made_for", [OPENVINO, CPU])
def test_quantize_failed_on_its_own_runtime(toy, judged, made_for):
    bundle = toy("Colours")
    before = contents(bundle)
    # On 22 photos it is searched for, on 23 it is proven.
    judged(lambda photos, spec: "no" if (photos, spec.runtime) == (23, made_for) else None)
    with pytest.raises(ParityError, match="but not on others") as caught:
        quantize_bundle(bundle, QuantizeRequest(runtime=made_for))
    assert "BF16 or FP32" in caught.value.hint
    assert contents(bundle) == before


@needs_int8
def test_quantize_failed_on_openvino_tries_no_other(toy, judged):
    asked = judged(lambda photos, spec: "no")
    with pytest.raises(ParityError, match=r"deploy/int8\.onnx does not pass: (.*; )?no\."):
        quantize_bundle(toy("Pooled"))
    assert set(asked) == {OPENVINO}


def test_quantize_without_openvino_int8_uses_onnx_runtime(toy, monkeypatch):
    failing(monkeypatch, OPENVINO, DeviceError("No INT8 on this CPU."))
    notes = []
    result = quantize_bundle(toy("Colours"), progress=notes.append)
    assert result.graphs[0].runtime == CPU
    assert f"skipped: {INT8} on openvino: No INT8 on this CPU." in said(notes)


def test_quantize_skips_openvino_that_cannot_run(toy, monkeypatch):
    failing(monkeypatch, OPENVINO, GraphError("OpenVINO does not know Foo."))
    notes = []
    request = QuantizeRequest(runtime=CPU)
    result = quantize_bundle(toy("Colours"), request, notes.append)
    assert [proof.runtime for proof in result.graphs[0].proofs] == [CPU]
    assert f"skipped: {INT8} on openvino: OpenVINO does not know Foo." in said(notes)


def test_quantize_set_that_cannot_compute_int8_fails(toy, monkeypatch):
    # The blanket graph is opened twice, for two calibrations; the third is the first trial.
    lost = DeviceError("It would compute in f32.")
    calls = failing(monkeypatch, CPU, lost, after=3)
    request = QuantizeRequest(runtime=CPU, graphs=(INT8,))
    (graph,) = quantize_bundle(toy("Outliers"), request).graphs
    assert graph.runtime == CPU
    assert "middle.1" in [kept.module for kept in graph.kept]
    assert graph.trials == len(calls) - 3 > 3  # those are the proof's, and two that are timed


def test_quantize_for_a_named_runtime(toy):
    result = quantize_bundle(toy("Colours"), QuantizeRequest(runtime=CPU))
    for_cpu, for_tensorrt = result.graphs
    assert (for_cpu.runtime, for_cpu.proof.runtime) == (CPU, CPU)
    searches = result.bundle.manifest.searches
    assert {name: search.runtime for name, search in searches.items()} == {
        INT8: CPU,
        INT8_TENSORRT_GRAPH: REHEARSAL,
    }
    assert for_tensorrt.runtime == REHEARSAL
    assert f"{INT8}, made for {CPU}: " in quantization_text(result)


@pytest.mark.parametrize(
    ("cpu", "saturates", "graphs"),
    [
        ("vnni", True, [INT8]),
        ("avx2", False, [INT8_AVX2_GRAPH]),
        (None, True, [INT8_AVX2_GRAPH]),
        (None, False, [INT8]),
        ("any", True, [INT8_AVX2_GRAPH, INT8]),
        ("any", False, [INT8, INT8_AVX2_GRAPH]),
    ],
)
def test_quantize_request_schemes_by_cpu(monkeypatch, cpu, saturates, graphs):
    monkeypatch.setattr("deploykit.commands.quantize.request.saturates_int8", lambda cpu: saturates)
    schemes = QuantizeRequest(cpu=cpu).schemes()
    assert sorted(each.graph for each in schemes) == sorted([*graphs, INT8_TENSORRT_GRAPH])
    assert schemes[0].graph == graphs[0]


def test_quantize_for_any_cpu_and_which_is_taken(toy, monkeypatch):
    request = QuantizeRequest(runtime=CPU, cpu="any")
    result = quantize_bundle(toy("Colours"), request)
    bundle, manifest = result.bundle, result.bundle.manifest
    assert manifest.deploy["int8"] == INT8
    for graph, bits in ((INT8, 8), (INT8_AVX2_GRAPH, 7)):
        assert manifest.searches[graph].weight_bits == bits
        weights = [
            each.const_value.numpy()
            for name, each in load_graph(bundle.folder / graph).graph.initializers.items()
            if name.endswith("/weight/integers")
        ]
        assert max(int(abs(each.astype(int)).max()) for each in weights) == 2 ** (bits - 1) - 1
    for saturates, graph in ((False, INT8), (True, INT8_AVX2_GRAPH)):
        monkeypatch.setattr(
            "deploykit.inference.candidates.saturates_int8", lambda cpu, it=saturates: it
        )
        assert {each.file for each in named_candidates(bundle, CPU, "int8")} == {graph}
        with open_best(bundle, runtime=CPU, precision="int8") as session:
            assert session.spec.graph == graph
    notes = []
    monkeypatch.setattr("deploykit.inference.candidates.saturates_int8", lambda cpu: False)
    verify_bundle(bundle, VerifyRequest(runtime=CPU, keep=False), notes.append)
    assert f"skipped: {INT8_AVX2_GRAPH}: it is for CPUs without VNNI" in said(notes)
    text = quantization_text(result)
    assert f"{INT8_AVX2_GRAPH}, made for {CPU}, CPUs without VNNI (weights of 7 bits): " in text


def test_quantize_for_another_cpu_alone(toy):
    bundle = quantize_bundle(toy("Colours"), QuantizeRequest(runtime=CPU, cpu="avx2")).bundle
    assert bundle.manifest.deploy["int8"] == INT8_AVX2_GRAPH
    assert {each.file for each in named_candidates(bundle, CPU, "int8")} == {INT8_AVX2_GRAPH}


@needs_int8
@pytest.mark.parametrize(("made_for", "taken"), [(OPENVINO, "fp32"), (CPU, "int8")])
def test_auto_takes_int8_made_for_onnx_runtime(toy, tmp_path, monkeypatch, made_for, taken):
    bundle = quantize_bundle(
        toy("Colours"), QuantizeRequest(runtime=made_for, graphs=(INT8,))
    ).bundle
    others = make_photos(tmp_path / "others", BRIGHT - 20)
    verify_bundle(bundle, VerifyRequest(runtime=CPU, precision="int8", images=others))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with open_best(open_bundle(bundle.folder)) as session:
        assert (session.spec.runtime, session.spec.precision) == (CPU, taken)


def test_quantize_refuses_gpu_providers(bundle):
    with pytest.raises(UsageError, match="'onnxruntime-cuda' is no runtime for INT8 on CPUs"):
        quantize_bundle(bundle, QuantizeRequest(runtime="onnxruntime-cuda"))


def test_quantize_one_graph_keeps_the_other(toy):
    bundle = toy("Colours")
    made = quantize_bundle(bundle, QuantizeRequest(graphs=(INT8_TENSORRT_GRAPH,)))
    assert [graph.graph for graph in made.graphs] == [INT8_TENSORRT_GRAPH]
    assert "int8" not in made.bundle.manifest.deploy
    both = quantize_bundle(made.bundle, QuantizeRequest(graphs=(INT8,))).bundle.manifest
    assert both.files[INT8_TENSORRT_GRAPH] == made.bundle.manifest.files[INT8_TENSORRT_GRAPH]
    assert {proof.graph for proof in both.verdicts} >= set(BOTH)


def test_verify_skips_the_calibration_images(quantized, tmp_path):
    bundle = open_bundle(shutil.copytree(quantized.bundle.folder, tmp_path / "outliers"))
    for name in BOTH:
        assert len(bundle.manifest.searches[name].images) == 22
    result = verify_bundle(bundle, VerifyRequest(precision="int8"))
    assert result.passed
    assert (result.images.count, result.images.calibration) == (23, 22)
    for verdict in open_bundle(bundle.folder).manifest.verdicts:
        assert verdict.images.count <= 24 or verdict.graph not in BOTH


def test_quantize_without_weights_is_refused(toy, monkeypatch):
    monkeypatch.setattr("deploykit.graph.int8.has_weight", lambda node: False)
    with pytest.raises(ParityError, match="INT8 computes nothing of this network"):
        quantize_bundle(toy("Colours"))


def test_quantize_trials_are_judged_graphs(toy, judged):
    asked = judged(lambda photos, spec: None)
    (graph,) = quantize_bundle(toy("Outliers"), QuantizeRequest(graphs=(INT8,))).graphs
    assert len(asked) == graph.trials + len(graph.verdicts)
    # Two calibrations, and a set of one node that passes.
    assert graph.trials == 2 + 1


def test_quantize_without_onnx(bundle, no_onnx):
    with pytest.raises(DependencyError, match="onnx is not installed") as caught:
        quantize_bundle(bundle)
    assert "deploykit[graph]" in caught.value.hint
