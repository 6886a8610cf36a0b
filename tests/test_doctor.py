"""The doctor: each finding in a place where the thing works, and where it does not."""

import builtins
import http.server
import importlib.util
import threading

import pytest
import torch

from course_utils import doctor
from course_utils.__main__ import main
from course_utils.doctor import NOTE, OK, PROBLEM, Finding


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "data" / "progress.jsonl"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def without(monkeypatch, package):
    """As if this package could not be imported."""
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ImportError(f"no {package} here")
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, "__import__", refuse)


def test_all_is_well_here():
    found = {each.name: each.status for each in doctor.examine(offline=True)}
    assert PROBLEM not in found.values()
    assert {found[name] for name in ("Python", "packages", "PyTorch", "model tiny", "widgets", "cache folder")} == {OK}


@pytest.mark.parametrize("here, status", [((3, 9), PROBLEM), ((3, 10), OK), ((3, 13), OK), ((3, 14), PROBLEM)])
def test_python(monkeypatch, here, status):
    monkeypatch.setattr(doctor.sys, "version_info", here)
    assert doctor.check_python().status == status


@pytest.mark.parametrize("requirement, says", [
    ("torch>=99", "wanted >=99"), ("no-such-package-at-all", "is not installed"), ("einops<0.1", "wanted <0.1")])
def test_packages_that_do_not_fit(monkeypatch, requirement, says):
    monkeypatch.setattr(doctor, "_requirements", lambda: ["torch>=2.6", requirement])
    found = doctor.check_packages()
    assert found.status == PROBLEM and says in found.found and f'"{requirement}"' in found.advice


def test_the_requirements_are_the_project_s_own():
    assert any(each.startswith("transformer-lens") for each in doctor._requirements())
    assert not any("pytest" in each for each in doctor._requirements())


def test_torch_that_cannot_be_imported(monkeypatch):
    without(monkeypatch, "torch")
    assert doctor.check_torch().status == PROBLEM and "no torch here" in doctor.check_torch().found
    assert doctor.check_gpu().status == NOTE


def test_torch_that_computes_nonsense(monkeypatch):
    monkeypatch.setattr(torch, "ones", torch.zeros)
    assert doctor.check_torch().status == PROBLEM


def test_a_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a big one")
    assert doctor.check_gpu() == Finding("GPU", OK, "a big one")


def test_a_damaged_model(monkeypatch):
    from course_utils import models

    def damaged(*args, **kwargs):
        raise models.DamagedModelFile("step-007500.safetensors is changed\nmore")
    monkeypatch.setattr(models, "load_model", damaged)
    found = doctor.check_tiny()
    assert found.status == PROBLEM and found.found == "DamagedModelFile: step-007500.safetensors is changed"


def test_smollm2_is_missing_and_how_to_get_it():
    found = doctor.check_models()
    assert found.status == NOTE and "fetch smollm2-135m" in found.advice


def test_missing_widgets_and_jupyter(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert doctor.check_widgets().status == NOTE and doctor.check_jupyter().status == NOTE


def test_a_folder_that_is_not_writable_or_a_disk_that_is_full(monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert "is not writable" in doctor.check_cache().found and "COURSE_PROGRESS" in doctor.check_progress().advice
    monkeypatch.undo()
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 3e6}))
    assert doctor.check_cache().status == NOTE and "3 MB free" in doctor.check_cache().found
    assert doctor.check_progress().status == OK


def test_nothing_is_created(tmp_path):
    doctor.check_cache(), doctor.check_progress()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("answer", [200, 403])
def test_a_hub_that_answers(monkeypatch, answer):
    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(answer)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01, ), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    assert doctor.check_hub().status == OK
    assert doctor.check_hub(offline=True).found == "not asked (offline)"
    server.shutdown()
    server.server_close()
    assert doctor.check_hub().status == NOTE and "does not answer" in doctor.check_hub().found


def test_the_command_prints_one_screen_and_says_whether_it_is_well(capsys, monkeypatch):
    assert main(["doctor", "--offline"]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 24 and "Everything that the lessons need works." in shown
    assert all(len(line) < 160 for line in shown.splitlines())
    monkeypatch.setattr(doctor, "CHECKS", (lambda: Finding("a thing", PROBLEM, "is broken", "mend it"),))
    assert main(["doctor", "--offline"]) == 1
    shown = capsys.readouterr().out
    assert "PROBLEM  a thing" in shown and "→ mend it" in shown and "1 problem:" in shown


@pytest.mark.parametrize("variable, place", [("COURSE_CACHE", "file"), ("COURSE_CACHE", "file/below"),
                                             ("COURSE_PROGRESS", "folder"), ("COURSE_PROGRESS", "file/progress.jsonl")])
def test_a_file_where_a_folder_is_needed_or_the_reverse(tmp_path, monkeypatch, variable, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    monkeypatch.setenv(variable, str(tmp_path / place))
    finding = (doctor.check_cache if variable == "COURSE_CACHE" else doctor.check_progress)()
    assert finding.status == NOTE and f"is a {place.split('/')[0]}" in finding.found
