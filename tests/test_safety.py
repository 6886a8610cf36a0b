"""Nothing that the course reads can run code, and nothing is fetched that was not asked for."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [path for folder in ("course_utils", "tools", "lessons", "training", "benchmarks", "docs")
           for path in sorted((ROOT / folder).rglob("*.py"))]

# --- no pickle -------------------------------------------------------------------------------------------------------

MODULES = {"pickle", "_pickle", "cPickle", "dill", "joblib", "cloudpickle", "jsonpickle", "shelve", "marshal"}
CALLS = {"torch.load", "torch.save", "torch.hub.load", "read_pickle", "to_pickle", "recv", "get_object"}
OPTIONS = {"allow_pickle": True, "trust_remote_code": True, "weights_only": False, "use_safetensors": False}


def unsafe(source: str) -> Iterator[str]:
    """What in a program makes or reads pickles, or runs code that comes with a model."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                named = {alias.name.partition(".")[0] for alias in node.names}
            case ast.ImportFrom(module="torch"):
                named = {f"torch.{alias.name}" for alias in node.names}
            case ast.ImportFrom(module=str(module)):
                named = {module.partition(".")[0]}
            case ast.Attribute():
                named = {ast.unparse(node), node.attr}
            case ast.Constant(value=str(text)):                     # as in import_module("pickle")
                named = {text}
            case ast.keyword(arg=str(name), value=ast.Constant(value=bool(value))):
                named = {name} if OPTIONS.get(name) is value else set()
            case ast.keyword(arg=str(name)):                        # a value that is not in the text
                named = {name}
            case _:
                continue
        yield from (f"line {node.lineno}: {each}" for each in named & (MODULES | CALLS | set(OPTIONS)))


def test_no_pickle():
    found = {path.name: list(unsafe(path.read_text(encoding="utf-8"))) for path in SOURCES}
    assert len(found) > 50 and not any(found.values()), {name: what for name, what in found.items() if what}


@pytest.mark.parametrize("source", [
    "import pickle", "import os, dill as d", "from joblib import load", "def f():\n    from pickle import loads",
    "import torch\ntorch.load('x')", "from torch import save", "load = torch.load", "torch.hub.load('a', 'b')",
    "np.load('x', allow_pickle=True)", "np.load('x', allow_pickle=on)", "pd.read_pickle('x')", "frame.to_pickle('x')",
    "importlib.import_module('pickle')", "connection.recv()", "AutoModel.from_pretrained('x', trust_remote_code=True)"])
def test_what_would_be_found(source):
    assert len(list(unsafe(source))) == 1


@pytest.mark.parametrize("source", [
    "np.load('x')", "np.load('x', allow_pickle=False)", "safetensors.torch.load(x)", "json.load(file)",
    "pipe.recv_bytes()", "AutoModel.from_pretrained('x', use_safetensors=True, trust_remote_code=False)"])
def test_what_is_allowed(source):
    assert list(unsafe(source)) == []


# --- no network ------------------------------------------------------------------------------------------------------

LEARNER = """
import json, sys
tried, FONT_LISTS = [], ("fc-list", "system_profiler")     # matplotlib asks one of them, once, which fonts there are

def watch(event, args):
    address = args[-1] if event in ("socket.connect", "socket.sendto", "socket.sendmsg") else args
    if event.startswith(("socket.connect", "socket.send", "socket.getaddrinfo", "socket.gethostby")):
        if not isinstance(address, str) and str(address[0]) not in ("127.0.0.1", "::1", "localhost"):
            tried.append(f"{event} {address}")
            raise OSError("there is no network in this test")
    if event in ("subprocess.Popen", "os.posix_spawn", "os.exec") and args[0] not in FONT_LISTS:
        tried.append(f"{event} {args[:2]}")

sys.addaudithook(watch)

import contextlib, importlib, pkgutil
import course_utils
for module in pkgutil.walk_packages(course_utils.__path__, "course_utils."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

from course_utils import __main__, exercises, models, viz
from course_utils.faithfulness import evaluate_sae
from course_utils.repeated_tokens import generate_repeated_tokens
from course_utils.sae_files import load_shipped_sae
from course_utils.text import sample_text

model = models.load_model("tiny")
tokens = generate_repeated_tokens(model, 10, 2, seed=0)
logits, cache = model.run_with_cache(tokens)
assert models.load_real_model() is None
kept = exercises.exercise("01.chance_log_prob")(lambda d_vocab: 1 / 0)
exercises.exercise("02.head_scores")(exercises.get("02.head_scores").reference)
for item in (item for number in exercises.lessons() for item in exercises.exercises_of(number)):
    for _ in range(3):
        exercises.hint(item.id)
    exercises.solution(item.id)
exercises.predict("01.x", -2.5)
exercises.reveal("01.x", -3.5)
for command in (["progress"], ["doctor", "--offline"]):
    assert __main__.main(command) == 0
with contextlib.suppress(SystemExit):
    __main__.main(["--help"])
evaluate_sae(model, load_shipped_sae("tiny", "topk-2"), sample_text(model, 2, 16), resamples=0)
pattern, words = cache["blocks.0.attn.hook_pattern"][0], ["word"] * 21
viz.plot_attention(pattern[0], words, "a head").savefig("figure.png")
viz.bundle_script() + viz.attention_patterns(words, pattern).html
without_asking = [*tried]
tried.clear()
assert __main__.main(["doctor"]) == 0
print(json.dumps([without_asking, tried]))
"""


@pytest.mark.slow
def test_a_learner_needs_neither_network_nor_more_than_ascii_and_the_doctor_asks_the_hub_alone(tmp_path):
    """In a new process whose folders are empty. The learner asks for no other model."""
    ours = ("HF_", "COURSE_", "TRANSFORMERS_", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    only_ascii = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    env = {**kept, **only_ascii, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg",
           "OMP_NUM_THREADS": "1", "COURSE_BARS": "off"}
    done = subprocess.run([sys.executable, "-c", LEARNER], capture_output=True, text=True, encoding="ascii", env=env,
                          cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "-> for the real-model sections" in done.stdout
    assert "! error - 01.chance_log_prob" in done.stdout and "You said -2.5 nats; measured -3.5 nats." in done.stdout
    without_asking, (asked,) = json.loads(done.stdout.splitlines()[-1])
    assert without_asking == [] and "huggingface.co" in asked
