"""Golden documents on disk: the stored parts of a run, and beside them what they say, for readers and for tests."""

import base64
import json
from pathlib import Path
from typing import Any

import msgspec

from streamline_trio._core.codec import join
from streamline_trio._core.documents import RunDoc

HERE = Path(__file__).parent
RELEASES = sorted(path for path in HERE.iterdir() if path.is_dir() and path.name[0].isdigit())
DOCUMENTS = [path for release in RELEASES for path in sorted(release.glob("*.json"))]


def read_parts(path: Path) -> dict[str, bytes]:
    """The stored parts, byte for byte."""
    parts: dict[str, str] = json.loads(path.read_text())["parts"]
    return {name: base64.b64decode(body) for name, body in parts.items()}


def read_run(path: Path) -> RunDoc:
    return join(read_parts(path))


def read_expected(path: Path) -> Any:
    """What the document said when it was written."""
    return json.loads(path.read_text())["run"]


def write(path: Path, parts: dict[str, bytes], run: RunDoc) -> None:
    told = {
        "run": project(run),
        "parts": {name: base64.b64encode(body).decode() for name, body in sorted(parts.items())},
    }
    path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def project(run: RunDoc) -> dict[str, Any]:
    """The run in plain words: payloads decoded, defaults left out (so also what a later release adds)."""
    plain: dict[str, Any] = {}
    for name in run.__struct_fields__:
        value = getattr(run, name)
        if value or not isinstance(value, dict):
            plain[name] = _readable(name, msgspec.to_builtins(value, builtin_types=(bytes,)))
    return json.loads(json.dumps(plain))  # type: ignore[no-any-return]  # tuples as lists, as read from disk


def _readable(name: str, value: Any) -> Any:
    if isinstance(value, bytes):
        return msgspec.msgpack.decode(value)
    if isinstance(value, dict):
        return {key: _readable(key, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(name, item) for item in value]
    return value
