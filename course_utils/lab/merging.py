"""A newer course's notebooks, merged into the learner's.

What the learner did not touch becomes what the course has now; everything else stays: changed cells, own cells, and the
outputs of cells that are the same in both. A cell is touched when its hash is no longer the one on record.
"""

from __future__ import annotations

import itertools
import re
import uuid
from collections import Counter
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from course_utils.house import whole_file
from course_utils.lab.folder import (
    CannotUse,
    Hashes,
    copy,
    hash_of,
    hashes_of,
    read_record,
    shipped,
    write_record,
)

EXERCISE = re.compile(r"""^@exercise\(["']([\w.]+)["']\)""", re.MULTILINE)


def update(folder: Path, version: str) -> list[str]:
    """Bring every notebook of the folder up to date; what was there before is kept in a folder beside them.

    Args:
        version: that of the course, for names ("before-0.2.0").

    Returns:
        What was done, one line for each notebook, and where to find what was there before.

    Raises:
        CannotUse: if nothing was copied to this folder, or it cannot be read or written.
    """
    record = read_record(folder)
    if not record:
        raise CannotUse(f"no notebooks of the course were copied to {folder}: faithful-circuits lab does that")
    backup, lines = _new_name(folder, f"before-{version}"), []
    try:
        for name, source in shipped().items():
            lines.append(f"{name}: {_update_one(folder / name, source, record, backup, version)}")
            write_record(folder, record)
    except OSError as error:
        raise CannotUse(f"{folder} cannot be used: {error.strerror or error}") from error
    if backup.exists():
        lines += [f"As they were before: {backup}",
                  "If one of them is open in JupyterLab, reload it there (File, Reload Notebook from Disk)."]
    return lines


def _update_one(mine: Path, source: Path, record: dict[str, Hashes], backup: Path, version: str) -> str:
    """Update one notebook, and the record; returns what was done."""
    theirs = _read(source)
    base, now = record.get(mine.name), hashes_of(theirs)
    if not mine.exists():
        copy(source, mine)
        record[mine.name] = now
        return "copied; it was not there"
    if base == now:
        return "left as it is; the course has not changed it"
    try:
        if base is None:
            raise ValueError("it is not the course's")
        notebook = _read(mine)
    except ValueError as error:
        beside = _new_name(mine.parent, f"{mine.stem}-{version}", ".ipynb")
        copy(source, beside)
        return f"left as it is, since {error}; the new one is {beside.name}"
    notebook.cells, counts = merged(notebook.cells, base, theirs.cells)
    notebook.nbformat_minor = max(notebook.nbformat_minor, theirs.nbformat_minor)
    backup.mkdir(exist_ok=True)
    copy(mine, backup / mine.name)
    with whole_file(mine) as partial:
        nbformat.write(notebook, partial)
    record[mine.name] = now
    return ", ".join(f"{number} cell{'s' * (number > 1)} {what}" for what, number in counts.items())


def merged(
    mine: list[NotebookNode], base: Hashes, theirs: list[NotebookNode],
) -> tuple[list[NotebookNode], Counter[str]]:
    """The cells of an updated notebook, in the course's order, and how many were kept, replaced, added and removed.

    Args:
        mine: the learner's cells.
        base: the hashes of the cells that the learner was given.
        theirs: the course's cells now.
    """
    counts: Counter[str] = Counter()
    known = _matched(mine, base)
    touched = {id for id, cell in known.items() if hash_of(cell) != base[id]}
    result = []
    for cell in theirs:
        if cell.id not in known:
            if cell.id not in base:                                 # else the learner has deleted it
                counts["new"] += 1
                result.append(cell)
        elif cell.id in touched or hash_of(known[cell.id]) == hash_of(cell):
            counts["of yours kept"] += cell.id in touched
            result.append(known[cell.id])
        else:
            counts["replaced"] += 1
            result.append(cell)
    ids, place = {id(cell): name for name, cell in known.items()}, -1
    for cell in mine:                                               # those that have no place in the course's order
        name = ids.get(id(cell))
        at = next((i for i, each in enumerate(result) if each is cell or name and each.get("id") == name), None)
        if at is not None:
            place = at
        elif name is None or name in touched:
            place = max(place, _of_the_same_exercise(cell, result)) + 1
            counts["of yours kept"] += 1
            result.insert(place, cell)
        else:
            counts["removed"] += 1
    return _with_ids(result), +counts


def _matched(mine: list[NotebookNode], base: Hashes) -> dict[str, NotebookNode]:
    """{id: the learner's cell} of those that the learner was given; by its hash if an editor has changed its id."""
    known = {cell.id: cell for cell in reversed(mine) if cell.get("id") in base}
    lost = {digest: id for id, digest in base.items() if id not in known}
    for cell in mine:
        if cell.get("id") not in base and (name := lost.pop(hash_of(cell), None)):
            known[name] = cell
    return known


def _of_the_same_exercise(cell: NotebookNode, cells: list[NotebookNode]) -> int:
    """Where the cell of the same exercise is, -1 if nowhere: the answer goes below it, so that the answer counts."""
    found = EXERCISE.search(cell.source) if cell.cell_type == "code" else None
    places = [i for i, each in enumerate(cells) if found and found[0] in each.source]
    return places[-1] if places else -1


def _with_ids(cells: list[NotebookNode]) -> list[NotebookNode]:
    """The same cells; those without an id, or with one that is taken, get a new one."""
    taken: set[str] = set()
    for cell in cells:
        if cell.get("id") is None or cell.id in taken:
            cell.id = uuid.uuid4().hex[:8]
        taken.add(cell.id)
    return cells


def _read(path: Path) -> NotebookNode:
    """A notebook.

    Raises:
        ValueError: if it is not one, or is in a format before 4.
    """
    try:
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        nbformat.validate(notebook)
    except OSError:
        raise
    except Exception as error:                                      # nbformat raises many kinds
        raise ValueError("it is not a notebook that can be read") from error
    if notebook.nbformat != 4:
        raise ValueError(f"its format is {notebook.nbformat}, not 4")
    return notebook


def _new_name(folder: Path, name: str, suffix: str = "") -> Path:
    """A path in the folder that is not taken: this name, or this name and a number."""
    numbers = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    names = (folder / f"{name}{number}{suffix}" for number in numbers)
    return next(each for each in names if not each.exists())
