"""How long settled runs are kept: what may be said, and for which statuses it speaks."""

from datetime import timedelta

import pytest

from streamline_trio import Retention, ValidationError
from streamline_trio._core.retention import COVERED
from streamline_trio._core.status import SETTLED


def test_every_status_a_run_can_rest_in_is_covered_once():
    """S415: proves that retention speaks for exactly the settled statuses, so that none stays for ever."""
    covered = [status for statuses in COVERED.values() for status in statuses]
    assert sorted(covered) == sorted(SETTLED)


def test_ages_are_milliseconds_by_status():
    """S414: proves that durations may be seconds or a timedelta, and `failed` speaks for what was undone."""
    assert Retention(done=timedelta(days=30)).ages() == {"done": 2_592_000_000}
    assert Retention(failed=1.5, cancelled=2).ages() == {
        "failed": 1500,
        "compensation_failed": 1500,
        "compensated": 1500,
        "cancelled": 2000,
    }


def test_nothing_said_keeps_everything():
    """S417: proves that without durations nothing ever expires."""
    assert Retention().ages() == {}


@pytest.mark.parametrize("kept", [0, -1, timedelta(0), float("nan"), float("inf"), "30 days", True])
def test_what_is_no_time_to_keep_is_refused(kept):
    """S417: proves that 0 is not taken for "off" nor for "at once": it is refused, and None is what keeps runs."""
    with pytest.raises(ValidationError, match="retention of done runs"):
        Retention(done=kept)
