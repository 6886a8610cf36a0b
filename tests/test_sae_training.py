"""Training: against a trainer written out, exact resume after a kill, dead latents, planted directions, each loss."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import small_models
import small_saes
import torch
from small_models import forbidden_forward, repeated
from small_saes import D_IN, D_SAE, K, new_sae
from small_saes import some_activations as some
from small_saes import training_config as config

from course_utils import sae_training
from course_utils.house.files import SETTINGS
from course_utils.passes import collect_activations
from course_utils.sae_training import (
    STATE,
    Training,
    TrainingConfig,
    constrain,
    fit,
    revival_loss,
    train_sae,
)


def random_sae(kind, **more):
    """Random weights in float64, decoder rows of norm 1."""
    sae = small_saes.random_sae(kind, dtype=torch.float64, **more).requires_grad_(True)
    constrain(sae)
    return sae


def kill_latents(sae, dead):
    """Biases so low that these latents are not active for any activation."""
    for name in ("b_gate", "b_mag") if sae.kind == "gated" else ("b_enc",):
        getattr(sae, name).data[dead] = -10.0 if sae.kind == "topk" else -5.0
    return sae


def partly_dead(config):
    """A new autoencoder whose last five latents have to be revived."""
    return kill_latents(new_sae(config), slice(-5, None))


def same(one, other):
    """The same weights and the same log, to the last bit."""
    assert one.training_log == other.training_log and len(one.training_log) > 1
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


# --- the whole training, in plain PyTorch ----------------------------------------------------------------------------


def plain_latents(kind, w, x):
    """Pre-activations (of the gate, if there is one) and latents; thresholds get the straight-through estimate."""
    pre = (x - w["b_dec"]) @ w["W_enc"]
    if kind == "gated":
        gate = pre + w["b_gate"]
        return gate, torch.where(gate > 0, (pre * w["r_mag"].exp() + w["b_mag"]).relu(), 0.0)
    pre = pre + w["b_enc"]
    if kind == "relu":
        return pre, pre.relu()
    if kind == "topk":
        largest = pre >= pre.sort(dim=1).values[:, -K:][:, :1]
        return pre, pre.relu() * largest
    near = ((pre.relu() - w["threshold"]).abs() < 0.025).float()
    estimate = w["threshold"].detach() / 0.05 * near * w["threshold"]
    return pre, pre.relu() * (pre.relu() > w["threshold"]) - (estimate - estimate.detach())


def plain_training(kind, w, x, config):
    """What 60 steps make of these weights, with tensors and autograd alone; no loss and no class of the course. -> log.

    Learning rates: up to 0.01 in the first ten steps, down to 0 in the last twelve; the penalty grows as they do.
    """
    rates = [*(step / 1000 for step in range(1, 11)), *38 * [0.01], *(step * 0.01 / 12 for step in range(12, 0, -1))]
    penalties = [*(step / 100 for step in range(1, 11)), *50 * [0.1]]
    moments, idle, log = {name: [0, 0] for name in w}, [0] * len(w["W_dec"]), []
    for step in range(60):
        epoch, place = divmod(step, 6)                              # 100 activations: six batches of 16
        order = torch.randperm(100, generator=torch.Generator().manual_seed(config.seed + 1_000_003 * (epoch + 1)))
        batch = x[order[16 * place:16 * place + 16]]
        pre, latents = plain_latents(kind, w, batch)
        error = latents @ w["W_dec"] + w["b_dec"] - batch
        loss = mse = (error**2).sum() / 16
        if kind == "relu":
            loss = loss + penalties[step] * latents.sum() / 16
        if kind == "jumprelu":                                      # the count's estimate, the other way round
            near = ((pre - w["threshold"]).abs() < 0.025).float()
            loss = loss - penalties[step] * (near / 0.05 * w["threshold"]).sum() / 16
        if kind == "gated":
            by_itself = pre.relu() @ w["W_dec"].detach() + w["b_dec"].detach() - batch
            loss = loss + (penalties[step] * pre.relu().sum() + (by_itself**2).sum()) / 16
        dead = [i for i, steps in enumerate(idle) if steps >= 5]
        if dead:                                                    # d_in / 2 of them, at most, rebuild what is left
            chosen = pre[:, dead].topk(min(3, len(dead)), dim=1)
            rows = w["W_dec"][dead][chosen.indices]                 # [batch, chosen, d_in]
            left = (chosen.values[..., None] * rows).sum(dim=1) + error.detach()
            loss = loss + (left**2).sum() / 16 / 32
        slopes = torch.autograd.grad(loss, list(w.values()), allow_unused=True)
        with torch.no_grad():
            for (name, weight), slope in zip(w.items(), slopes):    # Adam
                first, second = moments[name]
                slope = torch.zeros_like(weight) if slope is None else slope
                moments[name] = first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
                size = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                weight -= rates[step] * first / (1 - 0.9 ** (step + 1)) / size
            w["W_dec"] /= w["W_dec"].norm(dim=1, keepdim=True)
            if kind == "jumprelu":
                w["threshold"].clamp_(min=0)
        on = (latents != 0).sum(dim=0).tolist()
        idle = [0 if count else steps + 1 for count, steps in zip(on, idle)]
        if step in (49, 59):
            log.append([step + 1, mse.item() / D_IN, sum(on) / 16, len(dead) / len(idle)])
    return log


@pytest.mark.parametrize("kind, normalize", [
    ("relu", "none"), ("topk", "constant_norm_rescale"), ("jumprelu", "layer_norm"), ("gated", "none")])
def test_training_equals_the_same_steps_in_plain_pytorch(kind, normalize):
    settings, x = config(kind, normalize=normalize, seed=3), some()
    scale = math.sqrt((x**2).sum().item() / x.numel()) if normalize == "none" else 1.0
    centred = x - x.mean(dim=1, keepdim=True)
    seen = {"none": x / scale, "constant_norm_rescale": x / x.norm(dim=1, keepdim=True) * math.sqrt(D_IN),
            "layer_norm": centred / (x.std(dim=1, keepdim=True) + 1e-5)}[normalize]
    start = partly_dead(settings).state_dict()
    start["b_dec"] = seen.mean(dim=0)
    w = {name: value.clone().requires_grad_() for name, value in start.items()}
    log = plain_training(kind, w, seen, settings)
    assert log[0][-1] > 0                                           # some latents were dead
    ours = fit(partly_dead(settings), x, settings)
    assert set(w) == set(ours.state_dict())
    for name, value in w.items():
        value = value * (1 if name in ("W_enc", "W_dec", "r_mag") else scale)
        torch.testing.assert_close(ours.state_dict()[name], value.detach(), atol=2e-4, rtol=2e-3)
    assert [list(each) for each in ours.training_log] == [["step", "mse", "l0", "dead"]] * 2
    torch.testing.assert_close(torch.tensor([list(each.values()) for each in ours.training_log]), torch.tensor(log),
                               atol=1e-3, rtol=1e-3)
    assert not ours.training and not any(weight.requires_grad for weight in ours.parameters())


def test_training_leaves_the_activations_and_the_global_random_numbers_alone():
    x, settings = some(), config()
    before, state = x.clone(), torch.get_rng_state()
    fit(new_sae(settings), x, settings)
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_depends_on_the_seed_and_the_step_alone():
    x = some(50)
    one, other = (Training(new_sae(config()), x, config()) for _ in range(2))
    in_order = []
    for step in range(9):
        one.step = step
        in_order.append(one.batch())
    for step in (8, 0, 5, 3, 3, 7):
        other.step = step
        assert torch.equal(other.batch(), in_order[step])
    seeded = Training(new_sae(config()), x, config(seed=1))
    assert not torch.equal(seeded.batch(), in_order[0])


# --- kill and resume -------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def stop_at(monkeypatch, step):
    """The run ends with an error in this step."""
    one_step = Training.one_step

    def fails(self, x):
        if self.step == step:
            raise Killed
        return one_step(self, x)

    monkeypatch.setattr(Training, "one_step", fails)


@pytest.mark.parametrize("kind, normalize", [("jumprelu", "none"), ("topk", "layer_norm")])
def test_a_run_that_was_killed_ends_with_the_same_weights_and_log(tmp_path, monkeypatch, kind, normalize):
    """Before the first checkpoint, right at one, between two, twice, and in the last step."""
    settings, x = config(kind, normalize=normalize, steps=60, dead_after=4), some()
    whole = fit(partly_dead(settings), x, settings)
    assert whole.training_log[0]["dead"] > 0
    for number, stops in enumerate([[3], [7], [20, 45], [59]]):
        for step in stops:
            with monkeypatch.context() as patch, pytest.raises(Killed):
                stop_at(patch, step)
                fit(partly_dead(settings), x, settings, tmp_path / str(number))
        same(fit(partly_dead(settings), x, settings, tmp_path / str(number)), whole)


def test_a_folder_changes_nothing_and_a_finished_run_is_not_repeated(tmp_path, monkeypatch):
    settings, x = config(steps=70), some()                           # 70 is a multiple of save_every
    whole = fit(new_sae(settings), x, settings)
    same(fit(new_sae(settings), x, settings, tmp_path), whole)
    with monkeypatch.context() as patch:
        patch.setattr(Training, "one_step", lambda *_: pytest.fail("a step was made"))
        same(fit(new_sae(settings), x, settings, str(tmp_path)), whole)


def test_the_checkpoint_decides_and_not_the_new_autoencoder(tmp_path, monkeypatch):
    """Everything that matters is in the folder: weights, Adam's moments, when each latent was last active."""
    settings, x = config(), some()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, 30)
        fit(new_sae(settings), x, settings, tmp_path)
    spoilt = new_sae(settings)
    for weight in spoilt.parameters():
        weight.data.fill_(7.0)
    same(fit(spoilt, x, settings, tmp_path), fit(new_sae(settings), x, settings))


def test_resuming_does_not_depend_on_how_weights_lie_in_memory(tmp_path, monkeypatch):
    settings, x = config(), some()

    def other_way():
        sae = new_sae(settings)
        for weight in (sae.W_enc, sae.W_dec):                       # the same numbers, columns first
            weight.data = weight.data.T.contiguous().T
        return sae

    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, 30)
        fit(other_way(), x, settings, tmp_path)
    same(fit(other_way(), x, settings, tmp_path), fit(other_way(), x, settings))


def test_a_half_written_checkpoint_is_not_used(tmp_path, monkeypatch):
    """A kill while the file is being written leaves the one before."""
    settings, x = config(), some()
    save_file = sae_training.save_file

    def half(tensors, file, metadata):
        if metadata["step"] == "21":
            Path(file).write_bytes(b"half")
            raise Killed
        save_file(tensors, file, metadata)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(sae_training, "save_file", half)
        fit(new_sae(settings), x, settings, tmp_path)
    assert Training(new_sae(settings), x, settings, tmp_path).step == 14
    same(fit(new_sae(settings), x, settings, tmp_path), fit(new_sae(settings), x, settings))


@pytest.mark.parametrize("name, value", [
    ("lr", 0.02), ("steps", 61)])
def test_a_folder_with_other_settings_is_refused_and_left_alone(tmp_path, name, value):
    x = some()
    fit(new_sae(config()), x, config(), tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    other = replace(config(), **{name: value})
    with pytest.raises(ValueError, match=f"holds a run with another {name}: choose another folder"):
        fit(new_sae(other), x, other, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("x, says", [(some(101), "activations, scale"), (some() * 2, "scale")])
def test_a_folder_with_other_activations_is_refused(tmp_path, x, says):
    fit(new_sae(config()), some(), config(), tmp_path)
    with pytest.raises(ValueError, match=f"another {says}"):
        fit(new_sae(config()), x, config(), tmp_path)


@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
def test_a_folder_of_another_place_is_refused(tmp_path, normalize):
    """As many activations, as wide, and normalised to the same size: the autoencoder of another layer all the same."""
    model, settings = small_models.multi_head(), config(normalize=normalize, steps=7)
    train_sae(model, "blocks.0.hook_resid_post", repeated(model), settings, folder=tmp_path)
    with pytest.raises(ValueError, match="another"):
        train_sae(model, "blocks.1.hook_resid_post", repeated(model), settings, folder=tmp_path)


# --- the scale -------------------------------------------------------------------------------------------------------


def explained_variance(sae, x):
    return 1 - ((sae(x) - x) ** 2).sum() / ((x - x.mean(dim=0)) ** 2).sum()


@pytest.mark.parametrize("kind, subtract_b_dec", [
    ("topk", True), ("jumprelu", False)])
def test_larger_activations_give_the_same_autoencoder_with_larger_latents(kind, subtract_b_dec):
    """A power of two is exact; ten is exact to rounding, as long as no latent is on the edge of being active."""
    x, settings = some(200), config(kind)
    sae, larger = (fit(new_sae(settings, subtract_b_dec=subtract_b_dec), factor * x, settings) for factor in (1, 16))
    assert torch.equal(larger.encode(16 * x), 16 * sae.encode(x)) and (sae.encode(x) > 0).any()
    assert torch.equal(larger(16 * x), 16 * sae(x))
    assert larger.training_log == sae.training_log
    ten = fit(new_sae(settings, subtract_b_dec=subtract_b_dec), 10 * x, settings)
    torch.testing.assert_close(explained_variance(ten, 10 * x), explained_variance(sae, x), atol=1e-3, rtol=0)
    assert ten.encode(10 * x).mean() == pytest.approx(10 * sae.encode(x).mean().item(), rel=1e-2)


# --- planted directions ----------------------------------------------------------------------------------------------


def planted_activations(n=6000, d_in=16, n_directions=24, n_active=2, seed=9):
    """Sums of a few known directions, with positive weights. -> activations [n, d_in], directions."""
    rng = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(n_directions, d_in, generator=rng), dim=1)
    chosen = torch.rand(n, n_directions, generator=rng).topk(n_active, dim=1).indices
    sizes = torch.zeros(n, n_directions).scatter(1, chosen, 1 + torch.rand(n, n_active, generator=rng))
    return sizes @ directions, directions


@pytest.mark.slow
@pytest.mark.parametrize("kind, sparsity", [
    ("topk", 0.0), *(pytest.param(*each, marks=pytest.mark.matrix)
                     for each in (("relu", 0.5), ("jumprelu", 0.5), ("gated", 2.0)))])
def test_planted_directions_are_found(kind, sparsity):
    x, directions = planted_activations()
    k, steps = (2, 700) if kind == "topk" else (None, 1500)
    settings = TrainingConfig(48, kind, k, steps=steps, batch=256, lr=4e-3, sparsity=sparsity, warm_up=50,
                              dead_after=50)
    sae = new_sae(settings, d_in=16)

    def mean_max_cosine(sae):
        rows = torch.nn.functional.normalize(sae.W_dec, dim=1)
        return (directions @ rows.T).max(dim=1).values.mean().item()

    assert mean_max_cosine(sae) < 0.7
    sae = fit(sae, x, settings)
    assert mean_max_cosine(sae) > 0.9
    assert explained_variance(sae, x) > 0.7 and sae.training_log[-1]["l0"] < 8


# --- the losses, by hand ---------------------------------------------------------------------------------------------


def parts(sae, x):
    pre = sae.pre_activations(x)
    return pre, sae.gate(pre) * sae.magnitude(pre) if sae.kind == "gated" else sae.activate(pre)


@pytest.mark.parametrize("n_dead", [1, 3, 9])
def test_the_revival_loss_by_hand(n_dead):
    """The largest of the dead ones, D_IN / 2 at most, whether positive or not, against what is left over."""
    sae, x = random_sae("relu"), some(5).double()
    dead = torch.arange(D_SAE) >= D_SAE - n_dead
    pre, latents = parts(sae, x)
    error = latents @ sae.W_dec + sae.b_dec - x
    total = 0.0
    for row, left in zip(pre.tolist(), (-error).tolist()):
        chosen = sorted(range(D_SAE - n_dead, D_SAE), key=lambda i: -row[i])[: D_IN // 2]
        out = [sum(row[i] * sae.W_dec[i, j].item() for i in chosen) for j in range(D_IN)]
        total += sum((o - e) ** 2 for o, e in zip(out, left))
    ours = revival_loss(sae, pre, error.detach(), dead, n_dead)
    assert ours.item() == pytest.approx(total / 5, rel=1e-9)
    ours.backward()
    assert not sae.W_dec.grad[~dead].any() and not sae.W_enc.grad[:, ~dead].any()       # the living are left in peace
    assert sae.W_enc.grad[:, dead].any()


def test_constrain_makes_rows_of_norm_1_and_thresholds_not_negative():
    sae = random_sae("jumprelu")
    sae.W_dec.data *= torch.arange(1, D_SAE + 1)[:, None]
    sae.threshold.data[:3] = torch.tensor([-1.0, 0.0, 2.0])
    directions = torch.nn.functional.normalize(sae.W_dec.detach(), dim=1)
    constrain(sae)
    torch.testing.assert_close(sae.W_dec.detach(), directions)
    assert sae.threshold[:3].tolist() == [0, 0, 2]


# --- training on a model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, head", [("blocks.1.hook_resid_pre", None), ("blocks.0.attn.hook_z", 2)])
def test_train_sae_collects_and_fits(name, head):
    model, settings = small_models.multi_head(), config()
    tokens = repeated(model, batch=4)
    sae = train_sae(model, name, tokens, settings, head=head)
    assert (sae.hook_name, sae.head, sae.model_name) == (name, head, model.cfg.model_name)
    x = collect_activations(model, name, tokens, head=head)
    same(sae, fit(new_sae(settings, d_in=x.shape[1]), x, settings))


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong, says", [
    *(({name: 0}, f"{name} is 0; it must be at least 1")
      for name in ("d_sae", "steps", "batch", "warm_up", "dead_after", "save_every")),
    *((wrong, "lr must be positive, sparsity and revive not negative, and decay a share from 0 to 1")
      for wrong in ({"lr": 0}, {"lr": -1.0}, {"sparsity": -0.1}, {"revive": -1}, {"decay": 1.1}, {"decay": -0.1},
                    {"lr": math.nan}, {"sparsity": math.nan})),
])
def test_settings_that_cannot_be(wrong, says):
    with pytest.raises(ValueError, match=says):
        config(**wrong)


@pytest.mark.parametrize("x, says", [
    (some(15), "there are 15 activations, fewer than one batch of 16"),
    (some().index_fill(0, torch.tensor([99]), math.nan), "not finite"),
    (some().index_fill(0, torch.tensor([0]), -math.inf), "not finite"),
])
def test_activations_that_cannot_be_learned_from(tmp_path, x, says):
    with pytest.raises(ValueError, match=says):
        fit(new_sae(config()), x, config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()                          # nothing was claimed for it


def test_a_wrong_place_is_refused_before_the_model_is_run():
    model = small_models.multi_head()
    with forbidden_forward(model), pytest.raises(ValueError, match="no place 'blocks.7.hook_mlp_out'"):
        train_sae(model, "blocks.7.hook_mlp_out", repeated(model), config())


@pytest.mark.parametrize("wrong, says", [
    ({"kind": "sparse"}, "kind is 'sparse'"), ({"kind": "topk", "k": None}, "topk needs k"),
    ({"k": 3}, "k is for topk"),
    ({"normalize": "batch"}, "normalize is 'batch'"), ({"batch": 1000}, "activations, fewer than one batch of 1000"),
])
def test_an_impossible_autoencoder_is_refused_before_the_model_is_run(wrong, says):
    model = small_models.multi_head()
    with forbidden_forward(model), pytest.raises(ValueError, match=says):
        train_sae(model, "blocks.1.hook_resid_pre", repeated(model), config(**wrong))


def test_activations_of_zeros_are_no_division_by_zero():
    sae = fit(new_sae(config()), torch.zeros(50, D_IN), config())
    assert all(value.isfinite().all() for value in sae.state_dict().values())


def test_the_folder_says_what_was_asked_for(tmp_path):
    fit(new_sae(config()), some(), config(), tmp_path)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    assert settings["kind"] == "relu" and settings["lr"] == 0.01 and settings["activations"] == [100, D_IN]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([SETTINGS, STATE])
