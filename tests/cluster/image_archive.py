"""A container image of a few files, made without a container engine: the pause image, and the smallest images that tests run."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence


def image_archive(name: str, files: Mapping[str, bytes], entrypoint: Sequence[str]) -> bytes:
    """A Docker image archive, as `docker save` writes it: one layer with executable `files` in its root, run as user 1000."""
    layer = _tar(files, mode=0o755)
    configuration = {
        "architecture": "amd64", "os": "linux", "config": {"Entrypoint": list(entrypoint), "User": "1000:1000"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}}
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    return _tar({"manifest.json": json.dumps(manifest).encode(), "config.json": json.dumps(configuration).encode(), "layer.tar": layer}, mode=0o644)


def _tar(files: Mapping[str, bytes], mode: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
