"""Forms and check digits, against python-stdnum and published test numbers."""

import json
import random
import re

from stdnum import iban
from stdnum import luhn as judge
from typer.testing import CliRunner

from lmkit.commands import main  # noqa: F401 - it adds the commands
from lmkit.commands.app import app
from lmkit.data.quality.personal import IBAN, IBAN_LENGTHS, find_personal, luhn, mod_97, without_personal

# Numbers that Stripe and PayPal publish for tests, IBANs of the SWIFT registry, numbers of Ofcom and NANP for drama.
CARDS = ["4111 1111 1111 1111", "5555555555554444", "378282246310005", "6011-1111-1111-1117", "30569309025904"]
IBANS = [
    "DE89 3704 0044 0532 0130 00",
    "GB29NWBK60161331926819",
    "NO93 8601 1117 947",
    "MT84MALT011000012345MTLCAST001S",
]
PHONES = ["+44 20 7946 0958", "(202) 555-0143", "202-555-0143", "+1 202-555-0143"]
OTHERS = {"e-mail": ["jo.doe+x@mail.example.org"], "IP address": ["8.8.8.8", "2001:4860:4860::8888"]}
NOT = [
    "4111 1111 1111 1112",
    "DE88370400440532013000",
    "10.0.0.1",
    "999.1.1.1",
    "a@b",
    "12:30:45",
    "1.2.3",
    "ISBN 978-0-306",
]


def test_check_digits_and_lengths_are_those_of_python_stdnum():
    rng = random.Random(0)
    for _ in range(500):
        digits = "".join(rng.choices("0123456789", k=rng.randint(13, 19)))
        assert luhn(digits) == judge.is_valid(digits)
        number = "FI" + digits.ljust(16, "7")[:16]
        for valid in (number, number[:2] + iban.calc_check_digits(number) + number[4:]):
            assert (bool(IBAN.fullmatch(valid)) and mod_97(valid)) == iban.is_valid(valid, check_country=False)
    for country, length in IBAN_LENGTHS.items():
        form = iban._ibandb.info(country)[0][1]["bban"]
        assert length == 4 + sum(int(n) for n in re.findall(r"(\d+)!", form)), country


def personal_data(text):
    return [(kind, text[begin:end]) for kind, begin, end in find_personal(text)]


def test_published_numbers_are_seen_in_a_sentence_and_nothing_else_is():
    for kind, strings in {"credit card": CARDS, "IBAN": IBANS, "telephone": PHONES, **OTHERS}.items():
        for string in strings:
            assert personal_data(f"Ask {string}, or PAID. Then {string} 5 GO.")[:1] == [(kind, string)], string
            assert {k for k, _ in personal_data(f"Ask {string}, or PAID. Then {string}.")} == {kind}, string
    both = "202-555-0143@mail.example.org"  # which is one thing, though a telephone number stands in it
    assert personal_data(both) == [("e-mail", both)]
    for string in NOT:
        assert personal_data(f"Ask {string}, then go.") == [], string
    strings = [string for kind in ([*CARDS], IBANS, PHONES, *OTHERS.values()) for string in kind]
    text, kinds = without_personal("; ".join(["Ask", *strings, *NOT, "go."]))
    assert not [string for string in strings if string in text] and all(string in text for string in NOT)
    assert kinds == {"credit card": 5, "IBAN": 4, "telephone": 4, "e-mail": 1, "IP address": 2}
    assert [text.count(f"[{kind}]") for kind in kinds] == list(kinds.values())


def test_the_command_counts_and_redacts(tmp_path):
    rows = [
        {"body": "mail annabel@mail.example.org or bob@mail.example.org"},
        {"body": f"pay {IBANS[0]}"},
        {"body": "hello"},
    ]
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = CliRunner().invoke(app, ["check", str(file), "--personal", "--text", "body", "--json"])
    got = json.loads(ran.stdout)
    assert got["counts"] == {"documents": 3, "e-mail": 2, "telephone": 0, "IBAN": 1, "credit card": 0, "IP address": 0}
    assert got["shares"]["with any"]["value"] == 2 / 3 and got["blind_spots"]
    assert not [text for text in ("annabel", "bob", "3704") if text in ran.stdout.replace(str(tmp_path), "")]
