"""Pairs of texts that differ in one fact, and the two answers between which the fact decides.

Both texts of a pair have the same length, and but for the fact the same token at every position: what a part of the
model computes on one can be put in the place of what it computes on the other.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from course_utils import story_grammar as grammar
from course_utils.language import StoryLanguage
from course_utils.models import bos_token_id
from course_utils.text import own_text, reads_stories

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ENGLISH_NAMES = "Mary John Tom James Dan Martin Anna Sarah Alice Lucy Paul Mark Peter David Emma Jack".split()
SHOPS, GIFTS = ["store", "park", "school", "station", "office"], ["drink", "book", "ring", "ball", "letter"]


@dataclass(frozen=True)
class Pairs:
    """n pairs: after `clean` the next token is `right`, after `corrupted` it is `wrong`.

    Attributes:
        clean, corrupted: Int[n, pos], BOS first.
        right, wrong: Int[n], token ids.
    """

    clean: Int[Tensor, "n pos"]
    corrupted: Int[Tensor, "n pos"]
    right: Int[Tensor, "n"]
    wrong: Int[Tensor, "n"]

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, some: slice | Tensor) -> Pairs:
        return Pairs(self.clean[some], self.corrupted[some], self.right[some], self.wrong[some])


def sex_pairs(model: TransformerBridge, n: int, seed: int = 0, *, then: str = "") -> Pairs:
    """Who acts decides between She and He: stories about one person, and the same about one of the other sex.

    Each begins "One morning , NAME was in the PLACE ." In every second pair `clean` is about a man.

    Args:
        then: more sentences; NAME and PLACE in them stand for the story's own.

    Raises:
        ValueError: if n < 1 or the model's vocabulary is not that of the course's language.
    """
    def pair(rng: random.Random, i: int) -> tuple[str, ...]:
        woman, man = rng.choice(grammar.WOMEN), rng.choice(grammar.MEN)
        story = f"{_opening(rng)} {then}".replace("PLACE", rng.choice(grammar.PLACES))
        texts = story.replace("NAME", woman), story.replace("NAME", man)
        return (*texts, "She", "He") if i % 2 == 0 else (*reversed(texts), "He", "She")

    return _in_the_language(model, n, seed, pair)


def number_pairs(model: TransformerBridge, n: int, seed: int = 0) -> Pairs:
    """One or many decides between was and were, three words later: "The bear in the mill", "The bears in the mill".

    An opening sentence stands before. In every second pair `clean` is the plural.

    Raises:
        ValueError: as `sex_pairs` does.
    """
    def pair(rng: random.Random, i: int) -> tuple[str, ...]:
        here, there = rng.sample(grammar.PLACES, 2)
        opening = _opening(rng).replace("NAME", rng.choice(grammar.WOMEN + grammar.MEN)).replace("PLACE", here)
        kind = rng.randrange(len(grammar.BEASTS))
        texts = [f"{opening} The {beast} in the {there}" for beast in (grammar.BEASTS[kind], grammar.HERDS[kind])]
        return (*texts, "was", "were") if i % 2 == 0 else (*reversed(texts), "were", "was")

    return _in_the_language(model, n, seed, pair)


def _opening(rng: random.Random) -> str:
    return f"One {rng.choice('morning evening afternoon day night'.split())} , NAME was in the PLACE ."


def _in_the_language(
    model: TransformerBridge, n: int, seed: int, pair: Callable[[random.Random, int], tuple[str, ...]]
) -> Pairs:
    """n pairs of (clean, corrupted, right, wrong) in words, as token ids."""
    if n < 1 or not reads_stories(model):
        raise ValueError(f"n is {n}, and must be positive" if n < 1 else
                         f"{model.cfg.model_name} does not read the course's language; see `own_pairs`, `giver_pairs`")
    rng, language = random.Random(seed), StoryLanguage()
    clean, corrupted, right, wrong = zip(*(map(language.encode, pair(rng, i)) for i in range(n)))
    rows = [[[language.bos_token_id, *row] for row in texts] for texts in (clean, corrupted)]
    return Pairs(*(torch.tensor(each, device=model.cfg.device) for each in rows),
                 *(torch.tensor(each, device=model.cfg.device)[:, 0] for each in (right, wrong)))


def giver_pairs(model: TransformerBridge, n: int, seed: int = 0) -> Pairs:
    """Who gives decides who receives: "When Mary and John went to the store, John gave a drink to", in English.

    In `corrupted` the other of the two gives (Wang et al., 2022, who call this indirect object identification).

    Raises:
        ValueError: if n < 1, or the model's tokenizer has fewer than two of the names as one token.
    """
    ids = {name: model.tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in ENGLISH_NAMES}
    ids = {name: tokens[0] for name, tokens in ids.items() if len(tokens) == 1}
    if n < 1 or len(set(ids.values())) < 2:
        raise ValueError(f"n is {n}, and must be positive" if n < 1 else
                         f"{model.cfg.model_name} has no single tokens for English names")
    rng, length = random.Random(seed), 0
    rows: list[tuple] = []
    while len(rows) < n:
        names, shop, gift = rng.sample(sorted(ids), 2), rng.choice(SHOPS), rng.choice(GIFTS)
        first, second = rng.sample(names, 2)
        texts = [f"When {first} and {second} went to the {shop}, {giver} gave a {gift} to" for giver in names]
        tokens = [[bos_token_id(model), *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
                  for text in texts]
        length = length or len(tokens[0])
        if {len(each) for each in tokens} == {length}:                              # all as long as the first
            rows.append((*tokens, ids[names[1]], ids[names[0]]))
    return Pairs(*(torch.tensor(each, device=model.cfg.device) for each in zip(*rows)))


@torch.no_grad()
def own_pairs(model: TransformerBridge, n: int, length: int = 10, seed: int = 0) -> Pairs:
    """For any model: its own text, and the same with another token in the middle.

    The answers are the tokens whose probability falls and rises most from one to the other.

    Raises:
        ValueError: as `sample_text` does.
    """
    clean = own_text(model, n, length, seed)
    corrupted, at = clean.clone(), length // 2
    corrupted[:, at] = own_text(model, n, length, seed + 1)[:, at]
    same = corrupted[:, at] == clean[:, at]
    corrupted[same, at] = clean[same, at - 1]
    change = (model(clean)[:, -1].softmax(-1) - model(corrupted)[:, -1].softmax(-1))
    return Pairs(clean, corrupted, change.argmax(-1), change.argmin(-1))
