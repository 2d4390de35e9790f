"""Composes abstract sentences at random, within what is sensible to say.

What English leaves open is never composed, so that the German is a function
of the English:

*   a noun phrase with a relative clause ends its clause, so that whatever
    follows can only belong to the relative clause;
*   `it` appears only where the clause before mentions exactly one thing, and
    has that thing's German gender;
*   a verb that reports, tries or intends has its own adverbials in front.
"""

import operator
import random
from collections.abc import Sequence
from typing import TypeVar

from examples.translation.synthetic import lexicon
from examples.translation.synthetic import numerals
from examples.translation.synthetic import selection
from examples.translation.synthetic import syntax
from examples.translation.synthetic.lexicon import BARE

T = TypeVar("T")

_ONSETS = "b d f g k l m n p r t v br dr gr kl tr st".split()
_NUCLEI = "a e i o u".split()
_CODAS = ["", "", "", "n", "l", "r", "m", "nd", "rk"]


def _is_quantified(nominal: syntax.Nominal) -> bool:
    """Whether it is `every` or `no` such thing."""
    return (
        isinstance(nominal, syntax.NounPhrase)
        and nominal.determiner in selection.QUANTIFIERS
    )


def _antecedent(clause: syntax.Clause) -> lexicon.Noun | None:
    """What `it` would mean after a clause: the only thing mentioned in it."""
    things = []
    for inner, _ in syntax.clauses(syntax.Sentence(clause)):
        if isinstance(inner.goal, tuple):
            return None
        for dependent, case in syntax.dependents(inner):
            if isinstance(dependent, syntax.Name):
                return None
            for phrase, _ in syntax.noun_phrases(dependent, case):
                if phrase.noun not in selection.PEOPLE and not phrase.plural:
                    things.append(phrase)
    if len(things) != 1 or _is_quantified(things[0]):
        return None
    return things[0].noun


def _unfront(clause: syntax.Clause) -> None:
    """Drops an adverbial from a prefield that something else fills."""
    if clause.fronted:
        clause.fronted, clause.time = False, None


class Composer:
    """Composes sentences, the same ones for the same seed.

    Args:
        seed: any integer.
        depth: how deep clauses may nest, 0 for main clauses only.
        embedding: the chance, in [0, 1], that a noun phrase takes a
            relative clause where it may.
    """

    def __init__(self, seed: int, depth: int, embedding: float):
        # `Random.random` is the one method whose sequence Python promises
        # to keep for a seed; every choice is made with it alone.
        self._random = random.Random(seed).random
        self._depth = depth
        self._embedding = embedding
        self._mentioned: set[object] = set()
        # In which dimensions the sentence has described each noun.
        self._described: dict[lexicon.Noun, set[str]] = {}

    def _chance(self, probability: float) -> bool:
        return self._random() < probability

    def _choice(self, items: Sequence[T]) -> T:
        return items[int(self._random() * len(items))]

    def _integer(self, low: int, high: int) -> int:
        return low + int(self._random() * (high - low + 1))

    # --- Noun phrases -------------------------------------------------------

    def _fresh(self, words: Sequence[T]) -> T:
        """A word that the sentence has not used, if one is soon found.

        As in any language a few words are common and most are rare: the
        first of a list is the commonest.
        """
        for _ in range(6):
            word = words[int(self._random() ** 2 * len(words))]
            if word not in self._mentioned:
                break
        self._mentioned.add(word)
        return word

    def _name(self) -> syntax.Name:
        """A name of random syllables, which can only be copied."""
        syllables = [
            self._choice(_ONSETS) + self._choice(_NUCLEI) for _ in range(2)
        ]
        text = "".join(syllables) + self._choice(_CODAS)
        return syntax.Name(text.capitalize())

    def _adjective(self, noun: lexicon.Noun) -> lexicon.Adjective | None:
        """An adjective for a noun, in a dimension not yet spoken of."""
        described = self._described.setdefault(noun, set())
        fitting = [
            adjective
            for adjective in lexicon.ADJECTIVES_FOR[noun]
            if lexicon.DIMENSION[adjective] not in described
        ]
        if not fitting:
            return None
        adjective = self._fresh(fitting)
        described.add(lexicon.DIMENSION[adjective])
        return adjective

    def _adjectives(
        self, noun: lexicon.Noun, most: int
    ) -> tuple[lexicon.Adjective, ...]:
        """Up to two adjectives, in their order before a noun."""
        draw = self._random()
        count = 0 if draw > 0.4 else 1 if draw > 0.04 else 2
        drawn = (self._adjective(noun) for _ in range(min(count, most)))
        adjectives = (adjective for adjective in drawn if adjective)
        return tuple(sorted(adjectives, key=operator.attrgetter("rank")))

    def _degree(self, phrase: syntax.NounPhrase) -> int:
        """The superlative, now and then: `the oldest house`."""
        if (
            len(phrase.adjectives) == 1
            and phrase.adjectives[0].gradable
            and phrase.adjectives[0] not in selection.PASSING
            and phrase.determiner in selection.UNIQUE
            and self._chance(0.15)
        ):
            return 2
        return 0

    def _possessor(self, noun: lexicon.Noun) -> syntax.Nominal | None:
        if noun in lexicon.WHOLES and self._chance(0.7):
            return self._noun_phrase(lexicon.WHOLES[noun], plain=True)
        if noun in selection.POSSESSIONS and self._chance(0.12):
            if self._chance(0.15):
                return self._name()
            return self._noun_phrase(selection.PEOPLE, plain=True)
        return None

    def _noun_phrase(
        self,
        candidates: Sequence[lexicon.Noun],
        *,
        plain: bool = False,
        definite: bool = False,
        negated: bool = False,
        depth: int | None = None,
    ) -> syntax.NounPhrase:
        """A noun phrase.

        Args:
            candidates: the nouns it may have.
            plain: definite, and without possessor, attire or number.
            definite: only with a definite determiner.
            negated: only with a determiner that a negated verb can have.
            depth: of the clause around it, if it may take a relative clause.
        """
        noun = self._fresh(candidates)
        definite = definite or plain or noun in selection.PARENTS
        plural = noun.is_countable and self._chance(0.1 if plain else 0.25)
        determiners = selection.determiners(noun, plural, definite, negated)
        phrase = syntax.NounPhrase(
            noun,
            self._choice(determiners),
            plural,
            adjectives=self._adjectives(noun, most=1 if plain else 2),
        )
        phrase.degree = self._degree(phrase)
        if plain:
            return phrase

        if phrase.determiner is selection.THE:
            phrase.possessor = self._possessor(noun)
        if phrase.possessor:
            return phrase
        if plural and not negated:
            if phrase.determiner is BARE and self._chance(0.6):
                phrase.numeral = self._numeral(noun)
            elif phrase.determiner in selection.UNIQUE and self._chance(0.1):
                phrase.numeral = numerals.cardinal(self._integer(2, 12))
        if noun in selection.PEOPLE and self._chance(0.04):
            phrase.attire = self._attire(plural)
        elif (
            depth is not None
            and depth < self._depth
            and self._chance(self._embedding)
        ):
            phrase.relative = self._relative_clause(noun, plural, depth + 1)
        return phrase

    def _attire(self, plural: bool) -> syntax.NounPhrase:
        """`with the red hat`, and of several people `with red hats`."""
        noun = self._fresh(selection.ATTIRE)
        adjectives = self._adjectives(noun, most=1)
        return syntax.NounPhrase(
            noun,
            BARE if plural else selection.THE,
            plural,
            adjectives=adjectives,
        )

    def _numeral(self, noun: lexicon.Noun) -> syntax.Phrase:
        draw = self._random()
        if draw < 0.6:
            return numerals.cardinal(self._integer(2, 12))
        if draw < 0.9 or noun in selection.PEOPLE:
            return numerals.cardinal(self._integer(13, 99))
        hundreds = 100 * self._integer(1, 9)
        return numerals.cardinal(hundreds + self._integer(2, 99))

    def _person(self, depth: int | None) -> tuple[syntax.Nominal, lexicon.Noun]:
        """Somebody, with the noun that says what they can do."""
        draw = self._random()
        if draw < 0.3:
            return self._choice(selection.PRONOUNS), selection.ANYONE
        if draw < 0.34:
            return self._name(), selection.ANYONE
        phrase = self._noun_phrase(selection.PEOPLE, depth=depth)
        return phrase, phrase.noun

    def _subject(self, depth: int) -> tuple[syntax.Nominal, lexicon.Noun]:
        """A subject, with the noun that says what it can do."""
        draw = self._random()
        if draw < 0.3:
            return self._person(depth)
        if draw < 0.36:
            pair = syntax.Conjunction(
                self._noun_phrase(selection.PEOPLE, definite=True),
                self._noun_phrase(selection.PEOPLE, definite=True),
            )
            return pair, selection.ANYONE
        phrase = self._noun_phrase(selection.SUBJECTS, depth=depth)
        if phrase.determiner is selection.A and self._chance(0.1):
            phrase.determiner = selection.NO
        return phrase, phrase.noun

    def _object(self, clause: syntax.Clause, depth: int) -> syntax.Nominal:
        """What the verb selects: a pronoun, a name or a noun phrase."""
        candidates = clause.verb.objects
        if selection.ANYONE in candidates:
            draw = self._random()
            if draw < 0.18:
                others = [
                    p for p in selection.PRONOUNS if p is not clause.subject
                ]
                return self._choice(others)
            if draw < 0.2:
                return self._name()
        dative = clause.cases[0] == "dat" and not clause.verb.prepositions[1]
        phrase = self._noun_phrase(
            candidates,
            definite=clause.negated and dative,
            negated=clause.negated,
            depth=depth,
        )
        if dative and phrase.determiner is BARE and not phrase.numeral:
            # A dative must show: `hilft einigen Frauen`, not `hilft Frauen`.
            phrase.determiner = selection.SOME
        return phrase

    # --- Adverbials ---------------------------------------------------------

    def _time(self, tense: str) -> syntax.Phrase:
        draw = self._random()
        if draw < 0.2:
            return numerals.clock_time(
                self._integer(1, 12), 5 * self._integer(0, 11)
            )
        if tense != "present":
            if draw < 0.27:
                month = self._choice(tuple(numerals.MONTHS))
                return numerals.date(self._integer(1, 28), month)
            if draw < 0.33:
                english, german = self._choice(lexicon.PERIODS)
                number, zahl = numerals.cardinal(self._integer(2, 12))
                if tense == "past":
                    return f"{number} {english} ago", f"vor {zahl} {german}"
                return f"in {number} {english}", f"in {zahl} {german}"
            if draw < 0.36 and tense == "past":
                return numerals.year(self._integer(1950, 2024))
        return self._choice(lexicon.TIMES[tense])

    def _setting(self) -> syntax.Place:
        """Where something happens, with the dative."""
        draw = self._random()
        if draw < 0.03:
            return syntax.Place(("in", "in"), self._name(), "dat")
        if draw < 0.3:
            prepositions = self._choice(lexicon.SURROUNDINGS)
            place = self._noun_phrase(selection.LANDMARKS, definite=True)
            return syntax.Place(prepositions, place, "dat")
        place = self._noun_phrase(selection.SETTINGS, plain=self._chance(0.75))
        prepositions = self._choice(place.noun.locatives)
        return syntax.Place(prepositions, place, "dat")

    def _support(self) -> syntax.Place:
        """What something lies in, on or under."""
        support = self._noun_phrase(selection.SUPPORTS)
        prepositions = self._choice(support.noun.locatives)
        return syntax.Place(prepositions, support, "dat")

    def _goal(self, verb: lexicon.Verb) -> syntax.Place | syntax.Phrase:
        """Where somebody goes: `nach` with names, `zu` with the dative."""
        draw = self._random()
        if draw < 0.1:
            return "home", "nach Hause"
        if draw < 0.2:
            town = self._name().text
            return f"to {town}", f"nach {town}"
        goal = self._noun_phrase(verb.objects, plain=self._chance(0.7))
        prepositions = goal.noun.directional
        case = "dat" if prepositions[1] == "zu" else "acc"
        return syntax.Place(prepositions, goal, case)

    def _add_adverbials(self, clause: syntax.Clause, depth: int) -> None:
        """Adds what the clause has room for.

        Nothing may follow a relative clause or a complement in English, so a
        clause that is closed by one has room in front only.
        """
        verb = clause.verb
        closed = clause.complement is not None or any(
            isinstance(object_, syntax.NounPhrase) and object_.relative
            for object_ in clause.objects
        )
        if verb.stative or (
            clause.quality and clause.quality.adjective not in selection.PASSING
        ):
            return
        ahead = clause.tense == "future" or (
            clause.modal and clause.tense == "present"
        )
        quantified = clause.negated or _is_quantified(clause.subject)
        if not ahead and not quantified and self._chance(0.1):
            clause.frequency = self._choice(lexicon.FREQUENCIES)
        elif self._chance(0.45 if depth == 0 else 0.1):
            clause.fronted = depth == 0 and (closed or self._chance(0.35))
            if clause.fronted or not closed:
                clause.time = self._time("future" if ahead else clause.tense)
        if closed or verb in (lexicon.BE, lexicon.HAVE):
            return
        if verb.manners and self._chance(0.35):
            clause.manner = self._choice(verb.manners)
        if (
            not clause.place
            and not clause.goal
            and selection.has_setting(verb)
            and self._chance(0.3)
        ):
            clause.place = self._setting()

    # --- Clauses ------------------------------------------------------------

    def _clause(
        self,
        depth: int,
        tense: str,
        subject: syntax.Nominal | None = None,
        noun: lexicon.Noun | None = None,
        kinds: frozenset[str] | None = None,
        mood: str = "any",
    ) -> syntax.Clause:
        """A clause about its subject.

        Args:
            depth: how many clauses it is nested in.
            tense: of its finite verb.
            subject: the subject, drawn if it is not given.
            noun: what a given subject is.
            kinds: of predicate; all that the tense and depth allow if None.
            mood: `any`, `affirmative`, or `bare`: without a modal as well.
        """
        if subject is None:
            subject, noun = self._subject(depth)
        if kinds is None:
            kinds = selection.kinds(tense, depth < self._depth)
        kind, verbs = self._choice(selection.repertoire(noun, kinds))
        clause = syntax.Clause(
            subject, self._fresh(verbs), tense, passive=kind == "passive"
        )
        if mood != "bare":
            self._add_modal(clause)
        if mood == "any":
            self._add_negation(clause)
        self._add_complements(clause, kind, noun, depth)
        self._add_adverbials(clause, depth)
        return clause

    def _add_modal(self, clause: syntax.Clause) -> None:
        verb = clause.verb
        if (
            clause.tense != "future"
            and not verb.stative
            and verb not in (lexicon.BE, lexicon.HAVE)
            and self._chance(0.2)
        ):
            modals = selection.MODALS[clause.tense]
            clause.modal = self._choice(modals[clause.passive :])

    def _add_negation(self, clause: syntax.Clause) -> None:
        """Negates a clause whose subject leaves no doubt about the scope."""
        subject = clause.subject
        clear = (
            not isinstance(subject, syntax.NounPhrase)
            or subject.determiner in selection.REFERENTIAL
        )
        if clear and clause.verb is not lexicon.COST and self._chance(0.14):
            clause.negated = True

    def _add_complements(
        self, clause: syntax.Clause, kind: str, noun: lexicon.Noun, depth: int
    ) -> None:
        """Adds what this kind of predicate needs."""
        if kind in selection.ONE_OBJECT:
            clause.objects = (self._object(clause, depth),)
        match kind:
            case "ditransitive":
                self._add_recipient_and_theme(clause, depth)
            case "price":
                clause.objects = (syntax.Measure(self._price()),)
            case "quality":
                clause.quality = self._quality(noun)
            case "location":
                small = noun.is_a(selection.SMALL_KINDS)
                clause.place = self._support() if small else self._setting()
            case "passive":
                if self._chance(0.4):
                    clause.agent = self._noun_phrase(clause.verb.subjects)
            case "motion":
                clause.goal = self._goal(clause.verb)
                if depth < self._depth and self._chance(0.3):
                    clause.purpose = self._infinitive(
                        ("in order", "um"), clause.subject, noun, depth + 1
                    )
            case "reporting" | "wondering":
                tense = clause.tense
                if tense == "present":
                    tense = self._choice(selection.TENSES)
                clause.complement = syntax.Subordinate(
                    selection.COMPLEMENTIZER[kind],
                    self._clause(depth + 1, tense),
                )
            case "control":
                clause.complement = self._infinitive(
                    ("", ""), clause.subject, noun, depth + 1
                )

    def _add_recipient_and_theme(
        self, clause: syntax.Clause, depth: int
    ) -> None:
        """`gives him the book`, `gives the book to him`, `gives it to him`."""
        if self._chance(0.3):
            others = [p for p in selection.PRONOUNS if p is not clause.subject]
            recipient = self._choice(others)
        else:
            recipient = self._noun_phrase(selection.PEOPLE, definite=True)
        if self._chance(0.1):
            theme = selection.PRONOUN["they"]
            clause.recipient_last = True
        else:
            clause.recipient_last = self._chance(0.3)
            theme = self._noun_phrase(
                clause.verb.objects,
                negated=clause.negated,
                depth=None if clause.recipient_last else depth,
            )
        clause.objects = (recipient, theme)

    def _price(self) -> syntax.Phrase:
        draw = self._random()
        if draw < 0.6:
            return numerals.price(self._integer(2, 99))
        if draw < 0.9:
            return numerals.price(
                self._integer(2, 99), 5 * self._integer(1, 19)
            )
        return numerals.price(50 * self._integer(21, 190))

    def _quality(self, noun: lexicon.Noun) -> syntax.Quality:
        adjective = self._adjective(noun) or self._choice(
            lexicon.ADJECTIVES_FOR[noun]
        )
        others = selection.comparable(noun, adjective)
        if not (adjective.gradable and others and self._chance(0.45)):
            return syntax.Quality(adjective)
        return syntax.Quality(
            adjective,
            degree=self._integer(0, 1),
            standard=self._noun_phrase(others, definite=True),
        )

    def _infinitive(
        self,
        conjunctions: syntax.Phrase,
        subject: syntax.Nominal,
        noun: lexicon.Noun,
        depth: int,
    ) -> syntax.Infinitive:
        """An infinitive that the subject of the clause around it controls."""
        controller = selection.CONTROLLER[syntax.agreement(subject)]
        clause = self._clause(
            depth,
            "present",
            controller,
            noun,
            selection.ACTIONS if conjunctions[0] else selection.INTENTIONS,
            mood="bare",
        )
        clause.time = clause.frequency = None
        return syntax.Infinitive(conjunctions, clause)

    def _clause_with_object(
        self,
        depth: int,
        tense: str,
        object_: syntax.Pronoun | syntax.Trace,
        noun: lexicon.Noun,
    ) -> syntax.Clause:
        """A clause about what somebody does to a given object."""
        kind, verbs = self._choice(selection.uses(noun, tense))
        verb = self._fresh(verbs)
        if selection.ANYONE in verb.subjects:
            subject, _ = self._person(depth=None)
        else:
            subject = self._noun_phrase(verb.subjects, plain=True)
        clause = syntax.Clause(subject, verb, tense)
        self._add_modal(clause)
        self._add_negation(clause)
        if kind == "ditransitive":
            recipient = self._noun_phrase(selection.PEOPLE, definite=True)
            clause.objects = (recipient, object_)
            clause.recipient_last = isinstance(object_, syntax.Pronoun)
        else:
            clause.objects = (object_,)
        self._add_adverbials(clause, depth)
        return clause

    def _relative_clause(
        self, noun: lexicon.Noun, plural: bool, depth: int
    ) -> syntax.Clause:
        """A clause with a gap for the noun it modifies."""
        trace = syntax.Trace(noun, plural)
        tense = "past" if self._chance(0.5) else "present"
        draw = self._random()
        if noun in selection.SETTINGS and draw < 0.4:
            somebody, who = self._person(depth=None)
            clause = self._clause(
                depth, tense, somebody, who, kinds=selection.ACTIONS
            )
            prepositions = self._choice(noun.locatives)
            clause.place = syntax.Place(prepositions, trace, "dat")
            return clause
        if noun in selection.PEOPLE and draw < 0.2:
            theirs = self._noun_phrase(selection.POSSESSIONS, plain=True)
            theirs.determiner, theirs.degree = selection.THE, 0
            theirs.possessor = trace
            return self._clause(depth, tense, theirs, theirs.noun)
        if draw < 0.55:
            return self._clause_with_object(depth, tense, trace, noun)
        return self._clause(depth, tense, trace, noun)

    # --- Sentences ----------------------------------------------------------

    def _weather(self, tense: str) -> syntax.Clause:
        verb = self._choice(lexicon.WEATHER)
        return syntax.Clause(selection.IT_RAINS, verb, tense)

    def _continuation(
        self,
        before: syntax.Clause,
        depth: int,
        tense: str,
        temporal: bool = False,
    ) -> syntax.Clause:
        """A clause after another one, about the thing it named if just one."""
        antecedent = _antecedent(before)
        if antecedent is None or self._chance(0.4):
            return self._dependent(depth, tense, temporal)
        it = syntax.Pronoun("it", antecedent.gender)
        if self._chance(0.5) and selection.uses(antecedent, tense):
            return self._clause_with_object(depth, tense, it, antecedent)
        return self._dependent(depth, tense, temporal, it, antecedent)

    def _dependent(
        self,
        depth: int,
        tense: str,
        temporal: bool,
        subject: syntax.Nominal | None = None,
        noun: lexicon.Noun | None = None,
    ) -> syntax.Clause:
        """A clause; a temporal one tells of something that happens."""
        if temporal:
            return self._clause(
                depth, tense, subject, noun, selection.EVENTS, "affirmative"
            )
        return self._clause(depth, tense, subject, noun)

    def _with_adverbial(self, tense: str) -> syntax.Sentence:
        """A main clause and a subordinate one, composed in reading order."""
        conjunctions = self._choice(lexicon.CONJUNCTIONS[tense])
        temporal = conjunctions[0] in selection.TEMPORAL
        dependent = "past" if tense == "past" else "present"
        first = self._chance(0.4)
        if conjunctions[0] == "so that":
            first = False
            main = self._clause(
                0, tense, *self._person(0), selection.INTENTIONS
            )
            clause = self._clause(
                1, dependent, *self._person(1), selection.ACTIONS, "bare"
            )
            clause.modal = lexicon.MODAL["can"]
        elif self._chance(0.1):
            clause = self._weather(dependent)
            main = self._clause(0, tense)
        elif first:
            clause = self._dependent(1, dependent, temporal)
            main = self._continuation(clause, 0, tense)
        else:
            main = self._clause(0, tense)
            clause = self._continuation(main, 1, dependent, temporal)
        if first:
            _unfront(main)
        adverbial = syntax.Subordinate(conjunctions, clause)
        return syntax.Sentence(main, adverbial, adverbial_first=first)

    def _yes_or_no(self, tense: str) -> syntax.Sentence:
        clause = self._clause(0, tense, mood="affirmative")
        _unfront(clause)
        return syntax.Sentence(clause, question=True)

    def _adverbial_question(self, tense: str) -> syntax.Sentence:
        """Asks for the place, the time or the reason of an action."""
        asked = self._choice(selection.INTERROGATIVES)
        where = asked[0] == "where"
        clause = self._clause(
            0,
            tense,
            *self._person(0),
            selection.LOCALISED if where else selection.ACTIONS,
            "affirmative",
        )
        _unfront(clause)
        if where:
            clause.place = None
        elif asked[0] == "when":
            clause.time = None
        return syntax.Sentence(clause, question=True, interrogative=asked)

    def sentence(self) -> syntax.Sentence:
        """The next sentence."""
        self._mentioned.clear()
        self._described.clear()
        tense = self._choice(selection.TENSES)
        match self._choice(selection.FORMS):
            case "adverbial":
                return self._with_adverbial(tense)
            case "coordination":
                main = self._clause(0, tense)
                second = self._continuation(main, 0, tense)
                coordinator = self._choice(selection.COORDINATORS)
                return syntax.Sentence(
                    main, coordinator=coordinator, second=second
                )
            case "yes or no":
                return self._yes_or_no(tense)
            case "adverbial question":
                return self._adverbial_question(tense)
            case "who":
                clause = self._clause(
                    0,
                    tense,
                    selection.WHO,
                    selection.ANYONE,
                    mood="affirmative",
                )
                _unfront(clause)
                return syntax.Sentence(clause)
            case "weather":
                clause = self._weather(tense)
                clause.time = self._time(tense)
                return syntax.Sentence(clause)
        return syntax.Sentence(self._clause(0, tense))
