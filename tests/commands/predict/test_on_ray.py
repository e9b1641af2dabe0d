"""``predict --on ray``: the books, with a made cluster; then a real one on this machine."""

import os
import re
import sys
import tarfile
import time
from pathlib import Path

import pytest
from fake_ray import FakeCluster, failed, lost

import deploykit
from deploykit.commands.predict.ledger import Ledger
from deploykit.commands.predict.schedulers import on_ray
from deploykit.errors import DependencyError, DeviceError, UsageError
from deploykit.system.progress import Note

TABLE = Path("rows.csv")


@pytest.fixture
def predict(monkeypatch, tmp_path, exported_bundle, photo_folder):
    """Predict 45 photos on a cluster."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(on_ray, "_FILES_A_CPU", 4)

    def predict(cluster, notes=None, *, source=photo_folder, bundle=exported_bundle, **options):
        monkeypatch.setattr(on_ray, "RayCluster", cluster)

        def progress(event):
            if isinstance(event, Note) and notes is not None:
                notes.append(event.message)

        return deploykit.predict(
            source,
            **{"on": "ray", "output": TABLE, "batch_size": 1} | options,
            bundle=bundle.folder,
            progress=progress,
        )

    return predict


@pytest.fixture
def whole(monkeypatch, tmp_path, exported_bundle, photo_folder):
    """The table of one process."""
    table = tmp_path / "whole.csv"
    deploykit.predict(photo_folder, output=table, bundle=exported_bundle.folder, batch_size=1)
    return table.read_bytes()


def test_ray_reads_archives(predict, whole, photo_folder):
    """Names go out, never bytes: each worker opens the archive."""
    with tarfile.open("photos.tar", "w") as tar:
        for photo in sorted(photo_folder.rglob("*.png")):
            tar.add(photo, photo.relative_to(photo_folder).as_posix())
    predict(FakeCluster(("a", 2, 0)), source=Path("photos.tar"))
    assert TABLE.read_bytes().replace(b"photos.tar/", b"") == whole


def test_ray_table_is_that_of_one_process(predict, whole):
    cluster = FakeCluster(("a", 2, 0), ("b", 1, 0))
    summary = predict(cluster)
    assert TABLE.read_bytes() == whole
    assert cluster.is_closed
    assert not Path("rows.csv.run").exists()
    assert summary.report.workers == {"a": 2, "b": 1}
    assert {name: work.rows for name, work in summary.hosts.items()}.keys() == {"a", "b"}
    assert sum(work.rows for work in summary.hosts.values()) == summary.report.predicted == 45
    assert cluster.called("open") == cluster.called("admit") == {"a": 2, "b": 1}


def test_ray_summary_has_hosts_and_rates(predict):
    lines = str(predict(FakeCluster(("a", 2, 0), ("b", 1, 0)))).splitlines()
    speed = next(line for line in lines if line.startswith("speed"))
    hosts = next(line for line in lines if line.startswith("hosts"))
    assert "3 workers on 2 hosts" in speed
    assert re.search(r"; b \d+ rows, 1 worker, \d+\.\d images/s|b \d+ rows, 1 worker.*; a ", hosts)


def test_ray_arguments_are_small(predict):
    cluster = FakeCluster(("a", 1, 0))
    predict(cluster)
    assert all(len(repr(args)) < 4000 for _, _, args in cluster.log)
    assert cluster.called("put") == {}


def test_ray_host_with_other_golden_answers_gets_no_shard(predict, whole):
    def meddle(host, method, args):
        if (host, method) == ("b", "admit"):
            return {"refused": "its answers to the golden images are not the recorded: 2 flips"}
        return None

    notes = []
    cluster = FakeCluster(("a", 1, 0), ("b", 2, 0), meddle=meddle)
    summary = predict(cluster, notes)
    assert TABLE.read_bytes() == whole
    assert cluster.called("predict").keys() == {"a"}
    assert summary.report.refused.keys() == {"b"}
    assert any(note.startswith("b predicts nothing: its answers to the golden") for note in notes)
    assert "refused   b: its answers to the golden images" in str(summary)


def test_ray_golden_images_are_really_compared(predict, monkeypatch):
    from deploykit.proof import self_test

    read = self_test.read_golden

    def other(bundle):
        golden = read(bundle)
        return type(golden)(golden.images, -golden.logits)

    monkeypatch.setattr(self_test, "read_golden", other)
    with pytest.raises(DeviceError, match="a: its answers to the golden images are not the rec"):
        predict(FakeCluster(("a", 1, 0)))


def test_ray_host_without_the_photos_is_named_with_the_path(predict, monkeypatch, photo_folder):
    from deploykit.commands.predict.schedulers import ray_worker

    monkeypatch.setattr(ray_worker, "_size_of", lambda path: None)
    with pytest.raises(DeviceError) as caught:
        predict(FakeCluster(("a", 1, 0), ("b", 1, 0)))
    missing = photo_folder / "blue" / "00.png"
    assert f"a: {missing} is not there; b: {missing} is not there" in caught.value.message
    assert not Path("rows.csv.run").exists()


def test_ray_host_with_another_deploykit_is_named(predict, whole):
    def meddle(host, method, args):
        if (host, method) == ("a", "hello"):
            return {"deploykit": "0.0.1", "versions": {}}
        return None

    summary = predict(FakeCluster(("a", 1, 0), ("b", 1, 0), meddle=meddle))
    assert summary.report.refused == {
        "a": f"it has deploykit 0.0.1, and this is {deploykit.__version__}"
    }
    assert TABLE.read_bytes() == whole


def test_ray_host_with_another_runtime_version_is_named(predict):
    def meddle(host, method, args):
        if (host, method) == ("b", "hello"):
            return {"deploykit": deploykit.__version__, "versions": {"onnxruntime": "1.0"}}
        return None

    summary = predict(FakeCluster(("a", 1, 0), ("b", 1, 0), meddle=meddle))
    assert "onnxruntime was " in summary.report.refused["b"]
    assert "now 1.0" in summary.report.refused["b"]


def test_ray_host_that_cannot_import_deploykit_is_named(predict, monkeypatch):
    def meddle(host, method, args):
        lost("ModuleNotFoundError: No module named 'deploykit'")

    cluster = FakeCluster(("a", 1, 0), meddle=meddle)
    monkeypatch.setattr(on_ray, "_LOOK_SECONDS", 0.0)
    with pytest.raises(DeviceError, match="a: ModuleNotFoundError: No module named 'deploykit'"):
        predict(cluster)
    assert cluster.called("start") == {"a": 3}
    assert cluster.is_closed


def test_ray_host_that_keeps_some_workers_goes_on_with_them(predict, monkeypatch, whole):
    monkeypatch.setattr(on_ray, "_LOOK_SECONDS", 0.0)
    admitted = []

    def meddle(host, method, args):
        if method == "admit" and len(admitted) >= 1:
            lost("the system's memory is full")
        if method == "admit":
            admitted.append(host)

    notes = []
    cluster = FakeCluster(("a", 2, 0), meddle=meddle)
    summary = predict(cluster, notes)
    assert TABLE.read_bytes() == whole
    assert "a takes no more than 1 worker: the system's memory is full" in notes
    assert cluster.called("start") == {"a": 4}
    assert summary.report.refused == {}


def test_ray_bundle_is_sent_where_it_is_not(predict, monkeypatch, tmp_path, whole, exported_bundle):
    from deploykit.commands.predict.schedulers import ray_worker

    monkeypatch.setattr(ray_worker.tempfile, "gettempdir", lambda: str(tmp_path))
    opened, there = [], ray_worker.open_bundle

    def open_bundle(folder):
        if folder == exported_bundle.folder:
            raise ray_worker.BundleError("it is not there")
        opened.append(folder)
        return there(folder)

    monkeypatch.setattr(ray_worker, "open_bundle", open_bundle)
    cluster = FakeCluster(("a", 2, 0))
    predict(cluster)
    assert TABLE.read_bytes() == whole
    assert cluster.called("put") == {"": 1}
    assert {tmp_path in folder.parents for folder in opened} == {True}
    # A later run finds it there.
    later = FakeCluster(("a", 1, 0))
    predict(later)
    assert later.called("put") == {}


def test_ray_bundle_cache_of_somebody_else_is_refused(predict, monkeypatch, tmp_path):
    from deploykit.commands.predict.schedulers import ray_worker

    monkeypatch.setattr(ray_worker.tempfile, "gettempdir", lambda: str(tmp_path))

    def missing(folder):
        raise ray_worker.BundleError("it is not there")

    monkeypatch.setattr(ray_worker, "open_bundle", missing)
    owner = os.getuid() if hasattr(os, "getuid") else 0
    (tmp_path / f"deploykit-bundles-{owner}").write_text("no folder")
    with pytest.raises(DeviceError, match=f"a: .*deploykit-bundles-{owner} cannot be used"):
        predict(FakeCluster(("a", 1, 0)))


def killer(*names):
    """Whoever is given one of these files dies."""

    def meddle(host, method, args):
        if method == "predict" and {file[0] for file in args[1]} & {*names}:
            lost()

    return meddle


def test_ray_file_that_kills_its_worker_is_a_row(predict, monkeypatch, whole):
    monkeypatch.setattr(on_ray, "_LOOK_SECONDS", 0.0)
    cluster = FakeCluster(("a", 1, 0), ("b", 1, 0), meddle=killer("green/07.png"))
    summary = predict(cluster)
    rows, expected = (data.decode("utf-8-sig").splitlines() for data in (TABLE.read_bytes(), whole))
    assert len(rows) == len(expected)
    other = [(row, right) for row, right in zip(rows, expected, strict=True) if row != right]
    ((row, _),) = other
    assert row.startswith("green/07.png,crashed-worker,Each of three processes that were given")
    assert summary.tally.failures == {"crashed-worker": 1}
    assert "1 failed (1 crashed-worker)" in str(summary)
    # Of shards of four files: three of the shard, one of its half, three of the file.
    assert summary.report.lost == 7
    assert f"lost      {summary.report.lost} workers" in str(summary)


def test_ray_crashed_row_is_in_every_output(predict, monkeypatch):
    monkeypatch.setattr(on_ray, "_LOOK_SECONDS", 0.0)
    pytest.importorskip("pyarrow")
    outputs = [TABLE, "rows.jsonl", "rows.parquet"]
    cluster = FakeCluster(("a", 2, 0), meddle=killer("red/14.png"))
    predict(cluster, output=[str(each) for each in outputs], html="page.html", top_k="all")
    assert '"status": "crashed-worker"' in Path("rows.jsonl").read_text()
    assert "crashed-worker" in Path("page.html").read_text()


def test_ray_bug_while_predicting_is_a_crash(predict, monkeypatch):
    monkeypatch.setattr(on_ray, "_LOOK_SECONDS", 0.0)

    def meddle(host, method, args):
        if method == "predict" and any(file[0] == "red/00.png" for file in args[1]):
            failed("ValueError: bug")

    summary = predict(FakeCluster(("a", 1, 0), meddle=meddle))
    assert summary.tally.failures == {"crashed-worker": 1}
    assert "ValueError: bug" in TABLE.read_text("utf-8-sig")


def test_ray_host_that_leaves_is_replaced_by_the_others(predict, whole):
    def meddle(host, method, args):
        if host == "b" and method == "predict":
            del cluster.there["b"]
            lost("the host is gone")

    cluster = FakeCluster(("a", 1, 0), ("b", 1, 0), meddle=meddle)
    summary = predict(cluster)
    assert TABLE.read_bytes() == whole
    assert (summary.report.lost, summary.report.refused) == (1, {})


def test_ray_all_hosts_leave_and_the_rows_stay(predict, monkeypatch, whole):
    monkeypatch.setattr(on_ray, "_LOOK_SECONDS", 0.0)
    told = []

    def meddle(host, method, args):
        told.append(method)
        if told.count("predict") > 4:
            cluster.there.clear()
            lost("the host is gone")

    cluster = FakeCluster(("a", 1, 0), meddle=meddle)
    with pytest.raises(DeviceError, match=r"No host of the Ray cluster predicts\. a: the host is"):
        predict(cluster)
    assert Ledger(Path("rows.csv.run")).count() == 16
    summary = predict(FakeCluster(("c", 1, 0)), resume=True)
    assert TABLE.read_bytes() == whole
    assert {name: work.rows for name, work in summary.hosts.items()} == {"a": 16, "c": 29}


def test_ray_run_is_resumed_here(predict, monkeypatch, whole):
    def meddle(host, method, args):
        if method == "predict" and args[0] == 12:
            raise KeyboardInterrupt

    cluster = FakeCluster(("a", 1, 0), meddle=meddle)
    with pytest.raises(KeyboardInterrupt):
        predict(cluster)
    assert cluster.is_closed
    assert all(actor.is_killed for actor in cluster.actors)
    assert Ledger(Path("rows.csv.run")).count() == 12
    predict(None, resume=True, on=None)
    assert TABLE.read_bytes() == whole


def test_ray_less_room_than_workers_is_told(predict, whole):
    notes = []
    cluster = FakeCluster(("a", 2, 0), ("b", 1, 0))
    summary = predict(cluster, notes, workers=7)
    assert "the Ray cluster has room for 3 of 7 workers" in notes
    assert sum(summary.report.workers.values()) == 3


def test_ray_workers_are_spread(predict):
    cluster = FakeCluster(("a", 8, 0), ("b", 8, 0))
    assert predict(cluster, workers=4).report.workers == {"a": 2, "b": 2}


@pytest.mark.parametrize("options", [{"threads": 3}, {"gpus_per_worker": 1}])
def test_ray_without_room_does_not_hang(predict, options):
    with pytest.raises(DeviceError, match="no host with room for a worker"):
        predict(FakeCluster(("a", 2, 0)), **options)


def test_ray_that_starts_no_worker_does_not_hang(predict, monkeypatch):
    monkeypatch.setattr(on_ray, "_START_SECONDS", 0.05)
    monkeypatch.setattr(on_ray, "_LOOK_SECONDS", 0.01)
    with pytest.raises(DeviceError, match="Ray has started none of 1 worker in"):
        predict(FakeCluster(("a", 1, 0), deaf="a"))


def test_ray_worker_with_a_gpu_has_its_share_of_cpus(predict, monkeypatch):
    monkeypatch.setattr(on_ray, "_FILES_A_CPU_BESIDE_GPU", 1)
    cluster = FakeCluster(("a", 32, 4), ("b", 2, 4))
    predict(cluster, gpus_per_worker=1, workers=5)
    starts = {(host, room) for host, method, room in cluster.log if method == "start"}
    assert starts == {("a", (8, 1)), ("b", (1, 1))}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on": "slurm"}, "on 'slurm' is none"),
        ({"on": "ray://"}, "on 'ray://' is none"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"gpus_per_worker": 1.5}, "gpus_per_worker=1.5 makes no sense"),
        ({"gpus_per_worker": -1}, "gpus_per_worker -1 makes no sense"),
        ({"shard": "1/2"}, "shard is for processes"),
        ({"on": None, "workers": 2}, "workers and gpus_per_worker are for a cluster's"),
        ({"output": None}, "on ray adds rows to a table"),
    ],
)
def test_ray_options_that_make_no_sense(predict, options, message):
    with pytest.raises(UsageError, match=message):
        predict(FakeCluster(("a", 1, 0)), **options)


def test_ray_missing_names_the_extra(monkeypatch, exported_bundle, photo_folder, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DependencyError) as caught:
        deploykit.predict(
            photo_folder, on="ray", output=tmp_path / "rows.csv", bundle=exported_bundle.folder
        )
    assert caught.value.hint == 'Install it: pip install "deploykit[ray]"'


# A real cluster on this machine ------------------------------------------------------------------


def meddling(control):
    """What each worker of Ray does first: let some files end it, and one node answer otherwise."""

    def hook():
        import os
        from pathlib import Path

        import PIL.Image
        import ray

        import deploykit.proof.self_test

        opened = PIL.Image.open
        read = deploykit.proof.self_test.read_golden
        node = ray.get_runtime_context().get_node_id()
        Path(control, f"pid-{os.getpid()}").touch()

        def opening(file, *args, **options):
            path = Path(file.name)
            if Path(control, f"kills-{path.parent.name}-{path.name}").exists():
                os._exit(7)
            return opened(file, *args, **options)

        def read_golden(bundle):
            golden = read(bundle)
            is_other = Path(control, f"other-{node}").exists()
            return type(golden)(golden.images, -golden.logits if is_other else golden.logits)

        PIL.Image.open = opening
        deploykit.proof.self_test.read_golden = read_golden

    return hook


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory):
    """Three nodes of one CPU, and the folder by which a test tells workers what to do."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    import ray

    control = tmp_path_factory.mktemp("control")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        for module in "ray._private.services", "ray.util":  # nobody else is to reach it
            monkeypatch.setattr(f"{module}.get_node_ip_address", lambda *_, **__: "127.0.0.1")
        # What starts at once is what a test asks for: each process takes a second of a core.
        monkeypatch.setenv("RAY_enable_worker_prestart", "0")
        monkeypatch.setenv("RAY_prestart_worker_first_driver", "0")
        node = {
            "num_cpus": 1,
            "object_store_memory": 80 * 2**20,
            "include_dashboard": False,
            "include_log_monitor": False,
            "no_monitor": True,
        }
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=node)
        try:
            nodes = [cluster.add_node(**node) for _ in range(2)]
            ray.init(
                cluster.address,
                log_to_driver=False,
                runtime_env={"worker_process_setup_hook": meddling(control)},
            )
            yield cluster, nodes, control
        finally:
            ray.shutdown()
            cluster.shutdown()


def predicted(folder, bundle, **options):
    return deploykit.predict(
        folder,
        **{"output": TABLE, "on": "ray", "batch_size": 1} | options,
        bundle=bundle.folder,
    )


def left(control):
    """The workers of Ray that are still there when they had some time to go."""
    pids, until = [path.name[4:] for path in control.glob("pid-*")], time.monotonic() + 10
    assert pids
    while (running := [*filter(is_running, pids)]) and time.monotonic() < until:
        time.sleep(0.05)
    return running


def is_running(pid):
    try:
        return b"RayWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="a local cluster is for Linux")
def test_ray_cluster_loses_a_node_its_driver_and_workers(
    ray_cluster, photo_folder, exported_bundle, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(on_ray, "_FILES_A_CPU", 1)
    monkeypatch.setattr(on_ray, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(on_ray, "_STEP_SECONDS", 0.0)
    cluster, (removed, other), control = ray_cluster
    (control / f"other-{other.node_id}").touch()
    is_removed = False

    def progress(event):
        nonlocal is_removed
        if getattr(event, "stage", "") != "predicting":
            return
        if event.done >= 5 and not is_removed:
            is_removed = True
            cluster.remove_node(removed, allow_graceful=False)
        elif event.done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predicted(photo_folder, exported_bundle, progress=progress)
    assert is_removed
    assert left(control) == []
    assert 20 <= Ledger(Path("rows.csv.run")).count() < 45

    (control / "kills-red-14.png").touch()  # the last
    summary = predicted(photo_folder, exported_bundle, resume=True)
    predicted(photo_folder, exported_bundle, on=None, output="whole.csv")
    tables = (TABLE, Path("whole.csv"))
    rows, right = (table.read_text("utf-8-sig").splitlines() for table in tables)
    ((row, _),) = [pair for pair in zip(rows, right, strict=True) if pair[0] != pair[1]]
    assert re.match('red/14.png,crashed-worker,"?Each of three processes .* ended: ', row)
    assert summary.report.lost == 3
    ((host, reason),) = summary.report.refused.items()
    assert host.endswith(f"/{other.node_id[:6]}")
    assert reason.startswith("its answers to the golden images are not the recorded")
    assert host not in summary.hosts
    assert left(control) == []
