"""Training: the same seed gives the same weights, and being killed makes no difference.

The script runs as it is, with a smaller model and fewer rows and steps.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from course_utils import models
from course_utils.language import BOS, UNK, stream, vocabulary

REPO = Path(__file__).resolve().parents[1]
SCRIPT = REPO / "training" / "train_tiny.py"

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch.optim.Muon")

DRIVER = textwrap.dedent("""
    import importlib.util, sys
    import torch, transformers
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("train_tiny", sys.argv[1])
    module = sys.modules["train_tiny"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = dict(n_embd=32, n_inner=48, n_layer=2)
    module.GPT2Config = lambda **kw: transformers.GPT2Config(**{**kw, **small})
    CONFIG = module.Config(steps=200, batch=4, context=24, warmup=20, story_rows=30, widen=60, pairs_from=90,
                           save_every=50, ship=(0, 100))
""")
RUN = DRIVER + "from pathlib import Path\nmodule.train(CONFIG, Path(sys.argv[2]))\n"


@pytest.fixture(scope="module")
def training():
    """The script's module with a smaller model, on one thread; `.CONFIG` is a run of 200 steps."""
    threads = torch.get_num_threads()
    names, argv = {}, sys.argv
    sys.argv = ["driver", str(SCRIPT)]
    try:
        exec(DRIVER, names)
        names["module"].CONFIG = names["CONFIG"]
        yield names["module"]
    finally:
        sys.argv = argv
        torch.set_num_threads(threads)
        sys.modules.pop("train_tiny", None)


@pytest.fixture(scope="module")
def finished(training, tmp_path_factory):
    """A folder with an uninterrupted run of 200 steps."""
    out = tmp_path_factory.mktemp("finished")
    training.train(training.CONFIG, out)
    return out


def weights(out: Path) -> dict[str, str]:
    """The hash of every checkpoint."""
    files = out.glob("step-*.safetensors")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# --- the same run again ---------------------------------------------------------------------------

def start_and_kill(out: Path, when, *, limit: float = 120) -> None:
    """Train in another process and kill it as soon as `when()`."""
    process = subprocess.Popen([sys.executable, "-c", RUN, str(SCRIPT), str(out)], cwd=REPO,
                               env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stop = time.monotonic() + limit
    while not when():
        assert process.poll() is None and time.monotonic() < stop, "training ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.matrix  # in make test the run is stopped in its own process, and test_faults.py kills a write
@pytest.mark.skipif(sys.platform == "win32", reason="kills with SIGKILL")
def test_killed_and_resumed_training_gives_the_same_weights_bit_for_bit(training, finished, tmp_path):
    start_and_kill(tmp_path, (tmp_path / "state.safetensors").exists)
    assert not (tmp_path / "step-000200.safetensors").exists()
    training.train(training.CONFIG, tmp_path)
    assert weights(tmp_path) == weights(finished)
    assert sorted(weights(finished)) == [f"step-{step:06d}.safetensors" for step in (0, 50, 100, 150, 200)]
    assert last_scores(tmp_path) == last_scores(finished)


def last_scores(out: Path) -> dict:
    return json.loads((out / "log.jsonl").read_text().splitlines()[-1])


def stop_at(training, monkeypatch, step: int) -> None:
    batch_at = training.batch_at

    def interrupted(at, *args):
        if at == step:
            raise KeyboardInterrupt
        return batch_at(at, *args)
    monkeypatch.setattr(training, "batch_at", interrupted)


@pytest.mark.matrix
def test_a_half_written_file_is_not_trusted(training, finished, tmp_path, monkeypatch, step=135):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(training, patch, step)
        training.train(training.CONFIG, tmp_path)
    assert (tmp_path / "state.safetensors").exists() == (step > 100)
    half = (finished / "state.safetensors").read_bytes()[:5000]
    for name in ("state.tmp", "step-000150.tmp", "stories.tmp.npy"):
        (tmp_path / name).write_bytes(half)
    seen = []
    batch_at = training.batch_at
    monkeypatch.setattr(training, "batch_at", lambda at, *args: (seen.append(at), batch_at(at, *args))[1])
    training.train(training.CONFIG, tmp_path)
    assert seen[0] == (100 if step > 100 else 0)
    assert weights(tmp_path) == weights(finished) and len(weights(finished)) == 5
    assert last_scores(tmp_path) == last_scores(finished)


@pytest.mark.slow
def test_a_write_that_fails_keeps_the_state_before_it(training, tmp_path, monkeypatch):
    model = training.make_model(0)
    optimisers = training.optimizers(model, training.CONFIG)
    training.save_state(model, optimisers, 7, tmp_path)
    before = (tmp_path / "state.safetensors").read_bytes()

    def full_disk(tensors, file, metadata=None):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(training, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        training.save_state(model, optimisers, 8, tmp_path)
    with pytest.raises(OSError, match="No space left"):
        training.save_weights(model, tmp_path / "step-000008.safetensors")
    assert (tmp_path / "state.safetensors").read_bytes() == before
    assert training.load_state(model, optimisers, tmp_path) == 7
    assert not list(tmp_path.glob("step-*.safetensors"))


@pytest.mark.matrix
def test_a_finished_run_started_again_trains_no_more(training, finished, monkeypatch):
    before = weights(finished)
    monkeypatch.setattr(training, "loss_of", lambda *_: pytest.fail("trained on"))
    training.train(training.CONFIG, finished)
    assert weights(finished) == before


@pytest.mark.matrix
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(training, tmp_path):
    short = replace(training.CONFIG, steps=6, story_rows=10)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(ord(name))  # what was drawn before must not matter
        training.train(replace(short, seed=seed), tmp_path / name)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert a == b and set(a) == set(c) and not set(a.values()) & set(c.values())


@pytest.mark.matrix
def test_a_state_holds_everything(training, finished):
    """Loaded into fresh objects and saved again, it is the same file."""
    model = training.make_model(5)
    optimisers = training.optimizers(model, training.CONFIG)
    step = training.load_state(model, optimisers, finished)
    assert step == 200
    out = finished / "again"
    out.mkdir()
    training.save_state(model, optimisers, step, out)
    assert (out / "state.safetensors").read_bytes() == (finished / "state.safetensors").read_bytes()


@pytest.mark.matrix
def test_training_learns_and_logs(finished):
    log = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log[:2]] == [100, 200]
    assert set(log[0]) == {"step", "loss", "first", "second", "no_boundary", "kl"}
    assert log[1]["kl"] < log[0]["kl"] < 6.9


# --- data -----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def stories(training, finished):
    return training.story_rows(training.CONFIG, finished)


@pytest.mark.matrix
def test_stories_are_rows_of_the_language_that_no_test_draws(training, stories):
    rows = stream(1001 + training.CONFIG.seed, training.CONFIG.context)
    assert stories.tolist() == [next(rows) for _ in range(training.CONFIG.story_rows)]
    assert 1001 + training.CONFIG.seed != 7  # the seed of the held-out stories


@pytest.mark.matrix
def test_a_batch_is_a_function_of_seed_and_step(training, stories):
    config = training.CONFIG
    first, again, later, other = (training.batch_at(step, stories, replace(config, seed=seed))
                                  for step, seed in ((3, 0), (3, 0), (4, 0), (3, 1)))
    assert all(torch.equal(x, y) for x, y in zip(first, again))
    assert not torch.equal(first[0], later[0]) and not torch.equal(first[0], other[0])
    tokens, row_weights = first
    assert tokens.shape == row_weights.shape == (config.batch, config.context)
    assert (tokens[:, 0] == 0).all() and tokens.max() < len(vocabulary())
    assert {tuple(row) for row in tokens[:2].tolist()} <= {tuple(row) for row in stories.tolist()}


@pytest.mark.parametrize("seed", range(5))
def test_repeated_rows_repeat_and_say_from_where(training, seed):
    tokens, predictable = training.repeated_row(np.random.default_rng(seed), 30, 128)
    row = np.append(0, tokens)
    period = int(predictable.argmax()) - 1
    assert len(row) == 128 and 2 <= period <= 30
    assert predictable[period + 1:].all() and not predictable[:period + 1].any()
    assert (row[period + 1:] == row[1:-period]).all()


@pytest.mark.parametrize("seed", range(5))
def test_paired_rows_are_predictable_from_the_token_before(training, seed):
    tokens, predictable = training.paired_row(np.random.default_rng(seed), 30, 128)
    row = np.append(0, tokens)
    assert len(row) == len(predictable) == 128
    for at in range(1, 128):
        known = any(row[q] == row[at - 1] and row[q + 1] == row[at] for q in range(1, at - 1) if q % 2)
        assert bool(predictable[at]) == (at % 2 == 0 and known), at


def test_the_learning_rate_warms_up_stays_and_falls_to_zero(training):
    config = training.Config()
    rates = [training.learning_rate(step, config) for step in range(config.steps + 1)]
    assert rates[0] == pytest.approx(config.lr / config.warmup) and max(rates) == config.lr
    assert rates[config.warmup:config.steps // 2] == [config.lr] * (config.steps // 2 - config.warmup)
    second_half = rates[config.steps // 2:]
    assert rates[-1] == 0 and all(x > y for x, y in itertools.pairwise(second_half))


# --- shipping -------------------------------------------------------------------------------------

@pytest.fixture
def exported(training, finished, tmp_path):
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "step-999999.safetensors").write_bytes(b"of an older run")
    training.export(finished, folder, [*training.CONFIG.ship, training.CONFIG.steps])
    return folder


@pytest.mark.matrix
def test_export_writes_every_file_with_its_hash(exported, finished):
    hashes = json.loads((exported / "hashes.json").read_text())
    assert set(hashes) == {"config.json", "tokenizer.json",
                           *(f"step-{step:06d}.safetensors" for step in (0, 100, 200))}
    assert {path.name for path in exported.iterdir()} == {*hashes, "hashes.json"}
    for name, expected in hashes.items():
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == expected
    assert weights(exported).items() <= weights(finished).items()


@pytest.mark.matrix
@torch.no_grad()
def test_an_export_that_lacks_a_checkpoint_changes_nothing(training, finished, tmp_path):
    (tmp_path / "step-000000.safetensors").write_text("shipped")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileNotFoundError, match="step-999999.safetensors: train to the end first"):
        training.export(finished, tmp_path, [0, 999_999])
    assert (tmp_path / "step-000000.safetensors").read_text() == "shipped"
    training.export(finished, tmp_path, [0])
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.matrix
def test_the_course_loads_what_was_exported(training, exported, finished, monkeypatch):
    monkeypatch.setattr(models, "TINY_FOLDER", exported)
    assert models.checkpoint_steps("tiny") == [0, 100, 200]
    trained = training.make_model(0)
    training.load_state(trained, training.optimizers(trained, training.CONFIG), finished)
    tokens = torch.tensor([next(stream(7, 24))])
    wanted = trained(tokens).logits.log_softmax(-1)
    for step, same in ((None, True), (200, True), (0, False)):
        found = models.load_model("tiny", step=step)(tokens).log_softmax(-1)
        assert torch.allclose(found, wanted, atol=0.02) == same  # float16 on disk
    model = models.load_model("tiny")
    assert models.bos_token_id(model) == 0
    ids = [vocabulary().index(word) for word in (BOS, "Ada", "met", UNK)]
    assert model.to_tokens("Ada met Zzz").tolist() == [ids]


def test_the_shipped_config_and_tokenizer_are_what_the_script_writes(tmp_path):
    """The real sizes: the weights in the repository are of the model that the script trains."""
    spec = importlib.util.spec_from_file_location("train_tiny_unchanged", SCRIPT)
    script = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(script)
        script.write_tokenizer(tmp_path / "tokenizer.json")
        script.make_model(0).config.to_json_file(tmp_path / "config.json")
        script.save_weights(script.make_model(0), tmp_path / "step-000000.safetensors")
    finally:
        del sys.modules[spec.name]
    if not models.is_cached("tiny"):
        pytest.skip("the weights of tiny are not here")
    shipped = models.TINY_FOLDER
    assert (shipped / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, shipped))
    changing = {"transformers_version", "dtype", "torch_dtype"}
    assert all(ours[key] == theirs[key] for key in (ours.keys() | theirs.keys()) - changing)
    first, made = (load_file(folder / "step-000000.safetensors") for folder in (shipped, tmp_path))
    assert first.keys() == made.keys()
    assert all(torch.allclose(first[name], made[name], atol=1e-4) for name in first)  # the same seed
    steps = {*script.Config.ship, script.Config.steps}
    assert set(models.checkpoint_steps("tiny")) == steps


def test_a_folder_of_another_run_is_refused(training, tmp_path):
    training.claim(training.CONFIG, tmp_path)
    training.claim(training.CONFIG, tmp_path)  # the same run goes on
    with pytest.raises(ValueError, match="another seed: choose another --out folder"):
        training.claim(replace(training.CONFIG, seed=1), tmp_path)
