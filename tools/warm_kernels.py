"""Run a command whose Jupyter kernels named "warm" begin with the libraries already imported.

    python tools/warm_kernels.py COMMAND [ARGUMENT …]

A kernel of this course imports for five seconds before its first cell. Here one process imports once, and each kernel
is a fork of it: with nothing of another notebook in it, and with the environment of whoever asked for it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path


def run(command: list[str]) -> int:
    """The command, with a fork server beside it."""
    with tempfile.TemporaryDirectory() as folder:
        address, ready = str(Path(folder, "socket")), Path(folder, "kernels", "warm", "kernel.json")
        ready.parent.mkdir(parents=True)
        ready.write_text(json.dumps({
            "argv": [sys.executable, __file__, "--kernel", address, "{connection_file}"], "display_name": "warm",
            "language": "python", "interrupt_mode": "message"}))
        path = os.pathsep.join([folder, *filter(None, [os.environ.get("JUPYTER_PATH")])])
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(address)
            server.listen()
            forks = subprocess.Popen([sys.executable, __file__, "--serve", str(server.fileno())],
                                     pass_fds=[server.fileno()])
        try:
            return subprocess.run(command, env=os.environ | {"JUPYTER_PATH": path}).returncode
        finally:
            forks.terminate()
            forks.wait()


def serve(server: socket.socket) -> None:
    """Import, then answer each request with a fork that becomes a kernel."""
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"              # as ipykernel does, but sooner
    import ipykernel.kernelapp
    import matplotlib.figure  # noqa: F401
    import pandas  # noqa: F401
    import transformer_lens.model_bridge  # noqa: F401

    from course_utils import models  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)                                       # nobody waits for them here
    while True:
        asked, _ = server.accept()
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            server.close()
            wanted = json.loads(asked.makefile().readline())
            threading.Thread(target=end_with, args=[asked], daemon=True).start()
            os.chdir(wanted["folder"])
            os.environ.clear()
            os.environ.update(wanted["environment"])
            ipykernel.kernelapp.launch_new_instance(argv=["-f", wanted["connection_file"]])
            os._exit(0)
        asked.close()


def end_with(asked: socket.socket) -> None:
    """End when the process that asked for this kernel does."""
    asked.makefile().read()                                         # until it is closed
    os._exit(0)


def kernel(address: str, connection_file: str) -> None:
    """Ask for a kernel; end when it does."""
    with socket.socket(socket.AF_UNIX) as asked:
        asked.connect(address)
        wanted = {"folder": os.getcwd(), "environment": dict(os.environ), "connection_file": connection_file}
        asked.sendall(json.dumps(wanted).encode() + b"\n")
        asked.makefile().read()                                     # until the kernel ends


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(socket.socket(fileno=int(sys.argv[2])))
    elif sys.argv[1] == "--kernel":
        kernel(*sys.argv[2:])
    else:
        sys.exit(run(sys.argv[1:]))
