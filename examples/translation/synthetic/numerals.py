"""Numbers, clock times, dates and prices in both languages."""

_ONES = """
one ein, two zwei, three drei, four vier, five fünf, six sechs, seven sieben,
eight acht, nine neun, ten zehn, eleven elf, twelve zwölf,
thirteen dreizehn, fourteen vierzehn, fifteen fünfzehn, sixteen sechzehn,
seventeen siebzehn, eighteen achtzehn, nineteen neunzehn
"""
_TENS = """
twenty zwanzig, thirty dreißig, forty vierzig, fifty fünfzig, sixty sechzig,
seventy siebzig, eighty achtzig, ninety neunzig
"""

_ENGLISH_ONES, _GERMAN_ONES = zip(
    *(pair.split() for pair in _ONES.split(",")), strict=True
)
_ENGLISH_TENS, _GERMAN_TENS = zip(
    *(pair.split() for pair in _TENS.split(",")), strict=True
)

MONTHS = {
    "January": "Januar",
    "February": "Februar",
    "March": "März",
    "April": "April",
    "May": "Mai",
    "June": "Juni",
    "July": "Juli",
    "August": "August",
    "September": "September",
    "October": "Oktober",
    "November": "November",
    "December": "Dezember",
}

_ENGLISH_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
_GERMAN_ORDINALS = {1: "ersten", 3: "dritten", 7: "siebten", 8: "achten"}


def english_cardinal(n: int) -> str:
    """`n` in words, 1 <= n <= 999: `three hundred and twenty-five`."""
    if n >= 100:
        hundreds = f"{_ENGLISH_ONES[n // 100 - 1]} hundred"
        if n % 100 == 0:
            return hundreds
        return f"{hundreds} and {english_cardinal(n % 100)}"
    if n < 20:
        return _ENGLISH_ONES[n - 1]
    tens = _ENGLISH_TENS[n // 10 - 2]
    return tens if n % 10 == 0 else f"{tens}-{_ENGLISH_ONES[n % 10 - 1]}"


def german_cardinal(n: int) -> str:
    """`n` in words, 1 <= n <= 999, units before tens.

    One is `ein`, as before a noun: 325 is `dreihundertfünfundzwanzig`.
    """
    if n >= 100:
        hundreds = f"{_GERMAN_ONES[n // 100 - 1]}hundert"
        return hundreds + (german_cardinal(n % 100) if n % 100 else "")
    if n < 20:
        return _GERMAN_ONES[n - 1]
    tens = _GERMAN_TENS[n // 10 - 2]
    return tens if n % 10 == 0 else f"{_GERMAN_ONES[n % 10 - 1]}und{tens}"


def english_ordinal(n: int) -> str:
    """The ordinal of 1 <= n <= 31: `twenty-first`."""
    head, hyphen, last = english_cardinal(n).rpartition("-")
    if last.endswith("y"):
        ordinal = last[:-1] + "ieth"
    else:
        ordinal = _ENGLISH_ORDINALS.get(last, last + "th")
    return head + hyphen + ordinal


def german_ordinal(n: int) -> str:
    """The ordinal of 1 <= n <= 31 in its weak dative: `dritten`."""
    if n in _GERMAN_ORDINALS:
        return _GERMAN_ORDINALS[n]
    return german_cardinal(n) + ("ten" if n < 20 else "sten")


def cardinal(n: int) -> tuple[str, str]:
    """`n` in words, as before a noun, 2 <= n <= 999 and n % 100 != 1."""
    return english_cardinal(n), german_cardinal(n)


def _german_hour(hour: int) -> str:
    return "eins" if hour == 1 else german_cardinal(hour)


def _minutes(n: int) -> tuple[str, str]:
    return ("a quarter", "Viertel") if n == 15 else cardinal(n)


def clock_time(hour: int, minute: int) -> tuple[str, str]:
    """A time of day in English and German.

    Germans count the half towards the coming hour, and the five minutes on
    either side of it from the half: 7.30 is `halb acht`, 7.25 is `fünf vor
    halb acht`.

    Args:
        hour: 1 to 12.
        minute: a multiple of five, 0 to 55.
    """
    coming = hour % 12 + 1
    english_hour = english_cardinal(hour)
    german_hour = _german_hour(hour)
    english_coming = english_cardinal(coming)
    german_coming = _german_hour(coming)
    if minute == 0:
        clock = german_cardinal(hour)
        return f"at {english_hour} o'clock", f"um {clock} Uhr"
    if minute == 30:
        return f"at half past {english_hour}", f"um halb {german_coming}"
    if minute < 30:
        past, nach = _minutes(minute)
        english = f"at {past} past {english_hour}"
        german = f"um {nach} nach {german_hour}"
    else:
        to, vor = _minutes(60 - minute)
        english = f"at {to} to {english_coming}"
        german = f"um {vor} vor {german_coming}"
    if minute in (25, 35):
        side = "vor" if minute == 25 else "nach"
        german = f"um fünf {side} halb {german_coming}"
    return english, german


def date(day: int, month: str) -> tuple[str, str]:
    """`on the third of May`, `am dritten Mai`."""
    return (
        f"on the {english_ordinal(day)} of {month}",
        f"am {german_ordinal(day)} {MONTHS[month]}",
    )


def price(euros: int, cents: int = 0) -> tuple[str, str]:
    """An amount of money; German has a decimal comma and a thousands point.

    Args:
        euros: at least 2; up to 999 is written in words if there are no
            cents.
        cents: 0 to 99.
    """
    if cents:
        return f"{euros}.{cents:02d} euros", f"{euros},{cents:02d} Euro"
    if euros > 999:
        grouped = f"{euros:,}"
        return f"{grouped} euros", f"{grouped.replace(',', '.')} Euro"
    return f"{english_cardinal(euros)} euros", f"{german_cardinal(euros)} Euro"


def year(n: int) -> tuple[str, str]:
    """`in 1987`, `im Jahr 1987`."""
    return f"in {n}", f"im Jahr {n}"
