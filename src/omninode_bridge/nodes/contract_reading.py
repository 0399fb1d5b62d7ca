"""Reading a contract file: from text to omnibase_core's models, with every complaint located.

omnibase_core is asked first. What it lets pass is refused here for every contract alike:

1. A key that no model has: a misspelt setting would silently mean the default.
2. A value that only became a number or a truth value by coercion.
3. A setting the bridge does not act on, unless it says what is the default anyway: a contract that
   promises what nobody does is broken.

What the settings mean is left to `contract_orchestrator`, `contract_reducer` and `contract_machine`.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omnibase_core.models.errors.model_onex_error import ModelOnexError
from omnibase_core.utils.util_safe_yaml_loader import load_yaml_mapping_no_duplicates
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined
from yaml import YAMLError  # type: ignore[import-untyped]  # omnibase_core's parser; only its error is named here

from omninode_bridge.domain.errors import ContractInvalid

CONTRACT_BYTES_MAX = 256 * 1024

DESCRIPTIVE = frozenset({
    "annotations",
    "author",
    "contract_version",
    "description",
    "documentation_url",
    "input_model",
    "name",
    "node_type",
    "node_version",
    "output_model",
    "placement",
    "tags",
})  # fmt: skip
"""Top-level keys of every contract that say something to people and tools, and need no further effect."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and where: `config.steps[1].timeout_ms`; the field is empty for the file as a whole."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


@dataclass(frozen=True, slots=True)
class Document:
    """A contract as written: where from, what it says, and the SHA-256 of its bytes."""

    source: str
    raw: dict[str, Any]
    fingerprint: str

    def refuse(self, found: Sequence[Problem]) -> None:
        """Raise ContractInvalid for the first problem, if there is any."""
        if found:
            refuse(self.source, found)


def refuse(source: str, found: Sequence[Problem]) -> typing.NoReturn:
    """Raise ContractInvalid naming the file and its first problem, and how many more there are."""
    more = f" (and {len(found) - 1} more: see omninode-bridge contract validate)" if len(found) > 1 else ""
    raise ContractInvalid(f"{source}: {found[0]}{more}", field=found[0].field, source=source)


def read(path: str | os.PathLike[str]) -> Document:
    """Read a contract file, or raise ContractInvalid."""
    source = os.fspath(path)
    try:
        with open(source, "rb") as file:
            data = file.read(CONTRACT_BYTES_MAX + 1)
    except OSError as error:
        raise ContractInvalid(f"{source}: can't be read: {error.strerror}", source=source) from error
    return parse(data, source)


def parse(data: bytes, source: str) -> Document:
    """Return the mapping that a contract's text is, or raise ContractInvalid. Duplicate keys are refused."""
    if len(data) > CONTRACT_BYTES_MAX:
        refuse(source, [Problem("", f"is larger than {CONTRACT_BYTES_MAX} bytes: no contract needs that")])
    try:
        raw = load_yaml_mapping_no_duplicates(data.decode(), source=source)
        odd = next(_odd_keys(raw, ""), None)
    except (ValueError, YAMLError, RecursionError, ModelOnexError) as error:
        text = " ".join(str(error).split()).removeprefix(f"{source}: ")
        raise ContractInvalid(f"{source}: is no YAML mapping: {text}", source=source) from error
    if odd:
        refuse(source, [odd])
    return Document(source, typing.cast("dict[str, Any]", raw), hashlib.sha256(data).hexdigest())


def validated[M: BaseModel](model: type[M], raw: object, path: str, found: list[Problem]) -> M | None:
    """Return what an omnibase_core model makes of a section, or None after adding what it objects to.

    Some of its validators raise ModelOnexError, which carries no location: the sections below are then
    validated one by one to find the narrowest that is refused.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_context=False):
            message = detail["msg"].removeprefix("Value error, ")
            shown = f" (it is {detail['input']!r:.60})" if isinstance(detail["input"], str | int | float) else ""
            found.append(Problem(join(path, *detail["loc"]), message + shown))
    except ModelOnexError as error:
        before = len(found)
        if isinstance(raw, dict):
            for name, item in raw.items():
                _validated_below(model, name, item, join(path, name), found)
        if len(found) == before:
            found.append(Problem(path, error.message))
    return None


def settings(raw: dict[str, Any], model: BaseModel, path: str, acted: Iterable[str], found: list[Problem]) -> None:
    """Add the keys that mean nothing: unknown ones, coerced ones, and those the bridge does not act on.

    `acted` names what it does act on, relative to `model`: `states[].state_name`, or a whole section.
    """
    _walk(raw, model, path, "", frozenset(acted), found)


def unknown_keys(raw: Iterable[str], path: str, known: Sequence[str]) -> list[Problem]:
    """Return a problem for each key that nothing has, with the nearest that there is."""
    return [Problem(join(path, key), _unknown(key, known)) for key in raw if key not in known]


def one_of(value: object, allowed: Sequence[object], path: str, found: list[Problem]) -> None:
    """Add a problem unless the value is of a closed vocabulary."""
    if value not in allowed:
        words = " or ".join(_shown(word) for word in allowed)
        found.append(Problem(path, f"must be {words} here, not {_shown(value)}"))


def whole_number(section: dict[str, Any], path: str, name: str, bounds: tuple[int, int], found: list[Problem]) -> int:
    """Return a setting; the least there may be, after adding that it is none or out of bounds."""
    least, most = bounds
    raw = section.get(name)
    if type(raw) is not int or not least <= raw <= most:
        found.append(Problem(join(path, name), f"must be a whole number from {least} to {most}"))
        return least
    return raw


def whole_numbers(
    section: object, path: str, bounds: Mapping[str, tuple[int, int]], found: list[Problem]
) -> dict[str, int] | None:
    """Return the settings of a section that has these and no others; None, after adding what is wrong with it."""
    if not isinstance(section, dict):
        found.append(Problem(path, f"is missing: say {', '.join(bounds)}"))
        return None
    problems = unknown_keys(section, path, tuple(bounds))
    values = {name: whole_number(section, path, name, within, problems) for name, within in bounds.items()}
    found.extend(problems)
    return None if problems else values


def join(path: str, *parts: str | int) -> str:
    """Return a path with more parts: `steps`, 1, `timeout_ms` → `steps[1].timeout_ms`."""
    for part in parts:
        path = f"{path}[{part}]" if isinstance(part, int) else f"{path}.{part}" if path else part
    return path


def _odd_keys(raw: object, path: str) -> Iterator[Problem]:
    if isinstance(raw, dict):
        for key, item in raw.items():
            if not isinstance(key, str):
                yield Problem(path, f"the key {key!r} must be text: quote it")
            else:
                yield from _odd_keys(item, join(path, key))
    elif isinstance(raw, list):
        for index, item in enumerate(raw):
            yield from _odd_keys(item, join(path, index))


def _validated_below(model: type[BaseModel], name: str, raw: object, path: str, found: list[Problem]) -> None:
    field = model.model_fields.get(name)
    section = next(_models_in(field.annotation), None) if field else None
    if section is None:
        return
    if isinstance(raw, list):
        for index, item in enumerate(raw):
            if isinstance(item, dict):
                validated(section, item, join(path, index), found)
    elif isinstance(raw, dict):
        validated(section, raw, path, found)


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def _walk(
    raw: object, value: object, path: str, pattern: str, acted: frozenset[str] | None, found: list[Problem]
) -> None:
    """Compare what was written with what was made of it. `acted` is None below a section that is all acted on."""
    if isinstance(value, BaseModel) and isinstance(raw, dict):
        fields = type(value).model_fields
        for key, item in raw.items():
            here, name = join(path, key), join(pattern, key)
            if key not in fields:
                if value.model_config.get("extra") != "allow":
                    found.append(Problem(here, _unknown(key, fields)))
            elif acted is None or key == "version" or name in acted:
                _walk(item, getattr(value, key), here, name, None, found)
            elif any(entry.startswith((f"{name}.", f"{name}[]")) for entry in acted):
                _walk(item, getattr(value, key), here, name, acted, found)
            elif not _is_default(value, key):
                found.append(Problem(here, "has no effect on the bridge: leave it out"))
    elif isinstance(value, list | tuple) and isinstance(raw, list):
        for index, (item, made) in enumerate(zip(raw, value, strict=False)):
            _walk(item, made, join(path, index), f"{pattern}[]", acted, found)
    elif type(value) in _WRITTEN_AS and type(raw) not in _WRITTEN_AS[type(value)]:
        found.append(Problem(path, f"must be written as {_shown(value)}, not {_shown(raw)}"))


def _unknown(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, known, 1)
    return f"is no setting; did you mean {near[0]}?" if near else "is no setting: remove it"


_WRITTEN_AS: dict[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float)}


def _is_default(value: BaseModel, key: str) -> bool:
    field = type(value).model_fields[key]
    default = field.get_default(call_default_factory=True, validated_data={})
    return default is PydanticUndefined or bool(getattr(value, key) == default)


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)[:60]
