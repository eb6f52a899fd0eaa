"""`fedhelp check` of silos on this machine: every image looked at, pages of pictures, problems grouped, exit codes that mean what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from fedhelp_cli.main import main
from tests.tiny import TinyFederation

DATA, CONFIG = 11, 10


def typed(tiny: TinyFederation, *words: str) -> Result:
    return CliRunner().invoke(main, ["check", str(tiny.path), *words])


def with_own_images(tiny: TinyFederation, silo: str) -> Path:
    """A folder of the silo's own, which a test may damage; its silo.yaml points there."""
    import csv
    import shutil

    shutil.copytree(tiny.drawn / "data", tiny.folder / "data")
    tiny.write_silo(silo, data__images="data/images", data__split_csv="data/train_test_split.csv")
    with (tiny.folder / "data" / "train_test_split.csv").open(newline="") as file:
        names = [row["image"] for row in csv.DictReader(file) if row["center"] == "0"]
    assert names
    return tiny.folder / "data" / "images"


@pytest.mark.slow
def test_every_image_is_looked_at_and_a_page_of_pictures_is_left_in_the_silos_state(make_tiny: Callable[..., TinyFederation]) -> None:
    tiny = make_tiny()
    done = typed(tiny)
    assert done.exit_code == 0, done.output
    assert "silo aachen: 20 of 20 images looked at; see them: " in done.output
    page = (tiny.folder / "state" / "aachen" / "pictures.html").read_text(encoding="utf-8")
    assert "aachen: what the network will see" in page and page.count("<svg") == 3


@pytest.mark.slow
def test_a_sample_looks_at_some_and_starts_nothing(make_tiny: Callable[..., TinyFederation]) -> None:
    tiny = make_tiny()
    done = typed(tiny, "--sample", "5")
    assert done.exit_code == 0, done.output
    assert "of 20 images looked at" in done.output and "20 of 20" not in done.output
    assert "all images but the sample" in done.output


@pytest.mark.slow
def test_one_wrong_folder_is_one_line_a_silo_and_exit_code_11(make_tiny: Callable[..., TinyFederation]) -> None:
    tiny = make_tiny()
    for path in with_own_images(tiny, "aachen").iterdir():
        path.unlink()
    done = typed(tiny)
    assert done.exit_code == DATA, done.output
    errors = [line for line in done.output.splitlines() if "error: " in line]
    assert len(errors) == 1
    assert "error: silo aachen: " in errors[0] and "no such image file" in errors[0] and "(and 19 more alike: " in errors[0]


@pytest.mark.slow
def test_a_hospitals_bits_are_told(make_tiny: Callable[..., TinyFederation]) -> None:
    tiny = make_tiny()
    images = with_own_images(tiny, "aachen")
    for path in images.iterdir():
        deep = Image.fromarray(np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16)
        deep.save(path, "PNG")  # under its old name
    done = typed(tiny, "--sample", "50")
    assert done.exit_code == 0, done.output
    assert "silo aachen: 20 of 20 images have 16 bits a pixel, 12 of them in use; all are scaled by these 12" in done.output


@pytest.mark.slow
def test_a_federation_that_numbers_classes_otherwise_than_the_layout_is_refused(make_tiny: Callable[..., TinyFederation]) -> None:
    classes = list(make_tiny().load().task.classes)
    done = typed(make_tiny(task__classes=[*classes[1:], classes[0]]))
    assert done.exit_code == DATA, done.output
    assert "the layout numbers classes" in done.output


def test_values_of_the_hubs_chart_are_told_apart_what_is_wrong_and_what_cannot_be_seen_from_here(tmp_path: Path) -> None:
    values = {"federation": {
        "name": "demo", "store": {"url": str(tmp_path / "store")}, "task": {"classes": ["x", "y"], "image_size": 32}, "algorithm": {"rank_top_k": 1},
        "public_set": {"images": "/public-of-a-pod", "teachers": [
            {"name": "t", "kind": "openinference", "uri": "http://teacher.models/v2/models/t", "classes": 2}]},
        "silos": [{"name": "aachen", "dispatch": {"kind": "process", "silo_config": str(tmp_path / "none.yaml")}}]}}
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    alone = tmp_path / "federation.yaml"
    alone.write_text(yaml.safe_dump(values["federation"]), encoding="utf-8")

    as_values, as_file = (CliRunner().invoke(main, ["check", str(file), "--sample", "1"]) for file in (path, alone))

    (unseen,) = [line for line in as_values.output.splitlines() if "/public-of-a-pod" in line]
    assert unseen.startswith("cannot be seen from this machine, a run's pods may well see it: ")
    (wrong,) = [line for line in as_file.output.splitlines() if "/public-of-a-pod" in line]
    assert wrong.startswith("fedhelp check: error: ")
    assert "none.yaml" in as_values.output and as_values.exit_code != 0


@pytest.mark.slow
def test_json_has_everything_on_standard_output_and_progress_elsewhere_with_the_same_exit_code(make_tiny: Callable[..., TinyFederation]) -> None:
    tiny = make_tiny()
    done = typed(tiny, "--json", "--sample", "2")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["in_order"], found["problems"]) == (0, True, [])
    assert "all images but the sample" in found["not_looked_at"]
    assert "images looked at" in done.stderr

    (tiny.folder / "aachen.yaml").unlink()
    done = typed(tiny, "--json", "--sample", "2")
    found = json.loads(done.stdout)
    assert done.exit_code == CONFIG
    assert found["in_order"] is False
    assert any(problem.startswith("silo aachen: ") for problem in found["problems"])
    assert "check: error: silo aachen: " in done.stderr
