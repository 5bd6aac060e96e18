"""What is shipped: every package of the tree, under one name."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAPPED = {"attacks": "certkit.attacks", "reports": "certkit.reports", "templates": "certkit.templates"}


def test_every_folder_with_an_init_is_a_listed_package() -> None:
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = set()
    for top in ("certkit", *MAPPED):
        for init in (ROOT / top).rglob("__init__.py"):
            path = ".".join(init.parent.relative_to(ROOT).parts)
            found.add(MAPPED.get(top, top) + path.removeprefix(top))
    assert set(stated) == found


def test_torch_is_pinned_in_the_constraints() -> None:
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.mark.parametrize("module", ["certkit", "certkit.cli", "certkit.records", "certkit.reports", "certkit.attacks"])
def test_light_modules_load_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_the_light_module_test_can_fail() -> None:
    code = "import sys, certkit.models.layers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 1
