"""Every error that FedHelp raises on purpose, and the exit code each ends a process with.

    FedHelpError
    ├── PermanentError            trying again is useless: somebody has to change something
    │   ├── ConfigError      10   a config, a command line or an environment variable is wrong
    │   ├── DataError        11   a silo's or the public images are wrong
    │   ├── WeightsError     12   a weights file is damaged, forged or of another architecture
    │   ├── RunConflict      13   the run id belongs to another config
    │   ├── AccessDenied     14   credentials or permissions
    │   ├── TeacherError     15   a teacher's answer cannot be used
    │   ├── RunAborted       16   another party ended this run
    │   ├── QuorumLost       17   fewer silos answered than `min_silos`
    │   ├── NotFound         18   an object that must be there is not
    │   └── JobFailed        19   a silo's work ended with a permanent error
    ├── RetryableError            the same call may work later
    │   ├── StoreUnavailable 30   object store not reached, or answering 5xx
    │   ├── TeacherUnavailable 31 teacher not reached, 429 or 5xx
    │   ├── StorageFull      32   no space left
    │   ├── StateLocked      33   another process works on this silo's state
    │   ├── HubSilent        34   the hub of this run has not been heard of for longer than its lease
    │   ├── ClusterUnavailable 35 a silo's Kubernetes API server not reached, or answering 5xx
    │   └── GlobalModelDiverges 36 a round's global model gives no finite loss in a silo that has done nothing to it yet
    ├── NotAdopted           40   a model is not good enough for this hospital's own rule
    ├── PartlyDone           41   all but some files were answered; they are named
    └── Crashed              70   what nobody foresaw; its trace is in a file (crashes.py)

A Job's podFailurePolicy fails at once on 10-19 and retries 30-39. Messages are one sentence: what, which, expected
versus got, and the next step. A list of problems found together is one `ConfigError` or `DataError` with `problems`.

An error has two halves. Its text is private: it may name a hospital's files and what its lists say. `public_half` is what may leave the
hospital: kind, split, rows, counts. A class is `shared` where its text never speaks of data, only of the run and of files of FedHelp's own.
"""

from __future__ import annotations

from collections.abc import Sequence


class FedHelpError(Exception):
    """Root of all errors raised on purpose; `exit_code` is what a process ends with.

    Args:
        text: One sentence, for those who may see everything.
        public: The half that may leave a hospital; None: what `public_half` says of the class.
    """

    exit_code = 1
    shared = False
    """Whether the text is its own public half."""
    kind = "an error that its text alone explains"
    """The public half of one that has no other."""

    def __init__(self, text: str = "", *, public: str | None = None) -> None:
        super().__init__(text)
        self.public = public


class PermanentError(FedHelpError):
    """Trying again is useless until somebody changes something."""

    exit_code = 10


class RetryableError(FedHelpError):
    """The same call may work later."""

    exit_code = 30


class _ProblemList(PermanentError):
    """An error that can carry several problems found in one pass."""

    def __init__(self, problems: str | Sequence[str], *, public: str | None = None) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems), public=public)


class ConfigError(_ProblemList):
    """A config file, command line or environment variable is wrong."""

    exit_code = 10
    kind = "settings that cannot be used"


class DataError(_ProblemList):
    """A silo's images, labels or splits, or the public images, cannot be used."""

    exit_code = 11
    kind = "data that cannot be used"


class WeightsError(PermanentError):
    """A weights file is damaged, forged, too large, or of another architecture."""

    exit_code = 12
    shared = True


class RunConflict(PermanentError):
    """The run id is already used by a run with another config."""

    exit_code = 13
    shared = True


class AccessDenied(PermanentError):
    """Wrong credentials or missing permissions."""

    exit_code = 14
    shared = True


class TeacherError(PermanentError):
    """A teacher answered with something that must not enter the distillation set."""

    exit_code = 15


class RunAborted(PermanentError):
    """The run was ended for everyone; the message is the reason that its `abort` object gives."""

    exit_code = 16
    shared = True


class QuorumLost(PermanentError):
    """Fewer silos answered a round than `min_silos`."""

    exit_code = 17
    shared = True


class NotFound(PermanentError):
    """An object that must exist in the store, or a file that must exist, does not."""

    exit_code = 18
    shared = True


class JobFailed(PermanentError):
    """A silo's process or Job ended with a permanent error, or used up its retries."""

    exit_code = 19


class StoreUnavailable(RetryableError):
    """The object store was not reached, or answered with a server error."""

    exit_code = 30
    shared = True


class TeacherUnavailable(RetryableError):
    """The teacher was not reached, is overloaded, or answered with a server error."""

    exit_code = 31


class StorageFull(RetryableError):
    """A disk or bucket has no space left."""

    exit_code = 32
    shared = True


class StateLocked(RetryableError):
    """Another process is working on this silo's state folder."""

    exit_code = 33
    shared = True


class HubSilent(RetryableError):
    """A worker has not heard of its run's hub for longer than the lease, and ends itself."""

    exit_code = 34
    shared = True


class ClusterUnavailable(RetryableError):
    """A silo's Kubernetes API server was not reached, or answered with a server error."""

    exit_code = 35


class GlobalModelDiverges(RetryableError):
    """A round's global model gives no finite loss, before this silo has trained it: the silo is not to blame, and comes back in the next round."""

    exit_code = 36
    shared = True


class NotAdopted(FedHelpError):
    """The hospital's own rule keeps the model in use that is: nothing is wrong, nothing was changed."""

    exit_code = 40
    kind = "a model that was not adopted"


class PartlyDone(FedHelpError):
    """Some of the files that were asked about could not be used; the answers about all others are there."""

    exit_code = 41
    kind = "files that could not be used"


class Crashed(FedHelpError):
    """An exception that is none of these: a fault of FedHelp, of a library or of the machine. Nobody knows whether another try helps."""

    exit_code = 70  # EX_SOFTWARE of sysexits.h
    kind = "an error that nobody foresaw"


def public_half(error: BaseException) -> str:
    """What of `error` may leave a hospital: nothing that was read from its data or written in its silo.yaml."""
    if not isinstance(error, FedHelpError):
        return f"{type(error).__name__}, a fault of the program"
    if error.public is not None:
        return error.public
    if error.shared:
        return str(error)
    problems = len(getattr(error, "problems", ()))
    return f"{error.kind} ({problems} problems)" if problems > 1 else error.kind


PERMANENT_EXIT_CODES = tuple(range(10, 20))

_SHOWN = 50


def listed(problems: Sequence[str]) -> list[str]:
    """`problems`, the first 50 and a count of the rest: enough to see the pattern, short enough to read."""
    rest = len(problems) - _SHOWN
    return [*problems[:_SHOWN], *([f"... and {rest} more like these"] if rest > 0 else [])]
