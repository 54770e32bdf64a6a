"""`bdtune list` and `bdtune show`: what there is, and the knobs of each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from bdtune.errors import ConfigError, Problem, nearest
from bdtune.knobs import Knobs
from bdtune.plugins import registry
from bdtune.plugins.metric import METRICS
from bdtune.tuning.samplers import SAMPLERS
from bdtune.tuning.schedulers import SCHEDULERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

    from bdtune.plugins.table import Table

SPACES, CAMPAIGNS = "search-spaces", "campaigns"
TABLES: dict[str, Table[Any]] = {table.kind: table for table in (METRICS, SAMPLERS, SCHEDULERS)}
KINDS = (*registry.KINDS, *TABLES, SPACES, CAMPAIGNS)
SINGULAR = {kind.removesuffix("s"): kind for kind in registry.KINDS}


def kind_of(word: str) -> str:
    """Return the kind that a word means; raises `ConfigError` with the nearest one."""
    kind = SINGULAR.get(word.casefold(), word.casefold())
    if kind in KINDS:
        return kind
    expected = f"expected one of {', '.join(KINDS)}"
    raise ConfigError(Problem("", expected, f"'{word}'", hint=nearest(word, KINDS)))


def plugin_kind_of(word: str) -> str:
    """Return the kind of plugin that a word means; the others have no knobs to show."""
    kind = kind_of(word)
    if kind not in registry.KINDS:
        raise ConfigError(Problem("", f"expected one of {', '.join(SINGULAR)}, trial", f"'{word}'"))
    return kind


def describe_all(kind: str) -> list[registry.Description]:
    """Return name, summary and source of everything of a kind, without importing any plugin."""
    if kind in (SPACES, CAMPAIGNS):
        from bdtune.config.load import campaigns, search_spaces

        return search_spaces() if kind == SPACES else campaigns()
    if kind in TABLES:
        entries = map(TABLES[kind].find, TABLES[kind].names)
        return [registry.Description(entry.name, entry.about, entry.source) for entry in entries]
    return [registry.describe(kind, name) for name in registry.names(kind)]


@dataclass(frozen=True)
class KnobRow:
    """One knob as `bdtune show` prints it."""

    path: str
    type: str
    default: Any
    allowed: str
    about: str


@dataclass(frozen=True)
class PluginPage:
    """A plugin as `bdtune show` prints it."""

    name: str
    summary: str
    source: str
    knobs: tuple[KnobRow, ...]
    presets: tuple[str, ...]
    """Names of papers' conventions for it, as in `attack={preset: gssd/badnets}`."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def shown(kind: str, name: str) -> PluginPage:
    """Return all that is to be said of a plugin; raises `ConfigError` when there is none of that name."""
    name = registry.canonical(kind, name)
    rows = tuple(knobs_of(kind, name))
    about = registry.describe(kind, name)
    presets = tuple(getattr(registry.load(kind, name), "presets", {}))
    return PluginPage(name, about.summary, about.source, rows, presets)


def knobs_of(kind: str, name: str) -> list[KnobRow]:
    """Return every knob of a plugin by its dotted path, nested ones included."""
    return list(_rows(registry.load(kind, name), ""))


def _rows(cls: type[Knobs], prefix: str) -> Iterator[KnobRow]:
    from bdtune.checking import show
    from bdtune.plugins.model import is_network

    for name, info in cls.model_fields.items():
        path = f"{prefix}{info.alias or name}"
        if isinstance(info.annotation, type) and issubclass(info.annotation, Knobs):
            yield from _rows(info.annotation, f"{path}.")
            continue
        default = "required" if info.is_required() else show(info.get_default(call_default_factory=True))
        kind = "network" if is_network(info) else _type_name(info.annotation)
        yield KnobRow(path, kind, default, _limits(info), _about(cls, name))


def _type_name(annotation: Any) -> str:
    options, origin = get_args(annotation), get_origin(annotation)
    if origin is Annotated:
        return _type_name(options[0])
    if origin is tuple:
        return f"list of {_type_name(options[0])}"
    if options and all(isinstance(option, str) for option in options):
        return " | ".join(options)
    if options:
        return " | ".join("none" if option is type(None) else _type_name(option) for option in options)
    return getattr(annotation, "__name__", str(annotation))


def _limits(info: FieldInfo) -> str:
    words = {
        "ge": ">=",
        "gt": ">",
        "le": "<=",
        "lt": "<",
        "min_length": "length >=",
        "max_length": "length <=",
    }
    found = [
        f"{words[word]} {getattr(limit, word):g}"
        for limit in [*info.metadata, *_limits_inside(info.annotation)]
        for word in words
        if getattr(limit, word, None) is not None
    ]
    return ", ".join(dict.fromkeys(found))


def _limits_inside(annotation: Any) -> Iterator[Any]:
    """Yield the limits of a union's members, such as those of a rate that may be null."""
    for option in get_args(annotation):
        for found in getattr(option, "__metadata__", ()):
            yield from getattr(found, "metadata", ())


def _about(cls: type[Knobs], name: str) -> str:
    """Return the sentence that stands below a field."""
    from bdtune.knobs import field_docs

    for base in cls.__mro__:
        if name in field_docs(base):
            return field_docs(base)[name]
    return ""
