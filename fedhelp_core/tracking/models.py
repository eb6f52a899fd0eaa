"""Models as MLflow keeps them: exported programs that go into the registry, pyfuncs that come from teachers. No pickle of ours anywhere."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.child import ChildEnded, ChildRefused
from fedhelp_core.errors import PermanentError, StoreUnavailable, TeacherError, TeacherUnavailable
from fedhelp_core.printable import first_line, without_passwords
from fedhelp_core.registry.tasks import Form
from fedhelp_core.tracking.carried import write_source
from fedhelp_core.tracking.foreign_model import ForeignModel
from fedhelp_core.tracking.server import error_for, mlflow_errors, on_server, prepare, quiet

if TYPE_CHECKING:
    import torch

RUN_TAG = "fedhelp.run"
MODEL_TAG = "fedhelp.global_sha256"
_ROUNDING = 1e-5  # of probabilities: an exported program may sum in another order
_IDENTITY_TAGS = (RUN_TAG, MODEL_TAG)  # what makes two model versions the same


def registered_version(client: Any, name: str, tags: Mapping[str, str]) -> str | None:
    """The version of `name` that has the identity in `tags`; None if there is none or `tags` has no identity."""
    if not all(key in tags for key in _IDENTITY_TAGS):
        return None
    query = f"name = '{name}' and tags.`{MODEL_TAG}` = '{tags[MODEL_TAG]}'"
    same = [int(v.version) for v in client.search_model_versions(query) if all(v.tags.get(key) == tags[key] for key in _IDENTITY_TAGS)]
    return str(min(same)) if same else None


@dataclass(frozen=True, kw_only=True)
class ModelForUsers:
    """A model as it is registered: a network, and all that whoever loads it needs to use it as it was trained."""

    network: torch.nn.Module
    """Prepared images (N, ...) float32 -> probabilities (N, classes, ...) float32, for any number of images; it is put into eval mode."""
    example: bytes
    """A file with an image, as a user hands it over; never a patient's."""
    prepared: torch.Tensor
    """The same (1, ...) as `network` gets it."""
    answers: Sequence[str]
    """Columns of the answer: a probability of each class; of masks the foreground alone."""
    code: Path
    """The file that MLflow runs, which finds `settings`, and the artifacts `program` and `preparation`, in its context."""
    source: Sequence[str]
    """Modules of FedHelp that `code` needs."""
    settings: Mapping[str, Any]
    requirements: Sequence[str]
    """Packages that it needs beside MLflow, NumPy and PyTorch."""
    form: Form = "classes"
    """Of its answers."""
    card: Mapping[str, str] = field(default_factory=dict)
    """File's name -> text of the model card."""

    @property
    def masks(self) -> bool:
        """Whether each pixel is answered."""
        return self.form in ("masks", "regions")


def log_model(mlflow_run: str, model: ModelForUsers) -> str:
    """Log `model` as an MLflow pyfunc without pickle: its code and source, its network as an exported program (`torch.export`). Its URI.

    Loading it runs that code alone and needs no FedHelp. What is logged is loaded once and asked, with other numbers of images than it was exported
    with, before anybody is told that it exists.
    """
    import mlflow.pyfunc

    model.network.eval()
    with tempfile.TemporaryDirectory(prefix="fedhelp-model-") as folder:
        artifacts = {"program": Path(folder) / "network.pt2", "preparation": Path(folder) / "preparation.zip"}
        export_network(model.network, model.prepared, artifacts["program"])
        write_source(artifacts["preparation"], model.source)
        for name, text in model.card.items():
            artifacts[name] = Path(folder) / name
            artifacts[name].write_text(text, encoding="utf-8")
        with mlflow.start_run(run_id=mlflow_run, nested=True):
            logged = mlflow.pyfunc.log_model(
                name="model", python_model=str(model.code), artifacts={name: str(path) for name, path in artifacts.items()},
                model_config=dict(model.settings), signature=_signature(model), input_example=[model.example], metadata={"fedhelp": model.settings},
                conda_env=_environment(
                    f"mlflow=={mlflow.__version__}", f"numpy=={np.__version__}", f"torch=={_torch_version()}", *model.requirements))
            loaded = mlflow.pyfunc.load_model(logged.model_uri)
    _require_same_answers(model, loaded.predict([model.example, model.example, model.example]))
    return str(logged.model_uri)


def export_network(network: torch.nn.Module, prepared: torch.Tensor, path: Path) -> None:
    """`network` as a program for any number of images, which answers as it does.

    Raises:
        PermanentError: it answers otherwise.
    """
    import torch

    pair = prepared[:1].repeat(2, *[1] * (prepared.dim() - 1)).contiguous()  # a batch of one would be exported as always one
    with torch.inference_mode():  # some layers keep another graph for training
        program = torch.export.export(network, (pair,), dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=False)
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    with torch.inference_mode():
        three = torch.cat((pair, pair[:1]))
        if not torch.allclose(loaded(three.clone()), network(three.clone()), atol=_ROUNDING):
            raise PermanentError(
                f"model {type(network).__name__}: exported by torch.export it answers otherwise than before; look at its forward for"
                " what depends on the number of images")


def _signature(model: ModelForUsers) -> Any:
    """One column of files in; classes or findings by name, or the mask of each foreground or region, out.

    MLflow would refuse arrays and paths for such a column before the model's own code can say what is wrong with them, so it is told not to look,
    by what it writes for models whose functions have type hints.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    column: Any = DataType.float
    params: Any = None
    if model.masks:
        column = DataType.integer
        for _ in model.prepared.shape[2:]:
            column = Array(column)
        params = ParamSchema([ParamSpec("probabilities", DataType.boolean, False)])
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary)]), outputs=Schema([ColSpec(column, name) for name in model.answers]), params=params)
    signature._is_signature_from_type_hint = True
    return signature


def _require_same_answers(model: ModelForUsers, answers: Any) -> None:
    """That a loaded model says of the example what the network says of it prepared.

    Raises:
        PermanentError: it does not.
    """
    import torch

    with torch.inference_mode():
        expected = model.network(model.prepared[:1])[0].numpy()
    found = np.stack([np.asarray(answers[name].tolist()) for name in model.answers], axis=1)
    wanted = _masks_of(expected, model.form) if model.masks else expected
    close = np.isclose(found, wanted[None], rtol=_ROUNDING, atol=_ROUNDING)
    if list(answers.columns) != list(model.answers) or not (close.mean() > 0.999 if model.masks else close.all()):
        raise PermanentError("the registered model answers otherwise than the network that was trained; look at how its code prepares images")


def _torch_version() -> str:
    import torch

    return str(torch.__version__.split("+")[0])


def _environment(*requirements: str) -> dict[str, Any]:
    """What a model needs, as MLflow writes it down.

    Named by us: MLflow would load the model in another process to find out, and would warn where it cannot tell pip's version.
    """
    dependencies = [f"python={platform.python_version()}", "pip", {"pip": list(requirements)}]
    return {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": dependencies}


def load_pyfunc(uri: str) -> tuple[Callable[[NDArray[np.uint8]], Any], str]:
    """The `predict` of the MLflow model at `uri`, a batch of images (N, H, W, C) -> its answer, one row per image; and the model's uuid.

    Raises:
        TeacherError: the model cannot be loaded; later, by the function: it refuses a batch.
        TeacherUnavailable: it is on an MLflow server that was not reached.
    """
    where = f"teacher model {without_passwords(uri)}"
    scratch = Path(tempfile.mkdtemp(prefix="fedhelp-model-"))
    try:
        model = ForeignModel(_fetched(uri, where, scratch))
        weakref.finalize(model, shutil.rmtree, scratch, ignore_errors=True)  # with `predict`, which holds the model
    except (ChildEnded, ChildRefused) as e:
        raise _not_loaded(where, str(e)) from None

    def predict(images_NHWC: NDArray[np.uint8]) -> Any:
        try:
            return model.predict(images_NHWC)
        except ChildRefused as e:
            raise TeacherError(
                f"{where}: refuses a batch of uint8 images {images_NHWC.shape} ({e});"
                " expected a model whose predict takes uint8 (N, H, W, C) with values 0..255") from None
        except ChildEnded as e:
            raise TeacherError(f"{where}: {e}; look at what its predict does with uint8 images {images_NHWC.shape}") from None

    return predict, model.uuid


def _fetched(uri: str, where: str, scratch: Path) -> Path:
    """The model's folder: as it is, or fetched with our credentials, which its own code is not given."""
    if os.path.isdir(uri):
        return Path(uri)
    prepare()
    with quiet():
        import mlflow.artifacts

        try:
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(scratch)))
        except Exception as e:  # of mlflow and all that it stands on
            if on_server(uri) and isinstance(error_for(e, uri), StoreUnavailable):
                raise TeacherUnavailable(f"{where}: MLflow was not reached ({first_line(e, 300)}); try again later") from e
            raise _not_loaded(where, f"{type(e).__name__}: {first_line(e, 300)}") from e


def _not_loaded(where: str, why: str) -> TeacherError:
    return TeacherError(
        f"{where}: cannot be loaded ({why}); check public_set.teachers' uri, $MLFLOW_TRACKING_URI and"
        " that what the model's requirements.txt lists is installed here")


def save_pyfunc_from_code(
    folder: Path, *, code: Path, artifacts: Mapping[str, Path], settings: Mapping[str, Any], modules: Sequence[Path] = (),
    requirements: Sequence[str] = (),
) -> None:
    """Write an MLflow model into `folder` (new or empty) that runs the file `code`, which finds `artifacts` and `settings` in its context.

    No pickle: the model is its source and its files, both copied. `modules`: files that `code` may import once the model is loaded;
    `requirements`: what it needs beside MLflow and NumPy.

    Raises:
        PermanentError: MLflow refuses, e.g. since the folder has something in it.
    """
    prepare()
    with mlflow_errors(str(folder)), quiet():
        import mlflow.pyfunc

        mlflow.pyfunc.save_model(
            folder, python_model=str(code), artifacts={name: str(path) for name, path in artifacts.items()}, model_config=dict(settings),
            code_paths=[str(path) for path in modules],
            conda_env=_environment(f"mlflow=={mlflow.__version__}", f"numpy=={np.__version__}", *requirements))


def _masks_of(probabilities_CS: Any, form: Form) -> Any:
    """Which pixels are each foreground or region (K, ...), of the probabilities of background and foregrounds, or of regions."""
    if form == "regions" or len(probabilities_CS) == 2:
        return probabilities_CS[0 if form == "regions" else 1 :] > 0.5
    return probabilities_CS.argmax(axis=0) == np.arange(1, len(probabilities_CS)).reshape(-1, *(1,) * (probabilities_CS.ndim - 1))
