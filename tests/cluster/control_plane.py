"""Grade 1: a real control plane. etcd, kube-apiserver, kube-controller-manager and kube-scheduler as processes; KWOK's nodes on request.

    with ControlPlane(folder) as cluster:
        api = kubernetes.config.new_client_from_config(str(cluster.kubeconfig()))           # the administrator
        hub = cluster.kubeconfig("system:serviceaccount:hub:fedhelp")                       # a service account, by a real token
        doctor = cluster.kubeconfig("doctor", groups=["hospital-a"])                        # any user, by a client certificate

RBAC, Node authorization, Pod Security, ValidatingAdmissionPolicy, quotas, Jobs and CronJobs behave as in production. Pods run only on
KWOK's pretended nodes (`add_kwok_nodes`) or on a real one (node.py). A test's own cluster comes from the fixtures in conftest.py.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import ssl
import subprocess
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.cluster.build import binary
from tests.cluster.certificates import Authority
from tests.cluster.processes import Processes, free_ports, host_address

_HERE = Path(__file__).resolve().parent
SERVICE_RANGE = "10.96.0.0/16"
SERVICE_ADDRESS = "10.96.0.1"  # the first of SERVICE_RANGE: kubernetes.default.svc
NODE_GATEWAYS = tuple(f"10.244.{index}.1" for index in range(8))  # this machine's address on the bridge of each node that it may hold
ADMINISTRATOR = "admin"
_SERVICE_ACCOUNT = "system:serviceaccount:"
_RATE = ("--kube-api-qps=1000", "--kube-api-burst=2000")  # the defaults of 20 to 50 a second would be what a scale test measures


class ControlPlane:
    """One API server with its controllers. `hosts` are further names and addresses that its certificate covers."""

    def __init__(self, folder: Path | None = None, *, hosts: Sequence[str] = (), outlive: bool = False) -> None:
        self._own_folder = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="fedhelp-cluster-")) if folder is None else folder.resolve()
        self.processes = Processes(self.folder / "processes", outlive=outlive)
        self.authority = Authority(self.folder / "certificates")
        self.hosts = [*dict.fromkeys(["127.0.0.1", "localhost", SERVICE_ADDRESS, "kubernetes.default.svc", host_address(), *NODE_GATEWAYS, *hosts])]
        self._load_state()

    @property
    def server(self) -> str:
        """The API server's address on this machine."""
        return f"https://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Start everything and return when the API server is ready and its controllers publish. Takes seconds once built."""
        programs = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
        for name in programs:
            binary(name)
        self._start_etcd()
        self.start_api_server()
        kubeconfig = self.kubeconfig()
        self.processes.start("kube-controller-manager", [
            binary("kube-controller-manager"), f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--use-service-account-credentials",
            f"--root-ca-file={self.authority.pair.certificate}", "--secure-port=0", *_RATE])
        self.processes.start("kube-scheduler", [
            binary("kube-scheduler"), f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--secure-port=0", *_RATE])
        self.processes.wait("kube-controller-manager", lambda: self._exists("/api/v1/namespaces/default/serviceaccounts/default"), 60)
        return self

    def stop(self) -> None:
        """End every process, and remove the folder when it is a temporary one of this object."""
        self.processes.stop_all()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *reason: object) -> None:
        self.stop()

    def start_api_server(self) -> None:
        """Start the API server, again after `stop_api_server`, at the same address with the same data."""
        serving = self.authority.server("kube-apiserver", self.hosts)
        to_kubelets = self.authority.client("kube-apiserver-kubelet-client", ["system:masters"])
        accounts = self.authority.signing_key("service-accounts")
        tokens = self.folder / "tokens.csv"
        tokens.touch(mode=0o600)
        tokens.write_text(f'{self._token},{ADMINISTRATOR},{ADMINISTRATOR},"system:masters"\n')
        self.processes.start("kube-apiserver", [
            binary("kube-apiserver"), f"--etcd-servers=http://127.0.0.1:{self._etcd_port}", f"--secure-port={self.port}", "--bind-address=0.0.0.0",
            f"--tls-cert-file={serving.certificate}", f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={self.authority.pair.certificate}", f"--token-auth-file={tokens}", "--authorization-mode=Node,RBAC",
            f"--kubelet-certificate-authority={self.authority.pair.certificate}", f"--kubelet-client-certificate={to_kubelets.certificate}",
            f"--kubelet-client-key={to_kubelets.key}", "--kubelet-preferred-address-types=InternalIP,Hostname",
            f"--service-cluster-ip-range={SERVICE_RANGE}", "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={accounts}", f"--service-account-signing-key-file={accounts}",
            "--allow-privileged", "--endpoint-reconciler-type=none", "--enable-admission-plugins=NodeRestriction", "--profiling=false"])
        self.processes.wait("kube-apiserver", lambda: self._exists("/readyz"), 90)

    def stop_api_server(self) -> None:
        """End the API server alone: what an upgrade or a crash of it looks like to everyone else."""
        self.processes.stop("kube-apiserver", seconds=2)

    def kubeconfig(self, identity: str = ADMINISTRATOR, groups: Sequence[str] = (), *, server: str | None = None) -> Path:
        """The path of a kubeconfig for `identity`: the administrator, `system:serviceaccount:<namespace>:<name>`, or any user with `groups`.

        `server` replaces the address, for callers elsewhere, such as pods. The context carries the identity's name.
        """
        if identity == ADMINISTRATOR:
            user: dict[str, str] = {"token": self._token}
        elif identity.startswith(_SERVICE_ACCOUNT):
            namespace, _, name = identity.removeprefix(_SERVICE_ACCOUNT).partition(":")
            user = {"token": self.service_account_token(namespace, name)}
        else:
            pair = self.authority.client(identity, groups)
            user = {"client-certificate-data": _encoded(pair.certificate), "client-key-data": _encoded(pair.key)}
        return write_kubeconfig(self.folder / "kubeconfigs", identity, self.cluster_entry(server), user)

    def cluster_entry(self, server: str | None = None) -> dict[str, str]:
        """A kubeconfig's entry for this cluster, reached at `server` instead of its address on this machine."""
        return {"server": server or self.server, "certificate-authority-data": _encoded(self.authority.pair.certificate)}

    def service_account_token(self, namespace: str, name: str, seconds: int = 86_400) -> str:
        """A token of an existing service account, from the TokenRequest API; the API server refuses less than 600 seconds."""
        answer = self.request("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token", {"spec": {"expirationSeconds": seconds}})
        return str(answer["status"]["token"])

    def new_namespace(self, prefix: str = "test", labels: Mapping[str, str] | None = None) -> str:
        """A namespace with a name of its own, ready for pods: its default service account exists."""
        name = f"{prefix}-{uuid.uuid4().hex[:8]}"
        self.request("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": dict(labels or {})}})
        self.processes.wait("kube-controller-manager", lambda: self._exists(f"/api/v1/namespaces/{name}/serviceaccounts/default"), 30)
        return name

    def add_kwok_nodes(self, count: int, *, gpus: int = 8, pods: Path | None = _HERE / "kwok-pods.yaml") -> list[str]:
        """Add `count` pretended nodes with `gpus` of nvidia.com/gpu each, ready when this returns; their names.

        Pods there do what the stages in `pods` (KWOK's YAML, for the cluster's first call) say: succeed at once. None: what a test makes of them.
        """
        if self.processes.pid("kwok") is None:
            stages = [_HERE / "kwok-nodes.yaml", *([pods] if pods is not None else [])]
            self.processes.start("kwok", [
                binary("kwok"), f"--kubeconfig={self.kubeconfig()}", "--manage-all-nodes=false",
                "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake", "--node-lease-duration-seconds=40",
                f"--server-address=127.0.0.1:{free_ports(1)[0]}", *(f"--config={path}" for path in stages)])
        resources = {"cpu": "64", "memory": "256Gi", "pods": "1000", "nvidia.com/gpu": str(gpus)}
        names = [f"kwok-{uuid.uuid4().hex[:8]}" for _ in range(count)]
        for name in names:
            self.request("POST", "/api/v1/nodes", {
                "metadata": {"name": name, "annotations": {"kwok.x-k8s.io/node": "fake"}, "labels": {"kubernetes.io/hostname": name, "type": "kwok"}},
                "status": {"capacity": resources, "allocatable": resources}})
        for name in names:
            self.processes.wait("kwok", lambda name=name: self._takes_pods(name), 60)  # type: ignore[misc]
        return names

    def request(self, method: str, path: str, body: object = None, content_type: str = "application/json") -> Any:
        """One request to the API server as administrator; returns the decoded answer, raises RuntimeError with the server's message."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": content_type}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.server + path, data=data, headers=headers, method=method)
        trust = ssl.create_default_context(cafile=str(self.authority.pair.certificate))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust))
        try:
            with opener.open(request, timeout=30) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {error.code} {error.read().decode(errors='replace')[:1000]}") from error
        return json.loads(text) if text.startswith(("{", "[")) else text

    def kubectl(self, *arguments: str, input: str | None = None, check: bool = True) -> str:
        """Run kubectl as administrator and return what it prints; a failure raises RuntimeError with its words."""
        done = subprocess.run(
            [binary("kubectl"), f"--kubeconfig={self.kubeconfig()}", *arguments], input=input, capture_output=True, text=True, timeout=300)
        if check and done.returncode != 0:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def _load_state(self) -> None:
        """Ports and the administrator's token: those of the cluster that another process started in this folder, or new ones."""
        state = self.folder / "state.json"
        if not state.exists():
            state.touch(mode=0o600)
            state.write_text(json.dumps({"ports": free_ports(3), "token": secrets.token_hex(16)}))
        saved = json.loads(state.read_text())
        self.port, self._etcd_port, self._etcd_peer_port = saved["ports"]
        self._token = saved["token"]

    def _start_etcd(self) -> None:
        client, peer = (f"http://127.0.0.1:{port}" for port in (self._etcd_port, self._etcd_peer_port))
        self.processes.start("etcd", [
            binary("etcd"), f"--data-dir={self.folder / 'etcd'}", f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}", "--unsafe-no-fsync"])

    def _takes_pods(self, node: str) -> bool:
        found = self.request("GET", f"/api/v1/nodes/{node}")
        ready = any(one["type"] == "Ready" and one["status"] == "True" for one in found["status"].get("conditions", []))
        return ready and not found["spec"].get("taints")

    def _exists(self, path: str) -> bool:
        with contextlib.suppress(OSError, RuntimeError):
            self.request("GET", path)
            return True
        return False


def write_kubeconfig(folder: Path, name: str, cluster: Mapping[str, str], user: Mapping[str, str]) -> Path:
    """A kubeconfig file with one context called `name`, readable by its owner alone; whoever reads it meanwhile finds a whole one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name.replace(":", "-") + ".yaml")
    handle, scratch = tempfile.mkstemp(prefix=".", dir=folder)  # mode 0600
    with os.fdopen(handle, "w") as file:
        json.dump({
            "apiVersion": "v1", "kind": "Config", "current-context": name,
            "clusters": [{"name": "cluster", "cluster": dict(cluster)}], "users": [{"name": name, "user": dict(user)}],
            "contexts": [{"name": name, "context": {"cluster": "cluster", "user": name}}]}, file)
    os.replace(scratch, path)
    return path


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
