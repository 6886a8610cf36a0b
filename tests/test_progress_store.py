"""The progress file: what it survives."""

from __future__ import annotations

import json
import multiprocessing
import os
import time

import pytest

from course_utils.exercises import progress_store

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def write(path, count, name):
    for i in range(count):
        progress_store.record(f"{name}.{i}", "wrong", "é" * 200, path=path)


def start_writer(path, count, name):
    """Another process that records so many attempts: a fork, so that it need not import PyTorch first."""
    writer = multiprocessing.get_context("fork").Process(target=write, args=(path, count, name))
    writer.start()
    return writer


def test_record_and_read(tmp_path):
    path = tmp_path / "folder" / "progress.jsonl"
    progress_store.record("01.x", "wrong", "shifted by one", path)
    progress_store.record("01.x", "passed", path=path)
    entries = progress_store.read(path)
    assert [(e["id"], e["verdict"], e["mistake"]) for e in entries] == [
        ("01.x", "wrong", "shifted by one"), ("01.x", "passed", None)]
    assert abs(entries[0]["time"] - time.time()) < 100


def test_no_file_yet(tmp_path):
    assert progress_store.read(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_truncated_last_line_costs_only_itself(tmp_path, cut):
    path = tmp_path / "progress.jsonl"
    for name in ("01.a", "01.b"):
        progress_store.record(name, "passed", path=path)
    path.write_bytes(path.read_bytes()[:-cut])
    assert [e["id"] for e in progress_store.read(path)] == ["01.a"]
    progress_store.record("01.c", "passed", path=path)
    assert [e["id"] for e in progress_store.read(path)] == ["01.a", "01.c"]


def test_lines_that_are_not_attempts_are_passed_over(tmp_path):
    path = tmp_path / "progress.jsonl"
    progress_store.record("01.a", "passed", path=path)
    with path.open("ab") as file:
        file.write(b'\n\xff\xfe\x00 junk\n[1, 2]\n"text"\n{"id": 3, "verdict": "passed"}\n{"id": "01.z"}\n\n')
        file.write(b"[" * 100_000)
    progress_store.record("01.b", "passed", path=path)
    assert [e["id"] for e in progress_store.read(path)] == ["01.a", "01.b"]


@forks
def test_four_kernels_at_once(tmp_path):
    path = tmp_path / "progress.jsonl"
    writers = [start_writer(path, 200, name) for name in "abcd"]
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0, 0]
    ids = [e["id"] for e in progress_store.read(path)]
    for name in "abcd":
        assert [id for id in ids if id.startswith(name)] == [f"{name}.{i}" for i in range(200)]
    lines = path.read_bytes().split(b"\n")
    assert lines[0] == b"" and len(lines) == 801 and all(json.loads(line)["mistake"] == "é" * 200 for line in lines[1:])


@forks
def test_a_killed_kernel_loses_at_most_the_record_it_was_writing(tmp_path):
    path = tmp_path / "progress.jsonl"
    writer = start_writer(path, 1_000_000, "k")
    while not path.exists() or path.stat().st_size < 20_000:
        assert writer.exitcode is None
        time.sleep(0.01)
    writer.kill()
    writer.join(60)
    ids = [e["id"] for e in progress_store.read(path)]
    assert len(ids) > 20 and ids == [f"k.{i}" for i in range(len(ids))]
    progress_store.record("after", "passed", path=path)
    assert progress_store.read(path)[-1]["id"] == "after"


def test_a_full_disk_is_an_error_and_spoils_nothing(tmp_path, monkeypatch):
    path = tmp_path / "progress.jsonl"
    progress_store.record("01.a", "passed", path=path)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: write(file, data[:10]))  # only part of it fits
        with pytest.raises(OSError, match="full"):
            progress_store.record("01.b", "passed", path=path)
    progress_store.record("01.c", "passed", path=path)
    assert [e["id"] for e in progress_store.read(path)] == ["01.a", "01.c"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_really_full_disk():
    from pathlib import Path

    with pytest.raises(OSError):
        progress_store.record("01.a", "passed", path=Path("/dev/full"))


def test_standings():
    entries = [{"id": "a", "verdict": v, "mistake": m} for v, m in (
        ("not yet", None), ("wrong", "sign"), ("passed", None), ("error", None))]
    standing = progress_store.standings(entries)["a"]
    assert (standing.attempts, standing.status, standing.last_mistake) == (3, "passed", "sign")
    assert json.dumps(progress_store.standings([])) == "{}"
