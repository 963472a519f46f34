"""What `cachedit models` and docs/models.md say of the adapters."""

from __future__ import annotations

import io
from pathlib import Path

import diffusers
import pytest
from rich.console import Console

from cachedit_cli import registry
from cachedit_cli.errors import InputError
from cachedit_cli.listing import models_json, models_table
from tools.models_page import page

ROOT = Path(__file__).parents[2]


def drawn(word: str | None = None) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(models_table(word))
    file = console.file
    assert isinstance(file, io.StringIO)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def test_the_page_in_docs_is_current() -> None:
    """`python tools/models_page.py` writes it."""
    assert (ROOT / "docs/models.md").read_text(encoding="utf-8") == page()


def test_the_table_shows_all_that_a_user_picks_a_family_by() -> None:
    lines = [" ".join(line.split()) for line in drawn("latte").splitlines()]
    assert lines == [
        "family transformer makes",
        "latte LatteTransformer3DModel video",
        "transformer_blocks pattern 3",
        "temporal_transformer_blocks pattern 3",
        "decided as pairs, which take turns",
        "one forward, both branches in a batch",
        "settings: Fn_compute_blocks 4",
        "diffusers: 0.36 or newer",
        "pipelines: LattePipeline",
    ]


@pytest.mark.parametrize(
    ("word", "family"),
    [("mochi", "mochi"), ("LTX2VIDEO", "ltx2"), ("dfrpipeline", "ltx2"), ("single_stream_blocks", "hidream")],
)
def test_a_word_is_looked_for_in_names_classes_pipelines_and_lists(word: str, family: str) -> None:
    assert [entry["name"] for entry in models_json(word)["adapters"]] == [family]


def test_without_a_word_every_family_is_listed() -> None:
    every = [entry["name"] for entry in models_json()["adapters"]]
    assert every == registry.names()
    text = drawn()
    assert all(name in text for name in every)


def test_json_says_all_that_the_adapter_says() -> None:
    (cosmos,) = models_json("cosmos3")["adapters"]
    assert cosmos["lists"] == [
        {
            "path": "layers",
            "pattern": "gen_seq, und_seq -> und_seq, gen_seq",
            "takes": ["gen_seq", "und_seq"],
            "returns": ["und_seq", "gen_seq"],
            "length": "num_hidden_layers",
            "tail": None,
        }
    ]
    assert (cosmos["origin"], cosmos["needs"], cosmos["functor"]) == ("cachedit", "0.41", None)


def test_recipes_are_listed_with_the_family_that_they_name() -> None:
    (flux,) = models_json("VisualCloze")["adapters"]
    assert "demo" in flux["recipes"]


def test_a_word_that_occurs_nowhere_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"^no adapter has 'cogvidoex' in it \(did you mean 'cogvideox'\?\)$"):
        models_table("cogvidoex")


def test_every_pipeline_and_class_named_is_one_of_diffusers() -> None:
    installed = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
    newest = max(tuple(int(part) for part in adapter.needs.split(".")) for adapter in registry.all_adapters())
    if installed < newest:
        pytest.skip(f"diffusers {diffusers.__version__} is older than {newest}, and lacks what came since")
    for adapter in registry.all_adapters():
        for name in (adapter.transformer, *adapter.pipelines):
            # The refiner of Sana-WM is no pipeline of its own.
            assert hasattr(diffusers, name) or name == "SanaWMLTX2Refiner", f"{adapter.name}: {name}"
