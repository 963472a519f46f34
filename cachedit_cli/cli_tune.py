"""The command `tune`: parses, calls one function, prints.

Knows options and what is said at the end; what they mean is known in ``tune``, what is measured in ``tune_run``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import __version__
from .guard import tell, tracebacks

if TYPE_CHECKING:
    from .tune_record import Tuning

__all__ = ["tune"]


def tune(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a bundled recipe.")],
    target_psnr: Annotated[
        float | None, typer.Option(metavar="DB", help="The fastest with at least this PSNR to no caching.")
    ] = None,
    target_ssim: Annotated[float | None, typer.Option(help="The fastest with at least this SSIM.")] = None,
    speedup: Annotated[float | None, typer.Option(help="The best that is so many times as fast.")] = None,
    write: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where the recipe goes.  [default: tuned.yaml in the folder]")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set any field, also of the recipe that is written."),
    ] = None,
    while_tuning: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Set any field for the tuning alone, as in generate.height=256."),
    ] = None,
    watch: Annotated[int, typer.Option(help="Pictures to learn from.")] = 4,
    check: Annotated[int, typer.Option(help="Other pictures, that decide.")] = 6,
    output_dir: Annotated[str | None, typer.Option(help="Folder in which the tuning gets its folder.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cuda, cuda:N, mps or cpu.")] = None,
    plugins: Annotated[
        list[str] | None,
        typer.Option("--plugin", metavar="FILE", help="Run a Python file of yours that registers adapters."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON document to stdout, all else to stderr.")] = (
        False
    ),
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Find settings that are fast or good enough."""
    from . import tune as preparing
    from .files import readable_json
    from .metrics import required
    from .recipe import Recipe
    from .registry import load_plugin
    from .runs import RunFolder
    from .screen import console
    from .tune_run import tune as carry_out

    with tracebacks(debug):
        required()
        preparing.check_target(write)
        for file in plugins or ():
            load_plugin(file)
        lasting = list(changes or ())
        passing = [*(while_tuning or ()), *([f"model.device={device}"] if device else [])]
        passing += [f"output.dir={output_dir}"] if output_dir else []
        tuning = preparing.prepare(
            recipe,
            psnr=target_psnr,
            ssim=target_ssim,
            speedup=speedup,
            changes=lasting,
            while_tuning=passing,
            watch=watch,
            check=check,
            command=["cachedit", *sys.argv[1:]],
            version=__version__,
        )
        folder = RunFolder.create(f"tune-{tuning.name}", Recipe.model_validate(tuning.recipe).output.dir)
        screen = console(stderr=as_json)
        try:
            carry_out(tuning, folder.path, lambda line: screen.print(line, markup=False, soft_wrap=True))
        except Exception:
            if tuning.trials:
                tell(f"what was measured is kept in {folder.path}")
            else:
                folder.discard()
            raise
    target = _write(tuning, folder.path, write)
    if as_json:
        print(readable_json({"folder": str(folder.path), "written": target, **tuning.as_dict()}), end="")
    else:
        _show(tuning, target)
    if tuning.status == "interrupted":
        kept = f"what was measured is kept in {folder.path}" if tuning.trials else "nothing was finished"
        tell(kept)
        raise KeyboardInterrupt


def _write(tuning: Tuning, folder: Path, write: str | None) -> str | None:
    """Write the recipe, if there is one; return where."""
    from .tune_report import tuned_recipe, write_recipe

    choice = tuning.choice
    if choice is None:
        return None
    path = Path(write) if write is not None else folder / "tuned.yaml"
    name = path.stem if write is not None else f"{tuning.name}-tuned"
    write_recipe(path, tuned_recipe(tuning, choice, str(path.parent), name, tuning.profile))
    return str(path)


def _show(tuning: Tuning, target: str | None) -> None:
    from .report import table
    from .screen import console, show
    from .tune_report import thresholds, trials

    screen = console()
    if tuning.thresholds:
        show(screen, "", "what thresholds would do, by simulation:", table(thresholds(tuning)))
    if tuning.trials:
        show(screen, "", "what was run:", table(trials(tuning)))
    if target is not None:
        show(screen, "", f"* chosen, and written to {target}; `cachedit run {target}` runs it")
