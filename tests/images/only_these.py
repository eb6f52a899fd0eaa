"""Stands in for an image: this file, called sitecustomize.py, hides all packages but those of the image, and notes at the end what was imported.

$FEDHELP_TEST_HIDDEN lists names of packages that are not there, $FEDHELP_TEST_IMPORTED is the folder that processes note theirs in.
"""

import atexit
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

_hidden = set(os.environ["FEDHELP_TEST_HIDDEN"].split(","))


class _Installed(PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):  # type: ignore[no-untyped-def]
        return None if fullname.partition(".")[0] in _hidden else PathFinder.find_spec(fullname, path, target)


def _note() -> None:
    Path(os.environ["FEDHELP_TEST_IMPORTED"], str(os.getpid())).write_text("\n".join(sorted(sys.modules)))


sys.meta_path[sys.meta_path.index(PathFinder)] = _Installed
atexit.register(_note)
