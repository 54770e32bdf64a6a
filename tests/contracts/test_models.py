"""Every network passes these by being there."""

from __future__ import annotations

import pytest

from bdtune.plugins import registry
from bdtune.testing.described import check_described
from bdtune.testing.models import CHECKS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", registry.names("models"))
def test_every_network_keeps_its_promises(name, check):
    check(name)


@pytest.mark.parametrize("name", registry.names("models"))
def test_describes_itself(name):
    check_described("models", name)
