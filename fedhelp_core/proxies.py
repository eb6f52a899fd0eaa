"""Which proxy leads to an address, by $HTTP_PROXY, $HTTPS_PROXY and $NO_PROXY: one rule for every client of FedHelp.

Called by the store, MLflow, teachers, Kubernetes, Kubeflow, the Pushgateway and the doctor's clock, whose libraries each read
$NO_PROXY in their own way. A comma (or blank) separates its entries; the names may be written in lower case too:

    *                         no proxy at all
    hub.example, .example     this name and every name below it (a leading "*." or "." says the same)
    10.0.0.0/8, fd00::/8      addresses in this range; names are not looked up for it
    10.1.2.3, [fd00::1]       this address
    hub.example:9000          any of these, at this port alone

A pod's own Kubernetes API server ($KUBERNETES_SERVICE_HOST) is asked directly, whatever the variables say.
"""

from __future__ import annotations

import ipaddress
import os
import re
import urllib.request
from collections.abc import Mapping
from urllib.parse import urlsplit

_PORTS = {"http": 80, "https": 443}


def proxy_for(url: str) -> str | None:
    """The URL of the proxy that leads to `url`; None where there is none, or $NO_PROXY names the host.

    Raises:
        ValueError: `url` is no address.
    """
    parts = urlsplit(url)
    found = urllib.request.getproxies_environment().get(parts.scheme)
    if not found or is_direct(url):
        return None
    return found if "://" in found else f"http://{found}"


def proxies_for(url: str) -> dict[str, str]:
    """`proxy_for` as scheme -> proxy, as most libraries take it; empty where there is none."""
    proxy = proxy_for(url)
    return {} if proxy is None else {urlsplit(url).scheme: proxy}


def is_direct(url: str) -> bool:
    """Whether $NO_PROXY names the host of `url`."""
    parts = urlsplit(url)
    host, port = (parts.hostname or "").rstrip("."), parts.port or _PORTS.get(parts.scheme)
    if host and host == os.environ.get("KUBERNETES_SERVICE_HOST", "").strip("[]"):
        return True
    return any(_names(entry, host, port) for entry in _entries(os.environ))


def tell_libraries(url: str) -> None:
    """Put the host of `url` into $NO_PROXY where the rule above says so: for libraries that take no proxy but the environment's."""
    host = urlsplit(url).hostname
    if host and is_direct(url) and host not in _entries(os.environ):
        listed = ",".join([*_entries(os.environ), host])
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = listed


def opener_for(url: str, *handlers: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
    """What opens `url` for urllib, through its proxy or directly."""
    return urllib.request.build_opener(urllib.request.ProxyHandler(proxies_for(url)), *handlers)


def _entries(environment: Mapping[str, str]) -> list[str]:
    listed = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    return [entry for entry in re.split(r"[,\s]+", listed.lower()) if entry]


def _names(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    name, own_port = _split_port(entry)
    if own_port is not None and own_port != port:
        return False
    address = _address(host)
    if address is None:
        name = name.removeprefix("*").lstrip(".").rstrip(".")
        return bool(name) and (host == name or host.endswith(f".{name}"))
    try:
        return address in ipaddress.ip_network(name, strict=False)
    except ValueError:  # a name
        return False


def _split_port(entry: str) -> tuple[str, int | None]:
    """'host:9000' -> ('host', 9000); '[fd00::1]:9000' -> ('fd00::1', 9000); an IPv6 address without brackets has no port."""
    match = re.fullmatch(r"\[([^\]]+)\](?::(\d+))?|([^:]+):(\d+)", entry)
    if match is None:
        return entry, None
    name, port = match[1] or match[3], match[2] or match[4]
    return name, int(port) if port else None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
