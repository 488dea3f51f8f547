"""LockOwner: the process that holds a lock file, and whether it still lives."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from uuid import uuid4

_PROC = Path("/proc")


@dataclass(frozen=True)
class LockOwner:
    """What a lock file says about the process that made it.

    Attributes:
        token: tells this lock from any other.
        host: the name of the machine.
        machine: the machine since its last start, and the namespace of its process ids.
        pid: the process.
        started: when the process started, in ticks of the machine; "" where it is not known.
        since: when the lock was taken, as text.
        path: the lock file, as the process names it.
        run_id: the run, once it is known.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: str
    since: str
    path: str
    run_id: str | None = None

    @classmethod
    def this_process(cls, path: Path) -> LockOwner:
        """This process as the owner of the lock file ``path``."""
        return cls(
            token=uuid4().hex,
            host=socket.gethostname(),
            machine=this_machine(),
            pid=os.getpid(),
            started=_start_of(os.getpid()),
            since=datetime.now().astimezone().isoformat(timespec="seconds"),
            path=str(path.resolve()),
        )

    @classmethod
    def read(cls, path: Path) -> LockOwner | None:
        """The owner in a lock file; ``None`` if it has not written itself there, or not wholly.

        Raises:
            OSError: the file cannot be read, or is gone.
        """
        text = path.read_bytes()
        try:
            content = json.loads(text)
            owner = cls(**content)
        except (ValueError, TypeError, RecursionError):
            return None
        kinds = {"pid": int, "run_id": (str, type(None))}
        is_valid = all(isinstance(v, kinds.get(k, str)) for k, v in content.items())  # type: ignore[arg-type]
        return owner if is_valid else None

    def text(self) -> bytes:
        """The content of the lock file."""
        return json.dumps(asdict(self)).encode()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host!r}, since {self.since}"

    @property
    def is_on_this_machine(self) -> bool:
        """Whether the process would be found here if it lived."""
        return self.machine == this_machine()

    def lives_here(self, path: Path) -> bool:
        """Whether the process lives on this machine and has made the lock file ``path``.

        In a copied folder it has not: its own lock file is another one.
        """
        with suppress(OSError, ValueError):
            return _is_running(self.pid, self.started) and os.path.samefile(self.path, path)
        return False


def this_machine() -> str:
    """The machine since its last start, and the namespace of process ids; else the host's name."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _start_of(pid: int) -> str:
    """When a process started, in ticks; "" if it is not known, or the process has ended."""
    try:
        # the name of the program, in parentheses, may contain anything
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    has_ended = fields[0] in "ZX"  # its parent has not asked for it yet
    return "" if has_ended else fields[19]


def _is_running(pid: int, started: str) -> bool:
    if started:
        return _start_of(pid) == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # of another user
    return True
