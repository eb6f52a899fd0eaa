"""A file that cannot be used. Raised by every reader of files, caught by whoever lists what is wrong."""

from __future__ import annotations


class Unusable(Exception):
    """A file that cannot be an example; the message is the sentence that says why."""
