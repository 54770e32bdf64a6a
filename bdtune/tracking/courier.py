"""The courier: carries an outbox's pending events to a store, in order, and remembers how far it came."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bdtune.errors import BdtuneError
from bdtune.tracking.deliver import REFUSED, Delivery, connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from bdtune.tracking.outbox import Entry, Outbox
    from bdtune.tracking.store import Store

log = logging.getLogger("bdtune.tracking")

BATCH = 20  # events between two notes of how far the store has been told


class UnreachableError(BdtuneError):
    """The MLflow server does not answer; the outbox keeps everything."""


class Courier:
    """Delivers one sweep's outbox to one store; at most one process does at a time."""

    def __init__(self, outbox: Outbox, store: Store, sweep: str) -> None:
        self.outbox = outbox
        self.store = store
        self.sweep = sweep
        self._client: MlflowClient | None = None
        self._delivery: Delivery | None = None

    def has_pending(self) -> bool:
        """Return whether the store lacks anything; does not import mlflow."""
        return self.outbox.has_pending(self.store.key) or (
            not self.store.exists and self.outbox.counts.total() > 0
        )

    def round(self) -> int:
        """Deliver all that is pending and return how many events; 0 when another process does it.

        Raises `UnreachableError` at once for a server that is down, and else what MLflow raises.
        """
        if not self.has_pending() or not self.outbox.claim():
            return 0
        if reason := self.store.unreachable():
            raise UnreachableError(reason)
        if not self.store.exists:
            self.outbox.delivered(self.store.key, 0)  # the file was removed: tell everything again
            self._client = self._delivery = None
        self.outbox.sync()
        count = 0
        while entries := self.outbox.pending(self.store.key, BATCH):
            self._carry(entries)
            count += len(entries)
        return count

    def _carry(self, entries: list[Entry]) -> None:
        delivery = self._connected()
        from mlflow.exceptions import MlflowException

        for entry in entries:
            try:
                delivery.deliver(entry)
            except MlflowException as error:
                if error.error_code not in REFUSED:
                    raise
                log.warning("MLflow refuses %s %s: %s", entry.event, entry.subject, error)
                self.outbox.rejected(entry, str(error))
        self.outbox.delivered(self.store.key, entries[-1].end)

    def _connected(self) -> Delivery:
        self._client = self._client or connect(self.store)
        if self._delivery is None:
            self._delivery = Delivery(self._client, self.store, self.sweep, self.outbox.name())
        return self._delivery

    def forget(self) -> None:
        """Forget which runs the store has, after a failure that may have left more than is known here."""
        self._delivery = None

    def release(self) -> None:
        """Let another process deliver."""
        self.forget()
        self.outbox.release()
