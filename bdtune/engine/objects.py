"""Objects in a bucket: the six operations that a store without a shared disk rests on.

An object is written whole or not at all, and whoever reads or lists after a write sees it. Two operations are
conditional, which is what leases and commits are made of: `put_if_absent` (HTTP's If-None-Match) and
`put_if_match` (If-Match on the tag that came with the content).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from bdtune.errors import OutageError, Problem, UserError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime

SCHEMES = ("s3", "gs", "az", "memory")
PAUSES_S = (0.5, 2.0, 8.0)
"""Between attempts at a request, each of which the library has repeated on its own, with pauses that grow."""
RETRIES: dict[str, Any] = {
    "max_retries": 8,
    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=10), "base": 2},
    "retry_timeout": timedelta(seconds=60),
}
TIMEOUTS = {"connect_timeout": "5 seconds", "timeout": "120 seconds"}
HURRIED = {"timeout": "10 seconds"}
PAGE = 1000
"""Objects in a page of a listing, which is what servers give at once."""
MARKER = "bdtune-store"
"""The object by which a store is known to be writable, with conditions that the server heeds."""

Tag = tuple[str | None, str | None]
"""A content's entity tag and version; equal tags of a name stand for equal contents."""
NO_TAG: Tag = (f'"{"0" * 32}"', "1")
"""A tag that no content has."""
Answer = TypeVar("Answer")


class Found(NamedTuple):
    """What an object holds."""

    content: bytes
    tag: Tag


class Listed(NamedTuple):
    """An object in a listing."""

    name: str
    size: int
    tag: Tag
    modified: datetime


class Objects(Protocol):
    """Named byte strings, shared by all who know the address; safe among any number of processes.

    Each operation raises `OutageError` when the server does not answer, and `UserError` when it refuses.
    """

    @property
    def address(self) -> str:
        """Where they are, as s3://bucket/prefix."""

    def get(self, name: str) -> Found | None:
        """Return an object's content and tag, or None."""

    def put(self, name: str, content: bytes) -> None:
        """Write an object, whatever was there: for names that only one writer uses."""

    def put_if_absent(self, name: str, content: bytes) -> Tag | None:
        """Write an object unless there is one; None when there is.

        `content` is the caller's alone: where it is found already, an earlier attempt has written it.
        """

    def put_if_match(self, name: str, content: bytes, tag: Tag) -> Tag | None:
        """Replace the content that has this tag; None when another one is there, or none.

        `content` is the caller's alone, as in `put_if_absent`.
        """

    def list(self, prefix: str, after: str = "") -> Iterator[Listed]:
        """Yield the objects below `prefix/`, by name; only those whose names come after `after`."""

    def delete(self, name: str) -> None:
        """Remove an object; one that is missing is no error."""


@dataclass(frozen=True)
class Bucket:
    """A prefix of a bucket, through obstore: S3 and what speaks it, Google Cloud, Azure, or this memory."""

    address: str
    _store: Any
    hurried: bool = False
    """Whether faults are reported at once, and not waited out."""

    def get(self, name: str) -> Found | None:
        import obstore

        def read() -> Found:
            result = obstore.get(self._store, name)
            return Found(bytes(result.bytes()), _tag(result.meta))

        try:
            return self._patiently(read)
        except FileNotFoundError:
            return None

    def put(self, name: str, content: bytes) -> None:
        import obstore

        self._patiently(lambda: obstore.put(self._store, name, content))

    def put_if_absent(self, name: str, content: bytes) -> Tag | None:
        return self._put_if(name, content, "create")

    def put_if_match(self, name: str, content: bytes, tag: Tag) -> Tag | None:
        version = {part: value for part, value in zip(("e_tag", "version"), tag, strict=True) if value}
        return self._put_if(name, content, version)

    def _put_if(self, name: str, content: bytes, mode: Literal["create"] | dict[str, str]) -> Tag | None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            return _tag(self._patiently(lambda: obstore.put(self._store, name, content, mode=mode)))
        except (AlreadyExistsError, PreconditionError):
            # Refused, perhaps because an earlier attempt was heeded and its answer got lost.
            found = self.get(name)
            return found.tag if found is not None and found.content == content else None

    def list(self, prefix: str, after: str = "") -> Iterator[Listed]:
        import obstore

        pages: Iterator[Any] | None = None

        def page() -> Any:
            nonlocal pages
            if pages is None:
                pages = iter(obstore.list(self._store, prefix, offset=after or None, chunk_size=PAGE))
            try:
                return next(pages, ())
            except Exception:
                pages = None  # the next attempt goes on after the last name
                raise

        while found := self._patiently(page):
            for each in found:
                yield Listed(each["path"], each["size"], _tag(each), each["last_modified"])
            after = found[-1]["path"]

    def delete(self, name: str) -> None:
        import obstore

        try:
            self._patiently(lambda: obstore.delete(self._store, name))
        except FileNotFoundError:
            return

    def _patiently(self, ask: Callable[[], Answer]) -> Answer:
        """Make a request again after faults that pass: throttling, time-outs, a connection that broke."""
        from obstore import exceptions

        for pause in (*(() if self.hurried else PAUSES_S), None):
            try:
                return ask()
            except (FileNotFoundError, exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
                if "NoSuchBucket" in str(error):
                    raise self._refused("expected a bucket that exists") from error
                raise
            except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
                raise self._refused("expected credentials that may read and write there") from error
            except exceptions.BaseError as error:
                if "NoSuchBucket" in str(error):
                    raise self._refused("expected a bucket that exists") from error
                if pause is None:
                    raise OutageError(f"{self.address} does not answer: {_first_line(error)}") from error
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _refused(self, expected: str) -> UserError:
        return UserError(Problem("--store", expected, self.address))


def is_address(text: str) -> bool:
    """Return whether a text names objects in a bucket, not a folder."""
    return "://" in text


def open_bucket(address: str, *, hurried: bool = False) -> Bucket:
    """Return the bucket at an address such as s3://bucket/prefix; nothing is asked of the server yet.

    `hurried`: a fault is reported within seconds, where it would else be waited out for minutes.
    Credentials and regions come from the environment, as each cloud's own tools take them. `memory://NAME` is
    shared within this process only. Raises `UserError` for an address that means nothing.
    """
    scheme, _, rest = address.partition("://")
    if scheme not in SCHEMES:
        known = ", ".join(f"{each}://" for each in SCHEMES)
        expected = f"expected a folder, or an address that begins with one of {known}"
        raise UserError(Problem("--store", expected, f"'{address}'", hint=nearest(scheme, SCHEMES)))
    try:
        import obstore.store as stores
        from obstore.exceptions import BaseError
    except ImportError as error:
        hint = "Install it with pip install 'bdtune[cloud]'"
        expected = "expected obstore to be installed"
        raise UserError(Problem("--store", expected, str(error), hint=hint)) from None
    if scheme == "memory":
        return Bucket(address, _memories.setdefault(rest, stores.MemoryStore()))
    try:
        options = {**TIMEOUTS, "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")}
        options |= HURRIED if hurried else {}
        retries = {**RETRIES, "max_retries": 0} if hurried else RETRIES
        opened = stores.from_url(address, retry_config=retries, client_options=options)
        return Bucket(address.rstrip("/"), opened, hurried)
    except (BaseError, ValueError) as error:
        expected = f"expected an address such as {scheme}://bucket/prefix"
        raise UserError(Problem("--store", expected, f"'{address}'", hint=_first_line(error))) from error


_memories: dict[str, Any] = {}
"""What the addresses memory://NAME of this process hold."""


def check(objects: Objects, *, write: bool) -> None:
    """Raise `UserError` where objects cannot be listed or, to `write`, where conditions are not heeded.

    A server that takes no notice of a condition would let two processes hold one lease.
    """
    next(iter(objects.list(MARKER)), None)
    if not write:
        return
    name, content = f"{MARKER}/format-1", b"A store of bdtune.\n"
    objects.put_if_absent(name, content)
    if objects.put_if_absent(name, b"another") is not None:
        raise _careless(objects, "If-None-Match")
    if objects.put_if_match(name, b"another", NO_TAG) is not None:
        raise _careless(objects, "If-Match")


def _careless(objects: Objects, header: str) -> UserError:
    expected = f"expected a server that heeds {header} on PUT, which leases rest on"
    return UserError(Problem("--store", expected, objects.address, hint="Update it, or use another one"))


def _tag(meta: Mapping[str, Any]) -> Tag:
    return meta["e_tag"], meta["version"]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
