"""The wheel: what is in it, and that it works where neither the checkout nor torch can be seen."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]

# Where the folders of the repository are inside the package.
FOLDERS = {"cachedit_cli": "cachedit_cli", "adapters": "cachedit_cli/adapters", "recipes": "cachedit_cli/recipes"}

# All that `--help`, `mask` and `recipes` may need.
LIGHT = ("typer", "rich", "pyyaml", "pydantic")


def shipped() -> dict[str, Path]:
    """Return every file of the package: its name in the wheel, and where it is in the checkout."""
    return {
        f"{inside}/{file.relative_to(ROOT / folder).as_posix()}": file
        for folder, inside in FOLDERS.items()
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def closure(names: tuple[str, ...]) -> Iterator[Distribution]:
    """Yield the named distributions and all that they require here."""
    seen: set[str] = set()
    queue = list(names)
    while queue:
        name = re.sub(r"[-_.]+", "-", queue.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        found = distribution(name)
        yield found
        for text in found.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                queue.append(requirement.name)


def run(command: Sequence[str | Path], away: Path | None = None) -> str:
    """Return what a command prints; with ``away`` in that folder and without the variables of this process."""
    bare = {"PATH": os.defpath, "HOME": str(away), "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, cwd=away, env=bare if away else None, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy, so that nothing left in the checkout by an earlier build gets in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source])
    [built] = out.iterdir()
    return built


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel where only the light dependencies are, and return the folder of its commands.

    They are linked from the environment of the tests: nothing is downloaded, and torch stays out of sight.
    """
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", wheel])
    [site] = home.glob("lib/python*/site-packages")
    for found in closure(LIGHT):
        for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            (site / top).symlink_to(Path(str(found.locate_file(top))))
    return home / "bin"


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == set(shipped())


def test_the_bundled_weights_are_the_same_in_the_wheel(wheel: Path) -> None:
    weights = {name: file for name, file in shipped().items() if file.suffix == ".safetensors"}
    assert len(weights) == 4
    with zipfile.ZipFile(wheel) as archive:
        assert all(archive.read(name) == file.read_bytes() for name, file in weights.items())


def test_the_wheel_carries_the_licence_and_the_notice(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        licences = {Path(name).name for name in archive.namelist() if "/licenses/" in name}
    assert licences == {"LICENSE", "NOTICE"}


def test_the_environment_of_the_wheel_sees_neither_torch_nor_the_checkout(scripts: Path, tmp_path: Path) -> None:
    code = "import cachedit_cli, importlib.util as u; print(u.find_spec('torch'), cachedit_cli.__file__)"
    torch, package = run([scripts / "python", "-c", code], tmp_path).split()
    assert torch == "None"
    assert Path(package).is_relative_to(scripts.parent)


def test_the_bundled_model_is_where_the_installed_package_says(scripts: Path, tmp_path: Path) -> None:
    code = "from cachedit_cli import demo; print(demo.path())"
    folder = Path(run([scripts / "python", "-c", code], tmp_path).strip())
    assert folder.is_relative_to(scripts.parent)
    assert (folder / "model_index.json").is_file()


def test_mask_prints_the_published_mask_from_the_wheel(scripts: Path, tmp_path: Path) -> None:
    printed = run([scripts / "cachedit", "mask", "--policy", "fast", "--steps", "28"], tmp_path)
    assert "1111110100010000100000100001" in printed


def test_recipes_lists_every_bundled_recipe_from_the_wheel(scripts: Path, tmp_path: Path) -> None:
    printed = run([scripts / "cachedit", "recipes"], tmp_path)
    bundled = {file.stem for file in (ROOT / "recipes").glob("*.yaml")}
    assert "demo" in bundled
    assert bundled <= set(printed.split())
