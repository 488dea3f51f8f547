"""Finds and closes the sockets that torch's process groups opened."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path


def open_sockets() -> dict[int, str]:
    """The sockets of this process: inode by file descriptor; empty where there is no ``/proc``."""
    sockets = {}
    folder = Path("/proc/self/fd")
    for name in os.listdir(folder) if folder.is_dir() else ():
        try:
            target = os.readlink(folder / name)
        except OSError:  # the descriptor of the listing itself
            continue
        if target.startswith("socket:"):
            sockets[int(name)] = target
    return sockets


def sockets_opened_since(before: Mapping[int, str]) -> dict[int, str]:
    """The sockets opened since ``open_sockets`` returned ``before``."""
    return {fd: inode for fd, inode in open_sockets().items() if before.get(fd) != inode}


def are_open(sockets: Mapping[int, str]) -> bool:
    """Whether all of ``sockets`` are still open: gloo closes a connection that is broken."""
    current = open_sockets()
    return all(current.get(fd) == inode for fd, inode in sockets.items())


def shut_down(sockets: Mapping[int, str]) -> None:
    """Shut down the connections that are still open; torch keeps them until the process ends."""
    current = open_sockets()
    for fd, inode in sockets.items():
        if current.get(fd) != inode:
            continue
        try:
            copy = os.dup(fd)
        except OSError:  # gloo has just closed it
            continue
        with socket.socket(fileno=copy) as connection:
            # gloo's listening socket stays open
            if not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:  # the other side closed it first
                    continue
