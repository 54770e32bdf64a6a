"""Fixtures that several folders share."""

from __future__ import annotations

import warnings

import pytest


@pytest.fixture(scope="session")
def ray_session():
    """One small local Ray session for all tests that need a real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else a token is written into the home directory
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own, about itself
            import ray

            ray.init(
                num_cpus=2, object_store_memory=200_000_000, include_dashboard=False, logging_level="error"
            )
        yield ray
        ray.shutdown()
