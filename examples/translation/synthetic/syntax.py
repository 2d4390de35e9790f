"""Abstract syntax: what a sentence says, before either language says it.

A tree is composed once and linearised twice. It holds lexical entries and
grammatical choices (number, tense, polarity), but no words and no order.
"""

import dataclasses
from collections.abc import Iterator

from examples.translation.synthetic import lexicon

# An expression that both languages list as a whole: (English, German).
Phrase = tuple[str, str]


@dataclasses.dataclass(eq=False, slots=True)
class NounPhrase:
    """A noun with its determiner and modifiers.

    Attributes:
        determiner: of a noun with a possessor it is `the`, which English
            leaves out before -s and German before a name's.
        numeral: a number from two up (English, German), or None.
        degree: of the adjectives, 0 positive, 1 comparative, 2 superlative.
        possessor: `the man` in `the man's dog`, `the house` in `the door of
            the house`; a trace makes it `whose`.
        attire: the clothing in `the man with the red hat`.
        relative: a relative clause with a trace of this noun. Only a noun
            phrase that depends on a verb has one.
    """

    noun: lexicon.Noun
    determiner: lexicon.Determiner
    plural: bool = False
    numeral: Phrase | None = None
    adjectives: tuple[lexicon.Adjective, ...] = ()
    degree: int = 0
    possessor: "Nominal | None" = None
    attire: "NounPhrase | None" = None
    relative: "Clause | None" = None


@dataclasses.dataclass(eq=False, slots=True)
class Name:
    """A proper name, the same in both languages."""

    text: str


@dataclasses.dataclass(eq=False, slots=True)
class Pronoun:
    """A personal pronoun, or `who`.

    Attributes:
        english: the nominative, which also names it.
        form: the row of the German paradigm: a gender, of the antecedent
            for `it`, or `I`, `we`, `who`.
    """

    english: str
    form: str


@dataclasses.dataclass(eq=False, slots=True)
class Trace:
    """The gap in a relative clause, filled by the noun it modifies."""

    noun: lexicon.Noun
    plural: bool


@dataclasses.dataclass(eq=False, slots=True)
class Conjunction:
    """Two noun phrases joined by `and`."""

    left: "NounPhrase | Name"
    right: "NounPhrase | Name"


@dataclasses.dataclass(eq=False, slots=True)
class Measure:
    """An amount, as both languages write it."""

    phrase: Phrase


Nominal = NounPhrase | Name | Pronoun | Trace | Conjunction | Measure


@dataclasses.dataclass(eq=False, slots=True)
class Place:
    """A prepositional phrase of place; `case` is the German one."""

    prepositions: Phrase
    nominal: Nominal
    case: str


@dataclasses.dataclass(eq=False, slots=True)
class Quality:
    """A predicate adjective.

    Attributes:
        degree: 0 positive, 1 comparative.
        standard: what the subject is compared with, or None; with a positive
            it is `as old as`.
    """

    adjective: lexicon.Adjective
    degree: int = 0
    standard: Nominal | None = None


@dataclasses.dataclass(eq=False, slots=True)
class Subordinate:
    """A clause under a conjunction (English, German)."""

    conjunctions: Phrase
    clause: "Clause"


@dataclasses.dataclass(eq=False, slots=True)
class Infinitive:
    """A clause without a subject of its own: `to sing`, `zu singen`.

    `conjunctions` is empty, or `in order` with `um`.
    """

    conjunctions: Phrase
    clause: "Clause"


@dataclasses.dataclass(eq=False, slots=True)
class Clause:
    """A verb with its arguments and adjuncts.

    Attributes:
        tense: `present`, `past` or `future`.
        objects: in the order of the verb's frame; of two, the recipient is
            first.
        recipient_last: English says `to` and puts the recipient last.
        agent: of a passive.
        frequency, manner, time: adverbials (English, German).
        place: an adjunct; `goal`: a complement of a verb of motion.
        complement: the clause that the verb takes.
        purpose: an infinitive with `in order to`.
        fronted: whether `time` opens the main clause.
    """

    subject: Nominal
    verb: lexicon.Verb
    tense: str = "present"
    modal: lexicon.Modal | None = None
    passive: bool = False
    negated: bool = False
    objects: tuple[Nominal, ...] = ()
    recipient_last: bool = False
    agent: Nominal | None = None
    quality: Quality | None = None
    frequency: Phrase | None = None
    manner: Phrase | None = None
    time: Phrase | None = None
    place: Place | None = None
    goal: "Place | Phrase | None" = None
    complement: Subordinate | Infinitive | None = None
    purpose: Infinitive | None = None
    fronted: bool = False

    @property
    def cases(self) -> tuple[str, ...]:
        """The German case of each object."""
        return () if self.passive else self.verb.frame


@dataclasses.dataclass(eq=False, slots=True)
class Sentence:
    """One or two main clauses with what is subordinate to them.

    Attributes:
        adverbial: a subordinate clause of the (first) main clause.
        adverbial_first: whether it opens the sentence.
        coordinator: `and` or `but` (English, German) before `second`.
        question: whether `main` asks yes or no, or, with `interrogative`,
            for an adverbial.
    """

    main: Clause
    adverbial: Subordinate | None = None
    adverbial_first: bool = False
    coordinator: Phrase | None = None
    second: Clause | None = None
    question: bool = False
    interrogative: Phrase | None = None

    @property
    def asks(self) -> bool:
        """Whether it ends in a question mark."""
        return self.question or (
            isinstance(self.main.subject, Pronoun)
            and self.main.subject.english == "who"
        )


def agreement(nominal: Nominal) -> str:
    """Person and number of the verb: `1s`, `1p`, `3s` or `3p`."""
    match nominal:
        case NounPhrase(plural=plural) | Trace(plural=plural):
            return "3p" if plural else "3s"
        case Conjunction():
            return "3p"
        case Pronoun(english="I"):
            return "1s"
        case Pronoun(english="we"):
            return "1p"
        case Pronoun(english="they"):
            return "3p"
    return "3s"


def gap(clause: Clause) -> Trace | None:
    """The argument or place that a relative clause lacks, if it does."""
    places = (clause.place.nominal,) if clause.place else ()
    for nominal in (clause.subject, *clause.objects, *places):
        if isinstance(nominal, Trace):
            return nominal
    return None


def punctuate(words: list[str], end: str) -> str:
    """Joins words and commas; neighbouring commas fall together."""
    text = " ".join(words).replace(" ,", ",")
    while ",," in text:
        text = text.replace(",,", ",")
    return text[0].upper() + text[1:].rstrip(",") + end


def dependents(clause: Clause) -> Iterator[tuple[Nominal, str]]:
    """Yields the nominals that depend on a verb, with their German case."""
    yield clause.subject, "nom"
    yield from zip(clause.objects, clause.cases, strict=True)
    if clause.agent:
        yield clause.agent, "dat"
    if clause.quality and clause.quality.standard:
        yield clause.quality.standard, "nom"
    for place in (clause.place, clause.goal):
        if isinstance(place, Place):
            yield place.nominal, place.case


def noun_phrases(
    nominal: Nominal, case: str
) -> Iterator[tuple[NounPhrase, str]]:
    """Yields the noun phrases in a nominal, outermost first."""
    if isinstance(nominal, Conjunction):
        yield from noun_phrases(nominal.left, case)
        yield from noun_phrases(nominal.right, case)
    elif isinstance(nominal, NounPhrase):
        yield nominal, case
        if nominal.possessor:
            yield from noun_phrases(nominal.possessor, "gen")
        if nominal.attire:
            yield from noun_phrases(nominal.attire, "dat")


def embedded_clauses(clause: Clause) -> Iterator[Clause]:
    """Yields the clauses directly inside a clause."""
    for dependent, case in dependents(clause):
        for phrase, _ in noun_phrases(dependent, case):
            if phrase.relative:
                yield phrase.relative
    for embedded in (clause.complement, clause.purpose):
        if embedded:
            yield embedded.clause


def clauses(tree: Sentence) -> Iterator[tuple[Clause, int]]:
    """Yields every clause of a sentence with its depth, 0 for a main one."""
    pending = [(tree.main, 0)]
    if tree.second:
        pending.append((tree.second, 0))
    if tree.adverbial:
        pending.append((tree.adverbial.clause, 1))
    while pending:
        clause, depth = pending.pop()
        yield clause, depth
        pending += [(inner, depth + 1) for inner in embedded_clauses(clause)]
