"""`model.scheduler`: another sampler than the model's, or other arguments of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..errors import InputError
from ..recipe_fields import nearest

if TYPE_CHECKING:
    from ..recipe_options import Scheduler

__all__ = ["change", "check"]


def check(options: Scheduler, current: str | None) -> None:
    """Refuse arguments that the class does not have, or values that are not of their type.

    Args:
        options: What the recipe asks for.
        current: Class of the model's own scheduler, if it is known before loading.

    Raises:
        InputError: All that is wrong, one argument a line.
    """
    name = options.type or current
    problems = list(_problems(name, options.arguments)) if name is not None else []
    if problems:
        raise InputError("\n".join(problems))


def _problems(name: str, arguments: dict[str, Any]) -> Iterator[str]:
    parameters = inspect.signature(_class(name).__init__, eval_str=True).parameters
    known = [each for each in parameters if each != "self"]
    for key, value in arguments.items():
        where = f"model.scheduler.arguments.{key}"
        if key not in known:
            yield f"{where}: {name} has no such argument ({nearest(key, known, 'it has')})"
            continue
        wanted = parameters[key].annotation
        if wanted is inspect.Parameter.empty or value is None:
            continue
        try:
            TypeAdapter(wanted, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
        except ValidationError:
            yield f"{where}: {value!r} is not {inspect.formatannotation(wanted)}"


def _class(name: str) -> Any:
    import diffusers

    return getattr(diffusers, name)


def change(pipe: Any, options: Scheduler) -> None:
    """Give a pipeline a scheduler that is configured like its own but for the arguments.

    Raises:
        InputError: The class does not take them together, or works for another kind of model.
    """
    check(options, type(pipe.scheduler).__name__)
    made = type(pipe.scheduler) if options.type is None else _class(options.type)
    try:
        pipe.scheduler = made.from_config(pipe.scheduler.config, **options.arguments)
    except (ValueError, NotImplementedError, ImportError, TypeError) as error:
        raise InputError(f"model.scheduler: {made.__name__}: {error}") from error
