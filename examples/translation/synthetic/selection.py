"""What goes with what: selectional restrictions, and how often.

Every choice that `composer` makes is drawn from an urn: a sequence in which
each thing lies as often as it is wanted.
"""

import functools
from typing import TypeVar

from examples.translation.synthetic import lexicon
from examples.translation.synthetic import syntax
from examples.translation.synthetic.lexicon import BARE
from examples.translation.synthetic.lexicon import BE
from examples.translation.synthetic.lexicon import DETERMINER
from examples.translation.synthetic.lexicon import nouns

T = TypeVar("T")


def urn(counts: dict[T, int]) -> tuple[T, ...]:
    """A sequence in which each key lies as often as its count says."""
    return tuple(item for item, count in counts.items() for _ in range(count))


# --- Nouns -----------------------------------------------------------------

PEOPLE = nouns("person")
PARENTS = nouns("parent")
THINGS = nouns("goods vehicle device meal building room furniture")
SUBJECTS = PEOPLE * 2 + nouns("animal") + THINGS
SETTINGS = nouns("room outdoor house school church castle")
SUPPORTS = nouns("furniture bag box")
LANDMARKS = nouns("building lake forest market")
ATTIRE = nouns("hat coat")
POSSESSIONS = nouns("kin animal goods vehicle device meal house garden room")
ANYONE = lexicon.NOUN["man"]
"""Stands for whoever has no noun: what any person can do."""

_PLACE_KINDS = frozenset({"building", "room", "outdoor"})
SMALL_KINDS = frozenset({"portable", "text"})
_MOVABLE_KINDS = SMALL_KINDS | {"person", "animal"}

PASSING = frozenset(
    lexicon.ADJECTIVE[english] for english in "tired hungry happy cold".split()
)
"""Qualities that come and go, so that they can have a time."""


@functools.cache
def comparable(
    noun: lexicon.Noun, adjective: lexicon.Adjective
) -> tuple[lexicon.Noun, ...]:
    """What else can have the quality and is of a kind with the noun."""
    return tuple(
        other
        for other in lexicon.NOUNS
        if other is not noun
        and other.is_a(noun.kinds)
        and adjective in lexicon.ADJECTIVES_FOR[other]
    )


# --- Pronouns and determiners ----------------------------------------------

PRONOUN = {
    "I": syntax.Pronoun("I", "I"),
    "we": syntax.Pronoun("we", "we"),
    "he": syntax.Pronoun("he", "m"),
    "she": syntax.Pronoun("she", "f"),
    "they": syntax.Pronoun("they", "p"),
}
PRONOUNS = tuple(PRONOUN.values())
WHO = syntax.Pronoun("who", "who")
IT_RAINS = syntax.Pronoun("it", "n")

CONTROLLER = {
    "1s": PRONOUN["I"],
    "1p": PRONOUN["we"],
    "3s": PRONOUN["he"],
    "3p": PRONOUN["they"],
}
"""The unspoken subject of an infinitive, by agreement."""

THE = DETERMINER["the"]
A = DETERMINER["a"]
NO = DETERMINER["no"]
SOME = DETERMINER["some"]
UNIQUE = frozenset(DETERMINER[d] for d in "the my our his her their".split())
"""The determiners that a superlative can follow."""
REFERENTIAL = UNIQUE | {DETERMINER["this"]}
"""The determiners whose noun phrase is outside the scope of a negation."""

QUANTIFIERS = frozenset({NO, DETERMINER["every"]})
"""The determiners whose noun phrase `it` cannot refer to."""


@functools.cache
def determiners(
    noun: lexicon.Noun, plural: bool, definite: bool, negated: bool
) -> tuple[lexicon.Determiner, ...]:
    """The determiners a noun can have.

    The object of a negated verb can only have those for which `nicht` and
    `kein` share one rule.
    """
    counts = {THE: 42, DETERMINER["this"]: 6}
    if noun in POSSESSIONS:
        owners = {"my": 4, "our": 3, "his": 4, "her": 4, "their": 3}
        counts |= {DETERMINER[owner]: n for owner, n in owners.items()}
    if not definite:
        if noun.mass:
            counts |= {BARE: 50}
        elif plural:
            counts |= {BARE: 24}
            if not negated:
                counts |= {DETERMINER["many"]: 6, SOME: 6, DETERMINER["all"]: 3}
        else:
            counts |= {A: 34}
            if not negated:
                counts |= {DETERMINER["every"]: 3}
    return urn(counts)


# --- Predicates ------------------------------------------------------------

# How often each kind of predicate is chosen, and its verbs.
_PREDICATES = {
    "transitive": (10, lexicon.TRANSITIVE),
    "perception": (3, lexicon.PERCEPTION),
    "dative": (4, lexicon.DATIVE),
    "ditransitive": (6, lexicon.DITRANSITIVE),
    "prepositional": (6, lexicon.PREPOSITIONAL),
    "intransitive": (5, lexicon.INTRANSITIVE),
    "motion": (5, lexicon.MOTION),
    "passive": (6, lexicon.TRANSITIVE),
    "quality": (6, (BE,)),
    "location": (2, (BE,)),
    "having": (2, (lexicon.HAVE,)),
    "state": (4, lexicon.TRANSITIVE_STATES),
    "belonging": (3, lexicon.PREPOSITIONAL_STATES),
    "price": (3, (lexicon.COST,)),
    "reporting": (4, lexicon.REPORTING),
    "wondering": (1, lexicon.WONDERING),
    "control": (4, lexicon.CONTROL),
}
_ALL = frozenset(_PREDICATES)
_STATES = frozenset({"state", "belonging", "price"})
_EMBEDDING = frozenset({"reporting", "wondering", "control"})
LOCALISED = frozenset({"dative", "prepositional", "intransitive"})
ACTIONS = LOCALISED | {"transitive", "ditransitive"}
INTENTIONS = ACTIONS | {"motion"}
EVENTS = INTENTIONS | {"passive", "perception"}
ONE_OBJECT = frozenset(
    "transitive perception dative prepositional having state belonging".split()
)

Predicate = tuple[str, tuple[lexicon.Verb, ...]]


def kinds(tense: str, embedding: bool) -> frozenset[str]:
    """The kinds of predicate of a tense, with or without a clause inside."""
    return _KINDS[tense == "present", embedding]


_KINDS = {
    (True, True): _ALL,
    (True, False): _ALL - _EMBEDDING,
    (False, True): _ALL - _STATES,
    (False, False): _ALL - _EMBEDDING - _STATES,
}


def _can_be_subject(noun: lexicon.Noun, kind: str, verb: lexicon.Verb) -> bool:
    if kind == "passive":
        return noun in verb.objects
    if kind == "quality":
        return bool(lexicon.ADJECTIVES_FOR[noun])
    if kind == "location":
        return noun.is_a(_MOVABLE_KINDS)
    return noun in verb.subjects


@functools.cache
def repertoire(
    noun: lexicon.Noun, kinds: frozenset[str]
) -> tuple[Predicate, ...]:
    """What can be said of a noun, of these kinds."""
    predicates = {}
    for kind, (count, table) in _PREDICATES.items():
        verbs = tuple(v for v in table if _can_be_subject(noun, kind, v))
        if kind in kinds and verbs:
            predicates[kind, verbs] = count
    return urn(predicates)


@functools.cache
def uses(noun: lexicon.Noun, tense: str) -> tuple[Predicate, ...]:
    """What somebody can do with a noun in a tense."""
    predicates = {}
    for kind in (*sorted(ONE_OBJECT - {"belonging"}), "ditransitive"):
        count, table = _PREDICATES[kind]
        verbs = tuple(v for v in table if noun in v.objects)
        if verbs and (tense == "present" or kind not in _STATES):
            predicates[kind, verbs] = count
    return urn(predicates)


@functools.cache
def has_setting(verb: lexicon.Verb) -> bool:
    """Whether to say where it happens; not if its object may be a place."""
    return not any(noun.is_a(_PLACE_KINDS) for noun in verb.objects)


COMPLEMENTIZER = {
    "reporting": ("that", "dass"),
    "wondering": ("whether", "ob"),
}
MODALS = {
    "present": lexicon.MODALS,
    "past": tuple(modal for modal in lexicon.MODALS if modal.english[1]),
}

# --- Sentences --------------------------------------------------------------

TENSES = urn({"present": 9, "past": 8, "future": 3})
FORMS = urn(
    {
        "simple": 38,
        "adverbial": 9,
        "coordination": 3,
        "yes or no": 4,
        "adverbial question": 1,
        "who": 1,
        "weather": 1,
    }
)
COORDINATORS = urn({("and", "und"): 2, ("but", "aber"): 1})
INTERROGATIVES = (("where", "wo"), ("when", "wann"), ("why", "warum"))
TEMPORAL = frozenset({"before", "while", "when"})
