"""Filters of rows, as masks over columns of hashes: True = the row stays.

Every filter keeps the first rows in order, so appending to a set never drops an earlier row.
"""

from __future__ import annotations

import numpy as np

from workers.data.filters.splits import BoolArray, HashArray
from workers.data.rows.examples import Context


def prompt_key(context: Context) -> str:
    """The identity of a prompt: its words, independent of any chat template.

    A dialogue of one turn equals the bare text of that turn.
    """
    if isinstance(context, str):
        return context.strip()
    if len(context) == 1:
        return context[0].content.strip()
    return "\x1e".join(f"{turn.role}\x1f{turn.content.strip()}" for turn in context)


def prompts_within(context: Context) -> list[str]:
    """Keys of the beginnings of a prompt, one up to each user turn.

    System turns are left out, because they do not change what is asked. The last key is that of
    the whole prompt; bare text has this one alone.
    """
    if isinstance(context, str):
        return [prompt_key(context)]
    turns = tuple(turn for turn in context if turn.role != "system")
    ends = [i + 1 for i, turn in enumerate(turns[:-1]) if turn.role == "user"]
    return [prompt_key(turns[:end]) for end in (*ends, len(turns))]


def conversation_text(context: Context) -> str:
    """The text of a context without its system turns, which whole data sets share."""
    if isinstance(context, str):
        return context
    return "\n\n".join(turn.content for turn in context if turn.role != "system")


def first_of_each(hashes: HashArray) -> BoolArray:
    """(N,) True = no earlier row has this hash; rows of hash 0 all stay."""
    return first_of_each_beginning(hashes, np.arange(len(hashes), dtype=np.uint64))


def first_of_each_beginning(beginnings: HashArray, keys: HashArray) -> BoolArray:
    """(N,) True = the first row with this beginning has the same key; rows of beginning 0 all stay.

    With hashes of the first n characters (0 for shorter texts) and of whole prompts, this is the
    paper's "deduplicate prompts by checking for prompts that share a long common prefix"
    (InstructGPT, section 3.2); other rows of the first prompt itself do not count as duplicates.
    """
    _, first, number = np.unique(beginnings, return_index=True, return_inverse=True)
    return (beginnings == 0) | (keys == keys[first[number]])


def at_most_per_user(users: HashArray, most: int) -> BoolArray:
    """(N,) True = among the first `most` rows of its user; rows of user 0 (not named) all stay.

    InstructGPT, section 3.2: at most 200 prompts per user id.
    """
    order = np.argsort(users, kind="stable")
    ordered = users[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] + np.uint64(1)) != 0)
    counts = np.diff(np.append(starts, len(users)))
    stays = np.empty(len(users), bool)
    stays[order] = np.arange(len(users)) - np.repeat(starts, counts) < most
    return stays | (users == 0)
