"""NetworkPolicies that are enforced: kube-router's firewall beside a node (node.py), as a process of this machine.

    with PolicyEnforcer(node):
        ...

It writes iptables rules and ipsets for the addresses of the node's pods. One at a time on a machine: its chains have fixed names.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Self

from tests.cluster.build import binary
from tests.cluster.machine import run

if TYPE_CHECKING:
    from tests.cluster.node import Node

_CHAIN = re.compile(r"KUBE-(ROUTER|NWPLCY|POD-FW)-")
_SETS = ("KUBE-SRC-", "KUBE-DST-")


class PolicyEnforcer:
    """Enforces the NetworkPolicies of a node's cluster for the pods on it, inside `with`."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def __enter__(self) -> Self:
        remove_rules()
        self._node.processes.start("kube-router", [
            binary("kube-router"), "--run-firewall=true", "--run-router=false", "--run-service-proxy=false", "--health-port=0", "--metrics-port=0",
            f"--kubeconfig={self._node.cluster.kubeconfig()}", f"--hostname-override={self._node.name}"])
        self._node.processes.wait("kube-router", lambda: any("-j KUBE-ROUTER-FORWARD" in rule for rule in _rules()), 60)
        return self

    def __exit__(self, *_: object) -> None:
        self._node.processes.stop("kube-router")
        remove_rules()


def can_enforce() -> bool:
    """Whether this machine's kernel has ipsets."""
    return run("ipset", "list", "-name", check=False).returncode == 0


def remove_rules() -> None:
    """What it leaves behind when it ends, and what a killed session left."""
    rules = _rules()
    for rule in rules:
        words = shlex.split(rule)
        if words[0] == "-A" and not _CHAIN.match(words[1]) and any(_CHAIN.match(word) for word in words):
            run("iptables", "-w", "-D", *words[1:], check=False)
    chains = [rule.split()[1] for rule in rules if rule.startswith("-N ") and _CHAIN.match(rule.split()[1])]
    for option in ("--flush", "--delete-chain"):
        for chain in chains:
            run("iptables", "-w", option, chain, check=False)
    for name in run("ipset", "list", "-name", check=False).stdout.split():
        if name.startswith(_SETS):
            run("ipset", "destroy", name, check=False)


def _rules() -> list[str]:
    return run("iptables", "-w", "-S", check=False).stdout.splitlines()
