"""Numbers that name a person or an account, told from other numbers by their check digits.

Each function takes a match's digits (letters in capitals) without separators.
"""

from __future__ import annotations

import calendar
from collections.abc import Sequence

_VERHOEFF_D = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 4, 0, 6, 7, 8, 9, 5), (2, 3, 4, 0, 1, 7, 8, 9, 5, 6),
    (3, 4, 0, 1, 2, 8, 9, 5, 6, 7), (4, 0, 1, 2, 3, 9, 5, 6, 7, 8), (5, 9, 8, 7, 6, 0, 4, 3, 2, 1),
    (6, 5, 9, 8, 7, 1, 0, 4, 3, 2), (7, 6, 5, 9, 8, 2, 1, 0, 4, 3), (8, 7, 6, 5, 9, 3, 2, 1, 0, 4),
    (9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
)  # fmt: skip
_VERHOEFF_P = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)
_FINNISH = "0123456789ABCDEFHJKLMNPRSTUVWXY"


def luhn(digits: str) -> bool:
    """Return whether the last digit is right by Luhn (ISO/IEC 7812-1), and not all are 0."""
    total = 0
    for i, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + i % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0 and digits.strip("0") != ""


def verhoeff(digits: str) -> bool:
    """Return whether the last digit is right by Verhoeff (1969), as in Aadhaar numbers."""
    check = 0
    for i, digit in enumerate(reversed(digits)):
        value = int(digit)
        for _ in range(i % 8):
            value = _VERHOEFF_P[value]
        check = _VERHOEFF_D[check][value]
    return check == 0


def day_and_month(day: str, month: str) -> bool:
    """Return whether a leap year has this day."""
    return 1 <= int(month) <= 12 and 1 <= int(day) <= calendar.monthrange(2000, int(month))[1]


def norwegian(digits: str) -> bool:
    """Return whether 11 digits are a fødselsnummer or D-number (day + 40): two digits modulo 11."""
    day = f"{int(digits[:2]) % 40:02d}" if int(digits[:2]) > 40 else digits[:2]
    return (
        day_and_month(day, digits[2:4])
        and _weighted(digits, (3, 7, 6, 1, 8, 9, 4, 5, 2, 1)) % 11 == 0
        and _weighted(digits, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0
    )


def swedish(digits: str) -> bool:
    """Return whether YYMMDDNNNC or YYYYMMDDNNNC is a personnummer (day + 60: samordningsnummer)."""
    digits = digits[-10:]
    day = f"{int(digits[4:6]) % 60:02d}" if int(digits[4:6]) > 60 else digits[4:6]
    return day_and_month(day, digits[2:4]) and luhn(digits)


def danish(digits: str) -> bool:
    """Return whether DDMMYYNNNN can be a CPR number; since 2007 its check digit binds no more."""
    return day_and_month(digits[:2], digits[2:4])


def finnish(code: str) -> bool:
    """Return whether DDMMYY, a century sign, NNN and a letter or digit is a henkilötunnus.

    The century sign is part of it: `code` is as written.
    """
    number = int(code[:6] + code[7:10])
    return day_and_month(code[:2], code[2:4]) and _FINNISH[number % 31] == code[10]


def german_tax(digits: str) -> bool:
    """Return whether 11 digits are a Steuer-Identifikationsnummer (ISO/IEC 7064, MOD 11,10)."""
    product = 10
    for digit in digits[:10]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return digits[0] != "0" and (11 - product) % 10 == int(digits[10])


def iban(code: str) -> bool:
    """Return whether the check digits of an account number are right (ISO 13616, modulo 97)."""
    turned = code[4:] + code[:4]
    return 15 <= len(code) <= 34 and int("".join(str(int(c, 36)) for c in turned)) % 97 == 1


def _weighted(digits: str, weights: Sequence[int]) -> int:
    return sum(int(d) * w for d, w in zip(digits, weights, strict=False))
