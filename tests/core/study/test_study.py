"""A study computes every simulation once, goes on after an interruption, and its tables can be checked by hand."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fedhelp_core.algorithm.local_update import SiloData
from fedhelp_core.algorithm.operating_point import OperatingPoint
from fedhelp_core.algorithm.simulate import GUEST, SimulatedSilo
from fedhelp_core.config.federation import Federation, parse_federation
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.errors import ConfigError
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.protocol.study_record import known_study
from fedhelp_core.registry.metrics import Metric
from fedhelp_core.store.open import open_store
from fedhelp_core.study import study
from fedhelp_core.study.cell_results import read_results
from fedhelp_core.study.figures import write_figures
from fedhelp_core.study.for_reports import record_study
from fedhelp_core.study.study import Cell, CellResult, StudyResult, planned_cells, read_cell, run_study
from fedhelp_core.study.table import (
    Spread,
    comparisons,
    curve,
    markdown,
    paired,
    rounds_csv,
    rounds_to,
    rows_of,
    scores_csv,
    summary_csv,
    terminal_tables,
    write_tables,
)
from fedhelp_core.study.timing import StudyTime, left_after, timed_round

METRICS = TaskConfig(name="melanoma").scored_by
OTHERS = ("argmax_balanced_accuracy", "ece", "brier")
SILOS = {"a": ("large", 12), "b": ("small", 6), "c": ("small", 4)}


def tiny_silos(seed: int = 0) -> dict[str, SimulatedSilo]:
    generator = torch.Generator().manual_seed(seed)

    def images(n: int) -> torch.Tensor:
        return torch.randint(0, 256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)

    public, answers = images(5), torch.softmax(torch.randn(5, 4, generator=generator), dim=-1)
    return {
        name: SimulatedSilo(
            kind=kind,
            training=SiloData(images_NCHW=images(n), labels_N=torch.arange(n) % 3, public_images_MCHW=public, public_probabilities_MP=answers),
            test_images_NCHW=images(9), test_labels_N=torch.arange(9) % 3)
        for name, (kind, n) in SILOS.items()
    }


@pytest.fixture
def federation() -> Federation:
    return parse_federation({
        "name": "tiny", "task": {"classes": ["x", "y", "z"], "image_size": 8}, "store": {"url": "/nowhere"}, "runtime": {"device": "cpu"},
        "algorithm": {"rounds": 2, "proxy_model": "resnet8", "large_model": "resnet14", "rank_top_k": 1},
        "public_set": {"images": "/nowhere", "teachers": [{"name": "t", "uri": "x", "classes": 4}]},
        "silos": [{"name": name, "dispatch": {"silo_config": "/nowhere"}} for name in SILOS],
    }, source="test")


def fake_cell(method: str, normalisation: str, seed: int, by_round: dict[int, tuple[float, float, float]], proxy_bytes: int = 1000) -> CellResult:
    """Scores of silos a (large), b and c (small) after each evaluated round."""
    scores = {}
    for at, (a, b, c) in by_round.items():
        models = {
            name: {"proxy": {"balanced_accuracy": v, "auroc": v / 4, "accuracy": v / 2} | dict.fromkeys(OTHERS, 0.5)}
            for name, v in {"a": a, "b": b, "c": c}.items()}
        models["a"] = {"large": models["a"]["proxy"], "proxy": dict.fromkeys((metric.name for metric in METRICS), 0.1)}
        scores[at] = models
    cell = Cell(method=method, normalisation=normalisation, seed=seed)
    return CellResult(
        cell=cell, kinds={n: kind for n, (kind, _) in SILOS.items()}, training_samples={n: count for n, (_, count) in SILOS.items()},
        scores=scores, proxy_bytes=proxy_bytes, processor_seconds=2.0)


@pytest.fixture
def result() -> StudyResult:
    cells = [
        fake_cell("local", "silo", 1, {1: (0.5, 0.2, 0.2), 2: (0.9, 0.3, 0.1)}, proxy_bytes=0),
        fake_cell("local", "silo", 2, {1: (0.5, 0.2, 0.2), 2: (0.9, 0.3, 0.3)}, proxy_bytes=0),
        fake_cell("fedavg", "silo", 1, {1: (0.5, 0.2, 0.2), 2: (0.7, 0.6, 0.4)}),
        fake_cell("fedavg", "silo", 2, {1: (0.5, 0.4, 0.6), 2: (0.7, 0.6, 0.6)}),
        fake_cell("fedhelp", "silo", 1, {1: (0.5, 0.6, 0.6), 2: (0.8, 0.7, 0.5)}),
        fake_cell("fedhelp", "silo", 2, {1: (0.5, 0.3, 0.3), 2: (0.8, 0.5, 0.5)}),
    ]
    return StudyResult(
        methods=("local", "fedavg", "fedhelp"), normalisations=("silo",), seeds=(1, 2), metrics=METRICS, cells={c.cell: c for c in cells})


def test_methods_of_equal_mathematics_are_planned_once() -> None:
    cells = planned_cells(["local", "fedavg", "fedhelp-no-rank", "fedhelp-symmetric"], [1, 2], ["shared", "silo"])
    assert len(cells) == 2 * (1 + 2 + 2)
    assert {c.method for c in cells} == {"local", "fedavg", "fedhelp-no-rank"}


def test_a_row_may_have_another_step_of_the_hub_by_its_name_in_the_literature_or_as_a_sum(federation: Federation) -> None:
    assert len(planned_cells(["fedavg", "fedadam", "fedavg+adam", "fedhelp-symmetric+yogi", "fedhelp-no-rank+yogi"], [1], ["silo"])) == 3
    settings = {
        row: study.federation_of(federation, Cell(method=row, normalisation="silo", seed=1)).algorithm
        for row in ("fedavgm", "fedhelp+yogi", "fednova")}
    found = {row: (one.method, one.server_optimizer.kind, one.aggregation) for row, one in settings.items()}
    assert found == {
        "fedavgm": ("fedavg", "momentum", "mean"), "fedhelp+yogi": ("fedhelp", "yogi", "mean"), "fednova": ("fedavg", "none", "fednova")}


@pytest.mark.parametrize(("row", "said"), [
    ("fedavg+adagrad", "'fedavg+adagrad' is unknown; known: local, "), ("fedavg+", "'fedavg+' is unknown"),
    ("fedadam+yogi", "'fedadam+yogi' is unknown"), ("local+adam", "method 'local' sends nothing to the hub")])
def test_a_row_that_makes_no_sense_is_refused_in_a_sentence(row: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        planned_cells([row], [1], ["silo"])
    assert said in str(caught.value)


def test_a_study_computes_such_rows(federation: Federation, tmp_path: Path) -> None:
    plain = federation.override(**{"algorithm.optimizer.kind": "sgd", "algorithm.optimizer.learning_rate": 0.05})
    rows = ["fedavg", "fedadam", "fednova", "scaffold"]
    found = run_study(plain, methods=rows, seeds=[1], normalisations=["shared"], out=tmp_path, load=tiny_silos)
    digests = {json.loads(path.read_text())["global_sha256"] for path in (tmp_path / "cells").glob("*.json")}
    assert len(digests) == len(rows), "each ends with another model"
    assert [row for row in rows if f"| {row} |" not in markdown(found)] == []


def test_plan_names_everything_that_is_wrong_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        planned_cells(["fedavgg"], [1, 1], ["layer"])
    assert len(caught.value.problems) == 3
    assert "'fedavgg' is unknown" in str(caught.value)


def test_study_resumes_without_computing_anything_twice(federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[Cell] = []
    original = study._compute

    def counting(work: study._Work, cell: Cell, *rest: object) -> None:
        computed.append(cell)
        if len(computed) == 2:
            raise KeyboardInterrupt
        original(work, cell, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(study, "_compute", counting)
    wanted = {"methods": ["local", "fedavg"], "seeds": [1], "normalisations": ["shared", "silo"], "out": tmp_path, "load": tiny_silos}
    with pytest.raises(KeyboardInterrupt):
        run_study(federation, **wanted)  # type: ignore[arg-type]
    first = read_cell(next((tmp_path / "cells").glob("*.json")))
    found = run_study(federation, **wanted)  # type: ignore[arg-type]
    assert len(computed) == 2 + 2  # one whole and one interrupted, then the two that were missing
    assert found.cell("local", "shared", 1) == first
    assert found.cell("local", "silo", 1) == first
    run_study(federation, **wanted)  # type: ignore[arg-type]
    assert len(computed) == 4
    assert not list((tmp_path / "cells").glob(".*"))


@pytest.mark.slow
def test_workers_find_the_same_numbers_as_this_process(federation: Federation, tmp_path: Path) -> None:
    kept = []
    for workers in (1, 2):
        found = run_study(federation, methods=["fedavg", "fedhelp"], seeds=[3], out=tmp_path / str(workers), workers=workers, load=tiny_silos)
        kept.append({cell: result.scores for cell, result in found.cells.items()})
    assert kept[0] == kept[1]


def test_without_a_terminal_each_finished_cell_is_a_line(federation: Federation, tmp_path: Path) -> None:
    out = io.StringIO()
    run_study(federation, methods=["fedavg"], seeds=[1, 2], out=tmp_path, load=tiny_silos, console=Console(file=out, width=200))
    first, last = out.getvalue().splitlines()
    assert re.fullmatch(r"1 of 2 simulations · fedavg seed 1 normalisation silo; about \d+ s left", first)
    assert last == "2 of 2 simulations · fedavg seed 2 normalisation silo"


def test_a_wider_study_says_before_it_starts_how_long_it_takes_by_the_cells_that_are_there(federation: Federation, tmp_path: Path) -> None:
    out = io.StringIO()
    run_study(federation, methods=["fedavg"], seeds=[1], out=tmp_path, load=tiny_silos)
    [cell] = (tmp_path / "cells").glob("*.json")
    cell.write_text(json.dumps(json.loads(cell.read_text()) | {"processor_seconds": 60.0}))
    run_study(federation, methods=["fedavg"], seeds=[1, 2, 3], out=tmp_path, load=tiny_silos, console=Console(file=out, width=200))
    assert out.getvalue().splitlines()[0] == "2 simulations of 2 rounds: about 2 min"


def test_a_long_study_is_timed_by_one_round_and_a_short_one_is_not() -> None:
    calls: list[int] = []
    cell = Cell(method="fedhelp", normalisation="silo", seed=1)
    assert timed_round([cell] * 9, 10, lambda: calls.append(1)) is None and not calls
    assert timed_round([cell] * 10, 10, lambda: calls.append(1)) is not None and calls == [1]
    # fedhelp's round counts as 2.5 of fedavg's: 10 x 50 x 2.5 rounds of 2 s, two at a time
    assert StudyTime(rounds=50, workers=2, round_seconds=2.0).of([cell] * 10) == pytest.approx(1250)
    assert left_after(25, 100, 60) == "; about 3 min left"


def test_the_table_of_rounds_has_losses_of_every_round_and_scores_of_the_evaluated_ones(federation: Federation, tmp_path: Path) -> None:
    found = run_study(federation, methods=["fedavg"], seeds=[1], out=tmp_path, load=tiny_silos, evaluate_every=0)
    lines = list(csv.DictReader(io.StringIO(rounds_csv(found))))
    assert [(line["round"], line["silo"]) for line in lines] == [(str(at), silo) for at in (1, 2) for silo in SILOS]
    assert all(float(line["private_loss"]) > 0 for line in lines)
    assert [bool(line["balanced_accuracy"]) for line in lines] == [False] * 3 + [True] * 3


def test_rounds_are_whole_numbers_on_the_axis(result: StudyResult, tmp_path: Path) -> None:
    write_figures(result, tmp_path)
    texts = re.findall(r"<!-- (\d+(?:\.\d+)?) -->", (tmp_path / "rounds.svg").read_text())
    assert {"1", "2"} <= set(texts) and "1.5" not in texts and "1.25" not in texts


def test_a_study_is_found_by_the_settings_of_a_run_and_shown_on_the_same_test_images_alone(federation: Federation, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    found = run_study(federation, methods=["local", "fedavg"], seeds=[1, 2], normalisations=["silo"], out=tmp_path, load=tiny_silos)
    record_study(store, federation, found)
    a_run = federation.override(**{"algorithm.method": "fedhelp", "algorithm.normalisation": "silo", "runtime.seed": 9})
    record = known_study(store, a_run, found.test_sha256)
    assert record is not None
    assert record.methods["fedavg"]["a"] == pytest.approx(sum(found.cell("fedavg", "silo", seed).score(METRICS[0], "a") for seed in (1, 2)) / 2)
    assert known_study(store, a_run, {**found.test_sha256, "a": "0" * 64}) is None
    assert known_study(store, a_run.override(**{"algorithm.rounds": 3}), found.test_sha256) is None
    assert known_study(store, a_run.override(**{"algorithm.normalisation": "shared"}), found.test_sha256) is None


def test_other_data_or_settings_are_other_cells(federation: Federation, tmp_path: Path) -> None:
    one = federation.override(**{"algorithm.rounds": 1})
    for changed, load in ((one, tiny_silos), (one, partial(tiny_silos, 1)), (one.override(**{"algorithm.batch_size": 3}), tiny_silos)):
        run_study(changed, methods=["fedavg"], seeds=[1], out=tmp_path, load=load)
    moved = one.override(**{"store.url": "/elsewhere", "tracking.experiment": "other"})
    run_study(moved, methods=["fedavg"], seeds=[1], out=tmp_path, load=tiny_silos)
    assert len(list((tmp_path / "cells").glob("*.json"))) == 3


def test_only_travelling_weights_count_as_sent(federation: Federation, tmp_path: Path) -> None:
    one = federation.override(**{"algorithm.rounds": 1})
    found = run_study(one, methods=["local", "fedavg", "fedhelp"], seeds=[1], normalisations=["shared", "silo"], out=tmp_path, load=tiny_silos)
    sent = {(m, n): found.cell(m, n, 1).proxy_bytes for m in found.methods for n in found.normalisations}
    assert sent["local", "silo"] == 0
    assert sent["fedavg", "shared"] == sent["fedhelp", "shared"] > sent["fedavg", "silo"] > 3 * 70_000 * 4


def test_scores_that_are_not_numbers_survive_the_file(tmp_path: Path) -> None:
    document = {"cell": {"method": "fedavg", "normalisation": "silo", "seed": 1}, "kinds": {"b": "small"}, "training_samples": {"b": 1},
                "scores": {"2": {"b": {"proxy": {"balanced_accuracy": None}}}}, "proxy_bytes": 1, "processor_seconds": 1.0}
    (tmp_path / "cell.json").write_text(json.dumps(document))
    assert math.isnan(read_cell(tmp_path / "cell.json").mean(METRICS[0], "small"))


def test_a_damaged_cell_is_named(tmp_path: Path) -> None:
    (tmp_path / "cell.json").write_text("{")
    with pytest.raises(ConfigError, match=r"cell\.json: is not a finished cell"):
        read_cell(tmp_path / "cell.json")


def test_rows_hold_means_over_seeds(result: StudyResult) -> None:
    local, fedavg, fedhelp = rows_of(result)
    assert fedavg.silos["b"] == Spread(mean=pytest.approx(0.6), deviation=pytest.approx(0.0), n=2)  # type: ignore[arg-type]
    assert fedavg.small.mean == pytest.approx(0.55)              # seeds: 0.5 and 0.6
    assert fedavg.small.deviation == pytest.approx(math.sqrt(0.005))
    assert fedhelp.large.mean == pytest.approx(0.8)              # the large model, which is what silo a deploys
    assert fedhelp.all.mean == pytest.approx((2.0 / 3 + 1.8 / 3) / 2)
    assert local.worst.mean == pytest.approx(0.2)                # 0.1 (silo c) and 0.3
    assert fedhelp.small_other["auroc"].mean == pytest.approx(0.55 / 4)
    assert local.proxy_bytes == 0


def test_rounds_to_score_counts_seeds_that_never_reach_it(result: StudyResult) -> None:
    # target: 90 % of fedavg's 0.55 is 0.495
    assert str(rows_of(result)[0].rounds_to) == "never"
    assert str(rows_of(result)[1].rounds_to) == "1.5"            # seed 1 in round 2, seed 2 in round 1
    assert str(rounds_to(result.row("fedhelp", "silo"), METRICS[0], 0.55)) == "1.0 (1 of 2)"


def test_paired_comparison_is_seed_by_seed(result: StudyResult) -> None:
    pair = paired(result, "silo")
    assert pair.difference.mean == pytest.approx(0.0)            # +0.1 and -0.1
    assert pair.difference.deviation == pytest.approx(math.sqrt(0.02))
    assert pair.wins == 1
    assert [p.against for p in comparisons(result)] == ["local", "fedavg"]


def test_curve_is_the_small_silos_mean_by_round(result: StudyResult) -> None:
    points = curve(result.row("fedavg", "silo"), METRICS[0])
    assert {at: round(s.mean, 6) for at, s in points.items()} == {1: 0.35, 2: 0.55}


def test_tables_are_readable_everywhere(result: StudyResult, tmp_path: Path) -> None:
    write_tables(result, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "| small silos | small silos (AUROC) | large silos |" in text
    assert "| fedhelp | 0.800 | 0.600 | 0.500 | 0.550 ±0.071 | 0.138 ±0.018 | 0.800 ±0.000 |" in text
    assert "at least 0.495" in text
    lines = list(csv.DictReader(io.StringIO((tmp_path / "scores.csv").read_text())))
    assert len(lines) == 3 * 2 * 3
    assert (lines[0]["accuracy"], lines[0]["auroc"], lines[0]["proxy_balanced_accuracy"]) == ("0.45", "0.225", "0.1")
    summary = list(csv.DictReader(io.StringIO(summary_csv(result))))
    assert float(summary[1]["small_silos_mean"]) == pytest.approx(0.55)
    out = io.StringIO()
    for table in terminal_tables(result):
        Console(file=out, width=200).print(table)
    assert "1 of 2" in out.getvalue()
    assert scores_csv(result).count("\n") == 19


def test_same_mathematics_is_said_under_the_table(result: StudyResult) -> None:
    cells = dict(result.cells)
    for seed in (1, 2):
        fake = fake_cell("fedhelp-no-rank", "silo", seed, {2: (0.5, 0.5, 0.5)})
        cells[fake.cell] = fake
    wider = StudyResult(methods=("fedhelp-no-rank", "fedhelp-symmetric"), normalisations=("silo",), seeds=(1, 2), metrics=METRICS, cells=cells)
    assert "* fedhelp-symmetric is by definition the same mathematics as fedhelp-no-rank" in markdown(wider)


def test_one_seed_has_no_spread_and_still_gives_figures(result: StudyResult, tmp_path: Path) -> None:
    alone = StudyResult(methods=result.methods, normalisations=("silo",), seeds=(1,), metrics=METRICS, cells=result.cells)
    assert str(rows_of(alone)[1].small) == "0.500"
    paths = write_figures(alone, tmp_path)
    assert [p.name for p in paths] == ["scores.png", "scores.svg", "rounds.png", "rounds.svg"]
    assert all(p.stat().st_size > 1000 for p in paths)


def test_where_less_is_better_the_worst_is_the_most_and_less_wins(result: StudyResult, tmp_path: Path) -> None:
    distance = Metric(name="balanced_accuracy", title="distance", larger_is_better=False, unit="mm")
    turned = StudyResult(methods=result.methods, normalisations=("silo",), seeds=(1, 2), metrics=(distance,), cells=result.cells)
    local, fedavg, _ = rows_of(turned)
    assert local.worst.mean == pytest.approx(0.9)                # silo a in both seeds
    assert fedavg.rounds_to.target == pytest.approx(0.55 / 0.9)
    assert paired(turned, "silo", against="local").wins == 0     # 0.6 and 0.5 against 0.2 and 0.3
    text = markdown(turned)
    assert "### Distance (mm) after 2 rounds" in text and "mean is at most 0.611" in text
    assert "other scores" not in text
    assert all(path.exists() for path in write_figures(turned, tmp_path))


def test_a_tasks_other_scores_have_a_table_of_their_own(result: StudyResult) -> None:
    text = markdown(result)
    assert "| normalisation | method | AUROC | accuracy | balanced accuracy at argmax | ECE | Brier score |" in text
    assert "| silo | fedavg | 0.138 ±0.018 | 0.275 ±0.035 | 0.500 ±0.000 | 0.500 ±0.000 | 0.500 ±0.000 |" in text


def test_what_models_said_of_each_image_lies_beside_the_cell_and_gives_its_scores(federation: Federation, tmp_path: Path) -> None:
    one = federation.override(**{"algorithm.rounds": 1})
    found = run_study(one, methods=["fedhelp"], seeds=[1], out=tmp_path, load=tiny_silos).cell("fedhelp", "silo", 1)
    assert found.images is not None
    results = read_results(found.images)
    assert {silo: list(models) for silo, models in results.items()} == {silo: list(models) for silo, models in found.scores[1].items()}
    objective = objective_of(one.task)
    for silo, models in results.items():
        for model, arrays in models.items():
            assert arrays["test/labels"].tolist() == [0, 1, 2] * 3 and arrays["test/probabilities"].shape == (9, 3)
            point = OperatingPoint(rule="prior-corrected", temperature=float(arrays["point/temperature"]),
                                   offsets_C=tuple(arrays["point/offsets"]), log_prior_C=tuple(arrays["point/log_prior"]),
                                   log_occurrence_C=tuple(arrays["point/log_occurrence"]))
            test = {name.removeprefix("test/"): rows for name, rows in arrays.items() if name.startswith("test/")}
            assert objective.scores_of(test, point).scores == found.scores[1][silo][model]


def test_equal_numbers_give_an_equal_file_of_results(federation: Federation, tmp_path: Path) -> None:
    one = federation.override(**{"algorithm.rounds": 1})
    paths = [run_study(one, methods=["fedavg"], seeds=[1], out=tmp_path / name, load=tiny_silos).cell("fedavg", "silo", 1).images for name in "ab"]
    first, second = (path.read_bytes() for path in paths if path is not None)
    assert first == second


def test_another_operating_point_is_another_cell(federation: Federation, tmp_path: Path) -> None:
    one = federation.override(**{"algorithm.rounds": 1})
    for rule in ("argmax", "prior-corrected"):
        run_study(one.override(**{"evaluation.operating_point": rule}), methods=["fedavg"], seeds=[1], out=tmp_path, load=tiny_silos)
    assert len(list((tmp_path / "cells").glob("*.json"))) == 2


def test_a_guest_is_scored_with_the_global_model_and_changes_nothing(federation: Federation, tmp_path: Path) -> None:
    silos = tiny_silos()
    empty = SiloData(images_NCHW=torch.empty((0, 3, 8, 8), dtype=torch.uint8), labels_N=torch.empty(0, dtype=torch.int64))
    guest = SimulatedSilo(
        kind=GUEST, training=empty, test_images_NCHW=silos["b"].test_images_NCHW, test_labels_N=silos["b"].test_labels_N)
    alone, visited = (
        run_study(federation, methods=["fedhelp"], seeds=[1], normalisations=["shared"], out=tmp_path / name, load=lambda found=found: found)
        .cell("fedhelp", "shared", 1) for name, found in (("alone", silos), ("visited", {**silos, "outside": guest})))
    assert {silo: visited.scores[2][silo] for silo in silos} == alone.scores[2]
    assert visited.scores[2]["outside"]["proxy"]["auroc"] == visited.scores[2]["b"]["proxy"]["auroc"]  # the same model, the same images
    for metric in METRICS:
        assert visited.mean(metric) == pytest.approx(alone.mean(metric), nan_ok=True)
        assert visited.worst(metric) == pytest.approx(alone.worst(metric), nan_ok=True)


def test_the_page_about_a_studys_files_names_every_field_of_a_cell_and_every_file(federation: Federation, tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "study.md").read_text(encoding="utf-8")
    one = federation.override(**{"algorithm.rounds": 1})
    found = run_study(one, methods=["fedavg"], seeds=[1], out=tmp_path, load=tiny_silos)
    [cell] = (tmp_path / "cells").glob("*.json")
    assert [name for name in json.loads(cell.read_text()) if f"| `{name}` |" not in page] == []
    written = [path.name for path in [*write_tables(found, tmp_path), *write_figures(found, tmp_path)]]
    assert [name for name in written if f"`{name}`" not in page] == []
    results = found.cell("fedavg", "silo", 1).images
    assert results is not None
    kept = {what for models in read_results(results).values() for arrays in models.values() for what in arrays}
    assert [what for what in kept if f"`{what}`" not in page and not what.startswith("validation/")] == []
