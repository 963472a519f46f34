"""Models that change states in place: the loop between blocks, or the blocks themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from cachedit_cli.engine.install import install
from cachedit_cli.terms.config import CalibratorConfig, DBCacheConfig, DBPruneConfig
from cachedit_cli.terms.pattern import ForwardPattern
from tests.tiny import NamedBlock, TinyTransformer, adapter, controls_like, run, walk

STEPS = 4


class AddingLoop(TinyTransformer):
    """Adds a ControlNet-like residual to what a block returned, in place, as Cosmos and Chroma do."""

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Any = None,
        encoder_hidden_states: Tensor | None = None,
        controls: Sequence[Tensor] | None = None,
    ) -> Tensor:
        assert controls is not None
        h, e, temb = hidden_states, encoder_hidden_states, self.embed(timestep)
        for block, control in zip(self.every(), controls, strict=True):
            e, h = self.caller(block, h, e, temb)
            h += control
        return h


class LateLoop(AddingLoop):
    """Begins to change states in place in mid-run."""

    late = False

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Any = None,
        encoder_hidden_states: Tensor | None = None,
        controls: Sequence[Tensor] | None = None,
    ) -> Tensor:
        if self.late:
            return super().forward(hidden_states, timestep, encoder_hidden_states, controls)
        return TinyTransformer.forward(self, hidden_states, timestep, encoder_hidden_states)


class AddingBlock(NamedBlock):
    """Changes its input in place and returns it."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, temb: Any = None) -> Any:
        encoder, after = self.work(hidden_states, encoder_hidden_states, temb)
        hidden_states.copy_(after)
        return encoder, hidden_states


def settings(front: int, back: int) -> DBCacheConfig:
    return DBCacheConfig(
        Fn_compute_blocks=front,
        Bn_compute_blocks=back,
        max_warmup_steps=0,
        residual_diff_threshold=1.0,
        num_inference_steps=STEPS,
    )


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("target", ["residual", "hidden_states"])
@pytest.mark.parametrize(("front", "back"), [(0, 0), (1, 0), (2, 1)])
def test_additions_in_place_between_blocks_are_counted_once(
    front: int, back: int, target: Any, inference: bool
) -> None:
    model = AddingLoop(ForwardPattern.Pattern_1)
    controls, samples = controls_like(model), walk(1) * STEPS
    with torch.inference_mode(inference):
        plain = run(model, samples, schedule=[5.0] * STEPS, controls=controls)
        calibrator = CalibratorConfig(calibrator_cache_type=target)
        with install(adapter(model), settings(front, back), calibrator) as cache:
            outputs = run(model, samples, schedule=[5.0] * STEPS, controls=controls)
    assert [row.decision for row in cache.log.rows] == ["compute", "reuse", "reuse", "reuse"]
    for expected, output in zip(plain, outputs, strict=True):
        torch.testing.assert_close(output, expected)
    assert torch.equal(samples[0], walk(1)[0])


def test_what_was_learned_while_states_changed_in_place_for_the_first_time_is_not_used() -> None:
    model = LateLoop(ForwardPattern.Pattern_1)
    controls, samples = controls_like(model), walk(1) * STEPS
    config = DBCacheConfig(
        Fn_compute_blocks=1,
        max_warmup_steps=2,
        residual_diff_threshold=1.0,
        num_inference_steps=STEPS,
    )
    with install(adapter(model), config) as cache:
        run(model, samples[:1], schedule=[None], controls=controls)
        model.late = True
        outputs = run(model, samples[1:], schedule=[None] * 3, controls=controls)
    plain = run(model, samples[1:], schedule=[None] * 3, controls=controls)
    assert [row.reason for row in cache.log.rows] == ["no-history", "warmup", "no-history", "threshold"]
    assert [reset.reason for reset in cache.log.resets] == ["the states in front of the middle were changed in place"]
    for expected, output in zip(plain, outputs, strict=True):
        torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("config", [settings(1, 0), settings(2, 1), DBPruneConfig(2, 1, 1.0, 0, num_inference_steps=4)])
def test_blocks_that_change_their_input_in_place_are_reused_rightly(config: DBCacheConfig) -> None:
    model = TinyTransformer(ForwardPattern.Pattern_1)
    for index in range(len(model.blocks)):
        model.blocks[index] = AddingBlock(f"a{index}", ForwardPattern.Pattern_1, index)
    plain = run(model, [sample.clone() for sample in walk(1) * STEPS], schedule=[None] * STEPS)
    with install(adapter(model), config) as cache:
        outputs = run(model, [sample.clone() for sample in walk(1) * STEPS], schedule=[None] * STEPS)
    assert sum(row.saved for row in cache.log.rows) > 0
    for expected, output in zip(plain, outputs, strict=True):
        torch.testing.assert_close(output, expected)
