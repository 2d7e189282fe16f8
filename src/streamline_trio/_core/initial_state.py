"""Where a run's first state comes from, and what type states have.

Without `state=` the state begins as a copy of the input and has its type. With it, the
type is the first of these that is told: `state` itself when it is a class, the return
annotation of the function, the state type in the handlers' `StepContext[...]`; else it is
the type of what the function gives for the first input at hand.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import UNSET

from streamline_trio._core import payload
from streamline_trio._core.errors import DefinitionError, ValidationError, message_of
from streamline_trio._core.refusal import refusal
from streamline_trio._core.signature import (
    AWAITABLES,
    UnresolvedAnnotation,
    is_coroutine_function,
    return_type,
    takes_one_argument,
)


class InitialState:
    """Makes the first state of a workflow's runs, as payloads, and knows the decoder of states."""

    def __init__(self, make: Callable[[Any], Any] | None, *, workflow: str, input_decoder: payload.Decoder) -> None:
        self._make = make
        self._workflow = workflow
        self._input_decoder = input_decoder
        self._decoder: payload.Decoder | None = None
        self._inferred = False
        if make is None:
            return
        declared = self._declared(make)
        if declared is not UNSET:
            self._decoder = self._decoder_of(declared)

    def learn(self, annotated: Mapping[str, Any]) -> None:
        """Take the state types that steps are annotated with, by step id.

        They decide only when nothing else tells the type; then they must agree.
        """
        if self._make is None or self._decoder is not None or not annotated:
            return
        (first, told), *others = annotated.items()
        for step, other in others:
            if other != told:
                raise self._refused(
                    f"steps {first!r} and {step!r} are annotated with unlike states, "
                    f"{told!r} and {other!r}: annotate what the state function returns"
                )
        self._decoder = self._decoder_of(told)

    def initial(self, input_payload: bytes) -> bytes:
        """The first state of a run with this input; a `ValidationError` when it cannot be made."""
        if self._make is None:
            return input_payload
        state = self._made(self._make, input_payload)
        encoded = payload.encode(state, what=self._what)
        decoder = self._decoder or self._infer(state)
        if type(state) is not decoder.type:
            self._check(state, encoded, decoder)
        return encoded

    def decoder(self, input_payload: bytes) -> payload.Decoder:
        """The decoder of states; calls the state function when nothing else tells the type."""
        if self._decoder is not None:
            return self._decoder
        if self._make is None:
            return self._input_decoder
        return self._infer(self._made(self._make, input_payload))

    @property
    def _what(self) -> str:
        return f"the state of workflow {self._workflow!r}"

    def _made(self, make: Callable[[Any], Any], input_payload: bytes) -> Any:
        given = self._input_decoder.decode(input_payload, what=f"the input of workflow {self._workflow!r}")
        try:
            state = make(given)
        except Exception as error:
            raise ValidationError(
                f"{self._what} could not be made: {type(error).__name__}: {message_of(error)}",
                workflow=self._workflow,
            ) from error
        if inspect.isawaitable(state):
            if inspect.iscoroutine(state):
                state.close()
            raise ValidationError(
                f"{self._what} must be made by a sync function, but it gave an awaitable",
                workflow=self._workflow,
            )
        return state

    def _infer(self, state: Any) -> payload.Decoder:
        try:
            self._decoder = payload.decoder(type(state))
        except TypeError as error:
            raise ValidationError(
                f"{self._what} cannot be a {type(state)!r}: {error}", workflow=self._workflow
            ) from error
        self._inferred = True
        return self._decoder

    def _check(self, state: Any, encoded: bytes, decoder: payload.Decoder) -> None:
        if self._inferred:
            raise ValidationError(
                f"{self._what} was a {decoder.type!r} before and is a {type(state)!r} now: "
                "annotate what the state function returns",
                workflow=self._workflow,
            )
        decoder.decode(encoded, what=self._what)

    def _declared(self, make: object) -> Any:
        """The type that `state=` tells by itself, UNSET when it does not."""
        if not callable(make) or not takes_one_argument(make):
            raise self._refused(f"must be a function of the input or a class, not {make!r}")
        if is_coroutine_function(make):
            raise self._refused(f"must be a sync function, but {make!r} is async")
        if isinstance(make, type):
            return make
        try:
            told = return_type(make)
        except UnresolvedAnnotation:
            return UNSET
        if typing.get_origin(told) in AWAITABLES:
            raise self._refused(f"must be a sync function, but {make!r} gives an awaitable")
        return UNSET if told is Any else told

    def _decoder_of(self, told: Any) -> payload.Decoder:
        try:
            return payload.decoder(told)
        except TypeError as error:
            raise self._refused(f"a state of type {told!r} cannot be stored: {error}") from error

    def _refused(self, reason: str) -> DefinitionError:
        return refusal(reason, workflow=self._workflow, option="state")
