"""Linearisation into English."""

from examples.translation.synthetic import inflection
from examples.translation.synthetic import lexicon
from examples.translation.synthetic import syntax

_OBJECTIVE = {
    "I": "me",
    "he": "him",
    "she": "her",
    "it": "it",
    "we": "us",
    "they": "them",
}
_BE = {
    "present": {"1s": "am", "1p": "are", "3s": "is", "3p": "are"},
    "past": {"1s": "was", "1p": "were", "3s": "was", "3p": "were"},
}
_PERSON = frozenset({"person"})
_ANIMATE = frozenset({"person", "animal"})

# --- Noun phrases -----------------------------------------------------------


def _saxon_genitive(possessor: syntax.Nominal) -> list[str]:
    """`the man's`, `the children's`, `the teachers'`, `whose`."""
    if isinstance(possessor, syntax.Trace):
        return ["whose"]
    *words, last = _nominal(possessor)
    return [*words, last + ("'" if last.endswith("s") else "'s")]


def _takes_saxon_genitive(possessor: syntax.Nominal) -> bool:
    """People and animals possess with -s, things with `of`."""
    return not isinstance(possessor, syntax.NounPhrase) or possessor.noun.is_a(
        _ANIMATE
    )


def _noun_phrase(phrase: syntax.NounPhrase, negated: bool) -> list[str]:
    """Determiner, numeral, adjectives, noun, attributes, relative clause.

    In the scope of a negation a silent determiner becomes `any`.
    """
    words = [
        adjective.english[phrase.degree] for adjective in phrase.adjectives
    ]
    words.append(phrase.noun.plural if phrase.plural else phrase.noun.singular)
    if phrase.numeral:
        words.insert(0, phrase.numeral[0])

    possessor = phrase.possessor
    if possessor and _takes_saxon_genitive(possessor):
        words = _saxon_genitive(possessor) + words
    elif phrase.determiner is lexicon.DETERMINER["a"]:
        words.insert(0, inflection.indefinite_article(words[0]))
    elif phrase.determiner is not lexicon.BARE:
        words.insert(0, phrase.determiner.english[phrase.plural])
    elif negated and not phrase.numeral:
        words.insert(0, "any")

    if possessor and not _takes_saxon_genitive(possessor):
        words += ["of", *_nominal(possessor)]
    if phrase.attire:
        words += ["with", *_nominal(phrase.attire)]
    if phrase.relative:
        words += _relative_clause(phrase.relative)
    return words


def _nominal(
    nominal: syntax.Nominal, objective: bool = True, negated: bool = False
) -> list[str]:
    match nominal:
        case syntax.NounPhrase():
            return _noun_phrase(nominal, negated)
        case syntax.Pronoun(english=english):
            return [_OBJECTIVE[english] if objective else english]
        case syntax.Name(text=text):
            return [text]
        case syntax.Conjunction(left=left, right=right):
            return [*_nominal(left), "and", *_nominal(right)]
        case syntax.Measure(phrase=(english, _)):
            return [english]
        case syntax.Trace():
            return []
    raise TypeError(f"Not a nominal: {nominal!r}")


def _place(place: syntax.Place) -> list[str]:
    if isinstance(place.nominal, syntax.Trace):
        return []
    return [place.prepositions[0], *_nominal(place.nominal)]


# --- Verb groups -----------------------------------------------------------


def _finite(forms: tuple[str, str, str, str], tense: str, agrees: str) -> str:
    base, third, past, _ = forms
    if tense == "past":
        return past
    return third if agrees == "3s" else base


def _verb_group(
    clause: syntax.Clause, agrees: str, needs_operator: bool
) -> tuple[str, list[str]]:
    """The operator and the rest of the verb group.

    The operator is what `not` follows and what a question inverts: a modal,
    `will`, `be`, or `do` where one is needed and there is no other.
    """
    forms = clause.verb.english
    bare = ["be", forms[3]] if clause.passive else [forms[0]]
    tail: list[str] = []
    if clause.modal:
        modal = clause.modal.english[clause.tense == "past"]
        if modal not in ("want to", "have to"):
            return modal, bare
        forms = (lexicon.HAVE if modal == "have to" else lexicon.WANT).english
        tail = ["to", *bare]
    elif clause.tense == "future":
        return "will", bare
    elif clause.passive or clause.verb is lexicon.BE:
        operator = _BE[clause.tense][agrees]
        return operator, [forms[3]] if clause.passive else []
    if not needs_operator:
        return "", [_finite(forms, clause.tense, agrees), *tail]
    do = _finite(lexicon.DO.english, clause.tense, agrees)
    return do, [forms[0], *tail]


# --- Clauses ---------------------------------------------------------------


def _objects(clause: syntax.Clause) -> list[str]:
    """Particle and objects; a pronoun comes before the particle."""
    particle = [clause.verb.particle] if clause.verb.particle else []
    phrases = [
        _nominal(object_, negated=clause.negated) for object_ in clause.objects
    ]
    if not phrases:
        return particle
    if len(phrases) == 2:
        recipient, theme = phrases
        if clause.recipient_last:
            return [*theme, "to", *recipient]
        return recipient + theme
    if clause.verb.prepositions[0]:
        return [clause.verb.prepositions[0], *phrases[0]]
    if isinstance(clause.objects[0], syntax.Pronoun):
        return phrases[0] + particle
    return particle + phrases[0]


def _quality(quality: syntax.Quality) -> list[str]:
    adjective = quality.adjective.english[quality.degree]
    if quality.standard is None:
        return [adjective]
    standard = _nominal(quality.standard)
    if quality.degree:
        return [adjective, "than", *standard]
    return ["as", adjective, "as", *standard]


def _after_verb(clause: syntax.Clause) -> list[str]:
    """Complements and adjuncts: manner before place before time."""
    words = _objects(clause)
    if clause.quality:
        words += _quality(clause.quality)
    if isinstance(clause.goal, syntax.Place):
        words += _place(clause.goal)
    elif clause.goal:
        words.append(clause.goal[0])
    if clause.manner:
        words.append(clause.manner[0])
    if clause.agent:
        words += ["by", *_nominal(clause.agent)]
    if clause.place:
        words += _place(clause.place)
    if clause.time and not clause.fronted:
        words.append(clause.time[0])
    if clause.complement:
        words += _embedded(clause.complement)
    if clause.purpose:
        words += _embedded(clause.purpose)
    return words


def _with_operator(operator: str, negated: bool) -> list[str]:
    if not negated:
        return [operator] if operator else []
    return ["cannot"] if operator == "can" else [operator, "not"]


def _frequency(clause: syntax.Clause) -> list[str]:
    return [clause.frequency[0]] if clause.frequency else []


def _declarative(clause: syntax.Clause) -> list[str]:
    operator, rest = _verb_group(
        clause, syntax.agreement(clause.subject), clause.negated
    )
    return [
        *([clause.time[0]] if clause.fronted else []),
        *_nominal(clause.subject, objective=False),
        *_with_operator(operator, clause.negated),
        *_frequency(clause),
        *rest,
        *_after_verb(clause),
    ]


def _question(clause: syntax.Clause) -> list[str]:
    operator, rest = _verb_group(clause, syntax.agreement(clause.subject), True)
    return [
        operator,
        *_nominal(clause.subject, objective=False),
        *_frequency(clause),
        *rest,
        *_after_verb(clause),
    ]


def _relative_clause(clause: syntax.Clause) -> list[str]:
    """`who sees ...`, `whom ... sees`, `that ... waits for`, `in which ...`."""
    gap = syntax.gap(clause)
    if gap is None:
        return _declarative(clause)
    person = gap.noun.is_a(_PERSON)
    if gap is clause.subject:
        pronoun = ["who" if person else "that"]
        return pronoun + _declarative(clause)
    if clause.place and gap is clause.place.nominal:
        pronoun = [clause.place.prepositions[0], "which"]
    else:
        pronoun = ["whom" if person else "that"]
    return pronoun + _declarative(clause)


def _embedded(embedded: syntax.Subordinate | syntax.Infinitive) -> list[str]:
    english = embedded.conjunctions[0]
    conjunction = [english] if english else []
    if isinstance(embedded, syntax.Subordinate):
        return conjunction + _declarative(embedded.clause)
    clause = embedded.clause
    return [
        *conjunction,
        "to",
        clause.verb.english[0],
        *_after_verb(clause),
    ]


def sentence(tree: syntax.Sentence) -> str:
    """The English sentence, capitalised and punctuated."""
    if tree.question:
        words = _question(tree.main)
        if tree.interrogative:
            words.insert(0, tree.interrogative[0])
    else:
        words = _declarative(tree.main)
    if tree.adverbial:
        adverbial = _embedded(tree.adverbial)
        if tree.adverbial_first:
            words = [*adverbial, ",", *words]
        else:
            words += adverbial
    if tree.second:
        words += [",", tree.coordinator[0], *_declarative(tree.second)]
    return syntax.punctuate(words, "?" if tree.asks else ".")
