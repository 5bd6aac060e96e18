"""certkit doctor: what is here, what is missing, and how to get it."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version

import click

from certkit import __version__
from certkit.commands import options

REQUIRED = (
    "torch",
    "numpy",
    "scipy",
    "foolbox",
    "safetensors",
    "pydantic",
    "datasets",
    "scikit-learn",
    "matplotlib",
    "pyarrow",
)
OPTIONAL = {
    # import name: (distribution, what it adds, the command that installs it)
    "auto_LiRPA": (
        "auto_LiRPA",
        "bounds of an independent method for certkit crosscheck",
        "pip install tqdm appdirs pyyaml packaging ninja && pip install --no-deps auto_LiRPA==0.3",
    ),
    "transformers": ("transformers", "folders of Hugging Face", "pip install 'certkit[hf]'"),
    "onnx": ("onnx", "ONNX files", "pip install 'certkit[onnx]'"),
}


@click.command()
@options.as_json
def doctor(json: bool) -> None:
    """Show versions and devices, and what optional parts are missing with the command that installs each."""
    import torch

    devices = ["cpu", *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count()))]
    required = {name: _version(name) for name in REQUIRED}
    optional = {
        name: {
            "version": _version(package) if importlib.util.find_spec(name) else None,
            "adds": adds,
            "install": install,
        }
        for name, (package, adds, install) in OPTIONAL.items()
    }
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    found = {
        "certkit": __version__,
        "python": platform.python_version(),
        "required": required,
        "optional": optional,
        "devices": devices,
        "browser": chromium is not None,
    }
    lines = [f"certkit {__version__}, python {platform.python_version()}", f"devices: {', '.join(devices)}"]
    lines += [f"  {name:<14}{number or 'MISSING: pip install ' + name}" for name, number in required.items()]
    lines.append("optional:")
    for name, entry in optional.items():
        state = entry["version"] or f"missing; {entry['install']}"
        lines.append(f"  {name:<14}{state} ({entry['adds']})")
    browser = "found" if chromium else "not found; apt-get install chromium"
    lines.append(f"  {'chromium':<14}{browser} (only the report's own tests need it)")
    options.say(found, lines, json=json)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
