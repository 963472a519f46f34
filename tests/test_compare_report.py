"""What a comparison says: the table, the contact sheet, and the page, which a browser opens where there is one."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence
from rich.console import Console

from cachedit_cli import compare_report, report
from cachedit_cli.compare_record import Comparison, Determinism, Entry, Strip, Trial, read
from cachedit_cli.compare_report import html, sheet
from cachedit_cli.contact_sheet import amplification, contact_sheet, opened, opened_frames
from cachedit_cli.encode import encoded
from cachedit_cli.errors import InputError
from cachedit_cli.jobs import Job
from cachedit_cli.media import Video
from tests.browser import CHROMIUM, Page, browser

SIZE = 32


def recipe(**cache: object) -> dict[str, object]:
    generate = {"prompt": "x", "num_inference_steps": 8}
    return {"version": 1, "name": "demo", "model": {"id": "demo"}, "cache": cache, "generate": generate}


def trial(job: int, name: str, seconds: float, psnr: float | None = None, **more: Any) -> Trial:
    return Trial(job, f"{name}-{job}.png", SIZE, SIZE, seconds, psnr=psnr, **more)


def picture(shift: int, job: int) -> Image.Image:
    levels = np.random.default_rng(job).integers(0, 200, (SIZE, SIZE, 3))
    return Image.fromarray((levels + shift).astype(np.uint8))


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    """Two prompts; a variant that is good, one that is fast and not finished, and fewer steps; with its pictures."""
    strip = Strip("transformer.blocks", "cond", "██·█·▒··", [None, 0.3, 0.05, 0.2, 0.04, 0.1, None, 0.02], 0.12)
    kept = {"computed": 60, "saved": 40, "cache_bytes": 2048, "strips": [strip], "baseline_seconds": 1.0, "ssim": 0.9}
    fewer = {"baseline_seconds": 1.0, "ssim": 0.8}
    entries = [
        Entry("baseline", "baseline", recipe(type="none"), 8, trials=[trial(job, "base", 1.0) for job in (0, 1)]),
        Entry(
            "careful",
            "variant",
            recipe(type="DBCache", residual_diff_threshold=0.1),
            8,
            trials=[trial(job, "careful", 0.5, 40.0, estimate=0.125, **kept) for job in (0, 1)],
        ),
        Entry(
            "hasty",
            "variant",
            recipe(type="DBCache", residual_diff_threshold=0.4),
            8,
            error="out of memory",
            trials=[trial(0, "hasty", 0.25, 20.0, **kept)],
        ),
        Entry(
            "5 steps, no cache",
            "fewer-steps",
            recipe(type="none"),
            5,
            same_cost_as=["careful"],
            trials=[trial(job, "fewer", 0.625, 30.0, **fewer) for job in (0, 1)],
        ),
    ]
    for entry, shift in zip(entries, (0, 2, 25, 8), strict=True):
        for each in entry.trials:
            picture(shift, each.job).save(tmp_path / each.file)
    return Comparison(
        cachedit="1",
        name="demo",
        command=["cachedit", "compare", "demo", "--set", "generate.prompt=a b"],
        jobs=[Job("<script>alert('x')</script> & \"cat\"", 0), Job("cat face", 7)],
        entries=entries,
        environment={"device_name": "a machine", "dtype": "float32"},
        status="failed",
        error="failed: hasty",
        deterministic=Determinism(identical=True),
    )


# --------------------------------------------------------------------------------------------------------------- table


def test_the_table_marks_the_best_of_what_is_complete(comparison: Comparison) -> None:
    assert (
        drawn(comparison, 120)
        == """\
variant            seconds    speed-up    calls saved       PSNR      SSIM    estimate    cache
baseline              1.00           -          0.0 %          -         -           -        -
careful               0.50 *     2.00x *       40.0 % *  40.0 dB *  0.9000 *     0.125  2.0 KiB
hasty (1 of 2)        0.25       4.00x         40.0 %    20.0 dB    0.9000           -  2.0 KiB
5 steps, no cache     0.62       1.60x         37.5 %    30.0 dB    0.8000           -        -
"""
    )


def test_names_get_a_line_of_their_own_where_the_table_would_be_too_wide(comparison: Comparison) -> None:
    lines = drawn(comparison, 90).splitlines()
    assert [line.strip() for line in lines[1::2]] == ["baseline", "careful", "hasty (1 of 2)", "5 steps, no cache"]
    assert max(map(len, lines)) <= 90


def drawn(comparison: Comparison, width: int) -> str:
    shown = io.StringIO()
    Console(file=shown, width=width).print(report.table(sheet(comparison, width)))
    return re.sub(r" +\n", "\n", shown.getvalue())


def test_a_single_variant_is_not_marked_as_the_best_of_itself(comparison: Comparison) -> None:
    comparison.entries = comparison.entries[:2]
    assert "*" not in drawn(comparison, 120)


# ------------------------------------------------------------------------------------------------------- contact sheet


def test_the_sheet_holds_the_pictures_in_whole_pixels_and_the_differences_amplified(
    comparison: Comparison, tmp_path: Path
) -> None:
    times = amplification(comparison, tmp_path)
    assert times == 8  # 25 levels at most: 8 * 25 fits into 255, 16 * 25 does not
    with Image.open(io.BytesIO(contact_sheet(comparison, tmp_path, times))) as opened:
        found = np.asarray(opened.convert("RGB")).astype(int)
    scale = 192 // SIZE
    for entry, shift in zip(comparison.entries, (0, 2, 25, 8), strict=True):
        for each in entry.trials:
            left = 20 + 176 + comparison.entries.index(entry) * (192 + 14)
            shown = np.asarray(picture(shift, each.job)).astype(int).repeat(scale, 0).repeat(scale, 1)
            tops = [top for top in range(found.shape[0] - 192) if (found[top, left : left + 192] == shown[0]).all()]
            (top,) = {top for top in tops if (found[top : top + 192, left : left + 192] == shown).all()}
            if shift:
                below = found[top + 192 + 18 + 7 :, left : left + 192][:192]
                assert (below == shift * times).all()


def test_a_prompt_of_one_long_word_stays_in_its_column(comparison: Comparison, tmp_path: Path) -> None:
    comparison.jobs[0] = Job("m" * 400, 0)
    with Image.open(io.BytesIO(contact_sheet(comparison, tmp_path, 1))) as opened:
        column = np.asarray(opened.convert("L"))[90:, 20 + 176 - 12 : 20 + 176]
    assert (column == 255).all()


# ---------------------------------------------------------------------------------------------------------------- page


def test_the_page_needs_nothing_but_itself_and_escapes_what_users_write(comparison: Comparison, tmp_path: Path) -> None:
    page = html(comparison, tmp_path, 8)
    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;cat&#34;" in page
    assert "//" not in re.sub(r"base64,[^\"]*", "", page)  # no address of anything
    sources = set(re.findall(r'(?:src|href)="([^",]*)', page))
    assert sources == {"data:image/png;base64", "data:"}
    assert "cachedit compare demo --set &#39;generate.prompt=a b&#39;" in page
    assert "failed: out of memory" in page


def test_large_pictures_are_compressed_and_the_page_says_so(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_report, "_INLINED", 1000)
    page = html(comparison, tmp_path, 8)
    assert "data:image/jpeg;base64" in page
    assert "data:image/png" not in page
    assert "compressed with loss" in page


def test_settings_that_variants_do_not_share_are_marked(comparison: Comparison, tmp_path: Path) -> None:
    page = html(comparison, tmp_path, 8)
    table = page[page.index('class="settings"') :]
    rows = re.findall(r'<tr( class="differs")?><th scope="row">([\w.]+).*?</th>(.*?)</tr>', table)
    assert [(key, bool(mark), re.findall(r"<td>(.*?)</td>", cells)) for mark, key, cells in rows] == [
        ("cache.residual_diff_threshold", True, ["-", "0.1", "0.4"]),
        ("model.id", False, ["demo", "demo", "demo"]),
        ("cache.type", False, ["none", "DBCache", "DBCache"]),
        ("generate.num_inference_steps", False, ["8", "8", "8"]),
    ]


# --------------------------------------------------------------------------------------------------------------- video


FRAMES = 5


@pytest.fixture
def videos(comparison: Comparison, tmp_path: Path) -> Comparison:
    """The same comparison of videos, whose frames get brighter."""
    for entry, shift in zip(comparison.entries, (0, 2, 25, 8), strict=True):
        for each in entry.trials:
            each.file, each.frames, each.fps = each.file.replace(".png", ".webp"), FRAMES, 8.0
            frames = [picture(shift + 4 * place, each.job) for place in range(FRAMES)]
            ((_, data),) = encoded(Video(frames, 8.0), "webp", 100, {})
            (tmp_path / each.file).write_bytes(data)
    return comparison


def test_the_sheet_shows_the_frame_in_the_middle(videos: Comparison, tmp_path: Path) -> None:
    trial = videos.baseline.trials[0]
    assert (np.asarray(opened(tmp_path, trial)) == np.asarray(picture(8, 0))).all()
    with Image.open(io.BytesIO(contact_sheet(videos, tmp_path, 8))) as sheet_of_videos:
        colours = {colour for _, colour in sheet_of_videos.convert("RGB").getcolors(1 << 24) or ()}
    assert {tuple(map(int, level)) for level in np.asarray(picture(8, 0)).reshape(-1, 3)} <= colours


def test_the_page_holds_the_videos_and_the_frame_in_the_middle(videos: Comparison, tmp_path: Path) -> None:
    page = html(videos, tmp_path, 8)
    clips = re.findall(r'data-clip="data:image/webp;base64,([^"]+)"', page)
    assert len(clips) == videos.pictures
    with Image.open(io.BytesIO(base64.b64decode(clips[0]))) as clip:
        lengths = []
        for frame in ImageSequence.Iterator(clip):
            frame.load()
            lengths.append(frame.info["duration"])
    assert sum(lengths) == 1000 * FRAMES / 8
    stills = re.findall(r'img src="data:image/png;base64,([^"]+)"', page)
    with Image.open(io.BytesIO(base64.b64decode(stills[0]))) as still:
        assert (np.asarray(still) == np.asarray(picture(8, 0))).all()
    assert "2 videos of 5 frames of 32 x 32" in page


def test_frames_that_stand_still_are_all_there(comparison: Comparison, tmp_path: Path) -> None:
    """WebP keeps them as one that lasts longer."""
    for rate in (7.0, 24.0, 60.0):
        frames = [picture(shift, 0) for shift in (0, 0, 9, 9, 9, 3, 3)]
        ((_, data),) = encoded(Video(frames, rate), "webp", 100, {})
        (tmp_path / "still.webp").write_bytes(data)
        kept = Trial(0, "still.webp", SIZE, SIZE, 1.0, frames=len(frames), fps=rate)
        found = opened_frames(tmp_path, kept)
        assert [np.asarray(frame).tobytes() for frame in found] == [np.asarray(frame).tobytes() for frame in frames]


def test_pictures_have_nothing_to_play(comparison: Comparison, tmp_path: Path) -> None:
    page = html(comparison, tmp_path, 8)
    assert "data-clip" not in page.partition("<script>\n")[0]
    assert 'id="play"' not in page


# ------------------------------------------------------------------------------------------------------------- browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with browser() as page:
        yield page


@pytest.fixture
def page(comparison: Comparison, tmp_path: Path) -> Path:
    file = tmp_path / "page.html"
    file.write_text(html(comparison, tmp_path, 8), encoding="utf-8")
    return file


@pytest.mark.parametrize("width", [390, 800, 1400])
def test_the_page_fits_its_window_without_a_word_to_the_console_or_the_network(
    chromium: Page, page: Path, width: int
) -> None:
    chromium.said.clear()
    chromium.asked_for.clear()
    chromium.open(page, width)
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    loaded = "[...document.images].every(each => each.complete && each.naturalWidth > 0)"
    assert chromium.evaluate(loaded)
    assert chromium.said == []
    assert {url for url in chromium.asked_for if not url.startswith("data:")} == {page.as_uri()}


def test_a_tap_flips_to_the_baseline_and_back(chromium: Page, page: Path) -> None:
    chromium.open(page, 390)
    stage, shown = "document.querySelector('.stage')", "document.querySelector('.shown').textContent"
    over = "getComputedStyle(document.querySelector('.stage .over')).visibility"
    seen = []
    for _ in range(3):
        seen.append((chromium.evaluate(shown), chromium.evaluate(over)))
        chromium.evaluate(f"{stage}.click()")
    assert seen == [("careful (40.0 dB)", "visible"), ("baseline", "hidden"), ("careful (40.0 dB)", "visible")]


def test_choosing_a_variant_shows_it_on_every_card(chromium: Page, page: Path) -> None:
    chromium.open(page, 800)
    chromium.evaluate(
        "const choice = document.getElementById('variant'); choice.value = '2'; "
        "choice.dispatchEvent(new Event('change'))"
    )
    texts = "[...document.querySelectorAll('.shown')].map(each => each.textContent)"
    assert chromium.evaluate(texts) == ["hasty (20.0 dB)", "not drawn"]


def test_sliding_cuts_the_variant_where_the_slider_is(chromium: Page, page: Path) -> None:
    chromium.open(page, 800)
    chromium.evaluate(
        "document.querySelector('input[value=slide]').click(); "
        "const bar = document.querySelector('input[type=range]'); "
        "bar.value = 25; bar.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    cut = "getComputedStyle(document.querySelector('.stage .over')).clipPath"
    assert chromium.evaluate(cut) == "inset(0px 0px 0px 25%)"
    assert (
        chromium.evaluate("document.querySelector('.shown').textContent") == "left: baseline, right: careful (40.0 dB)"
    )


def test_videos_play_until_they_are_stopped_at_the_frame_in_the_middle(
    chromium: Page, videos: Comparison, tmp_path: Path
) -> None:
    file = tmp_path / "videos.html"
    file.write_text(html(videos, tmp_path, 8), encoding="utf-8")
    chromium.said.clear()
    chromium.open(file, 390)
    kind = "[...document.querySelectorAll('.stage img')].map(each => each.src.slice(5, 15))"
    assert set(chromium.evaluate(kind)) == {"image/webp"}
    chromium.evaluate("document.getElementById('play').click()")
    assert set(chromium.evaluate(kind)) == {"image/png;"}
    assert chromium.evaluate("document.documentElement.scrollWidth") <= 390
    assert chromium.said == []


def test_dark_is_dark(chromium: Page, page: Path) -> None:
    colours = []
    for dark in (False, True):
        chromium.open(page, 800, dark=dark)
        colours.append(chromium.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(251, 251, 250)", "rgb(21, 24, 28)"]


# -------------------------------------------------------------------------------------------------------------- record


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "damaged, not valid JSON"),
        ("[]", "not the record of a comparison: 'schema' is missing"),
        ('{"schema": 9}', "written with schema 9; this version of cachedit reads 1"),
        ('{"schema": 1}', "damaged, cachedit: Field required"),
    ],
)
def test_a_damaged_record_is_refused(content: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text(content)
    with pytest.raises(InputError, match=re.escape(problem)):
        read(tmp_path)


def test_a_record_cannot_name_files_elsewhere(comparison: Comparison, tmp_path: Path) -> None:
    comparison.entries[0].trials[0].file = "../secret.png"
    comparison.write(tmp_path)
    with pytest.raises(InputError, match=r"damaged: '../secret.png' is no file in this folder"):
        read(tmp_path)
