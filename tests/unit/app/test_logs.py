"""Log lines say when, what and in answer to whom, and never what somebody sent."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from omninode_bridge.app import logs
from omninode_bridge.domain.errors import BridgeError, InvalidInput, LawBroken, ServiceUnavailable

SECRET = "s3cr3t-of-the-tenant"
TOKEN = "obt_" + "A1b2-_" * 7 + "z"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
log = logging.getLogger("omninode_bridge.some.module")


@contextmanager
def lines(level: str = "debug") -> Iterator[list[dict[str, Any]]]:
    """The JSON lines that are logged in the block."""
    stream = io.StringIO()
    found: list[dict[str, Any]] = []
    with logs.configured(level, "json", stream):
        yield found
    found += [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture(autouse=True)
def no_request() -> Iterator[None]:
    logs._asked.set(None)
    yield
    logs._asked.set(None)


def test_a_line_says_when_how_bad_what_and_who() -> None:
    with lines() as found:
        log.warning("%d of %s", 3, "them", extra={"seconds": 1.5, "status": 201, "who": None})
    (line,) = found
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning", "event": "3 of them", "logger": "omninode_bridge.some.module",
        "seconds": 1.5, "status": 201, "who": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("traceparent", "trace"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01".encode(), TRACE),
        (f"cc-{TRACE}-00f067aa0ba902b7-01-more".encode(), TRACE),
        (None, None),
        (b"", None),
        (b"nonsense", None),
        (b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01", None),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01".encode(), None),
    ],
)
def test_in_answer_to_a_request_a_line_has_its_ids(traceparent: bytes | None, trace: str | None) -> None:
    logs.asked_with("abc-1", traceparent)
    with lines() as found:
        log.info("x")
    assert (found[0].get("correlation_id"), found[0].get("trace_id")) == ("abc-1", trace)
    assert logs.asked_id() == "abc-1"


async def test_requests_that_are_answered_at_once_keep_their_ids_apart() -> None:
    async def answer(number: int) -> None:
        logs.asked_with(f"r{number}", None)
        await asyncio.sleep(0)
        log.info("%d", number)

    with lines() as found:
        await asyncio.gather(*(asyncio.create_task(answer(n)) for n in range(5)))
    assert {(line["event"], line["correlation_id"]) for line in found} == {(str(n), f"r{n}") for n in range(5)}


def test_ours_are_logged_from_a_level_on_and_others_from_warnings() -> None:
    with lines("info") as found:
        log.debug("no")
        log.info("yes")
        logging.getLogger("someone.else").info("no")
        logging.getLogger("someone.else").warning("yes, this too")
    assert [line["event"] for line in found] == ["yes", "yes, this too"]


def test_afterwards_logging_is_as_it_was() -> None:
    root = logging.getLogger()
    before = root.level, list(root.handlers), logging.getLogger("omninode_bridge").level, warnings.showwarning
    with logs.configured("debug", "json", io.StringIO()):
        assert list(root.handlers) != before[1]
    after = root.level, list(root.handlers), logging.getLogger("omninode_bridge").level, warnings.showwarning
    assert after == before


@pytest.mark.parametrize(
    "text",
    [
        f"the token {TOKEN} came",
        f"Authorization: Bearer {SECRET}",
        f"authorization=Basic {SECRET}==",
        f"connecting to postgresql://bridge:{SECRET}@db.example:5432/bridge",
        f"connecting to postgresql://bridge:{SECRET}/with@signs@db.example/bridge?x=1",
        f"https://:{SECRET}@stamping.example",
        f"dsn host=db user=me password={SECRET} port=5432",
        f"dsn password='{SECRET} with spaces' port=5432",
        f"GET /stamp?token={SECRET}&x=1",
        f'{{"password": "{SECRET}", "token":"{SECRET}"}}',
        f"{{'secret': '{SECRET}'}}",
        f"duplicate key value\nDETAIL:  Failing row contains ({SECRET}).",
        f"boom\nCONTEXT:  unnamed portal parameter $1 = '{SECRET}'",
    ],
)
def test_whatever_looks_like_a_secret_is_struck_out(text: str) -> None:
    def logged(value: object) -> str:
        with lines() as found:
            log.error("%s", value)
            log.error("x", extra={"said": value, "nested": {"deep": [value]}, str(value): 1})
        return json.dumps(found, ensure_ascii=False)

    for value in (text, ServiceUnavailable(text)):
        assert SECRET not in logged(value)
        assert TOKEN not in logged(value)
    try:
        raise ServiceUnavailable(text)
    except ServiceUnavailable:
        with lines() as found:
            log.exception("x")
    assert SECRET not in json.dumps(found)


@pytest.mark.parametrize(
    "name", ["metadata", "content", "content_base64", "token", "password", "Authorization", "body"]
)
def test_what_is_called_a_secret_is_one(name: str) -> None:
    with lines() as found:
        log.info("x", extra={name: SECRET, "all": {name: [SECRET], "more": 1}})
    assert found[0][name] == "…"
    assert found[0]["all"] == {name: "…", "more": 1}


def test_an_object_that_nobody_knows_is_told_by_its_type_only() -> None:
    class Holder:
        def __repr__(self) -> str:
            return SECRET

    with lines() as found:
        log.info("x", extra={"holder": Holder(), "bytes": SECRET.encode(), "many": (Holder(), 1)})
    assert found[0]["holder"] == "<Holder>"
    assert found[0]["bytes"] == "<bytes>"
    assert found[0]["many"] == ["<Holder>", 1]


class _FromPostgreSQL(Exception):
    sqlstate = "23505"


class _BadValue(Exception):
    sqlstate = "22P02"


@pytest.mark.parametrize(
    "error",
    [
        ValueError(f"can't read {SECRET}"),
        KeyError(SECRET),
        UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, "bad"),
        InvalidInput(f"namespace {SECRET} is not allowed", field="namespace"),
        FileNotFoundError(2, "No such file", f"/home/{SECRET}"),
        _FromPostgreSQL(f"duplicate key\nDETAIL:  Key (path)=({SECRET}) already exists."),
        _BadValue(f'invalid input syntax: "{SECRET}"'),
        ExceptionGroup("several", [ValueError(SECRET), KeyError(SECRET)]),
    ],
)
def test_an_error_that_may_quote_somebody_is_told_without_its_words(error: Exception) -> None:
    with lines() as found:
        try:
            try:
                raise error
            except Exception as first:
                raise LawBroken("a hole") from first
        except BridgeError:
            log.exception("it failed")
        log.error("it failed with %s", type(error).__name__, extra={"error": error})
    told = json.dumps(found)
    assert SECRET not in told
    assert type(error).__name__ in told
    assert "test_logs.py" in found[0]["exception"]
    assert "LawBroken: [law_broken] a hole" in found[0]["exception"]


def test_an_error_made_of_names_keeps_its_words() -> None:
    with lines() as found:
        try:
            None.nothing  # type: ignore[attr-defined]  # noqa: B018
        except AttributeError:
            log.exception("x")
    assert "'NoneType' object has no attribute 'nothing'" in found[0]["exception"]


def test_an_error_that_leads_to_itself_ends() -> None:
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one
    with lines() as found:
        log.error("x", exc_info=one)
    assert "which led to" in found[0]["exception"]


async def test_a_task_that_nobody_waited_for_is_told_without_what_it_held() -> None:
    async def fail() -> None:
        raise ValueError(SECRET)

    with lines() as found:
        task = asyncio.create_task(fail(), name=SECRET)
        await asyncio.wait({task})
        loop = asyncio.get_running_loop()
        loop.call_exception_handler(
            {"message": "Task exception was never retrieved", "exception": task.exception(), "task": task}
        )
    (line,) = found
    assert (line["logger"], line["event"]) == ("asyncio", "Task exception was never retrieved")
    assert SECRET not in json.dumps(line)


def test_warnings_are_lines_too() -> None:
    with warnings.catch_warnings(), lines() as found:
        warnings.simplefilter("always")
        warnings.warn(f"password={SECRET}", stacklevel=1)
    assert (found[0]["logger"], found[0]["level"]) == ("py.warnings", "warning")
    assert SECRET not in json.dumps(found)


@pytest.mark.parametrize("format", ["json", "console"])
def test_nobody_writes_lines_of_his_own(format: Any) -> None:  # noqa: A002
    stream = io.StringIO()
    with logs.configured("info", format, stream):
        log.info("GET /a\nfake line\x1b[31m\r\u2028x\x9b", extra={"path": "b\nfake line\x1b[2J\udc80"})
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert not {"\x1b", "\r", "\u2028", "\x9b"} & set(text)


def test_a_very_long_value_is_cut_off() -> None:
    with lines() as found:
        log.info("x" * 100_000)
    assert len(found[0]["event"]) < 10_000


def test_for_a_terminal_there_is_text() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with logs.configured("info", None, stream):
        logs.asked_with("abc", None)
        try:
            raise LawBroken("a hole")
        except LawBroken:
            log.exception("it failed")
    text = stream.getvalue()
    assert "it failed" in text and "abc" in text and "[law_broken] a hole" in text
    assert not text.startswith("{")
