"""Whether an update may enter a round's average: what its manifest says, then its weights (weights/check.py). Pure but for reading the file.

Called by closing.py for each update; it refuses those that fail here, and those that weights/outliers.py finds among the others.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from fedhelp_core.errors import PermanentError
from fedhelp_core.protocol.documents import Commit, UpdateManifest
from fedhelp_core.weights.check import Checked, check_weights_file


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What an update must be to enter a round's average."""

    max_bytes: int
    """Largest weights file."""
    max_norm: float | None = None
    """Largest L2 norm of (update - global); None: unbounded."""
    max_norm_ratio: float | None = None
    """The same by the root of batches, in medians of the round's updates; None: unbounded."""
    max_statistics_ratio: float | None = None
    """Largest distance of batch norms' statistics from the round's median, in the same way; None: unbounded."""
    min_direction: float | None = None
    """Smallest cosine between an update's step and the round's median step; None: any."""
    batch_size: int = 1
    """Images of one optimizer step."""
    metrics: Collection[str] | None = None
    """Names of all that a manifest may report; None: any."""


def check_manifest(manifest: UpdateManifest, start: Commit, terms: Terms) -> None:
    """Whether the update was trained from the model that `start` made real, and reports what it may.

    Raises:
        PermanentError: it was not, or does not; the message names the field.
    """
    if manifest.trained_from != start.global_sha256:
        raise PermanentError(
            f"trained_from: the model that round {start.round + 1} starts from ({start.global_sha256[:12]}...) expected, got"
            f" {manifest.trained_from[:12]}...; an update of another round, or sent twice")
    if terms.metrics is not None and (foreign := manifest.metrics.keys() - set(terms.metrics)):
        raise PermanentError(f"metrics: one of {', '.join(sorted(terms.metrics))} expected, got {min(foreign)!r}")


def check_update(file: Path, manifest: UpdateManifest, start: Commit, reference: Path, terms: Terms) -> Checked:
    """Whether the update's weights are a model; `reference`: the file that they were trained from.

    Raises:
        WeightsError: a fault of the file. It is looked for before anything is held against the manifest.
        PermanentError: the manifest says something else of it.
    """
    checked = check_weights_file(
        file, spec=start.spec, max_bytes=terms.max_bytes, sha256=manifest.sha256, reference=reference, max_norm=terms.max_norm)
    if (manifest.size_bytes, manifest.architecture) != (file.stat().st_size, start.spec.architecture):
        raise PermanentError(
            f"size_bytes, architecture: {file.stat().st_size} and {start.spec.architecture!r} expected, which its weights have, got"
            f" {manifest.size_bytes} and {manifest.architecture!r}")
    return checked
