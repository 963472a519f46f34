"""The command `compare`: parses, calls one function, prints.

Knows options and what is said at the end; what they mean is known in ``compare``, what is drawn in ``compare_run``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import __version__
from .errors import InputError, RunError
from .guard import results_alone, tell, tracebacks

if TYPE_CHECKING:
    from .compare_record import Comparison
    from .runs import RunFolder

__all__ = ["compare"]


def compare(
    recipes: Annotated[list[str] | None, typer.Argument(help="Recipe files, or names of bundled recipes.")] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B,C", help="Try each value of a field; given again, every combination."),
    ] = None,
    prompts: Annotated[str | None, typer.Option(metavar="FILE", help="A .txt, .csv or .jsonl file.")] = None,
    seeds: Annotated[str | None, typer.Option(metavar="A,B,C", help="Seeds of each prompt's pictures.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set any field of every variant and of the baseline."),
    ] = None,
    fewer_steps: Annotated[
        bool, typer.Option("--fewer-steps/--no-fewer-steps", help="Rows with fewer steps at the cost of the variants.")
    ] = True,
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where the report goes.  [default: report.html in the folder]")
    ] = None,
    output_dir: Annotated[str | None, typer.Option(help="Folder in which the comparison gets its folder.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cuda, cuda:N, mps or cpu.")] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Go on with what is missing of a comparison.")
    ] = None,
    plugins: Annotated[
        list[str] | None,
        typer.Option("--plugin", metavar="FILE", help="Run a Python file of yours that registers adapters."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON document to stdout, all else to stderr.")] = (
        False
    ),
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Compare variants: what they save, and what it costs."""
    from . import compare as preparing
    from .compare_run import make
    from .files import readable_json
    from .metrics import required
    from .recipe import Override, Recipe
    from .registry import load_plugin
    from .runs import RunFolder
    from .screen import console

    command = ["cachedit", *sys.argv[1:]]
    with tracebacks(debug):
        required()
        preparing.check_html(html)
        for file in plugins or ():
            load_plugin(file)
        if resume is not None:
            if recipes or vary or prompts or seeds or steps or changes or output_dir or device or not fewer_steps:
                raise InputError("--resume goes on with what the folder says: give no recipes and no settings with it")
            comparison = preparing.resumed(resume, command)
            folder = RunFolder(Path(resume), comparison.name)
        else:
            if not recipes:
                raise InputError("which recipes? as in `cachedit compare demo --vary KEY=A,B,C`, or --resume FOLDER")
            shorthands = (
                ("--steps", "generate.num_inference_steps", steps),
                ("--output-dir", "output.dir", output_dir),
                ("--device", "model.device", device),
            )
            overrides = [Override(option, key, value) for option, key, value in shorthands if value is not None]
            comparison = preparing.prepare(
                recipes,
                vary=vary or (),
                changes=[*(changes or ()), *overrides],
                seeds=seeds,
                prompts=prompts,
                fewer_steps=fewer_steps,
                command=command,
                version=__version__,
            )
            settings = Recipe.model_validate(comparison.baseline.recipe).output
            folder = RunFolder.create(f"compare-{comparison.name}", settings.dir)
        screen = console(stderr=as_json)
        report = folder.path / preparing.HTML if html is None else Path(html)
        try:
            with results_alone(as_json):
                make(comparison, folder, report, lambda line: screen.print(line, markup=False, soft_wrap=True))
        except Exception:
            if comparison.pictures:
                tell(_kept(comparison, folder))
            raise
    if comparison.pictures:
        _show(comparison, folder, report, as_json)
    if as_json:
        where = {"folder": str(folder.path), "html": str(report)} if comparison.pictures else {"folder": None}
        print(readable_json({**where, **comparison.as_dict()}), end="")
    _end(comparison, folder)


def _show(comparison: Comparison, folder: RunFolder, report: Path, as_json: bool) -> None:
    from .compare_report import BEST, CONTACT_SHEET, sheet
    from .report import table
    from .screen import console, show

    screen = console(stderr=as_json)
    found = sheet(comparison, screen.width)
    show(screen, "", table(found))
    if any(cell.endswith(BEST) for row in found.rows for cell in row):
        show(screen, f"{BEST} the best of its column")
    for line in (*comparison.notes, f"report {report}", f"pictures {folder.path / CONTACT_SHEET}"):
        screen.print(line, markup=False, soft_wrap=True)


def _kept(comparison: Comparison, folder: RunFolder) -> str:
    count = comparison.pictures
    kept = f"{count} picture{'s' if count != 1 else ''} kept in {folder.path}"
    return f"{kept}; `cachedit compare --resume {folder.path}` goes on"


def _end(comparison: Comparison, folder: RunFolder) -> None:
    """End as the comparison did: an interrupt, or a failure that names what failed."""
    if comparison.status == "interrupted":
        tell(_kept(comparison, folder) if comparison.pictures else "no picture was finished")
        raise KeyboardInterrupt
    failed = [f"{entry.name}: {entry.error}" for entry in comparison.entries if entry.error]
    if failed:
        raise RunError("\n".join([*failed, _kept(comparison, folder)]))
