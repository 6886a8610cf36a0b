"""An instructor's view: what each learner's file says, and nothing of a damaged one."""

import json

import pytest

from course_utils.__main__ import main
from course_utils.exercises.class_view import class_table


def attempts(path, *entries):
    path.write_text("\n".join(json.dumps(dict(zip(("id", "verdict", "mistake", "time"), each))) for each in entries))


def test_each_row_is_its_learner_s_own(tmp_path):
    attempts(tmp_path / "ada.jsonl", ("01.a", "passed", None, 100), ("02.a", "wrong", "halved", 200),
             ("02.a", "passed", None, 300), ("02.b", "passed", None, 250))
    attempts(tmp_path / "bo.jsonl", ("01.a", "wrong", "halved", 100), ("01.a", "wrong", "halved", 400))
    (tmp_path / "cy.jsonl").write_text('{"id": "01.a", "verdict": "passed", "time": "noon"}\n{"id": 7}\nnot JSON')
    header, ada, bo, cy, mean = class_table(tmp_path, {"01": 1, "02": 2})
    assert header[:3] == ["learner", "01 of 1", "02 of 2"]
    assert ada[:3] == ["ada", "1", "2"] and ada[4] == ""              # what stopped her once no longer does
    assert bo[:3] == ["bo", "·", "·"] and bo[4] == "01.a: halved"
    assert cy[:4] == ["cy", "1", "·", "–"]                           # a time that is none is not shown
    assert mean[:3] == ["mean", "0.7", "0.7"] and mean[4] == "2 × 01.a: halved"


def test_a_folder_without_files_is_told_so(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="ada.jsonl"):
        class_table(tmp_path, {"01": 1})
    assert main(["progress", "--class", str(tmp_path)]) == 1
    assert "ada.jsonl" in capsys.readouterr().err
