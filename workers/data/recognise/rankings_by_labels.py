"""Rankings that are not written as lists of ranks: by labels, or one completion per row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace

from workers.data.formats.line import Line
from workers.data.recognise.columns import Columns
from workers.data.recognise.labels import NO_LABEL, Verdicts, ranks_of
from workers.data.recognise.rankings_by_groups import Groups, holds_one_of_many
from workers.data.rows.unusable import Unusable
from workers.errors import DataError, DataLineError


class Rankings:
    """Builds lists of ranks from labels, and rankings from rows of one completion each.

    Both need a first pass over the whole data set before the first row is used.

    Args:
        columns: The columns that the user maps.
        usable: Maps a row to canonical names and checks its marks, in the first pass.
        where: The data set, for messages.
    """

    def __init__(self, columns: Columns, usable: Callable[[Line], Line], where: str) -> None:
        self._usable = usable
        self._where = where
        better = columns.get("better", "better")
        paths = columns.get("completions", ())
        if isinstance(better, list | tuple):
            better = {"column": ", ".join(better)}
        names = list(paths) if isinstance(paths, list | tuple) else []
        self._verdicts = Verdicts(better, names, where)  # pyright: ignore[reportArgumentType]
        self._groups: Groups | None = None
        self._mapped = "better" in columns
        self._labelled = False

    def survey(self, rows: Iterable[Line | DataLineError]) -> str:
        """Make the first pass over all rows, or stop after the first row if none is needed.

        Returns:
            How labels are interpreted, for the user; "" where there are none.

        Raises:
            DataError: If numbers as labels are ambiguous; as the source of the rows.
        """
        first = True
        for row in rows:
            if isinstance(row, DataLineError):
                continue
            try:
                line = self._usable(row)
            except (DataLineError, Unusable):
                continue
            if first:
                first = False
                self._labelled = self._mapped or _lacks_ranks(line)
                if holds_one_of_many(line) and not self._labelled:
                    self._groups = Groups()
                elif not self._labelled:
                    return ""
            with suppress(DataLineError, Unusable):
                if self._groups:
                    self._groups.note(line)
                elif _lacks_ranks(line):
                    self._verdicts.note(line.parsed(line.fields.get("better")), _count(line))
        return self._verdicts.settle()

    def check_done(self) -> None:
        """Check that the second pass found all rows that the first pass counted.

        Raises:
            DataError: If the data set changed between the two.
        """
        if self._groups and self._groups.left():
            raise DataError(
                "the data set changed while it was read",
                where=self._where,
                fix="run again when nothing writes to it",
            )

    def whole(self, line: Line) -> Line | None:
        """A row with its ranks as lists; None while further rows of its prompt follow.

        Raises:
            DataLineError: If a label is not understood, or the row cannot be part of a ranking.
            Unusable: If it is the only completion of its prompt.
        """
        if self._groups:
            return self._groups.add(line)
        given = self._mapped or "better" in line.fields or "better" in line.nulls
        if not (self._labelled and given and _lacks_ranks(line)):
            return line
        line.used.add("better")
        label = line.parsed(line.fields.get("better"))
        count = _count(line)
        ranks = (
            [self._ranks(line, each, count) for each in label]
            if isinstance(label, list)
            else self._ranks(line, label, count)
        )
        fields = {name: value for name, value in line.fields.items() if name != "better"}
        return replace(line, fields=fields | {"ranks": ranks})

    def _ranks(self, line: Line, label: object, count: int) -> list[int | None]:
        verdict = self._verdicts.read(line, label, count)
        return [None] * count if verdict == NO_LABEL else list(ranks_of(verdict, count))


def _lacks_ranks(line: Line) -> bool:
    return "completions" in line.fields and not {"ranks", "scores"} & line.fields.keys()


def _count(line: Line) -> int:
    completions = line.parsed(line.fields.get("completions"))
    return len(completions) if isinstance(completions, list) else 2
