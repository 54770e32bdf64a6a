"""What makes each Ray node of a test a machine of its own: a host name, and folders that it does not see."""

import errno
import os
import socket
import sys

HIDDEN = os.environ.get("NODE_HIDDEN", "")
EVENTS = {"open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove"}
_stat = os.stat


def _hide(path):
    if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(HIDDEN):
        raise FileNotFoundError(errno.ENOENT, "hidden from this node", os.fspath(path))


def _stat_of_what_is_seen(path, *args, **more):
    _hide(path)
    return _stat(path, *args, **more)


if os.environ.get("NODE_NAME"):
    socket.gethostname = lambda: os.environ["NODE_NAME"]
if HIDDEN:
    os.stat = _stat_of_what_is_seen
    sys.addaudithook(lambda event, args: _hide(args[0]) if event in EVENTS else None)
