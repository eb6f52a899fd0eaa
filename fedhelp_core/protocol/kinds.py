"""Who is large and who is small: as declared, or `auto` by number of training images. No torch: the hub decides this.

Called by check and by simulate.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedhelp_core.config.federation import Federation
from fedhelp_core.errors import ConfigError


def resolve_kinds(federation: Federation, training_samples: Mapping[str, int]) -> dict[str, str]:
    """'large' or 'small' for every silo: as declared, `auto` by number of training images (ties by name).

    Raises:
        ConfigError: a silo trains nothing.
    """
    idle = [name for name, count in training_samples.items() if not count]
    if idle:
        raise ConfigError(f"silos: {', '.join(idle)}: no training image (data.test_only in silo.yaml), so no part in a run; take them out of `silos`")
    declared = {silo.name: silo.kind for silo in federation.silos}
    undecided = sorted((n for n, kind in declared.items() if kind == "auto"), key=lambda n: (-training_samples[n], n))
    large = set(undecided[: federation.algorithm.large_silos])
    return {n: kind if kind != "auto" else ("large" if n in large else "small") for n, kind in declared.items()}
