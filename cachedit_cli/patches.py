"""Changes to the instances of a model that can be taken back: to a module's call, to a method, by a PatchFunctor.

A module's call is intercepted in the slot that ``nn.Module.__call__`` asks before it runs hooks and ``forward``
(``_compiled_call_impl``, the one that ``Module.compile`` fills; PyTorch 2.1 to 2.13). So accelerate's and diffusers'
hooks, LoRA and compiled blocks stay inside the wrapper: a reused block triggers none of them, a computed one all, and
deep copies come without it. No list, class or ``forward`` is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from .errors import InputError
from .terms.functor import PatchFunctor

__all__ = [
    "SLOT",
    "Call",
    "CallPatch",
    "FunctorPatch",
    "MethodPatch",
    "Undoable",
    "forbid_compiling",
    "refuse_compiled",
]

Call = Callable[..., Any]

SLOT = "_compiled_call_impl"
_MISSING = object()


class Undoable(Protocol):
    """A change that can be taken back."""

    def undo(self) -> None: ...


class CallPatch:
    """One module whose calls are intercepted."""

    def __init__(self, module: nn.Module, make: Callable[[Call], Call]) -> None:
        self._module = module
        self._make = make
        self._previous: Any = _MISSING
        self._call: Call | None = None
        self.refresh()

    def refresh(self) -> None:
        """Wrap again if something else, such as ``Module.compile``, took the slot."""
        held = vars(self._module).get(SLOT, _MISSING)
        if held is self._call:
            return
        self._previous = held
        inner = self._module._call_impl if held is _MISSING or held is None else held
        self._call = self._make(inner)
        vars(self._module)[SLOT] = self._call

    def undo(self) -> None:
        if vars(self._module).get(SLOT, _MISSING) is not self._call:
            return
        if self._previous is _MISSING:
            del vars(self._module)[SLOT]
        else:
            vars(self._module)[SLOT] = self._previous


class MethodPatch:
    """Stands in for a method on one instance; a deep copy of the instance gets its class's own method back."""

    def __init__(self, owner: object, name: str, make: Callable[[Call], Call]) -> None:
        self._owner = owner
        self._name = name
        self._previous = vars(owner).get(name, _MISSING)
        self._call = make(getattr(owner, name))
        vars(owner)[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        owner = memo.get(id(self._owner), self._owner)
        return getattr(type(owner), self._name).__get__(owner)

    def undo(self) -> None:
        if vars(self._owner).get(self._name) is not self:
            return
        if self._previous is _MISSING:
            del vars(self._owner)[self._name]
        else:
            vars(self._owner)[self._name] = self._previous


class FunctorPatch:
    """What a PatchFunctor changed, and nothing else, to put it back."""

    def __init__(self, functor: PatchFunctor, model: nn.Module) -> None:
        self._before = [(module, dict(vars(module))) for module in model.modules()]
        self._changed: list[tuple[nn.Module, str, Any]] = []
        try:
            functor.apply(model)
        except BaseException:  # half applied
            self._compare()
            self.undo()
            raise
        self._compare()

    def _compare(self) -> None:
        self._changed = [
            (module, name, old.get(name, _MISSING))
            for module, old in self._before
            for name in {*vars(module), *old}
            if vars(module).get(name, _MISSING) is not old.get(name, _MISSING)
        ]
        self._before.clear()

    def undo(self) -> None:
        for module, name, old in self._changed:
            if old is _MISSING:
                vars(module).pop(name, None)
            else:
                vars(module)[name] = old


def forbid_compiling(model: nn.Module) -> MethodPatch:
    """Refuse that a model is compiled as a whole: what is compiled into one graph calls no wrapper.

    Raises:
        InputError: It is compiled already.
    """
    message = _compiled_whole(model)
    if hasattr(model, "_orig_mod") or vars(model).get(SLOT) is not None:
        raise InputError(message)

    def refuse(*_: Any, **__: Any) -> None:
        raise InputError(message)

    return MethodPatch(model, "compile", lambda _: refuse)


def refuse_compiled(pipe: Any, make: Callable[[Call], Call]) -> Callable[[Call], Call]:
    """Let the pipeline's next loop refuse a transformer that was put back as ``torch.compile(transformer)``.

    That makes a new module around the cached one and tells it nothing, so that it only shows when it is used.
    """

    def made(original: Call) -> Call:
        inner = make(original)

        def progress_bar(*args: Any, **kwargs: Any) -> Any:
            for part in vars(pipe).values():
                inside = part._modules.get("_orig_mod") if isinstance(part, nn.Module) else None
                if inside is not None and SLOT in vars(inside):
                    raise InputError(_compiled_whole(inside))
            return inner(*args, **kwargs)

        return progress_bar

    return made


def _compiled_whole(model: nn.Module) -> str:
    return (
        f"{type(getattr(model, '_orig_mod', model)).__name__} is to be compiled as a whole, and nothing can be decided "
        "inside one graph; compile its blocks instead, with transformer.compile_repeated_blocks(), before or after"
    )
