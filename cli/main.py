"""The `fedhelp` command: init, run, open, simulate, data, softlabels, compile, register, submit, check, jobs, promote, rollback, model, predict,
serve.

Only click and the standard library are imported here; each command imports what it needs when it is called, so that
`fedhelp --help` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from fedhelp_cli.promote import Decided
    from fedhelp_core.config.federation import Federation

_EXIT_CODES = """
\b
Exit codes
  0      done
  2      the command line itself is wrong
  10-19  something has to be changed first (10 config, 11 data, 12 weights, 13 run id in use, 14 access,
         15 teacher, 16 run aborted, 17 too few silos, 18 not found, 19 a silo's work failed)
  30-39  the same command may work later (30 store, 31 teacher, 32 disk full, 33 silo busy, 34 hub silent, 35 cluster, 36 model diverges)
  40     fedhelp model adopt: the hospital's rule keeps the model in use; 41 fedhelp predict: all but the named files were answered
  70     an error that nobody foresaw; the message says which file holds its full trace
  130    stopped with Ctrl-C, 143 with SIGTERM; the same command goes on where it was
  141    who read the output has gone, e.g. `head`
"""

_F = TypeVar("_F", bound=Callable[..., None])


def _with_exit_codes(function: _F) -> _F:
    """An error ends the command with its sentences and its exit code."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        from fedhelp_core.processes import exit_code_of

        name = " ".join(("fedhelp", *click.get_current_context().command_path.split()[1:]))
        passing = (click.ClickException, click.Abort, click.exceptions.Exit)  # click's own ways to end
        sys.exit(exit_code_of(lambda: function(*args, **kwargs), program=name, passing=passing))

    return wrapper  # type: ignore[return-value]


@click.group(epilog=_EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="fedhelp")
def main() -> None:
    """Federated learning for hospitals, small and large, after FedHelp (arXiv 2412.19654).

    Start with `fedhelp run --demo demo`: six drawn hospitals, the whole pipeline on this machine, a report at the end.
    """


_INIT_EXAMPLES = """
\b
Examples
  fedhelp init chest --task pneumonia --silos north,south,west
  fedhelp init chest --task pneumonia --classes normal,bacterial,viral --silos north,south
  fedhelp init chest --task pneumonia --silos north,south --clusters --store s3://federation/chest
"""


@main.command(epilog=_INIT_EXAMPLES + _EXIT_CODES)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--name", help="The federation's name: lower-case letters, digits and '-'; default: the folder's.")
@click.option("--task", prompt="Task (melanoma, pneumonia, lung-segmentation, brain-segmentation, or a YAML file)",
              help="What is learnt: a preset, or the YAML file of a task of one's own (docs/tasks.md).")
@click.option("--classes", default="", help="Class names in the order of the labels, comma-separated; default: the task's own.")
@click.option("--silos", prompt="Hospitals, comma-separated", help="Names of the hospitals, comma-separated.")
@click.option("--store", default="store", show_default=True, help="Where everything is exchanged: a folder beside the file, or s3://bucket/prefix.")
@click.option("--clusters", is_flag=True, help="Hospitals work in their own clusters, each a kubeconfig context of its name; else on this machine.")
@_with_exit_codes
def init(folder: Path, name: str | None, task: str, classes: str, silos: str, store: str, clusters: bool) -> None:
    """Write a federation.yaml with a comment a line, and a silo.yaml for each hospital, into FOLDER.

    Asks for what no option says. The federation runs as it is, with small models and no teacher, once the hospitals' datalists are there:
    `fedhelp data ingest` makes these, and where you have images already it is the better start, since it writes all files at once.
    """
    from fedhelp_cli.init import init_and_print

    init_and_print(
        folder, name=name or folder.resolve().name, task=task, classes=_list(classes), silos=_list(silos), store=store, clusters=clusters)


_DEMO_HELP = "Make (once) and use a task's demo, drawn hospitals, in this folder instead of a FEDERATION file."
_TASK_HELP = ("Whose demo: melanoma (default), pneumonia, lung-segmentation, brain-segmentation, retinopathy, chest-findings, chest-organs,"
              " brain-tumours; in folder demo-TASK where --demo names none.")
_json = click.option("--json", "as_json", is_flag=True, help="Print what was found as one JSON object, for programs; docs/json.md.")
_SET_HELP = "Replace a field of the file, e.g. --set algorithm.rounds=3 (repeatable)."


@main.command(epilog=_EXIT_CODES)
@click.argument("federation", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--demo", type=click.Path(file_okay=False, path_type=Path), help=_DEMO_HELP)
@click.option("--task", help=_TASK_HELP)
@click.option("--run-id", help="Name of the run; default: the federation's name and a hash of its config, so that the same command resumes.")
@click.option("--set", "changes", multiple=True, metavar="FIELD=VALUE", help=_SET_HELP)
@click.option("--dry-run", is_flag=True, help="Check the file, print what would run (as YAML; Jobs of silos in clusters too), and stop.")
@click.option("--through-kfp", is_flag=True, help="Run each task through Kubeflow's local runner instead: slower, and the same to the bit.")
@click.option("--open", "open_", is_flag=True, help="Open the report in a browser at the end.")
@_with_exit_codes
def run(
    federation: Path | None, demo: Path | None, task: str | None, run_id: str | None, changes: tuple[str, ...], dry_run: bool, through_kfp: bool,
    open_: bool,
) -> None:
    """Run the whole pipeline on this machine.

    Pipeline fedhelp-compact, task by task in this process.

    FEDERATION is a federation.yaml (`fedhelp data phantom melanoma FOLDER` writes one): its silos work as processes here, or
    as Jobs in their clusters. Whatever kills the run, the same command again goes on after the last finished round and ends with the same model.
    """
    from fedhelp_cli.run import run_locally

    run_locally(
        _file_or_demo(federation, demo, task), run_id=run_id, changes=_changes(changes), dry_run=dry_run, through_kfp=through_kfp, show=open_)


@main.command("open", epilog=_EXIT_CODES)
@click.argument("federation", required=False, type=click.Path(path_type=Path))
@click.option("--run-id", help="Whose report; default: the newest run's.")
@click.option("--mlflow", is_flag=True, help="Open MLflow instead; over a file of this machine its server runs until Ctrl-C.")
@_with_exit_codes
def open_(federation: Path | None, run_id: str | None, mlflow: bool) -> None:
    """Open a run's report in a browser, or print its address where there is none.

    FEDERATION is a federation.yaml, or the folder that holds it; default: the one in this folder, else the demo's. A run's id may stand there
    instead.
    """
    from fedhelp_cli.open_page import open_mlflow, open_report

    if mlflow:
        open_mlflow(federation)
    else:
        open_report(federation, run_id)


@main.command(epilog=_EXIT_CODES)
@click.argument("federation", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--demo", type=click.Path(file_okay=False, path_type=Path), help=_DEMO_HELP)
@click.option("--task", help=_TASK_HELP)
@click.option("--methods", default="local,fedavg,fedprox,fedhelp,fedhelp-no-api,fedhelp-no-rank,fedhelp-symmetric,fedhelp-one-way",
              show_default=True,
              help="Compared methods, comma-separated: also scaffold, and with another step of the hub fedavgm, fedadam, fedyogi, fednova, or"
                   " METHOD+momentum, +adam, +yogi, +fednova.")
@click.option("--seeds", default="1,2,3,4,5", show_default=True, help="Seeds, comma-separated.")
@click.option("--normalisation", "normalisations", default="shared,silo", show_default=True, help="Where batch norms live, comma-separated.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1), help="Processes; each cell of the study runs in one.")
@click.option("--evaluate-every", default=3, show_default=True, type=click.IntRange(0),
              help="Rounds between scores for the curves; 0: only at the end.")
@click.option("--set", "changes", multiple=True, metavar="FIELD=VALUE", help=_SET_HELP)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("study"), show_default=True,
              help="Folder of table, figure, CSV and cells.")
@click.option("--dry-run", is_flag=True, help="Print the cells that would be computed, and stop.")
@_json
@_with_exit_codes
def simulate(
    federation: Path | None, demo: Path | None, task: str | None, methods: str, seeds: str, normalisations: str, workers: int, evaluate_every: int,
    changes: tuple[str, ...], out: Path, dry_run: bool, as_json: bool,
) -> None:
    """Compare methods over seeds on this machine.

    In this process alone: a table, and a figure like the paper's Figure 1.

    Finished cells are kept under OUT, so an interrupted study goes on, and a wider one computes only what is new.
    """
    from fedhelp_cli.simulate import simulate_and_print

    simulate_and_print(
        _overridden(_file_or_demo(federation, demo, task), changes, methods=_list(methods)), methods=_list(methods), seeds=_seeds(seeds),
        normalisations=_list(normalisations), workers=workers, evaluate_every=evaluate_every, out=out, dry_run=dry_run, as_json=as_json)


@main.group(epilog=_EXIT_CODES)
def data() -> None:
    """Take in real data sets, draw small ones like them."""


_LAYOUTS_HELP = """
\b
Layouts, and what FOLDER holds
  fed-isic2019        a folder of <image>.jpg and FLamby's split CSV (image, target, center, fold); silos center-0 ...
  chest-xray          train|val|test / NORMAL|PNEUMONIA / *.jpeg, dealt out to six silos hospital-0 ...
  pictures-and-masks  images/ and masks/ of the same names; one silo, or by the beginnings of names (--prefixes)
  fed-ixi             IXI002-Guys-0828/T1/*.nii.gz and /label/*.nii.gz, and FLamby's split CSV; silos guys, hh, iop
  volumes-and-masks   images/ and masks/ with a folder of DICOM slices or a NIfTI file for each subject
  medmnist            one <set>.npz of MedMNIST, whose images are written to OUT/images; flat or solid, grey or in colour
  csv                 a hospital's own list: image,label (or mask) and perhaps split,patient,lesion,hospital; paths relative to FOLDER
\b
One hospital's images are dealt out to several by --silos N, --sizes or --images-each, whichever the layout.
\b
Examples
  fedhelp data ingest fed-isic2019 /data/fed_isic2019 --out examples/data/melanoma
  fedhelp data ingest pictures-and-masks /data/lungs --prefixes CHNCXR,MCUCXR,JPCLN --out examples/data/lung-segmentation
  fedhelp data ingest chest-xray /data/chest_xray --images-each 400,130,60,40,24,16 --out examples/data/pneumonia
  fedhelp data ingest csv /data/nih --task pneumonia --test-only --out examples/data/external
  fedhelp data ingest csv /data/ward7 --task pneumonia --columns image=File,label=Diagnosis,patient=MRN --silos charite
"""


@data.command(epilog=_LAYOUTS_HELP + _EXIT_CODES)
@click.argument("layout")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of datalists, silos and report; default: data/<task>.")
@click.option("--task", help="What is learnt: a preset or a YAML file; default: what the layout is published for, if for one task.")
@click.option("--drop-leaked", type=click.Choice(["training", "test"]),
              help="Where the same image (or patient) is in training and in test, leave it out of this side; without it that is refused.")
@click.option("--drop-unusable", is_flag=True, help="Leave out files that cannot be used, and say which; without it they are refused.")
@click.option("--published-split", is_flag=True,
              help="Keep the data set's own split although the same image, patient or lesion is in training and in test; the report says how many.")
@click.option("--silos", default="", metavar="NAMES|N",
              help="Names for the hospitals, comma-separated: THEIRS=yours, e.g. Mitte=mitte; those that the data set does not name by their order."
                   " A number: deal one hospital's images out to so many, as unequal as the paper's.")
@click.option("--images", type=click.Path(path_type=Path), help="Folder of images (fed-ixi: of subjects), where it is not found below FOLDER.")
@click.option("--masks", type=click.Path(path_type=Path), help="Folder of masks, where it is not FOLDER/masks.")
@click.option("--split-csv", type=click.Path(path_type=Path), help="FLamby's split CSV, where it is not found below FOLDER.")
@click.option("--lesions", type=click.Path(path_type=Path),
              help="Layout fed-isic2019: CSV that says which images show one lesion (image_id, lesion_id), where it is not beside the others.")
@click.option("--csv", "own_csv", type=click.Path(path_type=Path), help="Layout csv: the list, where it is not the only CSV in FOLDER.")
@click.option("--columns", default="", metavar="OURS=YOURS,...", help="Layout csv: what your columns are called.")
@click.option("--prefixes", default="", help="Layout pictures-and-masks: how each hospital's file names begin, comma-separated.")
@click.option("--sizes", default="", help="Relative sizes of the hospitals that one hospital's images are dealt out to, comma-separated.")
@click.option("--skew", type=click.FloatRange(1), metavar="RATIO",
              help="With --silos N: how many times as large the largest hospital is as the smallest; default: the paper's 28.")
@click.option("--images-each", default="", metavar="N,N,...",
              help="Deal out so many images for training and validation to each hospital; the rest is left out, the test images are dealt evenly.")
@click.option("--test-only", is_flag=True, help="All images are for the test: a hospital that trains nothing.")
@click.option("--test-fraction", type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="Share of the images held out for the test, where the data set has no split of its own; default 0.2.")
@click.option("--validation-fraction", type=click.FloatRange(0, 1, max_open=True),
              help="Share of the training images set aside for validation; default: a fifth or so, where a hospital has fewer than ten.")
@click.option("--sample", type=click.IntRange(1), help="Look at about so many images of each hospital; default: all of them, in full.")
@click.option("--dry-run", is_flag=True, help="Print the silos, their counts and what would be written; open no image, write nothing.")
@_with_exit_codes
def ingest(
    layout: str, folder: Path, out: Path | None, task: str | None, drop_leaked: Any, drop_unusable: bool, silos: str, images: Path | None,
    masks: Path | None, split_csv: Path | None, own_csv: Path | None, columns: str, prefixes: str, sizes: str, test_fraction: float | None,
    validation_fraction: float | None, sample: int | None, dry_run: bool, published_split: bool, lesions: Path | None, skew: float | None,
    images_each: str, test_only: bool,
) -> None:
    """Turn a data set into a checked MONAI datalist and a silo.yaml for each hospital, with a report of what it holds.

    LAYOUT is how the data lie in FOLDER; see below. Every image is opened: counts, classes, sizes, intensities, spacings, the same image
    in more than one place, and files that cannot be used are printed and written to report.html and report.json; pictures/<silo>.html shows
    the first and the strangest images as the network will see them. Nothing is copied and nothing in FOLDER is changed. The same command
    again writes the same.
    """
    from fedhelp_cli.ingest import ingest_and_print
    from fedhelp_core.data.public_layouts import Options

    if drop_leaked and published_split:
        raise click.UsageError("--drop-leaked, --published-split: one changes the split, the other keeps it; give one of them")
    count = int(silos) if silos.strip().isdecimal() else None
    if count == 0:
        raise click.UsageError("--silos 0: names, or a number from 1 expected")
    each = tuple(map(int, _positive_numbers("--images-each", images_each)))
    options = Options(
        images=images, masks=masks, split_csv=split_csv, lesions=lesions, csv=own_csv, columns=_texts(columns), prefixes=tuple(_list(prefixes)),
        sizes=_positive_numbers("--sizes", sizes), count=count, skew=skew, images_each=each,
        silos=() if count else tuple(_list(silos)), test_only=test_only, test_fraction=test_fraction, validation_fraction=validation_fraction)
    ingest_and_print(
        layout, folder, options, task=task, out=out, drop_leaked=drop_leaked, keep_leaked=published_split, drop_unusable=drop_unusable,
        sample=sample, dry_run=dry_run)


@data.command(epilog=_EXIT_CODES)
@click.argument("task")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@_with_exit_codes
def phantom(task: str, folder: Path) -> None:
    """Draw TASK's hospitals, public images and teacher in FOLDER, in the real data set's layout, with a federation.yaml that uses them.

    TASK is melanoma, pneumonia, lung-segmentation or brain-segmentation, or an example of a form: retinopathy (classes), chest-findings
    (labels), chest-organs (masks) or brain-tumours (regions). No patient was ever involved. Made once; what is there
    is used again.
    """
    from fedhelp_cli.run import prepared_demo

    path = prepared_demo(folder, task)
    from fedhelp_cli.commands import quoted

    click.echo(f"{path}: run it with: fedhelp run {quoted(path)}, or compare methods with: fedhelp simulate {quoted(path)}")


@main.group(epilog=_EXIT_CODES)
def softlabels() -> None:
    """Look at what the teachers answered."""


@softlabels.command(epilog=_EXIT_CODES)
@click.argument("federation", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--run-id", help="The set of this run.")
@click.option("--set", "sha256", metavar="SHA256", help="This set, by its sha256 or the beginning of it; default: the only one in the store.")
@click.option("--examples", default=12, show_default=True, type=click.IntRange(0, 1000), help="Images to show answers about.")
@_with_exit_codes
def show(federation: Path, run_id: str | None, sha256: str | None, examples: int) -> None:
    """Print a distillation set in FEDERATION's store: classes, how sure the teachers are, examples, how far teachers agree.

    The run's HTML report shows the same with the pictures.
    """
    from fedhelp_cli.softlabels import show_set

    show_set(federation, run_id=run_id, sha256=sha256, examples=examples)


@main.command(epilog=_EXIT_CODES)
@click.argument("network", metavar="LIBRARY:NETWORK")
@click.option("--weights", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Its weights, a safetensors file.")
@click.option("--classes", required=True, metavar="N|NAMES", help="How many classes it names, or their names, comma-separated.")
@click.option("--image-size", "side", default=224, show_default=True, type=click.IntRange(8, 1024), help="Side in pixels of the images that it sees.")
@click.option("--channels", default=3, show_default=True, type=click.IntRange(1, 3), help="Of its images: 3 colour, 1 grey.")
@click.option("--arguments", default="{}", metavar="JSON", help="What the network is built with, where that is not its default.")
@click.option("--mean", default="", help="Of pixels in [0, 1] in its training, comma-separated; default: the library's own.")
@click.option("--std", default="", help="What their differences from the mean were divided by; default: the library's own.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the teacher, new or empty.")
@click.option("--images", type=click.Path(path_type=Path), help="Folder of public images: twenty of them are shown to the teacher at once.")
@_with_exit_codes
def teacher(
    network: str, weights: Path, classes: str, side: int, channels: int, arguments: str, mean: str, std: str, out: Path, images: Path | None,
) -> None:
    """Make a teacher of a network and its weights, and show what it says of twenty public images.

    LIBRARY is monai, timm or torchvision; the last two where you have installed them. The teacher is an MLflow model that needs PyTorch alone.
    """
    from fedhelp_cli.teacher import make_and_try

    make_and_try(
        network, weights=weights, classes=classes, side=side, channels=channels, arguments=arguments, mean=mean, std=std, out=out, images=images)


@main.command("compile", epilog=_EXIT_CODES)
@click.option("--pipeline", type=click.Choice(["fedhelp", "fedhelp-compact"]), default="fedhelp", show_default=True)
@click.option("--federation", type=click.Path(dir_okay=False, path_type=Path),
              help="A node for each silo of this file, and its settings as the form's defaults.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Where to write the YAML; default: <pipeline>.yaml")
@_with_exit_codes
def compile_(pipeline: str, federation: Path | None, output: Path | None) -> None:
    """Write a pipeline as YAML for the Kubeflow UI or API."""
    defaults, silos = _form_and_silos(federation) if federation else ({}, ())  # before kfp takes its seconds: the file may be wrong
    from fedhelp_cli.commands import quoted, warn
    from fedhelp_pipelines.compile import compiled
    from fedhelp_pipelines.versions import sentence_about_kfp

    warn("compile", sentence_about_kfp())
    text = compiled(pipeline, defaults, silos)
    path = output or Path(f"{pipeline}.yaml")
    path.write_text(text, encoding="utf-8")
    click.echo(f"{path}: upload it in the Kubeflow UI under Pipelines, or with: fedhelp register {quoted(path)} --endpoint URL")


@main.command(epilog=_EXIT_CODES)
@click.argument("packages", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--endpoint", required=True, envvar="KF_PIPELINES_ENDPOINT", help="Kubeflow Pipelines API, e.g. http://localhost:8888.")
@click.option("--namespace", help="Namespace (profile) that keeps the pipelines, where Kubeflow is multi-user; default: shared by all.")
@click.option("--federation", type=click.Path(dir_okay=False, path_type=Path),
              help="Without PACKAGES: a node for each silo of this file, and its settings as the form's defaults.")
@click.option("--remove", is_flag=True, help="Take the pipelines out again, with all their versions. Runs that were started stay.")
@_with_exit_codes
def register(packages: tuple[Path, ...], endpoint: str, namespace: str | None, federation: Path | None, remove: bool) -> None:
    """Put pipelines into Kubeflow's UI.

    PACKAGES are compiled pipelines, each registered under its file's name; default: both of this product's. A version is named
    by its content, so that the same content again changes nothing, and other silos are another version.
    """
    if packages and federation is not None:
        raise click.UsageError("--federation: is for this product's own pipelines; PACKAGES are compiled already")
    from fedhelp_cli.register import register_with_kubeflow

    register_with_kubeflow(packages, endpoint=endpoint, namespace=namespace, remove=remove, federation=federation)


@main.command(epilog=_EXIT_CODES)
@click.argument("federation")
@click.option("--endpoint", required=True, envvar="KF_PIPELINES_ENDPOINT", help="Kubeflow Pipelines API, e.g. http://localhost:8888.")
@click.option("--ui", envvar="KF_PIPELINES_UI_ENDPOINT", help="Kubeflow's UI, for the run's page; default: the endpoint, where it serves pages.")
@click.option("--pipeline", type=click.Choice(["fedhelp", "fedhelp-compact"]), default="fedhelp", show_default=True)
@click.option("--experiment", default="fedhelp", show_default=True, help="Kubeflow experiment.")
@click.option("--namespace", help="Namespace (profile) of the experiment, where Kubeflow is multi-user.")
@click.option("--service-account", help="Account of the run's pods, such as fedhelp-runs; default: Kubeflow's own.")
@click.option("--run-id", default="", help="Name of the run; blank: the job's id.")
@click.option("--set", "settings", multiple=True, metavar="PARAMETER=VALUE", help="Replace a field of the form, e.g. --set rounds=10 (repeatable).")
@click.option("--compile", "compile_here", is_flag=True,
              help="Compile the pipeline here instead of starting the registered one; its images are $FEDHELP_HUB_IMAGE and $FEDHELP_SILO_IMAGE.")
@click.option("--every", metavar="CRON", help="A recurring run instead of one now, e.g. '0 3 1 * *': at 3 o'clock on each first of the month.")
@click.option("--wait/--no-wait", default=False, help="Wait until the run has ended.")
@click.option("--dry-run", is_flag=True, help="Print the request instead of sending it.")
@_with_exit_codes
def submit(
    federation: str, endpoint: str, ui: str | None, pipeline: str, experiment: str, namespace: str | None, service_account: str | None, run_id: str,
    settings: tuple[str, ...], compile_here: bool, every: str | None, wait: bool, dry_run: bool,
) -> None:
    """Start a pipeline on a Kubeflow endpoint. FEDERATION is the path or s3:// URL that the cluster sees.

    It is the newest version that Kubeflow has of the pipeline, as the hub's chart or `fedhelp register` put it there, with its images.

    Where FEDERATION can be read here too, it fills in the run's form, and --set replaces fields of that: the run is the file's. Where it
    cannot, the form is as the registered pipeline opens it: as the hub's chart installs it, with its own federation's settings.
    """
    from fedhelp_cli.submit import submit_to_kubeflow

    submit_to_kubeflow(
        federation, endpoint=endpoint, pipeline=pipeline, experiment=experiment, namespace=namespace, run_id=run_id,
        settings=_pairs(settings), wait=wait, dry_run=dry_run, service_account=service_account, compile_here=compile_here, ui=ui,
        every=every)


@main.command(epilog=_EXIT_CODES)
@click.argument("federation", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--set", "changes", multiple=True, metavar="FIELD=VALUE", help=_SET_HELP)
@click.option("--sample", type=click.IntRange(1), help="Look at about so many images of each silo, and start nothing; default: all of them, in full.")
@_json
@_with_exit_codes
def check(federation: Path, changes: tuple[str, ...], sample: int | None, as_json: bool) -> None:
    """List everything that is wrong with a federation.

    With its file, store, public images and every silo, all at once; no run is started.

    Of silos on this machine every image is looked at, in full; pictures.html in their state folder shows the first and the strangest as the
    network will see them. Of silos in clusters it is tried, by a server-side dry run, whether their work would be
    taken: credentials, template, roles, Pod Security, the hospital's admission policy.
    """
    from fedhelp_cli.check import check_and_print

    check_and_print(federation, _changes(changes), sample=sample, as_json=as_json)


@main.command(epilog=_EXIT_CODES)
@click.argument("federation", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--run-id", help="Jobs of this run only.")
@click.option("--context", help="Kubeconfig context; with a FEDERATION: only its silos there.")
@click.option("--namespace", "-n", "namespaces", multiple=True, help="Without a FEDERATION: look there (repeatable; default: everywhere).")
@_json
@_with_exit_codes
def jobs(federation: Path | None, run_id: str | None, context: str | None, namespaces: tuple[str, ...], as_json: bool) -> None:
    """List the Jobs in the silos' clusters.

    With silo, action, round, state, since when, why, and whether a hub still wants them.

    With a FEDERATION, those of its silos; without, those of a cluster. A Job is an orphan when it has not ended although the
    last sign of its run's hub is older than the lease; it ends by itself soon.
    """
    from fedhelp_cli.jobs import list_and_print

    list_and_print(federation, run_id=run_id, context=context, namespaces=namespaces, as_json=as_json)


@main.command(epilog=_EXIT_CODES)
@click.argument("federation", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--version", "version", help="Version of the registered model; default: the candidate.")
@click.option("--reason", default="", help="One sentence that stands in the record which hospitals read.")
@_json
@_with_exit_codes
def promote(federation: Path, version: str | None, reason: str, as_json: bool) -> None:
    """Make a model version the champion.

    Whatever the gate said; the champion before it is remembered, and hospitals read the decision in the store.
    """
    from fedhelp_cli import promote as by_hand

    _echo_decided(by_hand.promote(federation, version, reason), as_json)


@main.command(epilog=_EXIT_CODES)
@click.argument("federation", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--reason", default="", help="One sentence that stands in the record which hospitals read.")
@_json
@_with_exit_codes
def rollback(federation: Path, reason: str, as_json: bool) -> None:
    """Make the champion before this one champion again. Hospitals read the decision in the store."""
    from fedhelp_cli import promote as by_hand

    _echo_decided(by_hand.rollback(federation, reason), as_json)


def _echo_decided(decided: Decided, as_json: bool) -> None:
    from dataclasses import asdict

    from fedhelp_cli.commands import print_json

    if as_json:
        print_json(asdict(decided))
    else:
        click.echo("\n".join(decided.said))


_PREDICT_HELP = """
\b
What OUT holds
  results.csv, .json  of each image: its sha256, the decision, probabilities, margin; or the problem of a file that cannot be used
  results.html        the images with masks or heat maps over them, the undecided first; how to read an answer
  masks/              of a mask task: PNG or NIfTI on the image's own pixels or voxels, for a DICOM series a segmentation object too
  model-card.md       what the model is, where the hub wrote one
\b
What images may be
  pictures            .png, .jpg, .jpeg, and DICOM files of one grey image (shown by their own window)
  volumes             .nii, .nii.gz, a folder of DICOM slices, a multi-frame DICOM file
\b
Examples
  fedhelp predict --silo silo.yaml new-images --out answers
  fedhelp predict --silo silo.yaml scan.nii.gz series-7 --out masks
"""

_NAME_HELP = "Registered name of the model; default: adoption.model in silo.yaml, or the only one."
_STORE_HELP = "The hub's store: a folder or s3://bucket/prefix; default: adoption.store in silo.yaml."
_DEVICE_HELP = "Where the network runs; auto: the GPU where there is one."


def _of_silo(function: _F) -> _F:
    """The options of all commands about a hospital's models."""
    silo = click.option("--silo", required=True, envvar="FEDHELP_SILO_CONFIG", type=click.Path(dir_okay=False, path_type=Path),
                        help="The hospital's silo.yaml.")
    return silo(click.option("--name", help=_NAME_HELP)(function))


def _of_store(function: _F) -> _F:
    url = click.option("--store", help=_STORE_HELP)
    return url(click.option("--endpoint-url", help="S3 endpoint other than AWS.")(function))


_device = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help=_DEVICE_HELP)


@main.command(epilog=_PREDICT_HELP + _EXIT_CODES)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@_of_silo
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new folder for the answers; the same command again replaces them.")
@_device
@click.option("--pictures/--no-pictures", default=True, show_default=True, help="Write the page with masks and heat maps.")
@click.option("--dry-run", is_flag=True, help="Print the model and the images that would be asked about, and stop.")
@_with_exit_codes
def predict(images: tuple[Path, ...], silo: Path, name: str | None, out: Path, device: str, pictures: bool, dry_run: bool) -> None:
    """Ask the model in use about IMAGES, files and folders.

    Images are prepared as in training, to the last bit, and decided at this hospital's own operating point. An answer that is uncertain is
    "do not decide" (adoption.undecided_margin, adoption.undecided_dice in silo.yaml). A file that cannot be used is named, all others are
    answered, and the command ends with 41. Nothing leaves the hospital, and no network is needed.
    """
    from fedhelp_cli.predict import predict_and_print

    predict_and_print(silo, images, out=out, name=name, device=device, pictures=pictures, dry_run=dry_run)


_SERVE_HELP = """
\b
Routes (Open Inference Protocol, version 2)
  GET  /v2, /v2/health/live, /v2/health/ready, /metrics
  GET  /v2/models/NAME, /v2/models/NAME/ready
  POST /v2/models/NAME/infer    inputs `files` (BYTES), or `pixels` / `voxels` with `affine` or `spacing`, in raw units
\b
Examples
  fedhelp serve --silo silo.yaml
  fedhelp serve --silo silo.yaml --host 0.0.0.0 --token-file token --tls-cert tls.crt --tls-key tls.key
"""
_file = click.Path(dir_okay=False, path_type=Path)


@main.command(epilog=_SERVE_HELP + _EXIT_CODES)
@_of_silo
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to answer at.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="Its port; 0: a free one.")
@click.option("--token-file", type=_file, help="File with the bearer tokens of those who may ask, one a line; read anew for each request.")
@click.option("--no-token", is_flag=True, help="Let other machines ask without a token: a network policy says who reaches this one.")
@click.option("--tls-cert", type=_file, help="Certificate chain (PEM) for HTTPS.")
@click.option("--tls-key", type=_file, help="Its private key (PEM).")
@click.option("--max-batch", default=256, show_default=True, type=click.IntRange(1, 256), help="Images of several requests computed at once.")
@click.option("--max-mebibytes", default=64, show_default=True, type=click.IntRange(1, 4096), help="Size of a request.")
@click.option("--timeout", default=60.0, show_default=True, type=click.FloatRange(0.1, 3600), help="Seconds until a request is given up.")
@_device
@_with_exit_codes
def serve(
    silo: Path, name: str | None, host: str, port: int, token_file: Path | None, no_token: bool, tls_cert: Path | None, tls_key: Path | None,
    max_batch: int, max_mebibytes: int, timeout: float, device: str,
) -> None:
    """Let the model in use answer over HTTP inside the hospital.

    Answers are those of `fedhelp predict`, on a CPU to the last bit. A version that is adopted, or gone back to, answers within seconds, without
    a lost request. SIGTERM lets the answers that are being made go out. No network but the hospital's own is needed.
    """
    from fedhelp_cli.serve import serve_model
    from fedhelp_core.serving.app import Limits
    from fedhelp_core.serving.server import Door

    door = Door(host=host, port=port, token_file=token_file, open_to_all=no_token, tls_cert=tls_cert, tls_key=tls_key)
    limits = Limits(most_bytes=max_mebibytes * 2**20, seconds=timeout, most_batch=max_batch)
    serve_model(silo, name=name, device=device, door=door, limits=limits)


@main.group(epilog=_EXIT_CODES)
def model() -> None:
    """Take a model of the hub into use in this hospital, and go back.

    fetch, then adopt; predict asks it. The hub promotes, the hospital decides: docs/ward.md.
    """


@model.command("list", epilog=_EXIT_CODES)
@_of_silo
@_of_store
@_with_exit_codes
def list_(silo: Path, name: str | None, store: str | None, endpoint_url: str | None) -> None:
    """Show what is in use, was before, was fetched and was decided, and what the hub has promoted.

    Without the hub's store the hospital's own part is shown.
    """
    from fedhelp_cli.model import list_models

    list_models(silo, store=store, endpoint_url=endpoint_url, name=name)


@model.command(epilog=_EXIT_CODES)
@click.argument("outcomes", type=click.Path(dir_okay=False, path_type=Path))
@_of_silo
@_with_exit_codes
def audit(outcomes: Path, silo: Path, name: str | None) -> None:
    """Say how right the answers were, month by month, once the truth is known.

    OUTCOMES is a CSV with columns sha256 (of the image, as in results.csv), label (its true class) and perhaps when (YYYY-MM-DD). Of findings each
    has a column of its own in place of label: 1, 0, or nothing where it is not known. Answers come from the hospital's own record, which predict and
    serve write. Nothing leaves the hospital.
    """
    from fedhelp_cli.model import audit_model

    audit_model(silo, outcomes, name=name)


@model.command(epilog=_EXIT_CODES)
@_of_silo
@_of_store
@click.option("--version", help="Another version that was champion; default: the champion.")
@_with_exit_codes
def fetch(silo: Path, name: str | None, store: str | None, endpoint_url: str | None, version: str | None) -> None:
    """Fetch the hub's champion and verify it: the whole record, the weights' sha256.

    A record with a gap, an altered one, or an older one than was seen here before is refused.
    """
    from fedhelp_cli.model import fetch_model

    click.echo(fetch_model(silo, store=store, endpoint_url=endpoint_url, name=name, version=version))


@model.command(epilog=_EXIT_CODES)
@_of_silo
@_of_store
@click.option("--fetch", "fetch_first", is_flag=True, help="Fetch the champion first, as `fedhelp model fetch` does.")
@click.option("--version", help="Another fetched version; default: the newest.")
@click.option("--force", is_flag=True, help="Adopt it although the hospital's rule says no; needs --reason, and is written down.")
@click.option("--reason", default="", help="Why the rule is overruled.")
@_device
@click.option("--dry-run", is_flag=True, help="Join and score it, print what the rule says, and change nothing.")
@_with_exit_codes
def adopt(
    silo: Path, name: str | None, store: str | None, endpoint_url: str | None, fetch_first: bool, version: str | None, force: bool, reason: str,
    device: str, dry_run: bool,
) -> None:
    """Put a fetched model into use, if it is good enough for this hospital.

    It is joined with the hospital's own batch norms, or its own large model, and scored on the hospital's test images beside the one in use.
    It may score at most adoption.tolerance below that (silo.yaml); else the one in use stays, and the command ends with 40. The last
    two are kept, every decision is in adoptions.jsonl. Needs no network but for --fetch, or where adoption.announce is on.
    """
    if force != bool(reason.strip()):
        raise click.UsageError("--force and --reason TEXT belong together: who overrules the hospital's rule says why")
    from fedhelp_cli.model import adopt_model, fetch_model

    if fetch_first:
        click.echo(fetch_model(silo, store=store, endpoint_url=endpoint_url, name=name, version=version))
    click.echo(adopt_model(
        silo, name=name, version=version, force=reason.strip() or None, device=device, store=store, endpoint_url=endpoint_url, dry_run=dry_run))


@model.command("rollback", epilog=_EXIT_CODES)
@_of_silo
@click.option("--reason", default="", help="Why, for the hospital's ledger.")
@_with_exit_codes
def rollback_model(silo: Path, name: str | None, reason: str) -> None:
    """Put the model before this one into use again. Needs no network."""
    from fedhelp_cli.model import roll_back_model

    click.echo(roll_back_model(silo, name=name, reason=reason.strip()))


@model.command(epilog=_EXIT_CODES)
@_of_silo
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder, or the program's file, to be made.")
@click.option("--form", type=click.Choice(["weights", "program"]), default="weights", show_default=True,
              help="weights: safetensors with contract.json. program: what torch.export writes, which runs without FedHelp.")
@_with_exit_codes
def export(silo: Path, name: str | None, out: Path, form: str) -> None:
    """Write the model in use as files: so a hospital gets at its own large model."""
    from fedhelp_cli.model import export_model

    click.echo(export_model(silo, name=name, out=out, form=form))


def _form_and_silos(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    from fedhelp_cli.run_form import offered_form_of
    from fedhelp_core.config.federation import load_federation

    federation = load_federation(path)
    return offered_form_of(federation, source=str(path)), federation.silo_names


def _file_or_demo(federation: Path | None, demo: Path | None, task: str | None) -> Path:
    if (federation is None) == (demo is None and task is None):
        raise click.UsageError("give either a FEDERATION file, or --demo FOLDER or --task TASK")
    if federation is not None:
        return federation
    from fedhelp_cli.run import prepared_demo

    return prepared_demo(demo or Path(f"demo-{task}"), task)


def _overridden(path: Path, changes: tuple[str, ...], *, methods: Sequence[str] = ()) -> Federation:
    """The federation with `changes`; of `methods`, instead of the file's, where none needs soft labels: so a study of these needs no public set."""
    from fedhelp_core.config.federation import load_federation
    from fedhelp_core.registry.methods import METHOD_PARTS

    plain = [method for method in methods if method in METHOD_PARTS and not METHOD_PARTS[method].soft_labels]
    return load_federation(path, before={"algorithm.method": plain[0]} if plain else None).override(**_changes(changes))


def _pairs(settings: tuple[str, ...]) -> dict[str, Any]:
    """'a=1' -> {'a': 1}; values are JSON where they parse as such, else text."""
    pairs: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise click.UsageError(f"--set {setting}: FIELD=VALUE expected, e.g. algorithm.rounds=3")
        try:
            pairs[name] = json.loads(value)
        except ValueError:
            pairs[name] = value
    return pairs


_changes = _pairs


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _texts(text: str) -> dict[str, str]:
    """'a=b,c=d' -> {'a': 'b', 'c': 'd'}."""
    pairs = [part.partition("=") for part in _list(text)]
    wrong = [ours for ours, equals, theirs in pairs if not (ours and equals and theirs)]
    if wrong:
        raise click.UsageError(f"--columns {text}: OURS=YOURS expected, comma-separated, e.g. image=File,label=Diagnosis")
    names = [ours.strip() for ours, _, _ in pairs]
    if len(set(names)) != len(names):
        raise click.UsageError(f"--columns {text}: each of ours once expected, or the last one would win")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def _positive_numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in _list(text))
    except ValueError:
        numbers = (0.0,)
    if any(not 0 < number < float("inf") for number in numbers):
        raise click.UsageError(f"{option} {text}: positive numbers expected, e.g. 9930,3163,2691")
    return numbers


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in _list(text)]
    except ValueError:
        raise click.UsageError(f"--seeds {text}: whole numbers expected, e.g. 1,2,3") from None


if __name__ == "__main__":
    main()
