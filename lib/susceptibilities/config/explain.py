"""Errors of a scale file as: key, value, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from .parts import listed


def explain(problem: dict[str, Any], root: type[BaseModel]) -> str:
    """One of pydantic's errors as: key, value, what is allowed."""
    keys, owner = _walk(problem["loc"], root)
    key, found, context = ".".join(keys), problem["input"], problem.get("ctx", {})
    allowed = sorted(owner.model_fields) if owner else []
    match problem["type"]:
        case "extra_forbidden":
            close = difflib.get_close_matches(keys[-1], allowed, 1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            return f"{key}: unknown key, value {found!r}{hint}; allowed: {listed(allowed)}"
        case "missing":
            return f"{key}: missing; this part needs: {listed(_required(owner))}"
        case "literal_error":
            return f"{key}: {found!r} is not allowed; allowed: {context['expected']}"
        case "union_tag_invalid":
            return f"{key}.kind: {context['tag']!r}; allowed: {context['expected_tags']}"
        case "union_tag_not_found":
            kinds = "packages, folder, hub" if key == "corpus" else "folder, train, hub"
            return f"{key}.kind: missing; allowed: {kinds}"
        case "value_error":
            return f"{key or 'top level'}: {context['error']}"
        case _:
            return f"{key}: {found!r} is not allowed; {problem['msg']}"


def _required(owner: type[BaseModel] | None) -> list[str]:
    return [n for n, f in owner.model_fields.items() if f.is_required()] if owner else []


def _walk(
    location: tuple[int | str, ...], root: type[BaseModel]
) -> tuple[list[str], type[BaseModel] | None]:
    """The keys of an error's location without pydantic's union tags, and the last one's model."""
    keys: list[str] = []
    options: list[type[BaseModel]] = [root]
    owner: type[BaseModel] | None = root
    for part in location:
        tagged = [m for m in options if len(options) > 1 and part in _tags(m)]
        if tagged:
            options = tagged
            continue
        keys.append(str(part))
        owner = options[0] if options else None
        if owner is not None and part in owner.model_fields:
            options = list(_models(owner.model_fields[str(part)].annotation))
    return keys, owner


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not None:
        for inner in get_args(annotation):
            yield from _models(inner)
