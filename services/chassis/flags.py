"""The command line of a configuration class: a flag per field, made from the class itself."""

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, get_args

from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, EnvSettingsSource

_Path = tuple[str, ...]


class Flags:
    """`--grace-seconds` for `grace_seconds`, `--store.pool-size` for a nested field; the class checks the values."""

    def __init__(self, config_class: type[BaseSettings], program: str | None = None) -> None:
        """`program` is the name that `--help` shows."""
        self._prefix = config_class.model_config.get("env_prefix", "")
        self._delimiter = config_class.model_config.get("env_nested_delimiter") or "__"
        self._fields = dict(_leaves(config_class, ()))
        source = EnvSettingsSource(config_class)
        self._complex = {".".join(path) for path, field in self._fields.items() if source.field_is_complex(field)}
        self._parser = argparse.ArgumentParser(
            prog=program,
            description="A flag wins over its variable, the variable over the default.",
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for path, field in self._fields.items():
            text = f"{field.description or path[-1]} [{self.variable(path)}; {_default(field)}]"
            if _is_switch(field):
                self._parser.add_argument(
                    _flag(path),
                    dest=".".join(path),
                    action=argparse.BooleanOptionalAction,
                    help=text.replace("%", "%%"),
                )
            else:
                self._parser.add_argument(
                    _flag(path), dest=".".join(path), metavar=path[-1].upper(), help=text.replace("%", "%%")
                )

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Variable, meaning and default of every field."""
        for path, field in self._fields.items():
            yield self.variable(path), field.description or path[-1], _default(field)

    def parse(self, argv: Sequence[str]) -> dict[str, Any]:
        """The given values by field name, nested as the fields are. Exits 2 for an unknown flag, 0 after `--help`."""
        given: dict[str, Any] = {}
        for dotted, value in vars(self._parser.parse_args(argv)).items():
            *parents, name = dotted.split(".")
            place = given
            for parent in parents:
                place = place.setdefault(parent, {})
            place[name] = self._read(dotted, value)
        return given

    def _read(self, dotted: str, value: Any) -> Any:
        """A list or a mapping is JSON, as in its variable; text that is none goes on to be refused by the class."""
        if dotted in self._complex:
            with suppress(ValueError):
                return json.loads(value)
        return value

    def variable(self, path: _Path) -> str:
        """The environment variable of a field."""
        return (self._prefix + self._delimiter.join(path)).upper()

    def complaint(self, given: Mapping[str, Any], loc: Sequence[int | str], rule: str, kind: str) -> str:
        """One line for a broken rule, naming the flag where one was given and the variable otherwise."""
        names = tuple(str(part) for part in loc)
        path = next((names[:end] for end in range(len(names), 0, -1) if names[:end] in self._fields), names)
        rule = rule.removeprefix("Value error, ")
        if path in self._fields and _is_secret(self._fields[path]):
            rule = f"is not a valid value ({kind})"
        if not path:
            return f"configuration: {rule}"
        if kind == "missing":
            return f"{_flag(path)} or {self.variable(path)}: a value is required"
        source = _flag(path) if _was_given(given, path) else self.variable(path)
        return f"{source}: {rule}"

    def unreadable(self, message: str) -> str:
        """One line for a variable that is no JSON although its field is a list or a mapping."""
        found = re.search(r'field "(\w+)"', message)
        name = self.variable((found[1],)) if found else "configuration"
        return f"{name}: is not valid JSON"


def _leaves(model: type[BaseModel], parents: _Path) -> Iterator[tuple[_Path, FieldInfo]]:
    for name, field in model.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            yield from _leaves(nested, (*parents, name))
        else:
            yield (*parents, name), field


def _flag(path: _Path) -> str:
    return "--" + ".".join(part.replace("_", "-") for part in path)


def _is_switch(field: FieldInfo) -> bool:
    return field.annotation is bool


def _is_secret(field: FieldInfo) -> bool:
    return any(kind in (SecretStr, SecretBytes) for kind in (field.annotation, *get_args(field.annotation)))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if _is_secret(field):
        return "a secret"
    value = field.get_default(call_default_factory=False)
    return "unset by default" if value in (None, PydanticUndefined) else f"default {value}"


def _was_given(given: Mapping[str, Any], path: _Path) -> bool:
    place: Any = given
    for part in path:
        if not isinstance(place, Mapping) or part not in place:
            return False
        place = place[part]
    return True
