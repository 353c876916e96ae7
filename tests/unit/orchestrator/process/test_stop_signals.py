"""A signal ends the process in time, also while its main thread is inside native code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orchestrator.process import stop_signals
from orchestrator.process.forced_exit import LastResort
from orchestrator.process.stop_signals import StopRequest, stop_on_signals

# A mutex that is locked twice is waited for ever, and no signal interrupts that.
STUCK = """
import ctypes, sys
from orchestrator.process import stop_signals
stop_signals._NOTICE_SECONDS = 0.2
with stop_signals.stop_on_signals() as stop:
    stop.grace_seconds = 0.2
    stop.resort.steps.append(lambda: print("written", flush=True))
    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
    lock(mutex)
    print("stuck", flush=True)
    lock(mutex)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_main_thread_that_never_returns_does_not_keep_the_process(
    number: signal.Signals,
) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=pipe, stderr=pipe, text=True) as p:
        assert p.stdout is not None
        assert p.stdout.readline() == "stuck\n"
        p.send_signal(number)
        out, errors = p.communicate(timeout=30)
    assert p.returncode == 128 + number
    assert out == "written\n"
    assert errors == f"stopped by {number.name}; the main thread did not answer\n"


class Resort(LastResort):
    """Notes the exit code in place of ending the process."""

    def __init__(self) -> None:
        super().__init__()
        self.codes: list[int] = []

    def end(self, code: int, last: object) -> None:  # type: ignore[override]
        del last
        self.codes.append(code)


@pytest.mark.parametrize(
    ("closed", "ends", "codes"),
    [
        (False, True, []),  # it saved itself within its grace
        (False, False, [143]),
        (True, True, []),  # it was saved, and tears down
        (True, False, [143]),  # the teardown hangs
    ],
)
def test_who_ends_by_itself_is_not_ended(
    monkeypatch: pytest.MonkeyPatch, closed: bool, ends: bool, codes: list[int]
) -> None:
    monkeypatch.setattr(stop_signals, "_NOTICE_SECONDS", 0.01)
    monkeypatch.setattr(stop_signals, "_TEARDOWN_SECONDS", 0.01)
    stop, over = StopRequest(), threading.Event()
    stop.resort = resort = Resort()
    if closed:
        stop.close()
    if ends:
        over.set()
    stop.escort(signal.SIGTERM, over)
    assert resort.codes == codes


def test_a_signal_to_a_forked_child_is_none_to_its_parent() -> None:
    with stop_on_signals() as stop:
        stop.resort = resort = Resort()
        heard: list[int] = []
        stop.escort = lambda number, over: heard.append(number)  # type: ignore[method-assign]
        stop.grace_seconds = 60.0  # the child's own handler then only notes the signal
        child = os.fork()
        if not child:
            try:
                os.kill(os.getpid(), signal.SIGUSR1)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    assert heard == []
    assert resort.codes == []


def test_the_main_thread_tells_nothing_where_another_one_ends_the_process() -> None:
    code = """
import threading, time
from orchestrator.process.forced_exit import LastResort
resort = LastResort()
begun = threading.Event()
def last():
    begun.set()
    time.sleep(0.5)
    print("told by the thread", flush=True)
threading.Thread(target=lambda: resort.end(7, last), daemon=True).start()
begun.wait()
resort.stand_aside()
print("told by the main thread", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "told by the thread\n")
    alone = LastResort()
    alone.stand_aside()  # at once


def test_a_thread_that_comes_second_ends_the_process_if_the_first_does_not() -> None:
    code = """
import threading
from orchestrator.process import forced_exit
forced_exit._STEP_SECONDS = 0.1
resort = forced_exit.LastResort()
resort.stand_aside()
second = threading.Thread(target=lambda: resort.end(7, lambda: print("second")), daemon=True)
second.start()
second.join()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (7, "")


# A command, once Python itself has started: until then SIGINT is Python's own matter.
COMMAND = """
import sys
sys.argv[0] = "-m"
import orchestrator
print("begins", flush=True)
"""


def test_an_interrupt_while_modules_are_imported_ends_the_command() -> None:
    imports = """
try:
    import os, signal
    os.kill(os.getpid(), signal.SIGINT)
except BaseException:
    print("dropped by a module that is being imported")
"""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's & ignores it
    try:
        done = subprocess.run(
            [sys.executable, "-c", COMMAND + imports], capture_output=True, text=True, check=False
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.returncode, done.stdout, done.stderr) == (130, "begins\n", "stopped\n")


def test_signals_after_the_end_leave_the_exit_code_alone() -> None:
    code = """
import atexit, os, signal
from orchestrator.process.stop_signals import STOP_SIGNALS, exit_process
@atexit.register
def late():
    for number in (signal.SIGINT, *STOP_SIGNALS):
        os.kill(os.getpid(), number)
    print("unwound")
exit_process(8)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (8, "unwound\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("gap", [0.0, 0.05, 0.5])
def test_interrupts_at_any_moment_end_a_command_with_130(tmp_path: Path, gap: float) -> None:
    run = """
import runpy
runpy.run_module("orchestrator.run", run_name="__main__", alter_sys=True)
"""
    plan = ["+experiment=pocket_tiny", "run.plan_only=true", f"run.dir={tmp_path / 'run'}"]
    pipe, codes = subprocess.PIPE, list[int]()
    for moment in range(20):
        with subprocess.Popen(
            [sys.executable, "-c", COMMAND + run, *plan], stdout=pipe, stderr=pipe, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begins\n"
            time.sleep(0.15 * moment)
            for wait in (gap, 0.0):
                process.send_signal(signal.SIGINT)
                time.sleep(wait)
            out, errors = process.communicate(timeout=60)
        codes.append(process.returncode)
        whole = "nothing in them stops this run" in out
        assert process.returncode == 130 or (process.returncode == 0 and whole), errors
        assert "Traceback" not in errors
    assert codes[0] == 130
