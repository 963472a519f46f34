"""Building blocks of the recipe's types: sections, kinds chosen by a value, and sections made from dataclasses.

Knows how a field of an engine's dataclass becomes one of the recipe, with its default, its check and its description;
knows no section by name.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    create_model,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from .errors import InputError
from .terms.config import DefaultInt, Settings
from .terms.mask import POLICIES, steps_mask

__all__ = [
    "MOST_STEPS",
    "ForAll",
    "Mask",
    "OneOf",
    "Section",
    "SectionT",
    "Short",
    "among",
    "derive",
    "matching",
    "nearest",
    "settings_of",
]

MOST_STEPS = 10_000


class Section(BaseModel):
    """A mapping in a recipe: no unknown keys, no conversion of types, no change afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


SectionT = TypeVar("SectionT", bound=Section)
_TYPE_WORDS = ("type", "enum", "const", "minLength")


class OneOf:
    """Annotation: a value is validated as the one kind that ``choose`` names, so that errors speak of that one alone.

    The names turn up in the paths of errors; they stand in pointed brackets to be told from keys.
    """

    def __init__(self, kinds: Mapping[str, Any], choose: Callable[[Any], str]) -> None:
        self.kinds = kinds
        self.choose = choose

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        kinds: dict[Any, CoreSchema] = {name: handler.generate_schema(kind) for name, kind in self.kinds.items()}
        return core_schema.tagged_union_schema(kinds, self.choose)


class Short:
    """Annotation of a section that may be written as the value of one of its keys alone."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._spread, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        whole = handler(schema)
        alone = dict(handler.resolve_ref_schema(whole)["properties"][self.key])
        kinds = alone["anyOf"] if "anyOf" in alone else [{k: v for k, v in alone.items() if k in _TYPE_WORDS}]
        return {"anyOf": [*(each for each in kinds if each != {"type": "null"}), whole]}

    def _spread(self, value: Any) -> Any:
        return {self.key: value} if isinstance(value, str) else value


class ForAll(Short):
    """Annotation of a mapping that may be written as the value of its one key for everything."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        whole = handler(schema)
        return {"anyOf": [whole["additionalProperties"]["anyOf"][0], whole]}


def among(*allowed: str) -> BeforeValidator:
    """Allow these words only."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and value not in allowed:
            raise ValueError(f"{value!r} is unknown ({nearest(value, allowed)})")
        return value

    return BeforeValidator(check)


def matching(pattern: re.Pattern[str], form: str) -> AfterValidator:
    """Allow text of this form only."""

    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(f"{value!r} is not {form}")
        return value

    return AfterValidator(check)


def nearest(value: str, allowed: Iterable[str], otherwise: str = "it is one of") -> str:
    """Return what was probably meant, or else all that can be."""
    by_lower = {name.lower(): name for name in allowed}
    near = difflib.get_close_matches(value.lower(), by_lower, n=1)
    return f"did you mean {by_lower[near[0]]!r}?" if near else f"{otherwise} {', '.join(by_lower.values())}"


# --------------------------------------------------------------------------------------------------------- steps masks

_Bin = Annotated[int, Field(ge=0, le=MOST_STEPS)]
_Bit = Annotated[int, Field(ge=0, le=1)]


class Mask(Section):
    """Which steps compute, as a policy or as lengths of runs."""

    policy: Annotated[str, among(*POLICIES), Field(json_schema_extra={"enum": list(POLICIES)})] | None = Field(
        default=None,
        description="From most to fewest computed steps: slow, medium, fast or ultra, at any number of steps.",
    )
    compute_bins: list[_Bin] | None = Field(
        default=None, description="Lengths of the computed runs; they alternate with `cache_bins`, computed first."
    )
    cache_bins: list[_Bin] | None = Field(
        default=None, description="Lengths of the runs that may be reused. All bins together sum to at least the steps."
    )

    @model_validator(mode="after")
    def _is_complete(self) -> Mask:
        if self.policy is None:
            if self.compute_bins is None and self.cache_bins is None:
                raise ValueError("needs a policy, or compute_bins and cache_bins")
            if sum(self.compute_bins or ()) + sum(self.cache_bins or ()) > MOST_STEPS:
                raise ValueError(f"compute_bins and cache_bins sum to more than {MOST_STEPS:,} steps")
            steps_mask(self.compute_bins, self.cache_bins)
        return self

    def laid_out(self, steps: int | None) -> str | list[int]:
        """Return a policy as its name, bins as bits over ``steps`` (None: over all of them)."""
        return self.policy or steps_mask(self.compute_bins, self.cache_bins, total_steps=steps)


def _mask_kind(value: Any) -> str:
    if isinstance(value, (dict, Mask)):
        return "<mask>"
    return "<bits>" if isinstance(value, list) else "<text>"


def _mask_text(value: Any) -> Any:
    if value is None or isinstance(value, (dict, list, Mask)):
        return value
    # Bits without quotes arrive as a number. They begin with 1, so nothing is lost.
    is_number = isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < MOST_STEPS
    text = str(value) if is_number else value
    if not isinstance(text, str):
        raise ValueError("is neither bits (0 and 1), a policy, nor compute_bins with cache_bins")
    if text not in POLICIES and not re.fullmatch("[01]+", text):
        raise ValueError(f"{text!r} is neither bits (0 and 1) nor a policy ({nearest(text, POLICIES)})")
    return text


_KINDS_OF_MASK = {"<mask>": Mask, "<bits>": list[_Bit], "<text>": str | None}
# Types that a recipe writes otherwise than Python does; all others are taken as they are.
_WRITTEN: dict[str, Any] = {
    "steps_computation_mask": Annotated[Any, OneOf(_KINDS_OF_MASK, _mask_kind), BeforeValidator(_mask_text)],
    "non_prune_block_ids": list[int],
}
# Defaults that plain data has no word for.
_PLAIN: dict[type, Callable[[Any], Any]] = {tuple: list, DefaultInt: int}


# --------------------------------------------------------------------------------------- sections made from dataclasses


def derive(name: str, base: type[SectionT], config: type[Settings] | None, kind: Any = None) -> type[SectionT]:
    """Return a section with the fields of an engine's dataclass, behind a field ``type``.

    Without ``kind``, the definition of that field, there is none, and no field has a default but being unset.
    """
    fields = {} if config is None else _fields(config, bare=kind is None)
    if kind is not None:
        fields = {"type": kind} | fields
    return create_model(name, __base__=base, __doc__=base.__doc__, __module__=base.__module__, **fields)


def _fields(config: type[Settings], bare: bool) -> dict[str, Any]:
    hints, meanings, made = get_type_hints(config), _meanings(config), {}
    for field in dataclasses.fields(config):
        name, default = field.name, _PLAIN.get(type(field.default), lambda value: value)(field.default)
        checks: list[Any] = [_judged_by(config, name)]
        if bare:
            checks, default = [*checks, BeforeValidator(_is_given)], None
        written: Any = _WRITTEN.get(name, hints[name])
        for check in checks:
            written = Annotated[written, check]
        made[name] = (written, Field(default, description=meanings.get(name)))
    return made


def settings_of(section: Section, steps: int | None) -> dict[str, Any]:
    """Return the settings that a derived section sets, with its mask laid out over ``steps``."""
    given = {name: getattr(section, name) for name in sorted(section.model_fields_set - {"type"})}
    return {name: value.laid_out(steps) if isinstance(value, Mask) else value for name, value in given.items()}


def _meanings(config: type[Settings]) -> dict[str, str]:
    """Return what the ``Attributes`` in the docstrings of a dataclass and its bases say of each field."""
    meanings: dict[str, str] = {}
    for each in reversed(config.__mro__):
        _, _, attributes = inspect.cleandoc(each.__doc__ or "").partition("Attributes:\n")
        for name, text in re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", attributes, re.MULTILINE):
            words = " ".join(text.replace("``", "`").split())
            for python, yaml in (("None", "null"), ("True", "true"), ("False", "false")):
                words = re.sub(rf"\b{python}\b", yaml, words)
            meanings[name] = words
    return meanings


def _judged_by(config: type[Settings], name: str) -> AfterValidator:
    def check(value: Any) -> Any:
        if not isinstance(value, Mask):
            try:
                config.reset(**{name: value})
            except InputError as error:
                raise ValueError(str(error).removeprefix(f"{config.__name__}.{name}: ")) from None
        return value

    return AfterValidator(check)


def _is_given(value: Any) -> Any:
    if value is None:
        raise ValueError("null sets nothing here (leave the key out)")
    return value
