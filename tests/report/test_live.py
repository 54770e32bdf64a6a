from __future__ import annotations

import io

import pytest

from bdtune.report.live import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock():
    return Clock()


def test_plain_lines_are_few_and_failures_are_always_told(make_trial, clock):
    out = io.StringIO()
    with Progress(stream=out, clock=clock) as progress:
        progress.planned(100, unique=50, cached=10, seconds=120.0)
        for i in range(98):
            clock.now += 0.05
            progress.trial_done(make_trial(f"t{i}"))
        progress.trial_done(make_trial("x", status="diverged", error="Traceback ...\nloss is nan"))
        progress.trial_done(make_trial("y", status="failed"))
    lines = out.getvalue().splitlines()
    assert lines[0] == "100 trials, 50 stages, 10 of them in the store, about 2 min 0 s of computing"
    assert "diverged x: loss is nan" in lines
    assert "failed y: no message" in lines
    assert lines[-1] == "100/100 trials, 2 failed in 4.9 s"
    assert len(lines) <= 1 + 5 + 2 + 1
    assert "\x1b" not in out.getvalue()


def test_a_remark_is_printed_once_with_trial_and_stage():
    out = io.StringIO()
    with Progress(stream=out, name=lambda trial: f"lr={trial}") as progress:
        for _ in range(3):
            progress.remarked("0.1", "supervised", "out of memory with 64 images at once")
        progress.remarked("0.2", "supervised", "out of memory with 64 images at once")
    assert out.getvalue().splitlines() == [
        "lr=0.1 (0.1): supervised: out of memory with 64 images at once",
        "lr=0.2 (0.2): supervised: out of memory with 64 images at once",
    ]


def test_quiet_tells_failures_only(make_trial):
    out = io.StringIO()
    with Progress(quiet=True, stream=out) as progress:
        progress.planned(2)
        progress.trial_done(make_trial("a"))
        progress.trial_done(make_trial("b", status="failed", error="boom"))
    assert out.getvalue() == "failed b: boom\n"


def test_the_estimate_goes_by_predicted_seconds(make_trial, clock):
    progress = Progress(stream=io.StringIO(), clock=clock)
    progress.planned(10, seconds=100.0)
    assert progress.remaining_s() is None
    progress.stage("a", "simclr", 1, 10)
    progress.stage("a", "features")
    clock.now = 10.0
    progress.trial_done(make_trial("a"))
    assert progress.remaining_s() == pytest.approx(90.0)  # 10 of the 100 stage-seconds
    progress.stage("b", "simclr", 1, 10)
    progress.stage("c", "supervised", 1, 10)
    clock.now = 20.0  # twice 10 s more in running stages
    assert progress.remaining_s() == pytest.approx(20 * 70 / 30)


def test_what_the_store_answers_is_no_progress(make_trial, clock):
    for seconds in (100.0, None):
        progress = Progress(stream=io.StringIO(), clock=clock)
        progress.planned(10, seconds=seconds)
        for name in "abcdefgh":
            progress.trial_done(make_trial(name))
        clock.now += 5.0
        assert progress.remaining_s() is None


def test_a_log_tells_what_runs_while_no_trial_ends(make_trial, clock):
    out = io.StringIO()
    progress = Progress(stream=out, clock=clock)
    progress.planned(3)
    progress.trial_done(make_trial("a"))
    progress.trial_done(make_trial("b"))
    for epoch in range(30):
        clock.now += 5.0
        progress.stage("c", "supervised", epoch, 30)
    told = out.getvalue().splitlines()[2:]
    assert told == [f"2/3 trials, 1 running; c: supervised {epoch}/30" for epoch in (11, 23)]


def test_without_a_prediction_it_goes_by_trials(make_trial, clock):
    progress = Progress(stream=io.StringIO(), clock=clock)
    progress.planned(4)
    progress.stage("a", "supervised")
    clock.now = 10.0
    progress.trial_done(make_trial("a"))
    assert progress.remaining_s() == pytest.approx(30.0)
    assert "about 30.0 s left" in progress.summary()


def test_counts(make_trial, clock):
    progress = Progress(stream=io.StringIO(), clock=clock)
    progress.planned(9)
    progress.stage("a", "simclr", 1, 5)
    progress.stage("a", "simclr", 2, 5)
    progress.stage("b", "features")
    progress.held(4)
    progress.trial_done(make_trial("c", status="stopped"))
    assert progress.summary().startswith("1/9 trials, 1 stopped early, 2 running, 4 held back")
    progress.trial_done(make_trial("a"))
    assert set(progress.running) == {"b"}


def test_a_terminal_shows_stages_and_messages_and_is_left_clean(make_trial):
    out = Terminal()
    with Progress(stream=out) as progress:
        progress.planned(12)
        for i in range(10):
            progress.stage(f"trial{i}", "supervised", 3, 20)
        progress._live.refresh()
        progress.message("a [line] above")
        progress.trial_done(make_trial("trial1", status="failed", error="boom"))
    text = out.getvalue()
    assert "supervised" in text
    assert "epoch 3/20" in text
    assert "and 2 more" in text
    assert "a [line] above" in text
    assert "failed trial1: boom" in text
    assert text.rstrip().splitlines()[-1].endswith("s")
    progress.close()  # a second time does no harm


def test_running_trials_are_called_by_their_settings(make_trial, clock):
    out = io.StringIO()
    names = {"c0ffee": "beta_nd=1.5 seed=0"}
    progress = Progress(stream=out, clock=clock, name=lambda trial: names.get(trial, trial))
    progress.planned(2)
    progress.stage("c0ffee", "retrain", 1, 30)
    clock.now += 61
    progress.stage("c0ffee", "retrain", 2, 30)
    progress.trial_done(make_trial("c0ffee", status="failed", error="boom"))
    assert "beta_nd=1.5 seed=0: retrain 2/30" in out.getvalue()
    assert "failed beta_nd=1.5 seed=0 (c0ffee): boom" in out.getvalue()  # its files go by the id
    assert "c0ffee" not in out.getvalue().splitlines()[1]
