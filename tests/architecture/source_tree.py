"""The package as its source says: modules, what they import and call, and where that breaks a rule.

Every rule is a function of a `Package` that yields violations, one line of text each, so that the tests can
plant one in a temporary tree and see it found. Nothing is imported: imports inside functions and under
`TYPE_CHECKING` count too.
"""

import ast
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

SURFACES = frozenset({"__main__", "bridge", "cli", "dashboard", "demo", "http", "prometheus", "telemetry"})
"""Top-level modules around the engine: they use public names only."""

LAYERS = ("_core", "stores", "_runtime", "public", "surfaces", "testing")
"""Lowest first. A module imports from its own layer and lower ones."""

VISIBLE = {
    **{layer: frozenset(LAYERS[: rank + 1]) for rank, layer in enumerate(LAYERS)},
    "surfaces": frozenset({"public", "surfaces"}),
}

CLOCK = "_runtime.clock"
THREADS = "_runtime.threads"

NONDETERMINISTIC = frozenset(
    {
        "datetime.date.today",
        "datetime.datetime.now",
        "datetime.datetime.today",
        "datetime.datetime.utcnow",
        "os.urandom",
        "random",
        "secrets",
        "time.time",
        "time.time_ns",
        "uuid.uuid1",
        "uuid.uuid4",
        "whenever.Instant.now",
        "whenever.ZonedDateTime.now",
    }
)
"""What only the clock module may name; of a module, everything in it."""

LONGEST = 500


@dataclasses.dataclass(frozen=True)
class Module:
    """One source file; `name` is relative to the package (`_core.decide`), empty for the package itself."""

    name: str
    path: Path
    package: str

    @functools.cached_property
    def source(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, str(self.path))

    @property
    def layer(self) -> str | None:
        """None for a place that no layer owns."""
        first = self.name.partition(".")[0]
        if first in LAYERS:
            return first
        if first in SURFACES:
            return "surfaces"
        if first.startswith("_"):
            return None
        return "public"

    def at(self, node: ast.AST) -> str:
        return f"{self.name or '__init__'}:{getattr(node, 'lineno', 0)}"

    @functools.cached_property
    def imports(self) -> list[tuple[ast.stmt, str, str]]:
        """Every import as (statement, absolute dotted target, the local name that it binds)."""
        found: list[tuple[ast.stmt, str, str]] = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    local = alias.asname or alias.name.partition(".")[0]
                    found.append((node, alias.name, local))
            elif isinstance(node, ast.ImportFrom):
                origin = self._origin(node)
                found.extend((node, f"{origin}.{alias.name}", alias.asname or alias.name) for alias in node.names)
        return found

    def _origin(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        here = [self.package, *filter(None, self.name.split("."))]
        if self.path.name != "__init__.py":
            here.pop()
        up = here[: len(here) - (node.level - 1)]
        return ".".join([*up, *filter(None, [node.module])])

    @functools.cached_property
    def named(self) -> list[tuple[ast.AST, str]]:
        """Everything that it names from elsewhere, absolute and dotted: imported, called or passed on."""
        targets: dict[str, str] = {}
        for node, target, local in self.imports:
            whole = isinstance(node, ast.Import) and local == target.partition(".")[0]
            targets[local] = local if whole else target
        found: list[tuple[ast.AST, str]] = [(node, target) for node, target, _ in self.imports]
        for name in ast.walk(self.tree):
            dotted = _dotted(name)
            if dotted is not None:
                first, dot, rest = dotted.partition(".")
                if first in targets:
                    found.append((name, targets[first] + dot + rest))
        return found


@dataclasses.dataclass(frozen=True)
class Package:
    """All modules under a directory."""

    root: Path

    @functools.cached_property
    def modules(self) -> dict[str, Module]:
        found: dict[str, Module] = {}
        for path in sorted(self.root.rglob("*.py")):
            parts = path.relative_to(self.root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = Module(name, path, self.root.name)
        return found

    def resolve(self, target: str) -> Module | None:
        """The module of ours that a dotted target names, or that holds the name; None for other packages."""
        if target != self.root.name and not target.startswith(f"{self.root.name}."):
            return None
        name = target[len(self.root.name) + 1 :]
        while name and name not in self.modules:
            name = name.rpartition(".")[0]
        return self.modules.get(name) or Module("", self.root / "__init__.py", self.root.name)


def _dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return None if inner is None else f"{inner}.{node.attr}"
    return None


def _is(named: str, what: str) -> bool:
    return named == what or named.startswith(f"{what}.")


def homeless(package: Package) -> Iterator[str]:
    """Modules that no layer owns."""
    for module in package.modules.values():
        if module.layer is None:
            yield f"{module.name} belongs to no layer"


def upward_imports(package: Package) -> Iterator[str]:
    """Imports of a higher layer, and a surface's imports of what is not public."""
    for module in package.modules.values():
        for node, target, _ in module.imports:
            imported = package.resolve(target)
            if imported is None or module.layer is None or imported.layer is None:
                continue
            if imported.layer not in VISIBLE[module.layer]:
                yield f"{module.at(node)} ({module.layer}) imports {target} ({imported.layer})"


def _outside(package: Package, what: frozenset[str], allowed: tuple[str, ...]) -> Iterator[str]:
    for module in package.modules.values():
        if module.name.startswith(allowed):
            continue
        lines = {(module.at(node), bad) for node, named in module.named for bad in what if _is(named, bad)}
        yield from (f"{at} names {bad}" for at, bad in sorted(lines))


def mongo_elsewhere(package: Package) -> Iterator[str]:
    """The Mongo driver outside the Mongo store."""
    return _outside(package, frozenset({"pymongo", "bson", "gridfs"}), ("stores.mongo",))


def sqlite_elsewhere(package: Package) -> Iterator[str]:
    """The SQLite driver outside the SQLite store."""
    return _outside(package, frozenset({"sqlite3"}), ("stores.sqlite",))


def threads_elsewhere(package: Package) -> Iterator[str]:
    """Threads outside the stores and the module that runs sync handlers."""
    return _outside(package, frozenset({"trio.to_thread"}), ("stores.", THREADS))


def nondeterminism_elsewhere(package: Package) -> Iterator[str]:
    """Wall time, randomness and fresh ids outside the clock module."""
    return _outside(package, NONDETERMINISTIC, (CLOCK,))


def impure_core(package: Package) -> Iterator[str]:
    """Anything async in `_core`, except the methods that a Protocol declares there."""
    for module in package.modules.values():
        if module.layer != "_core":
            continue
        for statement, target, _ in module.imports:
            if any(_is(target, library) for library in ("trio", "anyio", "asyncio")):
                yield f"{module.at(statement)} imports {target}"
        declared = {
            method
            for node in ast.walk(module.tree)
            if isinstance(node, ast.ClassDef) and any(_base(base) == "Protocol" for base in node.bases)
            for method in node.body
        }
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith) or (
                isinstance(node, ast.AsyncFunctionDef) and node not in declared
            ):
                yield f"{module.at(node)} is async"


def _base(node: ast.expr) -> str | None:
    if isinstance(node, ast.Subscript):
        return _base(node.value)
    dotted = _dotted(node)
    return None if dotted is None else dotted.rpartition(".")[2]


def too_long(package: Package) -> Iterator[str]:
    """Modules that hold two ideas."""
    for module in package.modules.values():
        lines = len(module.source.splitlines())
        if lines > LONGEST:
            yield f"{module.name or '__init__'} has {lines} lines"
