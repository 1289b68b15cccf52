"""Requests to addresses that users name: never to our own network, unless that is allowed.

The standard library's client is all that is needed, and lets us say which address it talks to: a name is
resolved once, the addresses are checked, and the connection goes to a checked one. A library that resolves
the name again by itself could be sent elsewhere by the second answer. There are no redirects and no proxies.
"""

import http.client
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from urllib.parse import SplitResult, urlsplit

MAX_URL_CHARS = 2_048
TOTAL_SECONDS = 10.0  # of a request, from the connection to the status line
_STEP_SECONDS = 5.0  # of a connection, or between two bytes

_URL = re.compile(rf"[\x21-\x7e]{{1,{MAX_URL_CHARS}}}", re.ASCII)
_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# What the standard library of some supported Python takes for public, or all of them.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's host: a metadata service at a public address
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata service among them
        "64:ff9b:1::/48",  # NAT64 of one's own
    )
)

_IP = ipaddress.IPv4Address | ipaddress.IPv6Address


class BadUrl(Exception):
    """Nothing can be sent to this URL; the message says why."""


class Undeliverable(Exception):
    """No answer came; the message says why."""


def check_url(url: str, *, allow_private: bool) -> None:
    """Raises BadUrl for what can be seen without asking anyone what the host's name stands for."""
    host = _split(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return  # a name
    if not allow_private and not is_public(address):
        raise BadUrl(f"The address {host} is not a public one.")


def post(url: str, body: bytes, headers: Mapping[str, str], *, allow_private: bool) -> int:
    """The status code of the answer; the rest of it is not read. Raises BadUrl and Undeliverable."""
    parts = _split(url)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    try:
        sock = _connect(_resolve(host, port, allow_private), port)
        if parts.scheme == "https":
            sock = _tls().wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        with sock, _cut_after(TOTAL_SECONDS, sock):
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            connection = http.client.HTTPConnection(host, port)
            connection.sock = sock
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", target, body, {"host": parts.netloc, **headers})
            return connection.getresponse().status
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise Undeliverable(str(error) or type(error).__name__) from error


def is_public(address: _IP) -> bool:
    """Whether `address`, and the IPv4 address inside it if it has one, belongs to the public internet."""
    inner = _inner_address(address)
    if inner is not None and not is_public(inner):
        return False
    is_excepted = any(address in network for network in _NOT_PUBLIC)
    return address.is_global and not address.is_multicast and not is_excepted


def _inner_address(address: _IP) -> ipaddress.IPv4Address | None:
    """Where a gateway or the kernel would send what goes to an IPv6 address of these kinds."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        has_port = parts.port != 0  # reading it checks it
    except ValueError as error:
        raise BadUrl(f"The URL cannot be understood: {error}.") from error
    if not _URL.fullmatch(url) or parts.scheme not in _PORTS or not parts.hostname or not has_port:
        raise BadUrl(f"Give an http or https URL of up to {MAX_URL_CHARS} visible ASCII characters.")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise BadUrl("The URL may hold no user name, password or fragment.")
    return parts


def _resolve(host: str, port: int, allow_private: bool) -> str:
    """An address of `host` that may be connected to."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(str(sockaddr[0])) for *_, sockaddr in found]
    allowed = [address for address in addresses if allow_private or is_public(address)]
    if not allowed:
        raise Undeliverable(f"the host {host} has no public address")
    return str(allowed[0])


def _connect(address: str, port: int) -> socket.socket:
    return socket.create_connection((address, port), timeout=_STEP_SECONDS)


@contextmanager
def _cut_after(seconds: float, sock: socket.socket) -> Iterator[None]:
    """End the connection after so long: a peer that sends a byte now and then must not keep us for ever."""
    timer = threading.Timer(seconds, _cut, [sock])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _cut(sock: socket.socket) -> None:
    with suppress(OSError):  # it may have ended by itself
        sock.shutdown(socket.SHUT_RDWR)


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
