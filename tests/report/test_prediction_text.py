"""The summary of a prediction."""

from pathlib import Path

import msgspec
import pytest

from deploykit.jobs.tally import Tally
from deploykit.report.terminal import prediction_text
from deploykit.session import SessionSpec
from deploykit.specs import Prediction

HOST = SessionSpec(
    runtime="onnxruntime-cpu",
    graph="deploy/fp32.onnx",
    precision="fp32",
    device="CPU",
    input_size=(8, 8),
    classes=3,
    concurrent=True,
)
DEVICE = msgspec.structs.replace(HOST, runtime="tensorrt", device="GPU", concurrent=False)


def line_of_time(spec, **seconds):
    tally = Tally(seconds=10.0)
    tally.add(Prediction(path="a.png", label="cat", probability=1.0, margin=1.0))
    stages = dict.fromkeys(("decode", "resize", "session", "write"), 0.0) | seconds
    lines = prediction_text(tally, spec, stages, [Path("rows.csv")]).splitlines()
    return next((line for line in lines if line.startswith("time")), None)


def test_the_shares_of_workers_that_do_it_all():
    assert line_of_time(HOST, decode=1.4, resize=0.4, session=8.1, write=0.1) == (
        "time      session 81 %, decode 14 %, resize 4 %, write 1 %: the bottleneck is the network"
    )


def test_the_shares_of_workers_beside_a_device():
    assert line_of_time(DEVICE, decode=4.0, resize=3.0, session=6.0) == (
        "time      session 46 %, decode 31 %, resize 23 %, write 0 %, side by side: "
        "the bottleneck is decoding"
    )


@pytest.mark.parametrize("spec", [HOST, DEVICE], ids=["host", "device"])
def test_of_too_short_a_run_nothing_is_told(spec):
    assert line_of_time(spec, decode=0.2, session=0.29) is None
    assert line_of_time(spec, decode=0.2, session=0.31) is not None
