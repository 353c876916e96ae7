"""Modules with reward functions: how they are named, imported and called, and what they answer."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fuzz.frame import Case
from workers.data.rows.asked import Asked
from workers.data.rows.examples import Message
from workers.user_functions.calls import Patience
from workers.user_functions.reward_function import Exchange, load_reward

_DROPPED = "each response has a finite number or is a recorded drop"
_PATHS = (
    *["{m}:f"] * 80, "{m}:C.f", *["{m}:c"] * 3,
    "{m}", "{m}:", ":f", "{m}.py:f", "./{m}.py", "{m}.f", "{m}:g", "{m}:f:f", "{m} :f", ".{m}:f",
    "{m}:number", "{m}:C", "{m}:later", "{m}.x:f", "{m}:f()", "", ":", "\x00:f", "{m}:_no",
)  # fmt: skip
_IMPORTS = (
    *[""] * 60, "import numpie", "raise ValueError('x' * 9999)", "import sys; sys.exit(3)", "1 / 0",
    "def broken(:", "class E(BaseException): pass\nraise E", "\ufeff",
    "from . import sibling", "import os; os.environ['X'] = 'y'", "print('z' * 9999)", "x = '\\ud8'",
)  # fmt: skip
_PARAMETERS = (
    *["prompts, responses"] * 12, "a, b", "responses", "messages, responses", "a, b, c", "a", "",
    "*args", "**named", "*args, **named", "a, b, *, c", "responses, a", "a, b, messages=None",
    "finished, rendered, responses, messages, prompts", "prompts, responses, /", "a, b=1",
)  # fmt: skip
_VALUES = (
    "1", "2.5", "True", "None", "'1'", "b'1'", "float('nan')", "float('inf')", "-1e300", "10**400",
    "[1]", "(1,)", "{}", "1j", "object()", "np.float32(1)", "np.array([1.0])", "np.array(1.0)",
    "np.datetime64('2020')", "np.ma.masked", "Decimal('sNaN')", "Fraction(1, 3)", "lambda: 1",
    "Odd()", "np.float64('nan')", "np.str_('1')", "-0.0", "5e-324",
)  # fmt: skip
_FORMS = (
    *["[{v}]"] * 12, "({v},)", "{{{v}}}", "{{i: {v} for i in range(4)}}", "'1234'", "b'1234'",
    "None", "np.ones(4)", "np.ones((4, 1))", "np.array([1, 2, 3, 4j])", "np.array(['1'] * 4)",
    "iter([1] * 4)",
    "(1 for _ in iter(int, 1))", "range(4)", "{{1: 1}}.values()", "4", "[1] * 3", "[1] * 5", "[]",
    "np.array([1, None, 'x', 2], object)", "np.ma.array([1.0] * 4, mask=[0, 1, 0, 0])", "Odd()",
)  # fmt: skip
_DEEDS = (
    *["pass"] * 8, "raise RuntimeError('no')", "raise Mute", "raise SystemExit", "raise Odd",
    "raise KeyboardInterrupt", "undefined_name", "f(1, 2)", "import os; os.chdir('/')", "1 / 0",
    "raise E from E()", "raise GeneratorExit", "raise StopIteration", "assert False, 'x' * 9999",
)  # fmt: skip
_MODULE = """
from decimal import Decimal
from fractions import Fraction
import numpy as np
{begin}
class E(BaseException): pass
class Mute(Exception):
    def __str__(self): raise KeyError
    def __reduce__(self): raise TypeError
class Odd:
    shape = (4,)
    def __len__(self): raise OSError('odd')
    def __iter__(self): raise E
    def __float__(self): raise E
class C:
    def f({parameters}): return [1, 2, 3, 4]
    def __call__(self, prompts, responses): return [1, 2, 3, 4]
c, number = C(), 3
async def later(a, b): return [1, 2, 3, 4]
def f({parameters}):
    {deed}
    values = {form}
    return values * 4 if isinstance(values, (list, tuple)) and len(values) == 1 else values
"""


def cases(seed: int, count: int, folder: Path) -> Iterator[Case]:
    """Each is a module of its own, imported and called."""
    rng = random.Random(f"reward_functions {seed}")
    for number in range(count):
        module = f"fuzzed_rewards_{seed}_{number}"
        form = rng.choice(_FORMS).format(v=rng.choice(_VALUES))
        source = _MODULE.format(
            begin=rng.choice(_IMPORTS),
            parameters=rng.choice(_PARAMETERS),
            deed=rng.choice(_DEEDS),
            form=form,
        )
        (folder / f"{module}.py").write_text(source, encoding="utf-8")
        path = rng.choice(_PATHS).format(m=module)
        yield Case(f"{number}: {path!r}, {form}", partial(_run, path, folder), _DROPPED)


def _run(path: str, folder: Path) -> None:
    bare = Asked(0, "a", "<s>a")
    talk = Asked(1, (Message("user", "hi"),), "<u>hi</u>")
    given = [Exchange(bare if i % 2 else talk, str(i), finished=i != 3) for i in range(4)]
    replies = load_reward(path, str(folder)).ask(given, Patience(retries=1))
    assert len(replies) == len(given)
    for reply in replies:
        assert math.isfinite(reply.value) != bool(reply.reason)
        assert "\n" not in reply.reason + reply.words
        assert len(reply.words) <= 300
