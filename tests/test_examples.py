"""Every file of examples/ is a federation that its own comments lead to: parsed, with the paper's settings, and checked on drawn data."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

import pytest
import yaml

from fedhelp_cli.check import check_and_print
from fedhelp_components.check.__main__ import static_problems
from fedhelp_core.config.algorithm import AlgorithmConfig
from fedhelp_core.config.federation import Federation, load_federation
from fedhelp_core.config.task import TaskConfig, algorithm_for
from fedhelp_core.data.phantom import chest_xray, fed_isic, fed_ixi, lungs
from fedhelp_core.demo.prepare import silo_document
from fedhelp_core.demo.tasks import DRAWN
from fedhelp_core.demo.teacher import TEACHERS, save_weights_as_teacher, teachers_task
from fedhelp_core.registry.tasks import PRESETS, Form
from tests.test_docs import fault_of

EXAMPLES = Path(__file__).parent.parent / "examples"
# as many images as a check needs, where the demo draws hundreds
_DRAW: Mapping[str, Callable[[Path], None]] = {
    "melanoma": lambda folder: fed_isic.write_fed_isic(
        folder, seed=1, sites=[fed_isic.Site(train=4 + 2 * n, test=2, mix=(1,) * 8, camera=fed_isic.Camera()) for n in range(6)]),
    "pneumonia": lambda folder: chest_xray.write_chest_xray(folder, seed=1, counts={"training": (14, 16), "validation": (2, 2), "test": (7, 7)}),
    "lung-segmentation": lambda folder: lungs.write_lungs(folder, seed=1, counts={"CHNCXR": 10, "MCUCXR": 10, "JPCLN": 24}),
    "brain-segmentation": lambda folder: fed_ixi.write_fed_ixi(folder, seed=1, counts={"Guys": (2, 1), "HH": (2, 1), "IOP": (2, 1)}, spacing=8.0),
}


def test_each_task_of_the_paper_has_a_file_with_its_settings_and_a_small_one_and_each_form_has_an_example() -> None:
    of_paper = {f"{task}{kind}.yaml" for task in PRESETS for kind in ("", "-small")}
    assert {path.name for path in EXAMPLES.glob("*.yaml")} == of_paper | {f"{task}.yaml" for task in DRAWN if task not in PRESETS}
    assert {load_federation(EXAMPLES / f"{task}.yaml").task.form for task in DRAWN} == set(get_args(Form))


@pytest.mark.parametrize("task", [task for task in DRAWN if task not in PRESETS])
def test_an_example_of_a_form_is_the_demo_with_comments(task: str) -> None:
    """What `fedhelp data phantom` draws for it is what the file reads."""
    federation, demo = load_federation(EXAMPLES / f"{task}.yaml"), TaskConfig.model_validate(DRAWN[task].task)
    assert federation.task.model_copy(update={"metrics": demo.metrics}) == demo
    assert federation.silo_names == DRAWN[task].silos
    assert {silo.name: list(silo.labelled) for silo in federation.silos if silo.labelled} == {
        silo: list(names) for silo, names in DRAWN[task].labelled.items()}
    assert federation.public_set is not None
    assert federation.public_set.teachers[0].classes == DRAWN[task].public.answers


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_valid_and_named_like_its_file(path: Path) -> None:
    federation = load_federation(path)  # an unknown key is an error
    assert federation.name == path.stem
    assert federation.task.name == path.stem.removesuffix("-small")
    assert all(silo.dispatch.silo_config == path.parent / "data" / path.stem / "silos" / f"{silo.name}.yaml" for silo in federation.silos)


@pytest.mark.parametrize("task", PRESETS)
def test_the_papers_file_says_the_papers_settings(task: str) -> None:
    """A changed default would make the file lie; a changed file would not be the paper's."""
    told = yaml.safe_load((EXAMPLES / f"{task}.yaml").read_text(encoding="utf-8"))["algorithm"]
    other = {} if told["method"] == "fedhelp" else {"method": told["method"]}
    paper = AlgorithmConfig(**{**algorithm_for({"name": task}), "batch_size": 4, **other})
    assert load_federation(EXAMPLES / f"{task}.yaml").algorithm.model_dump(exclude={"public_batch_size"}) == paper.model_dump(
        exclude={"public_batch_size"})
    shown = {"rounds", "local_epochs", "batch_size", "optimizer", "rank_weight", "rank_top_k", "large_silos", "proxy_model", "large_model"}
    assert shown <= told.keys()


@pytest.mark.parametrize("task", PRESETS)
def test_the_command_in_a_papers_file_makes_the_silos_it_names(task: str) -> None:
    text = (EXAMPLES / f"{task}.yaml").read_text(encoding="utf-8")
    assert re.search(rf"fedhelp data ingest \S+ FOLDER .*--out examples/data/{task}\b", text)
    assert f"fedhelp data phantom {task} examples/data/{task}-small" in (EXAMPLES / f"{task}-small.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_command_in_a_files_comments_takes_its_arguments(path: Path) -> None:
    shown = re.findall(r"^#   (fedhelp .*?)(?:   .*)?$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(shown) >= 3
    assert [fault for line in shown if (fault := fault_of(line))] == []


@pytest.mark.parametrize("task", PRESETS)
def test_what_a_papers_file_lacks_is_its_public_images_alone(task: str, tmp_path: Path) -> None:
    federation = _copied(task, tmp_path)
    images = tmp_path / "data" / "public" / {"lung-segmentation": "skin", "brain-segmentation": "flare"}.get(task, "nct-crc-he")
    assert [str(problem) for problem in static_problems(federation)] == [
        f"public_set.images: {images} does not exist; give the public images, as public_set.layout says"]


@pytest.mark.slow
@pytest.mark.parametrize("task", [
    task if task in ("melanoma", "brain-segmentation") else pytest.param(task, marks=pytest.mark.long) for task in PRESETS])
def test_a_small_example_passes_its_check_on_drawn_data(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    federation = _copied(f"{task}-small", tmp_path)
    folder = tmp_path / "data" / f"{task}-small"
    _DRAW[task](folder / "data")
    (folder / "silos").mkdir()
    for number, silo in enumerate(federation.silo_names):
        (folder / "silos" / f"{silo}.yaml").write_text(yaml.safe_dump(silo_document(DRAWN[task], number)), encoding="utf-8")
    public = DRAWN[task].public
    public.write(folder / "public", count=2, seed=1)
    save_weights_as_teacher(
        TEACHERS / f"{task}.safetensors", folder / "teacher", architecture=DRAWN[task].teacher, task=teachers_task(DRAWN[task]))
    assert federation.public_set is not None
    assert federation.public_set.teachers[0].classes == public.answers
    check_and_print(tmp_path / f"{task}-small.yaml", {})
    assert "everything is in order" in capsys.readouterr().out


def _copied(stem: str, folder: Path) -> Federation:
    """The example beside an empty `data` of its own."""
    shutil.copy(EXAMPLES / f"{stem}.yaml", folder)
    (folder / "data").mkdir()
    return load_federation(folder / f"{stem}.yaml")
