"""Broken files: everything that the course reads from a disk, spoilt in whatever way hypothesis thinks of.

A file is either read right, or refused with the error that its reader documents and in a message that names the file.
Nothing else may be raised, and reading never changes a file. Lines of a progress file that can be read stay readable
whatever stands between them, and a right answer in a submission is found whatever stands in the other cells.

By default each test tries a few files, always the same ones. The long run tries as many new ones as asked for (1000):

    COURSE_FUZZ=1000 pytest tests/test_fuzz.py
"""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import json
import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from small_training import small_script
from submissions_made import chance, log_probs, with_cells
from test_models import write_model_folder
from test_sae_files import old_folder, random_sae, some_activations
from test_sae_formats import write_dictionary, write_scope, write_sparsify
from test_sae_training import config as sae_config
from test_sae_training import new_sae, some

from course_utils import exercises, models
from course_utils import measured as report
from course_utils.exercises import grading, progress_store
from course_utils.exercises.grading.submissions import attempts_in
from course_utils.house import DamagedModelFile
from course_utils.house.files import SETTINGS
from course_utils.models import HASHES, from_folder
from course_utils.models.folders import write_hashes
from course_utils.sae import KINDS, SparseAutoencoder
from course_utils.sae_files import WEIGHTS
from course_utils.sae_formats import CONFIG
from course_utils.sae_training import STATE, Training, fit

pytestmark = pytest.mark.once

LONG = "COURSE_FUZZ" in os.environ
EXAMPLES = int(os.environ.get("COURSE_FUZZ", 20))
fuzz = settings(deadline=None, max_examples=EXAMPLES, derandomize=not LONG, suppress_health_check=list(HealthCheck))

# --- broken files ----------------------------------------------------------------------------------------------------

DEEP = "a value inside a hundred thousand lists"  # too deep for any reader; written by `as_json`
WHOLE = st.integers() | st.sampled_from([0, 1, -1, 40, 10**6, 10**12, 2**63, 10**400])
REAL = st.floats() | st.sampled_from([0.5, -1.0, 1e300])
WORDS = st.sampled_from(["0", "1.5", "none", "topk", "x" * 10_000]) | st.text(st.characters(), max_size=5)
# st.characters() has surrogates, which JSON can hold and UTF-8 cannot
VALUES = st.recursive(
    st.none() | st.booleans() | WHOLE | REAL | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=5,
) | st.just(DEEP)
SAME_KIND = {bool: st.booleans(), int: WHOLE, float: REAL | WHOLE, str: WORDS}


def places(value, at: tuple = ()) -> Iterator[tuple]:
    """The way to every part of a JSON value, the whole included."""
    yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


@st.composite
def changed(draw, value):
    """A JSON value of which one or two parts were dropped, replaced or added."""
    value = {"whole": copy.deepcopy(value)}
    for _ in range(draw(st.integers(1, 2))):
        *way, key = draw(st.sampled_from([at for at in places(value) if at]))
        inside = value
        for each in way:
            inside = inside[each]
        match draw(st.sampled_from(["replace", "replace", "drop", "add"])):
            case "replace":
                inside[key] = draw(SAME_KIND.get(type(inside[key]), VALUES) | VALUES)
            case "drop" if way:
                del inside[key]
            case "add" if isinstance(inside, list):
                inside.insert(key, draw(VALUES))
            case "add" if way:
                inside[draw(WORDS)] = draw(VALUES)
    return value["whole"]


def as_json(value) -> bytes:
    return json.dumps(value).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000).encode()


@st.composite
def spoilt(draw, content: bytes):
    """These bytes, cut off, with some of them changed or put in between, or other bytes altogether."""
    cut, more = draw(st.integers(0, len(content))), draw(st.binary(max_size=20))
    match draw(st.sampled_from(["cut", "change", "insert", "other"])):
        case "cut":
            return content[:cut]
        case "change":
            return content[:cut] + more + content[cut + len(more):]
        case "insert":
            return content[:cut] + more + content[cut:]
        case _:
            return more


def broken_json(value):
    """A JSON file with other values in it, or spoilt."""
    other = changed(value).map(as_json)
    return other | other | spoilt(json.dumps(value).encode())


@st.composite
def broken_array(draw, content: bytes):
    """A file of numpy with another array in it, or spoilt."""
    if draw(st.booleans()):
        return draw(spoilt(content))
    shape, dtype = draw(st.lists(st.integers(0, 30), max_size=3)), draw(st.sampled_from(["u2", "u2", "i8", "f4", "U3"]))
    np.save(file := io.BytesIO(),
            np.full(draw(st.sampled_from([shape, (6, 24)])), draw(st.sampled_from([1, 60_000])), dtype))
    return file.getvalue()


@st.composite
def broken_arrays(draw, content: bytes):
    """An npz file with another array in it, with one that is spoilt, or spoilt itself."""
    if draw(st.integers(0, 3)) == 0:
        return draw(spoilt(content))
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        arrays = {name: opened.read(name) for name in opened.namelist()}
    name = draw(st.sampled_from(sorted(arrays)))
    arrays[name] = draw(broken_array(arrays[name]))
    with zipfile.ZipFile(file := io.BytesIO(), "w") as made:
        for name, array in arrays.items():
            made.writestr(name, array)
    return file.getvalue()


@st.composite
def broken_tensors(draw, content: bytes):
    """A safetensors file with other tensors or texts in it, with another header, or spoilt."""
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    texts = header.get("__metadata__", {"format": "pt"})
    match draw(st.sampled_from(["tensors", "tensors", "texts", "header", "bytes"])):
        case "tensors":
            return save(draw(changed_tensors(load(content))), texts)
        case "texts":
            name = draw(st.sampled_from(sorted(texts)))
            with contextlib.suppress(ValueError):
                texts[name] = as_json(draw(changed(json.loads(texts[name])))).decode()
            return save(load(content), texts)
        case "header":
            other = as_json(draw(changed(header)))
            return struct.pack("<Q", len(other)) + other + content[start:]
        case _:
            return draw(spoilt(content))


@st.composite
def changed_tensors(draw, tensors: dict[str, torch.Tensor]):
    name = draw(st.sampled_from(sorted(tensors)))
    value = tensors.pop(name)
    match draw(st.sampled_from(["drop", "rename", "shape", "dtype", "numbers", "none left"])):
        case "rename":
            tensors[draw(st.text(max_size=5))] = value
        case "shape":
            shape = draw(st.lists(st.integers(0, 20), max_size=3))
            tensors[name] = torch.ones(shape, dtype=value.dtype)
        case "dtype":
            dtypes = [torch.int64, torch.bool, torch.uint8, torch.float64, torch.bfloat16, torch.complex64]
            tensors[name] = value.to(draw(st.sampled_from(dtypes)))
        case "numbers":
            number = draw(st.sampled_from([float("nan"), float("inf"), 6e4, -1.0, 0.0]))
            tensors[name] = torch.full(value.shape, number).to(value.dtype)
        case "none left":
            tensors.clear()
    return tensors


@contextlib.contextmanager
def folder_with(files: dict[str, bytes]) -> Iterator[Path]:
    """A folder with these files, which must be the same at the end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        yield folder
        assert {path: (folder / path).read_bytes() for path in files} == files, "reading has changed a file"


def read_or_refused(read: Callable, error_type: type[Exception], says: str):
    """What was read; None when it was refused as documented. Any other exception fails the test."""
    try:
        found = read()
        event("read")
        return found
    except error_type as error:
        event("refused")
        assert type(error).__module__ != "json.decoder" and not isinstance(error, UnicodeError), repr(error)
        assert says in str(error) and len(str(error)) < 5000, str(error)[:5000]
        return None


@contextlib.contextmanager
def terminal() -> Iterator[Callable[[], str]]:
    """A terminal that understands UTF-8 and nothing else; a function that says what it shows."""
    screen = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(screen):
        yield lambda: screen.buffer.getvalue().decode()
        screen.flush()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- autoencoders ----------------------------------------------------------------------------------------------------


def saved_saes() -> list[dict[str, bytes]]:
    """The files of an autoencoder of each kind, and of one in the old form."""
    with tempfile.TemporaryDirectory() as name:
        for kind in KINDS:
            random_sae(kind, hook_name="blocks.1.hook_resid_pre", model_name="tiny").save(Path(name, kind))
        old_folder(Path(name, "old"), "topk", activation_fn_str="topk", activation_fn_kwargs={"k": 3})
        return [contents(path) for path in sorted(Path(name).iterdir())]


SAES = saved_saes()


def check_sae(files: dict[str, bytes]) -> None:
    with folder_with(files) as folder:
        sae = read_or_refused(lambda: SparseAutoencoder.load(folder), ValueError, str(folder))
        if sae is None:
            return
        config, weights = json.loads(files[CONFIG]), load(files[WEIGHTS])
        assert (sae.d_in, sae.d_sae) == (config["d_in"], config["d_sae"])
        assert set(sae.state_dict()) == set(weights) - {"scaling_factor"}
        x = some_activations()[:, : sae.d_in].to(sae.W_dec.dtype)
        if x.shape[1] == sae.d_in:
            assert sae.encode(x).shape == (len(x), sae.d_sae) and sae(x).shape == x.shape
        for name, kind in (("hook_name", str), ("model_name", str), ("head", int)):
            assert getattr(sae, name) is None or type(getattr(sae, name)) is kind
        sae.save(folder / "again")                                  # whatever was read can be written


@fuzz
@given(st.data(), st.sampled_from(SAES))
def test_the_configuration_of_an_autoencoder(data, files):
    check_sae({**files, CONFIG: data.draw(broken_json(json.loads(files[CONFIG])))})


@fuzz
@given(st.data(), st.sampled_from(SAES))
def test_the_weights_of_an_autoencoder(data, files):
    check_sae({**files, WEIGHTS: data.draw(broken_tensors(files[WEIGHTS]))})


def foreign_saes() -> list[dict[str, bytes]]:
    """The files of an autoencoder of each other library."""
    with tempfile.TemporaryDirectory() as name:
        write_scope(Path(name, "scope"))
        write_sparsify(Path(name, "layers.3"))
        for dict_class in ("AutoEncoderTopK", "MatryoshkaBatchTopKSAE"):
            write_dictionary(Path(name, dict_class), dict_class)
        return [contents(path) for path in sorted(Path(name).iterdir())]


FOREIGN = foreign_saes()
BROKEN = {".npz": broken_arrays, ".safetensors": broken_tensors,
          ".json": lambda content: broken_json(json.loads(content))}


@fuzz
@given(st.data(), st.sampled_from(FOREIGN))
def test_an_autoencoder_of_another_library(data, files):
    name = data.draw(st.sampled_from(sorted(files)))
    with folder_with({**files, name: data.draw(BROKEN[Path(name).suffix](files[name]))}) as folder:
        sae = read_or_refused(lambda: SparseAutoencoder.load(folder), ValueError, str(folder))
        if sae is not None:
            x = torch.ones(2, sae.d_in, dtype=sae.W_dec.dtype)
            assert sae.encode(x).shape == (2, sae.d_sae) and sae(x).shape == x.shape
            sae.save(folder / "again")                              # whatever was read can be written


# --- checkpoints of a training ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sae_run(tmp_path_factory):
    """The files of a training that was stopped."""
    folder = tmp_path_factory.mktemp("run")
    fit(new_sae(sae_config()), some(), sae_config(), folder)
    return contents(folder)


@fuzz
@given(st.data())
def test_the_checkpoint_of_an_autoencoder_s_training(sae_run, data):
    name = data.draw(st.sampled_from([SETTINGS, STATE]))
    broken = broken_json(json.loads(sae_run[name])) if name == SETTINGS else broken_tensors(sae_run[name])
    files = {**sae_run, name: data.draw(broken)}
    with folder_with(files) as folder:
        training = read_or_refused(
            lambda: Training(new_sae(sae_config()), some(), sae_config(), folder), ValueError, str(folder))
        if training:
            assert json.loads(files[SETTINGS]) == json.loads(sae_run[SETTINGS])
            assert 0 <= training.step <= sae_config().steps and isinstance(training.log, list)
            assert training.idle.shape == (sae_config().d_sae,)
            kept = load(files[STATE])
            assert all(torch.equal(value, kept[f"sae/{name}"].to(value.dtype)) or value.isnan().any()
                       for name, value in training.sae.state_dict().items())
            training.folder = None                                  # it can go on
            training.step = min(training.step, sae_config().steps - 1)
            training.one_step(training.batch())


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """The script that trains `tiny`, and the files that a finished run left."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("needs torch.optim.Muon")
    script, folder = small_script(), tmp_path_factory.mktemp("tiny")
    script.train(script.CONFIG, folder)
    files = ("settings.json", "state.safetensors", "stories.npy")
    return script, {name: (folder / name).read_bytes() for name in files}


class GoesOn(Exception):
    """A training has read all its files and begins with a step."""


@fuzz
@given(st.data())
def test_the_checkpoint_of_tiny_s_training(tiny_run, data):
    script, whole = tiny_run
    name = data.draw(st.sampled_from(sorted(whole)))
    strategy = {"settings.json": lambda content: broken_json(json.loads(content)),
                "state.safetensors": broken_tensors, "stories.npy": broken_array}[name]
    files = {**whole, name: data.draw(strategy(whole[name]))}
    models_read = []

    def loss_of(model, *_):
        models_read.append(model)
        raise GoesOn

    def train() -> bool:
        with contextlib.suppress(GoesOn):
            models_read.append(script.train(script.CONFIG, folder))
        return True

    with folder_with(files) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "loss_of", loss_of)
        if read_or_refused(train, ValueError, str(folder)):
            assert json.loads(files["settings.json"]) == json.loads(whole["settings.json"])
            kept = load(files["state.safetensors"])
            assert all(torch.equal(value, kept[f"model/{name}"]) or value.isnan().any()
                       for name, value in models_read[0].state_dict().items() if name != "lm_head.weight")
            stories = np.load(folder / "stories.npy")
            assert stories.shape == (6, 24) and stories.max() < len(script.vocabulary())


# --- the model's folder ----------------------------------------------------------------------------------------------


USED = ("architectures", "model_type", "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner",
        "activation_function", "layer_norm_epsilon", "bos_token_id", "tie_word_embeddings")  # of transformers' options


@pytest.fixture(scope="module")
def model_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_model_folder(folder, {"step-000007.safetensors": 0})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({name: config[name] for name in USED}))
    write_hashes(folder)
    return contents(folder)


@fuzz
@given(st.data())
def test_the_folder_of_a_model(model_files, data):
    name = data.draw(st.sampled_from([*sorted(model_files), "config.json"]))
    broken = broken_tensors if name.endswith(".safetensors") else lambda content: broken_json(json.loads(content))
    files = {**model_files, name: data.draw(broken(model_files[name]))}
    if name != HASHES and data.draw(st.booleans()):                 # as somebody would who made the folder like this
        with folder_with(files) as folder:
            write_hashes(folder)
            files[HASHES] = (folder / HASHES).read_bytes()
    with folder_with(files) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "TINY_FOLDER", folder)
        model = read_or_refused(lambda: models.load_model("tiny"), DamagedModelFile, str(folder))
        if model:
            assert model(torch.tensor([[0, 2, 3]])).shape == (1, 3, model.cfg.d_vocab)
            kept = load(files[next(name for name in files if name.startswith("step"))])
            assert len(model.blocks) == json.loads(files["config.json"])["n_layer"] <= len(kept)


def test_a_model_that_claims_more_layers_than_there_are_weights_is_not_begun(model_files):
    config = as_json({**json.loads(model_files["config.json"]), "n_layer": 3000})
    with folder_with({**model_files, "config.json": config}) as folder:
        with pytest.raises(DamagedModelFile, match="does not fit its config.json: 3000 layers"):
            from_folder(folder, "step-000007.safetensors")


@pytest.mark.parametrize("epsilon", [2**63, -10**30, 10**400], ids=["2^63", "-10^30", "10^400"])
def test_a_number_too_large_for_pytorch_is_refused(model_files, epsilon):
    config = as_json({**json.loads(model_files["config.json"]), "layer_norm_epsilon": epsilon})
    with folder_with({**model_files, "config.json": config}) as folder:
        with pytest.raises(DamagedModelFile, match="layer_norm_epsilon"):
            from_folder(folder, "step-000007.safetensors")


# --- progress --------------------------------------------------------------------------------------------------------

ATTEMPT = {"id": "01.chance_log_prob", "verdict": "wrong", "mistake": "the sign", "time": 1_700_000_000}
LINES = (st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")) | VALUES.map(as_json)
         | broken_json(ATTEMPT).map(lambda line: line.replace(b"\n", b"")))
EXERCISES = st.sampled_from(["00.top_tokens", "01.chance_log_prob", "not of this course"])


@fuzz
@given(st.lists(LINES | EXERCISES))
@example([b'{"id": "01.chance_log_prob", "verdict": "wrong", "mistake": "\\ud800"}'])
@example([b'{"id": "01.chance_log_prob", "verdict": "wrong", "mistake": ' + b"[" * 900 + b"]" * 900 + b"}"])
def test_a_progress_file(lines):
    good = [line for line in lines if isinstance(line, str)]
    written = (as_json({**ATTEMPT, "id": line, "verdict": "good"}) if line in good else line for line in lines)
    content = b"".join(b"\n" + line for line in written)
    with folder_with({"progress.jsonl": content}) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_PROGRESS", str(folder / "progress.jsonl"))
        found = progress_store.read()
        assert [each["id"] for each in found if each["verdict"] == "good"] == good
        with terminal() as shown:
            exercises.progress()
        assert " passed" in shown().splitlines()[-1]
        before = (folder / "progress.jsonl").read_bytes()
        progress_store.record("01.after", "passed")
        after = (folder / "progress.jsonl").read_bytes()
        assert after.startswith(before) and progress_store.read()[:-1] == found
        assert progress_store.read()[-1]["id"] == "01.after"
        (folder / "progress.jsonl").write_bytes(before)


# --- what a lesson measured, what it costs ---------------------------------------------------------------------------

ROW = {"name": "score", "value": 0.9, "unit": "nats", "at_least": 0.8, "at_most": None, "published": None}


@fuzz
@given(st.lists(broken_json(ROW), max_size=1), st.integers(0, 2), st.sampled_from([b"", b"", b"{"]))
@example([as_json({**ROW, "name": "\ud800", "value": 0.1})], 1, b"")
@example([as_json({**ROW, "value": "0.9"})], 1, b"")
@example([as_json({**ROW, "at_most": 10**400})], 1, b"")
def test_a_report(broken, good, end):
    with folder_with({"measured.jsonl": b"\n".join([*broken, *good * [as_json(ROW)], end])}) as folder:
        path = folder / "measured.jsonl"
        rows = read_or_refused(lambda: report.read(path), ValueError, str(path))
        with terminal() as shown:
            status = report.main(str(path))
        if rows is None:
            assert status == 1 and str(path) in shown()
        else:
            assert status == int(not rows or not all(map(report.passed, rows)))


COSTS = {"01_x": {"tiny": {"seconds": 7.1, "gigabytes": 0.8}, "real": {"seconds": 20, "gigabytes": 2.0}}}


@fuzz
@given(broken_json(COSTS))
def test_the_measured_costs(content):
    costs = pytest.importorskip("costs")
    with folder_with({"lessons/costs.json": content}) as folder:
        found = read_or_refused(lambda: costs.read(folder), costs.CostsError, str(folder / "lessons" / "costs.json"))
        if found is not None:
            assert found == json.loads(content)
            for lesson in found:
                assert costs.lesson_label(found, lesson).startswith("**To run the solved lesson")
            costs.with_costs("| 01 | a | old |", found)


# --- notebooks -------------------------------------------------------------------------------------------------------

SAMPLE = Path(__file__).parent / "data" / "course"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sample lesson, and its two notebooks as they are stored (written, not run)."""
    build_notebooks = pytest.importorskip("build_notebooks")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SAMPLE))
        from sample_exercises import get
    root = tmp_path_factory.mktemp("built")
    shutil.copytree(SAMPLE, root, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_notebooks, "run_notebook", number_the_cells)
        build_notebooks.build(root, get)
    return get, contents(root)


def number_the_cells(notebook):
    for n, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code" and cell.source), 1):
        cell.execution_count = n


@pytest.mark.filterwarnings("ignore:Cell is missing an id")
@fuzz
@given(st.data(), st.sampled_from(["notebooks", "solutions"]))
def test_a_stored_notebook_as_the_tools_read_it(built, data, place):
    import build_notebooks
    import nbformat
    from notebook_runs import LessonError, read_notebook

    get, whole = built
    name = f"{place}/00_sample.ipynb"
    files = {**whole, name: data.draw(broken_json(json.loads(whole[name])))}
    with folder_with(files) as root:
        stored = read_or_refused(lambda: read_notebook(root / name), LessonError, str(root / name))
        said = build_notebooks.check(root, get)
        same = stored and build_notebooks.bare(stored) == build_notebooks.bare(nbformat.reads(whole[name], 4))
        assert same or any(line.startswith(name) for line in said), said
    with folder_with({}) as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_notebooks, "run_notebook", number_the_cells)
        for path, content in files.items():
            (root / path).parent.mkdir(exist_ok=True)
            (root / path).write_bytes(content)
        build_notebooks.build(root, get)                            # what is broken is made again
        assert build_notebooks.check(root, get) == []


@pytest.fixture(scope="module")
def quick_grader():
    """The grader without the judging: what it reads and writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grading, "judge", lambda item, attempt, limits: ("wrong", "", attempt.problem if attempt else ""))
        patch.setattr(grading, "load_model", lambda name: None)
        patch.setattr(grading.torch, "set_num_threads", lambda number: None)
        patch.setattr(os, "environ", dict(os.environ))
        yield


SUBMITTED = json.loads(with_cells(
    chance("return -math.log(d_vocab)"), log_probs("return helper(logits)"), "def helper(x):\n    return other(x)",
    "def other(x):\n    return helper(x)"))
SUBMITTED["metadata"] = {"kernelspec": {"name": "python3", "language": "python"}, "language_info": {"name": "python"}}


@fuzz
@given(broken_json(SUBMITTED), st.sampled_from(["01_x.ipynb", "x.ipynb", "\udcff01.ipynb"]))
@example(as_json({**SUBMITTED, "metadata": {"kernelspec": {"language": "\ud800"}}}), "01_x.ipynb")
def test_a_submitted_notebook(quick_grader, content, name):
    with folder_with({name: content}) as folder, tempfile.TemporaryDirectory() as out:
        rows = grading.grade(folder, Path(out, "grades.csv"))
        assert rows and {row.submission for row in rows} == {name.replace("\udcff", "\\udcff")}
        assert {row.status for row in rows} <= set(grading.STATUSES)
        assert all(row.detail for row in rows if row.status == "unreadable")
        with open(Path(out, "grades.csv"), encoding="utf-8", newline="") as file:
            assert len(list(csv.DictReader(file))) == len(rows)
        with terminal():
            print(grading.summary(rows))


PIECES = st.sampled_from([
    # no valid program
    "nonlocal x", "return 1", "yield", "await x", "break", "def f(a, a):\n    pass", "x = " + "(" * 300, "\t x", "\\",
    "\0", "\ud800 = 1", "x = " + "9" * 5000, "*g, h", "'''", "@exercise('01.z')\ndef g(x):\n    nonlocal x",
    # nested deep
    "x = " + "(" * 150 + ")" * 150, "x = " + "-" * 5000 + "1", "a = a.b" * 2000,
    # who needs whom
    "def g():\n    return h()", "def h():\n    return g()", "class g(h): x = g", "g = h", "h = g", "del g", "global x",
    "from x import *", "import x.y as z, w", "import math", "d_vocab = 3", "math = None", "*g, h = x", "(g := h)",
    # every kind of statement
    "g: int = h",
    "async def g(): pass", "lambda: (yield)", "[x for x in x]", "f'{x!r:{y}}'", "match x:\n    case {'a': g}: pass",
    "try:\n    pass\nexcept* g: pass", "if x:\n    def g(): pass", "for g in h: pass", "with g as h, h as g: pass",
    "type g = h", "def g[T](x: T): ...", "x = 1e400j", "é = ﬁ = 1",
    # what notebooks have besides Python
    "%%time", "%%bash\nls", "!ls {x}", "?x", "x??", "%x y", "x = !ls", "\f", "\r",
    # exercises
    "@exercise('01.x')\ndef g(x):\n    return h(x)", "@exercise('01.x')\nclass g: pass", "@exercise(3)\ndef g(x): ...",
    "@exercise('01.x', '01.y')\n@exercise('01.z')\ndef g(): return g", "@exercise()\ndef g(): ...",
    "@exercise('01.x')\nasync def g(): ...", "@exercise(b'01.x')\ndef g(): ...", "exercise('01.x')(lambda x: g)",
    "exercise('01.x')(g)(h)", "x = exercise('01.x')(g)",
]) | st.text(st.characters(), max_size=20)
CELLS = st.lists(st.lists(PIECES, max_size=4).map("\n".join), max_size=6)


@fuzz
@given(CELLS, CELLS)
def test_a_right_answer_is_found_whatever_the_other_cells_are(before, after):
    path_of = json.loads(with_cells(*before, chance("return -__import__('math').log(d_vocab)"), *after))
    with folder_with({"a.ipynb": as_json(path_of)}) as folder:
        attempt = attempts_in(grading.read_cells(folder / "a.ipynb"))["01.chance_log_prob"]
    assert not attempt.problem and not attempt.empty
    assert "return -__import__('math').log(d_vocab)" in attempt.program
    compile(attempt.program, "<attempt>", "exec")
