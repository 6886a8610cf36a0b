"""What pyproject.toml cannot say: a wheel carries the notebooks, which lie beside the package, inside it."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("notebooks", "solutions")


class BuildWithNotebooks(build_py):
    """Copies the notebooks into the package that is built. An editable installation finds them where they are."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in FOLDERS:
            inside = Path(self.build_lib, "course_utils", folder)
            inside.mkdir(exist_ok=True)
            for notebook in sorted(Path(folder).glob("[0-9][0-9]_*.ipynb")):
                self.copy_file(str(notebook), str(inside / notebook.name))


setup(cmdclass={"build_py": BuildWithNotebooks})
