"""Weight circuits and path patching: against the model's own activations, TransformerLens, and slow definitions."""

import itertools

import pytest
import small_models
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import forbidden_forward, grouped_query_biased, repeated
from transformer_lens import FactoredMatrix

from course_utils import circuits
from course_utils.circuits import (
    K_comp_full_circuit,
    composition_score,
    composition_scores,
    copying_score,
    effective_embedding,
    fold_layer_norm,
    full_OV_circuit,
    full_QK_circuit,
    positional_pattern,
    random_head_pairs,
    rotate,
    score_by_distance,
    top_k_accuracy,
)
from course_utils.heads import best_head, induction_scores, previous_token_scores
from course_utils.models import TINY_FOLDER, checkpoint_steps, from_folder
from course_utils.passes import head_weights, hook_z, normalize
from course_utils.path_patching import head_reading, path_patching
from course_utils.repeated_tokens import generate_repeated_tokens

pytestmark = pytest.mark.older

N = 6
ROTARY_BASE = 10_000.0


@pytest.fixture(params=["multi_head", "grouped_query"])
def model(request):
    return small_models.ALL[request.param]()


def every_head(model):
    return [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]


def turned(vectors: torch.Tensor, position: int) -> torch.Tensor:
    """Rotary positions as defined: pair (i, i + d/2), a complex number, is turned by position * base^(-2i/d)."""
    half = vectors.shape[-1] // 2
    angles = position * ROTARY_BASE ** (-torch.arange(half, dtype=torch.float64) / half)
    pairs = torch.complex(vectors[..., :half].double(), vectors[..., half:].double())
    pairs = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([pairs.real, pairs.imag], dim=-1).float()


# --- one head's weights ----------------------------------------------------------------------------------------------


def test_what_a_head_writes_is_its_value_times_O(model):
    tokens = repeated(model, N)
    _, cache = model.run_with_cache(tokens, names_filter=[hook_z(1), "blocks.1.hook_attn_out"])
    written = sum(cache[hook_z(1)][:, :, head] @ head_weights(model, 1, head)["O"] for head in range(model.cfg.n_heads))
    bias = getattr(model.blocks[1].attn, "b_O", None)
    written = written if bias is None else written + bias
    torch.testing.assert_close(written, cache["blocks.1.hook_attn_out"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layer, head", [(-1, 0), (0, -1), (3, 0), (0, 4)])
def test_heads_out_of_range_are_refused(layer, head):
    model = small_models.multi_head()
    tokens = repeated(model, N)
    for call in (lambda: full_OV_circuit(model, layer, head), lambda: full_QK_circuit(model, layer, head),
                 lambda: positional_pattern(model, layer, head, 5),
                 lambda: score_by_distance(model, layer, head, tokens, 3),
                 lambda: K_comp_full_circuit(model, layer, 2, head, 0),
                 lambda: K_comp_full_circuit(model, 0, layer, 0, head),
                 lambda: path_patching(model, tokens, N, (layer, head), [(2, 0)])):
        with forbidden_forward(model), pytest.raises(ValueError, match="no head|must come after"):
            call()


# --- OV, QK, K-composition -------------------------------------------------------------------------------------------


def test_rotation_is_the_models(model):
    if not hasattr(model, "rotary_emb"):
        assert torch.equal(rotate(model, model.W_E, 0), model.W_E)
        with pytest.raises(ValueError, match="rotary"):
            full_QK_circuit(model, 0, 0, distance=3)
        return
    tokens = repeated(model, N, 1)
    _, cache = model.run_with_cache(tokens, names_filter=["blocks.0.attn.hook_q", "blocks.0.attn.hook_rot_q"])
    before, after = cache["blocks.0.attn.hook_q"], cache["blocks.0.attn.hook_rot_q"]    # [1, pos, head, d_head]
    for position in (0, 1, 7):
        torch.testing.assert_close(
            rotate(model, before[0, position, 2], position), after[0, position, 2], atol=1e-5, rtol=1e-4)


def test_planted_circuit_and_discovered_pair_against_controls():
    planted = K_comp_full_circuit(small_models.planted(), 0, 1, 0, 0)
    assert top_k_accuracy(planted) == top_k_accuracy(planted, best="query") == 1.0
    tiny = small_models.tiny()
    tokens = generate_repeated_tokens(tiny, 50, 10, seed=0)
    induction = best_head(induction_scores(tiny, tokens, 50))
    previous = best_head(previous_token_scores(tiny, tokens))
    found = top_k_accuracy(K_comp_full_circuit(tiny, previous[0], induction[0], previous[1], induction[1]))
    pairs = random_head_pairs(4, 4, 40, exclude=[previous, induction, *((1, head) for head in range(4))])
    control = torch.tensor([top_k_accuracy(K_comp_full_circuit(tiny, a[0], b[0], a[1], b[1])) for a, b in pairs])
    assert found >= 0.9 and found >= 20 * control.median() and found >= 20 * control.max() and found >= 20 / 988


@pytest.mark.parametrize("layers", [(1, 1), (2, 1)])
def test_an_induction_layer_that_is_not_later_is_refused(layers):
    with pytest.raises(ValueError, match="must come after"):
        K_comp_full_circuit(small_models.multi_head(), *layers, 0, 0)


# --- embeddings, norms, positions ------------------------------------------------------------------------------------


def test_effective_embedding_is_block_0_without_attention(model, monkeypatch):
    """Zero what attention (and the position embedding) adds: then the residual stream after block 0 is it."""
    tokens = torch.arange(model.cfg.d_vocab)[:60, None]                 # one token a row
    def nothing(value, hook):
        return 0 * value
    silenced = [("blocks.0.hook_attn_out", nothing),
                *([("hook_pos_embed", nothing)] if hasattr(model, "pos_embed") else [])]
    found = {}
    model.run_with_hooks(tokens, fwd_hooks=[*silenced, ("blocks.1.hook_resid_pre", lambda v, hook: found.update(x=v))])
    torch.testing.assert_close(effective_embedding(model)[:60], found["x"][:, 0], atol=1e-4, rtol=1e-3)
    assert (found["x"][:, 0] - model.W_E[:60]).norm() > 0.1 * model.W_E[:60].norm()         # the MLP does something
    whole = effective_embedding(model)
    monkeypatch.setattr(circuits, "TOKENS_AT_A_TIME", 7)
    torch.testing.assert_close(effective_embedding(model), whole, atol=1e-5, rtol=1e-4)
    assert torch.equal(effective_embedding(model, mlp=False), model.W_E)


@settings(max_examples=25, deadline=None)
@given(d_in=st.integers(2, 8), d_out=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_folding_a_norm_changes_nothing(d_in, d_out, seed):
    rng = torch.Generator().manual_seed(seed)
    W, b, gain, shift, x = (torch.randn(*shape, generator=rng, dtype=torch.float64)
                            for shape in ((d_in, d_out), (d_out,), (d_in,), (d_in,), (4, d_in)))
    folded, bias = fold_layer_norm(W, b, gain, shift)
    normed = F.layer_norm(x, (d_in,))
    torch.testing.assert_close(normed @ folded + bias, F.layer_norm(x, (d_in,), gain, shift) @ W + b)
    torch.testing.assert_close(folded.mean(0), torch.zeros(d_out, dtype=torch.float64), atol=1e-12, rtol=0)


def test_positional_pattern_of_the_planted_and_the_trained_head():
    pattern = positional_pattern(small_models.planted(), 0, 0, 20)
    torch.testing.assert_close(pattern.diagonal(-1), torch.ones(19), atol=1e-4, rtol=0)
    tiny = small_models.tiny()
    tokens = generate_repeated_tokens(tiny, 50, 10, seed=0)
    scores = previous_token_scores(tiny, tokens)
    predicted = positional_pattern(tiny, *best_head(scores), 100)
    assert abs(predicted.diagonal(-1).mean() - scores.max()) < 0.05
    torch.testing.assert_close(predicted.sum(-1), torch.ones(100))
    assert (predicted.triu(1) == 0).all()


def test_positional_scale_is_the_mean_over_tokens():
    """The analytic root mean square equals one computed over the whole vocabulary."""
    model = small_models.multi_head()
    x = model.pos_embed.weight[:5] + model.W_E.mean(0)
    both = model.pos_embed.weight[:5, None] + model.W_E                 # [pos, vocab, d_model]
    x = x / both.pow(2).mean(dim=(1, 2)).sqrt()[:, None]
    w = head_weights(model, 1, 3)
    scores = (x @ w["Q"] + w["b_Q"]) @ (x @ w["K"] + w["b_K"]).T / model.cfg.d_head ** 0.5
    expected = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf).softmax(-1)
    torch.testing.assert_close(positional_pattern(model, 1, 3, 5), expected, atol=1e-5, rtol=1e-4)


def test_positions_that_do_not_exist_are_refused():
    for number, says in ((65, "64 position"), (0, "n_positions is 0")):
        with pytest.raises(ValueError, match=says):
            positional_pattern(small_models.multi_head(), 0, 0, number)
    with pytest.raises(ValueError, match="score_by_distance"):
        positional_pattern(small_models.grouped_query(), 0, 0, 5)
    with pytest.raises(ValueError, match="rotary"):
        score_by_distance(small_models.multi_head(), 0, 0, repeated(small_models.multi_head(), N), 3)


@pytest.mark.slow
@pytest.mark.matrix  # in make test lesson 04 measures the same
def test_the_previous_token_head_of_smollm2_prefers_distance_1():
    model = small_models.smollm2()
    assert score_by_distance(model, 16, 0, generate_repeated_tokens(model, 25, 2, seed=0), 12).argmax() == 1


# --- reading circuits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call, says", [
    (lambda: top_k_accuracy(torch.eye(4), best="keys"), '"key" or "query"'),
    (lambda: top_k_accuracy(torch.ones(3, 4)), "square"),
    (lambda: top_k_accuracy(torch.eye(4), 4), "between 1 and 3"),
    (lambda: top_k_accuracy(torch.eye(4), 0), "between 1 and 3"),
    (lambda: composition_scores(small_models.multi_head(), "O"), '"K", "Q" or "V"'),
    (lambda: random_head_pairs(2, 2, 5), "only 4"),
])
def test_bad_questions_are_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_copying_score_is_from_eigenvalues():
    OV = full_OV_circuit(small_models.multi_head(), 1, 2)
    eigenvalues = torch.linalg.eigvals(OV.AB.double())
    assert copying_score(OV) == pytest.approx((eigenvalues.sum().real / eigenvalues.abs().sum()).item(), abs=1e-4)
    A = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    assert copying_score(FactoredMatrix(A, A.T)) == pytest.approx(1)
    assert copying_score(FactoredMatrix(A, -A.T)) == pytest.approx(-1)
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])                      # a quarter turn: copies no direction
    assert copying_score(FactoredMatrix(turn, torch.eye(2))) == pytest.approx(0, abs=1e-6)


def test_composition_of_random_matrices_is_one_over_root_d():
    rng = torch.Generator().manual_seed(0)
    def draw():
        return FactoredMatrix(torch.randn(100, 10, generator=rng), torch.randn(10, 100, generator=rng))
    pairs = [(draw(), draw()) for _ in range(20)]
    scores = [composition_score(*pair) for pair in pairs]
    assert sum(scores) / 20 == pytest.approx(0.1, abs=0.005)
    for score, (first, second) in zip(scores, pairs):
        dense = (first.AB @ second.AB).norm() / first.AB.norm() / second.AB.norm()
        assert score == pytest.approx(dense.item(), rel=1e-4)


def test_random_pairs_are_different_ordered_and_even():
    seen = [pair for seed in range(300) for pair in random_head_pairs(3, 2, 4, exclude=[(1, 1)], seed=seed)]
    possible = {((a, i), (b, j)) for a in range(3) for b in range(a + 1, 3) for i in range(2) for j in range(2)
                if (1, 1) not in ((a, i), (b, j))}
    counts = [seen.count(pair) for pair in possible]
    assert set(seen) == possible and min(counts) > 0.7 * len(seen) / len(possible)


# --- more: biases and grouped queries together, each option alone, scores the model itself computes ------------------


def keep(model, tokens, *names, hooks=()):
    """The values of some hooks in one pass, with other hooks acting."""
    found = {}                                                          # a hook's own name may differ: it has aliases
    store = [(name, lambda value, hook, name=name: found.__setitem__(name, value.clone())) for name in names]
    model.run_with_hooks(tokens, fwd_hooks=[*hooks, *store])
    return [found[name] for name in names]


@pytest.mark.parametrize("make", [small_models.multi_head, small_models.grouped_query, grouped_query_biased])
def test_weights_and_biases_of_every_head_give_the_hooked_activations(make):
    model = make()
    sizes = {"q": model.cfg.n_heads, "k": model.cfg.n_key_value_heads or model.cfg.n_heads}
    sizes["v"] = sizes["k"]
    for layer in range(model.cfg.n_layers):
        names = [f"blocks.{layer}.attn.hook_{letter}" for letter in "qkv"]
        stream, *activations = keep(model, repeated(model, N), f"blocks.{layer}.hook_resid_pre", *names)
        normed = normalize(model, stream)
        for letter, activation in zip("qkv", activations):
            assert activation.shape[2] == sizes[letter]
            for head in range(model.cfg.n_heads):
                weights = head_weights(model, layer, head)
                ours = normed @ weights[letter.upper()] + weights[f"b_{letter.upper()}"]
                own = activation[:, :, head * sizes[letter] // model.cfg.n_heads]
                torch.testing.assert_close(ours, own, atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(head_reading(model, layer, head, letter, stream), own, atol=1e-4, rtol=1e-4)


def test_biases_are_zero_only_where_a_model_has_none():
    makers = {small_models.multi_head: True, grouped_query_biased: True, small_models.grouped_query: False}
    for model, has in ((make(), has) for make, has in makers.items()):
        for layer, head in every_head(model):
            weights = head_weights(model, layer, head)
            assert weights.keys() == {"Q", "K", "V", "O", "b_Q", "b_K", "b_V", "b_O"}
            assert all(weights[f"b_{name}"].shape == (model.cfg.d_head,) for name in "QKV")
            assert weights["b_Q"].any() == weights["b_K"].any() == has


@pytest.mark.parametrize("make", [small_models.multi_head, small_models.grouped_query])
def test_full_circuits_are_transformer_lens_factors_between_any_embeddings(make):
    model, rng = make(), torch.Generator().manual_seed(0)
    other = torch.randn(7, model.cfg.d_model, generator=rng)
    for layer, head in every_head(model):
        OV, QK = (part.A[layer, head] @ part.B[layer, head] for part in (model.OV, model.QK))
        for embedding, rows in ((None, model.W_E), (other, other)):
            ours = full_OV_circuit(model, layer, head, embedding=embedding).AB
            torch.testing.assert_close(ours, rows @ OV @ model.W_U, atol=1e-3, rtol=1e-3)
            ours = full_QK_circuit(model, layer, head, embedding=embedding).AB
            torch.testing.assert_close(ours, rows @ QK @ rows.T, atol=1e-3, rtol=1e-3)
            assert not torch.allclose(ours, ours.T, atol=0.1)                               # else rows could be columns


@pytest.mark.parametrize("make", [small_models.multi_head, grouped_query_biased])
def test_QK_and_biases_together_are_the_scores_of_layer_0(make):
    """(q + b_Q)(k + b_K) written out: the circuit is one of four terms of the score the model computes."""
    model = make()
    tokens, root = repeated(model, N, 1), model.cfg.d_head ** 0.5
    hooks = [("hook_pos_embed", lambda value, hook: 0 * value)] if hasattr(model, "pos_embed") else []
    scores, = keep(model, tokens, "blocks.0.attn.hook_attn_scores", hooks=hooks)
    E = normalize(model, model.W_E)
    for head in range(model.cfg.n_heads):
        w = head_weights(model, 0, head)
        for query, key in ((4, 4), (5, 4), (12, 3), (9, 0)):
            distance = query - key if hasattr(model, "rotary_emb") else 0
            circuit = full_QK_circuit(model, 0, head, embedding=E, distance=distance).AB
            q, k = (E[tokens[0, at]] for at in (query, key))
            rest = (turned(w["b_Q"], distance) @ (k @ w["K"] + w["b_K"]) + turned(q @ w["Q"], distance) @ w["b_K"])
            ours = (circuit[tokens[0, query], tokens[0, key]] + rest) / root
            torch.testing.assert_close(ours, scores[0, head, query, key], atol=1e-3, rtol=1e-3)


def test_score_by_distance_is_that_of_vectors_the_model_turned():
    """Every query turned back from its own position by the definition, then averaged and turned by the distance."""
    model = grouped_query_biased()
    tokens = repeated(model, N)
    q, k = keep(model, tokens, "blocks.2.attn.hook_rot_q", "blocks.2.attn.hook_rot_k")
    for head in range(6):
        mean_q, mean_k = (torch.stack([turned(x[:, at, which], -at) for at in range(1, 13)]).mean(dim=(0, 1))
                          for x, which in ((q, head), (k, head // 3 if k.shape[2] == 2 else head)))
        expected = torch.stack([turned(mean_q, d) @ mean_k for d in range(7)]) / 2      # sqrt(d_head) is 2
        torch.testing.assert_close(score_by_distance(model, 2, head, tokens, 6), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prev, ind", [((0, 0), (1, 5)), ((0, 5), (1, 0)), ((0, 3), (1, 2))])
def test_the_composed_circuit_is_the_score_of_a_position_that_holds_only_what_was_moved(prev, ind):
    """Give each position a stream of its own: the query its embedding, the key what the first head wrote of its token.

    The model then computes the circuit's entry itself, turned by the distance; the key's scale is put back by hand.
    """
    model = small_models.grouped_query()
    tokens, query = torch.arange(1, 10)[None], 8
    p = head_weights(model, *prev)
    moved = normalize(model, model.W_E)[tokens] @ p["V"] @ p["O"]                       # [1, pos, d_model]
    stream = torch.cat([moved[:, :query], model.W_E[tokens[:, query:]]], dim=1)
    scores, = keep(model, tokens, "blocks.1.attn.hook_attn_scores",
                   hooks=[("blocks.1.hook_resid_pre", lambda value, hook: stream)])
    scales = (moved[0].pow(2).mean(dim=-1) + model.cfg.eps).sqrt()
    for key in range(query):
        circuit = K_comp_full_circuit(model, prev[0], ind[0], prev[1], ind[1], layer_norm=True, distance=query - key)
        ours = circuit.AB[tokens[0, query], tokens[0, key]] / scales[key] / model.cfg.d_head ** 0.5
        torch.testing.assert_close(ours, scores[0, ind[1], query, key], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("make", [small_models.multi_head, grouped_query_biased])
def test_each_option_of_the_composed_circuit_against_an_einsum(make):
    model, rng = make(), torch.Generator().manual_seed(0)
    prev, ind = (0, 1), (2, 3)
    p, i = head_weights(model, *prev), head_weights(model, *ind)
    one, two = (torch.randn(rows, model.cfg.d_model, generator=rng) for rows in (5, 8))
    rotary = hasattr(model, "rotary_emb")

    def expected(queries, keys, bias=0.0, distance=0):
        reads = torch.einsum("vm,mh->vh", queries, i["Q"]) + bias
        return torch.einsum("qh,kl,lg,gm,mh->qk", turned(reads, distance), keys, p["V"], p["O"], i["K"])

    E = model.W_E
    for options, wanted in (
        ({}, expected(E, E)),
        ({"query_embedding": one}, expected(one, E)),
        ({"key_embedding": two}, expected(E, two)),
        ({"query_embedding": one, "key_embedding": two}, expected(one, two)),
        ({"layer_norm": True}, expected(normalize(model, E), normalize(model, E))),
        ({"layer_norm": True, "query_embedding": one}, expected(normalize(model, one), normalize(model, E))),
        ({"layer_norm": True, "key_embedding": two}, expected(normalize(model, E), normalize(model, two))),
        ({"query_bias": True}, expected(E, E, i["b_Q"])),
        *([({"distance": 3, "query_bias": True}, expected(E, E, i["b_Q"], 3))] if rotary else []),
    ):
        ours = K_comp_full_circuit(model, prev[0], ind[0], prev[1], ind[1], **options)
        torch.testing.assert_close(ours.AB, wanted, atol=2e-3, rtol=1e-3, msg=lambda text: f"{list(options)}: {text}")
    if not rotary:
        with pytest.raises(ValueError, match="rotary"):
            K_comp_full_circuit(model, 0, 1, 0, 0, distance=1)


@pytest.mark.parametrize("make, mlp, heads", [
    (small_models.multi_head, True, [3, 0]), (small_models.multi_head, False, []),
    (small_models.grouped_query, True, [2]), (small_models.grouped_query, True, range(6))])
def test_effective_embedding_of_some_heads_is_a_pass_with_the_others_silenced(make, mlp, heads, monkeypatch):
    model = make()
    monkeypatch.setattr(circuits, "TOKENS_AT_A_TIME", 8)
    bias = getattr(model.blocks[0].attn, "b_O", None)

    def silence(z, hook):
        mask = torch.tensor([float(head in heads) for head in range(model.cfg.n_heads)])
        return z * mask[:, None]
    hooks = [(hook_z(0), silence)]
    if bias is not None and not heads:                                  # with no head b_O is left out, too
        hooks.append(("blocks.0.hook_attn_out", lambda value, hook: value - bias))
    if hasattr(model, "pos_embed"):
        hooks.append(("hook_pos_embed", lambda value, hook: 0 * value))
    tokens = torch.arange(model.cfg.d_vocab)[:, None]
    whole, before_mlp = keep(model, tokens, "blocks.1.hook_resid_pre", "blocks.0.hook_resid_mid", hooks=hooks)
    ours = effective_embedding(model, heads=heads, mlp=mlp)
    torch.testing.assert_close(ours, (whole if mlp else before_mlp)[:, 0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("heads", [[4], [-1], [0, 99]])
def test_effective_embedding_refuses_heads_that_layer_0_lacks(heads):
    with forbidden_forward(small_models.multi_head()), pytest.raises(ValueError, match="no head 0"):
        effective_embedding(small_models.multi_head(), heads=heads)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), spread=st.floats(0.01, 30), middle=st.floats(-5, 5), layer=st.integers(0, 1))
def test_normalize_is_the_norm_of_any_layer(seed, spread, middle, layer):
    for make in (small_models.multi_head, small_models.grouped_query):
        model = make()
        x = spread * torch.randn(2, 3, model.cfg.d_model, generator=torch.Generator().manual_seed(seed)) + middle
        torch.testing.assert_close(normalize(model, x), model.blocks[layer].ln1(x), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_load_model_folds_every_map_that_reads_a_norm(layer):
    tiny = small_models.tiny()
    raw = from_folder(TINY_FOLDER, f"step-{checkpoint_steps()[-1]:06}.safetensors")[0].transformer.h[layer]
    with torch.no_grad():
        W, b = fold_layer_norm(raw.attn.c_attn.weight, raw.attn.c_attn.bias, raw.ln_1.weight, raw.ln_1.bias)
        W_in, b_in = fold_layer_norm(raw.mlp.c_fc.weight, raw.mlp.c_fc.bias, raw.ln_2.weight, raw.ln_2.bias)
    for head in range(4):
        weights = head_weights(tiny, layer, head)
        for index, name in enumerate("QKV"):
            part = slice(index * 256 + head * 64, index * 256 + head * 64 + 64)
            torch.testing.assert_close(weights[name], W[:, part], atol=1e-5, rtol=1e-4)
            if name != "V":                                             # the values' bias is moved on into b_O
                torch.testing.assert_close(weights[f"b_{name}"], b[part], atol=1e-5, rtol=1e-4)
    values, O = b[512:], raw.attn.c_proj.weight
    centred = values @ O + raw.attn.c_proj.bias
    torch.testing.assert_close(tiny.blocks[layer].attn.b_O, centred - centred.mean(), atol=1e-4, rtol=1e-3)
    mlp = tiny.blocks[layer].mlp
    torch.testing.assert_close(mlp.W_in, W_in, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mlp.b_in, b_in, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("best", ["key", "query"])
def test_equal_tokens_tie_wherever_their_blocks_are(best):
    vectors = torch.randn(2500, 64, generator=torch.Generator().manual_seed(0))
    vectors /= vectors.norm(dim=1, keepdim=True)                        # every token's best key is its own
    vectors[[2400, 701, 2499]] = vectors[[3, 700, 2200]]                # but these six have two
    assert top_k_accuracy(FactoredMatrix(vectors, vectors.T), best=best) == 1 - 6 / 2500
    assert top_k_accuracy(FactoredMatrix(vectors, vectors.T), 2, best=best) == 1
    assert top_k_accuracy(FactoredMatrix(vectors, vectors.T), tokens=torch.tensor([3, 4, 2499])) == pytest.approx(1 / 3)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(2, 12), seed=st.integers(0, 10**6), best=st.sampled_from(["key", "query"]),
       factored=st.booleans(), block=st.integers(1, 5), few=st.integers(0, 3), data=st.data())
def test_top_k_of_chosen_tokens_in_blocks(size, seed, best, factored, block, few, data):
    k, rng = data.draw(st.integers(1, size - 1)), torch.Generator().manual_seed(seed)
    chosen = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=size, unique=True))
    A, B = torch.randn(size, 3, generator=rng), torch.randn(3, size, generator=rng)
    dense = A @ B
    copies = A.clone(), B.clone(), dense.clone()
    table = dense if best == "key" else dense.T
    hits = [int((table[i] >= table[i, i]).sum()) <= k for i in chosen]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(circuits, "BLOCK", block)
        patch.setattr(circuits, "FEW_ROWS", few)
        ours = top_k_accuracy(FactoredMatrix(A, B) if factored else dense, k, best=best, tokens=torch.tensor(chosen))
    assert ours == pytest.approx(sum(hits) / len(hits))
    assert all(torch.equal(now, then) for now, then in zip((A, B, dense), copies))


@pytest.mark.parametrize("kind", ["K", "Q", "V"])
def test_composition_scores_are_dense_norms_in_every_pair_of_layers(kind):
    """Written out with dense matrices, for heads that share keys: layers 0 to 1, 0 to 2 and 1 to 2."""
    model = grouped_query_biased()
    scores = composition_scores(model, kind)
    assert scores.shape == (3, 6, 3, 6)
    for (layer, a), (later, b) in itertools.product(every_head(model), repeat=2):
        if later <= layer:
            assert scores[layer, a, later, b] == 0
            continue
        attn = model.blocks[later].attn
        Q, K, V, O = attn.W_Q[b], attn.W_K[b // 3], attn.W_V[b // 3], attn.W_O[b]
        reads = {"K": K @ Q.T, "Q": Q @ K.T, "V": V @ O}[kind]
        writes = model.blocks[layer].attn.W_V[a // 3] @ model.blocks[layer].attn.W_O[a]
        expected = (writes @ reads).norm() / writes.norm() / reads.norm()
        assert scores[layer, a, later, b].item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("kind", ["K", "Q", "V"])
def test_planted_heads_compose_and_idle_ones_do_not(kind):
    scores = composition_scores(small_models.planted(), kind)
    assert scores.isfinite().all()
    assert (scores[0, 0, 1, 0] > 0.1) == (kind == "K")                  # only through the keys
    scores[0, 0, 1, 0] = 0
    assert not scores.any()
