"""The map of the house is true: ARCHITECTURE.md, its picture and the imports agree, and nothing goes round a door."""

import re
from pathlib import Path

import pytest
import rooms

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "course_utils"
FOLDERS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
OWN_DOOR = {"exercises.grading": "the engine does not need it", "exercises.checks": "imported lesson by lesson"}


@pytest.fixture(scope="module")
def modules():
    return rooms.imports(PACKAGE)


def test_there_are_no_circles(modules):
    assert rooms.circles(modules) == [] == rooms.circles(rooms.rooms(modules))


def test_a_circle_is_found(tmp_path):
    for name, text in {"__init__": "", "a": "from course_utils import b",
                       "b": "def f():\n    from course_utils.c import x",
                       "c": "from course_utils.a import y"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    assert rooms.circles(rooms.imports(tmp_path)) == [{"a", "b", "c"}]
    with pytest.raises(ValueError, match="a, b, c import each other in a circle"):
        rooms.floors(rooms.imports(tmp_path))


def test_folders_are_entered_by_their_doors(modules):
    """No module outside a folder imports from a module inside it."""
    past = {f"{module} -> {other}" for module, others in modules.items() for other in others
            if "." in other and module.partition(".")[0] != other.partition(".")[0] and other not in OWN_DOOR}
    assert past == {"__init__ -> house.console", "__init__ -> house.moved"}     # which need nothing else


def test_no_private_name_leaves_its_module():
    for path in PACKAGE.rglob("*.py"):
        imported = re.findall(r"^\s*from course_utils[\w.]* import (?:\(([^)]*)\)|(.*))", path.read_text("utf-8"), re.M)
        names = re.findall(r"\w+", " ".join(" ".join(each) for each in imported))
        assert [name for name in names if name.startswith("_")] == [], path


def test_the_page_names_every_room_and_every_place(modules):
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    first_cells = " ".join(re.findall(r"^\| (`[^|]*) \|", page, re.M))
    named = {name.rstrip("/") for name in re.findall(r"`([\w/]+)`", first_cells)}
    assert named == set(rooms.rooms(modules)) - {"__init__", "__main__"}
    places = re.findall(
        r"`((?:course_utils|lessons|tests|tools|training|benchmarks|notebooks|solutions)/[\w/.]*)`", page)
    assert len(places) > 15 and [place for place in places if not (ROOT / place).exists()] == []


def test_the_picture_is_that_of_the_imports(modules):
    assert rooms.PICTURE.read_text(encoding="utf-8") == rooms.picture(rooms.rooms(modules), FOLDERS)
