"""Ask every teacher about every public image that it was never asked about, and build the distillation set (Eq 2's q).

Called by the soft_label_prefetch component and by `fedhelp simulate`. Exactly once per (image content, preprocessing,
teacher name, version, classes, output): killed, resumed, overlapping and reordered public sets ask for unseen images only,
and a second run makes no request. Shapes: N images, C the teachers' classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core import telemetry
from fedhelp_core.config import PublicSetConfig, TeacherConfig
from fedhelp_core.data.decode import preprocessing
from fedhelp_core.errors import ConfigError, TeacherUnavailable
from fedhelp_core.softlabels.distillation_set import write_distillation_set
from fedhelp_core.softlabels.ledger import Ledger, batch_sha
from fedhelp_core.softlabels.public_images import PublicImages, read_public_images
from fedhelp_core.softlabels.teachers import Teacher, TeacherIdentity, checked_probabilities, open_teacher
from fedhelp_core.store import Store

RETRY_PAUSES_S = (0.5, 1.0, 2.0, 4.0)  # before each further try of a request that a teacher could not answer

Progress = Callable[[str, int, int], None]
"""(teacher's name, images answered now, images to ask now), after every request."""


@dataclass(frozen=True, kw_only=True)
class TeacherCounts:
    """How one teacher's answers were come by."""

    asked: int
    """Images asked about now."""
    cached: int
    """Images that the ledger already knew."""
    requests: int
    """Requests that were answered."""


@dataclass(frozen=True, kw_only=True)
class PrefetchReport:
    """What prefetch did. `asked` and `cached` are summed over the teachers."""

    distillation_set_sha256: str
    images: int
    """Distinct public images."""
    duplicates: int
    """Files left out because another has the same bytes."""
    asked: int
    cached: int
    seconds: float
    classes: int
    teachers: dict[str, TeacherCounts]


def prefetch(
    store: Store, public: PublicSetConfig, image_size: int, *, progress: Progress | None = None, teachers: Sequence[Teacher] | None = None,
) -> PrefetchReport:
    """Ask what is not known, mix the teachers' answers by weight (q = Σ a_t q_t), write the distillation set.

    Args:
        store: Holds the ledger and gets the set.
        public: Folder of images, and the teachers.
        image_size: Side in pixels that images are prepared to, for teachers and for training.
        progress: Called after every request.
        teachers: Clients to use instead of opening `public.teachers`, in the same order.

    Raises:
        ConfigError: teachers of different class counts or with the same name.
        DataError: the public images cannot be used.
        TeacherError: an answer cannot be used; nothing of it was recorded.
        TeacherUnavailable: a teacher does not answer; what it answered before is kept, run again to go on.
    """
    started = time.monotonic()
    clients = list(teachers) if teachers is not None else [open_teacher(config) for config in public.teachers]
    configs = [client.config for client in clients]
    classes = _agreed_classes(configs)
    images = read_public_images(public.images, image_size)
    identities = [TeacherIdentity.of(config, preprocessing(image_size)) for config in configs]
    shares = [config.weight / sum(c.weight for c in configs) for config in configs]
    mixed_NC = np.zeros((len(images.hashes), classes), dtype=np.float64)
    counts: dict[str, TeacherCounts] = {}
    for client, identity, share in zip(clients, identities, shares, strict=True):
        answers_NC, counts[identity.name] = _answers(Ledger(store, identity), client, images, progress)
        mixed_NC += share * answers_NC
    sha256 = write_distillation_set(store, images, mixed_NC.astype(np.float16), list(zip(identities, shares, strict=True)))
    return PrefetchReport(
        distillation_set_sha256=sha256, images=len(images.hashes), duplicates=images.duplicates,
        asked=sum(c.asked for c in counts.values()), cached=sum(c.cached for c in counts.values()),
        seconds=time.monotonic() - started, classes=classes, teachers=counts)


def _agreed_classes(configs: Sequence[TeacherConfig]) -> int:
    names = [config.name for config in configs]
    if len(set(names)) != len(names):
        raise ConfigError(f"public_set.teachers: every teacher needs its own name, got {', '.join(names)}")
    if len({config.classes for config in configs}) != 1:
        found = ", ".join(f"{config.name}: {config.classes}" for config in configs)
        raise ConfigError(f"public_set.teachers: teachers can only be mixed if all have the same number of classes, got {found}")
    return configs[0].classes


def _answers(
    ledger: Ledger, teacher: Teacher, images: PublicImages, progress: Progress | None,
) -> tuple[NDArray[np.float16], TeacherCounts]:
    """The teacher's rows (N, C) float16 in the order of `images`, the unknown ones asked for first."""
    known = ledger.answers()
    unseen = [i for i, image in enumerate(images.hashes) if image not in known]
    requests = 0
    for start in range(0, len(unseen), teacher.config.batch_size):
        chosen = unseen[start : start + teacher.config.batch_size]
        hashes = [images.hashes[i] for i in chosen]
        pixels_NHWC = images.pixels(chosen)
        answer = _asked(teacher, pixels_NHWC, batch_sha(hashes))
        ledger.record(hashes, checked_probabilities(answer, teacher.config, len(chosen)))
        requests += 1
        telemetry.teacher_asked(teacher.config.name, len(chosen))
        if progress is not None:
            progress(teacher.config.name, start + len(chosen), len(unseen))
    if requests:
        known = ledger.answers()  # what is recorded counts, also where another process recorded it first
    rows_NC = np.stack([known[image] for image in images.hashes])
    return rows_NC, TeacherCounts(asked=len(unseen), cached=len(images.hashes) - len(unseen), requests=requests)


def _asked(teacher: Teacher, pixels_NHWC: NDArray[np.uint8], request_id: str) -> Any:
    """The answer to one request; a teacher that is busy or restarting is given some seconds."""
    for pause_s in RETRY_PAUSES_S:
        try:
            return teacher.ask(pixels_NHWC, request_id=request_id)
        except TeacherUnavailable:
            time.sleep(pause_s)
    return teacher.ask(pixels_NHWC, request_id=request_id)
