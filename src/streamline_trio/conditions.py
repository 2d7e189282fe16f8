"""Predicates for `skip_if` and `run_if`."""

from __future__ import annotations

from streamline_trio._core.conditions import (
    all_,
    any_,
    equals,
    greater,
    has,
    in_,
    less,
    not_,
    not_equals,
)

__all__ = ["all_", "any_", "equals", "greater", "has", "in_", "less", "not_", "not_equals"]
