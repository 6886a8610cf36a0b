"""Kernels that begin with the libraries imported: forks of one process that has imported them.

`make test` starts a kernel for each lesson, and each would spend four seconds of its processor on these imports. How
a lesson begins in a fresh kernel is tested elsewhere (tests/test_costs.py, tests/test_run_course.py, test_browser.py).
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from importlib.metadata import EntryPoint
from multiprocessing.context import ForkServerProcess

from jupyter_client.provisioning import LocalProvisioner
from jupyter_client.provisioning.factory import KernelProvisionerFactory

LIBRARIES = ["transformer_lens", "matplotlib.pyplot", "ipykernel.kernelapp"]
INLINE = "module://matplotlib_inline.backend_inline"    # read when matplotlib is imported, so before a kernel sets it


def use_forked_kernels() -> None:
    """Fork the kernels that this process starts from now on, where Python can (on Linux)."""
    if sys.platform != "linux":
        return
    os.environ["MPLBACKEND"] = INLINE
    multiprocessing.set_forkserver_preload(LIBRARIES)
    factory = KernelProvisionerFactory.instance()
    factory.provisioners["forked"] = EntryPoint("forked", f"{__name__}:Forked", KernelProvisionerFactory.GROUP_NAME)
    factory.default_provisioner_name = "forked"


class Forked(LocalProvisioner):
    """Starts a kernel as jupyter_client asks for it, but by a fork."""

    async def launch_kernel(self, cmd, *, cwd=None, env=None, **_):
        process = _Kernel(target=_run_kernel, args=(cmd, cwd, env))
        process.start()
        self.process = process      # type: ignore[assignment]  # does what is asked of a Popen
        self.pid, self.pgid, self.cwd = process.pid, process.pid, cwd
        return self.connection_info


class _Kernel(ForkServerProcess):
    """A process, with what jupyter_client asks of a subprocess.Popen."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self.join(timeout)
        return self.exitcode

    def send_signal(self, number: int) -> None:
        if self.pid and self.is_alive():
            os.kill(self.pid, number)


def _run_kernel(cmd: list[str], cwd: str | None, env: dict[str, str]) -> None:
    """In the fork: become the kernel that `cmd` would start."""
    gc.freeze()     # as course_utils.models.importing does after these imports
    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd or os.curdir)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    module = cmd.index("-m") + 1
    sys.argv = cmd[module:]
    import pandas
    from ipykernel.kernelapp import launch_new_instance

    pandas.options.display.max_columns = 20     # its own default where it is imported in a kernel
    launch_new_instance(argv=cmd[module + 1:])
