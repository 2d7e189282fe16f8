"""The `outputs=` type of a workflow against its steps."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Union, cast

import msgspec
import msgspec.inspect
from typing_extensions import is_typeddict

from streamline_trio._core.refusal import refusal
from streamline_trio._core.step import Step

_ABSENT = frozenset({type(None), msgspec.UnsetType})


def check_outputs(outputs: Any, steps: Mapping[str, Step[Any]], *, workflow: str) -> None:
    """Compare the fields of `outputs` with the ids and output types of the steps.

    There must be a field for every step and a step for every field. A field may allow None
    or UNSET besides the type of its step, which may be skipped; Any fits everything.
    Raises `DefinitionError`.
    """
    fields = _fields_of(outputs, workflow)
    for name in fields:
        if name not in steps:
            raise refusal(
                f"{outputs.__name__} has a field {name!r}, but there is no such step",
                workflow=workflow,
                option="outputs",
            )
    for step in steps.values():
        if step.id not in fields:
            raise refusal(
                f"{outputs.__name__} has no field for this step",
                workflow=workflow,
                step=step.id,
                option="outputs",
            )
        if not _fits(step.returns, fields[step.id]):
            raise refusal(
                f"{outputs.__name__} says {fields[step.id]!r}, but the step returns {step.returns!r}",
                workflow=workflow,
                step=step.id,
                option="outputs",
            )


def _fields_of(outputs: Any, workflow: str) -> dict[str, Any]:
    """The type of each field, by the name it is stored under."""
    try:
        hints = typing.get_type_hints(outputs, include_extras=True)
    except (NameError, TypeError) as error:
        raise refusal(
            f"the fields of {outputs!r} cannot be read: {error}", workflow=workflow, option="outputs"
        ) from error
    if isinstance(outputs, type) and issubclass(outputs, msgspec.Struct):
        fields = msgspec.structs.fields(outputs)
        return {field.encode_name: hints[field.name] for field in fields}
    if isinstance(outputs, type) and dataclasses.is_dataclass(outputs):
        return {field.name: hints[field.name] for field in dataclasses.fields(outputs)}
    if is_typeddict(cast("Any", outputs)):
        return {name: _unqualified(hint) for name, hint in hints.items()}
    raise refusal(
        f"must be a Struct, a dataclass or a TypedDict, not {outputs!r}",
        workflow=workflow,
        option="outputs",
    )


def _unqualified(hint: Any) -> Any:
    """The type of a TypedDict's key without `Required` or `NotRequired`: every output may be absent."""
    while typing.get_origin(hint) in (typing.Required, typing.NotRequired):
        (hint,) = typing.get_args(hint)
    return hint


def _fits(returns: Any, field: Any) -> bool:
    if returns is Any or field is Any or _alike(returns, field):
        return True
    wanted, had = _members(field), _members(returns)
    absent_told = all(member in wanted for member in had if member in _ABSENT)
    return absent_told and _alike(_union(had), _union(wanted))


def _members(type_: Any) -> list[Any]:
    if typing.get_origin(type_) in (Union, types.UnionType):
        return list(typing.get_args(type_))
    return [type_]


def _union(members: list[Any]) -> Any:
    present = [member for member in members if not _is_absent(member)]
    return Union[tuple(present)] if present else type(None)  # noqa: UP007 - the members are a list


def _is_absent(member: Any) -> bool:
    return member is None or any(member is absent for absent in _ABSENT)


def _alike(one: Any, other: Any) -> bool:
    if one == other:
        return True
    try:
        return msgspec.inspect.type_info(one) == msgspec.inspect.type_info(other)
    except Exception:  # noqa: BLE001 - types that cannot be described are not alike
        return False
