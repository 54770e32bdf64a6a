"""Fixtures that several folders share."""

from __future__ import annotations

import os
import sys
import warnings
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

for name in ("BDTUNE_PLUGINS", "BDTUNE_HOME"):  # the user's own; plugins are listed when tests are collected
    os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with files that start Ray, those of whole sweeps first: they take longest, and mostly wait."""
    waiting = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: (item.path not in waiting, "end_to_end" not in item.path.parts))


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep measurements of the machine's speed out of the user's cache folder."""
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
def ray_session():
    """One small local Ray session for all tests that need a real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else a token is written into the home directory
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        patch.setenv("RAY_worker_niceness", "0")  # as in a session of our own
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
        yield ray
        ray.shutdown()
