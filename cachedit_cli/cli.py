"""The command line: parses, calls one function, prints.

Knows options and consoles; what they mean is known elsewhere, and what an error comes to in ``guard``. Each command
imports what it uses when it runs, so that none but `run` and `doctor` waits for torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from . import __version__
from .cli_compare import compare
from .cli_tune import tune
from .errors import InputError
from .guard import guarded, results_alone, tell, tracebacks
from .terms.mask import POLICIES, steps_mask

if TYPE_CHECKING:
    from .recipe import Recipe
    from .run import Crew

__all__ = ["app", "main"]

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


Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", metavar="FILE", help="Run a Python file of yours that registers adapters."),
]


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


def _load(plugins: Sequence[str] | None) -> None:
    from .registry import load_plugin

    for file in plugins or ():
        load_plugin(file)


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
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE", help="Prompts from a file: .txt, .csv or .jsonl, a prompt a line.")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What the pictures should not show.")] = None,
    image: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Picture to start from; again where several are taken.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the first picture.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set any field, as in cache.residual_diff_threshold=0.12."),
    ] = None,
    num_images: Annotated[int | None, typer.Option(help="Pictures a prompt, each with the next seed.")] = None,
    output_dir: Annotated[str | None, typer.Option(help="Folder in which the run gets its folder.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cuda, cuda:N, mps or cpu.")] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Go on with a run: draw what it lacks, or what is damaged.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that draw at once: one a GPU, or several on the CPU.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Draw on a Ray cluster: HOST:PORT, auto, or local for one here."),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Generate without caching: the baseline.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; load and write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON document to stdout, all else to stderr.")] = (
        False
    ),
    plugins: Plugins = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Generate what a recipe asks for, and show what caching saved."""
    from . import inputs, plan, report, together
    from .files import readable_json
    from .progress import failures, resumed
    from .recipe import Override, load
    from .resume import everything, left_over
    from .screen import Screen, console, show, tables

    if prompt and prompts is not None:
        raise InputError("--prompt and --prompts exclude each other: give one of them")
    overrides: list[str | Override] = list(changes or ())
    several = prompt is not None and len(prompt) > 1
    for option, key, value in (
        (
            "--prompt",
            "generate.prompts" if several else "generate.prompt",
            prompt if several or not prompt else prompt[0],
        ),
        ("--prompts", "generate.prompts", prompts),
        ("--negative-prompt", "generate.negative_prompt", negative_prompt),
        ("--image", "generate.image", image[0] if image is not None and len(image) == 1 else image),
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
        _load(plugins)
        loaded = load(recipe, overrides)
        planned = plan.build(loaded)
        inputs.check(loaded.generate)
        if loaded.model.parallel is not None and (workers is not None or ray is not None):
            option = "--ray" if ray is not None else "--workers"
            raise InputError(
                f"{option}: model.parallel has all GPUs draw each picture together; leave one of the two out"
            )
        left = everything(loaded) if resume is None else left_over(loaded, resume)
        on = console(stderr=as_json)
        if dry_run and as_json:
            print(readable_json(report.plan_json(planned)), end="")
            return
        if not dry_run and not together.is_first(loaded):
            together.follow(loaded, __version__)
            return
        show(on, report.plan(planned))
        if left.folder is not None:
            on.print(resumed(left), markup=False, soft_wrap=True)
        if dry_run:
            return
        from .run import generate

        with results_alone(as_json), Screen(on) as screen:
            command = ["cachedit", *sys.argv[1:]]
            outcome = generate(
                loaded,
                command=command,
                version=__version__,
                watcher=screen,
                crew=_crew(loaded, workers, ray),
                left=left,
                plugins=plugins or (),
            )
    record = outcome.record
    if record.images:
        if planned.images > 1:
            on.print(f"{len(record.images)} pictures in {outcome.folder}", markup=False, soft_wrap=True)
        show(on, *tables(record))
    if as_json:
        facts = outcome.as_dict()
        print(readable_json(facts), end="")
    if record.status == "interrupted":
        kept = f", kept in {outcome.folder}" if record.images else ""
        tell(f"{len(record.images)} of {planned.images} pictures were finished{kept}")
        raise KeyboardInterrupt
    if record.failures:
        tell(failures(record))
        raise typer.Exit(1)


def _crew(recipe: Recipe, workers: int | None, ray: str | None) -> Crew:
    """Return who draws."""
    if recipe.model.parallel is not None:
        from . import together

        return together.draw
    if ray is not None:
        from .ray_workers import on_ray

        return on_ray(ray, workers)
    if workers is not None and workers > 1:
        from .local_workers import processes

        return processes(workers)
    from .run import in_process

    return in_process


app.command()(compare)
app.command()(tune)


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
    from .screen import console, show, summary, tables

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
        print(f"# {about}\n\n{summary(record, generation)}\n\n{body}", end="")
    else:
        print(about)
        show(console(), *tables(record, generation, details))


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
    from .screen import console, show

    if style is MaskFormat.json:
        from .files import readable_json

        print(readable_json(report.mask_json(bits)), end="")
    elif style is MaskFormat.yaml:
        print(report.mask_yaml(bits), end="")
    else:
        show(console(), report.mask_text(bits))


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
def show_recipe(name: Annotated[str, typer.Argument(help="Name of a bundled recipe, or a file.")]) -> None:
    """Print a recipe, to read or to copy."""
    from .recipe import text

    print(text(name), end="")


@app.command()
def validate(
    files: Annotated[list[str], typer.Argument(help="Recipe files, or names of bundled recipes.")],
    plugins: Plugins = None,
) -> None:
    """Check recipes, and show everything that is wrong with them."""
    from .recipe import load

    _load(plugins)
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
def models(
    word: Annotated[str | None, typer.Argument(help="Only those in which it occurs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON document to stdout.")] = False,
    plugins: Plugins = None,
) -> None:
    """List the models that have an adapter."""
    from .files import readable_json
    from .listing import models_json, models_table
    from .screen import console, show

    _load(plugins)
    if as_json:
        print(readable_json(models_json(word)), end="")
    else:
        show(console(), models_table(word))


@app.command("inspect")
def inspect_model(
    target: Annotated[
        str, typer.Argument(help="A recipe, a model's folder, the class of a pipeline or transformer, or a family.")
    ],
    trace: Annotated[bool, typer.Option("--trace", help="Load the real model, and look at its first forward.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON document to stdout.")] = False,
    plugins: Plugins = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Show how a model's blocks work, and how to cache them."""
    from .files import readable_json
    from .inspect_model import inspect
    from .inspect_real import inspect_real
    from .inspect_report import as_text
    from .screen import console, show

    with tracebacks(debug):
        _load(plugins)
        found = inspect_real(target) if trace else inspect(target)
    if as_json:
        print(readable_json(found.as_dict()), end="")
    else:
        show(console(), as_text(found))


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
