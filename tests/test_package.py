import doctest
import importlib
import importlib.util
import pkgutil
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("hdl", "sim", "fpga", "host")


def modules() -> list[str]:
    return [
        module.name
        for folder in FOLDERS
        for module in pkgutil.walk_packages(
            importlib.import_module(f"ditto.{folder}").__path__, f"ditto.{folder}."
        )
    ]


# The extra `train`, which no test installs.
UNAVAILABLE = {"ditto.host.train"} if importlib.util.find_spec("torch") is None else set()


@pytest.mark.parametrize("name", [name for name in modules() if name not in UNAVAILABLE])
def test_doctests(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_folders_are_not_imported_by_their_bare_names() -> None:
    assert not set(FOLDERS) & set(sys.modules)


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [
        "ditto." + ".".join(init.parent.relative_to(ROOT).parts)
        for folder in FOLDERS
        for init in (ROOT / folder).rglob("__init__.py")
    ]
    assert sorted(listed) == sorted(found)


def test_every_package_is_typed() -> None:
    for folder in FOLDERS:
        assert (ROOT / folder / "py.typed").exists()


def test_every_module_has_a_docstring_and_says_what_it_exports() -> None:
    for name in set(modules()) - UNAVAILABLE:
        module = importlib.import_module(name)
        assert module.__doc__, name
        for exported in getattr(module, "__all__", ()):
            assert hasattr(module, exported), f"{name}.{exported}"
