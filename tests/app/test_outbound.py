"""Requests to strangers: only to public addresses, and to the very address that was checked."""

import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from app import outbound
from app.outbound import BadUrl, Undeliverable, check_url, is_public, post
from tests.receiver import Receiver

NOT_PUBLIC = [
    "0.0.0.0",
    "10.1.2.3",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.0.1",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.192",
    "192.168.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "2002:7f00:1::",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "fd00:ec2::254",
    "fe80::1",
    "ff02::1",
]


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_what_is_not_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))
    host = f"[{text}]" if ":" in text else text
    with pytest.raises(BadUrl, match="not a public one"):
        check_url(f"https://{host}:8443/hook", allow_private=False)
    check_url(f"https://{host}:8443/hook", allow_private=True)


@pytest.mark.parametrize("text", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_what_is_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@given(st.ip_addresses(v=4))
def test_an_address_inside_another_counts(inner: ipaddress.IPv4Address) -> None:
    for outer in (f"::ffff:{inner}", f"64:ff9b::{inner}"):
        assert not is_public(ipaddress.ip_address(outer)) or is_public(inner)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://example.com/",
        "file:///etc/passwd",
        "example.com",
        "https://",
        "https://user:password@example.com/",
        "https://example.com/#there",
        "https://example.com:99999/",
        "https://example.com:0/",
        "https://exämple.com/",
        "https://example.com/ two",
        "https://example.com/\r\nx: y",
        "https://[::1/",
        "https://example.com/" + "x" * 2_048,
    ],
)
def test_urls_that_cannot_be(url: str) -> None:
    with pytest.raises(BadUrl):
        check_url(url, allow_private=True)


def resolve_as(monkeypatch: pytest.MonkeyPatch, answers: list[list[str]]) -> list[str]:
    """Names become the addresses of the next answer; the names that were asked for."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *rest: Any, **options: Any) -> Any:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            asked.append(host)
            found = answers[min(len(asked), len(answers)) - 1]
            return [entry for address in found for entry in real(address, port, *rest, **options)]
        return real(host, port, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a_name_is_resolved_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A name server that answers otherwise the second time leads nowhere."""
    with Receiver(tmp_path / "receiver", []) as receiver:
        asked = resolve_as(monkeypatch, [["127.0.0.1"], ["192.0.2.1"]])
        url = f"http://hooks.example:{receiver.port}/a?b=c"
        assert post(url, b"{}", {"x-one": "1"}, allow_private=True) == 200
        (request,) = receiver.received
    assert asked == ["hooks.example"]
    assert request.path == "/a?b=c"
    assert request.headers["host"] == f"hooks.example:{receiver.port}"
    assert (request.headers["x-one"], request.body) == ("1", "{}")


def test_of_several_addresses_a_public_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[str] = []

    def connect(address: str, port: int) -> socket.socket:
        connected.append(address)
        raise ConnectionRefusedError("nobody there")

    resolve_as(monkeypatch, [["127.0.0.1", "93.184.216.34"]])
    monkeypatch.setattr(outbound, "_connect", connect)
    with pytest.raises(Undeliverable, match="nobody there"):
        post("http://hooks.example/", b"", {}, allow_private=False)
    assert connected == ["93.184.216.34"]


@pytest.mark.parametrize("host", ["localhost", "127.1", "2130706433", "hooks.example"])
def test_private_targets_are_not_connected_to(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if host == "hooks.example":
        resolve_as(monkeypatch, [["10.0.0.1", "169.254.169.254"]])
    monkeypatch.setattr(outbound, "_connect", lambda *address: pytest.fail(f"connected to {address}"))
    with pytest.raises(Undeliverable, match="no public address"):
        post(f"http://{host}:9/", b"", {}, allow_private=False)


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    with Receiver(tmp_path / "receiver", [302]) as receiver:
        assert post(receiver.url, b"", {}, allow_private=True) == 302
        assert len(receiver.received) == 1


@contextmanager
def serving(answer: Any) -> Iterator[int]:
    """A server for one connection, which `answer` is called with; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(server.getsockname()[1])
        thread.join()


def test_a_peer_that_dawdles_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends a byte of a status line now and then, for ever."""
    monkeypatch.setattr(outbound, "TOTAL_SECONDS", 0.3)
    left = threading.Event()

    def dawdle(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 ")
        try:
            while not left.wait(0.02):
                connection.sendall(b"x")
        except OSError:
            left.set()

    with serving(dawdle) as port, pytest.raises(Undeliverable):
        post(f"http://127.0.0.1:{port}/", b"", {}, allow_private=True)
    assert left.is_set()


def test_what_is_no_http(monkeypatch: pytest.MonkeyPatch) -> None:
    def greet(connection: socket.socket) -> None:
        connection.recv(10_000)
        connection.sendall(b"220 mail.example ESMTP\r\n")

    with serving(greet) as port, pytest.raises(Undeliverable):
        post(f"http://127.0.0.1:{port}/", b"", {}, allow_private=True)


@pytest.mark.parametrize(("name", "is_trusted"), [("hooks.example", True), ("other.example", False)])
def test_tls_is_with_the_name(name: str, is_trusted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connected to an address, but the certificate must be the name's, and the server hears the name."""
    authority = trustme.CA()
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    monkeypatch.setattr(outbound, "_tls", lambda: ours)
    resolve_as(monkeypatch, [["127.0.0.1"]])
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(theirs)
    heard: list[str] = []
    theirs.sni_callback = lambda sock, server_name, context: heard.append(server_name)

    def answer(connection: socket.socket) -> None:
        try:
            with theirs.wrap_socket(connection, server_side=True) as secure:
                secure.recv(10_000)
                secure.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        except ssl.SSLError:
            pass

    with serving(answer) as port:
        url = f"https://hooks.example:{port}/"
        if is_trusted:
            assert post(url, b"", {}, allow_private=True) == 204
        else:
            with pytest.raises(Undeliverable, match="certificate"):
                post(url, b"", {}, allow_private=True)
    assert heard == ["hooks.example"]
