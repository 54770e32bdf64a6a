"""The processes that Ray starts for trials: as many as there are trials, with the command's own priority."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SESSION = """
import json, os, time
import psutil
from bdtune.cluster.session import session

def workers():
    words = [child.cmdline()[:1] for child in psutil.Process().children(recursive=True)]
    return [word for word in words if word == ["ray::IDLE"]]

with session(cpus=2):
    import ray
    time.sleep(5)  # else Ray would have started two by now
    before = len(workers())
    nice = ray.get(ray.remote(num_cpus=1)(lambda: os.nice(0)).remote())
    print(json.dumps([before, nice - os.nice(0)]))
"""


def test_no_worker_is_started_in_vain_and_trials_do_not_yield_to_the_driver():
    done = subprocess.run([sys.executable, "-c", SESSION], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, 0]
