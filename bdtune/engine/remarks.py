"""Remarks: what a running stage has to say beside its result, from wherever in its code it is noticed."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Listener = Callable[[str, Mapping[str, Any]], None]
    """Takes a remark's text, and what the stage's result gets into its info."""

MICRO_BATCH = "micro_batch"
"""In the info of a result for which memory ran out: how many images passed at once in the end."""

log = logging.getLogger(__name__)

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def remark(text: str, **info: Any) -> None:
    """Say something about the stage that is running; `info` becomes part of its result's info.

    Outside of an executor, as in a stage that is called as a function, the text is logged.
    """
    listener = _listener.get()
    if listener is None:
        log.warning("%s", text)
    else:
        listener(text, info)


@contextmanager
def heard(listener: Listener) -> Iterator[None]:
    """Hand remarks inside the block to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
