"""Wide dictionaries: what skips zeros, or works in parts, equals the plain formula; sums of parts are those of all."""

import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import small_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import own_tokens
from small_saes import Plain, random_sae, some_activations, some_sae

from course_utils import sae_training, wide
from course_utils.faithfulness import Evaluation, evaluate_sae
from course_utils.passes import products
from course_utils.passes.products import largest, wide_product
from course_utils.sae import KINDS, NORMS, SparseAutoencoder
from course_utils.sae_files import load_shipped_sae
from course_utils.sae_training import Training, TrainingConfig
from course_utils.text import sample_text
from course_utils.wide import Firing, active_latents, decode_active, in_parts

ROOT = Path(__file__).resolve().parent.parent
RESIDUAL = "blocks.1.hook_resid_pre"


# --- products and the largest ----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), width=st.sampled_from([64, 96, 128, 200, 203]), k=st.integers(1, 13),
       ties=st.booleans())
def test_the_largest_are_those_of_topk(seed, width, k, ties):
    x = torch.randn(3, 2, width, generator=torch.Generator().manual_seed(seed))
    x = x.round() if ties else x
    values, places = largest(x, k)
    assert torch.equal(values.sort(-1).values, x.topk(k).values.sort(-1).values)
    assert torch.equal(x.gather(-1, places), values)
    assert all(len(set(row.tolist())) == k for row in places.flatten(0, 1))


def test_the_largest_have_the_gradient_of_topk():
    x = torch.randn(4, 64, requires_grad=True)
    slope = torch.randn(4, 3)
    ours, plain = largest(x, 3), x.topk(3)
    (one,) = torch.autograd.grad((ours[0].sort().values * slope).sum(), x)
    assert torch.equal(one, torch.autograd.grad((plain[0].sort().values * slope).sum(), x)[0])


@pytest.mark.parametrize("wide", [5, 16, 23])
def test_a_product_in_blocks_is_the_product(monkeypatch, wide):
    monkeypatch.setattr(products, "BLOCK", 4)
    x, W, bias = torch.randn(2, 3, 7), torch.randn(wide, 7).T, torch.randn(wide)
    torch.testing.assert_close(wide_product(x, W), x @ W)
    torch.testing.assert_close(wide_product(x, W, bias), x @ W + bias)
    assert wide_product(x, W.clone().requires_grad_(), bias).requires_grad


# --- latents in parts -------------------------------------------------------------------------------------------------


class Together(Plain):
    """What one sequence gets depends on the others of its batch, as with BatchTopK in training."""

    d_sae = 24

    def encode(self, x):
        return super().encode(x) / x.norm()


def counted_by_hand(latents, counted):
    active = (latents != 0) & counted[..., None]
    return {"l0": (latents != 0).sum(-1).float(), "l1": latents.abs().double().sum(-1), "active": active.sum((0, 1)),
            "sequences": active.any(1).sum(0)}


@pytest.mark.parametrize("normalize", NORMS)
@pytest.mark.parametrize("kind", [*KINDS, "SAELens's", "together"])
@pytest.mark.parametrize("numbers, few", [(1, 1), (60, 0), (10**6, 1)])
def test_latents_and_reconstructions_in_parts_are_those_of_the_whole(monkeypatch, kind, normalize, numbers, few):
    monkeypatch.setattr(wide, "NUMBERS_AT_A_TIME", numbers)
    monkeypatch.setattr(wide, "FEW", few)
    x, counted = torch.randn(5, 4, 24), torch.rand(5, 4) < 0.6
    sae = some_sae(24, kind, normalize=normalize) if kind in KINDS else Together(24)
    if kind == "SAELens's":
        sae = type("Other", (Plain,), {"d_sae": 24})(24)
    firing, found = Firing(counted), []
    for active, x_hat in in_parts(sae, x):
        firing.add(active, x_hat.numel() // 24)
        found.append(x_hat.reshape(-1, 24))
    latents = sae.encode(x)
    x_hat = sae.decode(latents, x) if kind in KINDS else sae.decode(latents)
    torch.testing.assert_close(torch.cat(found).reshape(x.shape), x_hat, rtol=1e-5, atol=1e-5)
    for name, expected in counted_by_hand(latents, counted).items():
        torch.testing.assert_close(getattr(firing, name), expected, rtol=1e-6, atol=1e-6)
    several = {1: 20 if kind in KINDS else 5, 60: 7 if kind in KINDS else 5, 10**6: 1}[numbers]
    assert len(found) == (1 if kind == "together" else several)


def test_active_latents_decode_to_the_product():
    latents = some_activations(6, 40).relu() * (torch.rand(6, 40) < 0.2)
    latents[2] = 0                                                  # a position without any
    W_dec = torch.randn(40, 7)
    torch.testing.assert_close(decode_active(active_latents(latents), W_dec, 6), latents @ W_dec)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subtract_b_dec", [True, False])
@pytest.mark.parametrize("dead", [0, 15])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sparse_step_is_the_dense_one(monkeypatch, kind, dead, subtract_b_dec):
    """The weights after some steps, and what was seen on the way; dead latents are revived in both."""
    x, ends = some_activations(64, 6).double(), []
    config = TrainingConfig(40, kind, k=3 if kind == "topk" else None, steps=6, batch=16, warm_up=1, dead_after=4)
    monkeypatch.setattr(sae_training, "LOG_EVERY", 1)
    for many, few in ((0, 1), (math.inf, 1)):
        monkeypatch.setattr(sae_training, "MANY", many)
        monkeypatch.setattr(sae_training, "FEW", few)
        sae = SparseAutoencoder(6, 40, kind, k=config.k, subtract_b_dec=subtract_b_dec).double()
        (sae.b_gate if kind == "gated" else sae.b_enc).data[:dead] = -100
        if kind == "jumprelu":                                      # one is always just below its threshold
            sae.W_enc.data[:, -1], sae.b_enc.data[-1] = 0, 0.09
        training = Training(sae, x, config)
        training.idle[:dead] = 10
        for _ in range(6):
            training.one_step(training.batch())
        ends.append((sae, training))
    (sparse, one), (dense, other) = ends
    for name, value in sparse.state_dict().items():
        torch.testing.assert_close(value, dense.state_dict()[name], rtol=1e-9, atol=1e-11, msg=name)
    assert torch.equal(one.idle, other.idle)
    assert all(a == pytest.approx(b, rel=1e-9) for a, b in zip(one.log, other.log, strict=True))


@pytest.mark.parametrize("kind, share, sparse", [
    ("topk", 0.5, True), ("topk", 0.01, False), *((kind, *each) for kind in ("relu", "jumprelu", "gated")
                                                  for each in ((0.9, True), (0.1, False)))])
def test_a_step_is_sparse_only_where_little_is_active(monkeypatch, kind, share, sparse):
    monkeypatch.setattr(sae_training, "MANY", 0)
    monkeypatch.setattr(sae_training, "FEW", share)
    sae = random_sae(kind)
    found = sae_training.few_active(sae, sae.pre_activations(some_activations()))
    assert (found is not None) == sparse


# --- sums of parts ----------------------------------------------------------------------------------------------------


def same_report(one, other):
    assert one.to_frame().equals(other.to_frame()) or one.to_frame().drop(columns="unit").to_numpy() == pytest.approx(
        other.to_frame().drop(columns="unit").to_numpy(), rel=1e-12, abs=1e-12, nan_ok=True)
    assert torch.equal(one.density, other.density) and torch.equal(one.active_sequences, other.active_sequences)
    assert one.peers == pytest.approx(other.peers) and one.n_positions == other.n_positions


@pytest.mark.parametrize("parts, hook_name", [(1, RESIDUAL), (2, RESIDUAL), (7, "blocks.0.hook_mlp_out")])
def test_sums_of_parts_are_the_sums_of_all(parts, hook_name):
    model, sae, tokens = small_models.multi_head(), some_sae(24), own_tokens(small_models.multi_head(), 21)
    how = {"hook_name": hook_name, "batch_size": 3, "seed": 4}
    each = [Evaluation(model, sae, tokens, **how) for _ in range(parts)]
    shards = [torch.cat(batches) for batches in (torch.arange(21).split(3)[i::parts] for i in range(parts))]
    sums = [one.sums(rows) for one, rows in zip(each, shards)]
    total = sum(sums, start=each[0].empty())
    for one, rows in zip(each, shards):
        total = total + one.mean_ablation(total.mean_activation, rows)
    same_report(total.report(), evaluate_sae(model, sae, tokens, **how))


def test_sums_of_other_tokens_or_seeds_do_not_add_up():
    model = small_models.multi_head()
    one, two, three = (Evaluation(model, some_sae(24), own_tokens(model, n), hook_name=RESIDUAL, seed=seed).empty()
                       for n, seed in ((4, 0), (5, 0), (4, 1)))
    for other in (two, three):
        with pytest.raises(ValueError, match="do not belong together"):
            one + other


def check_report(path: Path) -> None:
    model, numbers = small_models.tiny(), ["value", "low", "high"]
    one = evaluate_sae(model, load_shipped_sae("tiny", "topk-2"), sample_text(model, 7, 40)).to_frame()
    parts = pd.read_csv(path, index_col="metric").loc[one.index]
    assert parts[numbers].to_numpy() == pytest.approx(one[numbers].to_numpy(), rel=1e-5, abs=1e-6, nan_ok=True)
    assert parts["value"].notna().all()


@pytest.mark.slow
@pytest.mark.matrix
def test_two_processes_report_what_one_does(tmp_path):
    """`training/evaluate_in_parts.py`, as its first lines say: 7 sequences, 4 in one and 3 in the other process."""
    command = ("-m torch.distributed.run --standalone --nproc-per-node 2 training/evaluate_in_parts.py "
               "--sequences 7 --length 40 --out").split()
    done = subprocess.run([sys.executable, *command, str(tmp_path / "two.csv")], cwd=ROOT, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    check_report(tmp_path / "two.csv")


def test_the_same_program_in_a_group_of_one_process_reports_that_too(tmp_path, monkeypatch):
    from training import evaluate_in_parts

    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
                        "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "one.csv"
    monkeypatch.setattr(sys, "argv", ["", "--sequences", "7", "--length", "40", "--out", str(out)])
    evaluate_in_parts.main()
    check_report(out)
