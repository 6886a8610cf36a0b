"""What pyproject.toml cannot say: a wheel carries the notebooks, which lie beside the package, inside it.

The worked lessons go in without their outputs, most of their bytes: `faithful-circuits course` makes them again.
"""

import json
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithNotebooks(build_py):
    """Copies the notebooks into the package that is built. An editable installation finds them where they are."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in ("notebooks", "solutions"):
            inside = Path(self.build_lib, "course_utils", folder)
            inside.mkdir(exist_ok=True)
            for path in sorted(Path(folder).glob("[0-9][0-9]_*.ipynb")):
                (inside / path.name).write_text(without_outputs(path.read_text(encoding="utf-8")), encoding="utf-8")


def without_outputs(text: str) -> str:
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


setup(cmdclass={"build_py": BuildWithNotebooks})
