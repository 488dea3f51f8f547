from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from fitkit.distributed import group_sockets

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")


@pytest.fixture
def pair():
    """Two connected sockets, closed at the end."""
    one, other = socket.socketpair()
    other.settimeout(5)
    yield one, other
    one.close()
    other.close()


def test_sockets_are_found_and_nothing_else(pair, tmp_path):
    with (tmp_path / "file").open("w") as file:
        found = group_sockets.open_sockets()
        assert {one.fileno() for one in pair} <= set(found)
        assert file.fileno() not in found
        assert all(name.startswith("socket:") for name in found.values())


def test_those_that_were_opened_since(pair):
    before = group_sockets.open_sockets()
    assert group_sockets.sockets_opened_since(before) == {}
    with socket.socket() as one:
        assert list(group_sockets.sockets_opened_since(before)) == [one.fileno()]


def test_a_connection_that_gloo_has_closed_is_found():
    one, other = socket.socketpair()
    opened = {one.fileno(): group_sockets.open_sockets()[one.fileno()]}
    with other:
        assert group_sockets.are_open(opened)
        one.close()
        assert not group_sockets.are_open(opened)
        with socket.socket():  # most likely with the same number
            assert not group_sockets.are_open(opened)


def test_whoever_waits_at_the_other_end_hears_of_it(pair):
    one, other = pair
    group_sockets.shut_down({one.fileno(): group_sockets.open_sockets()[one.fileno()]})
    assert other.recv(1) == b""
    assert one.fileno() in group_sockets.open_sockets()  # its owner may still close it


def test_a_descriptor_that_is_something_else_by_now_is_left_alone(pair):
    one, other = pair
    group_sockets.shut_down({one.fileno(): "socket:[0]"})
    one.sendall(b"x")
    assert other.recv(1) == b"x"


def test_a_descriptor_that_is_gone_is_left_alone():
    one, other = socket.socketpair()
    remembered = group_sockets.open_sockets()
    one.close()
    other.close()
    group_sockets.shut_down(
        {number: remembered[number] for number in (one.fileno(),) if number > 0}
    )
    group_sockets.shut_down(dict.fromkeys((10_000,), "socket:[1]"))


def test_who_listens_goes_on_listening():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        server.listen()
        group_sockets.shut_down({server.fileno(): group_sockets.open_sockets()[server.fileno()]})
        with socket.create_connection(server.getsockname(), timeout=5):
            pass


def test_an_end_that_has_gone_already_is_no_error():
    server = socket.create_server(("localhost", 0))
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    accepted.close()  # resets the connection
    group_sockets.shut_down({client.fileno(): group_sockets.open_sockets()[client.fileno()]})
    client.close()
    server.close()


def test_nothing_is_left_open(pair):
    one, _ = pair
    before = set(os.listdir("/proc/self/fd"))
    group_sockets.shut_down({one.fileno(): group_sockets.open_sockets()[one.fileno()]})
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_socket_that_is_closed_meanwhile_is_left_out(monkeypatch):
    """By a thread of gloo, between the listing and the shutdown."""
    one, other = socket.socketpair()
    with other:
        found = group_sockets.open_sockets()
        monkeypatch.setattr(group_sockets, "open_sockets", lambda: found)
        fd = one.fileno()
        one.close()
        group_sockets.shut_down({fd: found[fd]})
        assert other.recv(1) == b""
