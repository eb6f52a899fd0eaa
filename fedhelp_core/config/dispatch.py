"""A hospital as the hub knows it, and how its work is started: the `silos` of federation.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fedhelp_core.config.section import GrownSection, NamespaceName, Section, SiloName

SiloKind = Literal["auto", "large", "small"]


@dataclass(frozen=True, kw_only=True)
class DispatchKind:
    """All that one way to start a silo's work has of its own."""

    fields: tuple[str, ...]
    """DispatchConfig's fields that belong to it."""
    needs: Mapping[str, str]
    """Those that it cannot do without -> what to give."""
    carrier: str | None
    """What carries work into the silo's cluster, as 'module:class' (dispatch/carrier.py); None: a process of this machine."""
    taken: str = ""
    """What `fedhelp check` says when the silo's cluster would take its work."""


DISPATCH_KINDS: Mapping[str, DispatchKind] = {
    "process": DispatchKind(
        fields=("silo_config",), needs={"silo_config": "the path of the silo's silo.yaml"}, carrier=None),
    "kubernetes": DispatchKind(
        fields=("context", "namespace", "template"), needs={}, carrier="fedhelp_dispatch.kubernetes:JobCarrier", taken="its cluster takes the work"),
    "manifestwork": DispatchKind(
        fields=("context", "namespace", "cluster", "job_template", "executor"),
        needs={
            "cluster": "the hospital's managed cluster name",
            "job_template": "the file with the hospital's CronJob (kubectl get cronjob fedhelp-worker -o yaml)"},
        carrier="fedhelp_dispatch.manifestwork:ManifestWorkCarrier",
        taken="the Open Cluster Management hub takes the work; what the hospital's own cluster says to it shows in a run"),
}
"""Everything that tells the kinds apart; nothing else asks which kind it is."""


class DispatchConfig(Section):
    """How a silo's work is started."""

    kind: Literal["process", "kubernetes", "manifestwork"] = "process"
    """'process': on this machine. 'kubernetes': a Job in the silo's cluster. 'manifestwork': that Job, carried by Open Cluster Management."""
    residency: Literal["round", "run"] = "run"
    """'run': one warm worker for all rounds; 'round': a new one each."""
    retries: int = Field(3, ge=0, le=100)
    """Restarts after a retryable end, per round."""
    silo_config: Path | None = None
    """process: the silo.yaml on this machine."""
    context: str | None = None
    """kubernetes: kubeconfig context of the silo's cluster; manifestwork: of the Open Cluster Management hub.
    Null: the cluster that this process runs in, else the kubeconfig's current context."""
    namespace: NamespaceName | None = None
    """kubernetes, manifestwork: the silo's own namespace, in its cluster; null: fedhelp-<silo>."""
    template: NamespaceName = "fedhelp-worker"
    """kubernetes: the hospital's Job template, a suspended CronJob in that namespace."""
    cluster: NamespaceName | None = None
    """manifestwork: the hospital's name as a managed cluster: its namespace on the hub."""
    job_template: dict[str, Any] | None = None
    """manifestwork: that CronJob as the hospital exported it, since the hub cannot read it; a path is replaced by the file's content."""
    executor: NamespaceName | None = None
    """manifestwork: service account in the silo's namespace that must be allowed to create, get, update, patch and delete jobs there.
    The hospital's agent asks so before it makes the Job (as itself). Null: not asked."""

    @property
    def how(self) -> DispatchKind:
        """What its kind has of its own."""
        return DISPATCH_KINDS[self.kind]

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> Self:
        problems = [f"{field}: dispatch kind {self.kind!r} needs {what}" for field, what in self.how.needs.items() if getattr(self, field) is None]
        for field, settings in type(self).model_fields.items():
            kinds = [kind for kind, row in DISPATCH_KINDS.items() if field in row.fields]
            if kinds and self.kind not in kinds and getattr(self, field) != settings.default:
                problems.append(f"{field}: belongs to dispatch kind {' or '.join(map(repr, kinds))}, got kind {self.kind!r}; correct one of them")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class SiloEntry(GrownSection):
    """A hospital as the hub knows it."""

    newer: ClassVar[frozenset[str]] = frozenset({"labelled"})

    name: SiloName
    """Lower-case letters, digits and '-', at most 40; in Job names, reports and the store."""
    kind: SiloKind = "auto"
    """'large' silos keep a large model at home. 'auto': the `algorithm.large_silos` with most training images are large."""
    labelled: tuple[str, ...] | None = None
    """Findings, foregrounds or regions of the task that this hospital labels; null: all. It learns and is scored by these alone."""
    dispatch: DispatchConfig

    @property
    def namespace(self) -> str:
        """Where the silo's Jobs go, in its own cluster."""
        return self.dispatch.namespace or f"fedhelp-{self.name}"
