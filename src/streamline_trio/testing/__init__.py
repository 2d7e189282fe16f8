"""For tests of programs that use the engine, and of stores written elsewhere."""

from streamline_trio.testing._crash import crash
from streamline_trio.testing._faulty_store import FaultyStore
from streamline_trio.testing._time import run
from streamline_trio.testing._wrapped_store import WrappedStore
from streamline_trio.testing.conformance import conformance_tests

__all__ = ["FaultyStore", "WrappedStore", "conformance_tests", "crash", "run"]
