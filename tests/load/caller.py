"""What one caller of the service does, without any I/O: a generator yields what to send, and is sent what came back.

So users of Locust and tasks of asyncio do the same things by the same rules:

1. A request that changes something has an op id, and is sent again with the same one until it is answered.
2. A 503 has to say when to come back (Retry-After). Any other answer but the right one is a fault.
3. What is acknowledged is entered in the books, and so is what is asked, before it is sent.
4. A read includes what was acknowledged before it was sent, to whomever.
"""

from __future__ import annotations

import base64
import random
import time
from collections import Counter, deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlencode
from uuid import UUID

import msgspec
from blake3 import blake3

BATCH_ITEMS = 20
OWN_PATHS = 50
"""A caller comes back to this many paths of its own: most stamps are new, some are new versions."""
SHARED_PATHS = 5
"""And to these, as all callers of its namespace do."""
SHARED_CONTENTS = (b"the same to all", b"another", b"the third")
PATIENCE_S = 120.0
"""How long the service may refuse or be away before that is a fault."""
POLLS_MAX = 40


class Books(Protocol):
    """Where a caller enters what it does and what it is told."""

    def ask(self, *op_ids: str) -> None: ...

    def acknowledge(self, op_id: str, stamp: dict[str, Any]) -> None: ...

    def accept(self, op_id: str) -> None: ...

    def fault(self, what: str) -> None: ...


class Ask(NamedTuple):
    """A request. `name` is what its figures are kept under."""

    name: str
    method: str
    target: str
    body: bytes = b""
    headers: Mapping[str, str] = {}


class Pause(NamedTuple):
    seconds: float


class Answer(NamedTuple):
    """What came back; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


type Steps[T] = Generator[Ask | Pause, Answer | None, T]
"""Sent None after a pause, and when the connection was lost before the answer was whole."""


@dataclass
class Circle:
    """What the callers of one process know together."""

    books: Books
    retry_after_s_max: float = 10.0
    counts: Counter[str] = field(default_factory=Counter)
    stamps: Counter[str] = field(default_factory=Counter)
    """New stamps that were acknowledged, by namespace."""
    hashes: dict[str, str] = field(default_factory=dict)
    """The last digest that was acknowledged in each namespace, of a content that nobody else has."""


class Caller:
    """One caller, with a token that is good for some namespaces; `others` are namespaces it is not good for."""

    def __init__(
        self,
        circle: Circle,
        seed: str,
        token: str,
        namespaces: Sequence[str],
        others: Sequence[str],
        *,
        workflow_share: int = 10,
    ) -> None:
        self._circle = circle
        self._rng = random.Random(seed)
        self._seed = seed
        self._headers = {"authorization": f"Bearer {token}"}
        self._namespaces = namespaces
        self._others = others
        self._shares = (30, 20, 10, workflow_share, 15, 5, 5, 5)
        self._sent: deque[tuple[Ask, str]] = deque(maxlen=5)
        self._own: deque[tuple[str, str, str]] = deque(maxlen=20)  # namespace, digest, stamp id

    def act(self) -> Steps[None]:
        """Do one thing, to its end."""
        acts = (self._stamp, self._raw, self._batch, self._workflow, self._look_up, self._state, self._again, self._pry)
        act = self._rng.choices(acts, self._shares)[0]
        yield from act()

    def _stamp(self) -> Steps[None]:
        item, op_id, content = self._item()
        ask = self._post("POST /stamp", "/stamp", msgspec.json.encode(item))
        yield from self._acknowledged(ask, op_id, content)

    def _raw(self) -> Steps[None]:
        item, op_id, content = self._item()
        query = {name: item[name] for name in ("namespace", "file_path", "op_id")}
        query["metadata"] = msgspec.json.encode(item["metadata"]).decode()
        ask = self._post("POST /stamp raw", f"/stamp?{urlencode(query)}", content, "application/octet-stream")
        yield from self._acknowledged(ask, op_id, content)

    def _acknowledged(self, ask: Ask, op_id: str, content: bytes) -> Steps[None]:
        self._circle.books.ask(op_id)
        answer = yield from self._answered(ask, 200, 201)
        if answer is not None:
            self._enter(op_id, content, answer.json())
            self._sent.append((ask, op_id))

    def _again(self) -> Steps[None]:
        """Ask for what was acknowledged once more: the answer has to be the first one."""
        if not self._sent:
            return
        ask, op_id = self._rng.choice(self._sent)
        answer = yield from self._answered(ask._replace(name="POST /stamp again"), 200, 201)
        if answer is not None:
            self._circle.books.acknowledge(op_id, answer.json())

    def _batch(self) -> Steps[None]:
        items = [self._item() for _ in range(BATCH_ITEMS)]
        self._circle.books.ask(*(op_id for _, op_id, _ in items))
        deadline = time.monotonic() + PATIENCE_S
        while items:
            body = b"\n".join(msgspec.json.encode(item) for item, _, _ in items)
            ask = self._post("POST /stamp/batch", "/stamp/batch", body, "application/x-ndjson")
            answer = yield from self._answered(ask, 200)
            if answer is None:
                return
            told = [msgspec.json.decode(line) for line in answer.body.splitlines()]
            if len(told) != len(items):
                self._fault(ask, f"{len(told)} answers to {len(items)} items")
                return
            left = []
            for item, one in zip(items, told, strict=True):
                problem = one.get("problem")
                if problem is None:
                    self._enter(item[1], item[2], one)
                elif problem["status"] == 503 or problem["code"] == "in_progress":
                    self._circle.counts[f"item {problem['status']} {problem['code']}"] += 1
                    left.append(item)
                else:
                    self._fault(ask, f"an item was answered {problem}")
            items = left
            if items:
                if time.monotonic() > deadline:
                    self._fault(ask, f"{len(items)} items were never answered")
                    return
                yield Pause(self._rng.uniform(0.1, 0.5))

    def _workflow(self) -> Steps[None]:
        item, op_id, content = self._item()
        namespace = item["namespace"]
        self._circle.books.ask(op_id)
        ask = self._post("POST /workflows", "/workflows", msgspec.json.encode(item))
        answer = yield from self._answered(ask, 202)
        if answer is None:
            return
        self._circle.books.accept(op_id)
        if (told := answer.json())["workflow_id"] != op_id:
            self._fault(ask, f"{op_id} was accepted as {told['workflow_id']}")
        target = f"/workflows/{op_id}?namespace={namespace}"
        for _ in range(POLLS_MAX):
            poll = Ask("GET /workflows/{id}", "GET", target, headers=self._headers)
            answer = yield from self._answered(poll, 200)
            if answer is None:
                return
            told = answer.json()
            if told["state"] == "completed":
                self._enter(op_id, content, told["stamp"] | {"deduplicated": told["deduplicated"]})
                return
            if told["state"] == "failed":
                self._circle.counts[f"workflow failed: {told['error']['code']}"] += 1
                return
            yield Pause(self._rng.uniform(0.1, 0.4))
        self._circle.counts["workflow not waited for"] += 1

    def _look_up(self) -> Steps[None]:
        if not self._own:
            return
        namespace, file_hash, stamp_id = self._rng.choice(self._own)
        ask = Ask("GET /stamp/{hash}", "GET", f"/stamp/{file_hash}?namespace={namespace}", headers=self._headers)
        answer = yield from self._answered(ask, 200)
        if answer is not None and stamp_id not in {stamp["stamp_id"] for stamp in answer.json()["stamps"]}:
            self._fault(ask, f"{stamp_id} was acknowledged, and is not found")

    def _state(self) -> Steps[None]:
        namespace = self._rng.choice(self._namespaces)
        acknowledged = self._circle.stamps[namespace]
        if not acknowledged:
            return
        ask = Ask("GET /namespaces/{ns}/state", "GET", f"/namespaces/{namespace}/state", headers=self._headers)
        answer = yield from self._answered(ask, 200)
        if answer is not None:
            counted = sum(row["total_stamps"] for row in answer.json()["rows"])
            if counted < acknowledged:
                self._fault(ask, f"{acknowledged} were acknowledged before, {counted} are counted")

    def _pry(self) -> Steps[None]:
        """Look for what is another tenant's: there is no such thing. Of a content that all have: only one's own."""
        common = blake3(SHARED_CONTENTS[0]).hexdigest()
        file_hash = self._circle.hashes.get(self._rng.choice(self._others), common)
        ask = Ask("GET /stamp/{hash} of others", "GET", f"/stamp/{file_hash}", headers=self._headers)
        answer = yield from self._answered(ask, 404, *((200,) if file_hash == common else ()))
        if answer is not None and answer.status == 200:
            seen = {stamp["namespace"] for stamp in answer.json()["stamps"]}
            if not seen <= set(self._namespaces):
                self._fault(ask, f"{sorted(seen)} are shown to a caller of {self._namespaces}")

    def _answered(self, ask: Ask, *statuses: int) -> Steps[Answer | None]:
        """Send until there is an answer that is none of "come back later"; None after one that is a fault."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            answer = yield ask
            if answer is None:
                self._circle.counts["lost"] += 1
                yield Pause(self._rng.uniform(0.02, 0.2))
                continue
            if answer.status in statuses:
                return answer
            code = _code(answer)
            if answer.status != 503 and code != "in_progress":
                self._fault(ask, f"{answer.status} {answer.body[:500]!r}")
                return None
            self._circle.counts[f"{answer.status} {code}"] += 1
            retry_after = answer.headers.get("retry-after", "")
            if not retry_after.isdecimal():
                self._fault(ask, f"{answer.status} {code} does not say when to come back")
                return None
            # Those who were refused together do not come back together.
            yield Pause(min(float(retry_after), self._circle.retry_after_s_max) * self._rng.uniform(0.5, 1.0))
        self._fault(ask, f"no answer in {PATIENCE_S:.0f} s")
        return None

    def _enter(self, op_id: str, content: bytes, stamp: dict[str, Any]) -> None:
        circle = self._circle
        circle.books.acknowledge(op_id, stamp)
        namespace, file_hash = stamp["namespace"], stamp["file_hash"]
        if file_hash != blake3(content).hexdigest() or stamp["file_size"] != len(content):
            circle.books.fault(f"{op_id}: {stamp['stamp_id']} is of another content")
        if not stamp["deduplicated"]:
            circle.stamps[namespace] += 1
        if stamp["file_path"].startswith("own/"):  # a look-up tells the newest 100, and shared contents have more
            circle.hashes[namespace] = file_hash
            self._own.append((namespace, file_hash, stamp["stamp_id"]))

    def _item(self) -> tuple[dict[str, Any], str, bytes]:
        """Make up a stamp to ask for: what is sent, its op id, its content."""
        rng = self._rng
        op_id = str(UUID(int=rng.getrandbits(128), version=4))
        if rng.random() < 0.1:
            # The same few contents at the same few paths, by everybody: some are new versions, some are deduplicated.
            path, content = f"shared/{rng.randrange(SHARED_PATHS)}.txt", rng.choice(SHARED_CONTENTS)
            metadata: dict[str, Any] = {}
        else:
            path = f"own/{self._seed}/{rng.randrange(OWN_PATHS)}.txt"
            content = rng.randbytes(rng.randrange(50, 700)).hex().encode()
            metadata = {"project": f"p{rng.randrange(5)}"}
        item: dict[str, Any] = {
            "namespace": rng.choice(self._namespaces),
            "file_path": path,
            "metadata": metadata,
            "op_id": op_id,
        }
        if rng.random() < 0.2:
            return item | {"content_base64": base64.b64encode(content).decode()}, op_id, content
        return item | {"content": content.decode()}, op_id, content

    def _post(self, name: str, target: str, body: bytes, content_type: str = "application/json") -> Ask:
        return Ask(name, "POST", target, body, self._headers | {"content-type": content_type})

    def _fault(self, ask: Ask, what: str) -> None:
        self._circle.books.fault(f"{ask.name}: {what}")


def _code(answer: Answer) -> str:
    try:
        code: str = answer.json()["code"]
    except (ValueError, KeyError, TypeError):
        return "(not a problem document)"
    return code
