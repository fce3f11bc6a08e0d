"""Arguments of public functions, checked against their annotations.

A public function is marked `checked`. What it is given is then compared with its annotations before anything is
computed: what means the same is converted (a NumPy array or a list for a tensor, NumPy's numbers for Python's), and
other types are refused with a readable error. Ranges, names and matching shapes are checked by the function itself.
"""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from operator import index
from types import UnionType
from typing import Any, Literal, ParamSpec, SupportsIndex, TypeVar

import numpy as np
import torch
from beartype.door import is_bearable
from jaxtyping import AbstractArray
from torch import Tensor

from lensplug.errors import LensplugError

P = ParamSpec("P")
R = TypeVar("R")

PLAIN: dict[Any, str] = {
    int: "a whole number",
    SupportsIndex: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    type(None): "None",
}
"""Types that have a plain name in an error."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that it refuses arguments of other types than annotated, before it does anything.

    Raises:
        LensplugError: When it is called: an argument is of another type, is missing, or is unknown.
    """

    @wraps(function)
    def with_arguments_checked(*args: P.args, **kwargs: P.kwargs) -> R:
        parameters = _parameters(function)
        if not parameters.take(args, kwargs):
            _refuse_call(function, args, kwargs)
        hints, given = parameters.hints, zip(parameters.positional, args, strict=False)
        positional = [admitted(value, hints[name], name) if name in hints else value for name, value in given]
        named = {name: admitted(kwargs[name], hints[name], name) for name in kwargs if name in hints}
        return function(*positional, *args[len(positional) :], **{**kwargs, **named})  # type: ignore[arg-type]

    return with_arguments_checked


def admitted(value: Any, hint: Any, name: str) -> Any:
    """The value as the type that is annotated.

    Raises:
        LensplugError: If it is of another type.
    """
    for member in _members(hint):
        is_accepted, converted = _as(value, member)
        if is_accepted:
            return converted
    _refuse_entry(value, hint, name)
    raise LensplugError(f"{name} is {described(value)}, expected {_in_words(hint)}.")


def _refuse_entry(value: Any, hint: Any, name: str) -> None:
    """Name the entry of a list that is none of the choices, where a list of choices may be given."""
    for member in _members(hint):
        if isinstance(value, list | tuple) and _lists_choices(member):
            for entry in value:
                admitted(entry, typing.get_args(member)[0], f"an entry of {name}")


def whole_number(value: Any, name: str) -> int:
    """A whole number of any integer type; no truth value, and nothing that would be rounded.

    Raises:
        LensplugError: If it is something else.
    """
    number: int = admitted(value, int, name)
    return number


def at_least(least: int, **numbers: int) -> None:
    """Refuse numbers below the least that means something.

    Raises:
        LensplugError: If one is.
    """
    for name, number in numbers.items():
        if number < least:
            raise LensplugError(f"{name} is {number}, expected at least {least}.")


def check_example(example: int, n_examples: int) -> None:
    """Refuse an example that is not there."""
    if not 0 <= example < n_examples:
        raise LensplugError(f"example is {example}, there are {n_examples}, counted from 0.")


def described(value: Any) -> str:
    """A short description of a value."""
    if isinstance(value, Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, Tensor) else "NumPy array"
        dtype = str(value.dtype).removeprefix("torch.")
        return f"a {kind} {list(value.shape)} of {dtype}"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str | list | tuple | dict | set):
        kind, text = "" if isinstance(value, str) else f"the {type(value).__name__} ", repr(value)
        return kind + (text if len(text) <= 60 else text[:57] + "...")
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"{'an' if type(value).__name__[0] in 'AEIOUaeio' else 'a'} {type(value).__name__}"


def _as(value: Any, member: Any) -> tuple[bool, Any]:
    """Whether a value is of a type, after conversion where that changes no meaning; and what it is then."""
    truth = isinstance(value, bool | np.bool_)
    if member is type(None):
        return value is None, None
    if member is bool:
        return truth, bool(value) if truth else None
    if member is int:
        try:
            return (False, None) if truth or isinstance(value, Tensor) and value.ndim else (True, index(value))
        except TypeError:
            return False, None
    if member is float:
        number = isinstance(value, int | float | np.integer | np.floating) and not truth
        return (True, float(value)) if number and not math.isnan(value) else (False, None)
    if type(value) is member:
        return True, value
    origin = _origin(member)
    if isinstance(value, type) and origin is Callable:
        return False, None  # int(logits) is a call, and not what anybody means
    if _holds_texts(value, member):
        return False, None
    if _is_tensor(member):
        value = _as_tensor(value, member)
    if origin is tuple and isinstance(value, list):
        value = tuple(value)
    if origin is Sequence and isinstance(value, list | tuple):
        inside = typing.get_args(member)[0]
        return all(is_bearable(entry, inside) for entry in value), value  # each: beartype looks at one, by chance
    return is_bearable(value, member), value


def _lists_choices(member: Any) -> bool:
    """Whether a type is a list of names of which there are a few."""
    if typing.get_origin(member) is not Sequence:
        return False
    return any(typing.get_origin(one) is Literal for one in _members(typing.get_args(member)[0]))


def _holds_texts(value: Any, member: Any) -> bool:
    """Whether a single text was passed for a sequence; to Python, a text is a sequence of texts."""
    if _origin(member) is not Sequence:
        return False
    inside = typing.get_args(member)[0]
    return (
        isinstance(value, str | bytes)
        or isinstance(value, Sequence)
        and any(_holds_texts(item, inside) for item in value[:1])
    )


def _as_tensor(value: Any, member: Any) -> Any:
    """Arrays and lists as a tensor; whole numbers as floats where those are wanted."""
    if isinstance(value, np.ndarray | list | tuple):
        try:
            value = torch.as_tensor(np.asarray(value))
        except (TypeError, ValueError, RuntimeError):  # rows of several lengths, texts
            return value
        value = value.float() if value.dtype == torch.float64 else value
    is_integer = isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool
    dtypes = getattr(member, "dtypes", ())  # of a hint for any dtype no list
    return value.float() if is_integer and isinstance(dtypes, list | tuple) and "float32" in dtypes else value


_origin: Callable[[Any], Any] = cache(typing.get_origin)


@cache
def _is_tensor(member: Any) -> bool:
    return member is Tensor or inspect.isclass(member) and issubclass(member, AbstractArray)


def _members(hint: Any) -> list[Any]:
    """The types of a union, those that nothing is converted to first; else the hint alone."""
    if _origin(hint) not in (UnionType, typing.Union):
        return [hint]
    return sorted(typing.get_args(hint), key=lambda member: member in (int, float) or _is_tensor(member))


def _in_words(hint: Any) -> str:
    members = _members(hint)
    if any(typing.get_origin(member) is Literal for member in members):
        return _choices_in_words(members)
    names = []
    for member in members:
        if member is type(None):
            continue
        plain = inspect.isclass(member) and not typing.get_args(member)
        names.append(PLAIN.get(member) or (member.__name__ if plain else _short(str(member))))
    without = ["None"] if type(None) in members else []
    return " or ".join([*dict.fromkeys(names), *without])


def _choices_in_words(members: list[Any]) -> str:
    """The choices by name, as typed, followed by the other accepted types."""
    choices = [repr(name) for member in members if typing.get_origin(member) is Literal for name in member.__args__]
    others = [_kind_in_words(member) for member in members if typing.get_origin(member) is not Literal]
    *first, last = dict.fromkeys([*choices, *sorted(others, key=lambda words: words == "None")])
    return f"{', '.join(first)} or {last}" if first else last


def _kind_in_words(member: Any) -> str:
    if member in PLAIN:
        return PLAIN[member]
    if _is_tensor(member) or member is np.ndarray:
        return "a tensor"
    if typing.get_origin(member) in (Sequence, tuple):
        return "a list"
    if typing.get_origin(member) is Mapping:
        return "a dictionary"
    return f"a {member.__name__}" if inspect.isclass(member) else _short(str(member))


def _short(hint: str) -> str:
    for module in ("collections.abc.", "typing.", "torch.", "pathlib.", "jaxtyping.", "PIL.Image."):
        hint = hint.replace(module, "")
    return hint


@dataclass(frozen=True)
class _Parameters:
    """What a function takes."""

    positional: tuple[str, ...]
    """Names of those that need not be named, in their order."""
    required: frozenset[str]
    names: frozenset[str]
    several: bool
    """Whether there may be more, without a name."""
    others: bool
    """Whether there may be more, of any name."""
    hints: dict[str, Any]

    def take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call with these has what is required, nothing twice, and nothing unknown."""
        unnamed = self.positional[: len(args)]
        return (
            (self.several or len(args) <= len(self.positional))
            and (self.others or kwargs.keys() <= self.names)
            and kwargs.keys().isdisjoint(unnamed)
            and self.required <= {*unnamed, *kwargs}
        )


def _refuse_call(function: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """Raise: an argument is missing or unknown, in Python's own words."""
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        is_method = next(iter(signature.parameters), None) == "self"
        called = f"{type(args[0]).__name__}.{function.__name__}" if is_method and args else function.__qualname__
        names = ", ".join(name for name in signature.parameters if name != "self")
        raise LensplugError(f"{called}: {error}. Its arguments are {names}.") from error


@cache
def _parameters(function: Callable[..., Any]) -> _Parameters:
    parameters = inspect.signature(function).parameters
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    single = [name for name, kind in kinds.items() if kind not in several]
    return _Parameters(
        positional=tuple(name for name in single if kinds[name] is not inspect.Parameter.KEYWORD_ONLY),
        required=frozenset(name for name in single if parameters[name].default is inspect.Parameter.empty),
        names=frozenset(name for name in single if kinds[name] is not inspect.Parameter.POSITIONAL_ONLY),
        several=several[0] in kinds.values(),
        others=several[1] in kinds.values(),
        hints=_hints(function),
    )


@cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of single arguments; `Any` is none, nor is a name that type checkers alone know."""
    hints = {}
    plain = inspect.unwrap(function)
    for name, parameter in inspect.signature(function).parameters.items():
        hint = parameter.annotation
        if isinstance(hint, str):
            try:
                hint = eval(hint, plain.__globals__)  # noqa: S307, as typing.get_type_hints does
            except NameError:
                continue
        several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if hint not in (Any, object, parameter.empty) and not several:
            hints[name] = hint
    return hints
