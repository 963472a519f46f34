"""Statistics, steps masks and plans as tables for people, as Markdown, and as data for programs.

Knows rich; what the tables say comes from ``figures``. Reads decision logs only, so no torch is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from . import figures
from .audit_report import errors_by_distance, errors_sheet, estimates_json, judged
from .figures import headline, human_bytes, mask_strip, strip, why_nothing_cached
from .terms.mask import bins_of
from .terms.stats import BranchStats, ContextInfo, ContextStats, Row, collect

__all__ = [
    "Plan",
    "headline",
    "human_bytes",
    "live",
    "mask_json",
    "mask_strip",
    "mask_text",
    "mask_yaml",
    "plan",
    "plan_json",
    "print_settings",
    "print_summary",
    "stats_json",
    "stats_markdown",
    "stats_table",
    "strip",
    "table",
    "why_nothing_cached",
]

_STYLES = {figures.COMPUTED: "cyan", figures.CACHED: "green", figures.PRUNED: "yellow"}
_ASCII = {ord(figures.COMPUTED): "#", ord(figures.CACHED): ".", ord(figures.PRUNED): "+"}
_LEGEND = f"{figures.COMPUTED} computed  {figures.CACHED} cached"
_LEGEND_PRUNED = f"{_LEGEND}  {figures.PRUNED} pruned in part"
_DIFFERENCES = "Differences to the last computed step"
_STRIP = 50  # steps on a line


@dataclass(frozen=True)
class Plan:
    """What a run is going to do, known before any weights are loaded. Unknown is None.

    Attributes:
        recipe: Its name.
        model: Model id as in the recipe.
        device: Where it will run.
        dtype: What it will compute in.
        options: What else the recipe's `model` section sets, as plain data.
        adapter: Registered name, or where the blocks come from; None without caching.
        pipeline: Class of the pipeline.
        transformer: Class of the transformer.
        guidance: How guidance is computed, in a few words.
        contexts: What is decided together, each with its own settings.
        cache: DBCache or DBPrune; None computes every step.
        settings: Shared cache settings.
        calibrator: hold, taylorseer, ...
        calibrator_settings: Its settings.
        mask: Steps mask, laid out.
        steps: Denoising steps.
        images: Pictures to make, or videos.
        size: Width and height in pixels.
        frames: Of a video.
        cache_bytes: Estimate of what is held between steps.
        notes: What else a person should know.
    """

    recipe: str
    model: str
    device: str
    dtype: str
    options: Mapping[str, Any] = field(default_factory=dict)
    adapter: str | None = None
    pipeline: str | None = None
    transformer: str | None = None
    guidance: str | None = None
    contexts: Sequence[ContextInfo] = ()
    cache: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    calibrator: str | None = None
    calibrator_settings: Mapping[str, Any] = field(default_factory=dict)
    mask: Sequence[int] | None = None
    steps: int | None = None
    images: int = 1
    size: tuple[int, int] | None = None
    frames: int | None = None
    cache_bytes: int | None = None
    notes: Sequence[str] = ()


class _Marks:
    """A strip in colours; with plain letters where the terminal has no others."""

    def __init__(self, marks: str) -> None:
        self._marks = marks

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(len(self._marks), len(self._marks))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = Text(no_wrap=True, overflow="crop")
        for mark in self._marks:
            text.append(mark.translate(_ASCII) if options.ascii_only else mark, _STYLES.get(mark))
        yield text


# ---- statistics


def stats_table(stats: Sequence[ContextStats], details: bool = False) -> RenderableType:
    """Return what was saved, how far the steps differed, and why if nothing was cached.

    Args:
        stats: Of one generation, or of several together.
        details: Add the settings, a strip and every step of each context and branch; for one generation.
    """
    parts: list[RenderableType] = []
    if stats:
        parts.append(table(figures.summary(stats)))
        differences = figures.differences(stats)
        if differences is not None:
            parts.append(Group(Text(_DIFFERENCES), table(differences)))
    reason, verdict = why_nothing_cached(stats), judged(stats)
    if reason is not None:
        parts.append(Text(reason, "yellow"))
    if verdict is not None:
        warning = [] if verdict.warning is None else [Text(verdict.warning, "bold red")]
        parts.append(Group(Text(verdict.line, "bold red" if warning else ""), *warning))
    for context in stats if details else ():
        about = _about(context.info) if context.info is not None else []
        parts.append(Group(Text(context.name, "bold"), *(_indented(Text(line)) for line in about)))
        for branch in context.branches:
            marks = strip(branch.rows)
            legend = _Marks(_LEGEND_PRUNED if figures.PRUNED in marks else _LEGEND)
            parts.append(Group(Text(_branch_line(branch)), _indented(_lines(marks)), _indented(legend)))
            parts.append(_indented(table(figures.steps_sheet(branch))))
            errors = errors_sheet(branch)
            parts += [] if errors is None else [_indented(table(errors))]
    return Group(*(part for each in parts for part in (Text(), each)))


def stats_markdown(stats: Sequence[ContextStats], details: bool = False) -> str:
    """Return the tables as GitHub Markdown."""
    parts = []
    if stats:
        parts += ["## Steps", figures.summary(stats).markdown()]
        differences = figures.differences(stats)
        if differences is not None:
            parts += [f"## {_DIFFERENCES}", differences.markdown()]
    reason, verdict = why_nothing_cached(stats), judged(stats)
    if reason is not None:
        parts.append(reason[0].upper() + reason[1:] + ".")
    if verdict is not None:
        warning = "" if verdict.warning is None else f"\n**{verdict.warning[0].upper()}{verdict.warning[1:]}.**"
        parts.append(f"{verdict.line[0].upper()}{verdict.line[1:]}.{warning}")
    for context in stats if details else ():
        parts.append(f"## `{context.name}`")
        if context.info is not None:
            parts.append("\n".join(f"- {line}" for line in _about(context.info)))
        for branch in context.branches:
            parts += [f"### {_branch_line(branch)}", f"`{strip(branch.rows)}`", figures.steps_sheet(branch).markdown()]
            errors = errors_sheet(branch)
            parts += [] if errors is None else [errors.markdown()]
    return "\n\n".join(parts) + "\n"


def stats_json(stats: Sequence[ContextStats], details: bool = False) -> dict[str, Any]:
    """Return the statistics as plain data; ``details`` adds every row."""
    return {
        "contexts": [
            {
                "name": context.name,
                "info": None if context.info is None else asdict(context.info),
                "block_calls": context.block_calls,
                "saved": context.saved,
                "saved_share": context.saved_share,
                "seconds": context.seconds,
                "branches": [_branch_json(branch, details) for branch in context.branches],
            }
            for context in stats
        ],
        "nothing_cached": why_nothing_cached(stats),
        "estimates": estimates_json(stats),
    }


def _branch_json(branch: BranchStats, details: bool) -> dict[str, Any]:
    times = [row.ms for row in branch.rows if row.ms is not None]
    facts = {
        "name": branch.name,
        "steps": branch.steps,
        "computed": sum(row.decision == "compute" for row in branch.rows),
        "cached": len(branch.cached_steps),
        "cached_steps": branch.cached_steps,
        "pruned_blocks": branch.pruned_blocks,
        "differences": figures.differences_of(branch.rows),
        "seconds": sum(times) / 1000 if times else None,
        "bytes": _held(branch),
        "strip": strip(branch.rows),
        "audits": errors_by_distance(branch.rows),
    }
    return facts | ({"rows": [asdict(row) for row in branch.rows]} if details else {})


def table(sheet: figures.Sheet) -> RenderableType:
    """Draw a sheet; where its first column is a heading, on a line of its own that spans the others."""
    rows = [list(row) for row in (sheet.columns, *sheet.rows)]
    headings = [row.pop(0) if sheet.headed else "" for row in rows]
    words = sheet.words - 1 if sheet.headed else sheet.words
    for heading, row in zip(headings, rows, strict=True):
        if sheet.headed:
            row[0] = f"  {row[0]}" if row[0] else heading
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for place, (heading, row) in enumerate(zip(headings, rows, strict=True)):
        if place and heading and row[0] != heading:
            lines.append(Text(heading))
        cells = [
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(Text("  ".join(cells).rstrip(), "" if place else "bold", no_wrap=True))
    return Group(*lines)


def _indented(part: RenderableType) -> Padding:
    return Padding(part, (0, 0, 0, 2))


def _about(info: ContextInfo) -> list[str]:
    return [figures.describe(info), figures.settings_text(info.settings), *info.notes]


def _held(branch: BranchStats) -> int:
    return max((row.bytes for row in branch.rows), default=0)


def _branch_line(branch: BranchStats) -> str:
    cached, pruned = len(branch.cached_steps), len(branch.pruned_steps)
    parts = [f"{branch.steps} steps", f"{branch.steps - cached - pruned} computed", f"{cached} cached"]
    parts += [f"{pruned} pruned in part"] if pruned else []
    return f"{branch.name or 'one branch'}: {', '.join(parts)}; held {human_bytes(_held(branch))}"


# ---- strips


def live(rows: Iterable[Row], steps: int | None) -> RenderableType:
    """Return a strip for each context and branch of the running generation, blank where steps are still to come."""
    stats = collect(rows)
    shown = figures.labels(context.name for context in stats)
    grid = Table.grid(padding=(0, 1))
    for context in stats:
        for branch in context.branches:
            name = branch.name if len(stats) == 1 else f"{shown[context.name]} {branch.name}".rstrip()
            grid.add_row(Text(name), _lines(strip(branch.rows, steps), "|"), Text(f"{branch.steps}/{steps or '?'}"))
    return grid


def _lines(marks: str, edge: str = "") -> RenderableType:
    """Draw a strip in as many lines as it needs."""
    starts = range(0, len(marks), _STRIP)
    return Group(*(_Marks(f"{edge}{marks[start : start + _STRIP]}{edge}") for start in starts))


# ---- masks


def mask_text(bits: Sequence[int]) -> RenderableType:
    """Return a steps mask as strip, bits, bins and counts."""
    compute, cache = bins_of(bits)
    text = "".join(map(str, bits))
    return _grid(
        [
            ("strip", _lines(mask_strip(bits))),
            ("bits", Text("\n".join(text[start : start + _STRIP] for start in range(0, len(text), _STRIP)))),
            ("compute bins", Text(",".join(map(str, compute)), overflow="fold")),
            ("cache bins", Text(",".join(map(str, cache)) or "none", overflow="fold")),
            ("counts", Text(figures.mask_counts(bits))),
        ]
    )


def mask_yaml(bits: Sequence[int]) -> str:
    """Return a steps mask as lines for the ``cache`` section of a recipe."""
    compute, cache = bins_of(bits)
    text = "".join(map(str, bits))
    lines = [
        f"# {figures.mask_counts(bits)}",
        f"# strip: {mask_strip(bits)}",
        f"# bits: {text}",
        "steps_computation_mask:",
    ]
    if cache:
        lines += [f"  compute_bins: {compute}", f"  cache_bins: {cache}"]
    else:
        lines[-1] += f' "{text}"'
    return "\n".join(lines) + "\n"


def mask_json(bits: Sequence[int]) -> dict[str, Any]:
    """Return a steps mask as plain data."""
    compute, cache = bins_of(bits)
    return {
        "steps": len(bits),
        "computed": sum(bits),
        "cached": len(bits) - sum(bits),
        "bits": list(bits),
        "text": "".join(map(str, bits)),
        "strip": mask_strip(bits),
        "compute_bins": compute,
        "cache_bins": cache,
    }


# ---- plans


def plan(plan: Plan) -> RenderableType:
    """Return what a run is going to do."""
    width, height = plan.size or (None, None)
    kind = "picture" if plan.frames is None else "video"
    pictures = f"{plan.images} {kind}{'s' if plan.images != 1 else ''}"
    pictures += f" of {plan.frames} frames" if plan.frames is not None else ""
    size = f" of {width} x {height}" if plan.size else ""
    steps = f", {plan.steps} steps" if plan.steps is not None else ""
    lines: list[tuple[str, RenderableType]] = [
        ("recipe", Text(plan.recipe, "bold")),
        ("model", _words(plan.model, plan.pipeline, plan.transformer)),
        ("device", _words(plan.device, plan.dtype)),
        *(("options", Text(f"{name}: {_option(value)}")) for name, value in plan.options.items()),
        ("makes", Text(pictures + size + steps)),
    ]
    if plan.cache is None:
        lines.append(("cache", Text("none: every step computes every block")))
    else:
        calibrator = {"type": plan.calibrator, **plan.calibrator_settings}
        shared = {"type": plan.cache, "calibrator": calibrator, **plan.settings}
        lines.append(("adapter", _words(plan.adapter, plan.guidance and f"guidance: {plan.guidance}")))
        for context in plan.contexts:
            own = {key: value for key, value in context.settings.items() if shared.get(key) != value}
            about = [f"{context.blocks} blocks, {context.pattern}", figures.settings_text(own), *context.notes]
            lines.append(("blocks", Text("\n  ".join([context.name, *filter(None, about)]))))
        lines.append(("cache", Text(figures.settings_text({"type": plan.cache, **_but_mask(plan)}))))
        if plan.calibrator is not None:
            lines.append(("calibrator", Text(figures.settings_text(calibrator))))
        if plan.mask is not None:
            lines.append(("mask", Group(_lines(mask_strip(plan.mask)), Text(figures.mask_counts(plan.mask)))))
        if plan.cache_bytes is not None:
            lines.append(("memory", Text(f"about {human_bytes(plan.cache_bytes)} held between steps")))
    lines += [("note", Text(note)) for note in plan.notes]
    return _grid(lines)


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain data."""
    return asdict(plan)


def _option(value: Any) -> str:
    if isinstance(value, Mapping):
        return figures.settings_text(value)
    return "; ".join(map(_option, value)) if isinstance(value, list) else str(value)


def _but_mask(plan: Plan) -> dict[str, Any]:
    hidden = {"type", "calibrator"} | ({"steps_computation_mask"} if plan.mask is not None else set())
    return {key: value for key, value in plan.settings.items() if key not in hidden}


def _words(*parts: str | None) -> Text:
    return Text(", ".join(part for part in parts if part))


def _grid(lines: Sequence[tuple[str, RenderableType]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    before = None
    for name, value in lines:
        grid.add_row(Text("" if name == before else name, "dim"), value)
        before = name
    return grid


# ---- for the Python API, which has no command line around it


def print_summary(stats: Sequence[ContextStats], title: str, details: bool) -> None:
    """Print the statistics of one generation; details begin with the Markdown table that the spec shows."""
    console = Console(highlight=False)
    sheet = figures.differences(stats) if details else None
    if sheet is None:
        console.print(Text(title, "bold"))
    else:
        columns = [*sheet.columns[:2], "Cache Steps", *(f"Diffs {name.capitalize()}" for name in sheet.columns[3:])]
        table = replace(sheet, columns=columns).markdown()
        console.print(Text(f"Cache Steps and Residual Diffs Statistics: {title}\n\n{table}"), soft_wrap=True)
    console.print(stats_table(stats, details))


def print_settings(contexts: Iterable[ContextInfo]) -> None:
    """Print the settings in force."""
    console = Console(highlight=False)
    for info in contexts:
        console.print(Text(info.name, "bold"))
        for line in _about(info):
            console.print(_indented(Text(line)))
