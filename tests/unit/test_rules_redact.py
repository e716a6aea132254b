# ruff: noqa: E501, S105 - one invented value beside the next
"""Redaction: what is found and what must not be, and that no text takes long. All values are invented or reserved for examples."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.contract import MoelineError
from jobs.stages.rules import redact as r
from jobs.stages.rules.redact import KINDS, iban, luhn, redact

TOKEN = "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"  # 36 letters and digits
KEY = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQ+A7bq1XvKj0Y0n+l2Wc8sQ\n" * 3 + "-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to Ann.Lee+news@mail.some-firm.co.uk.", "write to <EMAIL>."),
        ("<mailto:a_b@firm.photography.org>", "<mailto:<EMAIL>>"),
        ("two: x@firm.com,y@firm.de;", "two: <EMAIL>,<EMAIL>;"),
        ("host 81.47.200.13:8080", "host <IP_ADDRESS>:8080"), ("http://185.199.108.153/a", "http://<IP_ADDRESS>/a"),
        ("peer 2a00:1450:4001:82b::200e up", "peer <IP_ADDRESS> up"), ("[2606:4700::6812:1a2b]", "[<IP_ADDRESS>]"),
        ("call +49 30 901820 now", "call <PHONE> now"), ("+44 (0)20 7946 0018", "<PHONE>"), ("+14155550132", "<PHONE>"), ("+33.1.70.18.99.00", "<PHONE>"),
        ("(415) 555-0132", "<PHONE>"), ("415-555-0132.", "<PHONE>."), ("415.555.0132", "<PHONE>"),
        ("card 4111 1111 1111 1111", "card <CARD>"), ("5500-0055-5555-5559", "<CARD>"), ("378282246310005", "<CARD>"), ("3782 822463 10005", "<CARD>"),
        ("IBAN GB82 WEST 1234 5698 7654 32 please", "IBAN <IBAN> please"), ("DE89370400440532013000", "<IBAN>"),
        ("NL91 ABNA 0417 1643 00.", "<IBAN>."), ("NO93 8601 1117 947", "<IBAN>"),
        (f"x\n{KEY}\ny", "x\n<SECRET>\ny"),
        (KEY.replace("RSA ", "OPENSSH "), "<SECRET>"),
        (KEY.replace("-----END RSA PRIVATE KEY-----", "and then the text goes on."), "<SECRET>\nand then the text goes on."),
        ("id AKIA" + "2E4G6I8K0M2O4Q6S", "id <SECRET>"), (f"ghp_{TOKEN}", "<SECRET>"), (f"github_pat_{TOKEN}_{TOKEN}", "<SECRET>"), (f"glpat-{TOKEN[:20]}", "<SECRET>"),
        (f"xoxb-123456789012-{TOKEN}", "<SECRET>"), ("AIza" + TOKEN[:35], "<SECRET>"), (f"sk-proj-{TOKEN}", "<SECRET>"), (f"sk-ant-api03-{TOKEN}", "<SECRET>"),
        (f"sk_live_{TOKEN}", "<SECRET>"), (f"eyJ{TOKEN}.eyJ{TOKEN}.{TOKEN}", "<SECRET>"), ("hf_" + "aBcDeFgHiJ" * 3 + "kLmN", "<SECRET>"),
        (f'aws_secret_access_key = "{TOKEN}/+aB"', 'aws_secret_access_key = "<SECRET>"'), (f"AWS_SECRET_KEY: {TOKEN}/+aB", "AWS_SECRET_KEY: <SECRET>"),
    ],
)  # fmt: skip
def test_a_value_becomes_the_placeholder_of_its_kind(text, expected):
    found, counts = redact(text)
    assert found == expected
    assert sum(counts.values()) == expected.count("<EMAIL>") + expected.count("<SECRET>") + sum(
        expected.count(p) for p in ("<IP_ADDRESS>", "<PHONE>", "<CARD>", "<IBAN>")
    )
    assert redact(found) == (found, dict.fromkeys(KINDS, 0))


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3.4", "pkg==81.47.200.13", "Chrome/91.0.4472.124", "10.0.0.1 127.0.0.1 192.168.10.20 172.16.200.100 255.255.255.255 0.0.0.0",
        "OID 1.3.6.1.4.1.311.21.20", "v81.47.200.13", "81.47.200.13-beta", "999.47.200.13", "12:34:56", "std::vector::begin", "2001:db8::8a2e:370:7334", "fe80::1",
        "2019:: 2024-11-25T12:30:45.123456+01:00", "a::b::c", "3:14:15:9:26:5:35:8",
        "550e8400-e29b-41d4-a716-446655440000", "d41d8cd98f00b204e9800998ecf8427e", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "4111111111111111a", "0.4111111111111111", "4111111111111111.5", "4111 1111 1111 1112", "4111-1111 1111 1111", "1234567812345670",
        "41 11 11 11 11 11 11 11", "id 4111111111111111000", "1700000000123456", "1600000000000000000", "4220315081820346526",
        "x@self.weight", "q@k.transpose(0, 1)", "a @ b.T", "@pytest.mark.skip", "git@github.com:org/repo", "user@example.com", "root@localhost", "a@b", "@", "a@.com",
        "me@host.invalid", "x@y.T.sum()", "w@x.to(device)",
        "+1.5", "+12345678", "a+14155550132", "1e+10", "@@ -1,25 +1,27 @@", "+0100", "2024-11-25 10:20:30", "123-45-6789", "252.227-7013", "115-555-0132", "100-200-3000",
        "+1  2  3  4  5  6", "1415-555-0132", "415-555-01324", "3.415.555.0132", "ISBN 978-3-16-148410-0",
        "GB82 WEST 1234 5698 7654 33", "GB82WEST123456987654321", "XX89370400440532013000", "ACBA DCF6 BD1C A206 67AB CD54 FCE3 D964",
        "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----", "looks for '-----BEGIN RSA PRIVATE KEY-----' in a text that goes on and on and on and on and on",
        "-----BEGIN CERTIFICATE-----\n" + "MIIEpAIBAAKCAQEA7bq1XvKj0Y0n4l2Wc8sQ\n" * 3 + "-----END CERTIFICATE-----",
        "sk-estimator-doc-link-fitted-and-more", "sk-learn", "#sk-container-id-1", "AKIA", "xoxb-", "eyJ.eyJ.x", "my_ghp_" + TOKEN, "password = 'secret'",
    ],
)  # fmt: skip
def test_what_only_looks_like_it_is_left_alone(text):
    assert redact(text) == (text, dict.fromkeys(KINDS, 0))


def test_only_the_named_kinds_are_replaced_and_unknown_ones_refused():
    text = "a@firm.com 81.47.200.13"
    assert redact(text, ("ip",)) == ("a@firm.com <IP_ADDRESS>", {"ip": 1})
    assert redact(text, ()) == (text, {})
    with pytest.raises(MoelineError, match=r"'mail'\. What can be redacted: card, email, iban, ip, phone, secret"):
        redact(text, ("email", "mail"))


def test_luhn_and_modulo_97_notice_every_wrong_digit():
    for number, holds in (("4111111111111111", luhn), ("DE89370400440532013000", iban), ("GB82WEST12345698765432", iban)):
        assert holds(number)
        for at, digit in enumerate(number):
            if digit.isdigit():
                assert not any(holds(number[:at] + other + number[at + 1 :]) for other in "0123456789" if other != digit)


@given(st.text(alphabet="a1@.-+ ()4\nGB<E:/=", max_size=200))
def test_redacting_twice_changes_nothing_more(text):
    once, _ = redact(text)
    assert redact(once)[0] == once


HOSTILE = [
    "a", "@", "a@", "@a", ".", "a.", "1", "1.", "1 ", "1-", "+1", "+1 ", "+", "(", "(2", "(234) ", "234-", "4", "4 4", "a@a.", "a@a.com-", "A", "AB12", "AB12 ", "GB82 WEST ",
    ":", "2:", "2000:", "2000::", "::", "-", "-----", "-----BEGIN ", "-----BEGIN PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----\n" + "A" * 40 + "\n",
    "-----BEGIN A A A A PRIVATE KEY-----\\n", "eyJ", "eyJaaaaaaaaaa.", "eyJaaaaaaaaaa.eyJ", "sk-", "sk-proj-", "xoxb-", "ghp_", "github_pat_", "AIza", "SG.", "SG.a", "ya29.",
    "aws_secret_key = ", "secret", "secret\t", "a-", "%", "é@é.com", "\u0661.", "a@" + "b." * 8,
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE, ids=range(len(HOSTILE)))
def test_a_megabyte_of_hostile_text_takes_linear_time(piece):
    def seconds(n_bytes: int) -> float:
        text = piece * (n_bytes // len(piece))
        start = time.process_time()
        redact(text)
        return time.process_time() - start

    assert seconds(1_000_000) < 1.5


def test_every_kind_has_a_placeholder_that_no_kind_takes_for_a_value():
    for kind, find in KINDS.items():
        assert find("<EMAIL> <IP_ADDRESS> <PHONE> <CARD> <IBAN> <SECRET>")[1] == 0, kind
    assert set(r.kinds(KINDS)) == {"secret", "email", "iban", "card", "ip", "phone"}
