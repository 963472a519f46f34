"""`cachedit inspect --trace`: loads the real model and watches the first forward of each of its transformers."""

from __future__ import annotations

from typing import Any

from . import opening, pipeline
from .errors import CacheditError, InputError, RunError
from .inspect_model import Inspection, ModelFacts, Seen, facts
from .jobs import jobs
from .models import ModelFiles
from .plan import call_arguments
from .recipe import Recipe
from .recipe_model import Model
from .target import Target, resolve
from .trace import Trace, Watch, candidates

__all__ = ["inspect_real"]

_STEPS = 2  # of the pipeline; a second transformer may only come after the first
_PROMPT = "a photo"


class _Enough(Exception):
    """Every transformer was seen."""


def inspect_real(target: str) -> Inspection:
    """Load a recipe's or a folder's model, and look at its first forwards.

    Raises:
        InputError: The target is no model that could be loaded, or model and machine do not fit.
        RunError: Loading or the forward failed.
    """
    found = resolve(target)
    if found.files is None:
        raise InputError(f"--trace: {found.what} has no weights; give a recipe or the folder of a pipeline")
    with pipeline.quiet():
        return Inspection(target, found.what, found.pipeline, _watched(found, found.files))


def _watched(target: Target, files: ModelFiles) -> list[ModelFacts]:
    """Run the pipeline until each transformer was called once."""
    pipe, arguments = _opened(files, target.recipe)
    models = {part.name: pipe.components[part.name] for part in target.parts}
    traces = {name: [Trace(each) for each in candidates(model)] for name, model in models.items()}
    seen: set[str] = set()
    watches = []
    for name, model in models.items():

        def judge(name: str = name) -> None:
            seen.add(name)
            if len(seen) == len(models):
                raise _Enough

        watches.append(Watch(model, traces[name], judge))
    try:
        pipe(**arguments)
    except _Enough:
        pass
    except CacheditError:
        raise
    except Exception as error:
        raise RunError(f"{type(pipe).__name__} failed: {pipeline.first_line(error)}") from error
    finally:
        for watch in watches:
            watch.undo()
    return [
        facts(
            part,
            Seen(models[part.name], traces[part.name], "the first forward of the real model")
            if part.name in seen
            else Seen(models[part.name], reason=f"{_STEPS} steps of the pipeline did not call it"),
        )
        for part in target.parts
    ]


def _opened(files: ModelFiles, recipe: Recipe | None) -> tuple[Any, dict[str, Any]]:
    """Return the pipeline, and the arguments of a short call: the recipe's where there is one."""
    model = recipe.model if recipe is not None else Model(id=files.id)
    device = pipeline.pick_device(model.device)
    cls = opening.class_for(files, model)
    arguments = call_arguments(recipe) if recipe is not None else {}
    prompt = jobs(recipe)[0].prompt if recipe is not None else _PROMPT
    if pipeline.takes(cls, "prompt") and not any(name.startswith("prompt") for name in arguments):
        arguments["prompt"] = prompt if prompt is not None else _PROMPT
    if pipeline.takes(cls, "num_inference_steps"):
        arguments["num_inference_steps"] = _STEPS
    dtype = pipeline.pick_dtype(model.dtype, device)
    opening.check_options(files, cls, model, device, dtype)
    blocks = opening.spelled_out(recipe) if recipe is not None else []
    return opening.load(files, cls, model, device, dtype, blocks), arguments
