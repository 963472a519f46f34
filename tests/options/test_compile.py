"""`model.compile`: compiled blocks are cached without recompiling, whole transformers are left uncached."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from cachedit_cli import opening, recipe
from cachedit_cli.errors import InputError
from tests.options.opened import opened

# In a process of its own: the compiler follows every line of Python, and is slow under a coverage tool. The backend
# runs the graphs as they are: what is counted is the compiler's front, which sees guards and breaks graphs.
COUNTED = """
import json
import sys
import torch
from torch._dynamo.utils import counters
from cachedit_cli import generate, opening, pipeline, recipe
from tests.options.opened import CACHE, NEVER, REUSING, opened, picture, state

compiling, *options = sys.argv[1:]
_, plain = opened(*options)
wanted = picture(plain.pipe)
with pipeline.quiet(), generate.caching(recipe.load("demo", [*CACHE, *options, REUSING]), plain):
    wanted_cached = picture(plain.pipe)
options = [compiling, *options]
_, ready = opened(*options)
outcome, saved = [torch.equal(picture(ready.pipe), wanted)], []
before, first = state(ready.pipe), counters["stats"]["unique_graphs"]
for threshold in (NEVER, REUSING, REUSING):
    with pipeline.quiet(), generate.caching(recipe.load("demo", [*CACHE, *options, threshold]), ready) as log:
        drawn = picture(ready.pipe)
    outcome.append(torch.equal(drawn, wanted if threshold == NEVER else wanted_cached))
    saved.append([row.saved for row in log.rows])
print(json.dumps({
    "equal": outcome, "saved": saved, "first": first,
    "graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values()),
    "restored": state(ready.pipe) == before,
}))
"""


def counted(*options: str) -> dict[str, Any]:
    command = [sys.executable, "-c", COUNTED, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def test_compiled_blocks_are_reused_without_recompiling_or_breaking_their_graphs() -> None:
    """With all that makes a call cheaper together; compiled blocks alone are a test of the engine."""
    others = ["model.quantize=int8-weights", "model.attention=native", "calibrator={type: taylorseer}"]
    facts = counted("model.compile={type: blocks, backend: eager}", *others)
    assert facts["first"] > 0
    assert facts == {
        "equal": [True, True, True, True],
        "saved": [[0, 0, 0], [0, 17, 17], [0, 17, 17]],
        "first": facts["first"],
        "graphs": facts["first"],
        "breaks": 0,
        "restored": True,
    }


def test_a_transformer_is_compiled_whole_where_nothing_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("torch.nn.Module.compile", lambda _, **given: seen.append(given))
    opened("model.compile={type: full, dynamic: true, mode: reduce-overhead}", "cache={type: none}")
    assert seen == [{"fullgraph": False, "dynamic": True, "mode": "reduce-overhead"}]
    seen.clear()
    opened("model.compile={type: none}")
    assert seen == []


def test_every_cached_block_is_compiled_also_where_diffusers_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import FluxTransformer2DModel

    seen: list[str] = []
    monkeypatch.setattr("torch.nn.Module.compile", lambda self, **_: seen.append(type(self).__name__))
    monkeypatch.setattr(FluxTransformer2DModel, "_repeated_blocks", [])
    opened("model.compile=blocks")
    assert seen == ["FluxTransformerBlock"] * 6 + ["FluxSingleTransformerBlock"] * 12


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            "compile: full",
            "r.yaml:5:12: model.compile: full makes one graph of the transformer, in which nothing can be reused "
            "(write blocks)",
        ),
        (
            "compile: {type: blocks, mode: max-autotune}",
            "r.yaml:5:33: model.compile.mode: max-autotune records CUDA graphs, whose replays overwrite what the "
            "cache keeps (write max-autotune-no-cudagraphs, or cache.type: none)",
        ),
        (
            "compile: {type: blocks, mode: default, backend: eager}",
            "r.yaml:5:12: model.compile: mode is inductor's, and goes with no other backend such as eager",
        ),
        ("compile: block", "r.yaml:5:12: model.compile.type: 'block' is unknown (did you mean 'blocks'?)"),
    ],
)
def test_what_cannot_be_compiled_and_cached_is_refused_by_the_recipe(
    options: str, problem: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(f"version: 1\ngenerate: {{prompt: a}}\nmodel:\n  id: demo\n  {options}\n")
    with pytest.raises(InputError) as error:
        recipe.load("r.yaml")
    assert str(error.value) == problem
    recipe.load("r.yaml", ["cache={type: none}"] if "full" in options or "max" in options else ["model.compile=none"])


def test_a_compiler_that_is_not_there_is_said_before_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "load", lambda *_: pytest.fail("weights are loaded"))
    with pytest.raises(
        InputError, match=r"model.compile.backend: torch has no 'inducto' \(did you mean 'inductor'\?\)"
    ):
        opened("model.compile={type: blocks, backend: inducto}")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match=r"model.compile: there is no C\+\+ compiler"):
        opened("model.compile=blocks")
