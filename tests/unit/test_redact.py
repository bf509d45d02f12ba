"""What a snapshot's redactor takes out, and what it leaves: both sides of each line it draws."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from kedge_agent.diagnose.allowed import LEFT_OUT, allowed_settings
from kedge_agent.diagnose.encoded import NO_FORMS, encoded_forms
from kedge_agent.diagnose.redact import Redactor
from kedge_agent.diagnose.shapes import MASK
from kedge_agent.settings import parse_settings

PRIVATE_KEY = (
    "-----BEGIN OPENSSH PRIVATE KEY-----\n"
    "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\n"
    "QyNTUxOQAAACCf9mWk0Pq6y1eNn2rQ7uJ8k3sT5vXz1bCdEfGhIjKlMwAAAJgqH0bZKh9G\n"
    "-----END OPENSSH PRIVATE KEY-----"
)
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9mWk0Pq6y1eNn2rQ7uJ8k3sT5vXz1bCdEfGhIjKlMn"
DIGEST = "4f2a6c" * 10 + "4f2a"


def masked(text: str, **known: list[str]) -> str:
    redactor = Redactor(known)
    redactor.learn(text)
    return redactor.text(text, "agent.log")


def masked_document(body: Any, **known: list[str]) -> Any:
    redactor = Redactor(known)
    redactor.learn(body)
    return redactor.document(body, "facts.json")


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("DB_PASSWORD=hunter2Xy9", "hunter2Xy9"),
        ('"password": "two words 77"', "two words 77"),
        ("config {'api_key': 'k-889900aabb'}", "k-889900aabb"),
        (r"said {\"client_secret\": \"esc4ped-value\"}", "esc4ped-value"),
        ("run --access-token t0kenOnTheLine now", "t0kenOnTheLine"),
        ("sshpass -p Ssh9pass scp x y", "Ssh9pass"),
        ("the password for bob is Tr0ub4dor&3", "Tr0ub4dor&3"),
        ("Authorization: Bearer abc.DEF-123~x", "abc.DEF-123~x"),
        ("proxy-authorization: Basic Ym9iOmh1bnRlcjI=", "Ym9iOmh1bnRlcjI="),
        ('Authorization: Digest username="bob", response="6629fae49393a05397450978507c4ef1"', "6629fae49393a053"),
        ("Cookie: session=d34db33f; theme=dark", "d34db33f"),
        ("sent bearer AbCd1234EfGh", "AbCd1234EfGh"),
        ("GET https://bob:pa55-w0rd@store/", "pa55-w0rd"),
        ("clone https://0123456789abcdefghij@git.acme.test/x", "0123456789abcdefghij"),
        ("GET /blob?se=2026&sig=Zm9vYmFyYmF6", "Zm9vYmFyYmF6"),
        ("wpa psk=Blue-Whale-42", "Blue-Whale-42"),
        ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dBjftJeZ4CVPmB92K27uhbUJU1p1r", "dBjftJeZ4CVPmB92K27uhbUJU1p1r"),
        ("id AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
        ("aws wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
        ("gcp AIzaSyA1234567890abcdefghijklmnopqrstuv", "AIzaSyA1234567890abcdefghijklmnopqrstuv"),
        ("gh ghp_16C7e42F292c6912E7710c838347Ae178B4a", "ghp_16C7e42F292c6912E7710c838347Ae178B4a"),
        ("hf hf_abcdefghijklmnopqrstuvwxyzABCDEFGH", "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"),
        ("ngc nvapi-abcdefghijklmnopqrstuvwxyz0123456789", "nvapi-abcdefghijklmnopqrstuvwxyz0123456789"),
        ("slack xoxb-123456789012-abcdefghijkl", "xoxb-123456789012-abcdefghijkl"),
        ("encryption key = Q29ycmVjdEhvcnNl", "Q29ycmVjdEhvcnNl"),
        ("bare 9Xk2Lq7Vb4Nw1Zt8Rf3Yp6Hd0Jm5Gc2Sa", "9Xk2Lq7Vb4Nw1Zt8Rf3Yp6Hd0Jm5Gc2Sa"),
        (f"key:\n{PRIVATE_KEY}\nafter", "QyNTUxOQAAACCf9mWk0Pq6y1eNn2rQ7uJ8k3sT5vXz1bCdEfGhIjKlMwAAAJgqH0bZKh9G"),
        ("cut:\n" + PRIVATE_KEY[:150], "b3BlbnNzaC1rZXktdjE"),
    ],
)
def test_a_secret_is_masked_whatever_its_shape(text: str, secret: str) -> None:
    out = masked(text)

    assert secret in text
    assert secret not in out
    assert "<secret-" in out


@pytest.mark.parametrize(
    ("text", "kind", "private"),
    [
        ("from 192.168.55.1 port 22", "ip", "192.168.55.1"),
        ("10.0.0.5:8000 refused", "ip", "10.0.0.5"),
        ("eth0_172.16.3.4 is up.", "ip", "172.16.3.4"),
        ("route 10.1.2.0/24 dev eth0", "ip", "10.1.2.0"),
        ("at fe80::3e6d:66ff:fe12:3456%wlan0", "ip", "fe80::3e6d:66ff:fe12:3456"),
        ("at [2001:db8:0:1:1:1:1:1]:443", "ip", "2001:db8:0:1:1:1:1:1"),
        ("wlan0 3C:6D:66:12:34:56 up", "mac", "3C:6D:66:12:34:56"),
        ("wlan0 3c-6d-66-12-34-56 up", "mac", "3c-6d-66-12-34-56"),
        ("mail to ann.lee+ops@plant7.example.com.", "email", "ann.lee+ops@plant7.example.com"),
        ("no route to nas.plant7.internal", "host", "nas.plant7.internal"),
        ("GET http://cam-7:8080/x", "host", "cam-7"),
        ("/home/annlee/model.onnx", "user", "annlee"),
        ("session opened for user annlee(uid=1000)", "user", "annlee"),
        (f"{PUBLIC_KEY} ann at home", "comment", "ann at home"),
        ('ssid="Plant Seven"', "ssid", "Plant Seven"),
        ("GPU-1a2b3c4d-1111-2222-3333-444455556666", "id", "1a2b3c4d-1111"),
    ],
)
def test_addresses_and_names_are_masked(text: str, kind: str, private: str) -> None:
    out = masked(text)

    assert private not in out
    assert f"<{kind}-1>" in out


@pytest.mark.parametrize(
    "text",
    [
        "engine of TensorRT 10.3.0.30 on CUDA 12.6.68.1",
        "built by TensorRT for RTX 1.7.1.116, header: tensorrt-rtx 1.7.1.116",
        '"runtime_version": "10.3.0.30"',
        "tensorrt==10.3.0.30 and tensorrt-10.3.0.30-cp310-none-linux_aarch64.whl",
        "/usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0.30",
        "libnvinfer10 10.3.0.30-1+cuda12.5 arm64",
        "version 10.13.3.9",
        "oid 1.3.6.1.4.1.8072 is no address, 10.300.1.1 neither",
        "127.0.0.1:8000, ::1 and 255.255.255.0 are everybody's",
        "12:34:56 at 0000:01:00.0, std::vector, ns::bad",
        f"release {DIGEST} is live",
        f"cache key: {DIGEST}",
        "signed by SHA256:n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg",
        PUBLIC_KEY,
        "node MatMul_12_QuantizeLinear_BatchNormalization_7 in backbone/layer4/Conv2d_3x3/Relu6",
        "_ZNK8nvinfer119IEngineInspector20getLayerInformationEi",
        "token: true, tokens=128, password: null",
        "    key = head.file, head.frame",
        "    return {key: plain(each) for key, each in value.items()}",
        "getty@tty1.service, kedge-agent.service, ssh-ed25519-cert-v01@openssh.com",
        "see https://docs.nvidia.com/deeplearning and https://github.com/onnx/onnx",
        "/home/nvidia/model.onnx for user root",
        "b3a3f6a2-6d1b-4a5e-9d3c-0f2e1d4c5b6a",
        "Sensor temperature.cpu at 51.5, load.gpu 0.97",
    ],
)
def test_evidence_stays(text: str) -> None:
    assert masked(text) == text


def test_signatures_are_public() -> None:
    body = base64.b64encode(bytes(range(7, 247))).decode()
    lines = "\n".join(body[at : at + 70] for at in range(0, len(body), 70))
    signature = f"-----BEGIN SSH SIGNATURE-----\n{lines}\n-----END SSH SIGNATURE-----\n"

    assert masked(signature) == signature
    assert masked_document({"signature": signature}) == {"signature": signature}


def test_a_text_that_is_harmless_under_one_key_is_secret_everywhere_where_another_says_so() -> None:
    assert masked_document({"note": "whale 77 blue", "password": "whale 77 blue"}) == {
        "note": "<secret-1>",
        "password": "<secret-1>",
    }


def test_what_one_line_gives_away_is_masked_in_every_other() -> None:
    redactor = Redactor()
    redactor.learn("first: got R3dWhale-99 from somewhere")
    redactor.learn({"db_password": "R3dWhale-99"})

    assert redactor.text("first: got R3dWhale-99 from somewhere", "a.log") == "first: got <secret-1> from somewhere"
    assert redactor.document({"db_password": "R3dWhale-99"}, "b.json") == {"db_password": "<secret-1>"}


def test_one_value_has_one_mask_and_another_has_another() -> None:
    out = masked("10.0.0.5 asked 10.0.0.6, and 10.0.0.5 answered; AA:BB:CC:DD:EE:01 is aa-bb-cc-dd-ee-01")

    assert out == "<ip-1> asked <ip-2>, and <ip-1> answered; <mac-1> is <mac-1>"


@pytest.mark.parametrize("before", ["", "x", "xy", "xyz"])
def test_a_known_value_is_masked_in_base64_wherever_it_begins(before: str) -> None:
    value = "Str0ng-Secret/77"
    packed = base64.b64encode(f"{before}{value}tail".encode()).decode()
    url_safe = packed.replace("+", "-").replace("/", "_")
    redactor = Redactor()
    redactor.learn(f"password={value}")

    for text in (packed, url_safe):
        assert "<secret-1>" in redactor.text(f"blob {text} end", "a.log")


def test_a_known_value_is_masked_percent_encoded_in_hex_and_escaped() -> None:
    value = 'pa ss/w"ö&rd'
    forms = [
        quote(value),
        quote(value, safe="").lower(),
        quote_plus(value),
        "".join(f"%{byte:02x}" for byte in value.encode()),
        value.encode().hex(),
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
    ]
    redactor = Redactor({"secret": [value]})

    for form in forms:
        assert redactor.text(f"x={form};", "a.log") == "x=<secret-1>;", form


def test_short_values_have_no_encoded_forms_that_stand_in_anything() -> None:
    assert encoded_forms("bob") == NO_FORMS


def test_a_version_that_a_passport_names_is_one_in_a_sentence_too_but_not_where_it_is_reached() -> None:
    redactor = Redactor()
    redactor.learn({"passport": {"runtime_version": "10.3.0.30"}})

    assert redactor.text("built for 10.3.0.30, this device runs 10.3.0.30", "a") == (
        "built for 10.3.0.30, this device runs 10.3.0.30"
    )
    assert redactor.text("connect to host 10.3.0.30 or //10.3.0.30/x or 10.3.0.30:80", "a") == (
        "connect to host <ip-1> or //<ip-1>/x or <ip-1>:80"
    )


def test_versions_in_documents_stay_and_addresses_beside_them_do_not() -> None:
    body = {
        "passport": {"runtime_version": "10.3.0.30", "versions": {"built_with": "10.3.0.31"}},
        "tensorrt": "10.13.3.9",
        "peer": "10.13.3.10",
    }

    assert masked_document(body) == body | {"peer": "<ip-1>"}


def test_the_devices_own_address_is_masked_even_where_a_version_looks_alike() -> None:
    assert masked("bound to 10.3.0.30", ip=["10.3.0.30"]) == "bound to <ip-1>"


def test_documents_are_masked_by_value_and_by_key_and_stay_documents() -> None:
    body = {
        "annlee": {"10.0.0.5": ["annlee", 3, None, True, 0.5]},
        "user": "bertram",
        "password": 1234567,
        "private_key": PRIVATE_KEY,
        "keys": ["SHA256:n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg"],
        "release": DIGEST,
        "note": "bertram was here",
    }

    out = masked_document(body, user=["annlee"])

    assert out == {
        "<user-1>": {"<ip-1>": ["<user-1>", 3, None, True, 0.5]},
        "user": "<user-2>",
        "password": "<secret-1>",
        "private_key": "<secret-2>",
        "keys": body["keys"],
        "release": DIGEST,
        "note": "<user-2> was here",
    }


def test_lines_of_a_private_key_are_masked_where_they_stand_alone() -> None:
    redactor = Redactor()
    redactor.learn(PRIVATE_KEY)

    assert "QyNTUxOQ" not in redactor.text(f"kernel: {PRIVATE_KEY.splitlines()[2]}", "a.log")


def test_a_private_key_in_a_line_of_json_is_masked_whole_and_its_lines_everywhere() -> None:
    line = json.dumps({"key": PRIVATE_KEY})
    redactor = Redactor()
    redactor.learn(f"service: {line}")
    body = PRIVATE_KEY.splitlines()[1]

    assert redactor.text(f"service: {line}", "a") == 'service: {"key": "<secret-1>"}'
    assert body not in redactor.text(f"app: read {body}", "a")


def test_a_common_word_is_masked_where_its_key_stands_and_nowhere_else() -> None:
    assert masked("token: expired\nthe session expired") == "token: <secret-1>\nthe session expired"


def test_names_that_everybody_has_are_no_names() -> None:
    text = "/home/user/x and agent on jetson"

    assert masked(text, host=["jetson"], user=["agent"]) == text


def test_the_map_tells_addresses_and_keeps_secrets_to_the_device() -> None:
    redactor = Redactor({"host": ["Cam-7", "unseen-host"]})
    redactor.learn("password=hunter2Xy9")
    redactor.text("CAM-7: password=hunter2Xy9 from 10.0.0.5", "agent.log")
    told = redactor.private_map()

    assert told["<host-1>"] == {"value": "cam-7", "first_in": "agent.log"}
    assert told["<ip-1>"] == {"value": "10.0.0.5", "first_in": "agent.log"}
    assert told["<secret-1>"] == {"characters": 10, "first_in": "agent.log"}
    assert "hunter2" not in json.dumps(told)
    assert "unseen" not in json.dumps(told)
    assert redactor.counts == {"host": 1, "ip": 1, "secret": 1}


def test_the_map_of_a_hostile_log_fits_into_one_part_and_tells_no_secret() -> None:
    redactor = Redactor({"secret": ["Str0ng-Secret-77"]})
    redactor.learn("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9mWk0Pq6y1eNn2rQ7uJ8k3 my Str0ng-Secret-77 key")
    lines = [f"from 10.{each >> 16}.{each >> 8 & 255}.{each & 255}" for each in range(12_000)]
    lines.append("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9mWk0Pq6y1eNn2rQ7uJ8k3 my Str0ng-Secret-77 key")
    redactor.text("\n".join(lines), "agent.log")
    told = json.dumps(redactor.private_map())

    assert len(told) < 4 << 20
    assert "my <secret-1> key" in told
    assert "Str0ng" not in told


def test_masks_are_not_masked_again() -> None:
    once = masked("password=hunter2Xy9 host=cam-7 user: annlee 10.0.0.5 ann@plant.example.com")
    twice = masked(once)

    assert twice == once
    assert len(MASK.findall(once)) == 5


@pytest.mark.timeout(60)
def test_a_hostile_log_takes_time_by_its_length_alone() -> None:
    """A shape that tried again from every place would take hours for these."""
    pieces = [
        "a" * 20000,
        "1." * 10000,
        "=" * 20000,
        "://" * 6000,
        "@" * 20000,
        ":" * 20000,
        "--" * 10000,
        '\\"' * 9000,
    ]
    pieces += ["-----BEGIN PRIVATE KEY-----" * 300, "password=" * 2000, "A1b" * 8000, "host:" * 4000, "key=\\" * 4000]
    for piece in pieces:
        assert masked(f"{piece} 10.0.0.5").endswith("<ip-1>") or "secret" in masked(piece)


def test_settings_are_told_by_an_allow_list() -> None:
    body = {
        "tcp_port": 8000,
        "limits": {"connections": 16, "shoe_size": 43},
        "releases": {"threshold": 2, "thresholds": {"digits": 3}, "allowed_signers": "/etc/kedge/signers"},
        "models": {"digits": {"workers": 2, "owner": "annlee"}, "*": {"queue": 4}},
        "drain_s": {"surprise": "value"},
        "upload_to": {"bucket": "s3", "password": "x"},
    }

    assert allowed_settings(body) == {
        "tcp_port": 8000,
        "limits": {"connections": 16, "shoe_size": LEFT_OUT},
        "releases": {"threshold": 2, "thresholds": {"digits": 3}, "allowed_signers": "/etc/kedge/signers"},
        "models": {"digits": {"workers": 2, "owner": LEFT_OUT}, "*": {"queue": 4}},
        "drain_s": LEFT_OUT,
        "upload_to": LEFT_OUT,
    }
    assert allowed_settings("no object") == LEFT_OUT


def test_every_setting_of_a_model_that_the_agent_reads_is_allowed() -> None:
    rules = {"workers": 1, "queue": 2, "deadline_ms": 3, "drop_stale": True, "max_batch": 4, "max_delay_us": 5}
    parse_settings(json.dumps({"models": {"digits": rules}}).encode())

    assert allowed_settings({"models": {"digits": rules}}) == {"models": {"digits": rules}}
