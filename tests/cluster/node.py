"""Grade 2: a real node. kubelet, containerd, runc and a bridge network run real pods for a ControlPlane on this machine, as root.

    with ControlPlane() as cluster, Node(cluster, gpus=1) as node:
        node.import_images("fedhelp/hub:0.1.0")         # from the local Docker engine
        cluster.kubectl("apply", "-f", "job.yaml")

Several nodes live side by side on a machine, each with a bridge, a subnet, a cgroup and folders of its own.
No registry is reached: images are imported, tags other than `latest` are never pulled. A GPU is an extended resource of the node's
status. There is no kube-proxy: pods reach the API server at 10.96.0.1 by one DNAT rule, and this machine's servers at the gateway's
address or its DNS name. NetworkPolicies are enforced while kube_router.py's PolicyEnforcer runs: the bridge plugin knows none.
What it needs from Debian, install_debian.sh installs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tests.cluster.build import binary, cache_folder
from tests.cluster.containerd import PAUSE_IMAGE, Containerd, start_from, stored_images
from tests.cluster.control_plane import NODE_GATEWAYS, SERVICE_ADDRESS, ControlPlane
from tests.cluster.image_archive import image_archive
from tests.cluster.kube_router import remove_rules
from tests.cluster.machine import end_processes_naming, make_cgroup, remove_cgroup, run, unmount_below
from tests.cluster.processes import Processes

HOST_NAME = "host.fedhelp.test"  # what pods call this machine: the S3 server and MLflow of a test listen there
_EVICTION_SIGNALS = ("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available", "imagefs.inodesFree")
_FOLDER = Path("/run/fedhelp")  # short: the path of a Unix socket ends at 107 characters
_INSTALLER = Path(__file__).with_name("install_debian.sh")


class Node:
    """One kubelet with its own containerd, registered with `cluster`, offering `gpus` of nvidia.com/gpu."""

    def __init__(self, cluster: ControlPlane, *, gpus: int = 1, images: Sequence[str] = (), outlive: bool = False, index: int = 0) -> None:
        """`images`: large ones of the local Docker engine. `index` names a node that another process started; `start` takes the first free."""
        self.cluster = cluster
        self.gpus = gpus
        self._first_images = images
        self._outlive = outlive
        self._take(index)

    def start(self) -> Self:
        """Start everything; return when the node is ready and offers its GPUs. Raises RuntimeError in one sentence where it cannot."""
        if os.geteuid() != 0:
            raise RuntimeError("a node needs root (mounts, cgroups, network namespaces); run as root, or set KUBECONFIG to a cluster of your own")
        run(str(_INSTALLER))
        _FOLDER.mkdir(parents=True, exist_ok=True)
        with (_FOLDER / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._take(next((index for index in range(len(NODE_GATEWAYS)) if not _in_use(index)), -1))
            self.clean()  # what a killed session left
            if self._first_images:
                start_from(stored_images(self._first_images), self.images)
            self.containers.start()
        self._start_network()
        self.containers.import_archive(image_archive(PAUSE_IMAGE, {"pause": binary("pause").read_bytes()}, ["/pause"]))
        self._start_kubelet()
        return self

    def stop(self) -> None:
        """End the kubelet, every container and containerd; remove cgroups, mounts, network namespaces, the bridge and its rules."""
        self.processes.stop("kubelet")
        with contextlib.suppress(RuntimeError, OSError):  # the API server may have ended before
            self.cluster.request("DELETE", f"/api/v1/nodes/{self.name}")
        self.clean()

    def _take(self, index: int) -> None:
        """Be node `index` of this machine: a name, a bridge, a subnet and folders of its own."""
        if index < 0:
            raise RuntimeError(f"all {len(NODE_GATEWAYS)} nodes that one machine may hold are running; end one first (make cluster-down)")
        self.index = index
        self.name = f"node{index + 1}"
        self.gateway = NODE_GATEWAYS[index]  # this machine's address on the bridge
        self.bridge = f"fedhelp{index}"
        self.folder = _FOLDER / self.name
        self.images = cache_folder() / "nodes" / self.name
        self.processes = Processes(self.folder / "processes", outlive=self._outlive)
        self.containers = Containerd(self.folder, self.images, self.processes)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *reason: object) -> None:
        self.stop()

    def import_images(self, *names: str) -> None:
        """Make images of the local Docker engine known to the node."""
        self.containers.import_images(*names)

    def import_program(self, image: str, program: Path, entrypoint: Sequence[str]) -> None:
        """Make an image of one static binary, `/<name>`, known to the node as `image`, run as user 1000."""
        self.containers.import_archive(image_archive(image, {program.name: program.read_bytes()}, entrypoint))

    def freeze(self, namespace: str, job: str) -> None:
        """Freeze the containers of the Job's pods, as a machine that hangs would: they neither work nor end."""
        for container in self.containers.ctr("containers", "list", "--quiet").stdout.split():
            labels = json.loads(self.containers.ctr("containers", "info", container).stdout)["Labels"]
            if labels.get("io.kubernetes.pod.namespace") == namespace and labels.get("io.kubernetes.pod.name", "").startswith(f"{job}-"):
                self.containers.ctr("tasks", "kill", "--all", "--signal", "SIGSTOP", container)

    def restart_kubelet(self) -> None:
        """End the kubelet and start it again: pods live on."""
        self.processes.stop("kubelet")
        self._start_kubelet()

    # ---- network: one bridge, one DNAT rule to the API server, one DNS server

    def _start_network(self) -> None:
        run("ip", "link", "add", self.bridge, "type", "bridge")
        run("ip", "address", "add", f"{self.gateway}/24", "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")
        for rule in self._rules():
            run("iptables", "-w", *rule.replace("-A", "-I").split())
        configuration = {"cniVersion": "0.4.0", "name": self.bridge, "plugins": [{
            "type": "bridge", "bridge": self.bridge, "isGateway": True, "hairpinMode": True, "ipam": {
                "type": "host-local", "dataDir": str(self.folder / "ipam"),
                "ranges": [[{"subnet": self.gateway.removesuffix("1") + "0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
        networks = self.folder / "networks"
        networks.mkdir(exist_ok=True)
        (networks / "10-bridge.conflist").write_text(json.dumps(configuration))
        self.processes.start("dnsmasq", [
            "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts", "--no-resolv", "--user=root", "--pid-file=", "--log-facility=-",
            "--bind-interfaces", f"--listen-address={self.gateway}", f"--interface={self.bridge}", "--except-interface=lo", "--local=/cluster.local/",
            f"--address=/kubernetes.default.svc.cluster.local/{SERVICE_ADDRESS}", f"--address=/{HOST_NAME}/{self.gateway}"])

    def _rules(self) -> list[str]:
        to_api_server = f"-p tcp -d {SERVICE_ADDRESS} --dport 443 -j DNAT --to-destination {self.gateway}:{self.cluster.port}"
        forwarded = [f"-A FORWARD {side} {self.bridge} -j ACCEPT" for side in ("-i", "-o")]
        return [f"-t nat -A PREROUTING -i {self.bridge} {to_api_server}", *forwarded]

    # ---- kubelet

    def _start_kubelet(self) -> None:
        authority = self.cluster.authority
        serving = authority.server(f"kubelet-{self.name}", [self.name, self.gateway])
        kubeconfig = self.cluster.kubeconfig(f"system:node:{self.name}", ["system:nodes"])
        resolver = self.folder / "resolv.conf"
        resolver.write_text(f"nameserver {self.gateway}\n")
        configuration = self.folder / "kubelet.json"
        configuration.write_text(json.dumps({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "address": self.gateway, "port": 10250, "healthzPort": 0,
            "tlsCertFile": str(serving.certificate), "tlsPrivateKeyFile": str(serving.key),
            "authentication": {"x509": {"clientCAFile": str(authority.pair.certificate)}, "anonymous": {"enabled": False}},
            "authorization": {"mode": "Webhook"}, "containerRuntimeEndpoint": f"unix://{self.containers.socket}",
            "cgroupDriver": "cgroupfs", "cgroupRoot": f"/{self._cgroup}", "failCgroupV1": False, "failSwapOn": False,
            "podLogsDir": str(self.folder / "logs"), "clusterDNS": [self.gateway], "clusterDomain": "cluster.local", "resolvConf": str(resolver),
            "evictionHard": dict.fromkeys(_EVICTION_SIGNALS, "0%"),
            "imageGCHighThresholdPercent": 100, "serializeImagePulls": False, "nodeStatusUpdateFrequency": "5s", "maxPods": 200}))
        make_cgroup(self._cgroup)
        self.processes.start("kubelet", [
            binary("kubelet"), f"--config={configuration}", f"--kubeconfig={kubeconfig}", f"--hostname-override={self.name}",
            f"--node-ip={self.gateway}", f"--root-dir={self.folder / 'kubelet'}", f"--cert-dir={self.folder / 'pki'}"])
        self.processes.wait("kubelet", self._is_registered, 60)
        self._offer_gpus()
        self.processes.wait("kubelet", self._is_ready, 60)

    @property
    def _cgroup(self) -> str:
        return f"fedhelp-{self.name}"

    def _status(self) -> dict[str, Any]:
        with contextlib.suppress(RuntimeError, OSError):
            return dict(self.cluster.request("GET", f"/api/v1/nodes/{self.name}"))
        return {}

    def _is_registered(self) -> bool:
        return bool(self._status().get("status", {}).get("capacity"))

    def _is_ready(self) -> bool:
        node = self._status()
        ready = any(one["type"] == "Ready" and one["status"] == "True" for one in node["status"].get("conditions", []))
        offered = node["status"].get("allocatable", {}).get("nvidia.com/gpu", "0") == str(self.gpus)
        return ready and offered and not node["spec"].get("taints")

    def _offer_gpus(self) -> None:
        patch = {"status": {"capacity": {"nvidia.com/gpu": str(self.gpus)}, "allocatable": {"nvidia.com/gpu": str(self.gpus)}}}
        self.cluster.request("PATCH", f"/api/v1/nodes/{self.name}/status", patch, "application/merge-patch+json")

    # ---- the end

    def clean(self) -> None:
        """Remove every trace of this node on the machine, whether this process or a killed one left it."""
        self.processes.stop("kubelet")
        end_processes_naming(str(self.containers.socket))
        remove_cgroup(self._cgroup)
        self.processes.stop_all()
        namespaces = self._network_namespaces()
        unmount_below(self.folder, self.images, *namespaces)
        for file in namespaces:
            file.unlink(missing_ok=True)
        remove_rules()
        for rule in self._leftover_rules():
            run("iptables", "-w", *rule, check=False)
        run("ip", "link", "delete", self.bridge, check=False)
        run("rm", "-rf", "--one-file-system", str(self.folder), str(self.images))

    def network_namespace(self, address: str) -> str:
        """The name of the network namespace of the pod with this address, for `ip netns exec`."""
        (found,) = self._network_namespaces(f"{address}/")
        return found.name

    def _network_namespaces(self, start: str | None = None) -> list[Path]:
        """Those of this node's pods: the ones whose address starts as its subnet's, or with `start`."""
        wanted = start or self.gateway.removesuffix("1")
        found = Path("/run/netns").glob("cni-*")
        return [path for path in found if f" {wanted}" in run("ip", "-netns", path.name, "-brief", "-4", "address", check=False).stdout]

    def _leftover_rules(self) -> list[list[str]]:
        """iptables arguments that delete each rule naming the bridge; the API server's port of a killed session is not known any more."""
        found = []
        for table in ("nat", "filter"):
            for line in run("iptables", "-w", "-t", table, "-S", check=False).stdout.splitlines():
                words = line.split()
                if self.bridge in words and words[0] == "-A":
                    found.append(["-t", table, "-D", *words[1:]])
        return found


def _in_use(index: int) -> bool:
    """Whether a node `index` runs on this machine, of this session or another."""
    return Processes(_FOLDER / f"node{index + 1}" / "processes").pid("containerd") is not None
