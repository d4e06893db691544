"""Counts in sentences."""

from ksmwalk.gate import counted


def test_one_is_not_several_and_thousands_stand_apart():
    assert counted(1, "page") == "1 page" and counted(20_551, "page") == "20,551 pages" and counted(0, "process") == "0 processes"
    assert counted(1, "page", "was lost", "were lost") == "1 page was lost"
    assert counted(2, "page", "was lost", "were lost") == "2 pages were lost"
    assert counted(2, "page", "went") == "2 pages went"
