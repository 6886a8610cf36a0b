"""The walls around a submission's code: two of them, or, where the system forbids the first, one.

**The first wall** is bubblewrap (`bwrap`), which Flatpak uses too: the process in it has no network, sees nothing of
the disk but Python and the course, cannot write to that either, and sees no process outside. It is made once for each
of the grader's processes, around a *nursery* that has everything imported; each notebook then runs in a child of the
nursery that has namespaces of its own within it: no other process to see, a /tmp and a /dev/shm that are empty, and
all of that is gone with the child. **The second wall** is Python's audit hook. It refuses what would change a file or
start a process, so far as Python itself does it; a C library can get past it. It stands only where the first cannot.

This module imports nothing but the standard library: `python walls.py` tries whether the first wall stands.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import site
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

COURSE = Path(__file__).resolve().parents[2]  # the folder of the package
SCRATCH_BYTES = 512 * 2**20  # in /tmp and in /dev/shm
PROCESSES = 40  # at most, of one notebook
TRIAL_SECONDS = 60
NOBODY = 65534
FILES = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", *(f"/etc/{name}" for name in (
    "alternatives", "fonts", "group", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "nsswitch.conf",
    "passwd")))
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONPATH": str(COURSE.parent), "PYTHONUSERBASE": site.getuserbase(), "IPYTHONDIR": "/tmp/ipython",
    "MPLBACKEND": "agg", "PIP_NO_INDEX": "1",
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
    "COURSE_MODEL": "tiny", "COURSE_REAL": "skip", "COURSE_BARS": "off", "HF_HUB_OFFLINE": "1",
    "COURSE_PROGRESS": "/tmp/progress.jsonl", "CUDA_VISIBLE_DEVICES": ""}


class NoWalls(Exception):
    """The first wall does not stand here; the message says why."""


# --- the first wall, from outside --------------------------------------------------------------------------


def behind_walls(command: list[str]) -> list[str]:
    """The command that runs `command` with no network, nothing to write but /tmp, and no process outside in sight."""
    prefixes = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parents[1]}
    libraries = {Path(place) for place in (*site.getsitepackages(), *sys.path)
                 if Path(place).name in ("site-packages", "dist-packages")}  # also those of pip --user and .pth files
    shown = [*map(Path, FILES), *sorted(prefixes | libraries), COURSE]
    binds = [text for path in shown for text in ("--ro-bind-try", str(path), str(path))]
    return ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--proc", "/proc", "--dev", "/dev",
            "--tmpfs", "/tmp", *binds, "--chdir", "/tmp", "--", *command]


def try_walls() -> int | None:
    """The user as whom the first wall stands: nobody if this is root and nobody can run Python here; None: this one.

    Raises:
        NoWalls: if it does not.
    """
    if not shutil.which("bwrap"):
        raise NoWalls("bubblewrap is not installed (apt install bubblewrap)")
    if hidden := [each for each in (COURSE, Path(sys.prefix)) if Path("/tmp") in each.parents]:
        raise NoWalls(f"{hidden[0]} is in /tmp, in whose place submissions have an empty folder")
    said = ""
    for user in (NOBODY, None) if os.getuid() == 0 else (None, ):
        trial = subprocess.run(behind_walls([sys.executable, str(Path(__file__).resolve())]), env=ENVIRONMENT,
                               capture_output=True, text=True, timeout=TRIAL_SECONDS, user=user, group=user,
                               extra_groups=None if user is None else [])
        if trial.stdout == "the walls stand\n":
            return user
        said = trial.stderr.strip().splitlines()[-1] if trial.stderr.strip() else said
    raise NoWalls(f"namespaces are not allowed here ({said})")


# --- the first wall, from inside ---------------------------------------------------------------------------

NEWNS, NEWIPC, NEWUSER, NEWPID = 0x20000, 0x8000000, 0x10000000, 0x20000000  # <sched.h>
NOSUID_NODEV = 2 | 4  # <sys/mount.h>
CAPABILITIES_3 = 0x20080522  # <linux/capability.h>
DIE_WITH_PARENT = 1  # <linux/prctl.h>
libc = ctypes.CDLL(None, use_errno=True)


def _system(name: str, *arguments: Any) -> None:
    if getattr(libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def die_with_parent() -> None:
    """Be killed when the parent ends, however it ends."""
    _system("prctl", DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


def forked_alone(run: Callable[[], None]) -> int:
    """Run it in a forked process that has namespaces of its own; the id of the process whose end is the end of all.

    Only the process that calls this, a child with no other purpose, changes: it may call it once.
    """
    user, group = os.getuid(), os.getgid()
    _system("unshare", NEWUSER | NEWNS | NEWIPC | NEWPID)
    for name, text in {"setgroups": "deny", "uid_map": f"{NOBODY} {user} 1", "gid_map": f"{NOBODY} {group} 1"}.items():
        Path("/proc/self", name).write_text(text)
    if first := os.fork():
        return first
    os.setsid()                     # a signal to its process group, which reaches across namespaces, stays within
    die_with_parent()               # this is process 1 of the new namespace: when it ends, the system ends the others
    for place in (b"/tmp", b"/dev/shm"):
        _system("mount", b"tmpfs", place, b"tmpfs", NOSUID_NODEV, b"mode=1777,size=%d" % SCRATCH_BYTES)
    with contextlib.suppress(OSError):  # where it is not allowed, /proc shows processes that cannot be reached
        _system("mount", b"proc", b"/proc", b"proc", NOSUID_NODEV, None)
    header, nothing = (ctypes.c_uint32 * 2)(CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)()
    _system("capset", header, nothing)
    if (second := os.fork()) == 0:
        os.setsid()
        os.chdir("/tmp")
        run()
        os._exit(0)
    ended = 0
    while ended != second:              # orphans become its children, and end here
        ended, status = os.wait()
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))


def limit(gigabytes: float, seconds: float) -> None:
    """Memory on top of what is used now, processor time, the size of files, and the number of processes."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    memory = used + int(gigabytes * 1e9)
    for what, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 10**8), (resource.RLIMIT_CORE, 0),
                       (resource.RLIMIT_CPU, int(seconds) + 1), (resource.RLIMIT_NPROC, PROCESSES)):
        resource.setrlimit(what, (most, most))


def silence(keep: int) -> None:
    """No open file but `keep`; input is empty, and what is printed is dropped."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.closerange(3, keep)
    os.closerange(keep + 1, 4096)


# --- the second wall ---------------------------------------------------------------------------------------

REFUSED = (  # audit events (https://docs.python.org/3/library/audit_events.html) by their beginnings
    "os.exec", "os.fork", "os.kill", "os.posix_spawn", "os.spawn", "os.system", "subprocess.", "pty.", "signal.pthread",
    "socket.", "gc.get_", "resource.", "ctypes.", "sqlite3.", "shutil.", "os.chmod", "os.chown", "os.link", "os.mkdir",
    "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate", "os.utime", "os.setxattr", "os.removexattr",
)
REMOVED = {"os": ("mkfifo", "mknod", "pidfd_open", "sched_setaffinity", "setpriority"),
           "signal": ("pidfd_send_signal",), "_posixsubprocess": ("fork_exec",)}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def refuse_changes(folder: str) -> None:
    """The second wall, for good: no file outside `folder` is opened to be changed, no process started, no network.

    What a system call would do without an audit event is taken from its module, so far as Python's own modules go.
    """
    for module, names in REMOVED.items():
        for name in names:
            vars(__import__(module)).pop(name, None)
    inside = os.path.realpath(folder) + os.sep

    def guard(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, int) or not isinstance(flags, int) or not flags & WRITING:
                return
            text = os.fsdecode(path)
            sure = mode is not None or os.path.isabs(text)  # `os.open` takes a relative path from any folder (dir_fd)
            if text == os.devnull or sure and os.path.realpath(text).startswith(inside):
                return
        elif not event.startswith(REFUSED):
            return
        raise PermissionError(f"an exercise may not do this: {event}")

    sys.addaudithook(guard)


if __name__ == "__main__":
    if child := os.fork():
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os.waitpid(forked_alone(lambda: print("the walls stand", flush=True)), 0)
    os._exit(0)
