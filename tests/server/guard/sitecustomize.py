"""For the programs that tests start: any connection beyond loopback is an error."""

import ipaddress
import socket
from typing import Any

_connect, _lookup = socket.socket.connect, socket.getaddrinfo


def connect(self: socket.socket, address: Any) -> None:
    """Connect, on this machine."""
    if self.family in (socket.AF_INET, socket.AF_INET6) and not ipaddress.ip_address(address[0]).is_loopback:
        raise AssertionError(f"A packet to {address} was about to leave.")
    _connect(self, address)


def lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
    """Look up the names of this machine, and numbers, which need no look-up."""
    flags = kwargs.get("flags", args[4] if len(args) > 4 else 0)
    if not flags & socket.AI_NUMERICHOST and host not in ("localhost", "127.0.0.1", "::1", None):
        raise AssertionError(f"The name {host} was about to be looked up.")
    return _lookup(host, *args, **kwargs)


if __name__ == "sitecustomize":
    socket.socket.connect, socket.getaddrinfo = connect, lookup  # type: ignore[method-assign]
