"""The process that delivers to MLflow for a driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from bdtune.tracking.courier import Courier, NotDeliveredError
from bdtune.tracking.deliver import Delivery
from bdtune.tracking.mlflow_log import Tracker
from bdtune.tracking.store import TrackingStore

DRIVER = """
import os, sys, time
from pathlib import Path
from bdtune.tracking.mlflow_log import Tracker
from bdtune.trials.results import SweepResult, TrialResult

tracker = Tracker(Path(sys.argv[1]), "small")
tracker.start()
for number in range(5):
    tracker.finished(TrialResult(f"trial{number}", "done"))
tracker.end(SweepResult("small"))
status = tracker.close(120)
assert not status.waiting, status
assert "mlflow" not in sys.modules, "the driver's interpreter has no time for it"
print("delivered")
sys.stdout.flush()
if len(sys.argv) > 2:
    time.sleep(600)
"""


@pytest.fixture
def courier():
    found = Courier()
    yield found
    found.close()


def outbox(run_dir, make_trial, monkeypatch, *numbers):
    """Write runs that wait to be delivered."""
    monkeypatch.setattr(Tracker, "_poke", lambda self: None)
    tracker = Tracker(run_dir, "small")
    tracker.start()
    for number in numbers:
        tracker.finished(make_trial(number))
    return tracker.delivery


def test_a_driver_delivers_without_importing_mlflow(run_dir):
    command = [sys.executable, "-c", DRIVER, str(run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "delivered"), done.stderr


def test_the_process_ends_with_a_driver_that_is_killed(run_dir):
    command = [sys.executable, "-c", DRIVER, str(run_dir), "wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout.readline().strip() == "delivered"
        [process] = psutil.Process(driver.pid).children()
        assert process.is_running()
        os.kill(driver.pid, signal.SIGKILL)
    process.wait(30)


def test_rounds_of_a_sweep_deliver_what_is_new_and_one_whose_process_died_is_made_up_for(
    run_dir, make_trial, monkeypatch, courier
):
    delivery = outbox(run_dir, make_trial, monkeypatch, 0, 1)
    assert courier.round(delivery) == 3
    assert courier.round(delivery) == 0
    outbox(run_dir, make_trial, monkeypatch, 2)
    courier._process.kill()
    courier._process.wait()
    assert courier.round(delivery) == 2, "and the parent run, which has not ended"
    assert not delivery.pending()
    delivery.release()
    again = Delivery(TrackingStore.of(run_dir), "small")
    assert again.round(ask=True) == 1, "MLflow holds all but the end of the parent run"
    again.release()


def test_claims_have_names_of_their_own_where_an_object_or_its_place_in_memory_is_used_again(
    run_dir, make_trial, monkeypatch, courier
):
    named = []
    monkeypatch.setattr(courier, "_ask", lambda request: named.append(request["claim"]) or {"delivered": 0})
    delivery = outbox(run_dir, make_trial, monkeypatch, 0)
    for _ in range(2):
        courier.round(delivery)
    delivery.release()
    courier.round(delivery)
    delivery.release()
    for _ in range(20):
        delivery = Delivery(delivery.store, "small")
        courier.round(delivery)
        delivery.release()
    assert named[0] == named[1], "the process need not ask MLflow again"
    assert len(set(named)) == 22


def test_what_mlflow_raises_is_said_and_leaves_the_process_alive(run_dir, make_trial, monkeypatch, courier):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port: nothing listens
    delivery = outbox(run_dir, make_trial, monkeypatch, 0)
    with pytest.raises(NotDeliveredError, match=r"127\.0\.0\.1:9"):
        courier.round(delivery)
    assert courier._process.poll() is None
    delivery.release()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    delivery = outbox(run_dir, make_trial, monkeypatch)
    assert courier.round(delivery) == 2
    delivery.release()


def test_a_process_that_ends_in_a_round_is_an_error_that_is_tried_again(
    run_dir, make_trial, monkeypatch, courier
):
    delivery = outbox(run_dir, make_trial, monkeypatch, 0)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(NotDeliveredError, match="has ended"):
        courier.round(delivery)
    monkeypatch.undo()
    started = time.monotonic()
    assert courier.round(delivery) == 2
    assert time.monotonic() > started
    delivery.release()
