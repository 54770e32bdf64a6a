"""Fixtures that several folders share."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

    from tests.engine.places import Stand
    from tests.s3 import Server

# The user's own: plugins are listed when tests are collected.
for name in ("BDTUNE_PLUGINS", "BDTUNE_HOME", "BDTUNE_STORE", "BDTUNE_CACHE"):
    os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with files that start Ray, those of whole sweeps first: they take longest, and mostly wait."""
    waiting = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: (item.path not in waiting, "end_to_end" not in item.path.parts))


@pytest.fixture(autouse=True, scope="session")
def heeds_interrupts() -> Iterator[None]:
    """Have SIGINT raise: a shell's jobs in the background begin with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what a node measures, copies and decodes out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only get in each other's way on networks and batches as small as those of tests."""
    if (torch := sys.modules.get("torch")) is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """One S3 server on loopback for all tests that need a real one."""
    from tests.s3 import running

    with running() as server:
        yield server


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, with what reaches it in the environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.requests()
    return s3_server


@pytest.fixture
def bdtune(monkeypatch, capsys):
    """Run the command line in this process; returns (exit status, standard output, standard error)."""

    from bdtune import cli

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bdtune", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture(params=["folder", "memory", pytest.param("s3", marks=pytest.mark.xdist_group("s3"))])
def stand(request: pytest.FixtureRequest, tmp_path: Path) -> Stand:
    """Each place that a store may lie in."""
    from tests.engine.places import Stand

    root: Path | str = tmp_path / "store"
    if request.param == "memory":
        root = f"memory://{tmp_path}"
    if request.param == "s3":
        root = request.getfixturevalue("s3").new_address()
    return Stand(root, tmp_path / "caches")


@pytest.fixture(scope="session")
def ray_session():
    """One small local Ray session for all tests that need a real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else a token is written into the home directory
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        patch.setenv("RAY_worker_niceness", "0")  # as in a session of our own
        ray = start_ray()
        yield ray
        ray.shutdown()


def start_ray() -> ModuleType:
    """Start the session of `ray_session`; a test that had to end it starts it again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, about itself
        import ray

        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=200_000_000,
            include_dashboard=False,
            logging_level="error",
        )
    return ray
