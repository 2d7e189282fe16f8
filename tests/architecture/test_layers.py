"""The layers of the source tree, and what only one place may do.

    _core  <  stores  <  _runtime  <  public  <  surfaces  <  testing

Imports point to the same or a lower layer. Surfaces see only what is public.
"""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import streamline_trio
from tests.architecture import source_tree
from tests.architecture.source_tree import Package

ROOT = Path(__file__).parents[2] / "src" / "streamline_trio"

Rule = Callable[[Package], Iterator[str]]

RULES: dict[Rule, dict[str, tuple[str, str]]] = {
    source_tree.homeless: {
        "an underscored module that no layer owns": ("_helpers.py", "x = 1"),
    },
    source_tree.upward_imports: {
        "_core imports stores": ("_core/a.py", "from streamline_trio.stores.memory import MemoryStore"),
        "_core imports the public package": ("_core/a.py", "from streamline_trio import Workflow"),
        "stores import _runtime": ("stores/memory.py", "import streamline_trio._runtime.driver"),
        "_runtime imports public, relatively": ("_runtime/a.py", "from ..errors import RunNotFound"),
        "inside a function": ("_core/a.py", "def f():\n    from streamline_trio._runtime import driver"),
        "for types only": (
            "stores/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from streamline_trio import Engine",
        ),
        "a package's own __init__": ("stores/__init__.py", "from .._runtime import driver"),
        "public imports a surface": ("errors.py", "from streamline_trio.cli import main"),
        "public imports testing": ("__init__.py", "from streamline_trio.testing import run"),
        "a surface imports a private layer": ("cli.py", "from streamline_trio._core import ids"),
        "a surface imports a store": ("http/app.py", "from streamline_trio.stores import sqlite"),
        "a surface imports testing": ("demo.py", "from streamline_trio import testing"),
    },
    source_tree.mongo_elsewhere: {
        "pymongo in the runtime": ("_runtime/a.py", "import pymongo.errors"),
        "bson in another store": ("stores/sqlite.py", "from bson import ObjectId"),
    },
    source_tree.sqlite_elsewhere: {
        "sqlite3 in the command line": ("cli.py", "import sqlite3"),
        "sqlite3 in another store": ("stores/memory.py", "from sqlite3 import connect"),
    },
    source_tree.threads_elsewhere: {
        "a thread in the driver": ("_runtime/driver.py", "import trio\ntrio.to_thread.run_sync(print)"),
        "imported by name": ("bridge.py", "from trio import to_thread"),
        "of a submodule": ("_runtime/a.py", "from trio.to_thread import run_sync"),
    },
    source_tree.nondeterminism_elsewhere: {
        "datetime.now": ("_core/a.py", "from datetime import datetime\nx = datetime.now()"),
        "datetime.now by module": ("_core/a.py", "import datetime as dt\nx = dt.datetime.now(dt.UTC)"),
        "utcnow": ("cli.py", "import datetime\nx = datetime.datetime.utcnow()"),
        "time.time passed on": ("_runtime/a.py", "import time\ndef f(clock=time.time): ..."),
        "time.time by name": ("stores/a.py", "from time import time"),
        "uuid4": ("_runtime/a.py", "import uuid\nx = uuid.uuid4().hex"),
        "random": ("testing/world.py", "import random"),
        "random, from it": ("_core/retry.py", "from random import uniform"),
        "Instant.now": ("_core/a.py", "from whenever import Instant\nx = Instant.now()"),
    },
    source_tree.impure_core: {
        "trio": ("_core/a.py", "import trio"),
        "trio, from it": ("_core/a.py", "from trio.lowlevel import checkpoint"),
        "an async function": ("_core/a.py", "async def f(): ..."),
        "an async method of a class that is no protocol": (
            "_core/a.py",
            "class A:\n    async def f(self): ...",
        ),
        "an await in a protocol": (
            "_core/a.py",
            "from typing import Protocol\nclass A(Protocol):\n    async def f(self):\n        await self.g()",
        ),
    },
    source_tree.too_long: {
        "a module of 501 lines": ("_runtime/driver.py", "x = 1\n" * 501),
    },
}

SOUND = {
    "__init__.py": "from streamline_trio._runtime.driver import drive\nfrom .errors import Bad",
    "errors.py": "from streamline_trio._core.errors import Bad",
    "cli.py": "import streamline_trio\nfrom streamline_trio import drive\nfrom .errors import Bad",
    "http/__init__.py": "from streamline_trio.http.app import create_app",
    "http/app.py": "from streamline_trio import drive",
    "_core/__init__.py": "",
    "_core/errors.py": "from datetime import datetime\ndef now(x: datetime): return x.time()",
    "_core/store.py": "from typing import Protocol\nclass Store(Protocol[T]):\n    async def load(self): ...",
    "stores/__init__.py": "",
    "stores/memory.py": "from .._core.store import Store",
    "stores/sqlite.py": "import sqlite3, trio\nfrom .._core import errors\nx = trio.to_thread.run_sync",
    "stores/mongo/codec.py": "import bson, pymongo",
    "_runtime/__init__.py": "",
    "_runtime/clock.py": "import random, time, uuid\nx = time.time, uuid.uuid4",
    "_runtime/driver.py": "import trio\nfrom . import clock\nfrom .. import stores\n" + "y = 2\n" * 497,
    "_runtime/threads.py": "from trio import to_thread",
    "testing/__init__.py": "from .._runtime import driver\nfrom streamline_trio.cli import main",
}


def plant(root: Path, files: dict[str, str]) -> Package:
    for name, text in files.items():
        path = root / "streamline_trio" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Package(root / "streamline_trio")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_source_tree_keeps_the_rule(rule):
    """Proves that no module of the package breaks this rule."""
    package = Package(ROOT)
    assert "_core" in package.modules
    assert list(rule(package)) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_lets_a_sound_tree_pass(rule, tmp_path):
    """Proves that the rule does not forbid what is allowed."""
    assert list(rule(plant(tmp_path, SOUND))) == []


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        pytest.param(rule, *planted, id=f"{rule.__name__}: {what}")
        for rule, violations in RULES.items()
        for what, planted in violations.items()
    ],
)
def test_the_rule_finds_a_planted_violation(rule, name, text, tmp_path):
    """Proves that the rule finds this violation, and only it, in a tree that is sound otherwise."""
    package = plant(tmp_path, {**SOUND, name: text})
    assert len({violation.partition(" ")[0] for violation in rule(package)}) == 1


def test_exported_names_exist_and_are_sorted():
    """Proves that `__all__` is one sorted list without repeats of names that are there."""
    if streamline_trio.__file__ is not None:
        assert "__all__" in vars(streamline_trio)
    names = list(vars(streamline_trio).get("__all__", ()))
    assert names == sorted(set(names))
    assert [name for name in names if not hasattr(streamline_trio, name)] == []


def test_public_objects_name_the_public_module():
    """Proves that tracebacks and documentation show `streamline_trio.X`, never a private module."""
    exported = {name: getattr(streamline_trio, name) for name in vars(streamline_trio).get("__all__", ())}
    elsewhere = {
        name: thing.__module__
        for name, thing in exported.items()
        if (inspect.isclass(thing) or inspect.isfunction(thing)) and thing.__module__ != "streamline_trio"
    }
    assert elsewhere == {}
