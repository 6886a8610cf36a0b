"""Objects of other libraries: what is more than encode and decode is refused, wherever an autoencoder is taken."""

import types

import pytest
import small_models
import torch
from small_models import forbidden_forward, own_tokens
from small_saes import Plain

from course_utils.baselines import noise_floor
from course_utils.faithfulness import evaluate_sae, patched_logits
from course_utils.latents import latent_activations
from course_utils.splicing import spliced

RESIDUAL = "blocks.1.hook_resid_pre"


class Skip(Plain):
    """Its own call does more than decode(encode(x)), as a skip transcoder's."""

    def __call__(self, x):
        return self.decode(self.encode(x)) + 0.01 * x


class HalfSkip(Skip):
    """The same with 16 bits; what it adds is still more than they round."""

    def __init__(self, width):
        super().__init__(width)
        self.directions = self.directions.half()

    def encode(self, x):
        return super().encode(x.half())

    def __call__(self, x):
        return super().__call__(x.half())


class Foresees(Plain):
    """Its own call adds what it knows from the position before, as a temporal autoencoder's."""

    def __call__(self, x):
        return self.decode(self.encode(x)) + 0.1 * x.roll(1, dims=1)


def every_use(sae):
    """Everything that takes any object with encode and decode."""
    model = small_models.multi_head()
    sae.hook_name, tokens = RESIDUAL, own_tokens(model)

    def run_spliced():
        with spliced(model, sae):
            model(tokens)

    return [lambda: evaluate_sae(model, sae, tokens), lambda: patched_logits(model, sae, tokens), run_spliced,
            lambda: latent_activations(model, sae, tokens), lambda: noise_floor(model, sae, tokens)]


@pytest.mark.parametrize("kind", [Skip, HalfSkip, Foresees])
def test_an_object_that_does_more_is_refused(kind):
    for use in every_use(kind(24)):
        with pytest.raises(ValueError, match=rf"calling this {kind.__name__} does not give decode\(encode\(x\)\)"):
            use()


@pytest.mark.parametrize("call", [
    lambda self, x: self.decode(self.encode(x)), lambda self, x: self.decode(self.encode(x)) * (1 + 1e-6),  # rounded
    lambda self, x: (x.mean(), self.decode(self.encode(x)), self.encode(x)),                        # a loss, x̂, latents
    lambda self, x, target: x, lambda self, x: (x.mean(), 3), torch.nn.Module().forward,           # nothing to compare
])
def test_an_object_whose_own_call_says_nothing_else_is_evaluated(call):
    model = small_models.multi_head()
    sae, tokens = type("Called", (Plain,), {"__call__": call})(24), own_tokens(model)
    called, plain = (evaluate_sae(model, each, tokens, hook_name=RESIDUAL) for each in (sae, Plain(24)))
    assert called.to_frame().equals(plain.to_frame())


def test_it_is_called_once_for_a_whole_evaluation():
    calls = []
    sae = type("Called", (Plain,), {
        "__call__": lambda self, x: calls.append(len(x)) or self.decode(self.encode(x))})(24)
    model = small_models.multi_head()
    evaluate_sae(model, sae, own_tokens(model), hook_name=RESIDUAL, batch_size=2)
    assert calls == [1]


@pytest.mark.parametrize("kind, cfg", [
    ("SkipTranscoder", {}), ("Mlp", {"d_in": 24, "d_out": 12}), ("Mlp", {"transcode": True}),
    ("Mlp", {"metadata": types.SimpleNamespace(hook_name=RESIDUAL, hook_name_out="blocks.1.hook_mlp_out")}),
])
def test_a_transcoder_is_refused_before_the_model_runs(kind, cfg):
    sae = type(kind, (Plain,), {})(24)
    sae.cfg = types.SimpleNamespace(**cfg)
    for use in every_use(sae):
        with (forbidden_forward(small_models.multi_head()),
              pytest.raises(ValueError, match=f"this {kind} is a transcoder")):
            use()


def test_an_object_that_gives_what_it_reads_is_no_transcoder():
    sae = Plain(24)
    sae.cfg = types.SimpleNamespace(d_in=24, d_out=24, metadata=types.SimpleNamespace(hook_name_out=RESIDUAL))
    for use in every_use(sae):
        use()


@pytest.mark.parametrize("name, method, says", [
    ("encode", lambda self, x: (x, x), "encode must give the latents, one tensor; this Odd gives a tuple"),
    ("decode", lambda self, f: torch.zeros(*f.shape[:-1], 30), r"its activation, \(.*24\); this Odd gives \(.*30\)"),
    ("decode", lambda self, f: None, "this Odd gives NoneType"),
])
def test_an_object_that_gives_something_else(name, method, says):
    for use in every_use(type("Odd", (Plain,), {name: method})(24)):
        with pytest.raises(ValueError, match=says):
            use()
