"""fedhelp_core/registry/networks.json: MONAI's networks that a model may be, found by trying every one of the locked MONAI.

    python docs/networks.py             write it: some minutes of processor time, after MONAI's version in the lock has changed
    python docs/networks.py --check     only say whether it is in step (exit code 1)

A network is listed for images of two or three dimensions if it can be built from its signature and its head can be taken off
(fedhelp_core/models/cut.py). Of its arguments those are listed that plain values of YAML can be.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fedhelp_core.errors import ConfigError
from fedhelp_core.lean_monai import all_networks, monai_version
from fedhelp_core.models.cut import head_of
from fedhelp_core.models.monai_network import made
from fedhelp_core.registry.networks import Given

LIST = Path(__file__).resolve().parents[1] / "fedhelp_core" / "registry" / "networks.json"
_GIVEN: dict[str, Given] = {
    "spatial_dims": "dimensions", "in_channels": "channels", "n_input_channels": "channels", "out_channels": "outputs", "num_classes": "outputs",
    "num_channels": "channels", "classes": "outputs", "img_size": "sides", "in_shape": "shape"}
_FIXED = {"pretrained": False, "progress": False}
_NEVER = re.compile("url|path|file|device|weights|ckpt|preprocess|save_attn|pretrained|deep_supervision|deep_supr_num|return_|visual_output")
_EXAMPLES: dict[str, Any] = {  # of arguments that networks need
    "channels": [8, 16, 32], "strides": [2, 2], "backbone": "efficientnet-b0", "model_name": "efficientnet-b0", "layers": [1, 1, 1, 1],
    "features": [8, 8, 16, 16, 32, 8], "kernel_size": [3, 3, 3], "upsample_kernel_size": [2, 2], "block_config": [2, 2], "groups": 1, "reduction": 2,
    "block": "bottleneck", "filters": [8, 16, 32], "block_inplanes": [8, 16, 16, 32]}
_SPECIAL: dict[str, dict[str, Any]] = {"DynUNet": {"strides": [1, 2, 2]}, "SENet": {"block": "se_bottleneck"}}
_SIDE = 64
_OUTPUTS = 3


def listed() -> str:
    """The file's text."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what networks say of their own defaults
        found = {name: entry for name, maker in sorted(all_networks().items()) if (entry := _entry(name, maker)) is not None}
    lines = [f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in found.items()]
    return "{\n" + f'"monai": {json.dumps(monai_version())},\n' + '"networks": {\n' + ",\n".join(lines) + "\n}}\n"


def _entry(name: str, maker: Any) -> dict[str, Any] | None:
    """What networks.json says of one network; None: it cannot be a model."""
    parameters = _parameters(maker)
    arguments = {
        one: {"kinds": kinds, **({} if parameter.default is inspect.Parameter.empty else {"default": _plain(parameter.default)})}
        for one, parameter in parameters.items() if one not in {**_GIVEN, **_FIXED} and not _NEVER.search(one)
        and (kinds := _kinds(parameter))}
    given = {one: _GIVEN[one] for one in parameters if one in _GIVEN}
    fixed = {one: value for one, value in _FIXED.items() if one in parameters}
    required = {
        one: _SPECIAL.get(name, {}).get(one, _EXAMPLES.get(one)) for one, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty and one not in given}
    if any(value is None or one not in arguments for one, value in required.items()) or "outputs" not in given.values():
        return None
    forms = {(dimensions, per_pixel) for dimensions in (2, 3) for per_pixel in (False, True)
             if _can(maker, given, fixed, required, dimensions, per_pixel)}
    if len({per_pixel for _, per_pixel in forms}) != 1:
        return None
    dimensions = sorted({one for one, _ in forms})
    per_pixel = next(iter(forms))[1]
    taken = {one: entry for one, entry in arguments.items() if one in required or _takes(
        maker, given, {**fixed, **required, one: parameters[one].default}, dimensions[0])}
    return {"module": maker.__module__.rpartition(".")[2], "dimensions": dimensions, "per_pixel": per_pixel, "given": given, "fixed": fixed,
            "arguments": taken}


def _parameters(maker: Any) -> dict[str, inspect.Parameter]:
    """Of a class or function, and of the class that its **kwargs go to."""
    signature = inspect.signature(maker)
    found = {one: parameter for one, parameter in signature.parameters.items() if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD}
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        behind = maker.__mro__[1] if inspect.isclass(maker) else inspect.getmodule(maker).__dict__.get(str(signature.return_annotation).strip("'"))
        optional = {one: parameter for one, parameter in (_parameters(behind) if behind else {}).items()
                    if one not in found and (parameter.default is not inspect.Parameter.empty or one in _GIVEN)}
        found = {**found, **optional}
    return found


def _can(maker: Any, given: Mapping[str, Given], fixed: Mapping[str, Any], required: Mapping[str, Any], dimensions: int, per_pixel: bool) -> bool:
    network = _built(maker, given, {**fixed, **required}, dimensions)
    if network is None:
        return False
    sides = (_SIDE,) * dimensions
    try:
        head_of(
            network, outputs=_OUTPUTS, shape=(1, *sides), per_pixel=per_pixel, make=lambda outputs, _generator: made(
                maker, given, {**fixed, **required}, outputs=outputs, channels=1, sides=sides, generator=None))
    except ConfigError:
        return False
    return True


def _takes(maker: Any, given: Mapping[str, Given], arguments: Mapping[str, Any], dimensions: int) -> bool:
    return _built(maker, given, arguments, dimensions) is not None


def _built(maker: Any, given: Mapping[str, Given], arguments: Mapping[str, Any], dimensions: int) -> Any:
    """The network: without memory where its constructor looks at no numbers, else with; None: it takes no such arguments."""
    for device in ("meta", "cpu"):
        with contextlib.suppress(ConfigError), torch.device(device):
            return made(maker, given, arguments, outputs=_OUTPUTS, channels=1, sides=(_SIDE,) * dimensions, generator=None)
    return None


def _kinds(parameter: inspect.Parameter) -> list[str]:
    """Of `registry.networks.Kind`, by annotation; without one, by the default."""
    text = str(parameter.annotation).replace("collections.abc.", "").strip("'")
    if parameter.annotation is inspect.Parameter.empty:
        text = type(parameter.default).__name__
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    layer = parameter.name in ("act", "norm", "norm_name", "act_name", "acti_type", "norm_type")
    found: list[str] = []
    for one in _alternatives(text):
        if one in ("int", "float", "bool"):
            found.append(one)
        elif one == "None":
            found.append("null")
        elif one == "str" or one.endswith(("Mode", "Literal")):
            found.append("layer" if layer else "str")
        elif re.fullmatch(r"(Sequence|tuple|list)\[int(, \.\.\.|, int)*\]", one):
            found.append("ints")
        elif one.startswith(("Sequence", "tuple", "list")) and "dict" not in one.replace("tuple[str, dict]", "") and "type" not in one:
            found.append("layer" if layer else "list")
    return list(dict.fromkeys(found))


def _alternatives(text: str) -> Iterator[str]:
    """`text` split at the bars outside of brackets."""
    depth, part = 0, ""
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "|" and not depth:
            yield part.strip()
            part = ""
        else:
            part += letter
    yield part.strip()


def _plain(value: Any) -> Any:
    """A default as JSON has it."""
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return value if isinstance(value, int | float | str | None) and type(value) in (int, float, str, bool, type(None)) else str(value)


def main() -> int:
    """Write the list, or compare it."""
    text = listed()
    if "--check" not in sys.argv[1:]:
        LIST.write_text(text, encoding="utf-8")
        return 0
    if LIST.read_text(encoding="utf-8") == text:
        return 0
    print(f"{LIST}: not in step with MONAI {monai_version()}; run: python docs/networks.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
