from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg  # its own BLAS  # noqa: F401
from threadpoolctl import ThreadpoolController

from bdtune.engine.environment import one_blas_thread
from bdtune.engine.execute import Executor
from bdtune.engine.node import Node
from bdtune.engine.stage import Artefact, Stage
from bdtune.engine.store import Store
from tests.doubles import CPU
from tests.engine.toys import Numbers


@pytest.fixture(autouse=True)
def two_threads():
    """Two threads for all BLAS, as in a driver on a machine with two cores."""
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        yield


def threads() -> list[int]:
    """Return how many threads each BLAS of numpy and scipy computes on."""
    found = ThreadpoolController().select(prefix="libscipy_openblas").info()
    return [each["num_threads"] for each in found]


class Eigenvalues(Stage):
    """The eigenvalues of a random matrix, and the threads that BLAS has meanwhile."""

    name = "toy_eigenvalues"
    kind = "derive"

    def run(self, ctx, *, x):
        rows = np.random.default_rng(0).standard_normal((600, 600))
        return Artefact({"values": np.linalg.eigvalsh(rows.T @ rows), "threads": np.array(threads())})


def test_a_stage_computes_with_one_thread_of_blas_wherever_it_runs(tmp_path):
    node = Node(Eigenvalues(), {"x": Numbers()}, 0, CPU)
    arrays = Executor(Store(tmp_path), resident=None).compute(node).arrays
    assert set(arrays["threads"]) == {1}
    with ThreadpoolController().limit(limits=1, user_api="blas"):  # a trial on one core
        alone = Eigenvalues().run(None, x=1.0)
    assert np.array_equal(arrays["values"], alone.arrays["values"])


def test_threads_are_as_before_afterwards():
    assert set(threads()) == {2}
    with one_blas_thread():
        with one_blas_thread():
            assert set(threads()) == {1}
        assert set(threads()) == {1}
    assert set(threads()) == {2}
