"""Whose runs a call may touch, and where a run that it names is stored.

A scope that is confined to a tenant stores and finds a run under an id that contains the tenant: another tenant's
run is to it like one that does not exist, by the same read. An unconfined one is an operator's: it may name any run
by the id that its tenant knows, and is told so if that is not enough.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar

import msgspec

from streamline_trio._core.errors import RunNotFound, TenantRequired, ValidationError
from streamline_trio._core.events import Event
from streamline_trio._core.tenancy import MARK, check_tenant, public_id, stored_id, tenant_of
from streamline_trio._runtime.services import Services

T = TypeVar("T")

Tenancy = Literal["optional", "required"]
TENANCIES: tuple[Tenancy, ...] = ("optional", "required")


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """What a call may touch: everything, or if `confined` the runs of `tenant` (None: those without a tenant).

    `required`: nothing may be done in the scope of everything.
    """

    confined: bool = False
    tenant: str | None = None
    required: bool = False

    def within(self, tenant: str | None) -> Scope:
        """The part of this scope that is the tenant's, if one is named. A scope cannot be widened."""
        if tenant is None:
            return self
        check_tenant(tenant)
        if self.confined and tenant != self.tenant:
            raise ValidationError(f"this scope is confined to tenant {self.tenant!r}, not {tenant!r}")
        return scope_of(tenant)

    def demanded(self, tenant: str | None = None) -> Scope:
        """As `within`; `TenantRequired` if that leaves everything and the engine was opened to demand a tenant."""
        scope = self.within(tenant)
        if scope.required and not scope.confined:
            raise TenantRequired("this engine demands a tenant: pass tenant=, or use engine.scoped(tenant)")
        return scope

    def includes(self, event: Event) -> bool:
        """Whether who listens in this scope may hear of it."""
        return not self.confined or event.tenant == self.tenant


EVERYTHING = Scope()


def scope_of(tenant: str | None) -> Scope:
    """The scope of one tenant, or of the runs without one."""
    return Scope(confined=True, tenant=tenant)


def no_run(stored: str) -> RunNotFound:
    """What every call says of a run that does not exist in its scope."""
    run_id = public_id(stored)
    return RunNotFound(f"there is no run {run_id}", run_id=run_id)


class Place:
    """Where a run is stored that is named in a scope, as far as that is known."""

    __slots__ = ("_key", "_services", "run_id", "scope")

    def __init__(self, services: Services, run_id: str, scope: Scope) -> None:
        self._services = services
        self.run_id = run_id
        self.scope = scope
        self._key: str | None = stored_id(scope.tenant, run_id) if scope.confined else None

    @property
    def tenant(self) -> str | None:
        """Whose run it is, as far as that is known."""
        return self.scope.tenant if self._key is None else tenant_of(self._key)

    async def do(self, act: Callable[[str], Awaitable[T]]) -> T:
        """Let `act` work on the stored id. `TenantRequired`, and `RunNotFound` as `act` raises it.

        In the scope of everything the run without a tenant comes first, which costs nothing to ask; only if there
        is none, others of its name are looked for.
        """
        self.scope.demanded()
        if self._key is None:
            try:
                return await act(self.run_id)
            except RunNotFound:
                self._key = await self._namesake()
                if self._key is None:
                    raise
        elif self.scope.tenant is None and MARK in self._key and self.scope.confined:
            raise no_run(self._key)
        return await act(self._key)

    async def find(self) -> str:
        """The stored id; the public one if there is no such run."""
        self.scope.demanded()
        if self._key is not None:
            return self._key
        store = self._services.store
        namesake = await self._namesake()
        if namesake is None or await self._services.read(lambda: store.load(self.run_id)) is not None:
            return self.run_id
        return namesake

    async def _namesake(self) -> str | None:
        """The one tenant's run of this name, if there is one; `ValidationError` if there are several."""
        store = self._services.store
        found = await self._services.read(lambda: store.namesakes(self.run_id, 2))
        if len(found) > 1:
            raise ValidationError(
                f"several tenants have a run {self.run_id}: name one, as by engine.scoped(tenant)",
                run_id=self.run_id,
            )
        return found[0] if found else None
