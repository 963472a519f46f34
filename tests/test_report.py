"""What reports say, compared as whole text at a fixed width."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from io import StringIO
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console, RenderableType

from cachedit_cli import figures, report
from cachedit_cli.report import Plan
from cachedit_cli.terms.mask import steps_mask
from cachedit_cli.terms.stats import ContextInfo, ContextStats, Row, collect

CHAIN = "transformer.transformer_blocks + transformer.single_transformer_blocks"
SETTINGS = {
    "type": "DBCache",
    "Fn_compute_blocks": 1,
    "residual_diff_threshold": 0.08,
    "num_inference_steps": None,
    "steps_computation_mask": (1, 1, 0, 1),
    "calibrator": {"type": "taylorseer", "taylorseer_order": 1},
}
INFO = ContextInfo(CHAIN, "FluxTransformer2DModel", "FluxTransformerBlock", "Pattern_1", 18, SETTINGS, ["a note"])


def shown(part: RenderableType, width: int = 80) -> str:
    """Render as a pipe of this width would get it, without the blanks at the ends of lines."""
    console = Console(file=StringIO(), width=width, highlight=False, color_system=None)
    console.print(part)
    assert isinstance(console.file, StringIO)
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    return "\n".join(line.rstrip() for line in lines).removeprefix("\n")


def row(step: int, decision: str, branch: str = "cond", context: str = CHAIN, **facts: Any) -> Row:
    calls = {"computed": 18} if decision == "compute" else {"computed": 1, "saved": 17}
    reason = facts.pop("reason", "threshold")
    made = Row(0, step, context, branch, "compute", reason, **({"threshold": 0.08, **calls} | facts))
    made.decision = "reuse" if decision == "reuse" else "compute"
    return made


def guided() -> list[ContextStats]:
    """Two branches over four steps."""
    taylor, rows = (
        "taylorseer 1",
        [
            row(0, "compute", reason="no-history", threshold=None, ms=30.0, bytes=73728),
            row(0, "compute", "uncond", reason="no-history", threshold=None, ms=30.0, bytes=73728),
            row(1, "compute", diff=0.1206, audit=0.0911, distance=1.0, ms=29.96, bytes=73728),
            row(1, "reuse", "uncond", diff=0.0794, distance=1.0, ms=2.04),
            row(2, "reuse", diff=0.0416, distance=1.0, ms=2.0),
            row(2, "compute", "uncond", diff=0.0925, audit=0.25, distance=2.0, ms=30.0),
            row(3, "reuse", diff=0.00004, distance=2.0, ms=2.0),
            row(3, "reuse", "uncond", reason="mask", threshold=None, distance=1.0, ms=2.0),
        ],
    )
    for each in rows:
        each.calibrator = taylor if each.distance is not None else None
        each.audits = {"hold": 0.12, taylor: each.audit} if each.audit is not None else None
    return collect(rows, [INFO])


def pruned() -> list[ContextStats]:
    """Two lists that are pruned block by block, without times."""
    single = "transformer.single_transformer_blocks"
    rows = [
        Row(0, 0, "transformer.blocks", "0", "compute", "no-history", computed=10),
        Row(0, 0, single, "0", "compute", "no-history", computed=20),
        Row(0, 1, "transformer.blocks", "0", "compute", "threshold", diff=0.05, computed=6, saved=4, bytes=3 << 30),
        Row(0, 1, single, "0", "reuse", "threshold", diff=0.02, threshold=0.08, saved=20),
    ]
    return collect(rows)


# ---- statistics


def test_the_table_has_a_row_for_each_branch_under_its_context() -> None:
    assert (
        shown(report.stats_table(guided()))
        == """\
  branch  steps  computed  cached  calls saved  seconds
transformer_blocks + single_transformer_blocks
  cond        4         2       2       47.2 %     0.06
  uncond      4         2       2       47.2 %     0.06
all           8         4       4       47.2 %     0.13

Differences to the last computed step
  branch  cached steps    min    P25    P50    P75    P95    max
transformer_blocks + single_transformer_blocks
  cond               2  4e-05  0.021  0.042  0.081  0.113  0.121
  uncond             2  0.079  0.083  0.086  0.089  0.092  0.092

estimated error 0.11: small differences"""
    )


def test_one_context_with_one_branch_needs_no_total() -> None:
    stats = collect([row(0, "compute", diff=0.5), row(1, "reuse", diff=0.01)], [INFO])
    assert (
        shown(report.stats_table(stats))
        == """\
  branch  steps  computed  cached  calls saved  seconds
transformer_blocks + single_transformer_blocks
  cond        2         1       1       47.2 %        -

Differences to the last computed step
  branch  cached steps    min    P25    P50    P75    P95    max
transformer_blocks + single_transformer_blocks
  cond               1  0.010  0.133  0.255  0.378  0.475  0.500

estimated error 0.004: hardly to be told from the uncached result"""
    )


def test_steps_that_were_pruned_in_part_get_a_column_of_their_own() -> None:
    assert (
        shown(report.stats_table(pruned()))
        == """\
  branch  steps  computed  cached  pruned  calls saved  seconds
blocks
  0           2         1       0       1       20.0 %        -
single_transformer_blocks
  0           2         1       1       0       50.0 %        -
all           4         2       1       1       40.0 %        -

Differences to the last computed step
  branch  cached steps    min    P25    P50    P75    P95    max
blocks
  0                  0  0.050  0.050  0.050  0.050  0.050  0.050
single_transformer_blocks
  0                  1  0.020  0.020  0.020  0.020  0.020  0.020

estimated error 0.009: hardly to be told from the uncached result"""
    )


def test_without_measured_differences_there_is_no_table_of_them() -> None:
    stats = collect([row(0, "compute"), row(1, "reuse", reason="mask"), row(2, "reuse", diff=float("nan"))])
    assert "Differences" not in shown(report.stats_table(stats))
    assert "Differences" not in report.stats_markdown(stats)


def test_nothing_recorded_is_said_in_a_sentence() -> None:
    assert shown(report.stats_table([])) == "nothing was cached: no cached block was called"
    assert report.stats_markdown([]) == "Nothing was cached: no cached block was called.\n"


def test_details_show_settings_a_strip_and_every_step() -> None:
    text = shown(report.stats_table(guided()[:1], details=True))
    assert (
        text.split("\n\n", 3)[3]
        == """\
transformer.transformer_blocks + transformer.single_transformer_blocks
  FluxTransformer2DModel, 18 blocks (FluxTransformerBlock), Pattern_1
  DBCache (Fn_compute_blocks 1, residual_diff_threshold 0.08,
  steps_computation_mask 1101, calibrator taylorseer (taylorseer_order 1))
  a note

cond: 4 steps, 2 computed, 2 cached; held 72.0 KiB
  ██··
  █ computed  · cached

  step  decision  reason      calibrator       difference  distance  audit    ms
  0     compute   no-history  -                         -         -      -  30.0
  1     compute   threshold   taylorseer 1  0.121 ≥ 0.080         1  0.091  30.0
  2     reuse     threshold   taylorseer 1  0.042 < 0.080         1      -   2.0
  3     reuse     threshold   taylorseer 1  4e-05 < 0.080         2      -   2.0

  audited error at distance      1
  hold                       0.120
  taylorseer 1               0.091

uncond: 4 steps, 2 computed, 2 cached; held 72.0 KiB
  █·█·
  █ computed  · cached

  step  decision  reason      calibrator       difference  distance  audit    ms
  0     compute   no-history  -                         -         -      -  30.0
  1     reuse     threshold   taylorseer 1  0.079 < 0.080         1      -   2.0
  2     compute   threshold   taylorseer 1  0.092 ≥ 0.080         2  0.250  30.0
  3     reuse     mask        taylorseer 1              -         1      -   2.0

  audited error at distance      2
  hold                       0.120
  taylorseer 1               0.250"""
    )


def test_details_say_how_many_blocks_of_a_step_were_pruned() -> None:
    text = shown(report.stats_table(pruned()[:1], details=True))
    assert (
        text[text.index("transformer.blocks") :]
        == """\
transformer.blocks

0: 2 steps, 1 computed, 0 cached, 1 pruned in part; held 3.0 GiB
  █▒
  █ computed  · cached  ▒ pruned in part

  step  decision        reason      calibrator  difference  distance  audit  ms
  0     compute         no-history  -                    -         -      -   -
  1     pruned 4 of 10  threshold   -                0.050         -      -   -"""
    )


def test_the_headline_says_what_was_saved() -> None:
    assert report.headline(guided()) == "saved 68 of 144 block calls (47.2 %)"
    assert report.headline(guided(), 1.034) == "saved 68 of 144 block calls (47.2 %) in 1.03 s"
    assert report.headline([]) == "saved 0 of 0 block calls (0.0 %)"


def test_summary_and_settings_are_printed_for_the_python_api(capsys: pytest.CaptureFixture[str]) -> None:
    report.print_summary(guided(), title="FluxPipeline", details=False)
    assert capsys.readouterr().out.startswith("FluxPipeline\n\n  branch  steps  computed")
    report.print_summary(guided(), title="FluxPipeline", details=True)
    assert "uncond: 4 steps" in capsys.readouterr().out
    report.print_settings([INFO])
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        CHAIN,
        "  FluxTransformer2DModel, 18 blocks (FluxTransformerBlock), Pattern_1",
        "  DBCache (Fn_compute_blocks 1, residual_diff_threshold 0.08,",
        "  steps_computation_mask 1101, calibrator taylorseer (taylorseer_order 1))",
        "  a note",
    ]


# ---- Markdown and JSON


def test_markdown_says_the_same_in_github_tables() -> None:
    assert (
        report.stats_markdown(guided())
        == """\
## Steps

| context | branch | steps | computed | cached | calls saved | seconds |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
| transformer_blocks + single_transformer_blocks | cond | 4 | 2 | 2 | 47.2 % | 0.06 |
|  | uncond | 4 | 2 | 2 | 47.2 % | 0.06 |
| all |  | 8 | 4 | 4 | 47.2 % | 0.13 |

## Differences to the last computed step

| context | branch | cached steps | min | P25 | P50 | P75 | P95 | max |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| transformer_blocks + single_transformer_blocks | cond | 2 | 4e-05 | 0.021 | 0.042 | 0.081 | 0.113 | 0.121 |
|  | uncond | 2 | 0.079 | 0.083 | 0.086 | 0.089 | 0.092 | 0.092 |

Estimated error 0.11: small differences.
"""
    )


def test_markdown_details_follow_for_each_context_and_branch() -> None:
    text = report.stats_markdown(pruned()[:1], details=True)
    assert (
        text[text.index("## `") :]
        == """\
## `transformer.blocks`

### 0: 2 steps, 1 computed, 0 cached, 1 pruned in part; held 3.0 GiB

`█▒`

| step | decision | reason | calibrator | difference | distance | audit | ms |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: |
| 0 | compute | no-history | - | - | - | - | - |
| 1 | pruned 4 of 10 | threshold | - | 0.050 | - | - | - |
"""
    )
    assert "## `" + CHAIN + "`\n\n- FluxTransformer2DModel, 18 blocks" in report.stats_markdown(guided(), details=True)


@pytest.mark.parametrize("name", [CHAIN, "transformer.a|b", "blocks"])
def test_every_markdown_table_renders_with_all_its_cells(name: str) -> None:
    stats = collect([row(0, "compute", context=name, diff=0.2), row(1, "reuse", context=name, diff=0.1)])
    tokens = MarkdownIt("commonmark").enable("table").parse(report.stats_markdown(stats, details=True))
    kinds = [token.type for token in tokens]
    assert kinds.count("table_open") == 3
    assert kinds.count("th_open") == 7 + 9 + 8
    assert kinds.count("td_open") == 7 + 9 + 2 * 8


def test_json_holds_every_number_unrounded() -> None:
    facts = report.stats_json(guided())
    assert json.loads(json.dumps(facts)) == json.loads(json.dumps(facts, allow_nan=False))
    (context,) = facts["contexts"]
    assert (context["name"], context["block_calls"], context["saved"]) == (CHAIN, 144, 68)
    assert context["saved_share"] == pytest.approx(68 / 144)
    assert context["info"]["settings"] == SETTINGS
    branch = context["branches"][1]
    assert branch | {"differences": None, "seconds": None} == {
        "name": "uncond",
        "steps": 4,
        "computed": 2,
        "cached": 2,
        "cached_steps": [1, 3],
        "pruned_blocks": {},
        "differences": None,
        "seconds": None,
        "bytes": 73728,
        "strip": "█·█·",
        "audits": {"hold": {2.0: 0.12}, "taylorseer 1": {2.0: 0.25}},
    }
    assert branch["differences"]["max"] == 0.0925
    assert branch["seconds"] == pytest.approx(0.06404)
    assert facts["nothing_cached"] is None


def test_json_details_add_the_rows() -> None:
    facts = report.stats_json(pruned(), details=True)
    first = facts["contexts"][0]
    assert first["info"] is None
    assert first["branches"][0]["pruned_blocks"] == {1: 4}
    assert [entry["saved"] for entry in first["branches"][0]["rows"]] == [0, 4]
    assert first["branches"][0]["seconds"] is None


# ---- why nothing was cached


def verdict(rows: Sequence[Row], **settings: Any) -> str | None:
    info = ContextInfo(CHAIN, "Toy", "Block", "Pattern_1", 18, settings)
    return report.why_nothing_cached(collect(rows, [info]))


def computing(*reasons: str, **facts: Any) -> list[Row]:
    return [row(step, "compute", reason=reason, **facts) for step, reason in enumerate(reasons)]


def test_a_run_that_cached_needs_no_excuse() -> None:
    assert report.why_nothing_cached(guided()) is None
    assert report.why_nothing_cached(pruned()) is None


def test_the_smallest_difference_is_set_against_the_threshold() -> None:
    rows = [
        *computing("no-history", "warmup"),
        *(row(step, "compute", diff=diff) for step, diff in enumerate([0.4, 0.312, 0.5])),
    ]
    assert verdict(rows, residual_diff_threshold=0.08) == (
        "nothing was cached: the smallest difference was 0.312, the threshold 0.08; "
        "raise cache.residual_diff_threshold above 0.32, or let a static steps mask decide"
    )


def test_a_threshold_that_no_row_carries_is_taken_from_the_settings() -> None:
    rows = [*computing("no-history"), row(1, "compute", diff=0.31, threshold=None)]
    assert "was 0.310, the threshold 0.1; raise" in (verdict(rows, residual_diff_threshold=0.1) or "")
    assert "was 0.310; raise" in (verdict(rows) or "")


@pytest.mark.parametrize(
    ("rows", "settings", "cause"),
    [
        (
            computing("no-history", "threshold", "threshold"),
            {"residual_diff_threshold": 0.0},
            "cache.residual_diff_threshold is not above 0, so every step computes; 0.08 is a start",
        ),
        (
            computing("no-history", "threshold", diff=float("nan")),
            {"residual_diff_threshold": 0.1},
            "no difference could be measured, because the model's values are not finite",
        ),
        (
            [*computing("no-history"), row(1, "compute", diff=0.0, threshold=0.0)],
            {},
            "the smallest difference was 0.000, the threshold 0; "
            "raise cache.residual_diff_threshold above 0.01, or let a static steps mask decide",
        ),
        (
            computing("no-history", "warmup", "mask"),
            {},
            "the steps mask computes every step that is no warm-up; choose a faster policy or more cached steps",
        ),
        (
            computing("no-history", "budget", "budget"),
            {},
            "the budget, or what the speed-up allows, is every step; lower cache.budget or raise cache.speedup",
        ),
        (
            computing("no-history", "warmup", "max-cached"),
            {},
            "cache.max_cached_steps is 0; raise it, -1 is no limit",
        ),
        (
            computing("no-history", "mask", "max-continuous"),
            {},
            "cache.max_continuous_cached_steps is 0; raise it, -1 is no limit",
        ),
        (
            computing("no-history", "warmup", "warmup"),
            {},
            "every step was a warm-up step; lower cache.max_warmup_steps or take more steps",
        ),
        (
            computing("no-middle", "no-middle"),
            {},
            "no block lies between front and back; lower cache.Fn_compute_blocks or cache.Bn_compute_blocks",
        ),
        (computing("no-history", "guard"), {}, "no forecast was sound enough; choose the calibrator hold"),
        (computing("no-history"), {}, "the first step always computes, and there was no other"),
        (
            computing("no-history", "no-history"),
            {},
            "what was stored never fitted the next step: its shape, dtype, device or batch had changed",
        ),
        (computing("no-rule-of-ours"), {}, "every step computed (no-rule-of-ours)"),
    ],
)
def test_each_cause_says_what_to_change(rows: list[Row], settings: dict[str, Any], cause: str) -> None:
    assert verdict(rows, **settings) == f"nothing was cached: {cause}"


def test_the_sentence_stands_under_the_table() -> None:
    stats = collect(computing("no-history", "warmup"), [INFO])
    sentence = "nothing was cached: every step was a warm-up step; lower cache.max_warmup_steps\nor take more steps"
    assert shown(report.stats_table(stats)).endswith(f"\n\n{sentence}")


# ---- numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0.000"),
        (0.08, "0.080"),
        (1.23456, "1.235"),
        (0.00098, "0.001"),
        (3.2e-7, "3e-07"),
        (0.001, "0.001"),
    ],
)
def test_numbers_are_rounded_for_people(value: float | None, text: str) -> None:
    assert figures.number(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (5 << 30, "5.0 GiB"),
        (7 << 40, "7.0 TiB"),
        (9 << 50, "9216.0 TiB"),
    ],
)
def test_sizes_take_the_unit_a_person_would_choose(count: int | None, text: str) -> None:
    assert report.human_bytes(count) == text


def test_settings_in_a_line_leave_out_what_is_not_set() -> None:
    assert figures.settings_text({}) == ""
    assert figures.settings_text({"type": "hold"}) == "hold"
    settings = {
        "type": "DBPrune",
        "a": None,
        "non_prune_block_ids": [0, 2],
        "steps_computation_mask": "fast",
        "none": (),
    }
    assert (
        figures.settings_text(settings) == "DBPrune (non_prune_block_ids 0, 2, steps_computation_mask fast, none none)"
    )


def test_contexts_lose_the_prefix_that_all_of_them_share() -> None:
    assert figures.labels([CHAIN]) == {CHAIN: "transformer_blocks + single_transformer_blocks"}
    both = ["transformer.blocks", "transformer_2.blocks"]
    assert figures.labels(both) == {name: name for name in both}


# ---- strips


def test_a_strip_has_a_mark_for_each_step_and_room_for_those_to_come() -> None:
    rows = [row(0, "compute"), row(1, "reuse"), row(2, "compute", computed=10, saved=8)]
    assert report.strip(rows) == "█·▒"
    assert report.strip(rows, 5) == "█·▒  "
    assert report.strip(rows, 2) == "█·▒"
    assert report.strip([]) == ""


def test_the_live_strip_grows_with_the_rows() -> None:
    rows = [entry for branch in guided()[0].branches for entry in branch.rows]
    assert shown(report.live(rows[:2], 6)) == "cond |██    | 2/6"
    assert shown(report.live(rows[:7], 6)) == "cond   |██··  | 4/6\nuncond |█·█   | 3/6"
    assert shown(report.live(rows[:1], None)) == "cond |█| 1/?"
    assert shown(report.live([], 6)) == ""


def test_the_live_strip_names_the_context_where_there_are_several() -> None:
    rows = [entry for context in pruned() for entry in context.rows]
    assert shown(report.live(rows, 3)) == "blocks 0                    |█▒ | 2/3\nsingle_transformer_blocks 0 |█· | 2/3"


def test_a_long_live_strip_breaks_into_lines() -> None:
    rows = [row(step, "compute") for step in range(51)]
    assert shown(report.live(rows, 60)) == f"cond |{'█' * 50}| 51/60\n     |█         |"


def test_where_only_ascii_can_be_shown_the_marks_still_differ() -> None:
    class Ascii(StringIO):
        encoding = "ascii"

    file = Ascii()
    console = Console(file=file, width=80, color_system=None)
    console.print(report.live([row(0, "compute"), row(1, "reuse"), row(2, "compute", saved=1)], 4))
    assert file.getvalue().rstrip() == "cond |#.+ | 3/4"


# ---- masks


def test_a_mask_is_shown_as_strip_bits_bins_and_counts() -> None:
    assert (
        shown(report.mask_text(steps_mask(total_steps=28, mask_policy="fast")))
        == """\
strip         ██████·█···█····█·····█····█
bits          1111110100010000100000100001
compute bins  6,1,1,1,1,1
cache bins    1,3,4,5,4
counts        28 steps: 11 computed, 17 cached (60.7 %)"""
    )


def test_a_long_mask_breaks_into_lines_of_fifty_steps() -> None:
    assert (
        shown(report.mask_text([1] * 60))
        == f"""\
strip         {"█" * 50}
              {"█" * 10}
bits          {"1" * 50}
              {"1" * 10}
compute bins  60
cache bins    none
counts        60 steps: 60 computed, 0 cached (0.0 %)"""
    )


def test_a_mask_as_yaml_can_be_pasted_into_a_recipe() -> None:
    text = report.mask_yaml(steps_mask(total_steps=28))
    assert (
        text
        == """\
# 28 steps: 15 computed, 13 cached (46.4 %)
# strip: ██████·██···██···██···██···█
# bits: 1111110110001100011000110001
steps_computation_mask:
  compute_bins: [6, 2, 2, 2, 2, 1]
  cache_bins: [1, 3, 3, 3, 3]
"""
    )
    assert yaml.safe_load(report.mask_yaml([1, 1])) == {"steps_computation_mask": "11"}


@given(st.lists(st.integers(0, 1), max_size=40))
def test_every_form_of_a_mask_says_the_same(rest: list[int]) -> None:
    bits = [1, *rest]
    facts = report.mask_json(bits)
    assert facts["bits"] == bits
    assert facts["text"] == "".join(map(str, bits))
    assert (facts["steps"], facts["computed"] + facts["cached"]) == (len(bits), len(bits))
    stored = yaml.safe_load(report.mask_yaml(bits))["steps_computation_mask"]
    assert (steps_mask(**stored) if isinstance(stored, dict) else [int(bit) for bit in stored]) == bits
    if facts["cache_bins"]:
        assert steps_mask(facts["compute_bins"], facts["cache_bins"]) == bits


# ---- plans

SHARED = {
    "Fn_compute_blocks": 8,
    "residual_diff_threshold": 0.08,
    "max_warmup_steps": 8,
    "steps_computation_mask": "fast",
}


def flux() -> Plan:
    return Plan(
        recipe="flux-fast",
        model="demo",
        device="cpu",
        dtype="float32",
        adapter="flux",
        pipeline="FluxPipeline",
        transformer="FluxTransformer2DModel",
        guidance="embedded",
        contexts=[
            ContextInfo(
                "transformer.transformer_blocks",
                "FluxTransformer2DModel",
                "",
                "Pattern_1",
                19,
                {"Fn_compute_blocks": 1},
            ),
            ContextInfo(
                "transformer.single_transformer_blocks", "FluxTransformer2DModel", "", "Pattern_1", 38, {}, ["a note"]
            ),
        ],
        cache="DBCache",
        settings=SHARED,
        calibrator="taylorseer",
        calibrator_settings={"taylorseer_order": 1},
        mask=steps_mask(total_steps=28, mask_policy="fast"),
        steps=28,
        images=2,
        size=(64, 48),
        cache_bytes=73728,
        notes=["weights: 18 MB"],
    )


def test_the_plan_says_what_is_going_to_happen() -> None:
    assert (
        shown(report.plan(flux()))
        == """\
recipe      flux-fast
model       demo, FluxPipeline, FluxTransformer2DModel
device      cpu, float32
makes       2 pictures of 64 x 48, 28 steps
adapter     flux, guidance: embedded
blocks      transformer.transformer_blocks
              19 blocks, Pattern_1
              Fn_compute_blocks 1
            transformer.single_transformer_blocks
              38 blocks, Pattern_1
              a note
cache       DBCache (Fn_compute_blocks 8, residual_diff_threshold 0.08,
            max_warmup_steps 8)
calibrator  taylorseer (taylorseer_order 1)
mask        ██████·█···█····█·····█····█
            28 steps: 11 computed, 17 cached (60.7 %)
memory      about 72.0 KiB held between steps
note        weights: 18 MB"""
    )


def test_a_plan_without_caching_is_short() -> None:
    assert (
        shown(report.plan(Plan("demo", "demo", "cuda", "bfloat16")))
        == """\
recipe  demo
model   demo
device  cuda, bfloat16
makes   1 picture
cache   none: every step computes every block"""
    )


def test_a_plan_before_the_steps_are_known_keeps_the_name_of_the_policy() -> None:
    text = shown(report.plan(Plan("demo", "m", "cpu", "float32", cache="DBCache", settings=SHARED)), width=120)
    assert "max_warmup_steps 8, steps_computation_mask fast)" in text
    assert "mask  " not in text.replace("steps_computation_mask", "")


def test_a_plan_as_json_is_plain_data() -> None:
    facts = json.loads(json.dumps(report.plan_json(flux())))
    assert facts["contexts"][0]["blocks"] == 19
    assert facts["size"] == [64, 48]
    assert facts["settings"] == SHARED


def test_reports_need_no_torch() -> None:
    code = "import sys, cachedit_cli.report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
