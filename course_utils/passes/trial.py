"""Trying a model out on a few tokens: does what this course assumes hold? The answers are a record, `Traits`.

Each assumption is a sum or a product that should equal something in the model's own pass. The error is the length of
the difference over the length of what should be there, the largest over positions. Rounding makes it 1e-6 to 1e-5;
what is missing altogether (a bias, a norm, a rotation) makes it 1e-2 or more.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils.house import NotForThisModel
from course_utils.passes.bare import KINDS, Built, how_built, is_bare, is_untouched
from course_utils.passes.parts import (
    after_block_0,
    head_weights,
    key_value_head,
    normalize,
    normed_reading,
    output_scale,
)
from course_utils.passes.record import Traits, Turn
from course_utils.passes.resumed import ResumedPass

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

TOLERANCE = 2e-4   # relative
LENGTH = 12        # tokens of a trial sequence
START = 5          # of these, where a pass is continued


def try_out(model: TransformerBridge) -> Traits:
    """The record of a model; a few passes on two sequences of twelve tokens."""
    traits = Traits()
    with torch.no_grad():
        trial = _Trial(model, traits)
        errors = {"logits": trial.logits, "unembedding": trial.unembedding, "parts": trial.parts,
                  "patterns": trial.patterns, "writes": trial.writes, "reads": trial.reads, "own": trial.own,
                  "mlps": trial.mlps, "zero": trial.zero, "embedding": trial.embedding, "scores": trial.scores}
        for need, error in errors.items():
            if seen := _judged(error):
                traits.lacks[need] = seen
        traits.plain = not (traits.lacks or _judged(trial.plain))
        traits.resumes = _how_it_resumes(trial)
        traits.built = _how_blocks_are_built(trial) if traits.resumes == "positions" else []
    return traits


def _how_it_resumes(trial: _Trial) -> str:
    """The fastest way to continue a pass that gives what a full pass does: see `Traits.resumes`."""
    for how in ("positions", "blocks"):
        if not _judged(functools.partial(trial.resuming, how)):
            return how
    return "passes"


def _how_blocks_are_built(trial: _Trial) -> list[Built]:
    """How each block is built now, if all give the same without their hooks: see `Traits.built`."""
    blocks, config = trial.model.blocks, getattr(trial.model.original_model, "config", None)
    if any(type(block.original_component).__name__ not in KINDS or not is_untouched(block) for block in blocks):
        return []
    if len(set(getattr(config, "layer_types", None) or ())) > 1:        # windows in some: each gets a mask of its own
        return []
    built = [how_built(block) for block in blocks]
    if not all(map(is_bare, blocks, built, trial.clean.residuals)):     # nothing would be tried
        return []
    return [] if _judged(functools.partial(trial.resuming, "positions", built)) else built


def check_same(before: Float[Tensor, "*pos vocab"], after: Float[Tensor, "*pos vocab"], name: str) -> None:
    """Raise NotForThisModel unless folding and centring changed no log-probability."""
    error = relative_error(after.log_softmax(-1), before.log_softmax(-1))
    if not error < TOLERANCE:
        change = (after.log_softmax(-1) - before.log_softmax(-1)).abs().max().item()
        raise NotForThisModel(
            f"{name} is not loaded: TransformerLens's compatibility mode, which folds the norms' weights into the maps "
            f"that follow, changes its predictions (log-probabilities by up to {change:.2g} nats on a few tokens). It "
            "should change none, so every number about this model would be about another one.")


def check_causal(model: TransformerBridge, tokens: Int[Tensor, "batch pos"], name: str) -> None:
    """Raise NotForThisModel if a prediction depends on tokens that come later."""
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % model.cfg.d_vocab
    if not relative_error(model(changed)[:, :-1], model(tokens)[:, :-1]) < TOLERANCE:
        raise NotForThisModel(f"{name} is not loaded: it is not a causal language model; its prediction at a position "
                              "depends on later tokens, so that it has nothing to predict")


def trial_tokens(d_vocab: int, n_ctx: int) -> Int[Tensor, "2 pos"]:
    """Two short sequences of random tokens."""
    return torch.randint(0, d_vocab, (2, min(LENGTH, n_ctx)), generator=torch.Generator().manual_seed(0))


def relative_error(found: Float[Tensor, "... d"], wanted: Float[Tensor, "... d"]) -> float:
    """‖found − wanted‖ / ‖wanted‖, the largest over all vectors; infinite if shapes differ or a number is not finite.

    A vector that is small beside the others may be all rounding: it is compared with a hundredth of the largest.
    """
    if found.shape != wanted.shape:
        return math.inf
    length = wanted.norm(dim=-1)
    least = max(length.max().item() / 100, 1e-12)
    error = ((found - wanted).norm(dim=-1) / length.clamp_min(least)).max().item()
    return math.inf if math.isnan(error) else error


def _judged(error: Callable[[], float]) -> str:
    """What was seen instead, in words; nothing if the assumption holds."""
    try:
        size = error()
    except Exception as problem:  # a hook, a module or an argument that this model lacks, or has in another form
        first_line = str(problem).splitlines()[0][:80] if str(problem) else ""
        return f"it could not be computed ({type(problem).__name__}: {first_line})"
    if size < TOLERANCE:
        return ""
    return "the two differ altogether" if size > 1 else f"the two differ by {100 * size:.2g} %"


class _Trial:
    """One pass with everything kept, and what it should equal."""

    def __init__(self, model: TransformerBridge, traits: Traits) -> None:
        self.model, self.traits, self.layers = model, traits, range(model.cfg.n_layers)
        self.tokens = trial_tokens(model.cfg.d_vocab, model.cfg.n_ctx).to(model.cfg.device)
        self.wanted, cache = model.run_with_cache(self.tokens)
        self.cache = dict(cache.items())
        self._weights: dict[int, list[dict[str, Tensor]]] = {}
        try:
            self.clean = ResumedPass(model, self.tokens, resumes="positions")
        except Exception:  # a block that does not take our cache of keys and values
            self.clean = ResumedPass(model, self.tokens, resumes="passes")

    def at(self, layer: int, name: str) -> Tensor:
        return self.cache[f"blocks.{layer}.{name}"]

    def weights(self, layer: int) -> list[dict[str, Tensor]]:
        """Those of each head; looked up once, since a large model has hundreds."""
        if layer not in self._weights:
            heads = range(self.model.cfg.n_heads)
            self._weights[layer] = [head_weights(self.model, layer, head) for head in heads]
        return self._weights[layer]

    def logits(self) -> float:
        found = self.clean.logits(self.clean.residuals[-1])
        return relative_error(found.log_softmax(-1), self.wanted.log_softmax(-1))

    def unembedding(self) -> float:
        final = self.clean.residuals[-1]
        found = normalize(self.model, final) @ self.model.W_U + self.model.b_U
        return relative_error(found, self.model.unembed(self.model.ln_final(final)))

    def parts(self) -> float:
        sums = []
        for layer in self.layers:
            outputs = [self.at(layer, "hook_attn_out")]
            outputs += [self.at(layer, "hook_mlp_out")] if hasattr(self.model.blocks[layer], "mlp") else []
            sums.append(self.clean.residuals[layer] + sum(outputs))
        return max(map(relative_error, sums, self.clean.residuals[1:]))

    def patterns(self) -> float:
        errors = []
        for layer in self.layers:
            pattern = self.at(layer, "attn.hook_pattern")                           # [batch, head, query, key]
            v, z = self.at(layer, "attn.hook_v"), self.at(layer, "attn.hook_z")     # [batch, pos, head, d_head]
            v = v.repeat_interleave(pattern.shape[1] // v.shape[2], dim=2)          # one for each query head
            errors.append(relative_error(torch.einsum("bhqk,bkhd->bqhd", pattern, v), z))
        return max(errors)

    def writes(self) -> float:
        errors = []
        for layer in self.layers:
            z, weights = self.at(layer, "attn.hook_z"), self.weights(layer)
            written = sum(z[:, :, head] @ each["O"] for head, each in enumerate(weights)) + weights[0]["b_O"]
            errors.append(relative_error(written / output_scale(self.cache, layer), self.at(layer, "hook_attn_out")))
        return max(errors)

    def reads(self) -> float:
        errors = []
        for layer in self.layers:
            normed = normalize(self.model, self.clean.residuals[layer])
            for head, weights in enumerate(self.weights(layer)):
                for name in "qkv":
                    values = self.at(layer, f"attn.hook_{name}")                    # [batch, pos, head, d_head]
                    own = key_value_head(head, self.model.cfg.n_heads, values.shape[2])
                    found = normed @ weights[name.upper()] + weights[f"b_{name.upper()}"]
                    errors.append(relative_error(found, values[:, :, own]))
        return max(errors)

    def own(self) -> float:
        """Whether the other heads' patterns stay where the first head has another text's queries, thrice as large."""
        errors = [0.0]
        for layer in self.layers:
            if not hasattr(self.model.blocks[layer].attn, "q_norm"):
                continue

            def change(q: Float[Tensor, "batch pos head d_head"], hook) -> Tensor:
                return torch.cat([3 * q.flip(0)[:, :, :1], q[:, :, 1:]], dim=2)

            name = f"blocks.{layer}.attn.hook_"
            with self.model.hooks(fwd_hooks=[(f"{name}q", change)]):
                _, cache = self.model.run_with_cache(self.tokens, names_filter=f"{name}pattern")
            errors.append(relative_error(cache[f"{name}pattern"][:, 1:], self.at(layer, "attn.hook_pattern")[:, 1:]))
        return max(errors)

    def mlps(self) -> float:
        errors = []
        for layer in self.layers:
            stream = self.clean.residuals[layer]
            if not self.model.cfg.parallel_attn_mlp:
                stream = stream + self.at(layer, "hook_attn_out")
            errors.append(relative_error(self.at(layer, "ln2.hook_in"), stream))
            errors.append(relative_error(self.at(layer, "mlp.hook_in"), normalize(self.model, stream)))
        return max(errors)

    def zero(self) -> float:
        """Whether values are linear in what is read, normed or not: a constant in them would be in z, too."""
        errors = []
        for layer in self.layers:
            values, stream = self.at(layer, "attn.hook_v"), self.clean.residuals[layer]
            for head, weights in enumerate(self.weights(layer)):
                own = values[:, :, key_value_head(head, self.model.cfg.n_heads, values.shape[2])]
                read = (normalize(self.model, stream), stream)
                errors.append(min(relative_error(x @ weights["V"], own) for x in read))
        return max(errors)

    def plain(self) -> float:
        """What the formulas of the lessons write down: see `Traits.plain`."""
        model, traits, block = self.model, self.traits, self.model.blocks[0]
        usual = model.cfg.d_head**-0.5
        scaled_otherwise = any(abs(scale - usual) > TOLERANCE * usual for scale in traits.score_scale)
        more_norms = any(hasattr(each, "ln1_post") or hasattr(each.attn, "q_norm") for each in model.blocks)
        if traits.score_cap or scaled_otherwise or more_norms:
            return math.inf
        tokens = self.tokens.flatten()
        W_E = model.W_E.detach()[tokens]                                            # [some, d_model]
        formula = W_E + block.mlp(block.ln2(W_E[None]))[0]
        error = relative_error(formula, after_block_0(model, tokens, traits.embedding_scale * W_E))
        if traits.has_positions:
            there = self.clean.residuals[0] - model.W_E.detach()[self.tokens]
            error = max(error, relative_error(model.pos_embed.weight[:there.shape[1]].expand_as(there), there))
        return error

    def embedding(self) -> float:
        stream, W_E = self.clean.residuals[0], self.model.W_E.detach()[self.tokens]
        step, wanted = W_E[0] - W_E[1], stream[0] - stream[1]                       # the positions' part is in both
        scale = ((step * wanted).sum() / step.pow(2).sum()).item()
        self.traits.embedding_scale = 1.0 if abs(scale - 1) < TOLERANCE else scale
        position = stream - self.traits.embedding_scale * W_E
        self.traits.has_positions = bool(position.norm() > TOLERANCE * stream.norm())
        return relative_error(position[0] + self.traits.embedding_scale * W_E[1], stream[1])

    def scores(self) -> float:
        config, errors = getattr(self.model.original_model, "config", None), []
        self.traits.score_cap = float(getattr(config, "attn_logit_softcapping", None) or 0)
        for layer in self.layers:
            q = normed_reading(self.model, layer, "q", self.at(layer, "attn.hook_q"))           # [batch, pos, head, d]
            k = normed_reading(self.model, layer, "k", self.at(layer, "attn.hook_k"))
            k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)                           # one for each query head
            q, k = q.transpose(1, 2), k.transpose(1, 2)                                         # [batch, head, pos, d]
            turns = self._turns(layer)
            fits = [self._fit(layer, self._products(q, k, turn)) for turn in turns]
            (error, scale), turn = min(zip(fits, turns), key=lambda each: each[0][0])           # the smallest error
            errors.append(error)
            self.traits.score_scale.append(scale)
            self.traits.turns.append(turn)
        return max(errors)

    def _fit(self, layer: int, products: Float[Tensor, "batch head query key"]) -> tuple[float, float]:
        """The scale that makes these products the layer's scores, and the error that is left: (error, scale).

        Where the scores that the library shows are not those of the pattern (it computes some models' attention
        without us), they are read from the pattern, as its logarithm: what the softmax adds is the same for all keys
        of a query, and vanishes when each row is centred. Where scores are capped, the cap is undone first.
        """
        pattern, scores = self.at(layer, "attn.hook_pattern"), self.at(layer, "attn.hook_attn_scores")
        cap = self.traits.score_cap
        seen = (scores > -1e9) & torch.ones_like(pattern[0, 0], dtype=torch.bool).tril()       # in the window too
        if relative_error(scores.where(seen, -math.inf).softmax(-1), pattern) > TOLERANCE:
            seen = pattern > 1e-30
            scores, products = _centred(pattern.clamp_min(1e-30).log(), seen), _centred(products, seen)
        elif cap:
            seen = seen & (scores.abs() < 0.95 * cap)
            scores = cap * torch.atanh((scores / cap).where(seen, 0))
        scale = (products[seen] @ scores[seen] / products[seen].pow(2).sum().clamp_min(1e-12)).item()
        return relative_error(scale * products[seen], scores[seen]), scale

    def _turns(self, layer: int) -> list[Turn | None]:
        """Ways in which this layer may rotate its queries and keys."""
        if (found := self.clean.rotary(layer)) is None:
            return [None]
        cos, sin = (each[0, 1].double() for each in found)                          # at position 1: [rotary dims]
        angle = torch.atan2(sin, cos)
        return [None, Turn(angle[:len(angle) // 2], True), Turn(angle[::2], False)]

    def _products(self, q: Tensor, k: Tensor, turn: Turn | None) -> Tensor:
        """q · k for each pair of positions. [batch, head, query, key]"""
        if turn is not None:
            positions = torch.arange(q.shape[2], device=q.device)
            q, k = turn(q, positions), turn(k, positions)
        return q @ k.mT

    def resuming(self, how: str, built: Sequence[Built] = ()) -> float:
        """The pass, its first block from its first position, each from a later one, two with something changed."""
        again = built or self.clean.resumes != how
        run = ResumedPass(self.model, self.tokens, resumes=how, built=built) if again else self.clean
        stream, start = self.clean.residuals, min(START, self.tokens.shape[1] - 1)
        errors = [*map(relative_error, run.residuals, stream)]
        errors.append(relative_error(run.continue_from(0, stream[0], stop=1), stream[1]))
        for layer in self.layers:                                                   # two copies of the batch
            rows = stream[layer][:, start:].repeat(2, 1, 1)
            wanted = stream[layer + 1][:, start:].repeat(2, 1, 1)
            errors.append(relative_error(run.continue_from(layer, rows, start=start, stop=layer + 1), wanted))
        middle = (len(self.layers) - 1) // 2
        stop = min(middle + 2, len(self.layers))
        changed = torch.cat([stream[middle][:, :start], stream[middle].flip(0)[:, start:]], dim=1)
        slow = run.through_model(middle, changed, 0, stop, 1)
        fast = run.continue_from(middle, changed[:, start:], start=start, stop=stop)
        errors.append(relative_error(fast, slow[:, start:]))
        return max(errors)


def _centred(values: Float[Tensor, "... key"], seen: Tensor) -> Float[Tensor, "... key"]:
    """Each row without its mean over the entries that are seen; 0 at the others."""
    values = values.where(seen, 0)
    return (values - values.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp_min(1)).where(seen, 0)
