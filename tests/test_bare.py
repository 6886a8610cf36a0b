"""Blocks that are run without their hooks give what the blocks themselves give, and only while nothing was added."""

import types
import weakref
from unittest import mock

import pytest
import small_models
import torch

from course_utils.models import as_bridge, word_tokenizer
from course_utils.passes import CleanRun, bare, in_float64, read_activation, resumed, see_patterns, traits_of
from course_utils.passes.resumed import ResumedPass

MODELS = ["multi_head", "grouped_query", "grouped_query_biased", "tiny"]
LAYER, START = 1, 4


@pytest.fixture
def runs(monkeypatch):
    """How many blocks were run without hooks."""
    seen, run = [], bare.run_bare
    monkeypatch.setattr(resumed, "run_bare", lambda *arguments: (seen.append(1), run(*arguments))[1])
    return seen


def changed(run):
    """Another stream from START on, for two copies of the batch: a larger one, and one that is small beside epsilon."""
    later = run.residuals[LAYER][:, START:].flip(0)
    return torch.cat([1.5 * later, 1e-4 * later])


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


@pytest.mark.parametrize("name", MODELS)
def test_in_float64_they_are_those_of_the_model_to_all_its_digits(name, runs):
    model = getattr(small_models, name)()
    tokens = small_models.repeated(model)
    with in_float64(model):
        runs.clear()
        found, wanted = (ResumedPass(model, tokens, resumes=how, built=built).residuals[-1]
                         for how, built in (("positions", traits_of(model).built), ("passes", ())))
    assert len(runs) == model.cfg.n_layers and found.dtype == torch.float64
    digits = 5e-6 if name.startswith("grouped") else 1e-12              # Llama's norms compute in float32 all the same
    torch.testing.assert_close(found, wanted, atol=digits * wanted.abs().max().item(), rtol=0)


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


def hook_block(model, block):
    block.register_forward_pre_hook(lambda module, arguments: (2 * arguments[0], *arguments[1:]))


def exchange_hook(model, block):
    """One where one was."""
    block.attn._forward_hooks.clear()
    block.attn.register_forward_hook(lambda module, arguments, out: (0 * out[0], *out[1:]))


def train(model, block):
    """With dropout; it leaves out everything, so that no random number decides."""
    for module in block.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 1.0
    block.train()


@pytest.mark.parametrize("change", [
    put_hook, hook_module, hook_input, hook_block, exchange_hook, exchange_module, exchange_forward, train])
@pytest.mark.parametrize("name", ["multi_head", "grouped_query"])
def test_what_was_put_on_a_model_acts(name, change, runs):
    model = small_models.untried(getattr(small_models, name)())
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
        close(read_activation(model, tokens, "ln_final.hook_normalized"), cache["ln_final.hook_normalized"])
        close(read_activation(model, tokens, "hook_embed"), cache["hook_embed"])
        for place in ("hook_resid_pre", "attn.hook_z", "attn.hook_k", "hook_mlp_out", "mlp.hook_post"):
            runs.clear()
            close(read_activation(model, tokens, f"blocks.1.{place}"), cache[f"blocks.1.{place}"])
            assert len(runs) == (hooked != "blocks.0.hook_mlp_out")
    assert small_models.hook_count(model) == before


def test_a_pass_that_is_only_read_keeps_nothing():
    model, made, gone = small_models.tiny(), [], []
    tokens = small_models.repeated(model, batch=2)

    def run_bare(block, residual, arguments, after_earlier, see):
        gone.append([each() is None for each in made])

        def kept(*keys_values):
            made.extend(map(weakref.ref, keys_values))
            return after_earlier(*keys_values)

        out = bare.run_bare(block, residual, arguments, kept, see)
        made.append(weakref.ref(out))
        return out

    with mock.patch.object(resumed, "run_bare", run_bare):
        read_activation(model, tokens, "blocks.3.hook_mlp_out")
    assert gone[2] == [True, True, True, True, True, False]             # two blocks' keys, values and stream


def test_a_change_of_weights_acts(runs):
    model = small_models.untried(small_models.multi_head())
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
    model = small_models.untried(small_models.multi_head())
    seen = []
    model.add_hook("blocks.0.attn.hook_pattern", lambda pattern, hook: seen.append(hook.name), is_permanent=True)
    assert not traits_of(model).built
    seen.clear()
    CleanRun(model, small_models.repeated(model))
    assert seen == ["blocks.0.attn.hook_pattern"]


@pytest.mark.parametrize("name", ["multi_head", "grouped_query"])
def test_a_hook_before_the_first_block_acts_once(name):
    model = small_models.untried(getattr(small_models, name)())
    tokens = small_models.repeated(model)
    assert traits_of(model).built
    hook_block(model, model.blocks[0])
    _, cache = model.run_with_cache(tokens)
    run, wanted = CleanRun(model, tokens), cache[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"]
    close(run.residuals[-1], wanted)
    close(run.continue_from(0, run.residuals[0]), wanted)
    close(run.through_model(0, run.residuals[0], 0, None, 1), wanted)


@pytest.mark.parametrize("place", ["", "ln1", "attn.q", "mlp.hook_in"])
def test_pytorch_hooks_that_were_there_when_it_was_tried_are_called(place):
    model, seen = small_models.untried(small_models.multi_head()), []
    model.blocks[LAYER].get_submodule(place).register_forward_hook(lambda *_: seen.append(place))
    assert not traits_of(model).built
    seen.clear()
    CleanRun(model, small_models.repeated(model))
    assert seen == [place]


def test_hooks_on_all_modules_are_called(runs):
    model, tokens = small_models.multi_head(), small_models.repeated(small_models.multi_head())
    assert traits_of(model).built
    runs.clear()

    def double(module, arguments, out):
        return 2 * out if (getattr(module, "name", None) or "").endswith("hook_z") else None

    handle = torch.nn.modules.module.register_module_forward_hook(double)
    try:
        close(CleanRun(model, tokens).residuals[-1], ResumedPass(model, tokens, resumes="passes").residuals[-1])
    finally:
        handle.remove()
    assert not runs


def test_windows_in_some_blocks_hold_on_texts_that_are_longer():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=30, hidden_size=24, intermediate_size=16, num_hidden_layers=4,
                         num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0,
                         initializer_range=0.5, use_sliding_window=True, sliding_window=16, max_window_layers=2)
    tokenizer = word_tokenizer(small_models.WORDS, "<bos>")
    model = as_bridge(Qwen2ForCausalLM(config), tokenizer, name="windows", device="cpu")
    tokens = small_models.random_tokens(length=40)
    run, slow = CleanRun(model, tokens), ResumedPass(model, tokens, resumes="passes")
    close(run.residuals[-1], slow.residuals[-1])
    close(run.continue_from(LAYER, changed(run), start=START), in_full(model, run))


def test_a_model_loaded_in_another_precision_is_not_taken_as_tried():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=30, n_positions=64, n_embd=24, n_layer=3, n_head=4, initializer_range=0.5,
                        bos_token_id=0, eos_token_id=0, scale_attn_by_inverse_layer_idx=True)
    tokenizer = word_tokenizer(small_models.WORDS, "<bos>")
    model = as_bridge(GPT2LMHeadModel(config).double(), tokenizer, name="scaled", device="cpu")
    assert not traits_of(model).built
    model.to(torch.float32)
    tokens = small_models.repeated(model)
    close(CleanRun(model, tokens).residuals[-1], ResumedPass(model, tokens, resumes="passes").residuals[-1])


def test_hooks_on_the_unembedding_and_on_activations_are_called():
    from transformers import GPT2Config, GPT2LMHeadModel

    seen, size = [], 2 * resumed.BLOCK
    config = GPT2Config(vocab_size=size, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    given, words = GPT2LMHeadModel(config), ["<bos>", *(f"t{i}" for i in range(1, size))]
    given.transformer.h[0].mlp.act.register_forward_hook(lambda *_: seen.append("act"))
    model = as_bridge(given, word_tokenizer(words, "<bos>"), name="wide", device="cpu")
    model.unembed.register_forward_hook(lambda module, arguments, out: 2 * out)
    seen.clear()
    run = CleanRun(model, small_models.random_tokens())
    assert seen == ["act"]
    close(run.logits(run.residuals[-1]), model(run.tokens))
