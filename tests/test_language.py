"""The story language: its distributions are the true ones, its labels say what the page says.

Three readers that share no code with the trie are held against it: a flat list of all sentence templates,
a hand calculation of the first words, and a parser that reads the finished page with regular expressions.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils import language
from course_utils import story_grammar as grammar
from course_utils.language import BOS, LABELS, UNK, Story, StoryLanguage, expand, grammar_trie, stream, vocabulary

PRONOUNS = {"He": 0, "he": 0, "his": 0, "himself": 0, "She": 1, "she": 1, "her": 1, "herself": 1}


@pytest.fixture(scope="module")
def sample():
    return StoryLanguage(seed=3).sample(48, 128)


@pytest.fixture(scope="module")
def long_sample():
    """Rows without truth: faster, so there are more of them."""
    return StoryLanguage(seed=4).sample(300, 160, truth=False)


# --- distributions --------------------------------------------------------------------------------

def test_probabilities_sum_to_one_everywhere(sample):
    sums = sample.true_log_probs.double().exp().sum(-1)
    assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5)


def test_bos_and_unk_are_never_drawn(sample):
    assert (sample.true_log_probs[..., :2] == -math.inf).all()
    assert (sample.tokens[:, 0] == 0).all() and (sample.tokens[:, 1:] >= 2).all()


def test_entropy_is_minus_sum_p_log_p(sample):
    for row, position in itertools.product((0, 17, 47), (0, 1, 40, 127)):
        possible = [p for p in sample.true_log_probs[row, position].tolist() if p > -math.inf]
        expected = -sum(math.exp(p) * p for p in possible)
        assert sample.entropy[row, position].item() == pytest.approx(expected, abs=1e-4)


def test_each_word_is_drawn_as_often_as_its_probability_says(sample):
    """Counts less expected counts, in standard deviations, over all words: mean square 1, none far out."""
    probs = sample.true_log_probs[:, :-1].double().exp().flatten(0, 1)
    counts = torch.bincount(sample.tokens[:, 1:].flatten(), minlength=probs.shape[1])
    spread = (probs * (1 - probs)).sum(0)
    z = ((counts - probs.sum(0)) / spread.sqrt())[spread > 1]
    assert len(z) > 500
    assert z.abs().max() < 5 and 0.75 < z.square().mean() < 1.25


def first_words() -> dict[str, float]:
    """The first word of a row, by hand from the weights of the twelve openings (they sum to 15)."""
    weights = {"One": 3, "Once": 1, "It": 1, "Long": 1, "There": 2, "On": 1, "Everyone": 0.5, "Nobody": 0.5,
               "Last": 1, "In": 2}
    names = grammar.WOMEN + grammar.MEN
    by_word = {word: weight / 15 for word, weight in weights.items()}
    return by_word | {name: 2 / 15 / len(names) for name in names}


AFTER = {  # prefix -> true distribution of the next word, worked out by hand
    (): first_words(),
    ("One",): {**dict.fromkeys(("morning", "evening", "afternoon", "day", "night"), 2 / 3 / 5),
               "summer": 1 / 6, "winter": 1 / 6},
    ("There", "lived", "a"): dict.fromkeys(("girl", "woman", "boy", "man"), 1 / 4),
    ("It", "was", "a"): {w: 1 / len(grammar.WEATHERS) for w in grammar.WEATHERS},
    ("Last",): dict.fromkeys(("week", "year", "spring", "autumn"), 1 / 4),
}


@pytest.fixture(scope="module")
def beginnings():
    """The first four words of 6,000 rows, drawn without truth."""
    words = vocabulary()
    return [[words[i] for i in row[1:]] for row in itertools.islice(stream(5, 5), 6000)]


@pytest.mark.parametrize("prefix", AFTER, ids=" ".join)
def test_words_after_a_fixed_prefix_follow_the_hand_made_distribution(beginnings, prefix):
    n = len(prefix)
    counts = Counter(row[n] for row in beginnings if tuple(row[:n]) == prefix)
    assert sum(counts.values()) > 300
    assert set(counts) <= set(AFTER[prefix])
    assert chi_square_p(counts, AFTER[prefix]) > 1e-4


def chi_square_p(counts: Counter, probs: dict[str, float]) -> float:
    """p-value of counts under probs; words expected fewer than five times share one cell."""
    n = sum(counts.values())
    cells = [(counts[word], n * p) for word, p in probs.items() if n * p >= 5]
    others = n - sum(count for count, _ in cells), n - sum(expected for _, expected in cells)
    cells += [others] if others[1] > 5 else []
    statistic = sum((count - expected) ** 2 / expected for count, expected in cells)
    return torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2), torch.tensor(statistic / 2)).item()


def flat_templates() -> list[tuple[float, list[str]]]:
    """Every variant of every template with its weight and guards, in one flat list."""
    def lines(text):
        for line in text.split("\n"):
            if line.strip():
                weight, template = line.split(" ", 1)
                options = [part.strip("()").split("|") if part.startswith("(") else [part]
                           for part in template.split()]
                variants = list(itertools.product(*options))
                yield from ((float(weight) / len(variants), list(variant)) for variant in variants)
    middles, closings = list(lines(grammar.MIDDLES)), list(lines(grammar.CLOSINGS))
    share = 0.3 * sum(w for w, _ in middles) / sum(w for w, _ in closings)
    return [*((w, ["?start", *s]) for w, s in lines(grammar.OPENINGS)),
            *((w, ["?going", *s]) for w, s in middles),
            *((w * share, ["?late", *s]) for w, s in closings)]


def test_a_flat_reading_of_the_templates_gives_the_same_distributions():
    templates = flat_templates()
    for row in range(8):
        check_row_against_flat_templates(templates, row)


def check_row_against_flat_templates(templates, row: int, length: int = 100) -> None:
    story, alive = Story(), templates
    for truth, word, _ in itertools.islice(language.tell(random.Random(f"3/{row}"), with_truth=True), length):
        alive = [(weight, rest) for weight, symbols in alive if (rest := without_open_guards(symbols, story))]
        by_symbol = Counter()
        for weight, symbols in alive:
            by_symbol[symbols[0]] += weight
        words = {symbol: language.fits(symbol, story) for symbol in by_symbol}
        expected = Counter()
        for symbol, weight in by_symbol.items():
            for candidate in words[symbol]:
                expected[candidate] += weight / sum(by_symbol.values()) / len(words[symbol])
        assert truth == pytest.approx(dict(expected))
        taken, = [symbol for symbol in words if word in words[symbol]]
        if taken[0] == "{":
            language.SLOTS[taken[1:-1]][1](story, word)
        alive = [(weight, symbols[1:]) for weight, symbols in alive if symbols[0] == taken]
        over = [not symbols for _, symbols in alive]
        assert all(over) == any(over), "one template is the beginning of another"
        if all(over):
            story.sentences, story.mood, story.plural, alive = story.sentences + 1, None, False, templates
            story = Story() if word == "¶" else story


def without_open_guards(symbols: list[str], story: Story) -> list[str] | None:
    """The symbols behind the guards in front, or None if one is closed."""
    while len(symbols[0]) > 1 and symbols[0][0] == "?":
        if not language.GUARDS[symbols[0][1:]](story):
            return None
        symbols = symbols[1:]
    return symbols


def test_two_edges_that_share_a_word_are_refused():
    edges = {"{place}": [1.0, None], "garden": [1.0, None]}
    with pytest.raises(ValueError, match="'garden' fits two edges of one node"):
        language.distribution(edges, Story())


# --- the same seed, the same stories --------------------------------------------------------------

def test_words_and_labels_do_not_depend_on_truth(sample):
    without = StoryLanguage(seed=3).sample(48, 128, truth=False)
    assert without.true_log_probs is None and without.entropy is None
    assert torch.equal(without.tokens, sample.tokens)
    assert all(torch.equal(without.labels[name], sample.labels[name]) for name in LABELS)


def test_fewer_rows_and_shorter_rows_are_the_beginning_of_more_and_longer_ones(sample):
    part = StoryLanguage(seed=3).sample(5, 30)
    assert torch.equal(part.tokens, sample.tokens[:5, :30])
    assert torch.equal(part.true_log_probs, sample.true_log_probs[:5, :30])
    assert torch.equal(part.entropy, sample.entropy[:5, :30])
    assert all(torch.equal(part.labels[name], sample.labels[name][:5, :30]) for name in LABELS)


def test_other_seeds_and_other_rows_tell_other_stories(sample):
    other = StoryLanguage(seed=2).sample(48, 128, truth=False).tokens
    texts = {tuple(row) for row in [*sample.tokens.tolist(), *other.tolist()]}
    assert len(texts) == 96


def test_stream_gives_the_rows_of_sample(sample):
    assert torch.tensor(list(itertools.islice(stream(3, 128), 6))).equal(sample.tokens[:6])


def test_sampling_leaves_the_global_random_streams_alone():
    random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), torch.rand(1)
    random.seed(1)
    torch.manual_seed(1)
    StoryLanguage(0).sample(1, 10)
    assert (random.random(), torch.rand(1)) == expected


# --- vocabulary -----------------------------------------------------------------------------------

def test_the_vocabulary_is_unique_and_begins_with_bos():
    words = vocabulary()
    assert words[:2] == (BOS, UNK) and len(set(words)) == len(words)
    assert StoryLanguage().bos_token_id == 0
    assert not any(re.search(r"[\s(){}|]", word) for word in words)


def test_every_word_but_bos_and_unk_has_a_probability_somewhere(sample, long_sample):
    """What these rows never offer, a handful of rare words, must at least stand on an edge of the grammar."""
    possible = sample.true_log_probs.isfinite().flatten(0, 1).any(0)
    possible[long_sample.tokens.flatten()] = True
    missing = {word for word, seen in zip(vocabulary(), possible.tolist()) if not seen} - {UNK}
    assert len(missing) < 10 and missing <= plain_words(grammar_trie(), set())


def plain_words(node: language.Node, seen: set[int]) -> set[str]:
    if id(node) in seen:
        return set()
    seen.add(id(node))
    children = [child for _, child in node.edges.values()] + list(node.doors.values())
    return set(node.edges).union(*(plain_words(child, seen) for child in children))


def test_every_slot_and_guard_of_the_grammar_is_known_and_used():
    text = "\n".join([grammar.OPENINGS, grammar.MIDDLES, grammar.CLOSINGS])
    assert set(re.findall(r"\{(\w+)\}", text)) == set(language.SLOTS)
    assert set(re.findall(r"\?(\w+)", text)) | {"start", "going", "late"} == set(language.GUARDS)


def test_encode_and_decode_are_inverses(sample):
    tell = StoryLanguage()
    text = tell.decode(sample.tokens[0])
    assert text.startswith("<bos> ") and tell.encode(text) == sample.tokens[0].tolist()
    assert tell.decode(tell.encode(" Ada   met\tBen ")) == "Ada met Ben"
    assert tell.decode(tell.encode("Ada met Xerxes")) == "Ada met <unk>"
    assert tell.encode("") == [] and tell.decode([]) == ""


@pytest.mark.parametrize("n, length", [(0, 10), (-1, 10), (1, 1), (1, 0), (3, -5)])
def test_too_few_rows_or_tokens_are_refused(n, length):
    with pytest.raises(ValueError, match=f"n >= 1 rows of length >= 2, got n={n}, length={length}"):
        StoryLanguage().sample(n, length)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.text("abcxyz{}?", min_size=1, max_size=4), min_size=1, max_size=3), min_size=1,
                max_size=5))
def test_expand_gives_the_product_of_the_alternatives(parts):
    template = " ".join(f"({'|'.join(part)})" if len(part) > 1 else part[0] for part in parts)
    assert expand(template) == [list(words) for words in itertools.product(*parts)]


# --- labels: what the page says, read by regular expressions --------------------------------------

def rows_with_labels(sample):
    """(words, labels at each position) of each row."""
    tell = StoryLanguage()
    for row in range(len(sample.tokens)):
        words = [tell.vocabulary[i] for i in sample.tokens[row].tolist()]
        yield words, {name: values[row].tolist() for name, values in sample.labels.items()}


def test_before_the_first_word_nothing_is_known(long_sample):
    first = {name: set(values[:, 0].tolist()) for name, values in long_sample.labels.items()}
    unknown = {"woman", "actor", "place", "topic_place"}
    assert first == {name: {-1} if name in unknown else {0} for name in LABELS}


def test_in_quote_is_the_parity_of_the_quotes(long_sample):
    for words, labels in rows_with_labels(long_sample):
        assert labels["in_quote"] == [sum(w == '"' for w in words[:i + 1]) % 2 for i in range(len(words))]
    assert 0.02 < long_sample.labels["in_quote"].float().mean() < 0.5


def begins_a_sentence(words: list[str], i: int) -> bool:
    """A sentence follows BOS, ¶ and each full stop, unless ¶ or the answer `" It is in the …` comes next."""
    answer = words[i:i + 2] == ['"', "It"]
    return words[i - 1] in (BOS, "¶") or (words[i - 1] == "." and words[i] != "¶" and not answer)


def test_sentence_and_position_count_from_the_full_stops(long_sample):
    for words, labels in rows_with_labels(long_sample):
        sentence, position = -1, 0
        for i in range(1, len(words) - (words[-1] == '"')):  # a last quote might be an answer: cannot be told
            begins = begins_a_sentence(words, i)
            sentence = 0 if words[i - 1] in (BOS, "¶") else sentence + begins
            position = 1 if begins else position + 1
            assert (labels["sentence"][i], labels["position"][i]) == (sentence, position)


def test_people_counts_the_names_on_the_page(long_sample):
    names = {*grammar.WOMEN, *grammar.MEN}
    for words, labels in rows_with_labels(long_sample):
        met = set()
        for i in range(1, len(words)):
            met = set() if words[i - 1] == "¶" else met
            met |= {words[i]} & names
            assert labels["people"][i] == len(met)
            assert len(met) <= 3


def test_actors_and_pronouns_agree(long_sample):
    women = {StoryLanguage().ids[name] for name in grammar.WOMEN}
    pronouns = 0
    for words, labels in rows_with_labels(long_sample):
        for word, actor, woman in zip(words, labels["actor"], labels["woman"]):
            assert woman == (-1 if actor == -1 else int(actor in women))
            if word in PRONOUNS:
                assert woman == PRONOUNS[word]
                pronouns += 1
    assert pronouns > 500


def page_sentences(long_sample):
    """Each full sentence as text, with the words' index range, story by story; labels beside it."""
    for words, labels in rows_with_labels(long_sample):
        start = 1
        for i in range(2, len(words) - 1):
            if begins_a_sentence(words, i):
                yield " ".join(words[start:i]), {name: values[start:i] for name, values in labels.items()}
                start = i


def test_beasts_and_verbs_agree_and_so_does_the_label(long_sample):
    seen = Counter()
    for text, labels in page_sentences(long_sample):
        words = text.split()
        match = re.match(r'(?:" )?(?:The|Two|Three|Many|Some|Four|Five|Six|Seven) (?:\w+ )?(\w+) ', text)
        subject = match and next((w for w in words[:4] if w in {*grammar.BEASTS, *grammar.HERDS}), None)
        verb = next((i for i, w in enumerate(words) if w in ("was", "were", "is", "are")), None)
        if subject and verb:
            plural = int(subject in grammar.HERDS)
            assert (words[verb] in ("were", "are")) == plural, text
            assert labels["plural"][verb] == labels["plural"][verb - 1] == plural, text
            seen[plural] += 1
    assert min(seen[0], seen[1]) > 30


TAKES = [r"(?:found|noticed|took|wanted|bought|chose) a (\w+) (\w+) \.",
         r"picked up (?:a|the) (?:\w+ )?(\w+) (\w+) \.",
         r"made a (\w+) (\w+) out of", r"^A (\w+) (\w+) was lying on the \w+ , and s?he took it"]
AGAIN = [r"picked up the (\w+) \.", r"noticed the (\w+) again and took it", r"back for the (\w+) in the"]
DROP = (r"(?:put|left|dropped|hid|forgot|needed) the (\w+) "
        r"(?:there|(?:down in|in|no more , so it stayed in) the (\w+))")
GIVE = [r"gave the (?P<thing>\w+) to (?P<to>\w+)", r"gave (?P<to>[A-Z]\w+) the (?P<thing>\w+)"]
USES = (r"(?:carried|brought|cleaned|washed|polished|painted|repaired|studied|looked at|kept|still had|showed"
        r"|gave) the (\w+)")
LIES = r"[tT]he (\w+) (?:was still |is |was |stayed |)in the (\w+)"


class PageReader:
    """Who holds what, what lies where and what it looks like, from the words of one story alone."""

    def __init__(self) -> None:
        self.holds, self.lies, self.look = {}, {}, {}

    def read(self, text: str, actor: str, place: str) -> str | None:
        """Read one sentence, given who acts at its end, and where. Returns what kind of sentence it was."""
        def first(patterns):
            return next((m for pattern in patterns if (m := re.search(pattern, text))), None)
        if match := re.search(DROP, text):
            assert self.holds.pop(match[1]) == actor, text
            assert match[2] in (None, place), text
            self.lies[match[1]] = place
            return "drop"
        self.check(text, actor)
        if match := first(AGAIN):
            del self.lies[match[1]]
            self.holds[match[1]] = actor
            return "again"
        if match := first(TAKES):
            assert match[2] not in self.look, text
            self.look[match[2]], self.holds[match[2]] = match[1], actor
            return "take"
        if match := first(GIVE):
            self.holds[match["thing"]] = match["to"]
            return "give"
        return None

    def check(self, text: str, actor: str) -> None:
        """What the sentence says about things must be so."""
        for thing, place in re.findall(LIES, text):
            if thing in grammar.THINGS:
                assert self.lies[thing] == place, text
        for thing in re.findall(USES, text):
            if thing in grammar.THINGS:
                assert self.holds[thing] == actor, text
        for thing, owner, look in re.findall(r"^The (\w+) that (\w+) (?:carried|had) was (\w+) \.", text):
            if thing in grammar.THINGS:
                assert (self.holds[thing], self.look[thing]) == (owner, look), text
        for thing, look in re.findall(r"^The (\w+) in the \w+ was (\w+) \.", text):
            if thing in grammar.THINGS:
                assert self.look[thing] == look, text


def test_things_are_where_the_page_says(long_sample):
    kinds = Counter()
    words = vocabulary()
    for text, labels in page_sentences(long_sample):
        if labels["sentence"][0] == 0:
            reader = PageReader()
        actor, place = words[labels["actor"][-1]], words[labels["place"][-1]]
        kinds[reader.read(text, actor, place)] += 1
        assert labels["lying"][-1] == len(reader.lies), text
        assert labels["holding"][-1] == sum(holder == actor for holder in reader.holds.values()), text
    assert min(kinds[kind] for kind in ("take", "drop", "again", "give")) >= 3, kinds


def test_topic_place_is_where_the_thing_just_named_lies(long_sample):
    words, seen = vocabulary(), 0
    for text, labels in page_sentences(long_sample):
        for match in re.finditer(LIES, text):
            if match[1] in grammar.THINGS and not re.search(r"back for the", text):
                named = len(text[:match.end(1)].split()) - 1
                dropped = re.search(DROP, text)
                assert dropped or words[labels["topic_place"][named]] == match[2], text
                assert words[labels["topic_place"][-1]] == match[2], text
                seen += 1
    assert seen > 10


def test_people_go_where_the_page_says(long_sample):
    words, seen = vocabulary(), 0
    for text, labels in page_sentences(long_sample):
        if match := re.search(r"(?:went|walked|ran|hurried|travelled|wandered|moved) to the (\w+)", text):
            assert words[labels["place"][-1]] == match[1], text
            seen += 1
        if match := re.search(r"(?:waited|slept|rested|sat|stayed) in the (\w+) (?:\.|for)", text):
            assert words[labels["place"][-1]] == match[1] or "stayed in" in text, text
    assert seen > 50


def test_were_and_are_always_have_a_plural_subject(long_sample):
    """Walls, hours and friends too, not only beasts; and `was` and `is` a singular one."""
    seen = Counter()
    for text, labels in page_sentences(long_sample):
        for i, word in enumerate(text.split()):
            if word in ("were", "are", "was", "is"):
                assert labels["plural"][i] == int(word in ("were", "are")), text
                seen[word] += 1
    assert min(seen.values()) > 10


# --- the truth about a given text --------------------------------------------------------------------------------


def test_a_text_that_is_read_has_the_truth_and_the_labels_it_was_drawn_with(sample):
    got = StoryLanguage().read(sample.tokens[:20])
    assert torch.equal(got.true_log_probs, sample.true_log_probs[:20])
    assert torch.equal(got.entropy, sample.entropy[:20]) and torch.equal(got.tokens, sample.tokens[:20])
    for name, values in sample.labels.items():
        assert torch.equal(got.labels[name], values[:20]), name


def test_another_name_changes_what_should_follow():
    words = StoryLanguage()
    rows = [[words.bos_token_id, *words.encode(f"One day , {name} was in the mill .")] for name in ("Ada", "Tom")]
    truth = words.read(torch.tensor(rows)).true_log_probs[:, -1].exp()
    she, he = words.ids["She"], words.ids["He"]
    assert truth[0, she] == truth[1, he] > 0.1 and truth[0, he] == truth[1, she] == 0
    assert truth.sum(-1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("text", ["One day , Ada was in the mill . He went", "mill", "One day , Ada Ada"])
def test_a_text_outside_the_language_is_refused(text):
    words = StoryLanguage()
    with pytest.raises(ValueError, match="cannot follow"):
        words.read(torch.tensor([[words.bos_token_id, *words.encode(text)]]))
    with pytest.raises(ValueError, match="does not begin"):
        words.read(torch.tensor([words.encode("One day")]))
