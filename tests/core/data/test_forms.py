"""Files of the forms: findings in lists, several classes or regions in one mask, several sequences an image."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedhelp_core.config.section import validated
from fedhelp_core.config.silo import DatalistData
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.datalist import read_datalist, write_datalist
from fedhelp_core.data.items import Item
from fedhelp_core.data.marks import Marks
from fedhelp_core.data.own_csv import Reading, read_own_csv
from fedhelp_core.data.phantom.fed_ixi import save_volume
from fedhelp_core.data.phantom.tumours import with_sequences
from fedhelp_core.data.reading import read_examples
from fedhelp_core.errors import ConfigError, DataError
from fedhelp_core.registry.tasks import NOT_LABELLED

CHEST = TaskConfig.model_validate({"name": "chest", "form": "labels", "classes": ["effusion", "mass"], "image_size": 16})
ORGANS = TaskConfig.model_validate({
    "name": "organs", "form": "masks", "classes": ["background", "lung", "heart"], "image_size": 16})
TUMOURS = TaskConfig.model_validate({
    "name": "tumours", "form": "regions", "dimensions": 3, "channels": 2, "classes": ["whole", "core"], "mask_values": [[1, 2, 3], [1, 3]],
    "image_size": 16, "volume": {"spacing": 1.0, "patch_size": 8, "window_size": 8}})
SIDES = (12, 12, 12)
UPRIGHT = np.diag([1.0, 1.0, 1.0, 1.0])


def picture(path: Path, pixels: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 24), 90, np.uint8) if pixels is None else pixels).save(path)
    return path


def volume(path: Path, seed: int, affine: Any = UPRIGHT, shape: tuple[int, ...] = SIDES) -> Path:
    save_volume(np.random.default_rng(seed).integers(0, 100, shape).astype(np.int16), affine, path)
    return path


def test_a_csv_has_a_column_a_finding_and_an_empty_cell_is_not_labelled(tmp_path: Path) -> None:
    for name in "abcd":
        picture(tmp_path / f"{name}.png")
    (tmp_path / "list.csv").write_text("image,split,Effusion,mass\na.png,train,1,0\nb.png,train,,1.0\nc.png,test,-1,0\nd.png,test,2,0\n")
    reading = Reading(task=CHEST, folder=tmp_path, columns={"effusion": "Effusion"})
    (listed,) = read_own_csv(tmp_path / "list.csv", reading).values()
    assert [item.findings for item in listed.splits["training"]] == [(1, 0), (NOT_LABELLED, 1)]
    assert [item.findings for item in listed.splits["test"]] == [(NOT_LABELLED, 0)]
    assert listed.problems == [f"{tmp_path / 'list.csv'}: line 5: effusion should be 0, 1 or empty (not labelled), got '2'"]
    with pytest.raises(DataError, match="missing"):
        read_own_csv(tmp_path / "list.csv", Reading(task=CHEST, folder=tmp_path, columns={"mass": "Tumour"}))


def test_a_datalist_of_findings_and_sequences_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = [Item(picture(tmp_path / "a.png"), findings=(1, NOT_LABELLED)), Item(picture(tmp_path / "b.png"), findings=(0, 1))]
    both = Item(volume(tmp_path / "t1.nii.gz", 1), mask=volume(tmp_path / "m.nii.gz", 2), sequences=(volume(tmp_path / "t2.nii.gz", 3),))
    for form, items in (("labels", found), ("regions", [both])):
        path = tmp_path / f"{form}.json"
        read = read_datalist(DatalistData(layout="datalist", datalist=_written(path, tuple(items))), form=form)  # type: ignore[arg-type]
        assert read.training == tuple(items) and not read.problems
    (tmp_path / "wrong.json").write_text('{"training": [{"image": "a.png", "label": [1, true]}, {"image": ["a.png", 3], "label": [1, 0]}]}')
    problems = read_datalist(DatalistData(layout="datalist", datalist=tmp_path / "wrong.json"), form="labels").problems
    assert "a list with 0, 1 or null of each finding expected, got [1, True]" in problems[0] and "expected, got" in problems[1]


def _written(path: Path, items: tuple[Item, ...]) -> Path:
    from fedhelp_core.data.datalist import manifest_from

    write_datalist(path, manifest_from("here", {"training": items}), root=path.parent)
    return path


def test_findings_become_a_target_of_as_many_numbers(tmp_path: Path) -> None:
    (example,) = read_examples([Item(picture(tmp_path / "a.png"), findings=(1, NOT_LABELLED))], CHEST)
    assert isinstance(example.target, np.ndarray) and example.target.tolist() == [1, NOT_LABELLED]


def test_a_mask_of_several_classes_keeps_their_numbers_and_a_value_that_nobody_declared_is_refused(tmp_path: Path) -> None:
    mask = np.zeros((20, 24), np.uint8)
    mask[:, 4:10], mask[:, 10:18] = 1, 2
    item = Item(picture(tmp_path / "a.png"), mask=picture(tmp_path / "m.png", mask))
    (example,) = read_examples([item], ORGANS)
    assert isinstance(example.target, np.ndarray) and np.unique(example.target).tolist() == [0, 1, 2] and example.target.shape == (1, 16, 16)
    picture(tmp_path / "m.png", mask + (mask == 2))
    (refused,) = read_examples([item], ORGANS)
    assert "the mask holds 3, none of 0, 1, 2 (task.mask_values)" in refused.problem
    picture(tmp_path / "m.png", np.zeros((20, 24), np.uint8))
    assert not next(iter(read_examples([item], ORGANS))).problem, "of several organs, a picture may show none"


def test_regions_share_values_of_a_masks_file() -> None:
    target = Marks.of(TUMOURS).target(np.array([0, 1, 2, 3]))
    assert target.tolist() == [[0, 1, 1, 1], [0, 1, 0, 1]]


@pytest.mark.slow  # MONAI takes seconds to import
def test_sequences_are_a_file_each_or_one_of_four_dimensions_and_lie_on_one_grid(tmp_path: Path) -> None:
    mask = tmp_path / "m.nii.gz"
    save_volume(np.random.default_rng(5).integers(0, 4, SIDES).astype(np.uint8), UPRIGHT, mask)
    one, other = volume(tmp_path / "t1.nii.gz", 1), volume(tmp_path / "t2.nii.gz", 2)
    (of_files,) = read_examples([Item(one, mask=mask, sequences=(other,))], TUMOURS)
    assert of_files.image_CHW is not None and of_files.image_CHW.shape == (2, 16, 16, 16)
    assert isinstance(of_files.target, np.ndarray) and of_files.target.shape == (2, 16, 16, 16)
    stacked = np.stack([np.random.default_rng(seed).integers(0, 100, SIDES).astype(np.int16) for seed in (1, 2)], axis=-1)
    save_volume(stacked, UPRIGHT, tmp_path / "both.nii.gz")
    (of_one,) = read_examples([Item(tmp_path / "both.nii.gz", mask=mask)], TUMOURS)
    assert of_one.image_CHW is not None and np.array_equal(of_files.image_CHW, of_one.image_CHW)

    moved = UPRIGHT.copy()
    moved[0, 3] = 4
    for sequences, words in (
        ((), "four dimensions with 2 sequences"), ((volume(tmp_path / "moved.nii.gz", 3, moved),), "lies elsewhere than the first one"),
        ((volume(tmp_path / "small.nii.gz", 3, shape=(10, 12, 12)),), "register the sequences"), ((other, other), "2 sequences expected"),
    ):
        (refused,) = read_examples([Item(one, mask=mask, sequences=sequences)], TUMOURS)
        assert words in refused.problem


@pytest.mark.slow
def test_a_volume_can_be_repeated_as_so_many_sequences(tmp_path: Path) -> None:
    import nibabel

    made = with_sequences(volume(tmp_path / "a.nii.gz", 1), 3)
    assert nibabel.load(made).shape == (*SIDES, 3) and with_sequences(made, 3) == made


@pytest.mark.slow
def test_intensities_of_each_channel_are_brought_to_0_to_255_as_the_task_says(tmp_path: Path) -> None:
    voxels = np.zeros((*SIDES, 2), np.int16)
    voxels[..., 0] = np.linspace(-500, 500, 12)[:, None, None]
    voxels[..., 1] = np.linspace(1, 100, 12)[:, None, None]
    save_volume(voxels, UPRIGHT, tmp_path / "both.nii.gz")
    task = TaskConfig.model_validate({
        **TUMOURS.model_dump(mode="json"), "form": "classes", "classes": ["a", "b"], "mask_values": [], "metrics": ["accuracy"], "image_size": 12,
        "intensity": [{"how": "window", "lower": -100, "upper": 100}, {"how": "z-score", "lower": -1, "upper": 1}]})
    (example,) = read_examples([Item(tmp_path / "both.nii.gz", 1)], task)
    assert example.image_CHW is not None and example.target == 1
    window, standard = (np.sort(np.unique(channel)) for channel in example.image_CHW)
    assert window[0] == 0 and window[-1] == 255 and len(window) < 6, "all but the middle is clipped"
    expected = (voxels[:, 0, 0, 1] - voxels[..., 1].mean()) / voxels[..., 1].std()
    assert standard.tolist() == sorted(set(((np.clip(expected, -1, 1) + 1) / 2 * 255).round().astype(int).tolist()))


@pytest.mark.parametrize(("intensity", "words"), [
    ([{"how": "windw"}], "intensity.0.how: .*did you mean 'window'"), ([{"how": "window"}], "a window needs lower and upper"),
    ([{"lower": 60, "upper": 40}], "lower: below upper, both percentiles"), ([{"how": "none", "lower": 1}], "'none' takes no lower"),
    ([{}, {}, {}], "one for all channels or one for each of 2 expected, got 3")])
def test_intensities_that_cannot_be_are_one_sentence(intensity: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        validated(TaskConfig, {**TUMOURS.model_dump(mode="json"), "intensity": intensity}, "task.yaml")
