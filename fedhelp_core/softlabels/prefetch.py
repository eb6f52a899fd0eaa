"""Ask every teacher about every public image that it was never asked about, and build the distillation set (Eq 2's q).

Called by the soft_label_prefetch component and by `fedhelp simulate`. Exactly once per (image content, preprocessing,
teacher name, version, prompts, classes, output): killed, resumed, overlapping and reordered public sets ask for unseen images
only, and a second run makes no request. A teacher that wants larger images than the task sees them at its own size: those that it
was never asked about are read once more. Shards ask side by side, each about its share of the images; whoever comes last
builds the set. Shapes: N images, C the teachers' classes.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core import telemetry
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.config.teachers import PublicSetConfig, TeacherConfig
from fedhelp_core.data.public import preparation_of
from fedhelp_core.errors import ConfigError, DataError, TeacherError
from fedhelp_core.protocol.facts import TeacherReport
from fedhelp_core.softlabels.asking import Asking, Progress, prepared
from fedhelp_core.softlabels.distillation_set import write_distillation_set
from fedhelp_core.softlabels.ledger import Ledger
from fedhelp_core.softlabels.open import open_teacher
from fedhelp_core.softlabels.public_images import PublicImages, in_shard, read_public_images
from fedhelp_core.softlabels.teachers import Question, Teacher, TeacherIdentity, seen_by
from fedhelp_core.softlabels.verdict import says_always_the_same, verdict
from fedhelp_core.store.base import Store

_JUDGED = 256  # answers at a time: masks are large

Say = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class PrefetchReport:
    """What prefetch did. `asked` and `cached` are summed over the teachers."""

    distillation_set_sha256: str
    """'' where a shard only asked."""
    images: int
    """Distinct public images."""
    duplicates: int
    """Images left out because another has the same content."""
    asked: int
    cached: int
    seconds: float
    classes: int
    teachers: dict[str, TeacherReport]
    remarks: tuple[str, ...] = ()
    """What looks wrong with the teachers' answers, for people."""


def prefetch(
    store: Store, public: PublicSetConfig, task: TaskConfig, *, run: str = "", shard: tuple[int, int] | None = None, progress: Say | None = None,
    teachers: Sequence[Teacher] | None = None,
) -> PrefetchReport:
    """Ask what is not known, mix the teachers' answers by weight (q = Σ a_t q_t), write the distillation set.

    Args:
        store: Holds the ledger and gets the set.
        public: The images, and the teachers.
        task: How images are prepared, for teachers (but for their own `image_size`) and for training, and what is asked about them.
        run: Whose account the requests go to; '': this call's own.
        shard: (number from 1, of how many): ask about this shard's images only, and build no set.
        progress: Called after every answer.
        teachers: Clients to use instead of opening `public.teachers`, in the same order.

    Raises:
        ConfigError: teachers of different class counts or with the same name; a budget is used up (ledger.BudgetReached).
        DataError: the public images cannot be used.
        StorageFull: no room for them, decoded, in $TMPDIR.
        TeacherError: an answer cannot be used, or the model was exchanged; nothing of it was recorded.
        TeacherUnavailable: a teacher does not answer; what it answered before is kept, run again to go on.
    """
    started = time.monotonic()
    run = run or f"unnamed-{secrets.token_hex(8)}"
    clients = list(teachers) if teachers is not None else [open_teacher(config) for config in public.teachers]
    configs = [client.config for client in clients]
    classes = _agreed_classes(configs, least=2 if task.form == "classes" else 1)
    images = read_public_images(public.images, preparation_of(task), layout=public.layout, wanted=in_shard(shard))
    looks = [seen_by(config, task) for config in configs]
    identities = [TeacherIdentity.of(config, preparation_of(look).words, Question.of(look)) for config, look in zip(configs, looks, strict=True)]
    ledgers = [Ledger(store, identity) for identity in identities]
    for look in dict.fromkeys(looks):
        asked = [(client, ledger) for client, ledger, own in zip(clients, ledgers, looks, strict=True) if own == look]
        unseen = {image for _, ledger in asked for image in images.hashes if image not in ledger}
        shown = images if look == task or not unseen else _read_again(public, look, unseen)
        for client, ledger in asked:
            ask_unseen(client, ledger, shown, Question.of(look), run=run, shards=shard[1] if shard else 1, progress=progress)
    sha256, remarks = "", list[str]()
    if shard is None:
        remarks = [remark for config, ledger in zip(configs, ledgers, strict=True) for remark in _remarks(config, ledger, images.hashes)]
        shares = [config.weight / sum(c.weight for c in configs) for config in configs]
        sha256 = write_distillation_set(
            store, images, lambda chosen: mixed(ledgers, shares, images.hashes[chosen.start : chosen.stop]), ledgers[0].encoding, classes,
            list(zip(identities, shares, strict=True)))
    reports = {config.name: _report(ledger, config, len(images.hashes), run) for config, ledger in zip(configs, ledgers, strict=True)}
    return PrefetchReport(
        distillation_set_sha256=sha256, images=len(images.hashes), duplicates=images.duplicates,
        asked=sum(r.asked for r in reports.values()), cached=sum(r.cached for r in reports.values()),
        seconds=time.monotonic() - started, classes=classes, teachers=reports, remarks=tuple(remarks))


def _remarks(config: TeacherConfig, ledger: Ledger, hashes: Sequence[str]) -> list[str]:
    """What looks wrong with a teacher's answers.

    Raises:
        TeacherError: they are the same whatever an image shows, so that nothing can be learnt from them.
    """
    parts = [ledger.rows(hashes[start : start + _JUDGED]) for start in range(0, len(hashes), _JUDGED)]
    means = [ledger.encoding.probabilities(part) for part in parts]
    answers_NC = np.concatenate([part.reshape(*part.shape[:2], -1).mean(axis=2) for part in means])
    found = verdict(answers_NC, masks=ledger.encoding.masks)
    if says_always_the_same(answers_NC):
        raise TeacherError(f"teacher {config.name!r} (version {config.version}): {found[0]}; nothing can be learnt from it. Its answers are kept:"
                           " give the repaired one another version")
    return [f"teacher {config.name}: {one}" for one in found]


def _read_again(public: PublicSetConfig, task: TaskConfig, unseen: set[str]) -> PublicImages:
    """The images with these sha256 as `task` prepares them."""
    images = read_public_images(public.images, preparation_of(task), layout=public.layout, wanted=unseen.__contains__)
    if len(images.hashes) < len(unseen):
        raise DataError(f"public_set.images: {len(unseen) - len(images.hashes)} images in {public.images} changed while they were read; run again")
    return images


def ask_unseen(
    teacher: Teacher, ledger: Ledger, images: PublicImages, question: Question, *, run: str, shards: int = 1, progress: Say | None = None,
) -> None:
    """Have the teacher asked about the images that the ledger does not know; it is not even contacted where there are none.

    Raises:
        ConfigError, DataError, TeacherError, TeacherUnavailable: as `prefetch`.
    """
    unseen = [i for i, image in enumerate(images.hashes) if image not in ledger]
    if not unseen:
        return
    readiness = prepared(teacher, question)
    ledger.check_served_version(readiness.served_version)
    Asking(teacher, readiness, ledger, images, run=run, shards=shards, progress=progress).ask(unseen)
    after = prepared(teacher, question)
    if after.served_version != readiness.served_version:
        raise TeacherError(
            f"teacher {teacher.config.name!r} version {teacher.config.version!r}: the server's model was exchanged while it was asked, from version"
            f" {readiness.served_version} to {after.served_version}, and its answers do not say which gave them; give the new one another"
            f" `version`, or put the old one back, delete {ledger.folder} in the store and ask again")
    ledger.refresh()  # what is recorded counts, also where another process recorded it first


def mixed(ledgers: Sequence[Ledger], shares: Sequence[float], images: Sequence[str]) -> NDArray[Any]:
    """q = Σ a_t q_t of these images, (n, ...) as the ledgers keep answers; summed in float64 in the order of the teachers."""
    encoding = ledgers[0].encoding
    total = np.zeros((len(images), *encoding.shape), np.float64)
    for ledger, share in zip(ledgers, shares, strict=True):
        total += share * encoding.probabilities(ledger.rows(images))
    return encoding.kept(total)


def _agreed_classes(configs: Sequence[TeacherConfig], *, least: int) -> int:
    names = [config.name for config in configs]
    if len(set(names)) != len(names):
        raise ConfigError(f"public_set.teachers: every teacher needs its own name, got {', '.join(names)}")
    if len({config.classes for config in configs}) != 1:
        found = ", ".join(f"{config.name}: {config.classes}" for config in configs)
        raise ConfigError(f"public_set.teachers: teachers can only be mixed if all have the same number of classes, got {found}")
    if configs[0].classes < least:
        raise ConfigError(f"public_set.teachers: classes: at least {least} expected where teachers name classes, got {configs[0].classes}")
    return configs[0].classes


def _report(ledger: Ledger, config: TeacherConfig, images: int, run: str) -> TeacherReport:
    mine, ever = ledger.account(config.budget, run=run), ledger.account(config.budget)
    telemetry.teacher_cost(config.name, ever.cost, config.budget.max_cost)
    asked = min(mine.images, images)
    return TeacherReport(asked=asked, cached=images - asked, currency=config.budget.currency, run=mine, ever=ever)
