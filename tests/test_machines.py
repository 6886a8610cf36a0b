"""`make machines`: each setting reaches the kernels, and what differs under one of them is a failure."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
machines = pytest.importorskip("machines")
pytest.importorskip("nbval")

ROOT = Path(__file__).parent.parent
CELL = """import os, torch
print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), os.environ["ONEDNN_MAX_CPU_ISA"])"""


@pytest.mark.matrix
@pytest.mark.skipif("avx2" not in machines.flags(), reason="this processor has no AVX2")
def test_a_cell_that_a_setting_changes_fails_there_and_only_there(tmp_path, monkeypatch, capsys):
    shown = nbformat.v4.new_output("stream", name="stdout", text="AVX2 1 AVX2\n")
    cell = nbformat.v4.new_code_cell(CELL, execution_count=1, outputs=[shown])
    (tmp_path / "solutions").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "solutions" / "00_case.ipynb")
    (tmp_path / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    monkeypatch.setattr(machines, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'tools'}:{ROOT}")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")                  # another's wish is no part of a setting
    assert machines.main(["AVX2", "--only", "00"]) == 1
    rows = [line.split()[:5] for line in capsys.readouterr().out.splitlines()]
    assert ["AVX2", "1", "cells", "1", "0"] in rows and ["AVX2", "2", "cells", "0", "1"] in rows


def test_what_a_processor_lacks_is_said_and_an_empty_run_is_a_failure(tmp_path):
    can, left_out = machines.chosen(["avx"], {"fpu", "avx2"})
    assert {setting.name for setting in can} == {"AVX2"}
    assert left_out == ["AVX-512: not run, this processor has no avx512f"]
    assert machines.counts(tmp_path / "none.xml") == (0, 1)
    report = '<testsuites><testsuite tests="3" skipped="3" failures="0" errors="0"/></testsuites>'
    (tmp_path / "some.xml").write_text(report)
    assert machines.counts(tmp_path / "some.xml") == (0, 1)
