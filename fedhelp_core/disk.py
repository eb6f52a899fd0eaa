"""What goes wrong with a silo's own volume, in words. Called wherever a silo writes: its state, its caches."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedhelp_core.errors import AccessDenied, FedHelpError, StorageFull


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """OSErrors about `path` as errors of our own, one sentence each."""
    try:
        yield
    except FedHelpError:
        raise
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"{path}: no space left on the silo's state volume; free some or enlarge it, then run again") from e
        if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise AccessDenied(f"{path}: not writable ({e.strerror}); mount the state volume read-write for this user") from e
        raise
