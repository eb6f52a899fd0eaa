"""Both graphs as the YAML that a platform team uploads, and the command line that makes it; nothing heavy is imported for either."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from fedhelp_cli.run_form import default_form
from fedhelp_components.check.form import FIELDS, LITERALS
from fedhelp_core.config.algorithm import AlgorithmConfig, Normalisation
from fedhelp_core.config.federation import Federation, PromotionConfig, parse_federation
from fedhelp_core.config.task import algorithm_for
from fedhelp_core.registry.methods import METHODS
from fedhelp_core.registry.tasks import PRESETS
from tests.pipelines.contract import FOLDER, contract_of

HEAVY = ("torch", "mlflow", "boto3", "matplotlib", "monai", "kubernetes")
COMMANDS = (
    "init", "run", "simulate", "data", "softlabels", "compile", "register", "submit", "check", "jobs", "promote", "rollback",
    "model", "predict", "serve", "open", "teacher")
NAMES = ("fedhelp", "fedhelp-compact")
REQUIRED: set[str] = set()
"""Parameters of the form that must be filled in: none, since the chart mounts federation.yaml where the default says."""

_FEDERATION = {
    "name": "demo", "store": {"url": "store"}, "algorithm": {"method": "fedavg", "rounds": 3, "optimizer": {"learning_rate": 0.02}},
    "runtime": {"seed": 17}, "silos": [{"name": "aachen", "dispatch": {"kind": "kubernetes"}}],
}

_COMPILE = """
import json, sys
from fedhelp_pipelines.compile import compiled
print(json.dumps({
    "yaml": {name: compiled(name) for name in sys.argv[1:]},
    "with silos": {name: compiled(name, silos=("charite", "nord")) for name in sys.argv[1:]},
    "with too many": compiled("fedhelp", silos=[f"h{number}" for number in range(51)]),
    "modules": sorted(sys.modules)}))
"""

_CLI = """
import json, sys
from fedhelp_cli.main import main
modules, code = sys.argv.pop(1), 0
try:
    main(prog_name="fedhelp")
except SystemExit as e:
    code = e.code
open(modules, "w").write(json.dumps(sorted(sys.modules)))
sys.exit(code)
"""


def python(program: str, *arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FEDHELP_")}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=cwd, env={**clean, **environment}, timeout=600)


@pytest.fixture(scope="module")
def compilations() -> list[dict[str, Any]]:
    """What two processes with different hash seeds compile, and what they imported for it."""
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda seed: python(_COMPILE, *NAMES, PYTHONHASHSEED=seed), ("1", "2")))
    assert [process.stderr for process in done if process.returncode] == []
    return [json.loads(process.stdout) for process in done]


@pytest.fixture(scope="module")
def spec_of(compilations: list[dict[str, Any]]) -> Callable[[str], dict[str, Any]]:
    specs = {name: next(iter(yaml.safe_load_all(text))) for name, text in compilations[0]["yaml"].items()}
    return lambda name: specs[name]


@pytest.fixture(params=NAMES)
def spec(request: pytest.FixtureRequest, spec_of: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return spec_of(request.param)


@pytest.fixture
def form(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    parameters: dict[str, dict[str, Any]] = spec["root"]["inputDefinitions"]["parameters"]
    return parameters


def tasks_of(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Task -> its spec, those inside the loop too."""
    found = dict(spec["root"]["dag"]["tasks"])
    for component in spec["components"].values():
        found.update(component.get("dag", {}).get("tasks", {}))
    return found


def value_at(federation: Federation, dotted: str) -> Any:
    value: Any = federation.model_dump(mode="json")
    for key in dotted.split("."):
        value = value[key]
    return value


def test_graphs_compile_with_kfp_and_the_standard_library_alone(compilations: list[dict[str, Any]]) -> None:
    imported = {name.partition(".")[0] for name in compilations[0]["modules"]}
    assert "kfp" in imported
    assert imported.isdisjoint({*HEAVY, "fedhelp_core", "numpy", "pydantic", "prometheus_client"} - {"kubernetes"})  # kfp itself brings that


def test_two_compilations_give_the_same_bytes(compilations: list[dict[str, Any]]) -> None:
    assert compilations[0]["yaml"] == compilations[1]["yaml"]


def test_every_parameter_of_the_form_is_typed_and_documented_and_defaulted(form: dict[str, dict[str, Any]]) -> None:
    assert set(form) == {"federation", "run_id", *FIELDS}
    for name, parameter in form.items():
        assert parameter["parameterType"] in ("STRING", "NUMBER_INTEGER", "NUMBER_DOUBLE", "BOOLEAN"), name
        assert parameter["description"].endswith("."), name
        assert ("defaultValue" in parameter and parameter["isOptional"] is True) == (name not in REQUIRED), name


def test_a_form_is_one_screen_and_no_task_sets_what_it_shows(form: dict[str, dict[str, Any]]) -> None:
    """The chart fills it in from its federation alone: a default of the task's own would be undone by it."""
    assert len(form) <= 10
    assert not {f"algorithm.{name}" for task in PRESETS for name in algorithm_for({"name": task})} & set(FIELDS.values())


def test_the_forms_defaults_and_types_are_the_schemas(form: dict[str, dict[str, Any]]) -> None:
    federation = parse_federation({**_FEDERATION, "algorithm": {"method": "fedhelp-no-api"}, "runtime": {}}, source="test")
    kinds = {"STRING": str, "NUMBER_INTEGER": int, "NUMBER_DOUBLE": float}
    for name, dotted in FIELDS.items():
        if name != "method":  # this one has no public set
            assert form[name]["defaultValue"] == value_at(federation, dotted), name
        assert type(value_at(federation, dotted)) is kinds[form[name]["parameterType"]], name
    assert form["method"]["defaultValue"] == AlgorithmConfig().method
    assert default_form() == {name: form[name]["defaultValue"] for name in FIELDS}


def test_enumerations_are_menus_of_what_the_schema_takes(form: dict[str, dict[str, Any]]) -> None:
    assert {name: parameter["literals"] for name, parameter in form.items() if "literals" in parameter} == LITERALS
    allowed = {
        "method": {*METHODS} - {"local"},  # alone at home: nothing to federate
        "normalisation": {*get_args(Normalisation)},
        "promotion_mode": {*get_args(PromotionConfig.model_fields["mode"].annotation)},
    }
    assert {name: set(values) for name, values in LITERALS.items()} == allowed
    for name, values in LITERALS.items():
        assert form[name]["defaultValue"] == values[0], name  # what the menu shows first is what happens


def test_every_input_of_every_component_is_typed_and_documented(spec: dict[str, Any]) -> None:
    components = {name: part for name, part in spec["components"].items() if "executorLabel" in part}
    assert len(components) >= 5
    for name, component in components.items():
        for parameter, described in component["inputDefinitions"]["parameters"].items():
            assert described["parameterType"] in ("STRING", "NUMBER_INTEGER", "NUMBER_DOUBLE", "LIST"), (name, parameter)
            assert described["description"].strip(), (name, parameter)


def test_every_parameter_of_the_form_reaches_check(spec: dict[str, Any]) -> None:
    inputs = spec["root"]["dag"]["tasks"]["check"]["inputs"]["parameters"]
    for name in ("federation", "run_id", *FIELDS):
        assert inputs[name] == {"componentInputParameter": name}
    assert inputs["job_name"] == {"runtimeValue": {"constant": "{{$.pipeline_job_name}}"}}
    assert inputs["job_id"] == {"runtimeValue": {"constant": "{{$.pipeline_job_uuid}}"}}


def test_both_graphs_have_the_same_form_and_give_what_promotion_decided(spec_of: Callable[[str], dict[str, Any]]) -> None:
    one, other = spec_of("fedhelp"), spec_of("fedhelp-compact")
    assert one["root"]["inputDefinitions"] == other["root"]["inputDefinitions"]
    for spec, name in ((one, "fedhelp"), (other, "fedhelp-compact")):
        assert spec["pipelineInfo"]["name"] == name
        assert spec["root"]["dag"]["outputs"]["parameters"]["Output"]["valueFromParameter"]["producerSubtask"] == "promotion"


def test_fedhelp_has_a_node_per_silo_beside_aggregation(spec_of: Callable[[str], dict[str, Any]]) -> None:
    tasks = dict(spec_of("fedhelp")["root"]["dag"]["tasks"])
    tasks.pop("for-loop-1")  # the shards
    loop = tasks.pop("for-loop-2")
    assert set(tasks) == {"check", "soft-label-prefetch-2", "aggregation", "evaluation", "condition-3", "promotion"}
    assert loop["parameterIterator"]["items"] == {"inputParameter": "pipelinechannel--check-in_loop"}
    assert set(spec_of("fedhelp")["components"]["comp-for-loop-2"]["dag"]["tasks"]) == {"silo-training-2"}
    # beside, not after, each other: they meet in the store
    assert set(loop["dependentTasks"]) == {"check", "soft-label-prefetch-2"}
    assert set(tasks["aggregation"]["dependentTasks"]) == {"check", "soft-label-prefetch-2"}
    assert "aggregation" in tasks["evaluation"]["dependentTasks"]
    assert "evaluation" in tasks["promotion"]["dependentTasks"]


def nodes_of(spec: dict[str, Any]) -> dict[str, str]:
    """Task of the first page -> what its node is called."""
    return {name: task["taskInfo"]["name"] for name, task in spec["root"]["dag"]["tasks"].items()}


def test_every_known_silo_has_a_node_with_its_name_and_check_leaves_the_others_to_the_loop(
    compilations: list[dict[str, Any]], spec_of: Callable[[str], dict[str, Any]],
) -> None:
    spec = next(iter(yaml.safe_load_all(compilations[0]["with silos"]["fedhelp"])))
    tasks = spec["root"]["dag"]["tasks"]
    assert nodes_of(spec) == nodes_of(spec_of("fedhelp")) | {"train-charite": "train charite", "train-nord": "train nord"}
    assert tasks["check"]["inputs"]["parameters"]["nodes"] == {"runtimeValue": {"constant": ["charite", "nord"]}}
    assert tasks["for-loop-2"]["taskInfo"]["name"] == "hospitals"
    for silo in ("charite", "nord"):
        task = tasks[f"train-{silo}"]
        assert task["inputs"]["parameters"]["silo"] == {"runtimeValue": {"constant": silo}}
        assert task["dependentTasks"] == tasks["for-loop-2"]["dependentTasks"]
        assert spec["components"][task["componentRef"]["name"]]["executorLabel"] == "exec-silo-training"
    assert "HOSPITAL" not in compilations[0]["with silos"]["fedhelp"]


def test_more_silos_than_anybody_reads_and_all_of_the_compact_pipeline_have_no_nodes_of_their_own(
    compilations: list[dict[str, Any]], spec_of: Callable[[str], dict[str, Any]],
) -> None:
    assert compilations[0]["with too many"] == compilations[0]["yaml"]["fedhelp"]
    assert compilations[0]["with silos"]["fedhelp-compact"] == compilations[0]["yaml"]["fedhelp-compact"]
    assert "train all hospitals" in nodes_of(spec_of("fedhelp-compact")).values()


def test_no_two_nodes_of_a_page_have_the_same_name(spec: dict[str, Any]) -> None:
    pages = [component["dag"]["tasks"] for component in [spec["root"], *spec["components"].values()] if "dag" in component]
    for page in pages:
        artifacts = [
            name for task in page.values()
            for name in spec["components"][task["componentRef"]["name"]].get("outputDefinitions", {}).get("artifacts", {})]
        names = [*(task["taskInfo"]["name"] for task in page.values()), *artifacts]
        assert len(set(names)) == len(names), names


def test_a_node_that_names_the_hospitals_left_out_runs_only_where_there_are_some(spec: dict[str, Any]) -> None:
    (name, node), = [(name, task) for name, task in spec["root"]["dag"]["tasks"].items() if task["taskInfo"]["name"] == "hospitals left out"]
    assert node["triggerPolicy"] == {"condition": "inputs.parameter_values['pipelinechannel--evaluation-left_out'] != ''"}
    inner = spec["components"][node["componentRef"]["name"]]["dag"]["tasks"]
    assert {name: task["taskInfo"]["name"] for name, task in inner.items()} == {"left-out": "left out"}
    assert name not in spec["root"]["dag"]["tasks"]["promotion"]["dependentTasks"]  # skipped, it must not take promotion with it


def test_fedhelp_asks_teachers_in_shards_beside_each_other_and_builds_the_set_after_them(spec_of: Callable[[str], dict[str, Any]]) -> None:
    spec = spec_of("fedhelp")
    tasks = spec["root"]["dag"]["tasks"]
    assert tasks["for-loop-1"]["parameterIterator"]["items"] == {"inputParameter": "pipelinechannel--check-shards"}
    inner = spec["components"]["comp-for-loop-1"]["dag"]["tasks"]["soft-label-prefetch"]["inputs"]["parameters"]
    assert inner["shard"] == {"componentInputParameter": "pipelinechannel--check-shards-loop-item"}
    assert set(tasks["soft-label-prefetch-2"]["dependentTasks"]) == {"check", "for-loop-1"}
    asked = tasks["soft-label-prefetch-2"]["inputs"]["parameters"]["asked"]
    assert asked["taskOutputParameter"]["producerTask"] == "for-loop-1"
    assert "shard" not in tasks["soft-label-prefetch-2"]["inputs"]["parameters"]  # the default: everything


def test_fedhelp_compact_has_all_rounds_in_one_task(spec_of: Callable[[str], dict[str, Any]]) -> None:
    tasks = spec_of("fedhelp-compact")["root"]["dag"]["tasks"]
    assert set(tasks) == {"check", "soft-label-prefetch", "federation", "evaluation", "condition-1", "promotion"}
    assert set(tasks["federation"]["dependentTasks"]) == {"check", "soft-label-prefetch"}
    assert "federation" in tasks["evaluation"]["dependentTasks"]


def test_no_task_but_prefetch_is_ever_answered_from_the_cache(spec: dict[str, Any]) -> None:
    cached = {name for name, task in tasks_of(spec).items() if task.get("cachingOptions", {}).get("enableCache")}
    assert cached == {"soft-label-prefetch", "soft-label-prefetch-2"} & tasks_of(spec).keys()
    assert cached


def test_components_install_nothing_when_they_start(spec: dict[str, Any]) -> None:
    for executor in spec["deploymentSpec"]["executors"].values():
        assert "pip install" not in " ".join(executor["container"]["command"])


def test_compile_bakes_a_federations_settings_in_as_defaults(tmp_path: Path) -> None:
    (tmp_path / "federation.yaml").write_text(yaml.safe_dump(_FEDERATION), encoding="utf-8")
    done = python(
        _CLI, "modules.json", "compile", "--pipeline", "fedhelp-compact", "--federation", "federation.yaml", "-o", "baked.yaml", cwd=tmp_path,
        FEDHELP_HUB_IMAGE="registry.hospital/hub:7", FEDHELP_SILO_IMAGE="registry.hospital/silo:7")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("baked.yaml: upload it")
    baked = next(iter(yaml.safe_load_all((tmp_path / "baked.yaml").read_text(encoding="utf-8"))))
    form = baked["root"]["inputDefinitions"]["parameters"]
    assert {name: form[name]["defaultValue"] for name in FIELDS} == {
        "method": "fedavg", "normalisation": "shared", "rounds": 3, "local_epochs": 1, "learning_rate": 0.02, "seed": 17, "promotion_mode": "gate"}
    images = {executor["container"]["image"] for executor in baked["deploymentSpec"]["executors"].values()}
    assert images == {"registry.hospital/hub:7", "registry.hospital/silo:7"}
    assert {name.partition(".")[0] for name in json.loads((tmp_path / "modules.json").read_text())}.isdisjoint({"torch", "mlflow", "monai"})


def test_compile_refuses_settings_that_the_form_does_not_offer(tmp_path: Path) -> None:
    (tmp_path / "federation.yaml").write_text(yaml.safe_dump({**_FEDERATION, "algorithm": {"method": "local"}}), encoding="utf-8")
    done = python(_CLI, "modules.json", "compile", "--federation", "federation.yaml", cwd=tmp_path)
    assert done.returncode == 10
    assert "algorithm.method" in done.stderr
    assert "got 'local'" in done.stderr
    assert not (tmp_path / "fedhelp.yaml").exists()


def test_compile_says_everything_that_is_wrong_with_the_federation(tmp_path: Path) -> None:
    (tmp_path / "federation.yaml").write_text("name: Demo\n", encoding="utf-8")
    done = python(_CLI, "modules.json", "compile", "--federation", "federation.yaml", cwd=tmp_path)
    assert done.returncode == 10
    assert [line.split(": ")[3] for line in done.stderr.splitlines()] == ["name", "store", "silos"]
    assert "Traceback" not in done.stderr


def test_compile_writes_what_compiled_gives(compilations: list[dict[str, Any]], tmp_path: Path) -> None:
    done = python(_CLI, "modules.json", "compile", cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "fedhelp.yaml").read_text(encoding="utf-8") == compilations[0]["yaml"]["fedhelp"]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_answers_at_once_and_imports_nothing_heavy(command: str, tmp_path: Path) -> None:
    done = python(_CLI, "modules.json", *([command] if command else []), "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: fedhelp {command}".rstrip())
    assert "Exit codes" in done.stdout
    imported = {name.partition(".")[0] for name in json.loads((tmp_path / "modules.json").read_text())}
    assert imported.isdisjoint({*HEAVY, "kfp", "numpy", "pydantic"})
    if not command:
        assert all(f"  {name} " in done.stdout for name in COMMANDS)


def test_the_installed_command_is_this_one() -> None:
    done = subprocess.run([Path(sys.executable).with_name("fedhelp"), "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == f"fedhelp, version {importlib.metadata.version('fedhelp')}"


def test_every_option_is_documented() -> None:
    import click

    from fedhelp_cli.main import main

    assert set(main.commands) == set(COMMANDS)
    groups = {name: command.commands for name, command in main.commands.items() if isinstance(command, click.Group)}
    for name, command in [*main.commands.items(), *(pair for group in groups.values() for pair in group.items())]:
        for option in command.params:
            if isinstance(option, click.Option) and not isinstance(option.type, click.Choice):
                assert option.help, f"fedhelp {name} {option.opts[0]}"


@pytest.mark.parametrize("name", NAMES)
def test_form_nodes_volumes_and_secrets_are_the_ones_that_others_rely_on(name: str, compilations: list[dict[str, Any]]) -> None:
    """Whoever changes one on purpose writes it down: python -m tests.pipelines.contract."""
    known = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    assert contract_of(compilations[0]["with silos"][name]) == known


def test_the_operating_guide_describes_every_node_artifact_and_field_by_its_name(form: dict[str, dict[str, Any]]) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "operating.md").read_text(encoding="utf-8")
    fields = guide[guide.index("### In the Kubeflow UI"):guide.index("### What one sees")]
    assert set(form) == {word for row in re.findall(r"^\| (`.*?) \|", fields, re.MULTILINE) for word in re.findall(r"`(\w+)`", row)}
    section = guide[guide.index("### What one sees"):guide.index("### Again, and again")]
    for name in NAMES:
        for page in yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))["pages"].values():
            for node, found in page.items():
                for word in (node.replace("nord", "charite"), *found.get("artifacts", ())):
                    assert f"`{word}`" in section or word == "reasons", (name, word)
