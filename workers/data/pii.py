"""Personal data that a machine can recognise: addresses, numbers of phones, cards, accounts.

A filter for training text, not a guarantee: names and street addresses have no fixed form. Forms
with check digits are checked, so that a long number is no credit card by its length alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import AddressValueError, IPv6Address

PII_KINDS = (
    "e-mail address",
    "IBAN",
    "credit card number",
    "social security number",
    "IP address",
    "phone number",
)

# Every pattern starts where a run of its characters starts, so that long runs cost linear time.
_EMAIL = re.compile(
    r"(?<![\w.%+-])[A-Za-z0-9_%+-][\w.%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?![A-Za-z0-9])")
_CARD = re.compile(r"(?<![\d.,])(?<!\d[ -])[2-6]\d{3}(?:[ -]?\d){9,15}(?![ -]?\d)(?![.,]\d)")
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
    yield any(_luhn(match.group()) for match in _CARD.finditer(text))
    yield _SSN.search(text) is not None
    yield _ipv4(text) or any(_ipv6(match.group()) for match in _IPV6.finditer(text))
    yield any(_phone(match.group()) for match in _PHONE.finditer(text))


def _luhn(number: str) -> bool:
    digits = [int(c) for c in reversed(number) if c.isdigit()]
    doubled = (2 * d - 9 if d > 4 else 2 * d for d in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _iban(number: str) -> bool:
    """ISO 13616: the first four characters moved to the end, letters as 10 to 35, modulo 97."""
    compact = number.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _ipv4(text: str) -> bool:
    return any(
        not _VERSION.search(text, max(0, match.start() - 9), match.start())
        for match in _IPV4.finditer(text)
    )


def _ipv6(candidate: str) -> bool:
    groups = [group for group in candidate.split(":") if group]
    # "a[::2]" and "12:30" are code and time; an address has more to it
    if len(groups) < 2 or len("".join(groups)) < 4 or not any(c.isdigit() for c in candidate):
        return False
    try:
        IPv6Address(candidate)
    except AddressValueError:
        return False
    return True


def _phone(candidate: str) -> bool:
    return 8 <= sum(c.isdigit() for c in candidate) <= 15
