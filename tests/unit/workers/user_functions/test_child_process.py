"""A reward function in a process of its own, which may hang, end, and hold Python's lock."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from workers.data.rows.asked import Asked
from workers.errors import ConfigError
from workers.user_functions.answers import Reply
from workers.user_functions.calls import Caller, Patience
from workers.user_functions.messages import unpack
from workers.user_functions.reward_function import Exchange, start_reward

LATE = "reward function did not answer in time"
SOURCE = """
import os, re, signal, time
calls = 0
def score(prompts, responses):
    global calls
    calls += 1
    for prompt in prompts:
        if prompt == "regex":
            re.match("(a+)+$", "a" * 40 + "b")
        elif prompt == "exit":
            os._exit(3)
        elif prompt == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif prompt == "sleep":
            time.sleep(1000)
        elif prompt == "close":
            os.closerange(3, 100)
        elif prompt == "again":
            open(__file__, "w").write("raise OSError('gone')")
            os._exit(3)
    return [float(response) for response in responses]
def count(prompts, responses):
    global calls
    calls += 1
    print("call", calls)
    return [calls] * len(responses)
def family(prompts, responses):
    return [os.getpid(), os.fork() or time.sleep(1000)]
def numbers(prompts, responses):
    return [0.1, 5e-324, -0.0, 1 / 3, 16777217.0, 3.4028234663852886e38]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own_rewards.py").write_text(SOURCE)
    return tmp_path


def exchanges(*prompts: str) -> list[Exchange]:
    return [
        Exchange(Asked(n, prompt, prompt), repr(0.1 * (n + 1)), finished=True)
        for n, prompt in enumerate(prompts)
    ]


def start(folder: Path, function: str = "score") -> Caller:
    return start_reward(f"own_rewards:{function}", str(folder))


def values(replies: list[Reply]) -> list[float]:
    return [reply.value for reply in replies]


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("regex", LATE),
        ("sleep", LATE),
        ("exit", "reward function ended its process: exit code 3"),
        ("crash", "reward function ended its process: SIGSEGV"),
    ],
)
def test_what_cannot_be_interrupted_is_ended_and_fails_alone(
    folder: Path, deed: str, reason: str
) -> None:
    asked = exchanges("well", deed, "well")
    found = start(folder).ask(asked, Patience(0.6))
    assert np.array_equal(values(found), [0.1, math.nan, 0.1 * 3], equal_nan=True)
    assert [reply.reason for reply in found] == ["", reason, ""]


def test_a_function_that_always_ends_its_process_is_not_started_for_each_response(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "own_rewards.py").write_text(
        "import os\nopen('started', 'a').write('s')\n"
        "def score(prompts, responses):\n    os._exit(0)\n"
    )
    monkeypatch.chdir(folder)
    found = start(folder).ask(exchanges(*["a"] * 50), Patience())
    assert {reply.reason for reply in found} == {"reward function ended its process: exit code 0"}
    assert Path("started").read_text() == "sss"


def test_its_state_stays_from_call_to_call_and_what_it_prints_is_told(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    counting = start(folder, "count")
    assert values(counting.ask(exchanges("a", "b"), Patience(60.0))) == [1.0, 1.0]
    assert values(counting.ask(exchanges("a"), Patience())) == [2.0]
    assert capfd.readouterr().out == "call 1\ncall 2\n"


def test_numbers_and_texts_arrive_as_they_were(folder: Path) -> None:
    found = values(start(folder, "numbers").ask(exchanges(*"abcdef"), Patience()))
    assert [number.hex() for number in found] == [
        number.hex() for number in (0.1, 5e-324, -0.0, 1 / 3, 16777217.0, 3.4028234663852886e38)
    ]
    (folder / "own_rewards.py").write_text(
        "def score(prompts, responses): return [len(p) + 10 * (p == chr(0xd800)) for p in prompts]"
    )
    asked = exchanges("\ud800", "\0\n\u2028", "\U0001f600" * 10**6)
    assert values(start(folder).ask(asked, Patience(60.0))) == [11.0, 3.0, 1e6]


def test_a_connection_that_it_closes_is_a_process_that_ended(folder: Path) -> None:
    found = start(folder).ask(exchanges("well", "close"), Patience())
    assert found[0] == Reply(0.1)
    assert found[1].reason.startswith("reward function ended its process: ")


def test_a_module_that_can_no_longer_be_imported_is_told_with_its_words(folder: Path) -> None:
    (reply,) = start(folder).ask(exchanges("again"), Patience(60.0, retries=1))
    assert reply.reason == "reward function could not be imported again"
    assert "OSError at" in reply.words
    assert "gone" in reply.words


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import os; os._exit(5)", "ended its process: exit code 5"),
        ("import os; os.kill(os.getpid(), 9)", "ended its process: SIGKILL"),
        ("raise OSError('no GPU')", "OSError at .*own_rewards.py:1: no GPU"),
        ("score = 3", "is not callable"),
    ],
)
def test_an_import_that_fails_is_an_error_of_the_configuration(
    folder: Path, source: str, says: str
) -> None:
    (folder / "own_rewards.py").write_text(source)
    with pytest.raises(ConfigError, match=says) as caught:
        start(folder)
    assert caught.value.where == "reward.function"


def test_what_it_started_ends_with_it_when_nobody_can_call_it_any_more(folder: Path) -> None:
    caller = start(folder, "family")
    own, forked = (psutil.Process(int(n)) for n in values(caller.ask(exchanges(*"ab"), Patience())))
    assert own.is_running()
    del caller
    assert gone([own, forked])


def test_it_ends_with_its_worker_though_it_holds_the_lock_of_python(folder: Path) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    child = psutil.Process(int(worker.stdout.readline()))
    while child.cpu_times().user < 0.01 or not (folder / "searching").exists():
        assert worker.poll() is None
        time.sleep(0.01)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert gone([child])


WORKER = """
import sys
from pathlib import Path
from workers.data.rows.asked import Asked
from workers.user_functions.reward_function import Exchange, start_reward
from workers.user_functions.calls import Patience
folder = Path(sys.argv[1])
(folder / "holds_lock.py").write_text(
    "import os, re\\n"
    "def pid(responses): return [os.getpid()]\\n"
    "def score(responses):\\n"
    "    open('" + str(folder / "searching") + "', 'w').close()\\n"
    "    re.match('(a+)+$', 'a' * 60 + 'b')\\n"
    "def one(responses): return pid(responses) if responses[0] == 'pid' else score(responses)\\n"
)
caller = start_reward("holds_lock:one", str(folder))
for response in ("pid", "search"):
    (reply,) = caller.ask([Exchange(Asked(0, "", ""), response, True)], Patience())
    print(int(reply.value), flush=True)
"""


def gone(processes: list[psutil.Process]) -> bool:
    """Whether they end, or have ended and nobody has fetched their exit code."""
    left, _ = [], psutil.wait_procs(processes, timeout=10)
    for process in processes:
        try:
            left += [process] if process.status() != psutil.STATUS_ZOMBIE else []
        except psutil.NoSuchProcess:
            continue
    return not left


@pytest.mark.parametrize(
    "message",
    [
        None, 3, [], {}, {"each": None}, {"each": []}, {"each": [[1.0, "", ""]]},
        {"each": [[1, "", ""]] * 2}, {"each": [["1", "", ""]] * 2}, {"each": [[1.0, "", 2]] * 2},
        {"each": [[math.nan, "", ""]] * 2}, {"each": [[1.0, "why", ""]] * 2},
        {"all": [1.0, "", ""]}, {"all": [math.nan, ""]}, {"all": [math.inf, "", ""]},
    ],
    ids=repr,
)  # fmt: skip
def test_an_answer_of_another_form_is_not_believed(message: object) -> None:
    assert unpack(message, 2) is None
    assert unpack({"each": [[1.0, "", ""], [math.nan, "why", "w"]]}, 2) is not None
