"""One round's Jobs of 1,000 silos, each in a namespace of its own: dispatched, watched to their end and collected.

    python -m benchmarks.dispatch_scale [--silos 1000] [--cluster-wide] [--repeat N] [--json FILE]

The cluster is a real control plane (etcd, API server, controllers) with KWOK's pretended nodes, whose pods run for a second.
The hub is a process of its own and uses the account that charts give it: a Role per namespace (with --cluster-wide it may
also list and watch Jobs everywhere, so that one watch serves all). Beside it stands what a simple hub would do with the same
account: create each Job with the `kubernetes` package and ask after each once a second until it has ended. Requests are
counted by the API server itself (apiserver_request_total), memory is the hub process's PSS.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, add_options, show, write

_POLL = 1.0  # seconds between the naive hub's questions about one Job
_NODES = 20


def figures(silos: int, cluster_wide: bool) -> list[Figure]:
    """Ours beside the naive loop, on the same control plane."""
    from tests.cluster.control_plane import ControlPlane
    from tests.cluster.hospital import hub_account, until_allowed

    with ControlPlane() as cluster:
        cluster.add_kwok_nodes(_NODES, gpus=silos)
        account = hub_account(cluster)
        if cluster_wide:
            grant_everywhere(cluster, account)
            until_allowed(cluster, account, verb="watch", resource="jobs", group="batch")
        places = install(cluster, account, silos)
        environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig(account))}
        environment.pop("KUBERNETES_SERVICE_HOST", None)
        ours, ours_requests = measured(cluster, "ours", places, environment)
        naive, naive_requests = measured(cluster, "naive", places, environment)
    beside = f"create and poll each Job every {_POLL:g} s"
    watches = f"{ours['watches']} watch{'es' if ours['watches'] != 1 else ''}"

    def row(name: str, key: str, unit: str) -> Figure:
        return Figure(
            name=f"dispatch of {silos:,} silos: {name}", value=ours[key], unit=unit, yardstick=f"{naive[key]:.3g} {unit}: {beside}", detail=watches)

    return [
        row("until all Jobs are made", "made_s", "s"), row("until all have ended", "ended_s", "s"), row("hub memory (PSS)", "pss_mib", "MiB"),
        row("hub processor time", "cpu_s", "s"),
        Figure(name=f"dispatch of {silos:,} silos: API requests a silo", value=ours_requests / silos, unit="",
               yardstick=f"{naive_requests / silos:.1f}: {beside}",
               detail=f"{watches}; {ours['jobs_per_s']:.0f} Jobs/s made, naive {naive['jobs_per_s']:.0f}"),
    ]


def install(cluster: Any, account: str, silos: int) -> list[str]:
    """The hospitals' namespaces, templates and Roles, by bulk; the namespaces' names."""
    from tests.cluster.hospital import until_allowed

    os.environ["KUBECONFIG"] = str(cluster.kubeconfig())
    made = asyncio.run(install_all(account, silos))
    until_allowed(cluster, account, namespace=made[-1], verb="list", resource="events")
    query = "fieldSelector=metadata.name%3Ddefault"
    while len(cluster.request("GET", f"/api/v1/serviceaccounts?{query}")["items"]) < silos:  # without it no pod is admitted
        time.sleep(1.0)
    return made


async def install_all(account: str, silos: int) -> list[str]:
    """All namespaces, as the administrator of $KUBECONFIG."""
    from fedhelp_dispatch.cluster import Clusters
    from tests.cluster.hospital import RULES, template

    namespace, _, name = account.removeprefix("system:serviceaccount:").partition(":")
    rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces"
    async with Clusters() as clusters:
        administrator = clusters.of(None)

        async def one(number: int) -> str:
            silo = f"silo-{number:05d}"
            await administrator.call("POST", "/api/v1/namespaces", body={"metadata": {"name": silo}})
            await administrator.call("POST", f"/apis/batch/v1/namespaces/{silo}/cronjobs", body=template(silo))
            await administrator.call("POST", f"{rbac}/{silo}/roles", body={"metadata": {"name": "fedhelp-hub"}, "rules": RULES})
            await administrator.call("POST", f"{rbac}/{silo}/rolebindings", body={
                "metadata": {"name": "fedhelp-hub"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "fedhelp-hub"},
                "subjects": [{"kind": "ServiceAccount", "namespace": namespace, "name": name}]})
            return silo

        return await asyncio.gather(*map(one, range(silos)))


def grant_everywhere(cluster: Any, account: str) -> None:
    base = "/apis/rbac.authorization.k8s.io/v1"
    cluster.request("POST", f"{base}/clusterroles", {
        "metadata": {"name": "watch-jobs"}, "rules": [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list", "watch"]}]})
    cluster.request("POST", f"{base}/clusterrolebindings", {
        "metadata": {"name": "watch-jobs"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "watch-jobs"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": account}]})


def measured(cluster: Any, hub: str, places: list[str], environment: dict[str, str]) -> tuple[dict[str, float], float]:
    """What a hub process says of itself, and the requests that the API server counted of it."""
    with tempfile.TemporaryDirectory(prefix="fedhelp-bench-") as folder:
        names = Path(folder) / "places.json"
        names.write_text(json.dumps(places))
        before = hub_requests(cluster)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.dispatch_scale", "--hub", hub, str(names)], env=environment, stdout=subprocess.PIPE, text=True,
            check=True)
        return json.loads(done.stdout.splitlines()[-1]), hub_requests(cluster) - before


def hub_requests(cluster: Any) -> float:
    """Requests so far of the kinds that a hub makes and no controller does in these namespaces: by verb and resource."""
    total = 0.0
    for line in cluster.request("GET", "/metrics").splitlines():
        match = re.match(r"apiserver_request_total\{(.*)\} (\S+)", line)
        if match is None:
            continue
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match[1]))
        verb, resource, scope = labels["verb"], labels["resource"], labels["scope"]
        listed = verb in ("LIST", "WATCH") and scope == "namespace"  # controllers list and watch the whole cluster
        asked = labels["subresource"] == "" and (
            (resource == "jobs" and (verb in ("GET", "POST") or listed)) or (resource == "cronjobs" and verb == "GET")
            or (resource in ("pods", "events") and listed))
        total += float(match[2]) if asked else 0.0
    return total


def federation(places: list[str]) -> Any:
    from fedhelp_core.config.federation import parse_federation

    return parse_federation({
        "name": "scale", "algorithm": {"method": "fedavg"}, "store": {"url": "s3://exchange/scale"},
        "silos": [{"name": place, "dispatch": {"kind": "kubernetes", "namespace": place, "residency": "round"}} for place in places]},
        source="benchmark")


def our_hub(places: list[str]) -> dict[str, float]:
    """What `federation` does, but for the store: start each silo's round, look until all have ended."""
    from fedhelp_dispatch.cluster import Cluster
    from fedhelp_dispatch.remote import RemoteDispatcher
    from tests.cluster.hospital import request_of

    config = federation(places)
    Cluster(None)  # the import is not what is measured
    began = time.monotonic()
    dispatcher = RemoteDispatcher("ours")
    works = [dispatcher.start(request_of(config, "ours", place, "train", 1)) for place in places]
    made = 0.0
    while (left := [work for work in works if work.outcome() is None]):
        if not made and all(work.life.found is not None or work.outcome() is not None for work in works):
            made = time.monotonic() - began
        time.sleep(0.2)
        if time.monotonic() - began > 540:
            raise RuntimeError(f"{len(left)} Jobs have not ended, the first waits for: {left[0].waiting()}")
    ended = time.monotonic() - began
    failed = [work.outcome() for work in works if not work.outcome().done]
    if failed:
        raise RuntimeError(f"{len(failed)} Jobs failed, the first: {failed[0]}")
    figures = report(began, made or ended, ended, len(places), dispatcher.connections)
    dispatcher.close()
    return figures


def naive_hub(places: list[str]) -> dict[str, float]:
    """Eight threads, each creating its share of the Jobs, then asking after each that has not ended, once a second."""
    from kubernetes import client, config

    from fedhelp_dispatch.job import job_of
    from tests.cluster.hospital import request_of

    config.load_kube_config(os.environ["KUBECONFIG"])
    batch = client.BatchV1Api()
    settings = federation(places)
    began = time.monotonic()

    def create(place: str) -> str:
        template = client.ApiClient().sanitize_for_serialization(batch.read_namespaced_cron_job("fedhelp-worker", place))
        job = job_of({**template, "kind": "CronJob"}, request_of(settings, "naive", place, "train", 1), namespace=place)
        return str(batch.create_namespaced_job(place, job).metadata.name)

    def ended(place_and_name: tuple[str, str]) -> bool:
        place, name = place_and_name
        conditions = batch.read_namespaced_job(name, place).status.conditions or []
        return any(c.type in ("Complete", "Failed") and c.status == "True" for c in conditions)

    with ThreadPoolExecutor(8) as pool:
        left = list(zip(places, pool.map(create, places), strict=True))
        made = time.monotonic() - began
        while left:
            looked = time.monotonic()
            left = [job for job, over in zip(left, pool.map(ended, left), strict=True) if not over]
            time.sleep(max(0.0, _POLL - (time.monotonic() - looked)))
    return report(began, made, time.monotonic() - began, len(places), 0)


def report(began: float, made: float, ended: float, silos: int, watches: int) -> dict[str, float]:
    pss = sum(int(line.split()[1]) for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
    times = os.times()
    return {
        "made_s": made, "ended_s": ended, "pss_mib": pss / 1024, "cpu_s": times.user + times.system, "jobs_per_s": silos / made, "watches": watches}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--silos", type=int, default=1000)
    parser.add_argument("--cluster-wide", action="store_true", help="the hub's account may list and watch Jobs in all namespaces")
    parser.add_argument("--hub", nargs=2, metavar=("KIND", "FILE"), help=argparse.SUPPRESS)
    add_options(parser, repeat=1)
    arguments = parser.parse_args()
    if arguments.hub is not None:
        kind, file = arguments.hub
        hub = {"ours": our_hub, "naive": naive_hub}[kind]
        print(json.dumps(hub(json.loads(Path(file).read_text()))))
        return
    found = figures(arguments.silos, arguments.cluster_wide)
    show(found)
    if arguments.json is not None:
        write(found, arguments.json)


if __name__ == "__main__":
    main()
