"""A cluster without Ray: its actors answer in this process, one after the other."""

import itertools
from collections import Counter

from deploykit.commands.predict.schedulers.ray_cluster import (
    Host,
    WorkerFailedError,
    WorkerLostError,
)
from deploykit.commands.predict.schedulers.ray_worker import RayWorker


class FakeActor:
    """Its methods have ``.remote``, as those of Ray's handles."""

    def __init__(self, cluster, host):
        self.cluster, self.host = cluster, host
        self.worker, self.is_killed = RayWorker(), False

    def __getattr__(self, method):
        return FakeMethod(self, method)


class FakeMethod:
    def __init__(self, actor, name):
        self.actor, self.name = actor, name

    def remote(self, *args):
        ref = f"{self.name} {next(self.actor.cluster.numbers)}"
        self.actor.cluster.calls[ref] = self.actor, self.name, args
        return ref


class FakeCluster:
    """Stands for :class:`RayCluster`.

    Args:
        hosts: Name, CPUs and GPUs of each.
        meddle: Called before each call with host, method and arguments; what it raises or returns
            takes the place of the worker's answer, unless that is None.
        deaf: The hosts whose actors never say anything.
    """

    def __init__(self, *hosts, meddle=lambda *_: None, deaf=()):
        self.there = {name: Host(name, name, *room) for name, *room in hosts}
        self.numbers, self.meddle, self.deaf = itertools.count(), meddle, deaf
        self.calls, self.actors, self.log = {}, [], []
        self.is_closed = False

    def __call__(self, address):
        self.address = address
        return self

    def hosts(self):
        return dict(self.there)

    def start(self, host, *, cpus, gpus):
        self.actors.append(FakeActor(self, host))
        self.log.append((host.name, "start", (cpus, gpus)))
        return self.actors[-1]

    def kill(self, actor):
        actor.is_killed = True

    def put(self, value):
        self.log.append(("", "put", (len(value),)))
        return value

    def wait(self, refs, seconds):
        heard = [ref for ref in refs if self.calls[ref][0].host.name not in self.deaf]
        return heard[:1]

    def result(self, ref):
        actor, method, args = self.calls.pop(ref)
        assert not actor.is_killed
        self.log.append((actor.host.name, method, args))
        if actor.host.id not in self.there:
            raise WorkerLostError("the host is gone")
        answer = self.meddle(actor.host.name, method, args)
        return getattr(actor.worker, method)(*args) if answer is None else answer

    def close(self):
        for actor in self.actors:
            self.kill(actor)
        self.is_closed = True

    def called(self, method):
        """How often each host was told to."""
        return Counter(host for host, name, _ in self.log if name == method)


def lost(reason="it crashed"):
    raise WorkerLostError(reason)


def failed(reason="ValueError: bug"):
    raise WorkerFailedError(reason)
