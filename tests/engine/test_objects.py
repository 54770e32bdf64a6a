"""The six operations, in memory and on a server, and what a server's faults come to."""

from __future__ import annotations

import os
import threading

import pytest

from bdtune.engine import objects as module
from bdtune.engine.objects import NO_TAG, Bucket, check, open_bucket
from bdtune.errors import OutageError, UserError

BOTH = [pytest.param("memory"), pytest.param("s3", marks=pytest.mark.xdist_group("s3"))]


@pytest.fixture(params=BOTH)
def bucket(request, tmp_path):
    if request.param == "memory":
        return open_bucket(f"memory://{tmp_path}")
    return open_bucket(request.getfixturevalue("s3").new_address())


def test_objects_are_written_read_listed_and_removed(bucket):
    assert bucket.get("a/x") is None
    bucket.put("a/x", b"one")
    bucket.put("a/y", b"")
    bucket.put("ab/z", b"three")
    assert bucket.get("a/x").content == b"one"
    assert bucket.get("a/y").content == b""
    listed = list(bucket.list("a"))
    assert [(each.name, each.size) for each in listed] == [("a/x", 3), ("a/y", 0)]
    assert listed[0].tag == bucket.get("a/x").tag
    bucket.put("a/x", b"other")
    assert bucket.get("a/x").tag != listed[0].tag
    bucket.delete("a/x")
    bucket.delete("a/x")
    assert [each.name for each in bucket.list("a")] == ["a/y"]


def test_a_listing_begins_after_a_name_and_goes_on_over_pages(bucket, monkeypatch):
    monkeypatch.setattr(module, "PAGE", 2)
    for number in range(7):
        bucket.put(f"log/{number}", b"x")
    assert [each.name[-1] for each in bucket.list("log")] == list("0123456")
    assert [each.name[-1] for each in bucket.list("log", "log/3")] == list("456")
    assert not list(bucket.list("log", "log/6"))


def test_one_of_many_writes_what_is_absent(bucket):
    """Content that is found already counts as written: an earlier attempt may have been heeded."""
    tags = {}

    def write(number):
        tags[number] = bucket.put_if_absent("lease", b"%d" % number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = [number for number, tag in tags.items() if tag is not None]
    assert bucket.get("lease") == (b"%d" % winner, tags[winner])
    assert bucket.put_if_absent("lease", b"%d" % winner) == tags[winner]


def test_only_the_content_that_was_seen_is_replaced(bucket):
    first = bucket.put_if_absent("lease", b"0")
    second = bucket.put_if_match("lease", b"1", first)
    assert second not in (None, first)
    assert bucket.put_if_match("lease", b"2", first) is None
    assert bucket.put_if_match("lease", b"2", NO_TAG) is None
    assert bucket.put_if_match("none", b"2", second) is None
    assert bucket.get("lease") == (b"1", second)


def test_what_is_larger_than_a_part_is_written_whole(bucket):
    content = os.urandom(12_000_000)  # three parts on a server
    bucket.put("large", content)
    assert bucket.get("large").content == content


def test_a_place_is_tried_before_anything_is_written_there(bucket):
    check(bucket, write=False)
    assert not list(bucket.list("bdtune-store"))
    check(bucket, write=True)
    check(bucket, write=True)
    assert len(list(bucket.list("bdtune-store"))) == 1


class Careless:
    """A server that takes no notice of one condition."""

    def __init__(self, inner, ignored):
        self.inner, self.ignored, self.address = inner, ignored, "s3://careless"

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def put_if_absent(self, name, content):
        if self.ignored == "If-None-Match":
            self.inner.put(name, content)
            return NO_TAG
        return self.inner.put_if_absent(name, content)

    def put_if_match(self, name, content, tag):
        self.inner.put(name, content)
        return NO_TAG


@pytest.mark.parametrize("ignored", ["If-None-Match", "If-Match"])
def test_a_server_that_heeds_no_condition_is_refused(ignored, tmp_path):
    with pytest.raises(UserError, match=f"heeds {ignored}") as caught:
        check(Careless(open_bucket(f"memory://{tmp_path}"), ignored), write=True)
    assert caught.value.problems[0].got == "s3://careless"


@pytest.mark.parametrize(
    ("address", "expected", "hint"),
    [
        ("s4://bucket/x", "s3://, gs://, az://, memory://", "Did you mean 's3'?"),
        ("s3://", "s3://bucket/prefix", ""),
        ("az://container/x", "az://bucket/prefix", "Account must be specified"),
    ],
)
def test_an_address_that_means_nothing_is_a_problem_of_the_user(address, expected, hint, monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(UserError) as caught:
        open_bucket(address)
    [problem] = caught.value.problems
    assert problem.path == "--store"
    assert expected in problem.expected
    assert hint in problem.hint


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)
    with pytest.raises(UserError, match=r"pip install 'bdtune\[cloud\]'"):
        open_bucket("s3://bucket/x")


@pytest.fixture
def served(s3):
    return open_bucket(s3.new_address())


pytestmark_s3 = pytest.mark.xdist_group("s3")


@pytestmark_s3
def test_a_bucket_that_is_missing_is_a_problem_of_the_user(s3):
    with pytest.raises(UserError, match="expected a bucket that exists, got s3://nobody/x"):
        check(open_bucket("s3://nobody/x"), write=False)


@pytestmark_s3
@pytest.mark.parametrize("how", ["throttle", "lost", "cut"])
@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_faults_that_pass_are_not_seen(s3, served, how, method):
    tag = served.put_if_absent("old", b"0")
    s3.fail(how, method, "/old", times=2)
    s3.fail(how, method, "/new", times=2)
    assert served.put_if_match("old", b"1" * 9000, tag) is not None
    assert served.put_if_absent("new", b"2" * 9000) is not None
    assert served.get("old").content == b"1" * 9000
    assert served.get("new").content == b"2" * 9000
    asked = s3.requests()
    assert sum(line.startswith(f"{method} ") for line in asked) >= 6


@pytestmark_s3
def test_an_answer_that_got_lost_is_found_again_and_nobody_elses_is_taken_for_it(s3, served):
    s3.fail("lost", "PUT", "/lease", times=1)
    tag = served.put_if_absent("lease", b"mine")
    assert served.get("lease") == (b"mine", tag)
    assert served.put_if_absent("lease", b"another's") is None


@pytestmark_s3
def test_an_upload_that_was_cut_leaves_nothing(s3, monkeypatch):
    monkeypatch.setattr(module, "PAUSES_S", ())
    monkeypatch.setattr(module, "RETRIES", {**module.RETRIES, "max_retries": 1})
    bucket = open_bucket(s3.new_address())
    s3.fail("cut", "PUT", "/large", times=50)
    with pytest.raises(OutageError):
        bucket.put("large", os.urandom(12_000_000))
    with pytest.raises(OutageError):
        bucket.put("large-too", os.urandom(100_000))
    assert not list(bucket.list(""))


@pytestmark_s3
def test_a_server_that_hangs_is_asked_again(s3, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUTS", {"connect_timeout": "1 second", "timeout": "2 seconds"})
    bucket = open_bucket(s3.new_address())
    bucket.put("x", b"1")
    s3.fail("hang", "GET", "/x", seconds=6.0)
    assert bucket.get("x").content == b"1"


@pytestmark_s3
def test_who_is_in_a_hurry_asks_once(monkeypatch, s3):
    bucket = open_bucket(s3.new_address(), hurried=True)
    s3.fail("throttle", "GET", "/x", times=1)
    with pytest.raises(OutageError):
        bucket.get("x")
    assert sum("/x?" in line for line in s3.requests()) == 1
    assert bucket.get("x") is None


@pytestmark_s3
def test_a_server_that_is_away_is_an_outage_that_names_the_store(monkeypatch, s3):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(module, "PAUSES_S", (0.01,))
    monkeypatch.setattr(module, "RETRIES", {**module.RETRIES, "max_retries": 0})
    bucket = open_bucket("s3://bucket/prefix")
    assert isinstance(bucket, Bucket)
    asks = (lambda: bucket.get("x"), lambda: bucket.put_if_absent("x", b""), lambda: list(bucket.list("x")))
    for ask in asks:
        with pytest.raises(OutageError, match="s3://bucket/prefix does not answer"):
            ask()
