"""Linearisation into German, by topological fields.

A German clause is laid out around its verbal bracket:

    prefield | left bracket | middle field | right bracket | postfield
    Gestern    hat            er das Buch    gefunden,       das wir suchen.

In a main clause the finite verb is the left bracket and anything one
constituent long is before it; in a question nothing is; in a subordinate
clause the conjunction is the left bracket and the finite verb ends the right
one. Clauses move to the postfield.
"""

import dataclasses

from examples.translation.synthetic import inflection
from examples.translation.synthetic import lexicon
from examples.translation.synthetic import syntax

# Finite forms by agreement.
_AUXILIARY = {
    "haben": {"1s": "habe", "1p": "haben", "3s": "hat", "3p": "haben"},
    "sein": {"1s": "bin", "1p": "sind", "3s": "ist", "3p": "sind"},
    "werden": {"1s": "werde", "1p": "werden", "3s": "wird", "3p": "werden"},
}
# The verbs whose past is the preterite and not the perfect: (singular,
# plural).
_PRETERITE = {
    "haben": ("hatte", "hatten"),
    "sein": ("war", "waren"),
    "werden": ("wurde", "wurden"),
}
_REFLEXIVE = {"1s": "mich", "1p": "uns", "3s": "sich", "3p": "sich"}
# Pronouns that cannot be taken for a subject.
_OBLIQUE = frozenset("mich mir uns ihn ihm ihnen sich".split())
_CONTRACTIONS = {
    ("an", "das"): "ans",
    ("an", "dem"): "am",
    ("bei", "dem"): "beim",
    ("in", "das"): "ins",
    ("in", "dem"): "im",
    ("von", "dem"): "vom",
    ("zu", "dem"): "zum",
    ("zu", "der"): "zur",
}
_THE = lexicon.DETERMINER["the"]
_NO = lexicon.DETERMINER["no"]
_COMMA = ","

# --- Noun phrases -----------------------------------------------------------


def _determiner(determiner: lexicon.Determiner, case: str, gender: str) -> str:
    if determiner is _THE:
        return inflection.DEFINITE_ARTICLE[case][gender]
    if determiner.declension == "mixed" and inflection.ein_is_bare(
        case, gender
    ):
        return determiner.stem
    return determiner.stem + inflection.PRONOMINAL[case][gender]


def _gender(noun: lexicon.Noun, plural: bool) -> str:
    return "p" if plural else noun.gender


def _prenominal_genitive(possessor: syntax.Nominal | None) -> str:
    """`Tarivos`, `dessen`, `deren`: they replace the determiner."""
    match possessor:
        case syntax.Name(text=text):
            return text + "s"
        case syntax.Trace(noun=noun, plural=plural):
            return inflection.RELATIVE_PRONOUN["gen"][_gender(noun, plural)]
    return ""


def _noun_phrase(phrase: syntax.NounPhrase, case: str) -> list[str]:
    """A noun phrase without its relative clause, which has its own place."""
    gender = _gender(phrase.noun, phrase.plural)
    determiner = phrase.determiner
    words = []
    genitive = _prenominal_genitive(phrase.possessor)
    if genitive:
        determiner = lexicon.BARE
        words.append(genitive)
    elif determiner is not lexicon.BARE:
        words.append(_determiner(determiner, case, gender))
    if phrase.numeral:
        words.append(phrase.numeral[1])
    ending = inflection.ADJECTIVE_ENDING[determiner.declension][case, gender]
    words += [
        adjective.german[phrase.degree] + ending
        for adjective in phrase.adjectives
    ]
    words.append(phrase.noun.forms[case, phrase.plural])
    if phrase.possessor and not genitive:
        words += decline(phrase.possessor, "gen")
    if phrase.attire:
        words += _prepositional_phrase("mit", phrase.attire, "dat")
    return words


def decline(nominal: syntax.Nominal, case: str) -> list[str]:
    """The words of a nominal in a case."""
    match nominal:
        case syntax.NounPhrase():
            return _noun_phrase(nominal, case)
        case syntax.Pronoun(form=form):
            return [inflection.PERSONAL_PRONOUN[form][case]]
        case syntax.Name(text=text):
            return [text]
        case syntax.Trace(noun=noun, plural=plural):
            gender = _gender(noun, plural)
            return [inflection.RELATIVE_PRONOUN[case][gender]]
        case syntax.Conjunction(left=left, right=right):
            return [*decline(left, case), "und", *decline(right, case)]
        case syntax.Measure(phrase=(_, german)):
            return [german]
    raise TypeError(f"Not a nominal: {nominal!r}")


def _prepositional_phrase(
    preposition: str, nominal: syntax.Nominal, case: str
) -> list[str]:
    """A preposition with its case; it contracts with the definite article.

    It does not where a restrictive relative clause makes the article
    emphatic: `in dem Haus, das ...`.
    """
    words = decline(nominal, case)
    if (
        isinstance(nominal, syntax.NounPhrase)
        and nominal.determiner is _THE
        and nominal.relative is None
        and (preposition, words[0]) in _CONTRACTIONS
    ):
        return [_CONTRACTIONS[preposition, words[0]], *words[1:]]
    return [preposition, *words]


def _place(place: syntax.Place) -> list[str]:
    return _prepositional_phrase(
        place.prepositions[1], place.nominal, place.case
    )


def _relative_of(nominal: syntax.Nominal) -> list[str]:
    """The relative clause of a noun phrase, between commas."""
    if isinstance(nominal, syntax.NounPhrase) and nominal.relative:
        return [_COMMA, *_relative_clause(nominal.relative), _COMMA]
    return []


# --- The verbal bracket ----------------------------------------------------


def _present(verb: lexicon.Verb, agrees: str) -> str:
    if verb.infinitive in _AUXILIARY:
        return _AUXILIARY[verb.infinitive][agrees]
    if agrees in ("1p", "3p"):
        return verb.infinitive
    if agrees == "1s" and verb.third.endswith("t"):
        return inflection.verb_stem(verb.infinitive) + "e"
    return verb.third


def _verbal_complex(clause: syntax.Clause) -> tuple[str, list[str], str]:
    """The finite verb, the verbs of the right bracket, a stranded prefix."""
    verb = clause.verb
    agrees = syntax.agreement(clause.subject)
    plural = agrees in ("1p", "3p")
    infinitive = verb.prefix + verb.infinitive
    nonfinite = [verb.participle, "werden"] if clause.passive else [infinitive]
    if clause.modal:
        modal = clause.modal
        if clause.tense == "past":
            return modal.preterite[plural], nonfinite, ""
        forms = modal.negated if clause.negated else modal.german
        return forms[plural], nonfinite, ""
    if clause.tense == "future":
        return _AUXILIARY["werden"][agrees], nonfinite, ""
    if clause.passive:
        if clause.tense == "past":
            return _PRETERITE["werden"][plural], [verb.participle], ""
        return _AUXILIARY["werden"][agrees], [verb.participle], ""
    if clause.tense == "present":
        return _present(verb, agrees), [], verb.prefix
    if verb.infinitive in _PRETERITE:
        return _PRETERITE[verb.infinitive][plural], [], ""
    return _AUXILIARY[verb.auxiliary][agrees], [verb.participle], ""


# --- The middle field ------------------------------------------------------


def _is_definite(nominal: syntax.Nominal) -> bool:
    match nominal:
        case syntax.NounPhrase(determiner=determiner):
            return determiner.definite
        case syntax.Conjunction(left=left, right=right):
            return _is_definite(left) and _is_definite(right)
    return not isinstance(nominal, syntax.Measure)


def _takes_kein(nominal: syntax.Nominal) -> bool:
    return (
        isinstance(nominal, syntax.NounPhrase)
        and nominal.determiner in (lexicon.DETERMINER["a"], lexicon.BARE)
        and nominal.numeral is None
        and nominal.possessor is None
    )


def _negate_objects(
    clause: syntax.Clause,
) -> tuple[tuple[syntax.Nominal, ...], bool]:
    """Objects with `kein` where negation can merge, and whether it did."""
    if not clause.negated or clause.verb.prepositions[1]:
        return clause.objects, False
    objects = tuple(
        dataclasses.replace(object_, determiner=_NO)
        if _takes_kein(object_)
        else object_
        for object_ in clause.objects
    )
    return objects, objects != clause.objects


def _quality(quality: syntax.Quality) -> list[str]:
    adjective = quality.adjective
    if quality.standard is None:
        if quality.degree:
            return [adjective.german[1]]
        return [adjective.predicative]
    standard = decline(quality.standard, "nom")
    if quality.degree:
        return [adjective.german[1], "als", *standard]
    return ["so", adjective.predicative, "wie", *standard]


def _pronouns(clause: syntax.Clause) -> list[str]:
    """Reflexive, accusative and dative pronouns, in this order."""
    words = []
    if clause.verb.reflexive:
        words.append(_REFLEXIVE[syntax.agreement(clause.subject)])
    if clause.verb.prepositions[1]:
        return words
    objects = zip(clause.objects, clause.cases, strict=True)
    for object_, case in reversed(tuple(objects)):
        if isinstance(object_, syntax.Pronoun):
            words += decline(object_, case)
    return words


def _subject_and_pronouns(clause: syntax.Clause) -> list[str]:
    """The start of the middle field, where unstressed words lean left.

    Pronouns precede a subject that is not one itself, unless their form
    could be taken for the subject: `hat ihn die Frau gesehen`, but `hat die
    Frau es gesehen`.
    """
    subject = clause.subject
    pronouns = _pronouns(clause)
    whose = isinstance(subject, syntax.NounPhrase) and isinstance(
        subject.possessor, syntax.Trace
    )
    if (
        whose
        or isinstance(subject, syntax.Pronoun | syntax.Trace)
        or not _OBLIQUE.issuperset(pronouns)
    ):
        return _subject(clause) + pronouns
    return pronouns + _subject(clause)


def _middle_field(clause: syntax.Clause) -> list[str]:
    """What stands between the brackets, subject and pronouns apart.

    Time, known objects (dative before accusative), `nicht`, manner, place,
    new objects, prepositional object, goal, predicate.
    """
    objects, kein = _negate_objects(clause)
    preposition = clause.verb.prepositions[1]
    known, new, prepositional = [], [], []
    for object_, case in zip(objects, clause.cases, strict=True):
        if isinstance(object_, syntax.Trace):
            continue
        if preposition:
            prepositional = _prepositional_phrase(preposition, object_, case)
        elif isinstance(object_, syntax.Pronoun):
            continue
        elif _is_definite(object_):
            known += decline(object_, case)
        else:
            new += decline(object_, case)

    words = []
    if clause.time and not clause.fronted:
        words.append(clause.time[1])
    if clause.frequency:
        words.append(clause.frequency[1])
    words += known
    if clause.negated and not kein:
        words.append("nicht")
    if clause.agent:
        words += _prepositional_phrase("von", clause.agent, "dat")
    if clause.manner:
        words.append(clause.manner[1])
    if clause.place and not isinstance(clause.place.nominal, syntax.Trace):
        words += _place(clause.place)
    words += new + prepositional
    if isinstance(clause.goal, syntax.Place):
        words += _place(clause.goal)
    elif clause.goal:
        words.append(clause.goal[1])
    if clause.quality:
        words += _quality(clause.quality)
    return words


def _postfield(clause: syntax.Clause) -> list[str]:
    """Relative clauses leave the middle field; clauses are never in it."""
    words = []
    for dependent, _ in syntax.dependents(clause):
        if dependent is not clause.subject:
            words += _relative_of(dependent)
    if clause.complement:
        words += _embedded(clause.complement)
    if clause.purpose:
        words += _embedded(clause.purpose)
    return words


# --- Clauses ---------------------------------------------------------------


def _subject(clause: syntax.Clause) -> list[str]:
    return decline(clause.subject, "nom") + _relative_of(clause.subject)


def _from_left_bracket(clause: syntax.Clause, leaning: list[str]) -> list[str]:
    """A main clause without its prefield."""
    finite, nonfinite, prefix = _verbal_complex(clause)
    return [
        finite,
        *leaning,
        *_middle_field(clause),
        *nonfinite,
        *([prefix] if prefix else []),
        *_postfield(clause),
    ]


def _verb_first(clause: syntax.Clause) -> list[str]:
    """As in a question, and after a prefield that is not the subject."""
    return _from_left_bracket(clause, _subject_and_pronouns(clause))


def _verb_second(clause: syntax.Clause) -> list[str]:
    if clause.fronted:
        return [clause.time[1], *_verb_first(clause)]
    return _subject(clause) + _from_left_bracket(clause, _pronouns(clause))


def _verb_final(clause: syntax.Clause) -> list[str]:
    finite, nonfinite, prefix = _verbal_complex(clause)
    return [
        *_subject_and_pronouns(clause),
        *_middle_field(clause),
        *nonfinite,
        prefix + finite,
        *_postfield(clause),
    ]


def _relative_clause(clause: syntax.Clause) -> list[str]:
    """The relative pronoun, with its preposition, then the verb-final clause.

    A subject needs no fronting: it comes first in any case.
    """
    if clause.place and isinstance(clause.place.nominal, syntax.Trace):
        return _place(clause.place) + _verb_final(clause)
    for object_, case in zip(clause.objects, clause.cases, strict=True):
        if isinstance(object_, syntax.Trace):
            preposition = clause.verb.prepositions[1]
            pronoun = decline(object_, case)
            if preposition:
                pronoun.insert(0, preposition)
            return pronoun + _verb_final(clause)
    return _verb_final(clause)


def _infinitive(embedded: syntax.Infinitive) -> list[str]:
    """`, das Zimmer aufzuräumen,`; a bare `zu singen` takes no commas."""
    conjunction = embedded.conjunctions[1]
    clause = embedded.clause
    verb = clause.verb
    if verb.prefix:
        infinitive = [verb.prefix + "zu" + verb.infinitive]
    else:
        infinitive = ["zu", verb.infinitive]
    words = [
        *([conjunction] if conjunction else []),
        *_pronouns(clause),
        *_middle_field(clause),
        *infinitive,
        *_postfield(clause),
    ]
    return words if words == infinitive else [_COMMA, *words, _COMMA]


def _embedded(embedded: syntax.Subordinate | syntax.Infinitive) -> list[str]:
    if isinstance(embedded, syntax.Infinitive):
        return _infinitive(embedded)
    conjunction = embedded.conjunctions[1]
    return [_COMMA, conjunction, *_verb_final(embedded.clause), _COMMA]


def sentence(tree: syntax.Sentence) -> str:
    """The German sentence, capitalised and punctuated."""
    adverbial = _embedded(tree.adverbial) if tree.adverbial else []
    if tree.question:
        words = _verb_first(tree.main)
        if tree.interrogative:
            words.insert(0, tree.interrogative[1])
    elif tree.adverbial_first:
        words = adverbial[1:] + _verb_first(tree.main)
    else:
        words = _verb_second(tree.main) + adverbial
    if tree.second:
        words += [_COMMA, tree.coordinator[1], *_verb_second(tree.second)]
    return syntax.punctuate(words, "?" if tree.asks else ".")
