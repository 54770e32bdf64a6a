"""Where the MLflow store is: the run directory's own SQLite file, or the address in MLFLOW_TRACKING_URI."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from pathlib import Path

DATABASE = "mlflow.db"
REACH_S = 3.0  # how long a server may take to accept a connection before it counts as down


@dataclass(frozen=True)
class TrackingStore:
    """An MLflow store as seen from one run directory (an absolute path)."""

    run_dir: Path
    uri: str

    @classmethod
    def of(cls, run_dir: Path, tracking_uri: str | None = None) -> TrackingStore:
        """Return the store to use: the one given, else MLFLOW_TRACKING_URI, else the run directory's file."""
        run_dir = run_dir.resolve()
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run_dir / DATABASE}"
        return cls(run_dir, uri)

    @property
    def own(self) -> bool:
        """Whether this is the run directory's own SQLite file."""
        return self.database == self.run_dir / DATABASE

    @property
    def database(self) -> Path | None:
        """The SQLite file, None for a server or another database; relative addresses count from here."""
        if not self.uri.startswith("sqlite:///"):
            return None
        return (self.run_dir.__class__.cwd() / self.uri.removeprefix("sqlite:///")).absolute()

    @property
    def key(self) -> str:
        """The store's name for people and in files: its address without a password."""
        return re.sub(r"//[^/@]*@", "//", self.uri)

    @property
    def exists(self) -> bool:
        """True if there is a database to open; a server is assumed to have one."""
        return self.database is None or self.database.exists()

    def artifact_location(self, study: str) -> str | None:
        """Return where a study's files go: beside a local database, else None: the server decides."""
        if self.database is None:
            return None
        folder = re.sub(r"[^\w.-]", "_", study).strip(".") or "study"
        return (self.run_dir / "artifacts" / folder).as_uri()

    def unreachable(self) -> str | None:
        """Return why a server cannot be reached, None when it can or when there is none to ask."""
        parts = urlsplit(self.uri)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return None
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            with socket.create_connection((parts.hostname, port), timeout=REACH_S):
                return None
        except OSError as error:
            return f"{self.key}: {error.strerror or error}"
