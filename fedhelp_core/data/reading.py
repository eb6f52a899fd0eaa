"""Files as a task's examples, each kind by its own reader. Called by `arrays` and by the drawn sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data import decode
from fedhelp_core.data.examples import Example, target_of
from fedhelp_core.data.items import Item
from fedhelp_core.data.marks import Marks
from fedhelp_core.data.picture_files import deep_bits
from fedhelp_core.data.pictures import read_grey, read_picture


def read_examples(items: Sequence[Item], task: TaskConfig, bits: int | None = None) -> Iterator[Example]:
    """The examples of `items`, in order. `bits`: in use in the 16-bit pictures of the hospital, as `bits_in_use` says."""
    if not task.per_pixel and task.dimensions == 2 and task.channels == 3:
        for item, found in zip(items, decode.decode_all([item.image for item in items], task.image_size, bits), strict=True):
            pixels = None if found.pixels_SSC is None else found.pixels_SSC.transpose(2, 0, 1)
            yield Example(pixels, target_of(item), found.problem)
    elif not task.per_pixel and task.dimensions == 2:
        for item in items:
            yield read_grey(item, task.image_size, bits)
    elif task.dimensions == 2:
        for item in items:
            yield read_picture(item, task.image_size, bits, Marks.of(task), colour=task.channels == 3)
    else:
        from fedhelp_core.data.volumes import VolumeReader  # with MONAI, which classification never waits for

        reader = VolumeReader(task)
        for item in items:
            yield reader.read(item)


def bits_in_use(items: Iterable[Item], task: TaskConfig) -> int | None:
    """How many bits are in use in the 16-bit pictures among `items`, which should be all of a hospital's; None where there are none.

    One choice for all of them: a dark picture of a 12-bit detector is not brightened, and two hospitals with other detectors look alike.
    """
    return deep_bits(item.image for item in items) if task.dimensions == 2 else None
