"""The programs of docs/frameworks.md, run as a user would run them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deploykit

PAGE = Path(deploykit.__file__).parents[1] / "docs" / "frameworks.md"
#: A small Ray on this machine, whose dashboard and workers are of no use here.
LOCAL_RAY = (
    "import ray, ray._private.services, ray.util\n"
    "for module in ray._private.services, ray.util:  # nobody else is to reach it\n"
    "    module.get_node_ip_address = lambda *_, **__: '127.0.0.1'\n"
    "ray.init(num_cpus=2, object_store_memory=80_000_000, include_dashboard=False)"
)
#: Likewise; Java's better compiler takes longer than the program.
LOCAL_SPARK = """
from pyspark.sql import SparkSession
settings = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.memory": "600m",
    "spark.sql.warehouse.dir": "warehouse",
    "spark.ui.enabled": "false",
}
SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()
"""
QUIET = {
    "DAFT_ANALYTICS_ENABLED": "0",
    "DAFT_PROGRESS_BAR": "0",
    "RAY_AUTH_MODE": "disabled",  # else it leaves a token in the user's home
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "SPARK_LOCAL_IP": "127.0.0.1",
}


def program_of(heading):
    """The one block of Python below a heading of the page."""
    if not PAGE.exists():
        pytest.skip("not run from a checkout")
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (program,) = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    return program


@pytest.fixture
def predicted(tmp_path, exported_bundle, photo_folder):
    """What ``deploykit.predict`` answers for the photos that the programs name."""
    shutil.copytree(exported_bundle.folder, tmp_path / "artifacts" / "dpn92")
    photos = tmp_path / "bird_photos"
    shutil.copytree(photo_folder, photos)
    whole = (photos / "red" / "00.png").read_bytes()
    (photos / "red" / "99.png").write_bytes(whole[:100])
    return {row.path: row for row in deploykit.predict(photos, bundle=exported_bundle)}


def run_program(heading, folder, first=""):
    """The rows that the program of a heading writes."""
    import pyarrow.parquet as pq

    (folder / "program.py").write_text(f"{first}\n{program_of(heading)}", encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder,
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    (rows,) = folder.glob("*_rows")
    return pq.read_table(rows).to_pylist()


def assert_same(rows, predicted):
    """Each photo has its row, and the answer that ``deploykit.predict`` gives."""
    assert len(rows) == len(predicted) == 46
    found = {"/".join(Path(row["path"]).parts[-2:]): row for row in rows}
    assert {name: (row["status"], row["label"]) for name, row in found.items()} == {
        name: (row.status, row.label) for name, row in predicted.items()
    }
    for name, row in predicted.items():
        assert found[name]["probability"] == pytest.approx(row.probability, abs=1e-6)
    assert found["red/99.png"]["status"] == "truncated"


@pytest.mark.slow
def test_ray_data_answers_as_predict(predicted, tmp_path):
    pytest.importorskip("ray")
    pytest.importorskip("pandas", reason="Ray Data needs pandas")
    assert_same(run_program("Ray Data", tmp_path, LOCAL_RAY), predicted)


def test_daft_answers_as_predict(predicted, tmp_path):
    pytest.importorskip("daft")
    assert_same(run_program("Daft", tmp_path), predicted)


@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java")
def test_spark_answers_as_predict(predicted, tmp_path):
    pytest.importorskip("pyspark")
    pytest.importorskip("pandas", reason="Spark's batches are of pandas")
    assert_same(run_program("Spark", tmp_path, LOCAL_SPARK), predicted)


@pytest.mark.parametrize("heading", ["Ray Data", "Spark", "Daft"])
def test_programs_have_at_most_fifteen_lines(heading):
    lines = [line for line in program_of(heading).splitlines() if line]
    assert len(lines) <= 15
