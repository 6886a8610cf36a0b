"""Transcoders and attribution graphs: against loops, plain passes, a model that is its own transcoder, and SAELens."""

import itertools
from functools import lru_cache

import families
import pytest
import small_models
import torch
from small_models import random_tokens, repeated
from small_saes import D_IN, D_SAE, K, random_sae, same_weights, some_activations, training_config

from course_utils.attribution_graphs import (
    AttributionGraph,
    FrozenModel,
    Node,
    attribution_graph,
    graph_scores,
    influence,
    interventions,
    normalized,
    pruned,
    run_features,
    total_effects,
)
from course_utils.house import NotForThisModel
from course_utils.metrics import delta_cross_entropy, explained_variance
from course_utils.models import as_bridge, word_tokenizer
from course_utils.sae import SparseAutoencoder
from course_utils.sae_training import TrainingConfig, fit
from course_utils.text import sample_text
from course_utils.transcoders import (
    KINDS,
    TRANSCODERS_FOLDER,
    Transcoder,
    load_shipped_transcoder,
    mlp_in,
    mlp_inputs_and_outputs,
    replaced_logits,
    shipped_transcoders,
    train_transcoder,
)

PLACES = {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out", "model_name": "tiny"}


def random_transcoder(kind="relu", skip=False, *, d_in=D_IN, d_sae=D_SAE, k=K, seed=0, size=1.0, **more):
    """Every weight random."""
    transcoder = Transcoder(d_in, d_sae, kind, k=k if kind == "topk" else None, skip=skip, **more)
    rng = torch.Generator().manual_seed(seed)
    for name, weight in transcoder.named_parameters():
        weight.data = size * torch.randn(weight.shape, generator=rng)
        if name == "threshold":
            weight.data.abs_()
    return transcoder.requires_grad_(False)


@lru_cache
def relu_model():
    """Learned positions, biases everywhere, an MLP with relu: a transcoder can be the MLP itself."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(4)
    config = GPT2Config(vocab_size=30, n_positions=64, n_embd=24, n_layer=3, n_head=4, n_inner=16,
                        initializer_range=0.3, bos_token_id=0, eos_token_id=0, activation_function="relu")
    model = GPT2LMHeadModel(config)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.data.normal_(std=0.3)
    return as_bridge(model, word_tokenizer(small_models.WORDS, "<bos>"), name="relu", device="cpu")


def exact_transcoders(model):
    """The MLPs of `relu_model`, hidden unit by hidden unit."""
    found = {}
    for layer, block in enumerate(model.blocks):
        found[layer] = Transcoder(24, 16, "relu").requires_grad_(False)
        parts = {"W_enc": block.mlp.W_in, "b_enc": block.mlp.b_in, "W_dec": block.mlp.W_out, "b_dec": block.mlp.b_out}
        for name, value in parts.items():
            getattr(found[layer], name).data.copy_(value.detach())
    return found


MODELS = {"multi_head": small_models.multi_head, "grouped_query": small_models.grouped_query, "relu": relu_model,
          "beside": lambda: families.family("pythia").bridge}
CASES = [("multi_head", "topk", True), ("grouped_query", "jumprelu", False), ("relu", "relu", False),
         ("beside", "topk", True)]


def made(name, kind="topk", skip=True):
    """A model, a transcoder of random weights for each layer, a prompt."""
    model = MODELS[name]()
    return model, {layer: random_transcoder(kind, skip, d_in=model.cfg.d_model, d_sae=14, k=5, seed=layer, size=0.3)
                   for layer in range(model.cfg.n_layers)}, random_tokens(1, 7, seed=3)[0]


def close(found, wanted, tolerance):
    """Equal up to a share of the largest number."""
    assert found.shape == wanted.shape and (found - wanted).abs().max() <= tolerance * wanted.abs().max()


# --- transcoders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, skip", list(itertools.product(KINDS, (False, True))))
def test_the_formulas_by_loops(kind, skip):
    transcoder, x = random_transcoder(kind, skip), some_activations(5)
    for row, found, written in zip(x, transcoder.encode(x), transcoder(x)):
        pre = [sum(row[i] * transcoder.W_enc[i, j] for i in range(D_IN)) + transcoder.b_enc[j] for j in range(D_SAE)]
        least = {"relu": [0.0] * D_SAE, "topk": [max(0.0, sorted(pre)[-K] - 1e-6)] * D_SAE,
                 "jumprelu": transcoder.threshold if kind == "jumprelu" else None}[kind]
        features = torch.stack([value if value > limit else torch.zeros(()) for value, limit in zip(pre, least)])
        torch.testing.assert_close(found, features)
        y = transcoder.b_dec + sum(features[j] * transcoder.W_dec[j] for j in range(D_SAE))
        if skip:
            y = y + torch.stack([sum(transcoder.W_skip[o, i] * row[i] for i in range(D_IN)) for o in range(D_IN)])
        torch.testing.assert_close(written, y, atol=1e-4, rtol=1e-4)
    if skip:
        with pytest.raises(ValueError, match="needs x, what was read"):
            transcoder.decode(found)


def test_what_it_reads_is_what_the_mlp_makes_its_output_of():
    for name in ("multi_head", "grouped_query", "beside"):
        model, _, _ = made(name)
        tokens = random_tokens(40, 6)
        x, y = mlp_inputs_and_outputs(model, 1, tokens)
        seen = []
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_mlp_out", lambda out, hook: seen.append(out))])
        torch.testing.assert_close(y, seen[0][:, 1:].flatten(0, 1).detach(), atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(model.blocks[1].mlp(x[None])[0].detach(), y, atol=1e-4, rtol=1e-4)
        assert x.shape == (200, model.cfg.d_model) and not x.requires_grad


@pytest.mark.parametrize("kind, skip", [("relu", True), ("topk", False)])
def test_training_is_adam_on_the_error_of_the_target(kind, skip):
    """Five steps of the whole batch, in plain PyTorch, and the scales that x and y were divided by."""
    x, y = some_activations(64), 5 * some_activations(64, seed=1).cos()
    config = training_config(kind, steps=5, batch=64, warm_up=1, decay=0, revive=0, sparsity=0.3, lr=0.02)
    start = Transcoder(D_IN, D_SAE, kind, k=config.k, skip=skip)
    w = {name: value.clone() for name, value in start.state_dict().items()}
    size_x, size_y = x.pow(2).mean().sqrt(), y.pow(2).mean().sqrt()
    w["b_dec"] = (y / size_y).mean(0)
    optimizer = torch.optim.Adam([value.requires_grad_() for value in w.values()], lr=0.02)
    for _ in range(5):
        pre = x / size_x @ w["W_enc"] + w["b_enc"]
        f = pre.relu() if kind == "relu" else pre.relu() * (pre >= pre.sort(dim=1).values[:, -K:][:, :1])
        out = f @ w["W_dec"] + w["b_dec"] + (x / size_x @ w["W_skip"].T if skip else 0)
        loss = (out - y / size_y).pow(2).sum(1).mean() + (0.3 * f.sum(1).mean() if kind == "relu" else 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        w["W_dec"].data /= w["W_dec"].data.norm(dim=1, keepdim=True)
    trained = fit(start, x, config, targets=y)
    pre = x / size_x @ w["W_enc"] + w["b_enc"]
    f = pre.relu() if kind == "relu" else pre.relu() * (pre >= pre.sort(dim=1).values[:, -K:][:, :1])
    torch.testing.assert_close(trained.encode(x), size_y * f.detach(), atol=1e-3, rtol=1e-3)
    out = f @ w["W_dec"] + w["b_dec"] + (x / size_x @ w["W_skip"].T if skip else 0)
    torch.testing.assert_close(trained(x), size_y * out.detach(), atol=1e-3, rtol=1e-3)


def test_a_folder_belongs_to_its_targets(tmp_path):
    x, config = some_activations(), training_config("topk", steps=7)
    fit(Transcoder(D_IN, D_SAE, "topk", k=K), x, config, tmp_path, targets=x)
    with pytest.raises(ValueError, match="another target_scale"):
        fit(Transcoder(D_IN, D_SAE, "topk", k=K), x, config, tmp_path, targets=2 * x)


def test_training_learns_an_mlp():
    model = relu_model()
    config = TrainingConfig(d_sae=32, kind="topk", k=12, steps=400, batch=128, warm_up=20, lr=5e-3, dead_after=50)
    tokens = repeated(model, batch=80)
    transcoder = train_transcoder(model, 1, tokens, config)
    x, y = mlp_inputs_and_outputs(model, 1, repeated(model, batch=30, seed=7))
    assert explained_variance(y, transcoder(x)) > 0.6 > explained_variance(y, y.roll(1, 0))
    assert (transcoder.hook_name, transcoder.hook_name_out) == (PLACES["hook_name"], PLACES["hook_name_out"])


def test_replacing_one_mlp_is_a_plain_patch_at_all_positions_but_the_first():
    model, transcoders, tokens = made("grouped_query")
    x, y = mlp_inputs_and_outputs(model, 1, tokens[None], torch.ones(1, 7, dtype=torch.bool))
    wanted, _ = small_models.full_pass(model, tokens, "blocks.1.hook_mlp_out", new=transcoders[1](x),
                                       where=torch.arange(7) > 0)
    found = replaced_logits(model, {1: transcoders[1]}, tokens[None])[0].double()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, skip", list(itertools.product(KINDS, (False, True))))
def test_what_was_saved_is_what_is_loaded(tmp_path, kind, skip):
    transcoder, x = random_transcoder(kind, skip, **PLACES).half(), some_activations().half()
    transcoder.save(tmp_path)
    loaded = Transcoder.load(tmp_path)
    assert same_weights(transcoder, loaded) and repr(transcoder) == repr(loaded) and f"skip={skip}" in repr(loaded)
    assert torch.equal(loaded(x), transcoder(x)) and {name: getattr(loaded, name) for name in PLACES} == PLACES
    with pytest.raises(ValueError, match="transcoder"):
        SparseAutoencoder.load(tmp_path)
    random_sae().save(tmp_path)
    with pytest.raises(ValueError, match="architecture 'standard' is not one that this course knows"):
        Transcoder.load(tmp_path)


@pytest.fixture
def sae_lens():
    return pytest.importorskip("sae_lens")


BOTH = [(kind, skip) for kind in ("relu", "jumprelu") for skip in (False, True)]


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind, skip", BOTH)
def test_saelens_loads_ours(sae_lens, tmp_path, kind, skip):
    transcoder, x = random_transcoder(kind, skip, **PLACES), some_activations()
    transcoder.save(tmp_path)
    theirs = sae_lens.SAE.load_from_disk(tmp_path)
    close(transcoder.encode(x), theirs.encode(x), 1e-6)
    close(transcoder(x), theirs(x), 1e-6)
    assert theirs.cfg.metadata.hook_name_out == PLACES["hook_name_out"]
    random_transcoder("topk", skip).save(tmp_path)
    with pytest.raises(KeyError, match="topk"):
        sae_lens.SAE.load_from_disk(tmp_path)                       # it has none of this kind


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind, skip", BOTH)
def test_we_load_theirs(sae_lens, tmp_path, kind, skip):
    name = f"{'JumpReLU' if kind == 'jumprelu' else ''}{'Skip' if skip else ''}Transcoder"
    config = getattr(sae_lens.saes.transcoder, f"{name}Config")(
        d_in=D_IN, d_sae=D_SAE, d_out=D_IN, apply_b_dec_to_input=False)
    config.metadata.hook_name = PLACES["hook_name"]
    theirs = getattr(sae_lens.saes.transcoder, name)(config)
    for weight, value in random_transcoder(kind, skip, seed=3).state_dict().items():
        getattr(theirs, weight).data = value
    theirs.save_model(tmp_path)
    ours, x = Transcoder.load(tmp_path), some_activations()
    assert (ours.kind, ours.skip, ours.hook_name) == (kind, skip, PLACES["hook_name"])
    close(ours.encode(x), theirs.encode(x).detach(), 1e-6)
    close(ours(x), theirs(x).detach(), 1e-6)


# --- the replacement model and the graph ------------------------------------------------------------------------------


@pytest.mark.parametrize("name, kind, skip", CASES)
def test_with_its_errors_the_replacement_model_is_the_model(name, kind, skip):
    model, transcoders, tokens = made(name, kind, skip)
    frozen = FrozenModel(model, transcoders, tokens)
    wanted = model(tokens[None])[0].detach()
    close(frozen.replaced_logits(), wanted, 1e-5)
    assert (frozen.replaced_logits(errors=False) - wanted)[1:].abs().max() > 1e-2
    close(frozen.replaced_logits(errors=False)[0], wanted[0], 1e-5)             # at the first position nothing changes


def test_transcoders_without_errors_make_a_graph_without_errors():
    model, tokens = relu_model(), random_tokens(1, 7, seed=3)[0]
    transcoders = exact_transcoders(model)
    close(FrozenModel(model, transcoders, tokens).replaced_logits(errors=False), model(tokens[None])[0].detach(), 1e-5)
    assert attribution_graph(model, transcoders, tokens).scores() == pytest.approx((1, 1), abs=1e-4)


@pytest.mark.parametrize("name, kind, skip", CASES)
def test_edges_add_up_to_what_they_enter(name, kind, skip):
    model, transcoders, tokens = made(name, kind, skip)
    graph = attribution_graph(model, transcoders, tokens, [3, (4, 9)])
    frozen, targets = FrozenModel(model, transcoders, tokens), graph.of_kind("feature") | graph.of_kind("logit")
    close((graph.edges.sum(1) + graph.constants)[targets], graph.values[targets], 1e-4)
    for i, node in enumerate(graph.nodes):
        if node.kind == "feature":
            assert graph.values[i] == frozen.features[node.layer][node.position, node.index] > 0
    logits = model(tokens[None])[0, -1].detach()
    close(graph.values[-2:], torch.stack([logits[3] - logits.mean(), logits[4] - logits[9]]), 1e-5)
    assert graph.weights[-2:].tolist() == pytest.approx([logits.softmax(-1)[3].item(), 1])
    assert sum(node.kind == "feature" for node in graph.nodes) == sum(int((f != 0).sum()) for f in frozen.features)
    assert not graph.edges[~targets].any() and not graph.edges[:, graph.of_kind("logit")].any()


# Two embeddings (0, 1), an error (2), two features (3, 4), a logit (5).
HAND = torch.zeros(6, 6)
HAND[3, :3] = torch.tensor([3.0, 0.0, -1.0])            # feature 3: 3/4 from embedding 0, 1/4 from the error
HAND[4, 1:4] = torch.tensor([-2.0, 0.0, 2.0])           # feature 4: half embedding 1, half feature 3
HAND[5, 2:5] = torch.tensor([1.0, 1.0, -2.0])           # the logit: 1/4 error, 1/4 feature 3, 1/2 feature 4
KINDS_BY_HAND = ["embedding", "embedding", "error", "feature", "feature", "logit"]
EMBEDDINGS, ERRORS = (torch.tensor([kind == each for kind in KINDS_BY_HAND]) for each in ("embedding", "error"))


def test_influence_and_scores_by_hand():
    """Feature 4 has 1/2, feature 3 1/4 + 1/4, the error 1/4 + 1/8; the embeddings 3/8 and 1/4."""
    weights = torch.tensor([0, 0, 0, 0, 0, 1.0])
    found = influence(HAND, weights)
    torch.testing.assert_close(found, torch.tensor([3, 2, 3, 4, 4, 0]).double() / 8)
    A = normalized(HAND)
    torch.testing.assert_close(found, weights.double() @ (A + A @ A + A @ A @ A))
    replacement, completeness = graph_scores(HAND, weights, EMBEDDINGS, ERRORS)
    assert replacement == pytest.approx(5 / 8)
    # (embeddings 5/8 + error 3/8 + feature 4 1/2) whole, feature 3 3/4 of 1/2, the logit 3/4 of 1; of 3 in all
    assert completeness == pytest.approx((1 + 1 / 2 + 3 / 8 + 3 / 4) / 3)
    torch.testing.assert_close(influence(HAND, 3 * weights), 3 * found)


def test_pruning_by_hand():
    """Carried: into the logit 1/4, 1/4, 1/2; into feature 4 1/4 and 1/4; into feature 3 3/8 and 1/8; two in all."""
    nodes = tuple(Node(kind, 0, i) for i, kind in enumerate(KINDS_BY_HAND))
    some, weights = torch.arange(6.0), torch.tensor([0, 0, 0, 0, 0, 1.0])
    graph = AttributionGraph(nodes, HAND, some, some, torch.zeros(6, 2), weights, torch.arange(2), (1,))

    def kept(share_of_nodes, share_of_edges):
        found = pruned(graph, share_of_nodes, share_of_edges)
        assert torch.equal(found.values, some[[node.position for node in found.nodes]])
        return [node.position for node in found.nodes], (found.edges != 0).sum().item()

    assert kept(1, 1) == ([0, 1, 2, 3, 4, 5], 7)
    assert kept(1, 0.6) == ([0, 1, 2, 3, 4, 5], 6)                  # without feature 3's edge from the error
    assert kept(1, 0.4) == ([0, 1, 5], 0)                           # only 0 -> 3 and 4 -> 5: no path, so no feature
    assert kept(0.4, 1) == ([0, 1, 3, 4, 5], 5)                     # the two features have half of all influence
    with pytest.raises(ValueError, match="shares"):
        pruned(graph, 80)


@pytest.mark.parametrize("name, kind, skip", CASES)
def test_total_effects_are_slopes_of_the_frozen_model(name, kind, skip):
    """A node's output a thousandth larger, the features recomputed."""
    model, transcoders, tokens = made(name, kind, skip)
    graph, frozen = attribution_graph(model, transcoders, tokens, [(4, 9)]), FrozenModel(model, transcoders, tokens)
    effects, direction = total_effects(graph)[0], model.W_U[:, 4] - model.W_U[:, 9]

    def answer(which, step):
        def write(layer, read):
            more = torch.zeros_like(read)
            if graph.nodes[which].layer == layer:
                more[graph.nodes[which].position] = step * graph.written[which]
            return transcoders[layer].write(frozen.encode(layer, read), read) + frozen.errors[layer] + more

        return (frozen.reads(frozen.embedded, write)[-1][-1] @ direction).item()

    chosen = [i for i, node in enumerate(graph.nodes) if node.kind in ("feature", "error")][::9]
    slopes = torch.tensor([(answer(i, 1e-3) - answer(i, -1e-3)) / 2e-3 for i in chosen]).double()
    assert (slopes - effects[chosen]).abs().max() < 0.01 * effects.abs().max() and len(chosen) > 5


def test_interventions_are_plain_patches_and_are_predicted_where_nothing_is_frozen_that_moves():
    model, transcoders, tokens = made("grouped_query", "relu", False)
    graph = attribution_graph(model, transcoders, tokens, [3, (4, 9)])
    chosen = [i for i, node in enumerate(graph.nodes) if node.kind == "feature"][::5]
    predicted, measured = interventions(model, graph, chosen, factor=0.5)
    clean = model(tokens[None])[0, -1].detach()
    for row, which in enumerate(chosen):
        node = graph.nodes[which]

        def halve(out, hook, node=node):
            out = out.clone()
            value = transcoders[node.layer].W_dec[node.index]
            out[0, node.position] -= 0.5 * graph.values[which] * value
            return out

        logits = model.run_with_hooks(tokens[None], fwd_hooks=[(f"blocks.{node.layer}.hook_mlp_out", halve)])[0, -1]
        change = (logits - clean).detach()
        torch.testing.assert_close(measured[row], torch.stack([change[3] - change.mean(), change[4] - change[9]]),
                                   atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(predicted, -0.5 * total_effects(graph)[:, chosen].T)
    # the last layer's features at the last position reach the logits through one norm alone: a small step is linear
    # but for its scale, which the graph holds
    at_the_end = [i for i, node in enumerate(graph.nodes) if node.kind == "feature" and node.layer == 1
                  and node.position == 6]
    scale = FrozenModel(model, transcoders, tokens)
    for which in at_the_end:
        x = scale.run.residuals[-1][0, -1]
        step = -1e-2 * graph.written[which]
        ratio = (x.pow(2).mean() / (x + step).pow(2).mean()).sqrt()
        predicted, measured = interventions(model, graph, [which], factor=0.99)
        wanted = ratio * (graph.values[-1] + predicted[0, 1]) - graph.values[-1]
        assert measured[0, 1].item() == pytest.approx(wanted.item(), abs=2e-4)
    with pytest.raises(ValueError, match="only what an MLP writes"):
        interventions(model, graph, [len(graph.nodes) - 1])


@pytest.mark.parametrize("name, kind, skip", CASES)
def test_changed_features_are_plain_patches_layer_by_layer(name, kind, skip):
    """Against passes that change one layer after the other, each from what the MLP reads after the changes below."""
    model, transcoders, _ = made(name, kind, skip)
    tokens = random_tokens(2, 6, seed=5)

    def changed(layer, f):
        f[:, :, 3] += 0.7
        return f * (0.5 + layer)

    delta = {}
    for layer, transcoder in transcoders.items():
        seen = []
        hooks = [(f"blocks.{below}.hook_mlp_out", lambda y, hook, below=below: y + delta[below]) for below in delta]
        model.run_with_hooks(tokens, fwd_hooks=[*hooks, (mlp_in(layer), lambda x, hook: seen.append(x.detach()))])
        features = transcoder.encode(seen[0])
        features[:, 0] = 0
        new = changed(layer, features.clone())
        delta[layer] = transcoder.decode(new, seen[0]) - transcoder.decode(features, seen[0])
        delta[layer][:, 0] = 0
    wanted = model.run_with_hooks(tokens, fwd_hooks=[
        (f"blocks.{layer}.hook_mlp_out", lambda y, hook, layer=layer: y + delta[layer]) for layer in delta])
    found = run_features(model, transcoders, tokens, changed)
    close(found, wanted.detach(), 1e-5)
    assert (found - model(tokens).detach()).abs().max() > 1e-2
    assert torch.equal(found[:, 0], model(tokens)[:, 0].detach())
    close(run_features(model, transcoders, tokens, lambda layer, f: f), model(tokens).detach(), 1e-6)


def test_what_does_not_fit_is_refused_in_words(monkeypatch):
    model, transcoders, tokens = made("multi_head")
    with pytest.raises(ValueError, match="a transcoder of width 24 for each layer"):
        attribution_graph(model, {0: transcoders[0]}, tokens)
    with pytest.raises(ValueError, match="one prompt"):
        attribution_graph(model, transcoders, tokens[None])
    with pytest.raises(ValueError, match="a transcoder's must be one of relu, topk, jumprelu"):
        Transcoder(4, 4, "gated")
    with pytest.raises(ValueError, match="targets are"):
        fit(Transcoder(D_IN, D_SAE), some_activations(), training_config(), targets=some_activations(99))
    with monkeypatch.context() as patch, pytest.raises(NotForThisModel, match="MLP 0 does not read the norm"):
        patch.setattr(model.cfg, "eps", 9.0)
        attribution_graph(model, transcoders, tokens)
    with monkeypatch.context() as patch, pytest.raises(NotForThisModel, match="its logits are capped"):
        patch.setattr(model.adapter, "apply_output_logits_transform", lambda logits: 3 * (logits / 3).tanh())
        attribution_graph(model, transcoders, tokens)
    with pytest.raises(NotForThisModel, match="a norm stands between them and the stream"):
        attribution_graph(families.family("gemma2").bridge, transcoders, tokens)
    for name, ask in (("an attribution graph", lambda model: attribution_graph(model, transcoders, tokens)),
                      ("a transcoder", lambda model: mlp_inputs_and_outputs(model, 0, tokens[None]))):
        with pytest.raises(NotForThisModel, match=f"^{name} is not for this model .* needs MLPs that read norm"):
            ask(families.family("falcon").bridge)


# --- what is shipped --------------------------------------------------------------------------------------------------


def test_what_is_shipped():
    assert shipped_transcoders("tiny") == [0, 1, 2, 3] and shipped_transcoders("gpt2-small") == []
    assert sum(file.stat().st_size for file in TRANSCODERS_FOLDER.rglob("*") if file.is_file()) <= 12e6
    with pytest.raises(ValueError, match="no transcoder of layer 4 is shipped for tiny; there are: 0, 1, 2, 3"):
        load_shipped_transcoder("tiny", 4)


@pytest.mark.slow
@pytest.mark.parametrize("layer", range(4))
def test_the_shipped_transcoders_are_good(layer):
    model, transcoder = small_models.tiny(), load_shipped_transcoder("tiny", layer)
    assert (transcoder.hook_name, transcoder.hook_name_out) == (mlp_in(layer), f"blocks.{layer}.hook_mlp_out")
    tokens = sample_text(model, 8, 128, seed=321)
    x, y = mlp_inputs_and_outputs(model, layer, tokens)
    features = transcoder.encode(x)
    assert explained_variance(y, transcoder.decode(features, x)) > 0.8
    assert (features != 0).sum(1).float().mean() <= 20
    patched = replaced_logits(model, {layer: transcoder}, tokens)
    assert delta_cross_entropy(model(tokens), patched, tokens).mean() < 0.05
