"""Our local update beside a hand-written loop doing the same mathematics, in one run, on one thread, for each kind of task.

    python -m benchmarks.local_update [--repeat 5] [--only melanoma]

The yardstick is as fast as a careful person writes it in plain PyTorch and, for segmentation, MONAI: fused Adam, channels-last,
uint8 images in memory, no bookkeeping. Both sides alternate, in processor time, so that a noisy machine is noisy for both; the figure
is the median of the ratios turn by turn. Beside it: the share of an epoch that goes into making batches, while the arithmetic waits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.figures import Figure, add_options, show, spread, write
from fedhelp_core.algorithm.batches import Batches
from fedhelp_core.algorithm.local_update import CPU, SiloData, SiloState, UpdateSettings, initial_weights, local_update
from fedhelp_core.algorithm.precision import Precision, arithmetic
from fedhelp_core.algorithm.randomness import fix_arithmetic, generator_for
from fedhelp_core.config.algorithm import AlgorithmConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.models.build import build_public_head
from fedhelp_core.objectives.open import objective_of

SEED, SILO = 1, "bench"
ADAM = {"lr": 1e-3, "weight_decay": 1e-4, "fused": True}
TARGET = 1.05


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of task, small enough to be measured."""

    task: TaskConfig
    algorithm: AlgorithmConfig
    images: int
    """Private images, and as many public ones."""
    public_classes: int
    """1: soft masks."""

    @property
    def volumes(self) -> bool:
        """Whether images have three dimensions."""
        return self.task.dimensions == 3

    @property
    def masks(self) -> bool:
        """Whether answers are masks."""
        return self.task.per_pixel

    @property
    def memory_format(self) -> torch.memory_format:
        """Channels last."""
        return torch.channels_last_3d if self.volumes else torch.channels_last


def _algorithm(proxy: str, large: str, **more: object) -> AlgorithmConfig:
    return AlgorithmConfig.model_validate({"proxy_model": proxy, "large_model": large, "batch_size": 4, "augmentation": "none", **more})


CASES = {
    "melanoma": Case(
        task=TaskConfig(), algorithm=_algorithm("resnet20", "resnet32"), images=96, public_classes=10),
    "pneumonia": Case(
        task=TaskConfig(name="pneumonia", image_size=48), algorithm=_algorithm("resnet20", "resnet32", rank_top_k=1, augmentation="mirror"),
        images=64, public_classes=8),
    "lung-segmentation": Case(
        task=TaskConfig(name="lung-segmentation", image_size=96),
        algorithm=_algorithm("unet2d", "unet2d-large", rank_top_k=1, rank_weight=0.0, augmentation="mirror"), images=32, public_classes=1),
    "brain-segmentation": Case(
        task=TaskConfig.model_validate({
            "name": "brain-segmentation", "image_size": 64, "volume": {"patch_size": 32, "window_size": 32, "patches": 2}}),
        algorithm=_algorithm("unet3d", "unet3d-large", rank_top_k=1, rank_weight=0.0, augmentation="mirror", batch_size=2, public_batch_size=2),
        images=6, public_classes=1),
}


def silo_data(case: Case) -> SiloData:
    """Random pictures: the arithmetic does not care. Grey ones are equal in all channels, as decoded."""
    generator = torch.Generator().manual_seed(0)
    task = case.task
    sides = (case.task.image_size,) * task.dimensions

    def pictures() -> Tensor:
        return torch.randint(0, 256, (case.images, 1, *sides), dtype=torch.uint8, generator=generator).expand(-1, task.channels, *sides).contiguous()

    if case.masks:
        masks = torch.rand((case.images, 1, *sides), generator=generator)
        return SiloData(
            images_NCHW=pictures(), labels_N=(masks > 0.7).to(torch.uint8), public_images_MCHW=pictures(), public_probabilities_MP=masks.flip(0))
    labels = torch.randint(0, len(case.task.classes), (case.images,), generator=generator)
    answers = torch.rand((case.images, case.public_classes), generator=generator).softmax(1)
    return SiloData(images_NCHW=pictures(), labels_N=labels, public_images_MCHW=pictures(), public_probabilities_MP=answers)


class Plain:
    """The yardstick: what a person would write for one task, without anything of ours but the networks."""

    def __init__(self, case: Case, data: SiloData, *, device: torch.device = CPU, precision: Precision = "float32") -> None:
        self.case, self.config, self.data, self.device = case, case.algorithm, data, device
        self.arithmetic = arithmetic(precision, device)
        self.supervised, self.softened, self.divergence = _plain_masks() if case.masks else _plain_classes()
        self.augment = self._monai_augment() if case.masks else self._mirror

    def small(self) -> float:
        """Eq 1 and 2, one epoch."""
        net = self._build(self.config.proxy_model, "proxy")
        head = build_public_head(net, outputs=self.case.public_classes, generator=generator_for(SEED, "server", 0, "public_head"))
        head = head.to(self.device, memory_format=self.case.memory_format)
        private, public = torch.optim.Adam(net.parameters(), **ADAM), torch.optim.Adam([*net.backbone.parameters(), *head.parameters()], **ADAM)
        norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        public_batches = self._batches(self.data.public_images_MCHW, self.data.public_probabilities_MP, self.config.public_batch_size)
        for x, y in self._batches(self.data.images_NCHW, self.data.labels_N, self.config.batch_size):
            private.zero_grad()
            self.supervised(self._run(net, x), y).backward()
            private.step()
            u, q = next(public_batches)
            for norm in norms:
                norm.track_running_stats = False
            public.zero_grad()
            loss = self.divergence(q, self._run(lambda images: head(net.backbone(images)), u))
            for norm in norms:
                norm.track_running_stats = True
            loss.backward()
            public.step()
        return loss.item()

    def large(self) -> float:
        """Eq 3 to 5 (6), one epoch, from one forward pass of each model."""
        proxy, large, first, second = self._pair()
        for x, y in self._batches(self.data.images_NCHW, self.data.labels_N, self.config.batch_size):
            p, f = self._run(proxy, x), self._run(large, x)
            first.zero_grad()
            second.zero_grad()
            (self.supervised(p, y) + self.divergence(self.softened(f), p)).backward()
            loss = self._large_loss(f, p, y)
            loss.backward()
            first.step()
            second.step()
        return loss.item()

    def large_apart(self) -> float:
        """The same as two steps on their own, each with two forward passes, as the equations are written one after the other."""
        proxy, large, first, second = self._pair()
        for x, y in self._batches(self.data.images_NCHW, self.data.labels_N, self.config.batch_size):
            with torch.no_grad():
                f = self._run(large, x)
            p = self._run(proxy, x)
            first.zero_grad()
            (self.supervised(p, y) + self.divergence(self.softened(f), p)).backward()
            first.step()
            with torch.no_grad():
                p = self._run(proxy, x)
            f = self._run(large, x)
            second.zero_grad()
            loss = self._large_loss(f, p, y)
            loss.backward()
            second.step()
        return loss.item()

    def _large_loss(self, f: Tensor, p: Tensor, y: Tensor) -> Tensor:
        loss = self.supervised(f, y) + self.divergence(self.softened(p), f)
        if self.case.masks:
            return loss
        k = self.config.rank_top_k
        ranked = f.gather(1, p.detach().argsort(1, descending=True))
        return loss + self.config.rank_weight * functional.relu(ranked[:, None, k:] - ranked[:, :k, None]).mean()

    def _pair(self) -> tuple[nn.Module, nn.Module, torch.optim.Adam, torch.optim.Adam]:
        proxy, large = self._build(self.config.proxy_model, "proxy"), self._build(self.config.large_model, "large")
        return proxy, large, torch.optim.Adam(proxy.parameters(), **ADAM), torch.optim.Adam(large.parameters(), **ADAM)

    def _run(self, model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        with self.arithmetic:
            logits = model(images)
        return logits.float()

    def _build(self, name: str, purpose: str) -> nn.Module:
        owner = "server" if purpose == "proxy" else SILO
        model = objective_of(self.case.task).build(name, generator_for(SEED, owner, 0, purpose))
        return model.to(self.device, memory_format=self.case.memory_format).train()

    def _batches(self, images: Tensor, answers: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.cat([torch.randperm(len(images)) for _ in range(self.case.task.volume.patches if self.case.volumes else 1)])
        for index in order.split(size):
            x, y = self.augment(images[index], answers[index])
            yield x.to(self.device).to(torch.float32, memory_format=self.case.memory_format).mul_(4 / 255).sub_(2), y.to(self.device)

    def _mirror(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.augmentation == "none":
            return x, y
        return torch.where((torch.rand(len(x)) < 0.5)[:, None, None, None], x.flip(3), x), y

    def _monai_augment(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        from monai.transforms import Compose, RandFlipd, RandSpatialCropd

        keys = ("image", "mask")
        crop = [RandSpatialCropd(keys, (self.case.task.volume.patch_size,) * 3, random_size=False)] if self.case.volumes else []
        flip = [] if self.config.augmentation == "none" else [RandFlipd(keys, prob=0.5, spatial_axis=0 if self.case.volumes else 1)]
        transform = Compose([*crop, *flip])

        def augment(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            found = [transform({"image": image, "mask": mask}) for image, mask in zip(x, y, strict=True)]
            return torch.stack([one["image"] for one in found]), torch.stack([one["mask"] for one in found])

        return augment


def _plain_classes() -> tuple[Callable[..., Tensor], ...]:
    def divergence(target: Tensor, logits: Tensor) -> Tensor:
        return functional.kl_div(logits.log_softmax(1), target, reduction="batchmean")

    return functional.cross_entropy, lambda logits: logits.detach().softmax(1), divergence


def _plain_masks() -> tuple[Callable[..., Tensor], ...]:
    from monai.losses import DiceLoss

    dice = DiceLoss(sigmoid=True)

    def supervised(logits: Tensor, mask: Tensor) -> Tensor:
        truth = mask.float()
        return functional.binary_cross_entropy_with_logits(logits, truth) + dice(logits, truth)

    def divergence(target: Tensor, logits: Tensor) -> Tensor:
        entropy = torch.xlogy(target, target) + torch.xlogy(1 - target, 1 - target)
        return functional.binary_cross_entropy_with_logits(logits, target) + entropy.mean()

    return supervised, lambda logits: logits.detach().sigmoid(), divergence


def without_determinism(run: Callable[[], object]) -> Callable[[], None]:
    """`run` with PyTorch as shipped: a plain loop does not ask for deterministic kernels; ours does."""

    def as_shipped() -> None:
        torch.set_deterministic_debug_mode("default")
        try:
            run()
        finally:
            torch.set_deterministic_debug_mode("warn")

    return as_shipped


def seconds(function: Callable[[], object]) -> float:
    """Processor time of this process: one thread that waits for nothing, so what other programs take from it does not count."""
    started = time.process_time()
    function()
    return time.process_time() - started


def in_turn(ours: Callable[[], object], theirs: Callable[[], object], repeat: int) -> list[tuple[float, float]]:
    """Seconds of both, `repeat` times; who goes first changes."""
    times = []
    for number in range(repeat):
        if number % 2:
            second, first = seconds(theirs), seconds(ours)
        else:
            first, second = seconds(ours), seconds(theirs)
        times.append((first, second))
    return times


def measure(name: str, kind: str, repeat: int) -> list[Figure]:
    """One task, one kind of silo: the ratio, and the share of the epoch that batches take."""
    case = CASES[name]
    data = silo_data(case)
    settings = UpdateSettings(algorithm=case.algorithm, objective=objective_of(case.task), seed=SEED, silo=SILO, kind=kind)
    weights = initial_weights(case.algorithm, objective_of(case.task), seed=SEED)
    plain = Plain(case, data)

    def ours() -> None:
        local_update(weights, SiloState.empty(), data, settings, round_number=1)

    yardstick = without_determinism(plain.small if kind == "small" else plain.large)
    ours()
    yardstick()
    times = in_turn(ours, yardstick, repeat)
    mine, theirs = statistics.median(t[0] for t in times), statistics.median(t[1] for t in times)
    waiting = statistics.median(seconds(lambda: _batches_alone(data, settings, kind)) for _ in range(repeat))
    ratios = [a / b for a, b in times]
    what = f"local update, {name}, {kind} silo"
    return [
        Figure(name=f"{what}: ours / plain loop", value=statistics.median(ratios), unit="", target=TARGET,
               yardstick=f"plain loop {theirs:.3f} s", detail=f"{mine:.3f} s; ratios turn by turn, quartiles {spread(ratios)}"),
        Figure(name=f"{what}: share waiting for data", value=waiting / mine, unit="", yardstick=f"an epoch {mine:.3f} s",
               detail=f"making its batches alone {1000 * waiting:.1f} ms"),
    ]


def _batches_alone(data: SiloData, settings: UpdateSettings, kind: str) -> None:
    """An epoch's batches, private and (in a small silo) public, with nothing done to them."""
    algorithm, objective = settings.algorithm, settings.objective

    def passed(images: Tensor | None, answers: Tensor | None, size: int) -> None:
        assert images is not None
        assert answers is not None
        batches = Batches(
            images, answers, batch_size=size, augment=objective.augmentation(algorithm.augmentation), generator=torch.Generator().manual_seed(1),
            device=settings.device, visits=objective.visits)
        for _ in batches.one_pass():
            pass

    passed(data.images_NCHW, data.labels_N, algorithm.batch_size)
    if kind == "small":
        passed(data.public_images_MCHW, data.public_probabilities_MP, algorithm.public_batch_size)


def figures(repeat: int, names: list[str] | None = None) -> list[Figure]:
    """Two figures for each task and each kind of silo."""
    fix_arithmetic(1)
    return [figure for name in names or CASES for kind in ("small", "large") for figure in measure(name, kind, repeat)]


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_options(parser, repeat=5)
    parser.add_argument("--only", action="append", choices=list(CASES), metavar="TASK", help=f"this task alone: {', '.join(CASES)} (repeatable)")
    arguments = parser.parse_args()
    found = figures(arguments.repeat, arguments.only)
    show(found)
    if arguments.json is not None:
        write(found, arguments.json)


if __name__ == "__main__":
    main()
