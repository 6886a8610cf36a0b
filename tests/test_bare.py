"""Blocks that are run without their hooks give what the blocks themselves give, and only while nothing was added."""

import copy
import types

import pytest
import small_models
import torch

from course_utils.passes import CleanRun, bare, read_activation, resumed, see_patterns, traits_of
from course_utils.passes.resumed import ResumedPass

MODELS = ["multi_head", "grouped_query", "grouped_query_biased", "tiny"]
LAYER, START = 1, 4


@pytest.fixture
def runs(monkeypatch):
    """How many blocks were run without hooks."""
    seen, run = [], bare.run_bare
    monkeypatch.setattr(resumed, "run_bare", lambda *arguments: (seen.append(1), run(*arguments))[1])
    return seen


def own_copy(name):
    """A copy of a small model, which this test may change; it is tried out by itself."""
    model = copy.deepcopy(getattr(small_models, name)())
    vars(model).pop("course_traits")
    return model


def changed(run):
    """Another stream from START on, for two copies of the batch."""
    return run.residuals[LAYER][:, START:].repeat(2, 1, 1).flip(0) * 1.5


def in_full(model, run):
    """The same by a pass of the whole model."""
    before = run.residuals[LAYER][:, :START].repeat(2, 1, 1)
    return run.through_model(LAYER, torch.cat([before, changed(run)], dim=1), 0, None, 2)[:, START:]


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=2e-5 * wanted.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_passes_without_hooks_are_those_of_the_model(name, runs):
    model = getattr(small_models, name)()
    tokens = small_models.repeated(model)
    assert traits_of(model).built
    runs.clear()
    run, slow = CleanRun(model, tokens), ResumedPass(model, tokens, resumes="passes")
    assert len(runs) == model.cfg.n_layers and len(run.residuals) == model.cfg.n_layers + 1
    for found, wanted in zip(run.residuals, slow.residuals, strict=True):
        close(found, wanted)
    close(run.continue_from(LAYER, changed(run), start=START), in_full(model, run))
    assert len(runs) == 2 * model.cfg.n_layers - LAYER
    one = run.continue_from(LAYER, run.residuals[LAYER], stop=LAYER + 1)
    assert torch.equal(one, run.residuals[LAYER + 1])


def put_hook(model, block):
    model.add_hook(f"blocks.{LAYER}.attn.hook_v", lambda v, hook: 2 * v)


def hook_module(model, block):
    block.mlp.register_forward_hook(lambda module, arguments, out: 0 * out)


def hook_input(model, block):
    block.ln2.register_forward_pre_hook(lambda module, arguments: (2 * arguments[0] + 1,))


def exchange_module(model, block):
    kind = type(block.mlp)
    block.mlp.__class__ = type("Tripled", (kind,), {"forward": lambda self, x: 3 * kind.forward(self, x)})


def exchange_forward(model, block):
    block.attn.forward = types.MethodType(lambda self, x, **more: (3 * x, None), block.attn)


def train(model, block):
    """With dropout; it leaves out everything, so that no random number decides."""
    for module in block.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 1.0
    block.train()


@pytest.mark.parametrize("change", [put_hook, hook_module, hook_input, exchange_module, exchange_forward, train])
@pytest.mark.parametrize("name", ["multi_head", "grouped_query"])
def test_what_was_put_on_a_model_acts(name, change, runs):
    model = own_copy(name)
    tokens = small_models.repeated(model)
    assert traits_of(model).built
    runs.clear()
    change(model, model.blocks[LAYER])
    run = CleanRun(model, tokens)
    assert len(runs) == model.cfg.n_layers - 1
    close(run.continue_from(LAYER, changed(run), start=START), in_full(model, run))


@pytest.mark.parametrize("hooked", [None, "blocks.1.attn.hook_v", "blocks.0.hook_mlp_out"])
@pytest.mark.parametrize("name", MODELS)
def test_patterns_and_activations_are_those_of_the_model(name, hooked, runs):
    model = getattr(small_models, name)()
    tokens, patterns, before = small_models.repeated(model), [], small_models.hook_count(model)
    assert traits_of(model).built
    with model.hooks(fwd_hooks=[(hooked, lambda value, hook: 1.5 * value)] if hooked else []):
        runs.clear()
        see_patterns(model, tokens, lambda layer, pattern: patterns.append((layer, pattern)))
        assert len(runs) == model.cfg.n_layers - bool(hooked)
        _, cache = model.run_with_cache(tokens)
        assert [layer for layer, _ in patterns] == list(range(model.cfg.n_layers))
        for layer, pattern in patterns:
            close(pattern, cache[f"blocks.{layer}.attn.hook_pattern"])
        for place in ("hook_resid_pre", "attn.hook_z", "attn.hook_k", "hook_mlp_out", "mlp.hook_post"):
            runs.clear()
            close(read_activation(model, tokens, f"blocks.1.{place}"), cache[f"blocks.1.{place}"])
            assert len(runs) == (hooked != "blocks.0.hook_mlp_out")
    assert small_models.hook_count(model) == before


def test_a_change_of_weights_acts(runs):
    model = own_copy("multi_head")
    tokens = small_models.repeated(model)
    assert traits_of(model).built
    runs.clear()
    with torch.no_grad():
        model.blocks[LAYER].attn.o.original_component.weight *= 2
        model.blocks[LAYER].mlp.W_in.mul_(-1)
    run = CleanRun(model, tokens)
    assert len(runs) == model.cfg.n_layers
    close(run.residuals[-1], ResumedPass(model, tokens, resumes="passes").residuals[-1])
    close(run.continue_from(LAYER, changed(run), start=START), in_full(model, run))


def test_hooks_that_were_there_when_it_was_tried_are_called():
    model = own_copy("multi_head")
    seen = []
    model.add_hook("blocks.0.attn.hook_pattern", lambda pattern, hook: seen.append(hook.name))
    assert not traits_of(model).built
    seen.clear()
    CleanRun(model, small_models.repeated(model))
    assert seen == ["blocks.0.attn.hook_pattern"]
