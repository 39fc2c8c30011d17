"""A server in its own process, asked by OpenAI's client and by people who mean harm."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch
from jsonschema import validate
from prometheus_client.parser import text_string_to_metric_families
from transformers import BertConfig, BertForSequenceClassification

from lmkit.generation.engine import generate
from lmkit.generation.sampling import SamplingConfig
from lmkit.pretrained import load
from lmkit.text.chat import Chat, ChatTemplate
from tests.generation.folders import SIZE, llama_folder, tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
KEY = "a-key"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("served")
    llama_folder(home / "writer", context=200, eos=1)
    (home / "writer" / "chat_template.jinja").write_text(TEMPLATE)
    words = tokenizer()
    words.add_special_tokens({"cls_token": "<cls>", "sep_token": "<sep>", "mask_token": "<mask>"})
    torch.manual_seed(1)
    labels = {0: "ham", 1: "spam"}
    config = BertConfig(**SIZE, vocab_size=len(words), id2label=labels, pad_token_id=2, max_position_embeddings=64)
    BertForSequenceClassification(config).eval().save_pretrained(home / "mails")
    words.save_pretrained(home / "mails")
    return home


@pytest.fixture(scope="module")
def server(folders):
    command = [
        sys.executable,
        "-m",
        "lmkit",
        "serve",
        str(folders / "writer"),
        f"post={folders / 'mails'}",
        "--port",
        "0",
    ]
    command += ["--max-rows", "4", "--max-waiting", "8", "--max-body", "20000", "--max-tokens", "150"]
    env = os.environ | {"LMKIT_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, text=True)
    line = process.stdout.readline()
    assert line.startswith("http://127.0.0.1:"), process.stderr.read()
    process.errors = list[str]()
    threading.Thread(target=lambda: process.errors.extend(process.stderr), daemon=True).start()
    process.port = int(line.rsplit(":", 1)[1])
    yield process
    process.kill()


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=KEY, max_retries=0)


def post(server, path, body, key=KEY, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, data, {"Authorization": f"Bearer {key}"} | headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read()), response.headers


def metrics(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", "/metrics")
    families = text_string_to_metric_families(connection.getresponse().read().decode())
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_completions_are_those_of_lmkit_generate(client, folders):
    model = load(folders / "writer")
    want = model.generate(["The fox"], samples=2, max_tokens=20, temperature=0.9, top_p=0.9, seed=5)
    asked = {
        "model": "writer",
        "prompt": "The fox",
        "max_tokens": 20,
        "temperature": 0.9,
        "top_p": 0.9,
        "seed": 5,
        "n": 2,
    }
    whole = client.completions.create(**asked, logprobs=2)
    assert [choice.text for choice in whole.choices] == [row.text for row in want]
    assert whole.choices[0].logprobs.token_logprobs == pytest.approx(want[0].logprobs, abs=1e-4)
    assert whole.usage.completion_tokens == sum(len(row.ids) for row in want)
    pieces = {0: "", 1: ""}
    for part in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in part.choices:
            pieces[choice.index] += choice.text
        usage = part.usage
    assert list(pieces.values()) == [row.text for row in want] and usage == whole.usage
    [ids] = client.completions.create(model="writer", prompt=want[0].prompt, max_tokens=5, temperature=0).choices
    assert ids.text == model.generate(["The fox"], max_tokens=5, temperature=0)[0].text


def test_chat_streams_follows_its_template_and_keeps_schemas(client, folders):
    model, messages = load(folders / "writer"), [{"role": "user", "content": "jump"}]
    asked = {"model": "writer", "messages": messages, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    chat = Chat(model.tokenizer, ChatTemplate(TEMPLATE, {"eos_token": "</s>"}))
    ids = chat.prompt(messages)
    config = SamplingConfig(max_tokens=12, temperature=0, rules=model.rules)
    [want] = generate(model.model, [ids], config, model.eos, tokenizer=model.tokenizer)
    assert (whole.choices[0].message.content, whole.usage.prompt_tokens) == (want.text, len(ids))
    assert [one.logprob for one in whole.choices[0].logprobs.content] == pytest.approx(want.logprobs, abs=1e-4)
    parts = client.chat.completions.create(**asked, stream=True)
    assert "".join(part.choices[0].delta.content for part in parts) == want.text
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    asked = {"model": "writer", "messages": messages, "max_tokens": 100, "seed": 3}
    answer = client.chat.completions.create(**asked, response_format=form).choices[0]
    validate(json.loads(answer.message.content), schema)
    with pytest.raises(openai.BadRequestError, match="template does not use them"):
        client.chat.completions.create(**asked, tools=[{"type": "function", "function": {"name": "f"}}])


def test_fine_tuned_models_label_rows_and_embed(client, server, folders):
    texts = ["over the lazy dog", "The quick brown fox " * 3]
    status, body, _ = post(server, "/v1/classify", {"model": "post", "input": texts})
    assert status == 200
    theirs, words = BertForSequenceClassification.from_pretrained(folders / "mails"), tokenizer()
    inside = lambda text: torch.tensor([words.encode(text)])
    for text, row in zip(texts, body["data"], strict=True):
        with torch.no_grad():
            probs = theirs(inside(text)).logits.softmax(-1)[0]
        assert row["scores"] == {
            "ham": pytest.approx(probs[0].item(), abs=1e-5),
            "spam": pytest.approx(probs[1].item(), abs=1e-5),
        }
        assert row["label"] == ["ham", "spam"][int(probs.argmax())]
    vectors = client.embeddings.create(model="post", input=texts).data
    with torch.no_grad():
        want = torch.nn.functional.normalize(theirs.bert(inside(texts[0])).last_hidden_state[0].mean(0), dim=0)
    torch.testing.assert_close(torch.tensor(vectors[0].embedding), want, rtol=0, atol=1e-5)
    assert [model.id for model in client.models.list()] == ["writer", "post"]


def test_what_is_wrong_is_told_and_nothing_is_left_behind(server):
    write = {"model": "writer", "prompt": "x", "max_tokens": 4}
    cases = [
        (b"{", 400, "JSON"), (b"[" * 19_000, 400, ""), (b"\xff\xfe", 400, ""), (b"x" * 30_000, 413, "20,000 bytes"),
        (json.dumps(write | {"temperature": -1}).encode(), 400, "temperature"),
        (json.dumps(write | {"max_tokens": 0}).encode(), 400, "max_tokens"),
        (json.dumps(write | {"nonsense": 1}).encode(), 400, "nonsense"),
        (json.dumps(write | {"model": "other"}).encode(), 404, "writer, post"),
        (json.dumps(write | {"model": "post"}).encode(), 400, "does not answer"),
        (json.dumps(write | {"prompt": "over " * 900}).encode(), 400, "context of 200"),
        (json.dumps(write | {"prompt": [5, 10**9]}).encode(), 400, "outside"),
        (json.dumps(write | {"prompt": "\ud800"}).encode(), 400, ""),
        (json.dumps(write | {"regex": "a("}).encode(), 400, "cannot be followed"),
        (json.dumps(write | {"logit_bias": {"99999": 1}}).encode(), 400, "logit_bias"),
        (json.dumps(write | {"n": 40, "prompt": ["a", "b"]}).encode(), 400, "80 texts"),
    ]  # fmt: skip
    for body, status, message in cases:
        got, answer, _ = post(server, "/v1/completions", body)
        assert (got, message in answer["error"]["message"]) == (status, True), (body[:80], got, answer)
    assert post(server, "/v1/completions", write, key="wrong")[0] == 401
    chat = {"model": "writer", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}
    assert post(server, "/v1/chat/completions", chat)[0] == 400
    counts = metrics(server)
    assert not [key for key in counts if key[0] == "lmkit_requests_total" and key[2].startswith("5")]
    assert counts["lmkit_texts", "writer", "writing"] == counts["lmkit_texts", "writer", "waiting"] == 0


def test_clients_that_leave_or_stall_free_their_rows_and_block_nobody(server):
    long = {"model": "writer", "prompt": "x", "max_tokens": 150, "stream": True, "logit_bias": {"1": -100}}
    stalled = []
    for body in (long, long | {"stream": False}, long):
        data = json.dumps(body).encode()
        one = socket.create_connection(("127.0.0.1", server.port))
        lines = (
            "POST /v1/completions HTTP/1.1",
            "Host: x",
            f"Authorization: Bearer {KEY}",
            f"Content-Length: {len(data)}",
        )
        one.sendall("\r\n".join((*lines, "\r\n")).encode() + data)
        stalled.append(one)
    half = socket.create_connection(("127.0.0.1", server.port))
    half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Le")
    stalled[0].recv(100)
    for one in stalled[:2]:
        one.close()
    status, body, _ = post(server, "/v1/completions", {"model": "writer", "prompt": "x", "max_tokens": 3})
    assert status == 200
    for one in (*stalled, half):
        one.close()
    for _ in range(100):
        counts = metrics(server)
        if counts["lmkit_texts", "writer", "writing"] == counts["lmkit_texts", "writer", "waiting"] == 0:
            return
        time.sleep(0.05)
    raise AssertionError(counts)


def test_a_full_queue_asks_to_come_back(server, client):
    asked = {"model": "writer", "prompt": "x", "max_tokens": 150, "logit_bias": {"1": -100}}
    with client.completions.create(**asked, n=12, stream=True) as stream:
        next(iter(stream))
        status, answer, headers = post(server, "/v1/completions", asked)
        assert (status, int(headers["Retry-After"]) >= 1) == (429, True) and "wait" in answer["error"]["message"]
    for _ in range(100):
        if post(server, "/v1/completions", asked | {"max_tokens": 1})[0] == 200:
            return
        time.sleep(0.05)
    raise AssertionError("the queue stays full")


def test_many_at_once_are_all_answered_as_alone(server):
    asks = [
        {"model": "writer", "prompt": f"The {i}", "max_tokens": 10, "seed": i, "temperature": 1.2} for i in range(12)
    ]
    alone = [post(server, "/v1/completions", ask)[1]["choices"][0]["text"] for ask in asks]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda ask: post(server, "/v1/completions", ask)[1]["choices"][0]["text"], asks))
    assert together == alone and len(set(alone)) > 6


def test_the_page_names_no_other_host(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", "/")
    page = connection.getresponse().read().decode()
    assert "<textarea" in page and not re.findall(r"(?:https?:)?//[a-z]", page)


def test_sigterm_finishes_what_runs_and_logs_hold_no_prompt(server, client):
    asked = {"model": "writer", "prompt": "secret words", "max_tokens": 100, "logit_bias": {"1": -100}}
    stream = client.completions.create(**asked, stream=True)
    first = next(iter(stream)).choices[0].text
    server.send_signal(signal.SIGTERM)
    rest = "".join(part.choices[0].text for part in stream if part.choices)
    assert server.wait(20) == 0
    assert len(first + rest) > 50
    log = "".join(server.errors)
    assert '"path": "/v1/completions"' in log and "secret" not in log and "Traceback" not in log
