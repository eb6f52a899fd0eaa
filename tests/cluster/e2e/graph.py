"""Runs a compiled pipeline's graph as pods, in the order and concurrency that its YAML states.

Kubeflow's own backend is not at hand in these tests, so this does what its driver, its launcher and Argo do with the same YAML:
every task starts when the tasks that it depends on have succeeded, a ParallelFor's items run at once, a container gets kfp's
executor input in place of `{{$}}`, its output parameters go to the tasks that ask for them, platform settings written by
kfp-kubernetes become the pod's. A failed task ends the run. What it knows no meaning for, it refuses.
"""

from __future__ import annotations

import concurrent.futures
import json
import re
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.control_plane import ControlPlane
from tests.cluster.processes import wait_for

_METADATA = "/tmp/kfp/output_metadata.json"
_MARK = "kfp output metadata: "
# What Argo's emissary does around a container: SIGTERM reaches the whole process group, and outputs are collected at the end.
_LAUNCHER = f"""
trap 'trap "" TERM; kill -TERM 0' TERM
mkdir -p /tmp/kfp
sh -ec "$0" "$@" & child=$!
wait $child; code=$?
while kill -0 $child 2>/dev/null; do wait $child; code=$?; done
[ -f {_METADATA} ] && printf '\\n{_MARK}' && cat {_METADATA} && echo
exit $code
"""
Values = dict[str, Any]


class TaskFailed(Exception):
    """A task's pod ended with an error, or was taken away."""


@dataclass
class TaskRun:
    """One pod of one task: when it ran and what it printed."""

    task: str
    pod: str
    item: str = ""
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    log: str = ""


class GraphRun:
    """One run of a compiled pipeline in `namespace`, its pods under `service_account`."""

    def __init__(self, cluster: ControlPlane, version: Mapping[str, Any], *, namespace: str, service_account: str) -> None:
        """`version` is the spec of a PipelineVersion, as the hub's chart installs it: pipelineSpec and platformSpec."""
        pipeline = version["pipelineSpec"]
        self._cluster = cluster
        self._components = pipeline["components"]
        self._executors = pipeline["deploymentSpec"]["executors"]
        self._root = pipeline["root"]
        self._platform: Mapping[str, Mapping[str, Any]] = version["platformSpec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        self._namespace = namespace
        self._service_account = service_account
        self._cancelled = threading.Event()
        self.id = str(uuid.uuid4())
        self.tasks: list[TaskRun] = []

    def run(self, arguments: Mapping[str, Any]) -> Values:
        """Run to the end; the pipeline's output parameters. Raises TaskFailed with the log's end."""
        given = {name: one["defaultValue"] for name, one in self._root["inputDefinitions"]["parameters"].items() if "defaultValue" in one}
        unknown = set(arguments) - set(self._root["inputDefinitions"]["parameters"])
        if unknown:
            raise ValueError(f"the pipeline has no parameters {sorted(unknown)}")
        try:
            return self._run_dag(self._root, {**given, **arguments})
        finally:
            self._cancelled.set()

    def cancel(self) -> None:
        """What a person's Stop in the UI does: every pod of the run is deleted, no further one starts."""
        self._cancelled.set()
        for one in self.tasks:
            if one.ended is None:
                self._kubectl("delete", "pod", one.pod, "--wait=false", "--ignore-not-found")

    def task(self, name: str, item: str = "") -> TaskRun:
        """The latest pod of a task."""
        return [one for one in self.tasks if one.task == name and item in ("", one.item)][-1]

    # ---- the graph

    def _run_dag(self, component: Mapping[str, Any], inputs: Values, item: str = "") -> Values:
        tasks = component["dag"]["tasks"]
        finished: dict[str, concurrent.futures.Future[Values]] = {}
        ready = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(max_workers=len(tasks)) as pool:

            def follow(name: str) -> Values:
                ready.wait()
                outputs = {other: finished[other].result() for other in tasks[name].get("dependentTasks", [])}
                return self._run_task(name, tasks[name], inputs, outputs, item)

            finished.update({name: pool.submit(follow, name) for name in tasks})
            ready.set()
            for future in concurrent.futures.as_completed(finished.values()):
                if future.exception() is not None:
                    self.cancel()  # Argo's fail-fast: siblings are stopped
                    break
        results = {name: future.result() for name, future in finished.items()}
        selected = component["dag"].get("outputs", {}).get("parameters", {})
        sources = {name: one["valueFromParameter"] for name, one in selected.items()}
        return {name: results[one["producerSubtask"]][one["outputParameterKey"]] for name, one in sources.items()}

    def _run_task(self, name: str, task: Mapping[str, Any], inputs: Values, outputs: Mapping[str, Values], item: str) -> Values:
        component = self._components[task["componentRef"]["name"]]
        parameters = {key: self._value(one, inputs, outputs) for key, one in task.get("inputs", {}).get("parameters", {}).items()}
        condition = task.get("triggerPolicy", {}).get("condition")
        if condition is not None and not _holds(condition, parameters):
            return {}
        iterator = task.get("parameterIterator")
        if iterator is None:
            return self._run_component(name, component, parameters, item)
        items = parameters[iterator["items"]["inputParameter"]]
        with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, len(items))) as pool:
            done = list(pool.map(lambda one: self._run_component(name, component, {**parameters, iterator["itemInput"]: one}, str(one)), items))
        return {key: [one[key] for one in done] for key in (done[0] if done else ())}  # what dsl.Collected gathers

    def _value(self, source: Mapping[str, Any], inputs: Values, outputs: Mapping[str, Values]) -> Any:
        if "componentInputParameter" in source:
            return inputs[source["componentInputParameter"]]
        if "taskOutputParameter" in source:
            wanted = source["taskOutputParameter"]
            return outputs[wanted["producerTask"]][wanted["outputParameterKey"]]
        constant = source["runtimeValue"]["constant"]
        if not isinstance(constant, str):
            return constant
        return constant.replace("{{$.pipeline_job_uuid}}", self.id).replace("{{$.pipeline_job_name}}", f"run {self.id}")

    def _run_component(self, name: str, component: Mapping[str, Any], parameters: Values, item: str) -> Values:
        if "dag" in component:
            return self._run_dag(component, parameters, item)
        return self._run_pod(name, component, parameters, item)

    # ---- one task's pod

    def _run_pod(self, name: str, component: Mapping[str, Any], parameters: Values, item: str) -> Values:
        if self._cancelled.is_set():
            raise TaskFailed(f"{name} did not start: the run was stopped")
        run = TaskRun(task=name, item=item, pod=f"{name}-{uuid.uuid4().hex[:8]}")
        self.tasks.append(run)
        manifest = self._pod(run, component, parameters)
        self._kubectl("apply", "-f", "-", input=json.dumps(manifest))
        phase = self._wait_for_end(run)
        run.ended = time.monotonic()
        if phase != "Succeeded":
            raise TaskFailed(f"task {name} {item} ended as {phase}; the end of its log:\n{run.log[-3000:]}")
        marked = [line for line in run.log.splitlines() if line.startswith(_MARK)]
        return dict(json.loads(marked[-1].removeprefix(_MARK)).get("parameterValues", {})) if marked else {}

    def _wait_for_end(self, run: TaskRun) -> str:
        """Succeeded, Failed, or Deleted; the log is read as long as the pod is there."""
        while True:
            try:
                pod = self._cluster.request("GET", f"/api/v1/namespaces/{self._namespace}/pods/{run.pod}")
            except (RuntimeError, OSError) as error:
                if ": 404 " in str(error):
                    return "Deleted"
                time.sleep(1)  # the API server is away or overloaded for a moment: Argo's controller would wait too
                continue
            phase = str(pod["status"].get("phase"))
            if phase in ("Succeeded", "Failed"):
                wait_for(lambda: self._read_log(run), 60, pause=1)  # a busy kubelet may not answer at once
                return phase
            time.sleep(0.3)

    def _read_log(self, run: TaskRun) -> bool:
        """Whether there is something in it: every task prints a line."""
        run.log = self._kubectl("logs", run.pod, check=False)
        return bool(run.log.strip())

    def _pod(self, run: TaskRun, component: Mapping[str, Any], parameters: Values) -> dict[str, Any]:
        label = component["executorLabel"]
        container = self._executors[label]["container"]
        command = container["command"]
        if command[:2] != ["sh", "-ec"]:
            raise ValueError(f"task {run.task}: this runner knows kfp's `sh -ec` components, got command {command[:2]}")
        outputs = component.get("outputDefinitions", {})
        executor_input = {
            "inputs": {"parameterValues": parameters},
            "outputs": {
                "parameters": {name: {"outputFile": f"/tmp/kfp/outputs/{name}"} for name in outputs.get("parameters", {})},
                "artifacts": {name: {"artifacts": [{
                    "name": name, "type": one["artifactType"], "uri": f"/tmp/kfp/artifacts/{name}", "metadata": {}}]}
                    for name, one in outputs.get("artifacts", {}).items()},
                "outputFile": _METADATA}}
        arguments = [json.dumps(executor_input) if word == "{{$}}" else word for word in container["args"]]
        main: dict[str, Any] = {
            "name": "main", "image": container["image"], "command": ["sh", "-c", _LAUNCHER, *command[2:]], "args": arguments,
            "env": [{"name": one["name"], "value": one["value"]} for one in container.get("env", [])],
            "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
            "securityContext": {
                "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True, "readOnlyRootFilesystem": True,
                "seccompProfile": {"type": "RuntimeDefault"}}}
        spec: dict[str, Any] = {
            "serviceAccountName": self._service_account, "restartPolicy": "Never", "containers": [main],
            "volumes": [{"name": "scratch", "emptyDir": {}}]}
        metadata = {"name": run.pod, "namespace": self._namespace, "labels": {"pipeline/runid": self.id, "pipeline/task": run.task}}
        _apply_platform(self._platform.get(label, {}), spec, main, metadata)
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}

    def _kubectl(self, *arguments: str, **options: Any) -> str:
        return self._cluster.kubectl("--namespace", self._namespace, *arguments, **options)


def _holds(condition: str, parameters: Values) -> bool:
    """What the driver decides by a CEL expression; the only kind that dsl.If makes of a text."""
    match = re.fullmatch(r"inputs\.parameter_values\['([^']+)'\] != '([^']*)'", condition)
    if match is None:
        raise ValueError(f"this runner has no meaning for condition {condition}")
    return bool(parameters[match[1]] != match[2])


def _apply_platform(settings: Mapping[str, Any], spec: dict[str, Any], main: dict[str, Any], metadata: dict[str, Any]) -> None:
    """kfp-kubernetes' settings of one executor as parts of a pod."""
    for name, value in settings.items():
        if name in ("configMapAsVolume", "secretAsVolume"):
            kind, key = ("configMap", "name") if name == "configMapAsVolume" else ("secret", "secretName")
            for number, one in enumerate(value):
                volume = f"{name.lower()}-{number}"
                spec["volumes"].append({"name": volume, kind: {key: _source(one), "optional": one.get("optional", False)}})
                main["volumeMounts"].append({"name": volume, "mountPath": one["mountPath"], "readOnly": True})
        elif name in ("secretAsEnv", "configMapAsEnv"):
            reference, key = ("secretKeyRef", "secretKey") if name == "secretAsEnv" else ("configMapKeyRef", "configMapKey")
            for one in value:
                for pair in one["keyToEnv"]:
                    wanted = {"name": _source(one), "key": pair[key], "optional": one.get("optional", False)}
                    main["env"].append({"name": pair["envVar"], "valueFrom": {reference: wanted}})
        elif name == "emptyDirMounts":
            for one in value:
                spec["volumes"].append({"name": one["volumeName"], "emptyDir": {}})
                main["volumeMounts"].append({"name": one["volumeName"], "mountPath": one["mountPath"]})
        elif name == "pvcMount":
            for number, one in enumerate(value):
                claim = {"claimName": str(one["pvcNameParameter"]["runtimeValue"]["constant"])}
                spec["volumes"].append({"name": f"claim-{number}", "persistentVolumeClaim": claim})
                main["volumeMounts"].append({"name": f"claim-{number}", "mountPath": one["mountPath"]})
        elif name == "podMetadata":
            metadata["labels"].update(value.get("labels", {}))
            metadata.setdefault("annotations", {}).update(value.get("annotations", {}))
        else:
            raise ValueError(f"this runner has no meaning for kfp-kubernetes' setting {name}: {value}")


def _source(setting: Mapping[str, Any]) -> str:
    """The ConfigMap's or Secret's name: newer kfp-kubernetes writes it as a constant parameter."""
    for kind in ("configMapName", "secretName"):
        if kind in setting:
            return str(setting[kind])
    parameter = setting.get("configMapNameParameter") or setting["secretNameParameter"]
    return str(parameter["runtimeValue"]["constant"])
