"""Where a redactor's lines run: what names a secret, how far its value goes, and what only looks like one."""

from __future__ import annotations

import time
from typing import Any

import pytest

from kedge_agent.diagnose.needles import Needles
from kedge_agent.diagnose.redact import LateError, Redactor
from kedge_agent.diagnose.secret_keys import is_secret_key
from tests.unit.test_redact import DIGEST, masked, masked_document


@pytest.mark.parametrize(
    ("text", "out"),
    [
        ("DB_PASS=Canary9931pw x", "DB_PASS=<secret-1> x"),
        ('SMTP_PASS: "Canary9931px"', 'SMTP_PASS: "<secret-1>"'),
        ("mqtt rtsp_pass=Canary9931py pass=hunter2Xy9", "mqtt rtsp_pass=<secret-1> pass=<secret-2>"),
        ("app --pass Canary9931pz --mqtt-pass plainword", "app --pass <secret-1> --mqtt-pass <secret-2>"),
        ("'passkey': 'Canary9931ps', 'smtpPass': 'Canary9931pq'", "'passkey': '<secret-1>', 'smtpPass': '<secret-2>'"),
        ("PGPASS=Canary9931pw", "PGPASS=<secret-1>"),
        ("REDISCLI_AUTH=Canary9931pw GITHUB_PAT=Canary9931px", "REDISCLI_AUTH=<secret-1> GITHUB_PAT=<secret-2>"),
        ("password: correct horse Battery9 staple", "password: <secret-1>"),
        ("password: correct horse Battery9, user_name: x", "password: <secret-1>, user_name: x"),
        ("password: hunter2Xy9 model: resnet", "password: <secret-1> model: resnet"),
        (r'password="Cana\"ry9931 pw" next', 'password="<secret-1>" next'),
        (r"secret='Cana\'ry9931 pw' next", "secret='<secret-1>' next"),
        ("rtsp://admin:Canary@9931@cam-7:554/x", "rtsp://admin:<secret-1>@<host-1>:554/x"),
        ("POST hooks.slack.com/services/T024BE7LD/B024BE7LH/XXcanary9931", "POST <host-1>/services/<secret-1>"),
        ("GET /v1/bot8841:AAEcanary9931-abcdEFGHij_klmnopqrst/getMe", "GET /v1/bot<secret-1>/getMe"),
        ("root:$6$canarysalt$CanaryHashCanaryHash.abc/def:19000:0:", "root:<secret-1>:19000:0:"),
        ("curl -sS -u bob:Canary9931pw x", "curl -sS -u bob:<secret-1> x"),
        ("Authorization: Custom Xy9931Canary", "Authorization: Custom <secret-1>"),
    ],
)
def test_a_secret_ends_where_its_value_ends(text: str, out: str) -> None:
    assert masked(text) == out


@pytest.mark.parametrize(
    "key", ["DB_PASS", "MQTT_PASS", "SSHPASS", "pass", "passkey", "dbPass", "REDISCLI_AUTH", "GITHUB_PAT", "HF_TOKEN"]
)
def test_names_of_variables_say_that_they_hold_a_secret(key: str) -> None:
    assert is_secret_key(key, "Canary9931pw")


@pytest.mark.parametrize("key", ["compass", "bypass", "author", "path", "compat", "auth", "PATH", "low_pass_hz"])
def test_parts_of_other_words_do_not(key: str) -> None:
    assert not is_secret_key(key, "Canary9931pw")


@pytest.mark.parametrize(
    "text",
    [
        "first pass: 12.5 ms, low_pass=0.5, pass: 3/4, pass: true",
        "what they let pass: all of it",
        "client_auth: required, tls_auth=none",
        "authorization: required for model resnet",
        "input key: frames_0, max_tokens=20000000",
        "resnet@12, model@7 and kworker/u8:2@x and sha256@ab",
        "nvinfer 10.3.0.30 is here, built 8.6.2.3, built with 8.6.1.6",
        "kedge.serving.http.py:120 and torch.nn.functional.io, latency.p99.total",
        "config.h.in and libfoo.so.9:12 and np.lib.format.io",
    ],
)
def test_what_only_looks_like_one_stays(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("cannot resolve mqtt.factory-nord.example.io: Name or service not known", "mqtt.factory-nord.example.io"),
        ("broker.acme.cloud:8883 refused", "broker.acme.cloud"),
        ("host db1.acme.tech down", "db1.acme.tech"),
        ("connect to nas.plantseven failed", "nas.plantseven"),
        ("gone: camera.hall2.zone:554", "camera.hall2.zone"),
        ("no route to a.b.factory.ai", "a.b.factory.ai"),
    ],
)
def test_hosts_are_known_by_their_ends_and_by_what_stands_around_them(text: str, host: str) -> None:
    assert masked(text) == text.replace(host, "<host-1>")


def test_mail_to_a_known_host_is_mail_without_a_dot() -> None:
    assert masked("resnet@12 told ann@nas7", host=["nas7"]) == "resnet@12 told <email-1>"


@pytest.mark.parametrize(
    ("text", "evidence"),
    [
        (f"GET /v2/models/x?token={DIGEST} 404", f"release {DIGEST} live"),
        ("bad password=1.23.2 in request", "onnxruntime 1.23.2 loaded"),
        ("api token=20000000", "room: 20000000 bytes"),
        ("authorization: required for model resnet", "kedge.http for model resnet failed"),
    ],
)
def test_a_public_value_where_a_secret_belongs_is_masked_there_and_nowhere_else(text: str, evidence: str) -> None:
    redactor = Redactor()
    redactor.learn(f"{text}\n{evidence}")

    assert redactor.text(evidence, "a.log") == evidence


def test_what_lies_below_a_secret_key_is_secret_and_what_follows_an_option_too() -> None:
    body: dict[str, Any] = {
        "password": {"value": "Canary9931pw", "from": ["Canary9931px", {"deep": "Canary9931py"}]},
        "command": ["app", "--password", "Canary9931pz", "--model", "resnet"],
        "db_pass": 482913,
        "key": {"passport": "x1"},
        "note": "was Canary9931pw, Canary9931py",
    }

    assert masked_document(body) == {
        "password": {"value": "<secret-1>", "from": ["<secret-2>", {"deep": "<secret-3>"}]},
        "command": ["app", "--password", "<secret-4>", "--model", "resnet"],
        "db_pass": "<secret-5>",
        "key": {"passport": "x1"},
        "note": "was <secret-1>, <secret-3>",
    }


def test_of_thousands_of_known_values_those_in_a_line_are_found_longest_first() -> None:
    redactor = Redactor({"secret": [f"Canary{number:06d}" for number in range(1500)]})
    redactor.learn("password=Canary000777xyz")

    assert redactor.text("xCanary000777xyzy, Canary000778y Canary009999", "a") == (
        "x<secret-1>y, <secret-2>y Canary009999"
    )
    assert Needles().found("anything") == []


def test_a_known_value_of_several_lines_is_masked_whole() -> None:
    redactor = Redactor({"secret": ["first-half\nsecond-half"]})

    assert redactor.text("a first-half\nsecond-half b\nfirst-half", "a") == "a <secret-1> b\nfirst-half"


def test_a_redactor_whose_time_is_over_stops_within_a_text_and_goes_on_with_the_next_task() -> None:
    redactor = Redactor()
    text = "".join(f"line {number} password=Canary{number:06d}xyz\n" for number in range(20_000))

    for act in (lambda: redactor.learn(text), lambda: redactor.text(text, "a"), lambda: redactor.document([text], "a")):
        with pytest.raises(LateError), redactor.until(time.monotonic() - 1):
            act()
    assert redactor.text("password=hunter2Xy9", "a") == "password=<secret-1>"
