"""docs/guide: every command on its pages works and shows what the page says, every Python block runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.guide import Page, blocks

GUIDE = Path(__file__).parents[1] / "docs" / "guide"
PAGES = sorted(GUIDE.glob("*.md"))


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_can_be_followed_to_the_letter(page: Path) -> None:
    Page(page).follow()


def test_the_index_lists_each_page_in_one_line() -> None:
    index = (GUIDE / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^- \[[^\]]+\]\(([\w-]+\.md)\): \S.*$", index, re.M)
    assert sorted(listed) == [page.name for page in PAGES if page.name != "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for block in blocks(text):
        text = text.replace(block.text, "")
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_not_run_says_why(page: Path) -> None:
    for block in blocks(page.read_text(encoding="utf-8")):
        assert block.notes.get("skip") != "", f"{page.name}:{block.line}"


# --------------------------------------------------------------------------------------------- a page can also be wrong


def followed(text: str) -> None:
    page = Path("page.md")
    page.write_text(text, encoding="utf-8")
    Page(page).follow()


MASK = """\
$ cachedit mask --compute-bins 2,1 --cache-bins 2,1
strip         ██··█·
…
counts        6 steps: 3 computed, 3 cached (…)
"""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"```console\n{MASK}```\n", None),
        (f"```console\n{MASK.replace('██··', '█···')}```\n", r"page.md:2: `cachedit mask .* shows"),
        (f"```console\n{MASK}more\n```\n", "shows"),
        (f"```console\n{MASK.replace('…', 'bits')}```\n", "shows"),
        ("<!-- exit: 2 -->\n```console\n$ cachedit mask --steps 0\n```\n", None),
        ("```console\n$ cachedit mask --steps 0\n```\n", "ended with 2, not 0"),
        ("<!-- exit: 2 -->\n\n```console\n$ cachedit mask --steps 0\n```\n", "ended with 2, not 0"),
        ("```console\n$ cachedit mask | grep bits\nbits          …\n$ test -e no\n```\n", "ended with 1, not 0"),
        ("```console\n$ nothing-of-this-name\n```\n", "ended with 127, not 0"),
        ("<!-- skip: a download -->\n```console\n$ nothing-of-this-name\n```\n", None),
        ("```console\n$ cat a/b.txt\nc\n```\n<!-- file: a/b.txt -->\n```text\nc\n```\n", None),
        ("```python\nprint(1)\n```\n```python\nprint(2)\n```\n<!-- output -->\n```text\n1\n2\n```\n", None),
        ("```python\nprint(1)\n```\n<!-- output -->\n```text\n2\n```\n", "page.md:6: the Python above shows\n1"),
    ],
)
def test_a_page_fails_where_it_is_wrong_and_only_there(text: str, problem: str | None) -> None:
    if problem is None:
        followed(text)
    else:
        with pytest.raises(AssertionError, match=problem):
            followed(text)


def test_python_that_is_not_run_has_to_be_python() -> None:
    followed("<!-- skip: needs CUDA -->\n```python\nraise SystemExit\n```\n")
    with pytest.raises(SyntaxError):
        followed("<!-- skip: needs CUDA -->\n```python\nraise raise\n```\n")
