"""Hand-picked texts: what is personal data, and what only looks like it."""

from __future__ import annotations

import pytest

from workers.data.filters.personal_data import PII_KINDS, find_pii


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to jane.doe+news@mail.example.co.uk today", "e-mail address"),
        ("<a_b%c@x-y.org>", "e-mail address"),
        ("call +44 20 7946 0958 now", "phone number"),
        ("call +1 (212) 555-0100", "phone number"),
        ("call +4930123456", "phone number"),
        ("my number is (212) 555-0100.", "phone number"),
        ("1-800-555-0199, any time", "phone number"),
        ("212.555.0100", "phone number"),
        ("London 020 7946 0958", "phone number"),
        ("Berlin 030/123456", "phone number"),
        ("ping 8.8.8.8", "IP address"),
        ("from 192.168.0.1.", "IP address"),
        ("host 2001:0db8:85a3:0000:0000:8a2e:0370:7334", "IP address"),
        ("host fe80::1ff:fe23:4567:890a!", "IP address"),
        ("card 4111 1111 1111 1111 exp", "credit card number"),  # Visa's own example
        ("card 5500-0000-0000-0004", "credit card number"),  # Mastercard's
        ("340000000000009", "credit card number"),  # American Express's
        ("3782 822463 10005", "credit card number"),  # the same issuer's groups
        ("5555 5555 5555 4444, exp. 04/27", "credit card number"),
        ("card1=6011111111111117&cvv=123", "credit card number"),  # Discover
        ("<td>3530111333300000</td>", "credit card number"),  # JCB
        ("Diners 3056-930902-5904", "credit card number"),
        ("**4242424242424242**", "credit card number"),
        ("2223003122003222.", "credit card number"),  # Mastercard's newer range
        ("AT61 1904 3002 3457 3201 EUR 5", "IBAN"),  # words in capitals stand behind
        ("FR14 2004 1010 0505 0001 3M02 606", "IBAN"),
        ("iban:NO9386011117947", "IBAN"),
        ("to DE89 3704 0044 0532 0130 00 please", "IBAN"),  # the registry's example
        ("GB82WEST12345698765432", "IBAN"),
        ("SSN 078-05-1120", "social security number"),  # the one printed in wallets in 1938
    ],
)  # fmt: skip
def test_personal_data(text: str, kind: str) -> None:
    assert PII_KINDS[find_pii(text)] == kind
    assert PII_KINDS[find_pii(f"Some words.\n{text}\nAnd more.")] == kind


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no digit at all, but a@b and @handle and x @ y.com",
        "from 1999 to 2024, and 2019-2020",
        "on 2020-12-31 at 12:30:45",
        "31.12.2020 and 12/31/2020",
        "it costs $1,234,567.89 or 1.234.567,89 EUR",
        "19.99, 100.00 and 0.1234567890123456",
        "version 1.2.3.4 of the library, v10.0.0.1",
        "pip install torch==2.13.0",
        "section 1.2.3.4.5 and 300.1.2.3",
        "256.256.256.256",
        "4111 1111 1111 1112 fails its check digit",
        "1234567890123456",  # no issuer begins with 1
        "DE89 3704 0044 0532 0130 01",  # one digit off
        "000-12-3456, 666-12-3456, 900-12-3456, 123-00-4567, 123-45-0000",
        "123-45-67890 and 1-123-45-6789-0",
        "std::vector<int> and a[::2] and dead::beef",
        "00:1A:2B:3C:4D:5E",  # a network card
        "She has 16 - 3 - 4 = <<16-3-4=9>>9 eggs, 9 * 2 = $18",
        "2, 4, 8, 16, 32, 64, 128, 256, 512, 1024",
        "population 8,336,817 and 67 081 000",
        "ISBN 978-3-16-148410-1",
        "200*2000=$<<200*2000=400000>>400,000",
        "$<<2000000-400000=1600000>>1,600,000",  # 13 digits and a right check digit
        "$<<250000-100000-60000=90000.0>>90,000",
        "2000 4000 0000 0008 of no issuer",  # the check digit is right
        "4000-000000-00001 and 4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",  # not the groups of a card
        "4111 1111-1111 1111",
        "2 * 4111111111111111 = 8222222222222222",
        "2*4111111111111111",
        "4111111111111111*2",
        "$4111111111111111",
        "0x4111111111111111 and a4111111111111111 and 4111111111111111L",
        "550e8400-e29b-41d4-a716-446655440000",
        "1700000000000 and 20261128104133123 and 2026-11-28T10:41:33.123456",
        "500-200-1000=<<500-200-1000=-700>>-700",
        "$900-300-1000",
        "<<500-20-1000=-520>>",  # the form of a social security number
        "3 * 900-300-1000",
        "AB12 3456 7890 1234",  # a product key
        "DE89 3704 0044 0532",
        "100-200-300",
        "order 12345678",
    ],
)
def test_near_misses(text: str) -> None:
    assert find_pii(text) == -1


@pytest.mark.parametrize("unit", ["a", "1", "a.", "1 ", "+1", "0-", ":", "A1", "a@", "1.", "@"])
def test_long_runs_take_linear_time(unit: str) -> None:
    find_pii(unit * (200_000 // len(unit)))  # minutes where a pattern backtracks
