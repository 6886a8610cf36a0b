"""Repeated random tokens: the behaviour that induction explains.

A sequence is `[BOS, r1 … rn, r1 … rn]`. The first copy is noise that nobody can predict; in the second, a model
that looks back knows what comes next. How much better it does there is the first thing the course measures.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils.metrics import mean_and_error
from course_utils.models import bos_token_id

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ROWS_AT_A_TIME = 8  # rows whose logits are held at once: a vocabulary of 50,000 is large


def generate_repeated_tokens(
    model: TransformerBridge, seq_len: int, batch: int = 1, *, seed: int | None = None
) -> Int[Tensor, "batch 1+2*seq_len"]:
    """BOS, then `seq_len` tokens drawn uniformly from the whole vocabulary, then the same tokens again.

    Args:
        seed: the same seed gives the same tokens on every machine; None draws from torch's global stream.
    Raises:
        ValueError: if seq_len < 2, batch < 1, the sequence is longer than the model's context,
            or the model has no BOS token.
    Source: Xiang, "How to Interpret GPT2-Small" (2024): its code (its text puts BOS last, which is a slip).
    """
    check_repeated_length(model, seq_len, batch)
    rng = None if seed is None else torch.Generator().manual_seed(seed)
    bos = torch.full((batch, 1), bos_token_id(model))
    half = torch.randint(0, model.cfg.d_vocab, (batch, seq_len), generator=rng)
    return torch.cat([bos, half, half], dim=1).to(model.cfg.device)


def correct_token_log_probs(
    logits: Float[Tensor, "batch pos vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos-1"]:
    """Log-probability (nats) of each token that came: entry j scores tokens[:, j + 1] given tokens[:, :j + 1].

    Formula: log softmax(logits[:, j])[tokens[:, j + 1]]. The last logits predict a token that is not there.
    Raises:
        ValueError: if logits and tokens differ in batch or length, or there are fewer than two positions.
    """
    if logits.ndim != 3 or logits.shape[:2] != tokens.shape or tokens.shape[1] < 2:
        raise ValueError(f"logits {tuple(logits.shape)} do not fit tokens {tuple(tokens.shape)}: "
                         "need [batch, pos, vocab] and [batch, pos] with pos >= 2")
    log_probs = logits[:, :-1].log_softmax(dim=-1)                          # [batch, pos-1, vocab]
    return log_probs.gather(dim=-1, index=tokens[:, 1:, None])[..., 0]      # [batch, pos-1]


@dataclass(frozen=True)
class RepeatedTokenReport:
    """How well a model predicts repeated tokens, copy by copy.

    Attributes:
        tokens: Int[batch, 1 + 2 * seq_len].
        log_probs: Float[batch, 2 * seq_len], nats; entry j scores tokens[:, j + 1].
        correct: Float[batch, 2 * seq_len]; 1 where the most likely token was the one that came, else 0.

    Nothing before the second copy's first token says that a repeat begins: a model can only hedge. As in
    Xiang (2024), `second_half_*` counts that boundary token; `inner_*` leaves it out.
    """

    tokens: Int[Tensor, "batch 1+2*seq_len"]
    log_probs: Float[Tensor, "batch 2*seq_len"]
    correct: Float[Tensor, "batch 2*seq_len"]

    @property
    def seq_len(self) -> int:
        return self.log_probs.shape[1] // 2

    @property
    def first_half_log_prob(self) -> float:
        return self.log_probs[:, :self.seq_len].mean().item()

    @property
    def second_half_log_prob(self) -> float:
        return self.log_probs[:, self.seq_len:].mean().item()

    @property
    def inner_log_prob(self) -> float:
        """Second copy without its first token."""
        return self.log_probs[:, self.seq_len + 1:].mean().item()

    @property
    def boundary_log_prob(self) -> float:
        """The second copy's first token alone."""
        return self.log_probs[:, self.seq_len].mean().item()

    @property
    def first_half_accuracy(self) -> float:
        return self.correct[:, :self.seq_len].mean().item()

    @property
    def second_half_accuracy(self) -> float:
        return self.correct[:, self.seq_len:].mean().item()

    @property
    def inner_accuracy(self) -> float:
        """Second copy without its first token."""
        return self.correct[:, self.seq_len + 1:].mean().item()

    @property
    def standard_error(self) -> float:
        """Standard error of second_half_log_prob over sequences, nats (NaN for a single sequence)."""
        return mean_and_error(self.log_probs[:, self.seq_len:])[1] if len(self.log_probs) > 1 else float("nan")


@torch.no_grad()
def repeated_token_report(
    model: TransformerBridge, seq_len: int = 50, batch: int = 30, *, seed: int = 0
) -> RepeatedTokenReport:
    """Run the model on `batch` sequences of repeated tokens and score each copy.

    Source: Xiang (2024), who reports −13.898 / −0.644 nats and accuracy 0.0 / 0.93 for GPT-2 small.
    Raises:
        ValueError: as `generate_repeated_tokens` does.
    """
    tokens = generate_repeated_tokens(model, seq_len, batch, seed=seed)
    log_probs, correct = [], []
    for rows in tokens.split(ROWS_AT_A_TIME):
        logits = model(rows)
        log_probs.append(correct_token_log_probs(logits, rows))
        correct.append((logits[:, :-1].argmax(dim=-1) == rows[:, 1:]).float())
    return RepeatedTokenReport(tokens, torch.cat(log_probs), torch.cat(correct))


def check_repeated_length(model: TransformerBridge, seq_len: int, batch: int = 1) -> None:
    """Raise ValueError unless two copies of `seq_len` tokens and BOS fit into the model's context."""
    for name, value, least in (("seq_len", seq_len, 2), ("batch", batch, 1)):
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    length, context = 1 + 2 * seq_len, model.cfg.n_ctx
    if length > context:
        raise ValueError(f"seq_len {seq_len} makes sequences of 1 + 2 * {seq_len} = {length} tokens, but this model "
                         f"reads at most {context}: use seq_len <= {(context - 1) // 2}")


def check_repeated(tokens: Int[Tensor, "batch pos"], seq_len: int) -> None:
    """Raise ValueError unless tokens are BOS and two equal copies of seq_len tokens."""
    if tokens.ndim != 2 or tokens.shape[1] != 1 + 2 * seq_len or seq_len < 2:
        raise ValueError(f"tokens have shape {tuple(tokens.shape)}; with seq_len {seq_len} they must be "
                         f"[batch, 1 + 2 * seq_len] = [batch, {1 + 2 * seq_len}], and seq_len at least 2")
    if not torch.equal(tokens[:, 1:1 + seq_len], tokens[:, 1 + seq_len:]):
        raise ValueError(f"tokens are not two equal copies of {seq_len} tokens after BOS: is seq_len right?")
