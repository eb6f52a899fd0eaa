"""A task is a document: a preset's name fills it in, one's own says its form; consumers need no name."""

from pathlib import Path
from typing import get_args

import pytest
import yaml

from fedhelp_core.config.federation import Federation, parse_federation
from fedhelp_core.config.task import TaskConfig, task_asked_for, with_classes
from fedhelp_core.errors import ConfigError
from fedhelp_core.registry.augmentations import AUGMENTATIONS
from fedhelp_core.registry.metrics import metrics_of
from fedhelp_core.registry.tasks import PRESETS, Form

RETINOPATHY = {"name": "retinopathy", "form": "classes", "classes": ["none", "mild", "moderate", "severe", "proliferative"]}


def federation(task: dict[str, object], **algorithm: object) -> Federation:
    return parse_federation({
        "name": "test", "task": task, "algorithm": {"method": "fedavg", **algorithm}, "store": {"url": "store"},
        "silos": [{"name": "a", "dispatch": {"silo_config": "a.yaml"}}]}, source="test")


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_name_stands_for_all_of_it_and_its_text_is_as_short_as_before(name: str) -> None:
    task = TaskConfig(name=name, image_size=64)
    assert set(task.model_dump()) == {"name", "classes", "image_size", "volume"}
    assert TaskConfig.model_validate(task.model_dump(mode="json")) == task
    assert (task.form, task.dimensions, task.headline) == (
        PRESETS[name].task["form"], PRESETS[name].task.get("dimensions", 2), task.scored_by[0])


def test_a_task_of_ones_own_is_written_whole_and_read_back_the_same() -> None:
    found = federation(RETINOPATHY)
    assert (found.task.form, found.task.dimensions, found.task.channels, len(found.task.classes)) == ("classes", 2, 3, 5)
    assert (found.algorithm.rank_top_k, found.algorithm.augmentation) == (4, "mirror")
    assert parse_federation(yaml.safe_load(found.to_yaml()), source="again").digest() == found.digest()


def test_a_preset_may_go_on_under_another_name() -> None:
    found = federation({"name": "chest", "preset": "pneumonia", "classes": ["normal", "bacterial", "viral"]})
    assert (found.task.name, found.task.form, len(found.task.classes)) == ("chest", "classes", 3)
    assert found.algorithm.rank_top_k == 1
    assert with_classes(TaskConfig(name="pneumonia"), ["a", "b", "c"]).name == "pneumonia-3"


def test_masks_of_ones_own_get_a_network_that_answers_with_masks() -> None:
    found = federation({"name": "liver", "form": "masks", "dimensions": 3, "image_size": 64, "classes": ["background", "liver"]})
    assert (str(found.algorithm.proxy_model), found.algorithm.rank_weight, found.task.channels) == ("unet3d", 0.0, 1)


def test_the_first_of_the_chosen_metrics_is_the_headline() -> None:
    task = TaskConfig.model_validate({**RETINOPATHY, "metrics": ["auroc", "accuracy"]})
    assert ([metric.name for metric in task.scored_by], task.headline.title) == (["auroc", "accuracy"], "AUROC")


@pytest.mark.parametrize(("task", "words"), [
    ({"name": "retinopathy"}, "task.name: 'retinopathy' is none of the presets .*; a task of one's own says its form and classes too"),
    ({"name": "pnemonia"}, "did you mean 'pneumonia'"),
    ({**RETINOPATHY, "form": "clases"}, "task.form: .*did you mean 'classes'"),
    ({**RETINOPATHY, "preset": "melanom"}, "task.preset: .*did you mean 'melanoma'"),
    ({**RETINOPATHY, "metrics": ["auroc", "acuracy"]}, r"task.metrics.1: one of .*got 'acuracy'; did you mean 'accuracy'"),
    ({**RETINOPATHY, "metrics": []}, "task.metrics: at least one"),
    ({**RETINOPATHY, "metrics": ["auroc", "auroc"]}, "each once"),
    ({**RETINOPATHY, "name": "Retinopathy 1"}, "task.name: lower-case"),
    ({"name": "pneumonia", "form": "masks"}, "task.form: 'classes' expected of preset 'pneumonia'"),
    ({"name": "pneumonia", "preset": "melanoma"}, "'pneumonia' is a preset itself"),
    ({"name": "retinopathy", "form": "classes"}, "task.classes: at least 2 names"),
    ({**RETINOPATHY, "loss": "os.system"}, "task.loss: unknown field"),
])
def test_what_cannot_be_a_task_is_one_sentence(task: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        federation(task)


def test_the_page_of_tasks_lists_every_form_metric_and_transform() -> None:
    page = (Path(__file__).parents[3] / "docs" / "tasks.md").read_text(encoding="utf-8")
    names = [*get_args(Form), *(name for form in get_args(Form) for name in metrics_of(form, 2)), *AUGMENTATIONS, *PRESETS]
    assert [name for name in names if f"`{name}`" not in page] == []
    for name, one in AUGMENTATIONS.items():
        assert not one.unit or f"{one.least:g} to {one.most:g} |" in next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))


def test_option_task_takes_a_file_with_a_section_alone_or_among_others(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(RETINOPATHY))
    (tmp_path / "federation.yaml").write_text(yaml.safe_dump({"name": "x", "task": RETINOPATHY}))
    alone, among = task_asked_for(str(tmp_path / "task.yaml")), task_asked_for(str(tmp_path / "federation.yaml"))
    assert alone == among == TaskConfig.model_validate({**RETINOPATHY, "image_size": 64})
    with pytest.raises(ConfigError, match="no such file"):
        task_asked_for(str(tmp_path / "absent.yaml"))
