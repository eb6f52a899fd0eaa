"""What people see while `fedhelp run` works: the live table, and what it knows of a run from the store and the logs."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from fedhelp_cli.live_table import LiveTable, RunNow, SiloNow, sparkline
from fedhelp_cli.run_progress import LogLines, Pace, newest_event
from fedhelp_core.report.text import duration
from tests.tiny import SILOS, TinyFederation


def _drawn(now: RunNow, *, width: int, height: int = 40) -> list[str]:
    screen = io.StringIO()
    Console(width=width, height=height, force_terminal=True, color_system=None, file=screen).print(LiveTable(lambda: now))
    return screen.getvalue().splitlines()


def _now(*silos: SiloNow) -> RunNow:
    return RunNow(phase="federation: rounds", done=3, rounds=20, seconds=83, silos=silos, score="balanced accuracy", seconds_left=200)


HOSPITALS = (
    SiloNow(name="aachen", state="trains", said="40%", losses=(1.2, 0.9, 0.7)), SiloNow(name="brno", state="sent", losses=(1.0, 0.8)),
    SiloNow(name="coimbra", state="waits", said="0/3 nodes are available: 3 Insufficient nvidia.com/gpu"),
    SiloNow(name="debrecen", state="absent", said="no answer within 300 s"))


def test_the_table_says_who_trains_waits_has_sent_and_is_absent_and_how_long_the_rest_will_take() -> None:
    text = "\n".join(_drawn(_now(*HOSPITALS), width=100))
    for silo in HOSPITALS:
        assert re.search(rf"{silo.name} +.*{silo.state}", text), silo.name
    assert "3/20, 1 min 23 s, about 3 min 20 s left" in text
    assert "0.700" in text
    assert "0/3 nodes are available" in text


@pytest.mark.parametrize("width", [20, 30, 46, 66, 84, 200])
def test_no_line_is_wider_than_the_terminal_and_the_state_is_always_there(width: int) -> None:
    lines = _drawn(_now(*HOSPITALS), width=width)
    assert max(map(len, lines)) <= width
    assert all(any(silo.state in line for line in lines) for silo in HOSPITALS)


def test_where_not_all_silos_fit_those_in_trouble_are_shown_and_the_others_are_counted() -> None:
    many = [SiloNow(name=f"silo-{number}", state="sent") for number in range(100)]
    many[70] = SiloNow(name="silo-70", state="absent", said="no answer")
    lines = _drawn(_now(*many), width=100, height=12)
    assert len(lines) < 12
    assert any("silo-70" in line and "absent" in line for line in lines)
    assert lines[-1].startswith("and 95 more: 95 sent")


def test_what_a_silo_says_moves_no_cursor_and_is_no_markup() -> None:
    [line] = [line for line in _drawn(_now(SiloNow(name="aachen", state="absent", said="\x1b[2J[red]gone")), width=100) if "aachen" in line]
    assert "\x1b[2J" not in line
    assert "[red]gone" in line


def test_a_line_of_losses_is_lowest_where_the_loss_is() -> None:
    assert sparkline([1.0, 0.5, 0.0]) == "█▅▁"
    assert sparkline([1.0, 0.5, 0.0], ascii_only=True) == "#=_"
    assert sparkline([0.3, 0.3]) == "▁▁"
    assert sparkline([float(100 - at) for at in range(100)])[::11] == "█▁"  # of a long run every part is there
    assert sparkline([float("nan")]) == ""


def test_times_are_as_exact_as_anybody_wants() -> None:
    assert [duration(seconds) for seconds in (0.4, 59, 60, 200, 3599, 3600, 7500)] == [
        "0 s", "59 s", "1 min", "3 min 20 s", "59 min", "1 h", "2 h 5 min"]


def test_the_time_left_comes_from_the_rounds_that_were_seen_to_close() -> None:
    pace = Pace(10)
    assert pace.seconds_left(0) is None
    pace.seen(2, 100.0)  # resumed: the first two were closed long ago
    assert pace.seconds_left(105.0) is None
    pace.seen(3, 110.0)
    assert pace.seconds_left(112.0) == pytest.approx(7 * 10 - 2)


def test_in_the_first_round_the_slowest_silos_steps_say_how_long_it_takes() -> None:
    pace = Pace(4)
    pace.seen(0, 0.0)
    pace.share(0.25)
    assert pace.seconds_left(5.0) == pytest.approx(4 * 20 - 5)


def test_what_the_hub_says_of_a_silo_is_heard_until_its_round_is_over_and_a_wait_until_it_ends(tmp_path: Path) -> None:
    log = tmp_path / "pipeline.log"
    log.write_text("silo aachen: of an earlier run\n")
    lines = LogLines(log, ("aachen", "brno"))
    with log.open("a") as file:
        file.write("silo aachen: waiting: no GPU is free\nsilo brno: killed; restart 1 of 2 in 0.5 s\nround 1 of 2: 2 silos\nsilo bonn: x\nsilo brn")
    lines.read()
    assert lines.of("aachen") == (True, "no GPU is free")
    assert lines.of("brno") == (False, "killed; restart 1 of 2 in 0.5 s")
    lines.forget()
    assert lines.of("brno") == (False, "")
    with log.open("a") as file:
        file.write("o: left out of round 2: killed\nsilo aachen: waits no longer (2026-01-01T00:00:00Z)\n")
    lines.read()
    assert lines.of("brno") == (False, "left out of round 2: killed")
    assert lines.of("aachen") == (False, "")


def test_a_workers_newest_event_is_its_logs_last_whole_line_of_json(tmp_path: Path) -> None:
    log = tmp_path / "aachen.log"
    assert newest_event(log) == {}
    log.write_text('{"event": "round_started", "round": 1}\n{"event": "progress", "round": 1, "step": 2, "steps": 4}\nno JSON\n{"event": "pro')
    assert newest_event(log)["step"] == 2


@pytest.mark.slow
@pytest.mark.long
def test_on_a_terminal_a_run_shows_every_silo_and_leaves_the_cursor_and_the_terminal_as_they_were(make_tiny: Callable[..., TinyFederation]) -> None:
    tiny = make_tiny(algorithm__method="fedavg")
    code, screen = _on_a_terminal([Path(sys.executable).with_name("fedhelp"), "run", tiny.path], width=100, height=30)
    assert code == 0, screen
    for silo in SILOS:
        assert re.search(rf"{silo} .*scored", screen), screen[-3000:]
    assert "2/2, " in screen
    assert screen.rindex("\x1b[?25h") > screen.rindex("\x1b[?25l")  # the cursor is shown again
    assert f"\x1b]8;;file://{tiny.store}/runs/" in re.sub(r"id=\d+", "", screen)  # the report's path is a link


@pytest.mark.slow
@pytest.mark.long
def test_ctrl_c_on_a_terminal_is_one_sentence_below_the_table_and_the_cursor_is_back(make_tiny: Callable[..., TinyFederation]) -> None:
    tiny = make_tiny(algorithm__method="fedavg", algorithm__rounds=10_000)
    code, screen = _on_a_terminal(
        [Path(sys.executable).with_name("fedhelp"), "run", tiny.path], width=40, height=12, stop_at=re.compile(r"[2-9]/10000, "))
    assert code == 130, screen[-3000:]
    end = screen[screen.rindex("\x1b[?25h"):]
    assert "fedhelp run: stopped; the same command goes on where it was" in end
    assert "Traceback" not in screen


def _on_a_terminal(command: list[str | Path], *, width: int, height: int, stop_at: re.Pattern[str] | None = None) -> tuple[int, str]:
    """Exit code of `command`, and all that it wrote to a terminal of that size; Ctrl-C is typed where `stop_at` is seen."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [str(part) for part in command], stdin=theirs, stdout=theirs, stderr=theirs, env={**environment, "TERM": "xterm-256color"}, close_fds=True,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 65536):
            written += chunk
            if stop_at is not None and stop_at.search(re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", written.decode(errors="replace"))):
                stop_at = None
                os.write(ours, b"\x03")
    except OSError:  # how Linux says that nobody holds the other end any more
        pass
    finally:
        os.close(ours)
    return process.wait(60), written.decode(errors="replace")
