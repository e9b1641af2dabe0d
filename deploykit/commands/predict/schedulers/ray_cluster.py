"""The Ray of ``--on ray``: connecting, hosts, actors, and what Ray's errors mean."""

from __future__ import annotations

import os
import secrets
import signal
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit.commands.predict.schedulers.ray_worker import RayWorker
from deploykit.errors import DeviceError, UsageError
from deploykit.specs.session import Closing
from deploykit.system.deps import need
from deploykit.system.threads import usable_cpus

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from deploykit.specs.value import Value

_MOST_STORE_BYTES = 2**27
_REASON_CHARACTERS = 300


@dataclass(frozen=True)
class Host:
    """A node of the cluster.

    Attributes:
        id: Ray's.
        name: Its host name; with a part of its id where several nodes have the same.
        cpus: What Ray may give away there.
        gpus: The same.
    """

    id: str
    name: str
    cpus: float
    gpus: float


class WorkerLostError(Exception):
    """An actor is no more: it was killed, crashed, could not be made, or its host is gone."""


class WorkerFailedError(Exception):
    """An actor raised what no file is to blame for, or is a bug."""


class RayCluster(Closing):
    """A connection to Ray, and the actors that were made through it: closing ends them.

    Args:
        address: ``ray`` for the cluster that ``RAY_ADDRESS`` names, or this machine belongs to, or
            else one that is started here; or ``ray://HOST:PORT``.

    Raises:
        DependencyError: Ray is not installed.
        DeviceError: There is no such cluster, or it has other versions of Ray or Python.
    """

    def __init__(self, address: str) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray: Any = need("ray")
        self._errors: Any = need("ray.exceptions")
        self._actors: dict[int, Any] = {}
        self._is_ours = not self._ray.is_initialized()
        if self._is_ours:
            with _own_signals():
                self._connect(address)

    def _connect(self, address: str) -> None:
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        named = address if address != "ray" else os.environ.get("RAY_ADDRESS") or "auto"
        try:
            try:
                self._ray.init(named, **quiet)
            except ConnectionError:
                if named != "auto":
                    raise
                # Nobody else knows it. Ray would make one, and leave it in the user's home.
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
                # Ray's own is 15: workers wait for whatever else the machine does, and this process
                # would not.
                os.environ.setdefault("RAY_worker_niceness", "0")
                self._ray.init(
                    address="local",
                    num_cpus=usable_cpus(),
                    object_store_memory=_MOST_STORE_BYTES,
                    include_dashboard=False,
                    **quiet,
                )
        except Exception as exc:  # of which Ray raises plain ones: its node "timed out"
            where = "here" if named == "auto" else f"at {named}"
            raise DeviceError(
                f"There is no Ray cluster {where} that this Ray can use: {_short(exc)}",
                hint="Start one (ray start --head), name its address (--on ray://HOST:10001), or "
                "install the versions of Ray and Python that it has.",
            ) from exc

    def close(self) -> None:
        """End the actors, and the cluster where it was started here; closing twice is fine."""
        for actor in [*self._actors.values()]:
            self.kill(actor)
        if self._is_ours and self._ray.is_initialized():
            self._is_ours = False
            with _own_signals():
                self._ray.shutdown()

    def hosts(self) -> dict[str, Host]:
        """The hosts that are there now, by their ids."""
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        names = [node["NodeManagerHostname"] for node in nodes]
        return {
            node["NodeID"]: Host(
                node["NodeID"],
                name if names.count(name) == 1 else f"{name}/{node['NodeID'][:6]}",
                node["Resources"].get("CPU", 0.0),
                node["Resources"].get("GPU", 0.0),
            )
            for name, node in zip(names, nodes, strict=True)
        }

    def start(self, host: Host, *, cpus: int, gpus: float) -> Any:
        """Make an actor on a host; its arguments are none, so none can be lost."""
        affinity = need("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
        actor_class = self._ray.remote(RayWorker)
        actor = actor_class.options(
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=affinity(node_id=host.id, soft=False),
        ).remote()
        self._actors[id(actor)] = actor
        return actor

    def kill(self, actor: Any) -> None:
        """End an actor, whatever it is doing."""
        self._actors.pop(id(actor), None)
        with suppress(self._errors.RayError, ConnectionError, RuntimeError, ValueError):
            self._ray.kill(actor)

    def put(self, value: bytes | Value) -> Any:
        """Lay something large into the object store, from which each host fetches it once."""
        return self._ray.put(value)

    def wait(self, refs: Sequence[Any], seconds: float) -> list[Any]:
        """Those that are ready; at least one, unless the time is over before."""
        ready, rest = self._ray.wait([*refs], num_returns=1, timeout=seconds)
        if ready and rest:
            more, _ = self._ray.wait(rest, num_returns=len(rest), timeout=0)
            ready = [*ready, *more]
        return [*ready]

    def result(self, ref: Any) -> dict[str, Any]:
        """What an actor has answered.

        Raises:
            WorkerLostError: It is no more.
            WorkerFailedError: It raised something.
        """
        try:
            answer: dict[str, Any] = self._ray.get(ref)
        except self._errors.RayTaskError as exc:
            raise WorkerFailedError(_short(exc)) from exc
        except self._errors.RayError as exc:
            raise WorkerLostError(_short(exc)) from exc
        return answer


def checked_address(on: str) -> str:
    """What ``--on`` names.

    Raises:
        UsageError: It is no Ray.
    """
    if on == "ray" or (on.startswith("ray://") and len(on) > len("ray://")):
        return on
    raise UsageError(
        f"--on {on!r} is none.",
        hint="Ray on this machine, or its cluster, is --on ray; another one --on ray://HOST:10001.",
    )


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray puts its own handler in the place of ours, which cleans up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for each, handler in before.items():
            if handler is not None:
                signal.signal(each, handler)


def _short(exc: BaseException) -> str:
    """The last line that says something, of what may be pages."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    text = " ".join(lines) if len(lines) < 4 else lines[-1]
    told, _, _ = text.partition(" Some common causes include")  # a list of what it might be
    return told[:_REASON_CHARACTERS] or type(exc).__name__
