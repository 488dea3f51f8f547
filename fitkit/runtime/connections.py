"""The sockets of this process, found and ended from outside the library that owns them."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path


def opened() -> dict[int, str]:
    """The sockets of this process: descriptor and identity; empty where there is no ``/proc``."""
    found = {}
    folder = Path("/proc/self/fd")
    for name in os.listdir(folder) if folder.is_dir() else ():
        try:
            target = os.readlink(folder / name)
        except OSError:  # the listing's own descriptor
            continue
        if target.startswith("socket:"):
            found[int(name)] = target
    return found


def opened_since(before: Mapping[int, str]) -> dict[int, str]:
    """The sockets that were opened after ``opened`` returned ``before``."""
    return {one: name for one, name in opened().items() if before.get(one) != name}


def shut_down(sockets: Mapping[int, str]) -> None:
    """End connections that are still those that were opened; torch keeps them for its own time."""
    now = opened()
    for descriptor, name in sockets.items():
        if now.get(descriptor) != name:
            continue
        with socket.socket(fileno=os.dup(descriptor)) as one:
            if not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):  # gloo still listens
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:  # the other side was faster
                    continue
