"""Which of two similarities a bundle keeps, and which one counts."""

from made_proofs import PROOF

from deploykit.bundle.embeddings import EmbeddingsRecord, KeptSimilarity
from deploykit.parity.similarity import Similarity
from deploykit.specs.embeddings import Tap

RECORD = EmbeddingsRecord(
    graph="deploy/fp32-embeddings.onnx",
    tap=Tap(tensor="mean", module="head", side="input", pooled=False, size=8),
)


def made(count, *, passed=True, kind="module", version="1.31", python="3.12"):
    """A similarity on so many photos."""
    return KeptSimilarity(
        graph_sha256=PROOF.graph_sha256,
        runtime="onnxruntime-cpu",
        device=PROOF.device,
        images=PROOF.images,
        similarity=Similarity(images=count, smallest=1.0 if passed else 0.5, path="a.png"),
        created=PROOF.created,
        versions={"onnxruntime": version, "python": python},
        reference_kind=kind,
    )


def kept(*found):
    """What a record keeps of similarities that come one after the other."""
    record = RECORD
    for each in found:
        record = record.with_similarity(each)
    return record.similarities


def test_kept_similarity_on_equal_images_is_the_last():
    last = made(45, python="3.13")
    assert kept(made(45), last) == (last,)


def test_kept_similarity_on_fewer_images_is_dropped_whatever_python_runs():
    many = made(225)
    assert kept(many, made(24, python="3.13")) == (many,)
    failed = made(225, passed=False)
    assert kept(failed, made(24, python="3.13")) == (failed,)


def test_kept_similarity_of_each_version_of_the_runtime():
    old, new = made(225), made(24, version="1.32")
    assert kept(old, new) == (old, new)


def test_kept_similarity_failed_removes_what_passed():
    for kind in "module", "graph":
        failed = made(3, passed=False, kind=kind)
        assert kept(made(225), failed) == (failed,)


def test_kept_similarity_by_the_graph_does_not_replace_the_module():
    module, graph = made(24), made(225, kind="graph")
    assert kept(module, graph) == (module, graph)
    failed = made(24, passed=False)
    assert kept(failed, graph) == (failed,)
    assert kept(made(225, passed=False, kind="graph"), made(225)) == (made(225),)


def test_similarity_on_takes_the_module_first_and_a_failure_before_it():
    module, graph = made(24), made(225, kind="graph")

    def known(*found, version="1.31"):
        record = RECORD
        for each in found:
            record = record.with_similarity(each)
        return record.similarity_on(module.key, version)

    assert known(graph, module) == known(module, graph) == module
    assert known(graph) == graph
    failed = made(3, passed=False, kind="graph")
    assert known(module, failed) == failed
    assert known(module, version="1.32") is None
    assert RECORD.similarity_on(module.key, "1.31") is None
