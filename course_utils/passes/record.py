"""What a model can be asked: the assumptions of this course, and the record of which of them hold.

Much of this course assumes something about a model: that its blocks add two outputs to the residual stream, that its
attention scores are products of queries and keys, that its logits are linear in the last stream. `trial.try_out`
compares each assumption with the model's own pass. What does not hold is written down here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from course_utils.passes.bare import Built

NEEDS = {
    "logits": "logits that are the final norm and the unembedding of the last residual stream",
    "unembedding": "a final norm whose weights fold into the unembedding, so that logits are linear but for a scale",
    "parts": "blocks that add the outputs of their attention and MLP to the residual stream, and nothing else",
    "patterns": "attention patterns that say what each head gathers: z = pattern times values",
    "writes": "heads that write z W_O, each by itself (up to the scale of a norm that follows)",
    "reads": "heads that read norm(x) W + b, with the norm's weights folded into W",
    "own": "queries that each head has to itself, without a norm over those of all heads together",
    "mlps": "MLPs that read norm(x) of the stream (with what the attention of their block wrote, or without), each "
            "through a norm of its own whose weights are folded into the MLP's",
    "zero": "values without a bias of their own (it is moved to the attention's), so that a head that is zero adds "
            "nothing",
    "embedding": "a residual stream that begins as W_E (times a constant), plus a vector for the position",
    "scores": "attention scores that are products of queries and keys, turned by their positions or not turned",
}


@dataclass(frozen=True)
class Turn:
    """How rotary positions rotate queries and keys: the angle of each pair of coordinates, in radians per position.

    The coordinates beyond 2 * len(angles) stay as they are. `halves`: coordinate i is paired with i + len(angles);
    otherwise with its neighbour. Source: Su et al., "RoFormer" (2021).
    """

    angles: Float[Tensor, "pair"]
    halves: bool = True

    def __call__(
        self, vectors: Float[Tensor, "... d_head"], distance: float | Float[Tensor, "..."]
    ) -> Float[Tensor, "... d_head"]:
        """The vectors as they are `distance` positions on (one number, or one for each vector)."""
        distance = torch.as_tensor(distance, dtype=torch.float64, device=vectors.device)
        angle = distance[..., None] * self.angles.to(vectors.device)                            # [..., pair]
        cos, sin, width = angle.cos().to(vectors), angle.sin().to(vectors), 2 * len(self.angles)
        rotating, rest = vectors[..., :width], vectors[..., width:]
        shape = (2, -1) if self.halves else (-1, 2)
        first, second = rotating.unflatten(-1, shape).unbind(-2 if self.halves else -1)           # each [..., pair]
        pair = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-2 if self.halves else -1)
        return torch.cat([pair.flatten(-2), rest], dim=-1)


@dataclass
class Traits:
    """The record of one model.

    Attributes:
        lacks: {assumption, a key of NEEDS: what was seen instead}.
        resumes: how a pass is continued: "positions" (from any block and position), "blocks" (from any block, all
            positions) or "passes" (the whole model runs again: slow, and right everywhere).
        built: how each block is built, if blocks may be run without their hooks (`bare.run_bare`); empty if not.
        embedding_scale: what the embedding is multiplied by before it enters the stream.
        has_positions: whether a vector for the position is added to it.
        score_scale: of each layer: scores = score_scale * (q · k), before a cap.
        score_cap: scores are capped softly at this size; 0: they are not.
        turns: of each layer: how queries and keys are rotated before their product; None if they are not.
        plain: whether the formulas hold that the lessons write down, of the shape of GPT-2 and Llama: scores over
            sqrt(d_head), an MLP that reads the normed sum of stream and attention, no norm of an output or of queries.
    """

    lacks: dict[str, str] = field(default_factory=dict)
    resumes: str = "passes"
    built: list[Built] = field(default_factory=list)
    embedding_scale: float = 1.0
    has_positions: bool = False
    score_scale: list[float] = field(default_factory=list)
    score_cap: float = 0.0
    turns: list[Turn | None] = field(default_factory=list)
    plain: bool = False

    def scores(self, layer: int, products: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Attention scores, before the softmax, of a layer's products q · k."""
        scores = self.score_scale[layer] * products
        return self.score_cap * torch.tanh(scores / self.score_cap) if self.score_cap else scores

    def as_text(self) -> str:
        """One line for each assumption, and for what was measured on the way."""
        lines = []
        for name, need in NEEDS.items():
            lines.append(f"{'no ' if name in self.lacks else 'yes'}  {need}")
            if name in self.lacks:
                lines.append(f"     {self.lacks[name]}")
        added = "added to the embedding" if self.has_positions else "of another kind"
        positions = "rotary" if any(self.turns) else added
        how = {"positions": "from any block and position", "blocks": "from any block",
               "passes": "by running the whole model again (slow)"}[self.resumes]
        return "\n".join([*lines, f"     positions: {positions}; a pass is continued {how}"])
