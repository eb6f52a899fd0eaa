"""What the children of test_child.py do: started there with `python -m`."""

from __future__ import annotations

import os
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from numpy.typing import NDArray

from fedhelp_core.child import Work, serve


def start() -> tuple[dict[str, Any], Work]:
    print("noise")
    if sys.argv[1] == "no start":
        raise ValueError("nothing to start\nat all")
    return {"cwd": os.getcwd(), "seen": os.environ.get("SEEN")}, answer


def answer(head: dict[str, Any], array: NDArray[Any]) -> NDArray[Any]:
    print("noise", flush=True)
    match head.get("do"):
        case "end":
            os._exit(3)
        case "raise":
            raise ValueError("not this one")
        case "stall":
            time.sleep(1000)
        case "raw":
            pipe = Connection(int(sys.argv[-1]))
            pipe.send_bytes(array.tobytes())
            pipe.send_bytes(b"1234")
    return array


if __name__ == "__main__":
    serve(start)
