"""The demo's foundation model: a network that learnt from labelled public drawings, as an MLflow pyfunc.

It never saw a hospital's image. `teachers/` holds those of the presets, trained once; the teacher of any other drawn task is trained when its
demo is made. Called by prepare.py; prefetch asks it through the same teacher protocol as any other model.

    python -m fedhelp_core.demo.teacher     # train those of teachers/ anew, some minutes
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fedhelp_core.algorithm.batches import memory_format, to_input
from fedhelp_core.algorithm.randomness import fix_arithmetic
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.demo.tasks import DRAWN, DrawnTask
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.tracking.models import save_pyfunc_from_code
from fedhelp_core.weights.file import write_weights

TEACHERS = Path(__file__).with_name("teachers")
_BATCH, _EPOCHS, _PEAK_RATE = 32, 14, 6e-3

Progress = Callable[[str], None]


def train_teacher(
    architecture: str, images_NCHW: Tensor, labels_N: Tensor, *, task: TaskConfig, seed: int, progress: Progress | None = None,
) -> torch.nn.Module:
    """A model of the public classes (`task.classes`), in eval mode. Images uint8 (N, C, S, S), labels int64 (N,), findings uint8 (N, K) or masks
    uint8 (N, 1, S, S)."""
    fix_arithmetic(threads=1)  # the same teacher on every machine, and no slower where others work beside it
    generator = torch.Generator().manual_seed(seed)
    objective = objective_of(task)
    model = objective.build(architecture, generator).to(memory_format=memory_format(images_NCHW.dim() - 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=_PEAK_RATE, weight_decay=1e-2)
    steps = _EPOCHS * (len(labels_N) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_PEAK_RATE, total_steps=steps)
    masks = task.per_pixel
    model.train()
    for epoch in range(_EPOCHS):
        order = torch.randperm(len(labels_N), generator=generator)[: len(labels_N) // _BATCH * _BATCH]
        for chosen in torch.split(order, _BATCH):
            images, labels = images_NCHW[chosen], labels_N[chosen]
            for dim in (2, 3):
                if torch.rand((), generator=generator) < 0.5:
                    images, labels = images.flip(dim), labels.flip(dim) if masks else labels
            loss = objective.terms.supervised(model(to_input(images, torch.device("cpu"))), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        if progress is not None:
            progress(f"teacher epoch {epoch + 1}/{_EPOCHS}")
    return model.eval()


def save_teacher(model: torch.nn.Module, folder: Path, *, architecture: str, task: TaskConfig) -> None:
    """Write `model` as an MLflow pyfunc folder that `mlflow.pyfunc.load_model` reads."""
    with tempfile.TemporaryDirectory(prefix="fedhelp-teacher-") as scratch:
        weights = Path(scratch) / "teacher.safetensors"
        write_weights(weights, {name: tensor.numpy() for name, tensor in model.state_dict().items()}, architecture)
        save_weights_as_teacher(weights, folder, architecture=architecture, task=task)


def save_weights_as_teacher(weights: Path, folder: Path, *, architecture: str, task: TaskConfig) -> None:
    """The same of a safetensors file."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    save_pyfunc_from_code(
        folder, code=Path(__file__).with_name("pyfunc_teacher.py"), artifacts={"weights": weights},
        settings={"architecture": architecture, "task": task.model_dump(mode="json")})


def train_teacher_of(drawn: DrawnTask, *, seed: int = 1, progress: Progress | None = None) -> torch.nn.Module:
    """The teacher of a drawn task's public images."""
    task = teachers_task(drawn)
    images, targets = drawn.public.prepared(drawn.teacher_images, seed, task)
    return train_teacher(
        drawn.teacher, torch.from_numpy(images).contiguous(), torch.from_numpy(targets), task=task, seed=seed, progress=progress)


def teachers_task(drawn: DrawnTask) -> TaskConfig:
    """The drawn task over the classes that its teacher tells apart."""
    return TaskConfig.model_validate({**drawn.task, "classes": drawn.public.classes})


def main() -> None:
    """Train what `teachers/` holds."""
    for name, drawn in DRAWN.items():
        if (TEACHERS / f"{name}.safetensors").exists():
            model = train_teacher_of(drawn, progress=partial(print, f"{name}:", flush=True))
            write_weights(TEACHERS / f"{name}.safetensors", {key: tensor.numpy() for key, tensor in model.state_dict().items()}, drawn.teacher)


if __name__ == "__main__":
    main()
