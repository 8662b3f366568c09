import configparser
import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from support.compose import pairs
from support.runs import environment

from openqwen2vl.__main__ import verbs

ROOT = Path(__file__).parents[1]
# Top-level folders and the name under which each is installed.
MAPPED = {
    "src/openqwen2vl": "openqwen2vl",
    "data_modules": "openqwen2vl.data_modules",
    "callbacks": "openqwen2vl.callbacks",
    "conf": "openqwen2vl.conf",
}


def installed_names() -> dict[str, Path]:
    """Give the installed name of every source and config file."""
    found = {}
    for folder, package in MAPPED.items():
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".typed") and "__pycache__" not in path.parts:
                inside = path.relative_to(ROOT / folder)
                found[f"{package.replace('.', '/')}/{inside.as_posix()}"] = path
    return found


def test_every_package_folder_is_listed_in_setup_cfg() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    folders = {str(Path(name).parent) for name in installed_names() if name.endswith(".py")}
    assert sorted(listed) == sorted(folder.replace("/", ".") for folder in folders)
    mapping = dict(
        line.split(" = ") for line in setup["options"]["package_dir"].strip().splitlines()
    )
    assert mapping == {package: folder for folder, package in MAPPED.items()}


def test_every_package_folder_has_an_init_file() -> None:
    # Without one it would be found in a checkout and be missing from the wheel.
    names = installed_names()
    folders = {str(Path(name).parent) for name in names if name.endswith(".py")}
    assert [folder for folder in folders if f"{folder}/__init__.py" not in names] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, since a build leaves folders that the next one picks up."""
    copy = tmp_path_factory.mktemp("source")
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("src", *list(MAPPED)[1:]):
        shutil.copytree(ROOT / folder, copy / folder, ignore=skip)
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy / name)
    # Without isolation: the build needs setuptools only, and no network.
    words = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(words, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a new venv that sees the dependencies already installed here."""
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin/python")]
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", *quiet, "--no-deps", "--no-index", str(wheel)], check=True)
    # A path in a .pth file is searched, but the .pth files in it are not run: among them is the
    # one that would find an editable install of this very package.
    (site,) = (venv / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return venv


@pytest.mark.slow
def test_the_wheel_holds_every_source_and_config_file_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {n for n in archive.namelist() if ".dist-info/" not in n}
        assert held == set(installed_names())
        for name, path in installed_names().items():
            assert archive.read(name) == path.read_bytes()


@pytest.mark.slow
def test_every_shipped_run_is_sound_in_a_clean_venv(clean: Path, tmp_path: Path) -> None:
    script = ROOT / "tests" / "support" / "compose.py"
    done = subprocess.run(
        [str(clean / "bin/python"), "-I", str(script)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert Path(told["file"]).is_relative_to(clean), "found the checkout, not the wheel"
    assert told["sound"] == [" ".join(overrides) for overrides in pairs()]


@pytest.mark.slow
def test_the_installed_command_lists_its_verbs(clean: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(clean / "bin/openqwen2vl")],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert listed == verbs()
