"""A Ray session: started for a sweep or joined, and checked before anything waits on it for ever."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from bdtune.cluster.daemons import watched
from bdtune.cluster.signals import check, handlers_stay, interruptible, put_off
from bdtune.errors import BdtuneError, Problem, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

log = logging.getLogger(__name__)

ANSWER_S = 3.0
"""After so long without an answer nobody listens at an address; a name may stand for two or three."""
STARTS = 3
"""Attempts to start a session."""
OBJECT_STORE_BYTES = 200 * 2**20
"""Of a session started here, besides what the resident data sets need."""


@dataclass(frozen=True)
class Needs:
    """What one trial occupies: its own CPUs and GPUs, and CPUs beside them for a streaming pipeline."""

    cpu: float = 1.0
    gpu: float = 0.0
    helper_cpu: float = 0.0

    @property
    def bundles(self) -> list[dict[str, float]]:
        """The bundles of the trial's placement group."""
        own = {"CPU": self.cpu, **({"GPU": self.gpu} if self.gpu else {})}
        return [own, *([{"CPU": self.helper_cpu}] if self.helper_cpu else [])]


@contextlib.contextmanager
def session(
    address: str | None = None,
    *,
    cpus: int | None = None,
    gpus: int | None = None,
    data_bytes: int = 0,
    needs: Needs | None = None,
    say: Callable[[str], None] = log.info,
) -> Iterator[None]:
    """Start a local Ray session, or join the cluster at `address`; a session that is on already is used.

    `cpus` and `gpus` of a local session are those of the machine unless given (fake GPUs are accepted). `say`
    is told what takes time, and which cluster was joined. Raises `UserError`, before anything is started,
    where nobody answers at the address, or where no trial of these `needs` would ever fit on this machine;
    and `RayDiedError` when Ray's own processes die that were started here.
    """
    _quiet_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    if address is not None:
        check_answers(address)
    else:
        cpus = cpus or len(os.sched_getaffinity(0))
        if needs is not None:
            gpus_here = {} if gpus is None and not needs.gpu else {"GPU": _gpus() if gpus is None else gpus}
            fitting([{"CPU": cpus, **gpus_here}], needs)
    try:
        with interruptible():
            with _ray_takes_no_signal():
                _open(address, cpus, gpus, OBJECT_STORE_BYTES + 2 * data_bytes, say)
            with watched(None if address is None else _head()):
                yield
    finally:
        with put_off():
            ray.shutdown()


def _open(
    address: str | None, cpus: int | None, gpus: int | None, store_bytes: int, say: Callable[[str], None]
) -> None:
    """Join a cluster, or start a session."""
    if address is not None:
        say(f"joining a Ray cluster ({address}) ...")
        _join(address)
        say(f"joined {_described()}")
    else:
        say("starting Ray on this machine, which takes some seconds ...")
        _start(cpus, gpus, store_bytes)
    check()


@contextlib.contextmanager
def _ray_takes_no_signal() -> Iterator[None]:
    """Keep Ray from handling SIGTERM: its handler ends Ray, and what it raises then may be lost."""
    import ray

    utils = getattr(getattr(ray, "_private", None), "utils", None)
    with handlers_stay(), contextlib.ExitStack() as stack:
        if utils is not None:
            stack.enter_context(mock.patch.object(utils, "set_sigterm_handler"))
        yield


def check_answers(address: str) -> None:
    """Raise `UserError` where nobody listens at HOST:PORT: Ray itself would try for minutes.

    "auto" stands for RAY_ADDRESS where that is set; else Ray looks on this machine, which takes no time.
    """
    meant = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if meant == "auto":
        return
    host, _, port = meant.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(Problem("--address", "expected 'auto' or HOST:PORT, such as 10.0.0.1:6379", meant))
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except OSError as error:
        raise _no_cluster(f"{meant}: {error.strerror or error}") from error


def _no_cluster(got: str) -> UserError:
    hint = "Start one with `ray start --head`, or leave the address out for a session of this machine"
    return UserError(Problem("--address", "expected a running Ray cluster", got, hint=hint))


def _join(address: str) -> None:
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        raise _no_cluster(address) from error


def _head() -> tuple[str, int]:
    """Return the host and port of the head of the cluster that was joined."""
    import ray

    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    return host.strip("[]"), int(port)


def _described() -> str:
    """Return which cluster this is: "the Ray cluster at 10.0.0.1:6379: 3 nodes, 24 CPUs, 2 GPUs"."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    size = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}, {cpus:g} CPUs, {gpus:g} GPUs"
    return f"the Ray cluster at {ray.get_runtime_context().gcs_address}: {size}"


def _gpus() -> int:
    """Return how many GPUs this process may use."""
    import torch

    return torch.cuda.device_count()


def _start(cpus: int | None, gpus: int | None, store_bytes: int) -> None:
    """Start a session of this machine, again if need be: Ray gives itself 30 s, which a busy one may need."""
    import ray

    for left in reversed(range(STARTS)):
        try:
            ray.init(
                address="local",  # also where this machine is part of a cluster
                num_cpus=cpus,
                num_gpus=gpus,
                object_store_memory=store_bytes,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            return
        except Exception as error:  # Ray raises it bare
            ray.shutdown()
            check()
            if not left:
                raise BdtuneError(f"Ray could not be started in {STARTS} attempts: {error}") from error
            log.warning("Ray could not be started, trying again: %s", error)


def _quiet_environment() -> None:
    defaults = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # at SIGTERM it prints a stack and aborts after 3 s
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # keep CUDA_VISIBLE_DEVICES of trials without a GPU
        "RAY_AIR_NEW_OUTPUT": "0",
        # By default Ray starts a worker for each CPU at once. They never serve a trial: Tune's processes have
        # an environment of their own.
        "RAY_prestart_worker_first_driver": "0",
        "RAY_worker_niceness": "0",  # else trials yield to the driver; `nice bdtune sweep` lowers both
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "600",  # the store is what a sweep resumes from, not Tune's snapshot
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    }
    if not os.access(Path.home(), os.W_OK):
        defaults["RAY_AUTH_MODE"] = "disabled"  # its token could not be saved
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def slots(needs: Needs) -> int:
    """Return how many trials fit at once; raises `UserError` when not even one ever will."""
    import ray

    return fitting([node["Resources"] for node in ray.nodes() if node["Alive"]], needs)


def fitting(nodes: Sequence[dict[str, float]], needs: Needs) -> int:
    """Return how many trials fit on nodes of such resources; raises `UserError` when not even one does."""
    total = sum(_fit(node, needs) for node in nodes)
    if total == 0:
        largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)))
        has = f"{largest.get('CPU', 0):g} CPUs and {largest.get('GPU', 0):g} GPUs on the largest node"
        helper = f" and {needs.helper_cpu:g} more CPUs for the streaming pipeline" if needs.helper_cpu else ""
        expected = f"expected a node with {needs.cpu:g} CPUs and {needs.gpu:g} GPUs{helper} for one trial"
        hint = "Lower resources.cpu or resources.gpu, or join a larger cluster with --address"
        raise UserError(Problem("resources", expected, has, hint=hint))
    return total


def _fit(node: dict[str, float], needs: Needs) -> int:
    cpus = node.get("CPU", 0.0) / (needs.cpu + needs.helper_cpu)
    gpus = math.inf
    if needs.gpu:
        # A fraction lies on one GPU: three trials of 0.4 need two of them.
        per_gpu = math.floor(1 / needs.gpu + 1e-9) if needs.gpu <= 1 else 1 / needs.gpu
        gpus = node.get("GPU", 0.0) * per_gpu
    return math.floor(min(cpus, gpus) + 1e-9)
