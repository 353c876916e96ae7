"""Recognise personal data: e-mail and IP addresses, phone, card and account numbers.

A filter for training text, not a guarantee: names and street addresses have no fixed form. Card
and account numbers must be written as people write them (in one piece, or in the usual groups)
and pass the checks of the `validators` library: check digits, issuers and their lengths. A number
within a calculation never counts as a card, social security or phone number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import AddressValueError, IPv6Address

import validators

PII_KINDS = (
    "e-mail address",
    "IBAN",
    "credit card number",
    "social security number",
    "IP address",
    "phone number",
)

# Every pattern matches only at the start of a run of its characters, so long runs take linear time.
_EMAIL = re.compile(
    r"(?<![\w.%+-])[A-Za-z0-9_%+-][\w.%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"
)
# in one piece, or in groups of four of which the last may be shorter
_IBAN = re.compile(
    r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[A-Z0-9]{11,30}|(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?)"
    r"(?![A-Za-z0-9])"
)
_CARD = re.compile(
    r"""(?<![\w.,$€£])(?<!\d[ -])(?:
        \d{14,16}
      | \d{4}([ -])\d{4}\1\d{4}\1\d{4}
      | \d{4}([ -])\d{6}\2\d{4,5}       # Diners Club, American Express
    )(?![ -]?\d)(?!\w|[.,]\d)""",
    re.VERBOSE,
)
_ISSUERS = (
    *(validators.visa, validators.mastercard, validators.amex, validators.discover),
    *(validators.diners, validators.jcb, validators.unionpay, validators.mir),
)
# what is next to a number within a calculation, as in "5-4=", "<<5*4", "$5-4"
_OPERATOR_BEFORE = re.compile(r"(?:(?<!\w)[\d.,]*\d[ ]?[*+/=\u00d7\u00f7^][ ]?|<<|>>|[$€£])[($]*$")
_OPERATOR_AFTER = re.compile(
    r"\)*[ ]?(?:[*+\u00d7\u00f7^][ ]?[($]?\d|>>|<<|%(?!\w)|=[ ]?(?:<<|[$€£?-]|\d))"
)
_LOOK_BACK = 24  # characters
_SSN = re.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = re.compile(rf"(?<![\w.])(?:{_OCTET}\.){{3}}{_OCTET}(?![\w]|\.\d)")
_VERSION = re.compile(r"(?:\bversion|\brelease|\bv\.?)\s?$", re.IGNORECASE)  # "version 1.2.3.4"
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]{6,39}(?![\w:])")
_PHONE = re.compile(
    r"""(?<![\w.,+-])(?<!\d[ ])(?:
        \+[1-9]\d{0,2}(?:[ .-]?\(?\d{1,5}\)?){2,6}        # +44 20 7946 0958
      | (?:1[ .-])?\([2-9]\d{2}\)[ ]?\d{3}[ .-]\d{4}      # (212) 555-0100
      | (?:1[ .-])?[2-9]\d{2}([ .-])\d{3}\1\d{4}          # 212-555-0100
      | 0\d{2,4}[ /-]\d{3,4}(?:[ -]?\d{2,4}){1,2}         # 020 7946 0958
    )(?![\w-]|[.,]\d)""",
    re.VERBOSE,
)


def find_pii(text: str) -> int:
    """Index into PII_KINDS of the first kind that `text` holds; -1 when it holds none."""
    if not any(kind in text for kind in "@0123456789:"):
        return -1
    return next((i for i, found in enumerate(_checks(text)) if found), -1)


def _checks(text: str) -> Iterator[bool]:
    yield "@" in text and _EMAIL.search(text) is not None
    yield any(_iban(match.group()) for match in _IBAN.finditer(text))
    yield any(_card(match.group()) for match in _numbers(_CARD, text))
    yield any(_numbers(_SSN, text))
    yield _ipv4(text) or any(_ipv6(match.group()) for match in _IPV6.finditer(text))
    yield any(_phone(match.group()) for match in _numbers(_PHONE, text))


def _numbers(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Matches that are not part of a calculation."""
    for match in pattern.finditer(text):
        before = _OPERATOR_BEFORE.search(text, max(0, match.start() - _LOOK_BACK), match.start())
        if before is None and _OPERATOR_AFTER.match(text, match.end()) is None:
            yield match


def _card(number: str) -> bool:
    digits = number.replace(" ", "").replace("-", "")
    return any(issuer(digits) is True for issuer in _ISSUERS)


def _iban(number: str) -> bool:
    """Whether the groups, or the first few, are an IBAN: words in capitals may follow it."""
    groups = number.split(" ")
    ends = range(1, len(groups) + 1)
    return any(validators.iban("".join(groups[:end])) is True for end in ends)


def _ipv4(text: str) -> bool:
    return any(
        not _VERSION.search(text, max(0, match.start() - 9), match.start())
        for match in _IPV4.finditer(text)
    )


def _ipv6(candidate: str) -> bool:
    groups = [group for group in candidate.split(":") if group]
    # too short for an address, as "::2" of code and "12:30"
    if len(groups) < 2 or len("".join(groups)) < 4 or not any(c.isdigit() for c in candidate):
        return False
    try:
        IPv6Address(candidate)
    except AddressValueError:
        return False
    return True


def _phone(candidate: str) -> bool:
    return 8 <= sum(c.isdigit() for c in candidate) <= 15
