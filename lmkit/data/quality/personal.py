"""Personal data that has a form: e-mail addresses, telephone numbers, IBANs, credit cards and IP addresses."""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]+@(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,}(?![\w@])")
CARD = re.compile(r"(?<![\w.-])[2-6](?:[ -]?\d){12,18}(?![\w-])")
IP = re.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4})(?![\w:]|\.\d)")
PHONE = re.compile(
    r"(?<![\w+.])(?:\+[1-9]\d{0,2}(?:[ .-]?\(?\d{1,5}\)?){2,6}|\(?[2-9]\d{2}\)?[ .-][2-9]\d{2}[ .-]\d{4})(?![\w-]|\.\d)"
)
# The IBAN registry of SWIFT: the length of an IBAN by its country.
_REGISTRY = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29"
    " ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20"
    " LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29"
    " PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20"
    " YE30"
)
IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in _REGISTRY.split()}
IBAN = re.compile(
    r"(?<!\w)(?:" + "|".join(rf"{c}\d\d(?: ?[A-Z0-9]){{{n - 4}}}" for c, n in IBAN_LENGTHS.items()) + r")(?!\w)"
)


def luhn(digits: str) -> bool:
    """Returns whether the last digit is the check digit of the others (ISO/IEC 7812-1)."""
    doubled = [divmod(2 * int(digit), 10) for digit in digits[-2::-2]]
    return (sum(map(int, digits[::-2])) + sum(tens + ones for tens, ones in doubled)) % 10 == 0


def mod_97(iban: str) -> bool:
    """Returns whether the check digits of an IBAN are right: the numbers of its letters and digits, with the first four
    characters at the end, are 1 modulo 97 (ISO 13616)."""
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97 == 1


def _public(address: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(address).is_global
    return False


def _digits(string: str) -> str:
    return re.sub(r"\D", "", string)


FORMS: dict[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {  # each with what the string must also fulfil
    "e-mail": (EMAIL, lambda _: True),
    "IBAN": (IBAN, lambda string: mod_97(string.replace(" ", ""))),
    "credit card": (CARD, lambda string: luhn(_digits(string))),
    "IP address": (IP, _public),
    "telephone": (PHONE, lambda string: 8 <= len(_digits(string)) <= 15),
}


def find_personal(text: str) -> list[tuple[str, int, int]]:
    """Returns (kind, begin, end) of the personal data in a text. A place counts once, as the first kind that it
    fits."""
    taken, places = bytearray(len(text)), []
    for kind, (form, check) in FORMS.items():
        for match in form.finditer(text):
            begin, end = match.span()
            if not any(taken[begin:end]) and check(match[0]):
                taken[begin:end] = b"\1" * (end - begin)
                places.append((kind, begin, end))
    return places


def without_personal(text: str) -> tuple[str, Counter[str]]:
    """Returns the text with [kind] in place of personal data, and how often there is each kind."""
    places = sorted(find_personal(text), key=lambda place: place[1])
    pieces, at = list[str](), 0
    for kind, begin, end in places:
        pieces += [text[at:begin], f"[{kind}]"]
        at = end
    return "".join([*pieces, text[at:]]), Counter(kind for kind, _, _ in places)
