"""Model files on disk: errors that say what to do, hashes, and folders that appear whole or not at all.

A model folder holds `config.json`, `tokenizer.json`, one or more `.safetensors` files and
`hashes.json`, which maps each file name to its sha256. A file is used only when its hash agrees.
A new folder is written under a temporary name beside its final place and renamed when complete,
so a crash, a full disk or a killed kernel never leaves a folder that a later run would trust.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from course_utils.house import CacheNotWritable, DamagedModelFile

HASHES = "hashes.json"
FILE_NAME = re.compile(r"[\w.-]{1,100}", re.ASCII)  # of a file in a model folder
PARTIAL_PREFIX = ".partial-"
STALE_AFTER_SECONDS = 6 * 3600
DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal, read one megabyte at a time."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_hashes(folder: Path) -> dict[str, str]:
    """The `hashes.json` of a model folder.

    Raises:
        DamagedModelFile: if it is absent or unreadable.
    """
    try:
        hashes = json.loads((folder / HASHES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedModelFile(f"{folder / HASHES} is missing or unreadable ({str(error)[:200]}).") from error
    if not isinstance(hashes, dict) or not all(FILE_NAME.fullmatch(n) and is_sha256(h) for n, h in hashes.items()):
        raise DamagedModelFile(f"{folder / HASHES} should map file names to sha256 hashes.")
    return hashes


def is_sha256(value: object) -> bool:
    """Whether this is a sha256 as a file of hashes has it: 64 hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def write_hashes(folder: Path) -> None:
    """Write `hashes.json` for every file now in the folder."""
    hashes = {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.name != HASHES}
    (folder / HASHES).write_text(json.dumps(hashes, indent=2) + "\n", encoding="utf-8")


def check_hashes(folder: Path, names: Iterable[str] | None = None) -> None:
    """Compare files with `hashes.json` (all of it unless `names` says which).

    Raises:
        DamagedModelFile: it names the first file that is missing or differs.
    """
    hashes = read_hashes(folder)
    for name in hashes if names is None else names:
        if name not in hashes:
            raise DamagedModelFile(f"{folder / HASHES} has no entry for {name}.")
        if not (folder / name).is_file():
            raise DamagedModelFile(f"{folder / name} is missing.")
        found = sha256_of(folder / name)
        if found != hashes[name]:
            raise DamagedModelFile(
                f"{folder / name} is damaged: its sha256 is {found[:12]}…, expected {hashes[name][:12]}…"
            )


def is_intact(folder: Path) -> bool:
    """Whether every file of the folder agrees with its `hashes.json`."""
    try:
        check_hashes(folder)
    except DamagedModelFile:
        return False
    return True


@contextlib.contextmanager
def explain_disk_errors(folder: Path, need_mb: int, variable: str = "COURSE_CACHE") -> Iterator[None]:
    """Turn "disk full" and "read-only" into a CacheNotWritable that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            reason = f"its disk is full (about {need_mb} MB are needed while fetching)"
        elif error.errno in NOT_WRITABLE:
            reason = "it cannot be written to"
        else:
            raise
        raise CacheNotWritable(
            f"The cache folder {folder} could not be used: {reason}.\n"
            f"  cause:  {error}\n"
            f"  what to do: free some space, or set the environment variable {variable} to a folder\n"
            "  that you can write to, and run this again. Nothing half-written was left behind."
        ) from error


def require_free_space(folder: Path, need_mb: int) -> None:
    """Raise the operating system's "disk full" error now rather than after a long download."""
    free_mb = shutil.disk_usage(folder).free // 2**20
    if free_mb < need_mb:
        raise OSError(errno.ENOSPC, f"only {free_mb} MB free", str(folder))


@contextlib.contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `final` if, and only if, the block ends without error."""
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_partials(final.parent)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=final.parent))
    try:
        yield partial
        replace_folder(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(new: Path, final: Path) -> None:
    """Put `new` in the place of `final`. Each rename is all or nothing.

    If another process put an intact folder there meanwhile, that one stays.
    """
    if is_intact(final):
        return
    if final.exists():  # a folder with files in it cannot be renamed over: move it aside first
        aside = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=final.parent))
        os.replace(final, aside / final.name)
        shutil.rmtree(aside, ignore_errors=True)
    try:
        os.replace(new, final)
    except OSError:
        if not is_intact(final):  # if it is, another process was faster
            raise


def _remove_stale_partials(parent: Path) -> None:
    """Delete what a killed run left behind; younger folders may belong to one that is still running."""
    for path in parent.glob(f"{PARTIAL_PREFIX}*"):
        with contextlib.suppress(OSError):
            if abs(time.time() - path.stat().st_mtime) > STALE_AFTER_SECONDS:     # abs: a clock may have been set back
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the progress bars that `transformers` draws while it loads (they would fill a notebook)."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def size_of(folder: Path) -> int:
    """Bytes in all files below a folder; files and folders that vanish meanwhile count as zero."""
    total = 0
    for place, _, names in os.walk(folder):                         # unlike rglob, it passes over a folder that is gone
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(place, name).stat().st_size
    return total
