"""Models as MLflow keeps them: exported programs that go into the registry, pyfuncs that come from teachers. No pickle of ours anywhere."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.child import ChildEnded, ChildRefused
from fedhelp_core.errors import PermanentError, StoreUnavailable, TeacherError, TeacherUnavailable
from fedhelp_core.printable import first_line, without_passwords
from fedhelp_core.tracking.foreign_model import ForeignModel
from fedhelp_core.tracking.server import error_for, mlflow_errors, on_server, prepare, quiet

if TYPE_CHECKING:
    import torch

RUN_TAG = "fedhelp.run"
MODEL_TAG = "fedhelp.global_sha256"
_IDENTITY_TAGS = (RUN_TAG, MODEL_TAG)  # what makes two model versions the same


def registered_version(client: Any, name: str, tags: Mapping[str, str]) -> str | None:
    """The version of `name` that has the identity in `tags`; None if there is none or `tags` has no identity."""
    if not all(key in tags for key in _IDENTITY_TAGS):
        return None
    query = f"name = '{name}' and tags.`{MODEL_TAG}` = '{tags[MODEL_TAG]}'"
    same = [int(v.version) for v in client.search_model_versions(query) if all(v.tags.get(key) == tags[key] for key in _IDENTITY_TAGS)]
    return str(min(same)) if same else None


def log_model(mlflow_run: str, module: torch.nn.Module, example: torch.Tensor) -> str:
    """Log `module` as an exported program (`torch.export`, no pickle: loading it runs no foreign code and needs no FedHelp); its URI.

    What is logged is loaded once and asked with another number of images, before anybody is told that it exists.
    """
    import mlflow.pytorch
    import torch
    from mlflow.models import infer_signature

    pair = example[:1].repeat(2, *[1] * (example.dim() - 1)).contiguous()  # a batch of one would be exported as always one
    with torch.inference_mode():
        answer = module(pair.clone())
    with mlflow.start_run(run_id=mlflow_run, nested=True):
        logged = mlflow.pytorch.log_model(
            module, name="model", input_example=pair.numpy(), signature=infer_signature(pair.numpy(), answer.numpy()), serialization_format="pt2",
            conda_env=_environment(f"mlflow=={mlflow.__version__}", f"numpy=={np.__version__}", f"torch=={torch.__version__.split('+')[0]}"))
        loaded = mlflow.pytorch.load_model(logged.model_uri)
    with torch.inference_mode():
        three = torch.cat((pair, pair[:1]))
        if not torch.allclose(loaded(three.clone()), module(three), atol=1e-5):
            raise PermanentError(
                f"model {type(module).__name__}: exported by torch.export it answers otherwise than before; look at its forward for"
                " what depends on the number of images")
    return str(logged.model_uri)


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
