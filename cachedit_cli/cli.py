"""The command line: parses, calls one function, prints.

Knows options and consoles; what they mean is known elsewhere, and what an error comes to in ``guard``. Each command
imports what it uses when it runs, so that none but `run` and `doctor` waits for torch.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from . import __version__
from .engine.mask import POLICIES, steps_mask
from .errors import InputError
from .guard import guarded, tell, tracebacks

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console, RenderableType
    from rich.live import Live

    from .engine.stats import Row
    from .plan import Job
    from .runs import Record

__all__ = ["app", "main"]

PIPE_WIDTH = 120  # columns of tables that no terminal limits
REFRESH = 0.1  # seconds between two drawings of the live strip
STEPS = 28  # of a mask that is laid out from a policy

app = typer.Typer(
    name="cachedit",
    help="Makes diffusion transformers faster without training: blocks cached across steps, from a YAML recipe.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
recipes_app = typer.Typer(help="List the bundled recipes, or show one.", rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes")


class MaskFormat(str, Enum):
    """How to write a mask."""

    text = "text"
    yaml = "yaml"
    json = "json"


class StatsFormat(str, Enum):
    """How to write statistics."""

    table = "table"
    markdown = "markdown"
    json = "json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; with no arguments given, those of the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda each: app(args=each, prog_name="cachedit"), given)


def _show(console: Console, *shown: RenderableType) -> None:
    """Print; without the blanks at the ends of lines where no terminal needs them."""
    if console.is_terminal:
        console.print(*shown, sep="\n")
        return
    with console.capture() as captured:
        console.print(*shown, sep="\n")
    text = "\n".join(line.rstrip() for line in captured.get().splitlines())
    console.file.write(f"{text}\n")
    console.file.flush()


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"cachedit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a bundled recipe.")],
    prompt: Annotated[list[str] | None, typer.Option(help="Prompt; give it again for more pictures.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What the pictures should not show.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the first picture.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set any field, as in cache.residual_diff_threshold=0.12."),
    ] = None,
    num_images: Annotated[int | None, typer.Option(help="Pictures a prompt, each with the next seed.")] = None,
    output_dir: Annotated[str | None, typer.Option(help="Folder in which the run gets its folder.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cuda, cuda:N, mps or cpu.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Generate without caching: the baseline.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; load and write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON document to stdout, all else to stderr.")] = (
        False
    ),
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Generate what a recipe asks for, and show what caching saved."""
    from . import plan, report
    from .files import readable_json
    from .recipe import Override, load

    overrides: list[str | Override] = list(changes or ())
    several = prompt is not None and len(prompt) > 1
    for option, key, value in (
        (
            "--prompt",
            "generate.prompts" if several else "generate.prompt",
            prompt if several or not prompt else prompt[0],
        ),
        ("--negative-prompt", "generate.negative_prompt", negative_prompt),
        ("--seed", "generate.seed", seed),
        ("--steps", "generate.num_inference_steps", steps),
        ("--num-images", "generate.num_images", num_images),
        ("--output-dir", "output.dir", output_dir),
        ("--device", "model.device", device),
        ("--no-cache", "cache.type", "none" if no_cache else None),
    ):
        if value is not None:
            overrides.append(Override(option, key, value))
    with tracebacks(debug):
        loaded = load(recipe, overrides)
        planned = plan.build(loaded)
        console = _console(stderr=as_json)
        if dry_run and as_json:
            print(readable_json(report.plan_json(planned)), end="")
            return
        _show(console, report.plan(planned))
        if dry_run:
            return
        from .generate import generate

        with _Screen(console) as screen:
            outcome = generate(loaded, command=["cachedit", *sys.argv[1:]], version=__version__, watcher=screen)
    record = outcome.record
    if record.images:
        _show(console, *_tables(record))
    if as_json:
        facts = outcome.as_dict()
        print(readable_json(facts), end="")
    if record.status == "interrupted":
        kept = f", kept in {outcome.folder}" if record.images else ""
        tell(f"{len(record.images)} of {planned.images} pictures were finished{kept}")
        raise KeyboardInterrupt


def _tables(record: Record, generation: int | None = None, details: bool = False) -> Iterator[RenderableType]:
    """Yield the statistics of one generation, or of the whole run, and what they come to."""
    from .report import stats_table

    if record.log.contexts:
        yield stats_table(record.stats(generation), details)
    yield _summary(record, generation)


def _summary(record: Record, generation: int | None) -> str:
    from .report import headline

    of = [image for image in record.images if generation in (None, image.generation)]
    seconds = sum(image.seconds or 0.0 for image in of)
    if not record.log.contexts:
        return f"computed everything in {seconds:.2f} s: without caching"
    return headline(record.stats(generation), seconds)


class _Screen:
    """Shows a run as it happens: a strip that fills on a terminal, a line when it is done elsewhere."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._rows: list[Row] = []
        self._steps: int | None = None
        self._drawn = 0.0

    def __enter__(self) -> _Screen:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def opened(self, device: str, dtype: str, seconds: float) -> None:
        """Say where the model is now."""
        self._console.print(f"loaded in {seconds:.1f} s: {device}, {dtype}")

    def begins(self, batch: Sequence[Job], steps: int | None) -> None:
        """Begin a new strip."""
        self._rows, self._steps = [], steps
        for job in batch:
            self._line(f"seed {job.seed}" + (f": {job.prompt}" if job.prompt else ""))
        if self._live is not None:
            self._live.update("")  # not the strip before
            self._live.start()

    def row(self, row: Row) -> None:
        """Add a mark."""
        self._rows.append(row)
        if self._live is not None and time.monotonic() - self._drawn > REFRESH:
            self._draw(self._live)

    def saved(self, files: Sequence[Path], seconds: float) -> None:
        """Finish the strip and name the files."""
        from .report import live

        if self._live is not None:
            self._draw(self._live)
            self._live.stop()
        else:
            _show(self._console, live(self._rows, self._steps))
        for file in files:
            self._line(f"saved {file}")
        self._line(f"took {seconds:.2f} s")

    def _draw(self, shown: Live) -> None:
        from .report import live

        self._drawn = time.monotonic()
        shown.update(live(self._rows, self._steps), refresh=True)

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


@app.command()
def stats(
    run: Annotated[str | None, typer.Argument(help="A run's folder or file; the newest run if left out.")] = None,
    details: Annotated[bool, typer.Option("--details", help="Every step, with its decision and reason.")] = False,
    style: Annotated[StatsFormat, typer.Option("--format", help="How to write them.")] = StatsFormat.table,
) -> None:
    """Show what a run computed, what it reused, and what that saved."""
    from . import report
    from .files import readable_json
    from .runs import load

    found = load(run)
    record, calls = found.record, found.record.generations
    about = f"{found.folder}: {record.status}" + (f" ({record.error})" if record.error else "")
    about += f", {len(record.images)} picture{'s' if len(record.images) != 1 else ''}"
    # The steps of one call have an order, those of several have none.
    generation = calls[-1] if details and calls else None
    if details and len(calls) > 1:
        about += f"; the last of {len(calls)} calls"
    if style is StatsFormat.json:
        facts = {"run": str(found.folder), "status": record.status, "error": record.error, "timings": record.timings}
        print(readable_json({**facts, **report.stats_json(record.stats(generation), details)}), end="")
    elif style is StatsFormat.markdown:
        body = report.stats_markdown(record.stats(generation), details)
        print(f"# {about}\n\n{_summary(record, generation)}\n\n{body}", end="")
    else:
        print(about)
        _show(_console(), *_tables(record, generation, details))


@app.command()
def mask(
    policy: Annotated[str | None, typer.Option(help=f"One of {', '.join(POLICIES)}.  [default: medium]")] = None,
    compute_bins: Annotated[str | None, typer.Option(help="Lengths of the computed runs, as in 6,1,1.")] = None,
    cache_bins: Annotated[str | None, typer.Option(help="Lengths of the cached runs between, as in 2,5,5.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps.  [default: 28, or what the bins sum to]")] = None,
    style: Annotated[MaskFormat, typer.Option("--format", help="How to write it.")] = MaskFormat.text,
) -> None:
    """Show a steps mask: which steps compute, and which may reuse."""
    compute, cache = _bins("--compute-bins", compute_bins), _bins("--cache-bins", cache_bins)
    spread = compute is not None or cache is not None
    if policy is not None and spread:
        raise InputError("--policy and bins exclude each other: give one of them")
    try:
        bits = steps_mask(compute, cache, STEPS if steps is None and not spread else steps, policy or "medium")
    except InputError as error:
        options = {"mask_policy": "policy", "total_steps": "steps", "compute_bins": "compute-bins"}
        text = str(error).replace("cache_bins", "--cache-bins")
        for name, option in options.items():
            text = text.replace(name, f"--{option}")
        raise InputError(text) from error
    from . import report

    if style is MaskFormat.json:
        from .files import readable_json

        print(readable_json(report.mask_json(bits)), end="")
    elif style is MaskFormat.yaml:
        print(report.mask_yaml(bits), end="")
    else:
        _show(_console(), report.mask_text(bits))


def _bins(option: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise InputError(f"{option}: {text!r} is not a list of whole numbers such as 6,1,1") from None


@recipes_app.callback(invoke_without_command=True)
def recipes(context: typer.Context) -> None:
    """List the bundled recipes, or show one."""
    if context.invoked_subcommand is not None:
        return
    from .recipe import bundled

    found = bundled()
    width = max((len(recipe.name) for recipe in found), default=0)
    for recipe in found:
        print(f"{recipe.name:{width}}  {recipe.title}")


@recipes_app.command("show")
def show(name: Annotated[str, typer.Argument(help="Name of a bundled recipe, or a file.")]) -> None:
    """Print a recipe, to read or to copy."""
    from .recipe import text

    print(text(name), end="")


@app.command()
def validate(files: Annotated[list[str], typer.Argument(help="Recipe files, or names of bundled recipes.")]) -> None:
    """Check recipes, and show everything that is wrong with them."""
    from .recipe import load

    problems = []
    for file in files:
        try:
            load(file)
        except InputError as error:
            problems.append(str(error))
        else:
            print(f"{file}: ok")
    if problems:
        raise InputError("\n".join(problems))


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    import json

    from .recipe import json_schema

    print(json.dumps(json_schema(), indent=2))


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON document to stdout.")] = False,
) -> None:
    """Show versions, devices, and which options work on this machine."""
    from . import doctor as checks

    found = checks.examine()
    if as_json:
        from .files import readable_json

        print(readable_json(found.as_dict()), end="")
    else:
        print("\n".join(found.lines()))
    if not found.healthy:
        raise typer.Exit(1)
