"""The hooks of middleware and guards, gathered once for a workflow.

Any object with such attributes will do. A hook that its object does not have is not called, nor is one that
`passive` marks: the methods of the public classes, which do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar, cast

from streamline_trio._core.errors import ValidationError

F = TypeVar("F", bound=Callable[..., Any])

Hook = Callable[..., Any]

OBSERVING = ("before_step", "after_step", "on_step_error", "on_wait")
GUARDING = ("before", "after")
_PASSIVE = "__passive__"


class GuardHooks(NamedTuple):
    """A guard: how it is called in errors, and its hooks."""

    name: str
    before: Hook | None
    after: Hook | None


class Hooks(NamedTuple):
    """All hooks of a workflow by what they are called for, each in order."""

    before_step: tuple[Hook, ...]
    after_step: tuple[Hook, ...]
    on_step_error: tuple[Hook, ...]
    on_wait: tuple[Hook, ...]
    guards: tuple[GuardHooks, ...]


def passive(hook: F) -> F:
    """Mark a hook that does nothing, so that it is not called."""
    setattr(hook, _PASSIVE, True)
    return hook


def middleware_of(given: object) -> tuple[object, ...]:
    """The objects, if each has hooks of a middleware; else a `ValidationError`."""
    return _with_hooks(given, OBSERVING)


def guards_of(given: object) -> tuple[object, ...]:
    """The objects, if each has hooks of a guard; else a `ValidationError`."""
    return _with_hooks(given, GUARDING)


def hooks_of(middleware: tuple[object, ...], guards: tuple[object, ...]) -> Hooks | None:
    """Their hooks; None if there are none, so that whoever has none pays for one look."""
    hooks = Hooks(
        before_step=_hooks(middleware, "before_step"),
        after_step=_hooks(middleware, "after_step"),
        on_step_error=_hooks(middleware, "on_step_error"),
        on_wait=_hooks(middleware, "on_wait"),
        guards=tuple(GuardHooks(_name_of(each), _hook(each, "before"), _hook(each, "after")) for each in guards),
    )
    return hooks if any(hooks) else None


def _hooks(owners: tuple[object, ...], name: str) -> tuple[Hook, ...]:
    return tuple(hook for owner in owners if (hook := _hook(owner, name)) is not None)


def _with_hooks(given: object, names: tuple[str, ...]) -> tuple[object, ...]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ValidationError(f"must be a sequence of objects with hooks ({', '.join(names)}), not {given!r}")
    objects = tuple(cast("Iterable[object]", given))
    for each in objects:
        hooks = [hook for name in names if (hook := getattr(each, name, None)) is not None]
        if isinstance(each, type) or not hooks:
            raise ValidationError(f"must hold objects with hooks ({', '.join(names)}), not {each!r}")
        for hook in hooks:
            if not callable(hook):
                raise ValidationError(f"its hooks ({', '.join(names)}) must be functions, not {hook!r}")
    return objects


def _hook(owner: object, name: str) -> Hook | None:
    hook: Any = getattr(owner, name, None)
    return None if getattr(hook, _PASSIVE, False) else hook


def _name_of(guard: object) -> str:
    name = getattr(guard, "name", None)
    return name if isinstance(name, str) and name else type(guard).__name__
