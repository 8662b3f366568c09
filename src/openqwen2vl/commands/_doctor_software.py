"""Versions of what is installed, and whether models are at hand without a network."""

import os
import platform
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE
from packaging.requirements import Requirement
from packaging.version import Version

from openqwen2vl.commands._doctor_finding import Finding, graded

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_PATIENCE = 5.0  # seconds; a machine without a network often drops what it is asked
_TRUE = {"1", "ON", "YES", "TRUE"}


def software_findings(hub: Sequence[str]) -> Iterator[Finding]:
    """Look at Python, the packages, and what a run would ask of the hub.

    Args:
        hub: names of models.
    """
    yield graded("python", platform.python_version())
    try:
        needed = [Requirement(line) for line in requires("openqwen2vl") or []]
    except PackageNotFoundError:
        needed = []
    yield from (package_finding(one) for one in needed if one.marker is None)
    yield torchvision_finding()
    yield from hub_findings(hub, Path(HF_HUB_CACHE))


def package_finding(needed: Requirement) -> Finding:
    """Compare an installed package with what is needed."""
    try:
        found = version(needed.name)
    except PackageNotFoundError:
        return graded(needed.name, "not installed", red=f"pip install '{needed}'")
    fits = needed.specifier.contains(Version(found), prereleases=True)
    wanted = f", expected {needed.specifier}" if not fits else ""
    return graded(needed.name, f"{found}{wanted}", red="" if fits else f"pip install '{needed}'")


def torchvision_finding() -> Finding:
    """Tell whether torchvision was built for this torch, by its own word and by a trial."""
    name, ours = "torch and torchvision", Version(torch.__version__)
    try:
        theirs, lines = version("torchvision"), requires("torchvision") or []
    except PackageNotFoundError:
        return graded(name, f"{ours}, no torchvision", red="pip install torchvision")
    wanted = next((one for one in map(Requirement, lines) if one.name == "torch"), None)
    found = f"{ours} and {theirs}"
    if not _operators():
        todo = "its operators do not load: install both anew from the same index"
        return graded(name, found, red=todo)
    if wanted is not None and not wanted.specifier.contains(ours.public, prereleases=True):
        todo = f"torchvision {theirs} is made for {wanted}; install both from the same index"
        return graded(name, found, yellow=todo)
    return graded(name, found)


def _operators() -> bool:
    """Run one of torchvision's own operators, which a wrong pair lacks."""
    try:
        operators = import_module("torchvision.ops")
        operators.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except (ImportError, RuntimeError, AttributeError):
        return False
    return True


def hub_findings(names: Sequence[str], cache: Path) -> Iterator[Finding]:
    """Tell for each model whether it lies on this machine or can be fetched."""
    flags = [flag for flag in _OFFLINE if os.environ.get(flag, "").upper() in _TRUE]
    yield graded("offline flags", ", ".join(flags) or "none set")
    folders = "give a folder: llm.path=DIR, vision.weights=FILE"
    for name in names:
        folder = cache / f"models--{name.replace('/', '--')}" / "snapshots"
        if folder.is_dir() and any(folder.iterdir()):
            yield graded(name, f"in {cache}")
        elif flags:
            todo = f"unset {flags[0]} once, or {folders}"
            yield graded(name, f"not in {cache}, and {flags[0]} forbids to fetch it", yellow=todo)
        elif fault := hub_fault(name):
            todo = f"fetch it where there is a network, and {folders}"
            yield graded(name, f"not in {cache}, and {ENDPOINT} {fault}", yellow=todo)
        else:
            yield graded(name, f"not in {cache}; a run fetches it")


def hub_fault(name: str) -> str:
    """Ask the hub once whether it has a model for everybody; say what is wrong, or nothing.

    Not through the hub's own client, which asks again and again where there is no network.
    """
    try:
        asked = Request(f"{ENDPOINT}/api/models/{name}", method="HEAD")
        with urlopen(asked, timeout=_PATIENCE):
            return ""
    except HTTPError as error:
        return f"does not give it without a login ({error.code} {error.reason})"
    except (OSError, ValueError) as error:
        return f"cannot be reached ({getattr(error, 'reason', error)})"
