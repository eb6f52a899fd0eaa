"""What carries a request into a silo: one object in a cluster, and how to read it. Implemented by kubernetes.py and manifestwork.py.

create_and_delete.py and remote.py start and follow objects through this, plan.py and preflight.py make them only, `fedhelp jobs` reads them only.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from fedhelp_core.config.dispatch import DISPATCH_KINDS, SiloEntry
from fedhelp_dispatch.job import Object
from fedhelp_dispatch.lifecycle import Event
from fedhelp_dispatch.reading import JobReading, read_job
from fedhelp_dispatch.request import Outcome, Waiting, WorkRequest

if TYPE_CHECKING:
    from fedhelp_dispatch.cluster import Cluster  # its `kubernetes` takes seconds to import

Right = tuple[str, str, tuple[str, ...]]
"""(API group, resource or resource/subresource, verbs)"""


_KEPT_METADATA = ("name", "namespace", "uid", "labels", "annotations", "creationTimestamp", "deletionTimestamp")


class Carrier(ABC):
    """One kind of object, for all silos of one cluster."""

    kind: str
    """For messages."""
    group: str
    resource: str
    ask: str
    """What to do where the account lacks the rights."""
    rights: tuple[Right, ...]
    """What the account needs where the objects are, beside what `build` reads."""

    def path(self, namespace: str | None) -> str:
        """Of the objects in one namespace, or in all."""
        return f"/apis/{self.group}/{self.resource}" if namespace is None else f"/apis/{self.group}/namespaces/{namespace}/{self.resource}"

    def read(self, found: Object) -> JobReading:
        """Its phase."""
        return read_job(self.reported(found))

    @abstractmethod
    def namespace(self, entry: SiloEntry) -> str:
        """Where the silo's objects are, in the cluster that the hub talks to."""

    @abstractmethod
    async def build(self, cluster: Cluster, request: WorkRequest) -> dict[str, Any]:
        """The object to create.

        Raises:
            ApiRefusal, FedHelpError: it cannot be made.
        """

    @abstractmethod
    def rejected(self, request: WorkRequest) -> None:
        """The object was refused: forget what it was made of."""

    def slim(self, found: Object) -> dict[str, Any]:
        """What the other methods need of an object, but for `job`: a thousand of them are kept."""
        metadata = {key: value for key, value in found["metadata"].items() if key in _KEPT_METADATA}
        return {"metadata": metadata, "spec": self.slim_spec(found["spec"]), "status": found.get("status", {})}

    @abstractmethod
    def slim_spec(self, spec: Object) -> dict[str, Any]:
        """What they need of its spec."""

    @abstractmethod
    def reported(self, found: Object) -> Object:
        """The Job with its status, as far as the hub may know it."""

    @abstractmethod
    def waits(self, found: Object) -> Waiting | None:
        """Why it does not run, as far as the object itself says."""

    @abstractmethod
    async def look(self, cluster: Cluster, found: Object) -> Event:
        """Why it does not run, asking further: lifecycle.looked."""

    @abstractmethod
    async def conclude(self, cluster: Cluster, found: Object, waited: Waiting | None) -> Outcome:
        """How failed work ended; `waited`: what it last waited for."""

    @abstractmethod
    def job(self, found: Object) -> Object:
        """The Job as the hub asked for it, of an object that is not slim."""


def carrier_of(kind: str) -> Carrier:
    """A new carrier of a dispatch kind that has one (config/dispatch.py: DISPATCH_KINDS)."""
    made: Carrier = pkgutil.resolve_name(str(DISPATCH_KINDS[kind].carrier))()
    return made
