"""Shards on the hosts of a Ray cluster: Ray places the workers, deploykit keeps the books.

The driver alone writes: workers send rows back. So the folder of the run need not be on a drive
that the hosts share, and a shard that two have predicted is written once.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec

import deploykit
from deploykit.commands.predict.ledger import Work
from deploykit.commands.predict.plan import Shard, kept_path
from deploykit.commands.predict.schedulers.dispatch import Dispatcher
from deploykit.commands.predict.schedulers.ray_cluster import (
    Host,
    RayCluster,
    WorkerFailedError,
    WorkerLostError,
    checked_address,
)
from deploykit.commands.predict.schedulers.ray_worker import Order, digest_of, packed
from deploykit.commands.predict.tally import ClusterReport
from deploykit.errors import DeviceError, UsageError
from deploykit.images.scan import ImageFile
from deploykit.images.sources import SourceFile, place_in_source
from deploykit.specs.prediction import Prediction
from deploykit.specs.session import Closing, ImageBatch, Logits, SessionSpec
from deploykit.system.cloud import CloudPath
from deploykit.system.progress import Note, Step
from deploykit.system.text import counted

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.bundle.folder import Bundle
    from deploykit.commands.predict.ledger import Ledger
    from deploykit.commands.predict.run import PredictionRun, PredictRequest
    from deploykit.commands.predict.schedulers import Show
    from deploykit.commands.predict.schedulers.ray_worker import FileOnTheWire, Sample
    from deploykit.system.progress import Progress

CRASHED = "crashed-worker"
"""The status of a file that ended each process that read it."""

_MOST_READERS = 16
#: Files a shard, for each CPU of a worker: it should have work for long enough to be worth asking
#: for; and of one with a GPU, which is quicker, and starts and ends each shard idle.
_FILES_A_CPU, _FILES_A_CPU_BESIDE_GPU = 32, 128
#: So that the last shards end at about the same time.
_SHARDS_A_WORKER = 4
_SAMPLES = 8
_LOOK_SECONDS = 2.0
_STEP_SECONDS = 0.2
#: How long Ray may take to give the first worker: others may have the CPUs.
_START_SECONDS = 120.0
#: How many workers of a host may end, one after the other, before one of them is ready.
_FAILED_STARTS = 3


@dataclass(eq=False)
class _Worker:
    """An actor.

    Attributes:
        name: Ours, which is never used again.
        host: Where it is.
        actor: Ray's handle.
        stage: How far it has come.
        since: When it was made.
    """

    name: str
    host: Host
    actor: Any
    since: float
    stage: Literal["starting", "opening", "open", "admitting", "ready"] = "starting"


class _FarSession(Closing):
    """What stands for the workers' sessions where the books are kept: it answers nothing.

    Attributes:
        spec: Of the first worker's; the others' are the same.
        versions: Of the packages there.
    """

    def __init__(self, spec: SessionSpec, versions: dict[str, str], workers: OnRay) -> None:
        self.spec, self.versions, self._workers = spec, versions, workers

    def run(self, images: ImageBatch) -> Logits:
        """Refuse: only workers predict."""
        raise RuntimeError(f"workers answer, not {type(images).__name__} here")

    def close(self) -> None:
        """End the workers."""
        self._workers.close()


@dataclass(eq=False)
class OnRay(Closing):
    """Predicts on the hosts of a Ray cluster.

    Args:
        on: See :class:`RayCluster`.
        wanted: How many workers; None for as many as the cluster has room for.
        gpus: GPUs a worker, which may be a part of one.

    Attributes:
        report: Who predicted, and who was not let.
    """

    on: str
    wanted: int | None = None
    gpus: float = 0.0
    report: ClusterReport = field(default_factory=ClusterReport)
    shared = False

    def __post_init__(self) -> None:
        checked_address(self.on)
        if self.wanted is not None and self.wanted < 1:
            raise UsageError(f"--workers must be at least 1; got {self.wanted}.")
        if not 0 <= self.gpus < float("inf") or (self.gpus > 1 and self.gpus % 1):
            raise UsageError(
                f"--gpus-per-worker {self.gpus:g} makes no sense.",
                hint="A worker takes 1 GPU, or a part of one: 0.5.",
            )
        self._cluster: RayCluster | None = None
        self._workers: dict[str, _Worker] = {}
        self._calls: dict[Any, tuple[_Worker, str]] = {}
        self._failed_starts = Counter[str]()
        self._most_on: dict[str, int] = {}
        self._refused: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        self._expected: tuple[SessionSpec, dict[str, str]] | None = None
        self._versions: dict[str, dict[str, str]] = {}
        self._files = _FILES_A_CPU
        self._room = self._made = 0
        self._looked = 0.0
        self._bundle_ref: Any = None
        self._samples: list[Sample] | None = None
        self._dispatcher = Dispatcher(())

    @property
    def workers(self) -> int:
        """Each should have some shards, so that they end together."""
        return _SHARDS_A_WORKER * max(1, self._room)

    @property
    def shard_files(self) -> int:
        """How many files a shard should have."""
        return self._files

    def close(self) -> None:
        """End the workers; closing twice is fine."""
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None

    # Opening --------------------------------------------------------------------------------------

    def open_session(
        self,
        bundle: Bundle,
        request: PredictRequest,
        root: Path,
        progress: Progress,
    ) -> _FarSession:
        """Start workers, and wait until one has opened its session; see :class:`Scheduler`.

        Raises:
            DependencyError: Ray is not installed.
            DeviceError: There is no such cluster, it has no room for a worker, or no worker could
                open the session.
        """
        self._bundle, self._request, self._root = bundle, request, root
        self._progress = progress
        progress(Step("connecting", detail=self.on))
        self._cluster = RayCluster(self.on)
        try:
            self._tell_room()
            progress(Step("opening", detail=f"{bundle.name} on {counted(self._room, 'worker')}"))
            while self._expected is None:
                self._turn()
            return _FarSession(*self._expected, self)
        except BaseException:
            self.close()
            raise

    @property
    def _ray(self) -> RayCluster:
        if self._cluster is None:
            raise RuntimeError("there is no connection to Ray")
        return self._cluster

    def _cpus_on(self, host: Host) -> int:
        """CPUs a worker: it reads by itself, so one with a GPU takes its share of the host's."""
        if self._request.threads is not None:
            return self._request.threads
        if not self.gpus or not host.gpus:
            return 1
        return max(1, min(_MOST_READERS, int(host.cpus * self.gpus / host.gpus)))

    def _room_on(self, host: Host) -> int:
        """How many workers fit there."""
        by_cpu = int(host.cpus // self._cpus_on(host))
        room = min(by_cpu, int(host.gpus / self.gpus)) if self.gpus else by_cpu
        return min(room, self._most_on.get(host.id, room))

    def _tell_room(self) -> None:
        hosts = self._ray.hosts().values()
        room = sum(map(self._room_on, hosts))
        what = f"{self._request.threads or 1} CPUs" if not self.gpus else f"{self.gpus:g} GPUs"
        if not room:
            have = ", ".join(f"{each.name} {each.cpus:g} CPUs {each.gpus:g} GPUs" for each in hosts)
            raise DeviceError(
                f"The Ray cluster has no host with room for a worker of {what}: {have or 'none'}.",
                hint="Ask for less with --threads (CPUs a worker) and --gpus-per-worker.",
            )
        if self.wanted is not None and room < self.wanted:
            self._progress(
                Note(f"the Ray cluster has room for {room} of {counted(self.wanted, 'worker')}")
            )
        cpus = max(map(self._cpus_on, hosts))
        self._files = cpus * (_FILES_A_CPU_BESIDE_GPU if self.gpus else _FILES_A_CPU)
        self._room = room if self.wanted is None else min(room, self.wanted)

    def _order(self, host: Host) -> bytes:
        """What a worker is to open: what the first one has, once it is known."""
        request, spec = self._request, self._expected[0] if self._expected else None
        names = self._bundle.manifest.labels.names
        top_k = len(names) if request.top_k == "all" else request.top_k
        return msgspec.json.encode(
            Order(
                host=host.name,
                bundle=str(self._bundle.folder.absolute()),
                digest=digest_of(self._bundle.manifest),
                root=kept_path(self._root.absolute()),
                top_k=top_k or min(5, len(names)),
                runtime=spec.runtime if spec else request.runtime,
                precision=spec.precision if spec else request.precision,
                batch_size=request.batch_size,
                threads=self._cpus_on(host),
                tf32=request.tf32,
                embeddings=request.embeddings,
            )
        )

    # Workers --------------------------------------------------------------------------------------

    def _turn(self, seconds: float = _LOOK_SECONDS) -> None:
        """Start workers where some are missing, and hear what those that are there have to say."""
        now = time.monotonic()
        if now >= self._looked + _LOOK_SECONDS:
            self._looked = now
            self._start_workers(now)
            self._check_hope(now)
        if not self._calls:
            time.sleep(min(seconds, _STEP_SECONDS))
            return
        for ref in self._ray.wait([*self._calls], seconds):
            if ref not in self._calls:  # its host was refused just now
                continue
            worker, call = self._calls.pop(ref)
            try:
                answer = self._ray.result(ref)
            except WorkerLostError as exc:
                self._lose(worker, str(exc))
            except WorkerFailedError as exc:
                self._fail(worker, call, str(exc))
            else:
                if "refused" in answer:
                    self._refuse(worker.host, answer["refused"])
                else:
                    self._hear(worker, call, answer)

    def _start_workers(self, now: float) -> None:
        there = Counter(worker.host.id for worker in self._workers.values())
        hosts = self._ray.hosts()
        # A host after the other, so that fewer than there is room for are on all of them.
        places = sorted(
            (number, host.name, host)
            for host in hosts.values()
            if host.id not in self._refused
            for number in range(there[host.id], self._room_on(host))
        )
        most = len(places) if self.wanted is None else self.wanted - len(self._workers)
        for _, _, host in places[: max(0, most)]:
            self._made += 1
            actor = self._ray.start(host, cpus=self._cpus_on(host), gpus=self.gpus)
            worker = _Worker(f"{self._made}", host, actor, now)
            self._workers[worker.name] = worker
            self._call(worker, "hello")

    def _check_hope(self, now: float) -> None:
        """Raise when nobody predicts, or will."""
        why = "; ".join(f"{name}: {reason}" for name, reason in self._reasons.items())
        if not self._workers:
            raise DeviceError(
                f"No host of the Ray cluster predicts. {why or 'All have left it.'}",
                hint="Mend that, or predict here: leave out --on.",
            )
        waiting = [each.stage == "starting" for each in self._workers.values()]
        started = max(each.since for each in self._workers.values())
        if all(waiting) and now > started + _START_SECONDS:
            raise DeviceError(
                f"Ray has started none of {counted(len(waiting), 'worker')} in "
                f"{_START_SECONDS:.0f} s. {why}".strip(),
                hint="Other jobs may have its CPUs and GPUs: ray status tells. Ask for less with "
                "--workers and --threads.",
            )

    def _call(self, worker: _Worker, method: str, *args: Any) -> None:
        self._calls[getattr(worker.actor, method).remote(*args)] = worker, method

    def _hear(self, worker: _Worker, call: str, answer: dict[str, Any]) -> None:
        """Go on with a worker that has answered."""
        if call == "hello":
            self._versions[worker.name] = answer["versions"]
            if answer["deploykit"] != deploykit.__version__:
                self._refuse(
                    worker.host,
                    f"it has deploykit {answer['deploykit']}, and this is {deploykit.__version__}",
                )
                return
            worker.stage = "opening"
            self._call(worker, "open", self._order(worker.host))
        elif "wants_bundle" in answer:
            if self._bundle_ref is None:
                self._bundle_ref = self._ray.put(packed(self._bundle))
            self._call(worker, "open", self._order(worker.host), self._bundle_ref)
        elif call == "open":
            self._open(worker, msgspec.json.decode(answer["spec"], type=SessionSpec))
        elif call == "admit":
            worker.stage = "ready"
            self._failed_starts.pop(worker.host.id, None)
            self._dispatcher.join(worker.name, worker.host.id)
            self._count_workers(worker.host)
        else:
            self._keep(worker, answer["body"])

    def _open(self, worker: _Worker, spec: SessionSpec) -> None:
        from deploykit.commands.predict.provenance import decisive_versions
        from deploykit.system.deps import version_changes

        versions = decisive_versions(self._versions.pop(worker.name))
        if self._expected is None:
            self._expected = spec, versions
        changes = version_changes(self._expected[1], versions)
        if spec != self._expected[0]:
            first = self._expected[0]
            changes.append(
                f"{first.graph} on {first.runtime}, {first.device} was opened first, and here "
                f"{spec.graph} on {spec.runtime}, {spec.device}"
            )
        if changes:
            self._refuse(worker.host, "; ".join(changes))
            return
        worker.stage = "open"
        self._admit(worker)

    def _admit(self, worker: _Worker) -> None:
        """Examine a worker whose session is open, when it is known what is to be predicted."""
        if self._samples is not None and worker.stage == "open":
            worker.stage = "admitting"
            self._call(worker, "admit", self._samples)

    def _lose(self, worker: _Worker, reason: str) -> None:
        """A worker is no more; another takes its place, unless its host never keeps one."""
        self._reasons[worker.host.name] = reason
        self._workers.pop(worker.name, None)
        self._ray.kill(worker.actor)
        self._looked = 0.0
        if worker.stage == "ready":
            self.report.lost += 1
            given_up = self._dispatcher.lost(worker.name, time.monotonic())
            if given_up is not None:
                self._write_crashed(given_up, reason)
        elif worker.host.id in self._ray.hosts():
            self._failed_starts[worker.host.id] += 1
            if self._failed_starts[worker.host.id] >= _FAILED_STARTS:
                self._give_up_starting(worker.host, reason)

    def _give_up_starting(self, host: Host, reason: str) -> None:
        """No more workers for a host that keeps none; those that it has may go on."""
        there = self._dispatcher.workers_on(host.id)
        if not there:
            self._refuse(host, reason)
            return
        self._most_on[host.id] = there
        self._progress(Note(f"{host.name} takes no more than {counted(there, 'worker')}: {reason}"))

    def _fail(self, worker: _Worker, call: str, reason: str) -> None:
        """A worker raised what nobody foresaw: of a shard, its files may be to blame."""
        if call == "predict":
            self._lose(worker, reason)
        else:
            self._refuse(worker.host, reason)

    def _refuse(self, host: Host, reason: str) -> None:
        """Let a host have nothing, and say why."""
        if host.id in self._refused:
            return
        self._refused[host.id] = self._reasons[host.name] = reason
        self.report.refused[host.name] = reason
        self._progress(Note(f"{host.name} predicts nothing: {reason}"))
        self._dispatcher.refuse(host.id, time.monotonic())
        for worker in [each for each in self._workers.values() if each.host.id == host.id]:
            del self._workers[worker.name]
            self._ray.kill(worker.actor)
        self._calls = {
            ref: call for ref, call in self._calls.items() if call[0].name in self._workers
        }
        self._looked = 0.0

    def _count_workers(self, host: Host) -> None:
        there = self._dispatcher.workers_on(host.id)
        self.report.workers[host.name] = max(there, self.report.workers.get(host.name, 0))

    # Shards ---------------------------------------------------------------------------------------

    def predict(self, run: PredictionRun, ledger: Ledger, show: Show) -> int:
        """See :class:`~deploykit.commands.predict.schedulers.Scheduler`."""
        del show  # rows come in no order, so there is no stdout for them
        missing = [*ledger.missing()]
        files = sum(shard.size for shard in missing)
        self._run_root, self._ledger = run.root, ledger
        self._dispatcher = Dispatcher(missing)
        self._samples = self._sampled(missing)
        for worker in [*self._workers.values()]:
            self._admit(worker)
        done, start = ledger.made.files - files, time.monotonic()
        shown = 0.0
        while not self._dispatcher.is_done:
            for name, shard in self._dispatcher.assign(time.monotonic()):
                listed = [_on_the_wire(each) for each in ledger.files([shard], run.root)]
                self._call(self._workers[name], "predict", shard.start, listed)
            later = self._dispatcher.next_time()
            wait = _LOOK_SECONDS if later is None else later - time.monotonic()
            self._turn(min(max(wait, 0.01), _LOOK_SECONDS))
            if time.monotonic() >= shown + _STEP_SECONDS or self._dispatcher.is_done:
                shown = time.monotonic()
                self._show_progress(done, ledger.made.files)
        self.report.doubled = self._dispatcher.doubled
        self.report.predicted = files
        self.report.seconds = time.monotonic() - start
        return files

    def _show_progress(self, done: int, total: int) -> None:
        dispatcher = self._dispatcher
        done += dispatcher.predicted + len(dispatcher.given_up)
        hosts = {each.host.id for each in self._workers.values() if each.stage == "ready"}
        where = f"{counted(len(hosts), 'host')}, {counted(dispatcher.workers, 'worker')}"
        self._progress(Step("predicting", done, total, detail=where, unit="images"))

    def _sampled(self, missing: list[Shard]) -> list[Sample]:
        """Some files that are to be predicted, and their sizes: each host must have them."""
        step = max(1, len(missing) // _SAMPLES)
        samples = []
        firsts = [Shard(start, start + 1) for start, _ in missing[::step][:_SAMPLES]]
        for file in self._ledger.files(firsts, self._run_root):
            name = file.name
            if isinstance(file, SourceFile):  # an archive here, or an object for all hosts
                name = name[: file.inside]
            if not name or isinstance(self._run_root, CloudPath):
                continue
            try:
                samples.append((name, ImageFile(self._run_root, name).path.stat().st_size))
            except OSError:  # a row will say so
                continue
        return samples

    def _keep(self, worker: _Worker, body: bytes) -> None:
        result = self._dispatcher.finished(worker.name, time.monotonic())
        if result is not None and result.is_first:
            self._ledger.add(result.shard, body)

    def _write_crashed(self, shard: Shard, reason: str) -> None:
        """The row of a file that is given up."""
        (file,) = self._ledger.files([shard], self._run_root)
        row = Prediction(
            path=file.name,
            status=CRASHED,
            reason=f"Each of three processes that were given this file alone ended: {reason}",
            expected=file.expected,
            expected_labels=file.expected_labels,
        )
        self._ledger.write(shard.start, [(row, None)], Work(host="", seconds=0.0, stages={}))


def _on_the_wire(file: ImageFile) -> FileOnTheWire:
    return file.name, file.expected, file.expected_labels, place_in_source(file)
