"""What a server is promised, as people set it: settings of the farm and of agents, requirements of tasks; checked at the door.

Settings come in layers, the later one wins field by field: the farm's for all servers, the Hub's, the agent's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from .errors import Invalid
from .fleet.helper.egress import MOST, parse
from .records import Demand

MIB = 1 << 20
# A server takes 130 MiB, each of its kernels 80 (two at work, one in reserve), pandas 70 and a frame of 200 twice that while it is worked on.
DEFAULT_MEMORY = 1024 * MIB
Bytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
Cores = Annotated[float, msgspec.Meta(ge=0, le=4096)]
Gpus = Annotated[int, msgspec.Meta(ge=0, le=64)]
Tasks = Annotated[int, msgspec.Meta(ge=0, le=100_000)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
Value = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._:/+ -]{0,63}$")]
Labels = Annotated[dict[Name, Value], msgspec.Meta(max_length=50)]
Names = Annotated[list[Name], msgspec.Meta(max_length=50)]
FOR_OPERATORS = ("tolerates", "pin", "rank", "egress")  # by these a server gets what is kept from others


class Requirements(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a task needs of the server that does it. Bytes and cores; `flags`: of the CPU, e.g. avx2."""

    memory: Bytes = 0
    cpu: Cores = 0.0
    gpus: Gpus = 0
    gpu_memory: Bytes = 0
    labels: Labels = {}
    without: Labels = {}
    flags: Names = []
    ticks: Value = ""


class Resources(Requirements, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a server asks of its microserver and is promised there.

    `ticks`: be near this tick store, `ticks_only`: nowhere else. `apart`: from others of its pool. `workspace` none: it keeps
    no files, and may start on any microserver. `egress`: where it may go besides the farm (host:port, address/bits:port, *:443 for any
    public address), which replaces the farm's list; an agent's server goes nowhere else, a person's wherever it likes where nothing is set.
    """

    tasks: Tasks = 0
    ticks_only: bool = False
    apart: Literal["no", "soft", "hard"] = "soft"
    workspace: Literal["home", "none"] = "home"
    tolerates: Names = []
    pin: Value = ""
    rank: Literal["", "spread", "binpack"] = ""
    egress: Annotated[list[Annotated[str, msgspec.Meta(max_length=300)]], msgspec.Meta(max_length=MOST)] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError: a place to go that is none."""
        for one in self.egress or ():
            parse(one)


class HealthLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a microserver's own figures keep new servers away from it; 0 switches one off.

    `disk_free`: taint `disk-full` below this share of the workspaces' file system. `clock_off`: `clock-off` beyond so many seconds from
    the farm's clock. `memory_pressure`: `memory-pressure` where all work waited for memory for this part of a minute. `calm_seconds`: how
    long it must have been well beyond the limit again before the taint goes.
    """

    disk_free: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.05
    clock_off: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 1.0
    memory_pressure: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1
    calm_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 60.0


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of the farm: how places are chosen, and what all servers get.

    `reserve_…`: kept free on each microserver for the system (memory null: a tenth, 1 GiB at most). CPUs are shared in time: with
    none left all are slow, with no memory left some die. `gain`: by how much of a microserver a move must be better.
    """

    rank: Literal["spread", "binpack"] = "spread"
    reserve_memory: Bytes | None = None
    reserve_cpu: Cores = 0.0
    gain: Annotated[float, msgspec.Meta(ge=0.05, le=1)] = 0.2
    most_memory: Bytes | None = None  # that who manages an agent may ask for; operators may give it more
    most_cpu: Cores | None = None
    most_gpus: Gpus | None = None
    servers: Resources = Resources(memory=DEFAULT_MEMORY)
    people: Resources = Resources(pin="local")  # servers of people, besides
    health: HealthLimits = HealthLimits()


def given(kind: Any, raw: Any, what: str) -> Any:
    """Return the value in its type. Raises Invalid."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise Invalid(f"{what}: {error}", hint="bytes and cores are numbers, labels are {name: value}") from error


def with_changes(known: Settings, change: Mapping[str, Any]) -> Settings:
    """Return the farm's settings with what is given; of what servers get field by field, null takes one away. Raises Invalid."""
    told = msgspec.to_builtins(known)
    layers = {
        name: {field: value for field, value in {**told[name], **change[name]}.items() if value is not None}
        for name in ("servers", "people", "health")
        if isinstance(change.get(name), dict)
    }
    found: Settings = given(Settings, {**told, **change, **layers}, "settings")
    return found


def merged(layers: Sequence[Mapping[str, Any]], what: str = "a demand") -> Resources:
    """Return the layers as one, the later before the earlier; labels are put together. Raises Invalid."""
    whole: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            together = isinstance(value, dict) and isinstance(whole.get(name), dict)
            whole[name] = {**whole[name], **value} if together else value
    found: Resources = given(Resources, whole, what)
    return found


def as_layer(resources: Requirements) -> dict[str, Any]:
    """Return what was set, and nothing else."""
    layer: dict[str, Any] = msgspec.to_builtins(resources)
    return layer


def demand_of(unit: str, asked: Resources, group: str = "", home: str = "") -> Demand:
    """Return the resources as placement takes them."""
    return Demand(
        server=unit, memory=asked.memory, cpu=asked.cpu, tasks=asked.tasks, gpus=asked.gpus, gpu_memory=asked.gpu_memory,
        labels=asked.labels, without=asked.without, flags=tuple(asked.flags), tolerates=tuple(asked.tolerates), ticks=asked.ticks,
        ticks_only=asked.ticks_only, group=group, apart=asked.apart, rank=asked.rank, pin=asked.pin,
        home=home if asked.workspace == "home" else "",
    )  # fmt: skip


def lacks(
    needs: Requirements, has: Resources, labels: Mapping[str, str] | None = None, flags: Sequence[str] = ()
) -> str:
    """Return what a server lacks for a task, "" where it lacks nothing.

    It has what its settings promise, and, where it runs, what the microserver has (`labels`, `flags`).
    """
    for name, unit in (("memory", "MiB"), ("gpu_memory", "MiB"), ("cpu", "CPUs"), ("gpus", "GPUs")):
        asked, promised = getattr(needs, name), getattr(has, name)
        if asked > promised:
            scale = MIB if unit == "MiB" else 1
            return f"its server is promised {promised / scale:g} {unit}{' of GPU memory' if name == 'gpu_memory' else ''}, the task needs {asked / scale:g}"
    here = {**(labels or {}), **has.labels, **({"ticks": has.ticks} if has.ticks and has.ticks_only else {})}
    for name, value in {**needs.labels, **({"ticks": needs.ticks} if needs.ticks else {})}.items():
        if here.get(name) != value:
            return f"its server is not bound to the label {name}={value}"
    for name, value in needs.without.items():
        refused = has.without.get(name)
        if labels is None and refused not in ("", value):
            return f"its server is not kept from the label {name}={value}"
        if labels is not None and name in labels and value in ("", labels[name]):
            return f"its server runs where the label {name}={labels[name]} is"
    if missing := [flag for flag in needs.flags if flag not in has.flags and flag not in flags]:
        return f"its server is not bound to a CPU with {', '.join(missing)}"
    return ""
