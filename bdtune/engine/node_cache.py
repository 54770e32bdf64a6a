"""A node's copies of what lies in a bucket: files by the SHA-256 of their content, within a bound.

All processes of the node share the folder. A copy is read whole and right or not at all, so nothing that
happens here can change a result.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from bdtune.engine.owner import beside, clear_unfinished

DEFAULT_GB = 20.0


def node_folder(name: str) -> Path:
    """Return where this node keeps something: below BDTUNE_CACHE, by default bdtune in the user's cache."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("BDTUNE_CACHE") or user / "bdtune") / name


class NodeCache:
    """At most `most_bytes` of copies, those used last; other processes' writes count once they are seen."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder, self.most_bytes = folder, most_bytes
        self._size: int | None = None  # unknown before the first look
        self._verified: set[str] = set()

    @classmethod
    def of_this_node(cls) -> NodeCache:
        """Return the cache `objects` among what this node keeps; BDTUNE_CACHE_GB bounds it."""
        return cls(node_folder("objects"), int(float(os.environ.get("BDTUNE_CACHE_GB") or DEFAULT_GB) * 1e9))

    def get(self, digest: str, size: int) -> bytes | None:
        """Return the content with this digest and size, or None; a damaged copy is removed."""
        path = self._path(digest)
        try:
            content = path.read_bytes()
            os.utime(path)  # used now
        except OSError:
            return None
        known = digest in self._verified or hashlib.sha256(content).hexdigest() == digest
        if not known or len(content) != size:
            path.unlink(missing_ok=True)
            return None
        self._verified.add(digest)
        return content

    def put(self, content: bytes) -> None:
        """Keep a copy, unless there is no room on the disk."""
        path = self._path(hashlib.sha256(content).hexdigest())
        if len(content) > self.most_bytes or path.exists():
            return
        temporary = beside(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError:
            return
        finally:
            with suppress(OSError):
                temporary.unlink()
        if self._size is not None:
            self._size += len(content)
        if self._size is None or self._size > self.most_bytes:
            self._trim()

    def _trim(self) -> None:
        """Remove the copies that were used longest ago until the rest is within the bound."""
        clear_unfinished(self.folder.glob("??"))
        copies = []
        for path in self.folder.glob("??/[!.]*"):
            with suppress(OSError):  # another process was faster
                status = path.stat()
                copies.append((status.st_mtime, status.st_size, path))
        size = sum(each[1] for each in copies)
        for _, bytes_, path in sorted(copies):
            if size <= self.most_bytes:
                break
            path.unlink(missing_ok=True)
            self._verified.discard(path.name)
            size -= bytes_
        self._size = size

    def _path(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest
