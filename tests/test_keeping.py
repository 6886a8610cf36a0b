"""Runs that were stopped continue: with what was done, to the last bit, and in a folder of their own only."""

import itertools
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial

import pytest
import small_models
import torch
from small_models import own_tokens
from small_saes import some_sae

from course_utils import edges
from course_utils.baselines import noise_floor
from course_utils.edges import attribution_scores, exact_scores
from course_utils.faithfulness import COURSE, SAELENS, evaluate_sae
from course_utils.passes import keeping
from course_utils.report_card import report_card

MLP = "blocks.0.hook_mlp_out"


def evaluate(model, sae, tokens, **how):
    return evaluate_sae(model, sae, tokens, **{"hook_name": MLP, "batch_size": 2, "convention": SAELENS} | how)


def floor(model, sae, tokens, **how):
    return noise_floor(model, sae, tokens, **{"hook_name": MLP, "batch_size": 2, "draws": 2} | how)


def card(model, sae, tokens, **how):
    return report_card(model, some_sae(24, hook_name="blocks.1.hook_resid_pre"), text=tokens,
                       **{"seq_len": 6, "batch": 4, "batch_size": 2} | how)


@contextmanager
def passes(model, at_most=10**6):
    """Count the passes that begin with the first block; the one after so many is interrupted."""
    done = []

    def count(x, hook):
        if len(done) == at_most:
            raise KeyboardInterrupt
        done.append(len(x))

    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", count)]):
        yield done


def flat(result):
    """All numbers and words of a result, by their names."""
    found, parts = {}, {"": asdict(result)}
    while parts:
        name, value = parts.popitem()
        if isinstance(value, dict):
            parts |= {f"{name} {key}": each for key, each in value.items()}
        else:
            found[name] = value
    return found


def same(one, other):
    """To the last bit; NaN is like NaN."""
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, other[name], rtol=0, atol=0, equal_nan=True, msg=name)
        else:
            assert repr(value) == repr(other[name]), name


@pytest.mark.parametrize("function, after", [
    (evaluate, 3), (evaluate, 8), (floor, 2), (floor, 7), (card, 9), (card, 17)])
def test_a_run_that_was_stopped_continues(tmp_path, monkeypatch, function, after):
    model, sae, tokens = small_models.multi_head(), some_sae(24), own_tokens(small_models.multi_head(), 10)
    with passes(model) as all_of_them:
        expected = function(model, sae, tokens)
    assert after < len(all_of_them) - 1
    monkeypatch.setattr(keeping, "SECONDS", 0)
    with passes(model, after) as first, pytest.raises(KeyboardInterrupt):
        function(model, sae, tokens, folder=tmp_path)
    with passes(model) as rest:
        same(function(model, sae, tokens, folder=tmp_path), expected)
    set_up = 2                                                      # passes of one sequence, with a constant: run again
    assert len(all_of_them) <= len(first) + len(rest) <= len(all_of_them) + set_up
    with passes(model) as none:
        same(function(model, sae, tokens, folder=tmp_path), expected)
    assert len(none) < len(all_of_them) - 9                         # the batches of two functions at least


@pytest.mark.parametrize("function", [exact_scores, partial(attribution_scores, steps=3)])
def test_scores_of_edges_continue_in_a_folder_of_their_own(tmp_path, monkeypatch, function):
    model, calls = small_models.multi_head(), []
    clean, corrupted = own_tokens(model, 2), own_tokens(model, 4)[2:]
    monkeypatch.setattr(keeping, "SECONDS", 0)
    monkeypatch.setattr(edges, "VECTORS_AT_ONCE", 100)
    monkeypatch.setattr(edges, "SLOPES_AT_ONCE", 100)

    def metric(logits, at_most=10**6):
        calls.append(len(logits))
        if len(calls) > at_most:
            raise KeyboardInterrupt
        return logits[:, -1, 3] - logits[:, -1, 5]

    expected = function(model, clean, corrupted, metric)
    whole = len(calls)
    for stopped in (whole // 3, whole // 2):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            function(model, clean, corrupted, partial(metric, at_most=stopped), folder=tmp_path)
    for left in (whole // 2, 2):
        calls.clear()
        assert torch.equal(function(model, clean, corrupted, metric, folder=tmp_path), expected)
        assert len(calls) <= left
    for changed in ({"corrupted": clean}, {"metric": lambda logits: logits[:, -1, 3]}, {"by_position": True}):
        with pytest.raises(ValueError, match=f"holds a run with another .*{[*changed][0]}"):
            function(**{"model": model, "clean": clean, "corrupted": corrupted, "metric": metric} | changed,
                     folder=tmp_path)


def test_sums_are_kept_about_once_a_minute(tmp_path, monkeypatch):
    model, sae, tokens = small_models.multi_head(), some_sae(24), own_tokens(small_models.multi_head(), 10)
    clock, written = itertools.count(step=25), []
    monkeypatch.setattr(keeping.time, "monotonic", lambda: next(clock))
    write = keeping.Keeper.write
    monkeypatch.setattr(keeping.Keeper, "write", lambda *given: written.append(given[1:]) or write(*given))
    noise_floor(model, sae, tokens, ("zero",), hook_name=MLP, batch_size=1, folder=tmp_path)
    assert 4 < len(written) < 10                                    # of 20 batches, each 25 seconds or more
    assert {name for name, _ in written} == {"activations", "batches"}


@pytest.mark.parametrize("function, others", [
    (evaluate, [{"seed": 1}, {"convention": COURSE}, {"batch_size": 3}, {"everything": False}]),
    (floor, [{"seed": 1}, {"draws": 1}, {"at": 4}, {"kinds": ("zero",)}, {"batch_size": 3}]),
    (card, [{"seed": 1}, {"draws": 3}, {"seq_len": 5}])])
def test_a_folder_belongs_to_one_run(tmp_path, function, others):
    model, sae, tokens = small_models.multi_head(), some_sae(24), own_tokens(small_models.multi_head(), 4)
    function(model, sae, tokens, folder=tmp_path)
    for other in others:
        with pytest.raises(ValueError, match="holds a run with another"):
            function(model, sae, tokens, folder=tmp_path, **other)


def test_a_folder_tells_runs_apart_by_what_they_are_about(tmp_path):
    model, tokens = small_models.multi_head(), own_tokens(small_models.multi_head(), 4)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, :2] = False
    given = {"model": model, "sae": some_sae(24, "topk"), "tokens": tokens, "mask": mask, "hook_name": MLP}
    noise_floor(kinds=("zero",), folder=tmp_path, **given)
    other_sae, other_mask = some_sae(24, "topk"), mask.clone()
    other_sae.k = 5
    other_mask[0, 1], other_mask[0, 2] = True, False                # as many positions
    others = {"sae": some_sae(24, "topk", seed=1), "kind": some_sae(24, "relu"), "k": other_sae,
              "model": small_models.grouped_query(), "tokens": tokens.flip(1), "mask": other_mask,
              "hook_name": "blocks.1.hook_mlp_out"}
    for changed, other in others.items():
        name = {"kind": "sae", "k": "sae"}.get(changed, changed)
        with pytest.raises(ValueError, match=f"holds a run with another .*{name.removesuffix('_name')}"):
            noise_floor(kinds=("zero",), folder=tmp_path, **given | {name: other})


def test_a_damaged_file_is_named(tmp_path):
    model, sae, tokens = small_models.multi_head(), some_sae(24), own_tokens(small_models.multi_head(), 4)
    floor(model, sae, tokens, folder=tmp_path)
    file, other = (tmp_path / f"{name}.safetensors" for name in ("activations", "batches"))
    for content, says in ((other.read_bytes(), "'x' is missing"), (file.read_bytes()[:-9], "damaged")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"activations.safetensors is .*{says}"):
            floor(model, sae, tokens, folder=tmp_path)
