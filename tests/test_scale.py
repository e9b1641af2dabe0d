"""The dispatcher on a made clock, with hundreds of workers: what benchmarks/scale.py simulates."""

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import deploykit

FILE = Path(deploykit.__file__).parents[1] / "benchmarks" / "scale.py"


@pytest.fixture(scope="module")
def scale():
    if not FILE.exists():
        pytest.skip("not run from a checkout")
    spec = importlib.util.spec_from_file_location("scale", FILE)
    module = sys.modules["scale"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["scale"]


@pytest.mark.parametrize("seed", range(3))
def test_failures_cost_a_shard_each_and_no_row(scale, seed):
    killers = (0, 12_345, 99_999)
    cluster = scale.Cluster(
        20,
        images_per_second=1.0,
        replace_seconds=60.0,
        worker_hours=0.5,
        host_hours=0.5,
        driver_hours=0.05,
        poisoned=killers,
    )
    found = scale.Simulation(100_000, cluster, seed).run()
    assert found.deaths > 200
    assert found.host_deaths
    assert found.driver_deaths
    assert sorted(found.given_up) == [*killers]
    ordinals = [ordinal for part in found.done for ordinal in range(*part)]
    assert sorted(ordinals) == [*range(100_000)]
    extra = found.files_given - found.files
    assert 0 < extra <= (found.deaths + found.doubled) * found.shard_size
    assert found.files_lost <= extra


def test_workers_that_do_not_die_lose_nothing_and_hardly_wait(scale):
    calm = {"worker_hours": math.inf, "host_hours": math.inf, "stuck_share": 0.0}
    cluster = scale.Cluster(20, slow_share=0.0, **calm)
    found = scale.Simulation(500_000, cluster).run()
    assert (found.deaths, found.lost, found.files_given) == (0, 0.0, found.files)
    assert found.idle < 0.03 * found.paid
    ideal = found.files / cluster.images_per_second / cluster.workers
    assert found.seconds < 1.1 * ideal + cluster.join_seconds + cluster.open_seconds


def test_shards_that_two_predict_have_their_rows_once(scale):
    calm = {"worker_hours": math.inf, "host_hours": math.inf}
    cluster = scale.Cluster(20, images_per_second=1.0, spread=0.4, slow_share=0.3, **calm)
    found = scale.Simulation(40_000, cluster).run()
    assert found.doubled > 50
    assert sum(part.size for part in {*found.done}) == sum(part.size for part in found.done)
    assert found.files_given - found.files == found.doubled * found.shard_size


def test_stuck_shards_are_doubled_and_hold_nobody_up(scale):
    cluster = scale.Cluster(20, worker_hours=math.inf, host_hours=math.inf, slow_share=0.0)
    calm = scale.Simulation(300_000, replace(cluster, stuck_share=0.0)).run()
    stuck = scale.Simulation(300_000, replace(cluster, stuck_share=0.002)).run()
    shard_seconds = stuck.shard_size / cluster.images_per_second
    assert stuck.doubled
    assert stuck.seconds < calm.seconds + 5 * shard_seconds
    assert stuck.lost < 0.01 * stuck.paid
