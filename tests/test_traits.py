"""What is tried when a model is loaded, and that what does not hold is refused in words.

That the functions are right on some seventy families is tools/families.py's part (tests/test_families.py).
"""

import pytest
import small_models
import torch

from course_utils import ablation, attribution_graphs, circuits, edges, exercises, heads, path_patching, transcoders
from course_utils.__main__ import main
from course_utils.house import NotForThisModel
from course_utils.logit_attribution import direct_logit_attribution
from course_utils.models import as_bridge, load_model, word_tokenizer
from course_utils.passes import NEEDS, CleanRun, Turn, sites, traits_of, trial
from course_utils.passes.resumed import ResumedPass

SEQ_LEN = 6


@pytest.mark.parametrize("family, halves", [("llama", True), ("cohere", False)])
def test_turns_are_those_of_transformers(family, halves):
    modeling = pytest.importorskip(f"transformers.models.{family}.modeling_{family}")
    q = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    angles = torch.tensor([1.0, 0.3, 0.05, 0.002])
    angle = torch.arange(9)[:, None] * angles                                       # [pos, pair]
    angle = torch.cat([angle, angle], dim=-1) if halves else angle.repeat_interleave(2, dim=-1)
    theirs, _ = modeling.apply_rotary_pos_emb(q, q, angle.cos()[None], angle.sin()[None])
    ours = Turn(angles.double(), halves)(q, torch.arange(9))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    partly = Turn(angles[:2].double(), halves)(q, 4)
    assert torch.equal(partly[..., 4:], q[..., 4:]) and not torch.allclose(partly[..., :4], q[..., :4], atol=0.1)


@pytest.mark.parametrize("make", [small_models.multi_head, small_models.grouped_query_biased])
def test_the_record_of_a_model_that_has_it_all(make):
    model = make()
    traits, rotary = traits_of(model), hasattr(model, "rotary_emb")
    assert not traits.lacks and traits.resumes == "positions" and traits.plain
    assert traits.has_positions is not rotary and all((turn is not None) == rotary for turn in traits.turns)
    assert traits.score_scale == pytest.approx([model.cfg.d_head**-0.5] * model.cfg.n_layers, rel=1e-5)


@pytest.mark.parametrize("make", [small_models.multi_head, small_models.grouped_query])
@pytest.mark.parametrize("resumes", ["blocks", "passes"])
def test_every_way_of_continuing_a_pass_gives_the_same(make, resumes):
    model = make()
    tokens, start, layer = small_models.repeated(model), 4, 1
    quick, slow = (ResumedPass(model, tokens, resumes=how) for how in ("positions", resumes))
    changed = quick.residuals[layer][:, start:].repeat(2, 1, 1).flip(0) * 1.5
    for stop in (None, layer + 1, layer):
        torch.testing.assert_close(slow.continue_from(layer, changed, start=start, stop=stop),
                                   quick.continue_from(layer, changed, start=start, stop=stop), atol=1e-5, rtol=1e-4)


def test_a_record_that_was_made_under_hooks_is_not_kept():
    model = small_models.untried(small_models.multi_head())
    with model.hooks(fwd_hooks=[("hook_embed", lambda x, hook: 0 * x)]):
        assert traits_of(model).embedding_scale == 0
    assert traits_of(model).embedding_scale == 1 and traits_of(model) is traits_of(model)


def functions(model):
    """{need: calls that rest on it}"""
    tokens, head = small_models.repeated(model, SEQ_LEN), (0, 1)
    attribution = lambda: direct_logit_attribution(model, tokens)                                       # noqa: E731
    path = lambda: path_patching.path_patching(model, tokens, SEQ_LEN, (0, 0), [(1, 1)])                # noqa: E731
    OV = lambda: circuits.full_OV_circuit(model, *head)                                                 # noqa: E731
    QK = lambda: circuits.full_QK_circuit(model, *head)                                                 # noqa: E731
    K = lambda: circuits.K_comp_full_circuit(model, 0, 1, 1, 1)                                         # noqa: E731
    compose = lambda: circuits.composition_scores(model)                                                # noqa: E731
    positional = lambda: circuits.positional_pattern(model, *head, 5)                                   # noqa: E731
    return {
        "logits": [path],
        "unembedding": [attribution, OV],
        "parts": [attribution, path, lambda: ablation.mlp_patch_sweep(model, tokens, SEQ_LEN),
                  lambda: ablation.mlp_ablation_scores(model, tokens)],
        "patterns": [lambda: heads.induction_scores(model, tokens, SEQ_LEN),
                     lambda: heads.previous_token_scores(model, tokens),
                     lambda: heads.induction_scores_in_text(model, tokens)],
        "writes": [attribution, OV, K, compose],
        "reads": [path, OV, QK, K, compose, positional],
        "own": [path, lambda: edges.graph_of(model),
                lambda: path_patching.path_logits(model, tokens, (0, 0), [(1, 1)])],
        "mlps": [lambda: edges.graph_of(model), lambda: transcoders.mlp_inputs_and_outputs(model, 0, tokens),
                 lambda: transcoders.replaced_logits(model, {}, tokens),
                 lambda: attribution_graphs.run_features(model, {}, tokens, lambda layer, f: f),
                 lambda: attribution_graphs.FrozenModel(model, {}, tokens[0])],
        "zero": [lambda: ablation.head_ablation_scores(model, tokens, "zero"),
                 lambda: sites.Site(model, "blocks.0.attn.hook_z"),
                 lambda: ablation.head_attribution_scores(model, tokens, "zero", seq_len=SEQ_LEN),
                 lambda: path_patching.path_patching(model, tokens, SEQ_LEN, (0, 0), [(1, 1)], kind="zero"),
                 lambda: circuits.effective_embedding(model, heads=[1])],
        "embedding": [attribution, OV, QK, K, positional, lambda: circuits.effective_embedding(model)],
        "scores": [QK, K, positional, lambda: circuits.score_by_distance(model, *head, tokens, 3)],
    }


@pytest.mark.parametrize("need", NEEDS)
def test_what_a_model_lacks_is_refused_in_words_before_any_work(need, monkeypatch):
    model = small_models.multi_head()
    monkeypatch.setitem(traits_of(model).lacks, need, "the two differ by 12 %")
    with small_models.forbidden_forward(model):
        for call in functions(model)[need]:
            with pytest.raises(NotForThisModel, match="the two differ by 12 %"):
                call()


def test_logits_that_the_course_does_not_know_are_refused(monkeypatch):
    model = small_models.multi_head()
    monkeypatch.setitem(traits_of(model).lacks, "logits", "the two differ altogether")
    clean = CleanRun(model, small_models.repeated(model))
    with pytest.raises(NotForThisModel, match="the two differ altogether"):
        clean.logits(clean.residuals[-1])


def broken(model, name):
    """The error that a trial sees when something in it is off by a tenth."""
    seen = trial._Trial(model, trial.Traits())
    if name in ("logits", "unembedding", "embedding"):
        changed = {"logits": -1, "unembedding": -1, "embedding": 0}[name]
        residuals = seen.clean.residuals
        residuals[changed] = residuals[changed] + 0.1 * torch.randn_like(residuals[changed])
        seen.wanted = model(seen.tokens)
    hook = {"parts": "hook_mlp_out", "patterns": "attn.hook_z", "writes": "attn.hook_z", "reads": "attn.hook_k",
            "mlps": "ln2.hook_in",
            "scores": "attn.hook_q"}.get(name)
    if hook:
        seen.cache[f"blocks.1.{hook}"] = seen.at(1, hook) + 0.1 * torch.randn_like(seen.at(1, hook))
    return getattr(seen, name)()


@pytest.mark.parametrize("name", [name for name in NEEDS if name not in ("unembedding", "own", "zero")])
def test_the_trial_sees_what_is_off_by_a_tenth(name):
    torch.manual_seed(0)
    assert broken(small_models.multi_head(), name) > 20 * trial.TOLERANCE


def small(architecture, **settings):
    return as_bridge(architecture(architecture.config_class(
        **{"vocab_size": 30, "bos_token_id": 0, "eos_token_id": 0, **settings})),
        word_tokenizer(small_models.WORDS, "<bos>"), name="small", device="cpu")


def test_a_model_that_folding_changes_is_not_loaded():
    """An MLP as wide as the stream: the library takes its weights for transposed ones."""
    from transformers import GPT2LMHeadModel

    class Uneven(GPT2LMHeadModel):
        def __init__(self, config):
            super().__init__(config)
            for block in self.transformer.h:
                block.ln_2.weight.data.uniform_(0.5, 1.5)

    torch.manual_seed(0)
    with pytest.raises(NotForThisModel, match="log-probabilities by up to .* nats"):
        small(Uneven, n_embd=16, n_inner=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.5,
              architectures=["GPT2LMHeadModel"])


def test_a_model_that_looks_ahead_is_not_loaded():
    with pytest.raises(NotForThisModel, match="depends on later tokens"):
        trial.check_causal(_Ahead(), torch.ones(2, 5).long(), "an encoder")


class _Ahead:
    """Every prediction is the mean of all tokens."""

    class cfg:
        d_vocab = 7

    def __call__(self, tokens):
        return tokens.float().mean(dim=1, keepdim=True)[..., None].expand(*tokens.shape, 7)


@pytest.mark.parametrize("name", ["t5-small", "bert-base-cased"])
def test_what_is_no_causal_language_model_is_refused_by_name(name):
    with pytest.raises(NotForThisModel, match=f"^{name} is a "):
        load_model(name)


def test_doctor_prints_the_record(capsys):
    assert main(["doctor", "--model", "tiny"]) == 0
    text = capsys.readouterr().out
    assert all(f"yes  {need}" in text for need in NEEDS.values()) and "positions: added to the embedding" in text
    assert main(["doctor", "--model", "t5-small"]) == 1


def test_a_formula_for_plain_models_gives_way_on_others(monkeypatch, capsys):
    """Neither wrong without a word, nor refused: the course's version for any model is used, and a line says so."""
    model = small_models.multi_head()
    item = exercises.get("04.effective_embedding")
    function = exercises.exercise("04.effective_embedding", quiet=True)(item.reference)
    torch.testing.assert_close(function(model), circuits.effective_embedding(model), atol=1e-5, rtol=1e-4)
    assert not capsys.readouterr().out
    monkeypatch.setattr(traits_of(model), "plain", False)
    assert torch.equal(function(model), circuits.effective_embedding(model))
    assert "another shape" in capsys.readouterr().out
