"""`dead-letters list`, `show`, `replay` and `discard`: events that could not be processed.

One letter that can't be helped keeps no other from it: it is named on standard error, and the exit code is then 1.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omninode_bridge.cli.output import complain, moment, printable, say, say_json, size, table
from omninode_bridge.cli.running import FINE, NO, USAGE, read_settings, run
from omninode_bridge.domain.errors import Conflict, InvalidInput, NotFound

if TYPE_CHECKING:
    from omninode_bridge.app.letters import DeadLetters
    from omninode_bridge.ports import Letter

REASON_CHARS_SHOWN = 60
HEAD_OCTETS = 256
"""Of a body that is no text, so many are shown."""
_ROW_OCTETS = 16

type Act = Callable[[int], Awaitable[tuple[Letter, bool]]]


def every(namespace: str | None, settled: bool, json: bool, data_dir: Path | None, database_url: str | None) -> int:
    """Print a line a letter, by number."""
    settings = read_settings(data_dir, database_url)

    async def work() -> int:
        from omninode_bridge.app.letters import dead_letters

        lines: list[list[str]] = []
        async with dead_letters(settings) as opened:
            async for letter in opened.every(namespace, settled=settled):
                if json:
                    say_json(_told(letter))
                else:
                    lines.append(_line(letter))
        if lines:
            table(
                ["ID", "OF", "STATUS", "NAMESPACE", "TOPIC", "SHARD", "POSITION", "SINCE", "REASON"], lines, (0, 5, 6)
            )
        elif not json:
            say(f"there are no {'' if settled else 'open '}dead letters")
        return FINE

    return run(work())


def show(number: int, json: bool, data_dir: Path | None, database_url: str | None) -> int:
    """Print all that is known of a letter, its body at the end."""
    settings = read_settings(data_dir, database_url)

    async def work() -> int:
        from omninode_bridge.app.letters import dead_letters

        async with dead_letters(settings) as opened:
            letter = await opened.get(number)
        body = letter.record.body
        text = _text(body)
        if json:
            head = None if text is not None else body[:HEAD_OCTETS].hex()
            say_json(_told(letter) | {"body": text, "body_hex_head": head})
        else:
            _show(letter, text)
        return FINE

    return run(work())


def replay(numbers: list[int], everything: bool, json: bool, data_dir: Path | None, database_url: str | None) -> int:
    """Replay letters and say of each what became of it."""
    if bool(numbers) == everything:
        raise InvalidInput("say which dead letters to replay: their ids, or --all", field="id")

    async def work(opened: DeadLetters) -> int:
        chosen = _each(numbers) if numbers else _open(opened)
        return await _settle(chosen, opened.replay, "replayed", json)

    return _run(work, data_dir, database_url)


def discard(numbers: list[int], reason: str, json: bool, data_dir: Path | None, database_url: str | None) -> int:
    """Discard letters and say of each what became of it."""

    async def work(opened: DeadLetters) -> int:
        from omninode_bridge.app.letters import checked_reason

        wanted = checked_reason(reason)
        return await _settle(_each(numbers), lambda number: opened.discard(number, wanted), "discarded", json)

    return _run(work, data_dir, database_url)


def _run(work: Callable[[DeadLetters], Awaitable[int]], data_dir: Path | None, database_url: str | None) -> int:
    settings = read_settings(data_dir, database_url)

    async def open_and_work() -> int:
        from omninode_bridge.app.letters import dead_letters

        async with dead_letters(settings) as opened:
            return await work(opened)

    return run(open_and_work())


async def _settle(numbers: AsyncIterator[int], act: Act, wanted: str, json: bool) -> int:
    code, any_letter = FINE, False
    async for number in numbers:
        any_letter = True
        try:
            letter, now = await act(number)
        except (NotFound, Conflict, InvalidInput) as error:
            code = max(code, USAGE if isinstance(error, InvalidInput) else NO)
            if json:
                say_json({"letter_id": number, "error": error})
            else:
                complain(error.message if str(number) in error.message else f"dead letter {number}: {error.message}")
            continue
        done = letter.status == wanted
        if json:
            say_json(_told(letter) | {"done": done})
        elif done:
            say(f"dead letter {number} {'is' if now else 'was'} {wanted}{_meaning(letter) if now else ' already'}")
        else:
            complain(f"dead letter {number} stays {letter.status}: {letter.history[-1].reason}")
        if not done:
            code = max(code, NO)
    if not any_letter and not json:
        say("there are no open dead letters")
    return code


def _meaning(letter: Letter) -> str:
    """Return what an act did to the totals, or to Kafka."""
    if letter.source == "relay":
        return ": Kafka has its event" if letter.status == "replayed" else ": Kafka stays without its event"
    where = printable(letter.record.namespace)
    if letter.status == "replayed":
        return f": its event counts in {where}"
    return f": the totals of {where} stay without its event"


async def _each(numbers: Iterable[int]) -> AsyncIterator[int]:
    for number in dict.fromkeys(numbers):
        yield number


async def _open(opened: DeadLetters) -> AsyncIterator[int]:
    async for letter in opened.every():
        yield letter.number


def _told(letter: Letter) -> dict[str, Any]:
    record = letter.record
    return {
        "letter_id": letter.number,
        "source": letter.source,
        "status": letter.status,
        "namespace": record.namespace,
        "topic": record.topic,
        "shard": record.shard,
        "position": record.position,
        "event_id": record.event_id,
        "previous_id": record.previous_id,
        "workflow_id": record.workflow_id,
        "reason": letter.reason,
        "since": letter.since,
        "history": letter.history,
        "body_bytes": letter.octets,
    }


def _line(letter: Letter) -> list[str]:
    record, reason = letter.record, letter.reason
    return [
        str(letter.number),
        letter.source,
        letter.status,
        record.namespace,
        record.topic,
        str(record.shard),
        str(record.position),
        moment(letter.since),
        reason if len(reason) <= REASON_CHARS_SHOWN else f"{reason[:REASON_CHARS_SHOWN]}…",
    ]


def _show(letter: Letter, text: str | None) -> None:
    record = letter.record
    for name, value in (
        ("dead letter", f"{letter.number}, of the {letter.source}, {letter.status}"),
        ("namespace", record.namespace),
        ("workflow", record.workflow_id),
        ("place", f"{record.topic} shard {record.shard} position {record.position}"),
        ("event", f"{record.event_id}, after {record.previous_id}"),
        ("since", moment(letter.since)),
        ("reason", letter.reason),
    ):
        say(f"{name:<12} {printable(value)}")
    for act in letter.history:
        why = "" if act.reason is None else f": {act.reason}"
        say(f"{'history':<12} {moment(act.at)} {printable(f'{act.act} by {act.actor}, {act.status} then{why}')}")
    say(f"{'body':<12} {size(letter.octets)}")
    if text is not None:
        say(text)
        return
    head = record.body[:HEAD_OCTETS]
    for at in range(0, len(head), _ROW_OCTETS):
        say(f"{at:08x}  {head[at : at + _ROW_OCTETS].hex(' ')}")
    if len(record.body) > HEAD_OCTETS:
        say("…")


def _text(body: bytes) -> str | None:
    """Return the body as text that a terminal can take; None for anything else."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    return text if text.replace("\n", "").isprintable() else None
