import time

from modelkeep.core import clock


def test_a_file_clock_shows_what_was_written(tmp_path, monkeypatch):
    path = tmp_path / "clock"
    monkeypatch.setenv("MODELKEEP_CLOCK", f"file:{path}")
    shown = clock.from_environment()
    assert abs(shown.now() - time.time()) < 5  # no file yet: the machine's own
    clock.FileClock(path).set(1357000000.25)
    assert shown.now() == 1357000000.25


def test_a_torn_file_is_not_believed(tmp_path):
    path = tmp_path / "clock"
    path.write_bytes(b"abc")
    assert abs(clock.FileClock(path).now() - time.time()) < 5
