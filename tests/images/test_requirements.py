"""What the images install: in step with the lock, enough for what the code imports, and nothing that the hub need not pull."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import grimp
import pytest

from fedhelp_components import images as image_names
from fedhelp_pipelines.graphs import PIPELINES
from tests.images.without_cuda import empty_library

ROOT = Path(__file__).resolve().parents[2]
LISTS = ("images/build.txt", "images/hub/requirements.txt", "images/silo/torch.txt", "images/silo/torch-cpu.txt", "images/silo/requirements.txt")
INSIDE_A_HOSPITAL = ("worker", "doctor")  # run in the silo image
OURS = ("fedhelp_core", "fedhelp_dispatch", "fedhelp_components", "fedhelp_pipelines", "fedhelp_cli")
NOT_ON_THE_HUB = {
    ("fedhelp_dispatch.process", "fedhelp_dispatch.worker"),  # workers as processes, which machines with the silo's packages have
    ("fedhelp_core.data.reading", "fedhelp_core.data.volumes"),  # decoding volumes, which silos and prefetch do; check only lists them
    ("fedhelp_core.data.public", "fedhelp_core.data.volumes"),
    ("fedhelp_dispatch.process", "fedhelp_dispatch.worker"),  # in the child that it forks, which is a silo on the hub's own machine
    ("fedhelp_core.tracking.models", "torch"),  # logging and loading models, which evaluation and teachers do, in the silo image
}


def load(path: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def names(text: str) -> set[str]:
    """The distributions that a list pins."""
    return set(re.findall(r"^([a-z0-9-]+)==", text, flags=re.MULTILINE))


def components(image: str) -> list[str]:
    """The components whose kfp spec names `image`."""
    executors = [item for pipeline in PIPELINES.values() for item in pipeline.pipeline_spec.deployment_spec["executors"].items()]
    found = {name for name, executor in executors if executor["container"]["image"] == image}
    return sorted({re.sub(r"-\d+$", "", name.removeprefix("exec-")).replace("-", "_") for name in found})


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    found = grimp.build_graph(*OURS, include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None)
    for importer, imported in NOT_ON_THE_HUB:
        found.remove_import(importer=importer, imported=imported)
    return found


def imported_by(graph: grimp.ImportGraph, entries: list[str]) -> set[str]:
    """Packages that are not ours and that `entries` import, by whatever way and however late."""
    reached = set[str]().union(*(graph.find_upstream_modules(entry) for entry in entries))
    return {module for module in reached if not module.startswith(OURS)} - set(sys.stdlib_module_names)


def missing_from(pins: str, packages: set[str]) -> Iterator[str]:
    provided_by = importlib.metadata.packages_distributions()
    for package in sorted(packages):
        if not {re.sub(r"[-_.]+", "-", name).lower() for name in provided_by[package]} & names(pins):
            yield package


def test_the_lists_are_what_the_lock_says() -> None:
    out_of_step = [path.name for path in load("images/requirements.py", "requirements_writer").out_of_step()]
    assert out_of_step == [], "run: make requirements"


def test_every_file_that_is_installed_is_known_by_its_hash() -> None:
    for path in LISTS:
        entries = re.split(r"\n(?=\S)", read(path).strip())
        assert [entry for entry in entries if not entry.startswith("#") and "--hash=sha256:" not in entry] == []


def test_no_package_index_and_no_registry_is_written_into_the_build() -> None:
    files = [path for path in (ROOT / "images").rglob("*") if path.suffix in (".sh", ".txt", ".py") or path.name == "Dockerfile"]
    assert [path.name for path in files if re.search(r"https?://", path.read_text(encoding="utf-8"))] == []


def test_the_build_uses_the_same_uv_as_the_makefile() -> None:
    version = re.search(r"^UV_VERSION := (\S+)$", read("Makefile"), flags=re.MULTILINE)
    assert version is not None
    assert f"uv=={version.group(1)} " in read("images/build.txt")


class TestHub:
    def test_it_runs_everything_but_what_needs_pytorch(self) -> None:
        assert components(image_names.SILO_IMAGE) == ["evaluation", "soft_label_prefetch"]
        assert components(image_names.HUB_IMAGE) == ["aggregation", "check", "federation", "left_out", "promotion", "silo_training"]

    def test_it_has_every_package_that_its_components_and_dispatchers_import(self, graph: grimp.ImportGraph) -> None:
        entries = [f"fedhelp_components.{name}.__main__" for name in components(image_names.HUB_IMAGE)]
        entries += [module for module in graph.modules if module.startswith("fedhelp_dispatch.") and module.split(".")[1] not in INSIDE_A_HOSPITAL]
        assert list(missing_from(read("images/hub/requirements.txt"), imported_by(graph, entries))) == []

    def test_it_has_neither_pytorch_nor_what_else_is_large(self) -> None:
        heavy = {"torch", "monai", "scipy", "pandas", "pyarrow", "scikit-learn", "matplotlib", "mlflow"}
        assert names(read("images/hub/requirements.txt")) & heavy == set()


class TestSilo:
    def test_its_two_lists_are_all_that_the_product_depends_on_but_mlflows_server_and_figures_of_studies(self) -> None:
        wanted = {re.split(r"[<>=\[ ]", requirement)[0] for requirement in tomllib.loads(read("pyproject.toml"))["project"]["dependencies"]}
        listed = names(read("images/silo/requirements.txt")) | names(read("images/silo/torch.txt"))
        assert wanted - listed == {"mlflow", "matplotlib"} and "mlflow-skinny" in listed

    def test_no_package_is_in_both_of_its_lists(self) -> None:
        assert names(read("images/silo/requirements.txt")) & names(read("images/silo/torch.txt")) == set()

    def test_it_has_every_package_that_the_worker_and_its_components_import(self, graph: grimp.ImportGraph) -> None:
        entries = [f"fedhelp_components.{name}.__main__" for name in components(image_names.SILO_IMAGE)]
        packages = imported_by(graph, [*entries, "fedhelp_dispatch.worker"])
        assert list(missing_from(read("images/silo/requirements.txt") + read("images/silo/torch.txt"), packages)) == []


class TestWithoutCuda:
    def test_pytorch_itself_comes_from_elsewhere_and_nothing_of_nvidia_is_listed(self) -> None:
        full, cpu = names(read("images/silo/torch.txt")), names(read("images/silo/torch-cpu.txt"))
        assert {name for name in full - cpu if not name.startswith(("nvidia-", "cuda-"))} == {"torch"}
        assert not [name for name in cpu if name.startswith(("nvidia-", "cuda-"))] and cpu < full

    def test_a_build_without_the_index_of_cpu_builds_says_what_is_missing(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "TORCH_INDEX"} | {"CUDA": "no"}
        done = subprocess.run([str(ROOT / "images" / "build.sh"), "silo"], capture_output=True, text=True, env=environment)
        assert done.returncode == 1
        assert "give that index' address as TORCH_INDEX" in done.stderr

    def test_the_tests_empty_library_loads_and_defines_what_it_was_asked_for(self, tmp_path: Path) -> None:
        path = tmp_path / "libstand_in.so"
        path.write_bytes(empty_library("libstand_in.so", ["libcublas.so.13"], [("cublasCreate_v2", "libcublas.so.13"), ("ncclSend", "")]))
        library = ctypes.CDLL(str(path))
        assert ctypes.c_uint64.in_dll(library, "cublasCreate_v2").value == 0
        assert ctypes.c_uint64.in_dll(library, "ncclSend").value == 0
        with pytest.raises(ValueError, match="undefined symbol"):
            ctypes.c_uint64.in_dll(library, "ncclRecv")


class TestWhatIsNeverLoaded:
    GONE = (
        "numpy/tests/test_a.py", "scipy/linalg/tests/data.npy", "torch/include/ATen.h", "torch/bin/protoc-3.21.12.0",
        "nvidia/cu13/include/cuda.h", "nvidia/cu13/lib/libcudart_static.a", "numpy/_core/lib/libnpymath.a",
        "botocore/data/ec2/2016-11-15/service-2.json.gz", "botocore/data/s3control/2018-08-20/service-2.json.gz")
    KEPT = (
        "torch/lib/libtorch.so", "torch/bin/torch_shm_manager", "torch/testing/__init__.py", "nvidia/cu13/lib/libcudart.so.13",
        "numpy/_core/include/numpy/arrayobject.h", "botocore/data/endpoints.json",
        "botocore/data/s3/2006-03-01/service-2.json.gz", "botocore/data/sts/2011-06-15/service-2.json.gz")

    def test_it_is_removed_by_the_shell_that_docker_uses_and_nothing_else_is(self, tmp_path: Path) -> None:
        packages = tmp_path / "lib" / "python3.11" / "site-packages"
        for name in (*self.GONE, *self.KEPT):
            (packages / name).parent.mkdir(parents=True, exist_ok=True)
            (packages / name).touch()
        subprocess.run(
            ["sh", "-ec", f". images/environment.sh; VIRTUAL_ENV={tmp_path}; without_what_is_never_loaded"], check=True, cwd=ROOT)
        assert {str(path.relative_to(packages)) for path in packages.rglob("*") if path.is_file()} == set(self.KEPT)

    def test_a_store_in_a_bucket_and_logins_by_a_clusters_identity_still_have_what_they_load(self) -> None:
        import botocore.loaders

        services = set(botocore.loaders.Loader().list_available_services("service-2"))
        assert {"s3", "sts", "sso", "sso-oidc", "signin"} <= services
