"""Pretrained weights in the store, and read from it. Named by their sha256, which whoever reads them holds them against. No PyTorch.

Check puts them there; silos, evaluation and simulate read them. A file is untrusted: weights/file.py reads it byte by byte, and nothing in it is run.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedhelp_core.config.federation import Federation
from fedhelp_core.config.pretrained import PretrainedModel, WhichModel
from fedhelp_core.disk import digest_of
from fedhelp_core.errors import ConfigError, NotFound
from fedhelp_core.protocol.keys import ModelKeys
from fedhelp_core.store.base import Store
from fedhelp_core.weights.file import read_header, read_weights
from fedhelp_core.weights.header import Weights


def settle_pretrained(config: Federation, source: Store, destination: Store) -> None:
    """Every pretrained file verified, and in `destination`; `source`: the federation's own store.

    Raises:
        ConfigError: a sha256 is another than the federation says.
        NotFound: there is no such file, here or in the store.
        WeightsError: it is no safetensors file, or larger than protocol.max_update_bytes.
    """
    for which, model in config.algorithm.pretrained.items():
        key = ModelKeys(config.registered_name).weights(model.sha256)
        if model.file is not None:
            _require(config, which, model)
            destination.put_new(key, model.file)
            continue
        try:
            path = source.fetch(key, config.protocol.max_update_bytes)
        except NotFound as e:
            raise NotFound(f"algorithm.pretrained.{which}: no object {key} in {source.url}; put the weights there, or give a file") from e
        try:
            if digest_of(path)[0] != model.sha256:
                raise ConfigError(f"algorithm.pretrained.{which}: {key} in {source.url} has another sha256 than its name; put the right file there")
            if source is not destination:
                destination.put_new(key, path)
        finally:
            source.release(path)


def require_pretrained_files(config: Federation) -> None:
    """Nothing where every file that is named is there and has its sha256. Raises as `settle_pretrained`; nothing is written."""
    for which, model in config.algorithm.pretrained.items():
        if model.file is not None:
            _require(config, which, model)


def _require(config: Federation, which: WhichModel, model: PretrainedModel) -> None:
    assert model.file is not None
    if not model.file.is_file():
        raise NotFound(f"algorithm.pretrained.{which}.file: no file {model.file}")
    read_header(model.file, max_bytes=config.protocol.max_update_bytes)
    if (sha256 := digest_of(model.file)[0]) != model.sha256:
        raise ConfigError(
            f"algorithm.pretrained.{which}.sha256: {model.sha256[:12]}... expected, but {model.file} has {sha256[:12]}...; correct one of them")


def read_pretrained(config: Federation, store: Store | None) -> Mapping[WhichModel, Weights]:
    """The weights by model, as their files name them; `store`: None: from the files that the federation names.

    Raises:
        NotFound: they are not there.
        WeightsError: another file than the federation's.
    """
    found: dict[WhichModel, Weights] = {}
    for which, model in config.algorithm.pretrained.items():
        most = config.protocol.max_update_bytes
        if store is None:
            if model.file is None:
                raise NotFound(f"algorithm.pretrained.{which}.file: simulate needs the file itself; give its path")
            found[which] = read_weights(model.file, expected=None, max_bytes=most, sha256=model.sha256)
            continue
        path = store.fetch(ModelKeys(config.registered_name).weights(model.sha256), most)
        try:
            found[which] = read_weights(path, expected=None, max_bytes=most, sha256=model.sha256)
        finally:
            store.release(path)
    return found
