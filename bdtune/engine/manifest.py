"""The manifest: what an entry of the store says of itself, written last, checked whenever it is read."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from bdtune.engine.environment import environment
from bdtune.engine.key import canonical_json
from bdtune.engine.node_cache import Moved

FORMAT = 1
MANIFEST = "manifest.json"
"""The file of an entry that holds its manifest."""


@cache
def git_commit() -> str:
    """Return the commit of the code that runs, with "+" when files differ from it; "" outside git."""
    if "BDTUNE_COMMIT" in os.environ:
        return os.environ["BDTUNE_COMMIT"]
    folder = Path(__file__).parent
    try:
        # the file must belong to the checkout: an environment may lie inside someone else's project
        _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(folder, "status", "--porcelain", "--", str(folder)) else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    return done.stdout.strip()


@dataclass(frozen=True)
class Cost:
    """What computing an artefact took."""

    seconds: float
    peak_host_bytes: int  # of the whole process, so an upper bound for one stage
    peak_device_bytes: int = 0
    fetched_bytes: int = 0
    """Of the results that it read, those that came from a bucket."""
    served_bytes: int = 0
    """Of these, those that the node had copies of."""
    together: int = 1
    """Stages that were computed as one; seconds are this one's share."""

    @classmethod
    def measured(cls, seconds: float, moved: Moved | None = None, together: int = 1) -> Cost:
        """Return the cost of a stage that just ran for `seconds` in this process, and what it read."""
        moved = moved or Moved()
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        torch: Any = sys.modules.get("torch")  # the engine does not load torch; a stage may have
        on_device = torch is not None and torch.cuda.is_available()
        device = torch.cuda.max_memory_allocated() if on_device else 0
        return cls(seconds, host, device, moved.fetched, moved.served, together)


@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 of one payload file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Dropped:
    """Files of an entry that were removed on purpose, and what they must be when they come back."""

    files: dict[str, FileEntry]
    by: str
    """What asked for it: "sweep 'gssd' (weights_gb=20)"."""
    at: str


@dataclass(frozen=True)
class Manifest:
    """Everything about a stored artefact but its arrays."""

    key: str
    stage: str  # its full name, with who owns it
    kind: str
    preimage: dict[str, Any]
    digest: str  # of the content: what derived stages enter later keys by
    info: dict[str, Any]
    files: dict[str, FileEntry]
    cost: Cost
    made_for: str = ""
    """The trial that computed it, as `sweep/trial`: all others shared it."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    host: str = field(default_factory=socket.gethostname)
    commit: str = field(default_factory=git_commit)
    environment: dict[str, str] = field(default_factory=environment)
    """Versions, processor and threads; empty in what an earlier version wrote."""
    dropped: Dropped | None = None
    """What is not in the store any more; all else in the manifest is as it was published."""
    format: int = FORMAT

    @property
    def name(self) -> str:
        """The stage's own name."""
        return self.stage.rpartition(".")[2]

    @property
    def size(self) -> int:
        """Size of the result in bytes, with what was dropped of it."""
        return self.stored + (_size(self.dropped.files) if self.dropped else 0)

    @property
    def stored(self) -> int:
        """Bytes of it that lie in the store."""
        return _size(self.files)

    def without(self, name: str, by: str) -> Manifest:
        """Return the manifest of an entry of which a file is dropped, `by` what asks for it."""
        rest = {each: entry for each, entry in self.files.items() if each != name}
        at = datetime.now(UTC).isoformat(timespec="seconds")
        return replace(self, files=rest, dropped=Dropped({name: self.files[name]}, by, at))

    def to_json(self) -> bytes:
        """Return the file's content, with a checksum over all else."""
        body = asdict(self)
        if self.dropped is None:
            del body["dropped"]
        return json.dumps({**body, "checksum": _checksum(body)}, indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Manifest:
        """Read a manifest; raises `ValueError` when it is torn, altered or of another format."""
        try:
            body = json.loads(content)
            if body.pop("checksum", None) != _checksum(body) or body["format"] != FORMAT:
                raise ValueError("checksum or format differs")
            body.setdefault("environment", {})
            dropped = body.pop("dropped", None)
            if dropped is not None:
                dropped = Dropped(**{**dropped, "files": _files(dropped["files"])})
            files, cost = _files(body.pop("files")), Cost(**body.pop("cost"))
            return cls(files=files, cost=cost, dropped=dropped, **body)
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise ValueError(f"not a manifest: {error}") from error


def _files(raw: dict[str, dict[str, Any]]) -> dict[str, FileEntry]:
    return {name: FileEntry(**entry) for name, entry in raw.items()}


def _size(files: dict[str, FileEntry]) -> int:
    return sum(file.bytes for file in files.values())


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()
