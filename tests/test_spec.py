"""Every code block of the Unified Cache APIs runs, on the bundled model or a tiny one, and does what its text says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HiDreamImageTransformer2DModel
from torch import Tensor, nn

import cachedit_cli
from cachedit_cli import BlockAdapterRegister, ForwardPattern, PatchFunctor
from cachedit_cli.engine.install import Installation, installed
from tests.tiny import TinyTransformer, run, walk
from tests.tiny_models import TINY
from tests.tiny_models.parts import TinyModel, tensors

SPEC = Path(__file__).parent.parent / "docs" / "unified-cache-apis.md"


def snippets() -> list[tuple[str, str]]:
    """Return (heading, number within it) and the text of every code block."""
    found: dict[str, str] = {}
    heading = ""
    for match in re.finditer(r"^#+ (?P<heading>.+?)\s*$|^```python\n(?P<code>.*?)^```", SPEC.read_text(), re.M | re.S):
        if match["heading"] and match["code"] is None:
            heading = match["heading"]
        elif match["code"] is not None:
            found[f"{heading}, {1 + sum(key.startswith(f'{heading}, ') for key in found)}"] = match["code"]
    return list(found.items())


SNIPPETS = dict(snippets())


@dataclass
class Call:
    """Stands in for ``pipe(...)``: runs the pipeline as its text says, and keeps every output."""

    pipe: Any
    steps: int = 12
    outputs: list[Any] | None = None

    def __call__(self, pipe: Any) -> Any:
        image = draw(self.pipe, self.steps)
        self.outputs = [*(self.outputs or []), image]
        return image


def draw(pipe: Any, steps: int = 12) -> Tensor:
    picture: Tensor = pipe(
        "red heart on a white background",
        height=64,
        width=64,
        max_sequence_length=16,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images
    return picture


def execute(title: str, **names: Any) -> dict[str, Any]:
    """Run a snippet with our import name, its ellipses filled in, and ``names`` in place of what it takes as given."""
    code = SNIPPETS[title].replace("cache_dit", "cachedit_cli")
    code = re.sub(r"^from diffusers import \w+ *$", "", code, flags=re.M)
    code = code.replace("pipe(...)", "call(pipe)")
    code = re.sub(r"\(\s*\.\.\.,", "(", code).replace("(...)", "()")
    scope = {
        "cachedit_cli": cachedit_cli,
        "torch": torch,
        **{name: getattr(cachedit_cli, name) for name in cachedit_cli.__all__},
        **names,
    }
    exec(compile(code, title, "exec"), scope)
    return scope


class Hub:
    """Stands in for ``DiffusionPipeline`` and ``FluxPipeline`` where a snippet downloads a model."""

    pipe: Any = None

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> Any:
        return cls.pipe


@pytest.fixture
def pipe(flux: Any) -> Iterator[Any]:
    Hub.pipe = flux
    flux.to = lambda device: flux
    yield flux
    del flux.to
    cachedit_cli.disable_cache(flux)


def sample(tiny: TinyModel, model: nn.Module) -> Tensor:
    return next(tensors(model(**tiny.inputs(0))))


def there(target: nn.Module) -> Installation:
    found = installed(target)
    assert found is not None
    return found


def settings(target: nn.Module) -> list[dict[str, Any]]:
    return [info.settings for info in there(target).log.contexts]


COVERED: set[str] = set()


def covers(title: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    COVERED.add(title)
    return lambda test: test


def test_every_snippet_of_the_spec_has_a_test() -> None:
    assert set(SNIPPETS) == COVERED


@covers("Cache Acceleration with One-line Code, 1")
def test_one_line_caches_with_the_defaults_and_disabling_runs_the_original_again(pipe: Any) -> None:
    plain = draw(pipe, 16)
    call = Call(pipe, 16)
    states: list[Any] = []

    def recording(target: Any) -> Any:
        found = there(pipe.transformer)
        image = call(target)
        states.append((found.log.generation(), [info.settings for info in found.log.contexts]))
        return image

    execute("Cache Acceleration with One-line Code, 1", DiffusionPipeline=Hub, call=recording)
    rows, used = states[0]
    assert {row.reason for row in rows[:8]} == {"no-history", "warmup"}
    assert any(row.decision == "reuse" for row in rows[8:])
    assert used[0]["Fn_compute_blocks"] == 8
    assert used[0]["residual_diff_threshold"] == 0.08
    assert installed(pipe.transformer) is None
    assert torch.equal(draw(pipe, 16), plain)


@covers("Automatic Block Adapter, 1")
def test_the_block_adapter_finds_blocks_and_takes_them_by_hand(pipe: Any) -> None:
    scope = execute("Automatic Block Adapter, 1", pipe=pipe)
    assert [info.name for info in there(pipe.transformer).log.contexts] == ["transformer.transformer_blocks"]
    cachedit_cli.disable_cache(pipe)
    scope["cachedit_cli"].enable_cache(
        cachedit_cli.BlockAdapter(pipe=pipe, auto=True, forward_pattern=ForwardPattern.Pattern_1)
    )
    draw(pipe, 2)
    names = [info.name for info in there(pipe.transformer).log.contexts]
    assert names == ["transformer.transformer_blocks", "transformer.single_transformer_blocks"]


class Hybrid(nn.Module):
    """Two block lists with different patterns, as FLUX.1 had them up to diffusers 0.34."""

    def __init__(self) -> None:
        super().__init__()
        first = TinyTransformer(ForwardPattern.Pattern_1, blocks=10)
        second = TinyTransformer(ForwardPattern.Pattern_3, blocks=10)
        self.loops = (first, second)  # a tuple, so that only their lists are modules of this one
        self.transformer_blocks = first.blocks
        self.single_transformer_blocks = second.blocks

    def forward(self, hidden_states: Tensor, timestep: Any, encoder_hidden_states: Tensor, controls: Any = None) -> Any:
        for loop in self.loops:
            hidden_states = loop(hidden_states, timestep, encoder_hidden_states)
        return hidden_states


@dataclass
class Parts:
    """A pipeline that is nothing but its transformers."""

    transformer: nn.Module
    transformer_2: nn.Module | None = None

    @property
    def components(self) -> dict[str, Any]:
        return {"transformer": self.transformer, "transformer_2": self.transformer_2}


@covers("Hybrid Forward Pattern, 1")
def test_lists_of_different_patterns_get_a_context_each() -> None:
    pipe = Parts(Hybrid())
    plain = run(pipe.transformer, walk(12))
    execute("Hybrid Forward Pattern, 1", pipe=pipe)
    cached = run(pipe.transformer, walk(12))
    contexts = there(pipe.transformer).log.contexts
    assert [(info.name, info.pattern) for info in contexts] == [
        ("transformer.transformer_blocks", "Pattern_1"),
        ("transformer.single_transformer_blocks", "Pattern_3"),
    ]
    assert all(torch.equal(a, b) for a, b in zip(plain[:8], cached[:8], strict=True))


@covers("Hybrid Forward Pattern, 2")
def test_two_transformers_with_settings_of_their_own() -> None:
    tiny = next(t for t in TINY.values() if t.class_name == "WanTransformer3DModel")
    pipe = Parts(tiny.build(seed=0), tiny.build(seed=1))
    assert pipe.transformer_2 is not None
    execute("Hybrid Forward Pattern, 2", pipe=pipe)
    with torch.no_grad():
        for step in range(12):
            model = pipe.transformer if step < 6 else pipe.transformer_2
            for branch in ("cond", "uncond"):
                model(**tiny.inputs(step, 1, branch))
    first, second = settings(pipe.transformer)
    assert (first["max_warmup_steps"], first["max_cached_steps"]) == (4, 8)
    assert (second["max_warmup_steps"], second["max_cached_steps"]) == (2, 20)
    assert first["enable_separate_cfg"]
    assert second["enable_separate_cfg"]
    rows = there(pipe.transformer).log.generation()
    warm = {
        name: sum(row.reason in ("warmup", "no-history") for row in rows if row.context == name and row.branch == "0")
        for name in ("transformer.blocks", "transformer_2.blocks")
    }
    assert warm == {"transformer.blocks": 4, "transformer_2.blocks": 2}
    assert {row.branch for row in rows} == {"0", "1"}


@covers("Implement Patch Functor, 1")
def test_a_registered_function_brings_adapter_and_functor() -> None:
    applied: list[nn.Module] = []

    class HiDreamPatchFunctor(PatchFunctor):
        def apply(self, transformer: nn.Module) -> nn.Module:
            applied.append(transformer)
            return transformer

    tiny = next(t for t in TINY.values() if t.class_name == "HiDreamImageTransformer2DModel")

    class HiDreamImagePipeline(Parts):
        pass

    pipe = HiDreamImagePipeline(tiny.build())
    code = SNIPPETS["Implement Patch Functor, 1"]
    line = "    from cache_dit.caching.patch_functors import HiDreamPatchFunctor\n"
    assert line in code
    assert "from diffusers import HiDreamImageTransformer2DModel" in code
    scope = {
        **{name: getattr(cachedit_cli, name) for name in cachedit_cli.__all__},
        "HiDreamPatchFunctor": HiDreamPatchFunctor,
        "HiDreamImageTransformer2DModel": HiDreamImageTransformer2DModel,
    }
    try:
        exec(code.replace(line, ""), scope)
        with torch.no_grad():
            plain = sample(tiny, pipe.transformer)
            cachedit_cli.enable_cache(pipe)
            assert applied == [pipe.transformer]
            assert torch.equal(sample(tiny, pipe.transformer), plain)
        names = [info.name for info in there(pipe.transformer).log.contexts]
        assert names == ["transformer.double_stream_blocks", "transformer.single_stream_blocks"]
    finally:
        BlockAdapterRegister.unregister("HiDream")


@covers("Transformer-Only Interface, 1")
def test_a_transformer_without_pipeline_counts_its_steps() -> None:
    transformer = TinyTransformer(ForwardPattern.Pattern_1, blocks=10)
    transformer.transformer_blocks = transformer.blocks
    execute("Transformer-Only Interface, 1", transformer=transformer)
    run(transformer, walk(100, pace=0.001))
    rows = there(transformer).log.rows
    assert [row.generation for row in rows] == [0] * 50 + [1] * 50
    assert [row.step for row in rows] == [*range(50), *range(50)]


@covers("Transformer-Only Interface, 2")
def test_refreshing_sets_other_steps_and_settings(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    # The document assigns what enable_cache returns, the transformer, to `pipe`, and goes on to use pipe.transformer.
    title = "Transformer-Only Interface, 2"
    code = SNIPPETS[title]
    SNIPPETS[title] = code.replace("pipe = cache_dit.enable_cache(", "cache_dit.enable_cache(")
    assert SNIPPETS[title] != code
    seen: list[int | None] = []

    def call(target: Any) -> Any:
        seen.append(there(pipe.transformer).cache_config.num_inference_steps)
        return draw(pipe, 12)

    try:
        execute(title, DiffusionPipeline=Hub, call=call)
    finally:
        SNIPPETS[title] = code
    assert seen == [28, 50, 50]
    (used,) = settings(pipe.transformer)
    assert (used["residual_diff_threshold"], used["max_warmup_steps"], used["max_cached_steps"]) == (0.1, 10, 20)
    assert used["max_continuous_cached_steps"] == 4
    assert "num_inference_steps" in capsys.readouterr().out


@covers("How to use ParamsModifier, 1")
def test_modifiers_overwrite_the_shared_settings_per_list() -> None:
    pipe = Parts(Hybrid())
    execute("How to use ParamsModifier, 1", pipe=pipe)
    first, second = settings(pipe.transformer)
    assert (first["Fn_compute_blocks"], first["residual_diff_threshold"]) == (8, 0.08)
    assert (second["Fn_compute_blocks"], second["residual_diff_threshold"]) == (1, 0.16)
    assert first["max_warmup_steps"] == second["max_warmup_steps"] == 8


@covers("Cache Stats Summary, 1")
def test_the_summary_returns_statistics_per_context(pipe: Any) -> None:
    cachedit_cli.enable_cache(pipe, cache_config=cachedit_cli.DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2))
    draw(pipe, 8)
    (stats,) = execute("Cache Stats Summary, 1", pipe=pipe)["stats"]
    assert stats.name == "transformer.transformer_blocks + transformer.single_transformer_blocks"
    assert stats.cached_steps == [row.step for row in stats.rows if row.decision == "reuse"]
    assert set(stats.residual_diffs) == {row.step for row in stats.rows if row.diff is not None}
    assert stats.cfg_cached_steps == []
    assert stats.cfg_residual_diffs == {}


@covers("Cache Stats Summary, 2")
def test_details_print_the_table_of_the_document(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    cachedit_cli.enable_cache(pipe, cache_config=cachedit_cli.DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2))
    draw(pipe, 8)
    cachedit_cli.summary(pipe, details=True)
    printed = capsys.readouterr().out
    title, header = re.findall(r"^(Cache Steps.*): |^(\| Cache Steps.*\|)$", SNIPPETS["Cache Stats Summary, 2"], re.M)
    assert f"{title[0]}: FluxPipeline" in printed
    for column in (cell.strip() for cell in header[1].strip("|").split("|")):
        assert column in printed


@covers("Disable Cache, 1")
def test_disabling_deletes_all_hooks(pipe: Any) -> None:
    before = [dict(vars(module)) for module in pipe.transformer.modules()]
    cachedit_cli.enable_cache(pipe)
    execute("Disable Cache, 1", pipe_or_adapter=pipe)
    assert [dict(vars(module)) for module in pipe.transformer.modules()] == before


@covers("DBCache: Dual Block Cache, 1")
def test_default_and_custom_options_of_dbcache(pipe: Any) -> None:
    execute("DBCache: Dual Block Cache, 1", FluxPipeline=Hub)
    (used,) = settings(pipe.transformer)
    assert (used["Fn_compute_blocks"], used["Bn_compute_blocks"]) == (8, 8)
    assert (used["max_warmup_steps"], used["max_cached_steps"], used["residual_diff_threshold"]) == (8, -1, 0.12)


@covers("DBPrune: Dynamic Block Prune, 1")
def test_dbprune_prunes_blocks_after_its_warm_up(pipe: Any) -> None:
    execute("DBPrune: Dynamic Block Prune, 1", pipe_or_adapter=pipe)
    draw(pipe, 16)
    (stats,) = cachedit_cli.summary(pipe)
    assert stats.pruned_steps
    assert min(stats.pruned_steps) >= 8
    assert all(0 < count <= 10 for count in stats.pruned_blocks.values())


@covers("DBPrune: Dynamic Block Prune, 2")
def test_dbprune_leaves_front_back_and_listed_blocks_alone(pipe: Any) -> None:
    execute("DBPrune: Dynamic Block Prune, 2", pipe_or_adapter=pipe)
    (used,) = settings(pipe.transformer)
    assert used["non_prune_block_ids"] == list(range(16, 24))
    draw(pipe, 16)
    (stats,) = cachedit_cli.summary(pipe)
    assert set(stats.pruned_blocks.values()) <= {1, 2}  # 18 blocks, of which 8 in front and 8 behind are computed


@covers("Hybrid Cache CFG, 1")
def test_guidance_options_are_taken(pipe: Any) -> None:
    execute("Hybrid Cache CFG, 1", pipe_or_adapter=pipe)
    (used,) = settings(pipe.transformer)
    assert used["enable_separate_cfg"] is True
    assert used["cfg_compute_first"] is False
    assert used["cfg_diff_compute_separate"] is True


@covers("Hybrid TaylorSeer Calibrator, 1")
def test_taylorseer_calibrates_cached_steps(pipe: Any) -> None:
    execute("Hybrid TaylorSeer Calibrator, 1", pipe_or_adapter=pipe)
    (used,) = settings(pipe.transformer)
    assert used["calibrator"] == {
        "type": "taylorseer",
        "enable_calibrator": True,
        "enable_encoder_calibrator": True,
        "calibrator_cache_type": "residual",
        "taylorseer_order": 1,
        "taylorseer_damping": 1.0,
    }


@covers("SCM: Steps Computation Masking, 1")
def test_the_mask_computes_where_it_says_so(pipe: Any) -> None:
    execute("SCM: Steps Computation Masking, 1", pipe_or_adapter=pipe)
    draw(pipe, 28)
    rows = there(pipe.transformer).log.generation()
    mask = cachedit_cli.steps_mask(mask_policy="fast", total_steps=28)
    assert all(row.decision == "compute" for row, bit in zip(rows, mask, strict=True) if bit)
    assert any(row.decision == "reuse" for row, bit in zip(rows, mask, strict=True) if not bit)
