"""From a run to the ward: each hospital fetches the champion, adopts it, and its answers have exactly the scores of the run's evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fedhelp_cli.main import main
from fedhelp_core.algorithm.local_update import CPU
from fedhelp_core.config.silo import load_silo
from fedhelp_core.data.arrays import load_silo_arrays
from fedhelp_core.data.datalist import manifest_of
from fedhelp_core.deployment.adopted import ModelFolder
from fedhelp_core.deployment.images_in import Reader, Source
from fedhelp_core.deployment.scorer import MaskAnswer, scorer_in
from fedhelp_core.objectives.metrics import classification_scores
from tests.tiny import Processes, TinyFederation, succeeded

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def said(*words: str | Path) -> str:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


def silos_of(tiny: TinyFederation) -> dict[str, Path]:
    return {silo.name: silo.dispatch.silo_config for silo in tiny.load().silos if silo.dispatch.silo_config is not None}  # type: ignore[union-attr]


@pytest.mark.parametrize("task", [
    "melanoma", "brain-segmentation", *(pytest.param(task, marks=pytest.mark.long) for task in ("pneumonia", "lung-segmentation"))])
def test_answers_about_the_test_files_have_exactly_the_scores_of_the_runs_evaluation(
    task: str, finished: Callable[..., TinyFederation], copied: Callable[[TinyFederation], TinyFederation], tmp_path: Path,
) -> None:
    tiny = copied(finished(algorithm__normalisation="silo") if task == "melanoma" else finished(task))
    kinds = set()
    for name, silo in silos_of(tiny).items():
        evaluation = json.loads((tiny.store / "runs" / "first" / "evaluation" / f"{name}.json").read_text())
        deployed = evaluation["models"][evaluation["deployed"]]
        said("model", "fetch", "--silo", silo, "--store", tiny.store)
        assert evaluation["deployed"] in ("proxy", "large")
        said("model", "adopt", "--silo", silo)
        config = load_silo(silo)
        [model] = (config.state / "models").iterdir()
        adopted = ModelFolder(config.state, model.name).in_use()
        assert adopted.contract.model == evaluation["deployed"]
        assert adopted.contract.global_sha256 == evaluation["global_sha256"]
        assert exactly(adopted.contract.scores) == exactly(deployed["scores"])
        kinds.add(adopted.contract.model)

        items = manifest_of(config, adopted.contract.task).test
        out = tmp_path / "answers" / name
        said("predict", "--silo", silo, "--out", out, "--no-pictures", *(item.image for item in items))
        document = json.loads((out / "results.json").read_text())
        assert [Path(answer["file"]) for answer in document["answers"]] == [item.image for item in items]
        if adopted.contract.operating_point is not None:
            found = np.array([list(answer["model_probabilities"].values()) for answer in document["answers"]], np.float32)
            scores = classification_scores(np.array([item.label for item in items]), found, adopted.contract.operating_point)
            assert exactly(scores) == exactly(deployed["scores"])
        else:
            scorer = scorer_in(adopted.contract, adopted.weights, config.adoption, CPU)
            read = list(Reader(adopted.contract.task, adopted.contract.pixel_bits).read([Source(item.image, "") for item in items]))
            test = load_silo_arrays(config, adopted.contract.task).test
            assert all(np.array_equal(one.image_CS, image.numpy()) for one, image in zip(read, test.images_NCHW, strict=True))
            answers = [answer for one in read if one.image_CS is not None for answer in scorer.answers(one.image_CS[None])]
            masks = [answer.probabilities_S > 0.5 for answer in answers if isinstance(answer, MaskAnswer)]
            assert exactly({"dice": mean_dice(masks, test.labels_N.numpy())}) == exactly({"dice": deployed["scores"]["dice"]})
    assert kinds == {"proxy", "large"} or task != "melanoma", "the walk is of both kinds of hospital"


def mean_dice(masks: list[Any], truths: np.ndarray) -> float:
    """By MONAI, image by image, as the evaluation takes it."""
    import torch

    from fedhelp_core.lean_monai import compute_dice

    found = [float(compute_dice(torch.from_numpy(mask[None, None].astype(np.uint8)), torch.from_numpy(truth[None]), ignore_empty=False))
             for mask, truth in zip(masks, truths, strict=True)]
    return sum(found) / len(found)


def exactly(scores: dict[str, float]) -> dict[str, str]:
    """To the last bit; NaN equals itself."""
    return {name: float(value).hex() for name, value in scores.items()}


def test_the_champion_reaches_the_ward_and_the_ward_goes_back(
    finished: Callable[..., TinyFederation], copied: Callable[[TinyFederation], TinyFederation], processes: Processes, tmp_path: Path,
) -> None:
    """Two versions; the hub's own rollback is one more record, and the hospital follows it by its own rule."""
    tiny = copied(finished())
    silo, images = tiny.folder / "brno.yaml", tiny.drawn / "data" / "images"
    tiny.write_silo("brno", adoption={"store": "store", "tolerance": 1.0})
    said("model", "fetch", "--silo", silo)
    said("model", "adopt", "--silo", silo)
    said("predict", "--silo", silo, images, "--out", tmp_path / "one", "--no-pictures")
    succeeded(processes.fedhelp("run", tiny.path, "--run-id", "second", "--set", "runtime.seed=6"))
    succeeded(processes.fedhelp("promote", tiny.path))
    said("model", "fetch", "--silo", silo)
    assert "in use now: tiny version 2" in said("model", "adopt", "--silo", silo)
    said("predict", "--silo", silo, images, "--out", tmp_path / "two", "--no-pictures")
    assert (tmp_path / "one" / "results.csv").read_text() != (tmp_path / "two" / "results.csv").read_text()
    assert "in use again: tiny version 1" in said("model", "rollback", "--silo", silo)
    said("predict", "--silo", silo, images, "--out", tmp_path / "three", "--no-pictures")
    assert (tmp_path / "one" / "results.csv").read_bytes() == (tmp_path / "three" / "results.csv").read_bytes()

    succeeded(processes.fedhelp("rollback", tiny.path))
    fetched = said("model", "fetch", "--silo", silo)
    assert "version 1 fetched and verified" in fetched and "rolled-back" in fetched
    assert "is in use already; nothing was changed" in said("model", "adopt", "--silo", silo)
    assert [one.action for one in ModelFolder(load_silo(silo).state, "tiny").ledger.decisions()] == ["adopted", "adopted", "rolled-back"]
