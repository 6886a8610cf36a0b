"""A small story language whose true next-token distribution is known at every position.

Stories come from a program that draws each word from a distribution depending only on the words already
on the page. So, beside every sampled token, we can write down the probability of *every* token there:
no estimate, no larger model, the truth. That gives the course three things no natural text can offer:
the irreducible entropy, KL(truth ‖ model), and ground-truth labels for what a model could represent.

How it works: all sentence templates (`story_grammar`) are merged into one trie. Telling a story is a walk
down the trie; at each node an edge is drawn in proportion to its weight, and if the edge is a slot, a word is
drawn uniformly from those that fit the story so far. Edges that leave one node never share a word, so the word
on the page says which edge was taken, and the walk has no hidden state.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils import story_grammar as grammar

BOS, UNK = "<bos>", "<unk>"


# --- what a story has said so far ------------------------------------------------------------------------------

@dataclass
class Person:
    name: str
    woman: bool
    place: str | None = None
    job: str | None = None
    likes: str | None = None
    holds: list[str] = field(default_factory=list)


@dataclass
class Story:
    """Everything the page has revealed. Slots read it, and write to it when their word is drawn."""

    cast: dict[str, Person] = field(default_factory=dict)
    lies: dict[str, str] = field(default_factory=dict)      # thing -> the place where it was put down
    look: dict[str, str] = field(default_factory=dict)      # thing -> its adjective
    actor: Person | None = None                             # whom "he" or "she" means
    listener: Person | None = None
    topic: str | None = None                                # the thing just named
    adjective: str | None = None                            # the last adjective, waiting for its noun
    job: str | None = None                                  # a job, waiting for its name
    scene: str | None = None
    plural: bool = False                                    # grammatical number of the sentence's subject
    mood: str | None = None
    sentences: int = 0

    @property
    def here(self) -> str | None:
        return self.actor.place if self.actor else self.scene

    def others(self, than: Person | None) -> list[str]:
        return [name for name, person in self.cast.items() if person is not than]

    def introduce(self, name: str, as_actor: bool = True) -> None:
        person = Person(name, name in WOMEN, place=self.here, job=self.job)
        self.cast[name], self.job = person, None
        if as_actor:
            self.act(name)

    def act(self, name: str) -> None:
        self.actor, self.plural = self.cast[name], False

    def take(self, thing: str, person: Person | None = None) -> None:
        for someone in self.cast.values():
            if thing in someone.holds:
                someone.holds.remove(thing)
        self.lies.pop(thing, None)
        (person or self.actor).holds.append(thing)
        self.topic = thing

    def drop(self, thing: str) -> None:
        self.actor.holds.remove(thing)
        self.lies[thing], self.topic = self.actor.place, thing


WOMEN = frozenset(grammar.WOMEN)
NAMES = grammar.WOMEN + grammar.MEN


def _set(name: str) -> Callable[[Story, str], None]:
    """An update that stores the word: `_set("topic")` does `story.topic = word`."""
    return lambda story, word: setattr(story, name, word)


def _nothing(story: Story, word: str) -> None:
    """The word changes nothing that later words depend on."""


def _arrive(story: Story, place: str, *, everyone: bool = False) -> None:
    for person in story.cast.values() if everyone else [story.actor]:
        person.place = place


def _set_scene(story: Story, place: str) -> None:
    story.scene = place
    _arrive(story, place, everyone=True)


def _go_together(story: Story, place: str) -> None:
    story.actor.place = story.listener.place = place


def _new_thing(story: Story, thing: str) -> None:
    story.look[thing] = story.adjective
    story.take(thing)


def _listen(story: Story, name: str) -> None:
    story.listener = story.cast[name]


def _fetch(story: Story, place: str) -> None:
    story.actor.place = place
    story.take(story.topic)


def _pick_worker(story: Story, job: str) -> None:
    story.act(next(name for name, person in story.cast.items() if person.job == job))


def _set_job(story: Story, job: str) -> None:
    story.actor.job = job


def _set_like(story: Story, food: str) -> None:
    story.actor.likes = food


def _partner(story: Story, name: str) -> None:
    _listen(story, name)
    story.plural = True


def _befriend(story: Story, name: str) -> None:
    story.introduce(name, as_actor=False)
    story.plural = True


def _singular(story: Story, word: str) -> None:
    story.plural = False


def _plural(story: Story, word: str) -> None:
    story.plural = True


def _new_names(names: list[str]) -> Callable[[Story], list[str]]:
    return lambda story: [name for name in names if name not in story.cast]


def _elsewhere(story: Story) -> list[str]:
    return [place for place in grammar.PLACES if place != story.here]


def _pronoun(woman: str, man: str) -> Callable[[Story], list[str]]:
    return lambda story: [woman if story.actor.woman else man]


def _new_things(story: Story) -> list[str]:
    return [thing for thing in grammar.THINGS if thing not in story.look]


def _held(story: Story) -> list[str]:
    return list(story.actor.holds)


def _all_held(story: Story) -> list[str]:
    return [thing for person in story.cast.values() for thing in person.holds]


def _owner(story: Story) -> list[str]:
    return [person.name for person in story.cast.values() if story.topic in person.holds]


def _words(words: list[str]) -> Callable[[Story], list[str]]:
    return lambda story: words


# slot -> (the words that fit, each equally likely; what drawing one does to the story)
SLOTS: dict[str, tuple[Callable[[Story], list[str]], Callable[[Story, str], None]]] = {
    # people
    "new": (_new_names(NAMES), Story.introduce),
    "newwoman": (_new_names(grammar.WOMEN), Story.introduce),
    "newman": (_new_names(grammar.MEN), Story.introduce),
    "met": (_new_names(NAMES), lambda story, name: story.introduce(name, as_actor=False)),
    "friend": (_new_names(NAMES), _befriend),
    "who": (lambda story: list(story.cast), Story.act),
    "name": (lambda story: [story.actor.name], _nothing),
    "other": (lambda story: story.others(story.actor), _listen),
    "taker": (lambda story: story.others(story.actor),
              lambda story, name: story.take(story.topic, story.cast[name])),
    "partner": (lambda story: story.others(story.actor), _partner),
    "hail": (lambda story: list(story.cast), _listen),
    "speaker": (lambda story: story.others(story.listener), Story.act),
    "owner": (_owner, Story.act),
    "He": (_pronoun("She", "He"), _singular),
    "he": (_pronoun("she", "he"), _singular),
    "his": (_pronoun("her", "his"), _nothing),
    "himself": (_pronoun("herself", "himself"), _nothing),
    "They": (_words(["They"]), _plural),
    "they": (_words(["they"]), _plural),
    # jobs
    "job": (_words(grammar.JOBS), _set("job")),
    "hisjob": (lambda story: [job for job in grammar.JOBS if job not in _jobs(story)], _set_job),
    "worker": (lambda story: _jobs(story), _pick_worker),
    # places
    "scene": (_words(grammar.PLACES), _set_scene),
    "place": (_elsewhere, _arrive),
    "together": (_elsewhere, _go_together),
    "far": (_elsewhere, _nothing),
    "here": (lambda story: [story.here], _nothing),
    "its": (lambda story: [story.lies[story.topic]], _nothing),
    "fetch": (lambda story: [story.lies[story.topic]], _fetch),
    # things
    "thing": (_new_things, _new_thing),
    "any": (_new_things, _nothing),
    "held": (_held, _set("topic")),
    "drop": (_held, Story.drop),
    "handed": (_held, lambda story, thing: story.take(thing, story.listener)),
    "theirs": (_all_held, _set("topic")),
    "lying": (lambda story: list(story.lies), _set("topic")),
    "again": (lambda story: [thing for thing, place in story.lies.items() if place == story.here], Story.take),
    "itslook": (lambda story: [story.look[story.topic]], _nothing),
    # food
    "food": (_words(grammar.FOODS), _nothing),
    "like": (_words(grammar.FOODS), _set_like),
    "liked": (lambda story: [story.actor.likes], _nothing),
    # the rest
    "mood": (lambda story: [mood for mood in grammar.MOODS if mood != story.mood], _set("mood")),
    "colour": (_words(grammar.COLOURS), _set("adjective")),
    "quality": (_words(grammar.QUALITIES), _set("adjective")),
    "how": (_words(grammar.MANNERS), _nothing),
    "weather": (_words(grammar.WEATHERS), _nothing),
    "beast": (_words(grammar.BEASTS), _singular),
    "beasts": (_words(grammar.HERDS), _plural),
    "lone": (_words(grammar.BEASTS), _nothing),
    "herd": (_words(grammar.HERDS), _nothing),
}


# words outside slots that make the subject of their sentence plural
PLURAL_SUBJECTS = frozenset("We walls windows doors stairs Hours Days Weeks Years".split())


def _jobs(story: Story) -> list[str]:
    return [person.job for person in story.cast.values() if person.job]


GUARDS: dict[str, Callable[[Story], bool]] = {
    "start": lambda story: story.sentences == 0,
    "going": lambda story: story.sentences > 0,
    "late": lambda story: story.sentences > 5,
    "two": lambda story: len(story.cast) > 1,
    "room": lambda story: len(story.cast) < 3,
    "free": lambda story: len(story.actor.holds) < 2,
    "holding": lambda story: bool(story.actor.holds),
    "carried": lambda story: bool(_all_held(story)),
    "lying": lambda story: bool(story.lies),
    "near": lambda story: story.here in story.lies.values(),
    "liker": lambda story: story.actor.likes is not None,
    "nolike": lambda story: story.actor.likes is None,
    "job": lambda story: bool(_jobs(story)),
    "jobless": lambda story: story.actor.job is None,
}


# --- the trie ----------------------------------------------------------------------------------------------------

class Edge(NamedTuple):
    """A step in the trie: how often it is taken, relative to the others that leave its node, and where it leads."""

    weight: float
    node: Node


class Node:
    """One point in the trie: weighted edges to take, and doors that open only if their guard says yes."""

    def __init__(self) -> None:
        self.edges: dict[str, Edge] = {}                # symbol -> Edge
        self.doors: dict[str, Node] = {}                # guard -> Node
        self._open: dict[tuple[bool, ...], Node] = {}

    def add(self, symbols: list[str], weight: float) -> None:
        if not symbols:
            return
        first, rest = symbols[0], symbols[1:]
        if len(first) > 1 and first[0] == "?":
            self.doors.setdefault(first[1:], Node()).add(rest, weight)
        else:
            edge = self.edges.get(first) or Edge(0.0, Node())
            self.edges[first] = Edge(edge.weight + weight, edge.node)
            edge.node.add(rest, weight)

    def open_doors(self, story: Story) -> Node:
        """This node with every open door's edges merged in (worked out once per set of open doors)."""
        node = self
        while node.doors:
            key = tuple(GUARDS[guard](story) for guard in node.doors)
            if key not in node._open:
                node._open[key] = merged([_without_doors(node), *itertools.compress(node.doors.values(), key)])
            node = node._open[key]
        return node


def merged(nodes: Sequence[Node]) -> Node:
    """One node with the edges and doors of all of these. What only one of them has is shared, not copied."""
    if len(nodes) == 1:
        return nodes[0]
    node = Node()
    for symbol in dict.fromkeys(itertools.chain(*(each.edges for each in nodes))):
        weights, children = zip(*(each.edges[symbol] for each in nodes if symbol in each.edges))
        node.edges[symbol] = Edge(sum(weights), merged(children))
    for guard in dict.fromkeys(itertools.chain(*(each.doors for each in nodes))):
        node.doors[guard] = merged([each.doors[guard] for each in nodes if guard in each.doors])
    return node


def _without_doors(node: Node) -> Node:
    bare = Node()
    bare.edges = node.edges
    return bare


def templates(text: str) -> Iterator[tuple[float, str]]:
    """The weight and the template in each line of a text of `story_grammar`."""
    for line in filter(None, text.strip().splitlines()):
        weight, template = line.split(maxsplit=1)
        yield float(weight), template


def expand(template: str) -> list[list[str]]:
    """`"a (b|c) d"` -> `[["a", "b", "d"], ["a", "c", "d"]]`."""
    choices = [part.split("|") for part in re.findall(r"\(([^)]*)\)", template)]
    pattern = re.sub(r"\([^)]*\)", "\0", template).split("\0")
    return [("".join(itertools.chain(*itertools.zip_longest(pattern, picks, fillvalue="")))).split()
            for picks in itertools.product(*choices)]


@lru_cache(maxsize=1)
def grammar_trie() -> Node:
    """All templates in one trie; once a story is late, about a quarter of its sentences close it."""
    root = Node()
    middles, closings = (sum(weight for weight, _ in templates(text)) for text in (grammar.MIDDLES, grammar.CLOSINGS))
    for text, guard, scale in ((grammar.OPENINGS, "?start", 1.0), (grammar.MIDDLES, "?going", 1.0),
                               (grammar.CLOSINGS, "?late", 0.3 * middles / closings)):
        for weight, template in templates(text):
            variants = expand(template)
            for symbols in variants:
                root.add([guard, *symbols], scale * weight / len(variants))
    return root


# --- telling stories ---------------------------------------------------------------------------------------------

def fits(symbol: str, story: Story) -> list[str]:
    """The words an edge can put on the page."""
    return SLOTS[symbol[1:-1]][0](story) if symbol.startswith("{") else [symbol]


class Walk:
    """Where a story has got to: its state, and its place in the trie."""

    def __init__(self) -> None:
        self.story, self.node, self.position, self.quote = Story(), grammar_trie(), 0, False

    def options(self) -> dict[str, Edge]:
        return self.node.open_doors(self.story).edges

    def step(self, symbol: str, word: str, edge: Edge) -> dict[str, str | int | None]:
        """Put a word on the page, through this edge; returns the labels."""
        story = self.story
        if symbol.startswith("{"):
            SLOTS[symbol[1:-1]][1](story, word)
        elif word in PLURAL_SUBJECTS:
            story.plural = True
        self.quote ^= word == '"'
        self.node, self.position = edge.node, self.position + 1
        labels = _labels(story, self.position, self.quote)
        if not self.node.edges and not self.node.doors:             # the sentence is over
            self.node, self.position = grammar_trie(), 0
            story.mood, story.plural = None, False
            story.sentences += 1
            if word == "¶":
                self.story = Story()
        return labels


def tell(rng: random.Random, with_truth: bool = False) -> Iterator[tuple[dict[str, float] | None, str, dict]]:
    """Yield (probability of every possible next word, the word drawn, labels once it is on the page), forever.

    The first item of a row is the distribution of its first word. `with_truth=False` leaves out the
    distribution (None) and is several times faster; the words drawn are the same.
    """
    walk = Walk()
    while True:
        options = walk.options()
        truth = distribution(options, walk.story) if with_truth else None
        symbol = rng.choices(list(options), [edge.weight for edge in options.values()])[0]
        words = fits(symbol, walk.story)
        word = words[int(rng.random() * len(words))]
        yield truth, word, walk.step(symbol, word, options[symbol])


def _follow(words: Sequence[str]) -> Iterator[tuple[dict[str, float], dict | None]]:
    """As `tell`, for a text that is given; at its end the distribution of the word that follows, and None.

    Raises:
        ValueError: if a word cannot stand where it stands.
    """
    walk = Walk()
    for place, word in enumerate(words, 1):
        options = walk.options()
        symbol = next((each for each in options if word in fits(each, walk.story)), None)
        if symbol is None:
            raise ValueError(f"word {place}, {word!r}, cannot follow {' '.join(words[max(0, place - 6):place - 1])!r}")
        yield distribution(options, walk.story), walk.step(symbol, word, options[symbol])
    yield distribution(walk.options(), walk.story), None


def distribution(options: dict[str, Edge], story: Story) -> dict[str, float]:
    """Exact probability of each next word.

    Raises:
        ValueError: if two edges could put down the same word.
    """
    total = sum(weight for weight, _ in options.values())
    probs: dict[str, float] = {}
    for symbol, (weight, _) in options.items():
        words = fits(symbol, story)
        for word in words:
            if word in probs:
                raise ValueError(f"the word {word!r} fits two edges of one node ({', '.join(options)}): "
                                 "the next words would depend on something the page does not show")
            probs[word] = weight / total / len(words)
    return probs


LABELS = {
    "sentence": "index of the sentence within its story (0 first)",
    "position": "index of the token within its sentence (1 first; 0 for BOS)",
    "in_quote": "1 inside an open quotation",
    "woman": "1 if the person acting is a woman, 0 a man, -1 nobody yet",
    "plural": "1 if the subject of this sentence so far is plural",
    "people": "how many people the story has introduced",
    "holding": "how many things the person acting holds",
    "actor": "token id of the name of the person acting, -1 nobody yet",
    "place": "token id of where that person is, -1 unknown",
    "lying": "how many things have been put down somewhere",
    "topic_place": "token id of where the thing just named lies, -1 if it lies nowhere",
}


def _labels(story: Story, position: int, quote: bool) -> dict[str, str | int | None]:
    actor = story.actor
    return {
        "sentence": story.sentences,
        "position": position,
        "in_quote": int(quote),
        "woman": int(actor.woman) if actor else -1,
        "plural": int(story.plural),
        "people": len(story.cast),
        "holding": len(actor.holds) if actor else 0,
        "actor": actor.name if actor else None,
        "place": story.here,
        "lying": len(story.lies),
        "topic_place": story.lies.get(story.topic),
    }


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Every token, in id order: `<bos>`, `<unk>`, then all words that a story can contain, sorted."""
    lists = [value for name, value in vars(grammar).items() if name.isupper() and isinstance(value, list)]
    words = set(itertools.chain(*lists)) | {"She", "He", "she", "he", "her", "his", "herself", "himself"}
    for text in (grammar.OPENINGS, grammar.MIDDLES, grammar.CLOSINGS):
        for _, template in templates(text):
            for symbols in expand(template):
                words |= {symbol for symbol in symbols if symbol[0] not in "{?" or symbol == "?"}
    return (BOS, UNK, *sorted(words | {"They", "they"}))


@dataclass
class Sample:
    """`n` rows of the language, each starting with BOS; everything is aligned with a model's logits.

    Attributes:
        tokens: Int[n, length].
        true_log_probs: Float[n, length, vocab], nats: entry [i, j] is the distribution of the token that
            *follows* tokens[i, :j + 1]; -inf where a token is impossible. None if sampled with truth=False.
        entropy: Float[n, length], nats: entropy of that distribution, the loss no model can beat.
        labels: name -> Int[n, length], ground truth about the story once tokens[i, j] is read (see LABELS).
    """

    tokens: Int[Tensor, "n length"]
    true_log_probs: Float[Tensor, "n length vocab"] | None
    entropy: Float[Tensor, "n length"] | None
    labels: dict[str, Int[Tensor, "n length"]]


class StoryLanguage:
    """The language. The same seed gives the same stories; use different seeds for training and testing."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.vocabulary = vocabulary()
        self.ids = {word: index for index, word in enumerate(self.vocabulary)}
        self.bos_token_id = self.ids[BOS]

    def encode(self, text: str) -> list[int]:
        """Token ids of words separated by spaces; unknown words become `<unk>`."""
        return [self.ids.get(word, self.ids[UNK]) for word in text.split()]

    def decode(self, ids: Int[Tensor, "length"] | list[int]) -> str:
        """The words, separated by spaces."""
        return " ".join(self.vocabulary[int(index)] for index in ids)

    def sample(self, n: int, length: int, *, truth: bool = True) -> Sample:
        """Draw `n` rows of `length` tokens (BOS first, then stories until the row is full).

        Args:
            truth: also give the exact next-token distributions (n × length × vocab floats).
        Raises:
            ValueError: if n < 1 or length < 2.
        """
        if n < 1 or length < 2:
            raise ValueError(f"need n >= 1 rows of length >= 2, got n={n}, length={length}")
        tokens = torch.full((n, length), self.bos_token_id)
        log_probs = torch.full((n, length, len(self.vocabulary)), -math.inf) if truth else None
        labels = {name: torch.zeros(n, length, dtype=torch.long) for name in LABELS}
        for name in ("woman", "actor", "place", "topic_place"):
            labels[name][:, 0] = -1
        for row in range(n):
            story = tell(random.Random(f"{self.seed}/{row}"), with_truth=truth)
            draws = [next(story) for _ in range(length if truth else length - 1)]
            _, words, facts = zip(*draws[:length - 1])
            tokens[row, 1:] = torch.tensor([self.ids[word] for word in words])
            for name, values in labels.items():
                values[row, 1:] = torch.tensor([self._as_int(each[name]) for each in facts])
            for position, (probs, _, _) in enumerate(draws if truth else ()):
                ids = [self.ids[word] for word in probs]
                log_probs[row, position, ids] = torch.tensor(list(probs.values())).log()
        entropy = torch.special.entr(log_probs.exp()).sum(-1) if truth else None
        return Sample(tokens, log_probs, entropy, labels)

    def read(self, tokens: Int[Tensor, "n length"]) -> Sample:
        """The truth about given texts: what may follow each word, and the labels, as `sample` has them for its own.

        So one can ask what *should* follow if a word of a text were another.

        Raises:
            ValueError: if a row does not begin with BOS, or holds a word that cannot stand there.
        """
        n, length = tokens.shape
        log_probs = torch.full((n, length, len(self.vocabulary)), -math.inf)
        labels = {name: torch.zeros(n, length, dtype=torch.long) for name in LABELS}
        for row, ids in enumerate(tokens.tolist()):
            if ids[0] != self.bos_token_id:
                raise ValueError(f"row {row} does not begin with {BOS}")
            facts = [{"woman": -1, "actor": None, "place": None, "topic_place": None}]
            for position, (probs, fact) in enumerate(_follow([self.vocabulary[index] for index in ids[1:]])):
                known = [self.ids[word] for word in probs]
                log_probs[row, position, known] = torch.tensor(list(probs.values())).log()
                facts += [fact] if fact else []
            for name, values in labels.items():
                values[row] = torch.tensor([self._as_int(each.get(name, 0)) for each in facts])
        entropy = torch.special.entr(log_probs.exp()).sum(-1)
        return Sample(tokens.cpu(), log_probs, entropy, labels)

    def _as_int(self, fact: str | int | None) -> int:
        if fact is None:
            return -1
        return self.ids[fact] if isinstance(fact, str) else fact


def stream(seed: int, length: int) -> Iterator[list[int]]:
    """Rows of token ids without truth or labels, forever: fast enough to train on."""
    ids = StoryLanguage().ids
    for row in itertools.count():
        story = tell(random.Random(f"{seed}/{row}"))
        yield [ids[BOS], *(ids[next(story)[1]] for _ in range(length - 1))]
