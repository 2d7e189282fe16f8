"""What users may write type-checks, and what they may not write does not, in mypy and in pyright."""

import dataclasses
import io
import json
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ACCEPT = HERE / "accept.py"
REJECT = HERE / "reject.py"

MARK = re.compile(r"# error: (?P<text>.+)$")
MYPY_LINE = re.compile(r"^(?P<path>[^:]+\.py):(?P<line>\d+): error: (?P<text>.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Complaint:
    """An error that a checker has told."""

    file: str
    line: int
    text: str


Checker = Callable[[list[Path]], list[Complaint]]


def report_of(*command: str | Path) -> str:
    """What a checker printed. Both exit with 1 when they found something, with more when they broke."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    return done.stdout


def mypy(files: list[Path]) -> list[Complaint]:
    # These are not tests with fixtures: the reliefs that pyproject.toml gives to tests are not theirs.
    report = report_of("mypy", "--config-file", HERE / "mypy.ini", *files)
    return [Complaint(Path(m["path"]).name, int(m["line"]), m["text"]) for m in MYPY_LINE.finditer(report)]


def pyright(files: list[Path]) -> list[Complaint]:
    config = HERE / "pyrightconfig.json"
    report = json.loads(report_of("pyright", "--outputjson", "--pythonpath", sys.executable, "-p", config))
    assert report["summary"]["filesAnalyzed"] == len(files)
    return [
        Complaint(Path(d["file"]).name, d["range"]["start"]["line"] + 1, d["message"])
        for d in report["generalDiagnostics"]
        if d["severity"] == "error"
    ]


def demanded(source: str, checker: str) -> dict[int, str]:
    """The marked lines, with the text that this checker's complaint must contain."""
    found: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and (mark := MARK.match(token.string)):
            of_mypy, _, of_pyright = mark["text"].partition(" // ")
            found[token.start[0]] = of_pyright if of_pyright and checker == "pyright" else of_mypy
    return found


def differences(demands: dict[int, str], complaints: list[Complaint]) -> list[str]:
    """How what a checker told differs from what the marks demand."""
    wrong = [
        f"line {number}: no error with {text!r}"
        for number, text in demands.items()
        if not any(text in told.text for told in complaints if told.line == number)
    ]
    wrong += [f"line {told.line}: unmarked: {told.text}" for told in complaints if told.line not in demands]
    return wrong


@pytest.mark.deadline(240)
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_the_type_checker_accepts_and_rejects(checker: Checker):
    """Proves that it finds nothing in accept.py, and in reject.py exactly the errors that are marked."""
    complaints = checker([ACCEPT, REJECT])
    assert [told for told in complaints if told.file == ACCEPT.name] == []
    demands = demanded(REJECT.read_text(), checker.__name__)
    assert demands
    assert differences(demands, [told for told in complaints if told.file == REJECT.name]) == []


@pytest.mark.parametrize(
    ("complaints", "wrong"),
    [
        pytest.param([Complaint("r.py", 2, "this is bad")], [], id="as marked"),
        pytest.param([], ["line 2: no error with 'bad'"], id="a marked line passes"),
        pytest.param(
            [Complaint("r.py", 2, "other")], ["line 2: no error with 'bad'"], id="it fails with another error"
        ),
        pytest.param(
            [Complaint("r.py", 2, "bad"), Complaint("r.py", 1, "too")],
            ["line 1: unmarked: too"],
            id="an unmarked line fails",
        ),
    ],
)
def test_every_difference_is_found(complaints, wrong):
    """Proves that a marked line that passes, fails otherwise, or an unmarked one that fails is told."""
    assert differences(demanded("x = 1\ny = x.z  # error: bad\n", "mypy"), complaints) == wrong


def test_a_mark_may_name_the_checkers_apart():
    """Proves that each checker is held to its own text where a mark gives two."""
    line = "f(1)  # error: of mypy // of pyright"
    assert demanded(line, "mypy") == {1: "of mypy"}
    assert demanded(line, "pyright") == {1: "of pyright"}
