"""Opens a folder in JupyterLab, in this process and this environment: its kernels have the course."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from course_utils.lab.folder import CannotUse

# package, module, application, and the options that it always gets: JupyterLab is to ask no address for news
JUPYTERLAB = ("jupyterlab", "jupyterlab.labapp", "LabApp", ("--LabApp.news_url=None",))
NOTEBOOK = ("notebook", "notebook.app", "JupyterNotebookApp", ())


def open_in_jupyter(folder: Path, options: Sequence[str] = (), *, notebook: bool = False) -> int:
    """Open the folder in JupyterLab, or in Jupyter Notebook 7, and return when it is shut down.

    Args:
        options: what to pass on, such as `--no-browser` or `--port=9000`.

    Raises:
        CannotUse: if it is not in this environment; the message says what to do.
    """
    package, module, application, own = NOTEBOOK if notebook else JUPYTERLAB
    if importlib.util.find_spec(package) is None:
        raise CannotUse(f"{package} is not in this environment: pip install {package}, or open the notebooks in "
                        f"{folder} in another program, such as VS Code, with this environment's kernel")
    getattr(importlib.import_module(module), application).launch_instance([str(folder), *own, *options])
    return 0
