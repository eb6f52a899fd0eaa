"""Our local update beside a hand-written loop doing the same mathematics, in one run, on one thread.

    python -m benchmarks.local_update [--repeat 5]

The yardstick is as fast as a careful person writes it: fused Adam, channels-last, uint8 images in memory, no bookkeeping.
Both sides alternate, so that a noisy machine is noisy for both; the figure is the ratio of medians.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch.nn import functional

from benchmarks.figures import Figure, run_alone, spread
from fedhelp_core.algorithm.local_update import SiloData, SiloState, UpdateSettings, initial_weights, local_update
from fedhelp_core.algorithm.randomness import fix_arithmetic, generator_for
from fedhelp_core.config import AlgorithmConfig, TaskConfig
from fedhelp_core.models import build_model, build_public_head

CLASSES, PUBLIC_CLASSES, IMAGES = 8, 10, 96
SEED, SILO = 1, "bench"
ADAM = {"lr": 1e-3, "weight_decay": 1e-4, "fused": True}


def silo_data() -> SiloData:
    """Random pictures: the arithmetic does not care."""
    generator = torch.Generator().manual_seed(0)

    def pictures() -> torch.Tensor:
        return torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=generator)

    return SiloData(
        images_NCHW=pictures(), labels_N=torch.randint(0, CLASSES, (IMAGES,), generator=generator),
        public_images_MCHW=pictures(), public_probabilities_MP=torch.rand((IMAGES, PUBLIC_CLASSES), generator=generator).softmax(1))


def plain_input(batch: torch.Tensor) -> torch.Tensor:
    return batch.to(torch.float32, memory_format=torch.channels_last).mul_(4 / 255).sub_(2)


def plain_kl(target: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return functional.kl_div(scores.log_softmax(1), target, reduction="batchmean")


def build(name: str, purpose: str) -> torch.nn.Module:
    owner = "server" if purpose == "proxy" else SILO
    return build_model(name, outputs=CLASSES, generator=generator_for(SEED, owner, 0, purpose)).to(memory_format=torch.channels_last)


def plain_small(config: AlgorithmConfig, data: SiloData) -> float:
    net = build(config.proxy_model, "proxy")
    head = build_public_head(net, outputs=PUBLIC_CLASSES, generator=generator_for(SEED, SILO, 0, "public_head"))
    private, public = torch.optim.Adam(net.parameters(), **ADAM), torch.optim.Adam([*net.backbone.parameters(), *head.parameters()], **ADAM)
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    net.train()
    order = torch.randperm(IMAGES).split(config.batch_size)
    public_order = torch.randperm(IMAGES).split(config.public_batch_size)
    for index, chosen in zip(order, public_order, strict=True):
        private.zero_grad()
        functional.cross_entropy(net(plain_input(data.images_NCHW[index])), data.labels_N[index]).backward()
        private.step()
        for norm in norms:
            norm.track_running_stats = False
        public.zero_grad()
        loss = plain_kl(data.public_probabilities_MP[chosen], head(net.backbone(plain_input(data.public_images_MCHW[chosen]))))
        for norm in norms:
            norm.track_running_stats = True
        loss.backward()
        public.step()
    return loss.item()


def plain_large(config: AlgorithmConfig, data: SiloData) -> float:
    proxy, large = build(config.proxy_model, "proxy").train(), build(config.large_model, "large").train()
    first, second = torch.optim.Adam(proxy.parameters(), **ADAM), torch.optim.Adam(large.parameters(), **ADAM)
    k = config.rank_top_k
    for index in torch.randperm(IMAGES).split(config.batch_size):
        x, y = plain_input(data.images_NCHW[index]), data.labels_N[index]
        p, f = proxy(x), large(x)
        first.zero_grad()
        second.zero_grad()
        (functional.cross_entropy(p, y) + plain_kl(f.detach().softmax(1), p)).backward()
        ranked = f.gather(1, p.detach().argsort(1, descending=True))
        rank = functional.relu(ranked[:, None, k:] - ranked[:, :k, None]).mean()
        loss = functional.cross_entropy(f, y) + plain_kl(p.detach().softmax(1), f) + config.rank_weight * rank
        loss.backward()
        first.step()
        second.step()
    return loss.item()


def seconds(function, *arguments) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def measure(kind: str, repeat: int) -> Figure:
    """One kind of silo: the ratio of medians."""
    config = AlgorithmConfig(proxy_model="resnet20", large_model="resnet32", batch_size=4, augmentation="none", normalisation="shared")
    data = silo_data()
    settings = UpdateSettings(algorithm=config, task=TaskConfig(), seed=SEED, silo=SILO, kind=kind)
    weights = initial_weights(config, TaskConfig(), seed=SEED)

    def ours() -> None:
        local_update(weights, SiloState.empty(), data, settings, round_number=1)

    def plain() -> float:
        return (plain_small if kind == "small" else plain_large)(config, data)

    ours()
    plain()
    times = [(seconds(ours), seconds(plain)) for _ in range(repeat)]
    mine, theirs = statistics.median(t[0] for t in times), statistics.median(t[1] for t in times)
    return Figure(
        name=f"local update, {kind} silo: ours / plain PyTorch loop", value=mine / theirs, unit="", target=1.05,
        yardstick=f"plain loop {theirs:.3f} s", detail=f"{mine:.3f} s; ratios turn by turn, quartiles {spread([a / b for a, b in times])}")


def figures(repeat: int) -> list[Figure]:
    """One figure for a small silo, one for a large one."""
    fix_arithmetic(1)
    return [measure(kind, repeat) for kind in ("small", "large")]


if __name__ == "__main__":
    run_alone(figures, __doc__, repeat=5)
