"""The command line: parses, calls one function, prints. Exit codes and messages of errors are decided here.

Knows options and consoles; what they mean is known elsewhere. Each command imports what it uses when it runs, so that
none but `run` and `doctor` waits for torch.

    0 done    1 the work failed    2 the input was wrong    3 a bug    130 interrupted
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated

import typer

from . import __version__
from .engine.mask import POLICIES, steps_mask
from .errors import CacheditError, InputError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console, RenderableType
    from rich.live import Live

    from .engine.stats import Row
    from .plan import Job
    from .runs import Record

__all__ = ["app", "main"]

BUG = 3
INTERRUPTED = 130
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
    for stream in (sys.stdout, sys.stderr):
        # A terminal or pipe that cannot show a mark gets a question mark for it, not a crash.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(args=given, prog_name="cachedit")
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _tell("interrupted")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except CacheditError as error:
        _tell(str(error))
        return error.exit_code
    except Exception as error:
        _tell(_bug(error, given))
        return BUG
    return 0


def _show(console: Console, *shown: RenderableType) -> None:
    """Print; without the blanks at the ends of lines where no terminal needs them."""
    if console.is_terminal:
        console.print(*shown, sep="\n")
        return
    with console.capture() as captured:
        console.print(*shown, sep="\n")
    text = "\n".join(line.rstrip() for line in captured.get().splitlines())
    console.file.write(f"{text}\n")


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def _bug(error: Exception, arguments: Sequence[str]) -> str:
    story = "".join(traceback.format_exception(error))
    facts = f"cachedit {__version__}, Python {sys.version}, {sys.platform}\narguments: {list(arguments)}\n\n{story}"
    what = f"this is a bug in cachedit: {type(error).__name__}: {error}"
    try:
        number, name = tempfile.mkstemp(prefix="cachedit-bug-", suffix=".txt", text=True)
        with os.fdopen(number, "w", encoding="utf-8", errors="replace") as file:
            file.write(facts)
    except OSError:
        return f"{what}\n{facts}"
    return f"{what}\nPlease report it and attach {name}, which holds the traceback."


@contextmanager
def _tracebacks(wanted: bool) -> Iterator[None]:
    """Show where an error that has a message of its own came from, besides that message."""
    try:
        yield
    except Exception:
        if wanted:
            traceback.print_exc()
        raise


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
    with _tracebacks(debug):
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
        stats = record.stats()
        _show(console, report.stats_table(stats), report.headline(stats, _seconds(record)))
    if as_json:
        facts = outcome.as_dict()
        print(readable_json(facts), end="")
    if record.status == "interrupted":
        kept = f", kept in {outcome.folder}" if record.images else ""
        _tell(f"{len(record.images)} of {planned.images} pictures were finished{kept}")
        raise KeyboardInterrupt


def _seconds(record: Record) -> float:
    return sum(image.seconds or 0.0 for image in record.images)


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
        self._line(f"{seconds:.2f} s")

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
    record = found.record
    # Steps of several generations have no order among each other, so details are those of the last one.
    shown = record.stats(record.generations[-1] if details and record.generations else None)
    if style is StatsFormat.json:
        facts = {"run": str(found.folder), "status": record.status, "error": record.error, "timings": record.timings}
        print(readable_json({**facts, **report.stats_json(shown, details)}), end="")
        return
    about = f"{found.folder}: {record.status}" + (f" ({record.error})" if record.error else "")
    summary = report.headline(record.stats(), _seconds(record))
    if style is StatsFormat.markdown:
        print(f"# {about}\n\n{summary}\n\n{report.stats_markdown(shown, details)}", end="")
        return
    console = _console()
    print(about)
    _show(console, report.stats_table(shown, details))
    print(summary)


@app.command()
def mask(
    policy: Annotated[str | None, typer.Option(help=f"One of {', '.join(POLICIES)}.  [default: medium]")] = None,
    compute_bins: Annotated[str | None, typer.Option(help="Lengths of the computed runs, as in 6,1,1.")] = None,
    cache_bins: Annotated[str | None, typer.Option(help="Lengths of the cached runs between, as in 2,5,5.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps.  [default: 28, or what the bins sum to]")] = None,
    style: Annotated[MaskFormat, typer.Option("--format", help="How to write it.")] = MaskFormat.text,
) -> None:
    """Show a steps mask: which steps compute, and which may reuse."""
    bins = {name: _bins(name, text) for name, text in (("compute", compute_bins), ("cache", cache_bins))}
    if policy is not None and any(given is not None for given in bins.values()):
        raise InputError("--policy and bins exclude each other: give one of them")
    spread = any(given is not None for given in bins.values())
    bits = steps_mask(
        bins["compute"], bins["cache"], steps if spread or steps is not None else STEPS, policy or "medium"
    )
    from . import report

    if style is MaskFormat.json:
        from .files import readable_json

        print(readable_json(report.mask_json(bits)), end="")
    elif style is MaskFormat.yaml:
        print(report.mask_yaml(bits), end="")
    else:
        _show(_console(), report.mask_text(bits))


def _bins(name: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise InputError(f"--{name}-bins: {text!r} is not a list of whole numbers such as 6,1,1") from None


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
    """Check recipes without running them, and show everything that is wrong."""
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
    """Show versions, devices, and which options of recipes work on this machine."""
    from . import doctor as checks

    found = checks.examine()
    if as_json:
        from .files import readable_json

        print(readable_json(found.as_dict()), end="")
    else:
        for title, group in (
            ("versions", found.versions),
            ("devices", found.devices),
            ("options of recipes", found.options),
        ):
            print(title)
            width = max((len(check.what) for check in group), default=0)
            for check in group:
                print(f"  {'yes' if check.works else 'no ':3}  {check.what:{width}}  {check.note}".rstrip())
    if not found.healthy:
        raise typer.Exit(1)
