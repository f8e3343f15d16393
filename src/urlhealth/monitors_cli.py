"""`urlhealth monitors`: make the platform match a file that is kept in git, and write such a file."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.core import TyperGroup

from urlhealth.errors import InvalidRequest

if TYPE_CHECKING:
    from urlhealth.crawl.monitors import MonitorChange
    from urlhealth.crawl.store import CrawlStore
    from urlhealth.vocabulary import Monitor, MonitorSpec


class _OrList(TyperGroup):
    """Takes `monitors` for `monitors list`, with its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        has_command = args and (not args[0].startswith("-") or args[0] == "--help")
        if not has_command and not ctx.resilient_parsing:  # as it is while a shell completes
            args = ["list", *args]
        return super().parse_args(ctx, args)


app: Final = typer.Typer(cls=_OrList, help="List monitors, and keep them in a file.")

#: Exit code of a dry run that found something to do; 1 is an error.
WOULD_CHANGE: Final = 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What makes the platform match a file. Each by the target's key."""

    new: "dict[str, MonitorSpec]"
    #: With the monitor's id.
    changed: "dict[str, tuple[str, MonitorChange]]"
    #: Ids of those that the file does not have.
    surplus: dict[str, str]
    unchanged: int


@app.command()
def apply(
    file: Annotated[
        Path, typer.Option("-f", "--file", help="YAML file with a list `monitors`, or - for standard input.")
    ],
    dry_run: Annotated[
        bool, typer.Option(help="Only say what would be done; exit code 2 if that is anything.")
    ] = False,
    prune: Annotated[bool, typer.Option(help="Delete the monitors that the file does not have.")] = False,
) -> None:
    """Make the platform's monitors what a file says they are. To do it again changes nothing."""
    wanted = _read(file)
    with _crawl() as crawl:
        plan = _plan(wanted, crawl.iter_monitors())
        surplus = plan.surplus if prune else {}
        if not dry_run:
            _carry_out(crawl, plan, surplus)
    for key in plan.new:
        typer.echo(f"+ {key}")
    for key, (_, change) in plan.changed.items():
        typer.echo(f"~ {key}: {', '.join(change)}")
    for key in surplus:
        typer.echo(f"- {key}")
    to_be = "to be " if dry_run else ""
    counts = (
        f"{len(plan.new)} {to_be}created",
        f"{len(plan.changed)} {to_be}changed",
        f"{len(surplus)} {to_be}deleted",
    )
    typer.echo(", ".join((*counts, f"{plan.unchanged} as they are")), err=True)
    if len(plan.surplus) > len(surplus):
        typer.echo(f"{len(plan.surplus)} are not in {file}, and stay: --prune deletes them", err=True)
    if dry_run and (plan.new or plan.changed or surplus):
        raise typer.Exit(WOULD_CHANGE)


@app.command()
def export(
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write. [default: standard output]")] = None,
) -> None:
    """Write all monitors as a file for `apply`, credentials in their options included."""
    import yaml

    with _crawl() as crawl:
        found = sorted(crawl.iter_monitors(), key=lambda monitor: monitor.target.key)
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    content = {"monitors": [_item(monitor) for monitor in found]}
    text = yaml.dump(content, Dumper=dumper, sort_keys=False, allow_unicode=True, width=120)
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"cannot write {out}: {error.strerror}") from error


def _plan(wanted: "Mapping[str, MonitorSpec]", present: "Iterable[Monitor]") -> Plan:
    new = dict(wanted)
    changed, surplus, unchanged = {}, {}, 0
    for monitor in present:
        spec = new.pop(monitor.target.key, None)
        if spec is None:
            surplus[monitor.target.key] = monitor.monitor_id
        elif change := _difference(spec, monitor):
            changed[monitor.target.key] = (monitor.monitor_id, change)
        else:
            unchanged += 1
    return Plan(new=new, changed=changed, surplus=surplus, unchanged=unchanged)


def _difference(spec: "MonitorSpec", monitor: "Monitor") -> "MonitorChange":
    change: MonitorChange = {}
    if spec.schedule is not None:
        if spec.schedule != monitor.schedule:
            change["schedule"] = spec.schedule
    elif spec.interval_s is not None and (spec.interval_s != monitor.interval_s or monitor.schedule is not None):
        change["interval_s"] = spec.interval_s
    if spec.weight != monitor.weight:
        change["weight"] = spec.weight
    if spec.group is not None and spec.group != monitor.target.group:
        change["group"] = spec.group
    if spec.options != monitor.options:
        change["options"] = spec.options
    if spec.tags != monitor.tags:
        change["tags"] = spec.tags
    if spec.paused != monitor.paused:
        change["paused"] = spec.paused
    if spec.maintenance != monitor.maintenance:
        change["maintenance"] = spec.maintenance
    return change


def _carry_out(crawl: "CrawlStore", plan: Plan, surplus: Mapping[str, str]) -> None:
    crawl.change_each(dict(plan.changed.values()))
    faults = [answer for answer in crawl.create_monitors(plan.new.values()) if isinstance(answer, InvalidRequest)]
    crawl.delete_each(list(surplus.values()))
    if faults:
        raise InvalidRequest(f"{faults[0]}; {len(faults)} were not created, the rest is done: run it again")


def _read(file: Path) -> "dict[str, MonitorSpec]":
    """The monitors of a file, by their targets' keys.

    Raises:
        InvalidRequest: it cannot be read, is none, or has a monitor that cannot be or is there twice.
    """
    from serving.schemas import parse_monitor
    from urlhealth.probing.urls import parse_target

    wanted: dict[str, MonitorSpec] = {}
    positions: dict[str, int] = {}
    faults = []
    for position, item in enumerate(_items(file)):
        try:
            spec = parse_monitor(item)
            key = parse_target(spec.url, name=spec.name).key
            if key in wanted:
                raise InvalidRequest(f"{key} is monitors[{positions[key]}] already: give one of them a name")
        except InvalidRequest as fault:
            faults.append(f"monitors[{position}]: {fault}")
        else:
            wanted[key], positions[key] = spec, position
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise InvalidRequest(f"{file}: {faults[0]}{more}")
    return wanted


def _items(file: Path) -> list[Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        content = yaml.load(text, Loader=loader)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read {file}: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        raise InvalidRequest(f"{file}{line}: it is not YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(content, dict) or content.keys() != {"monitors"} or not isinstance(content["monitors"], list):
        raise InvalidRequest(f"{file}: it must have a list `monitors`, and nothing else beside it")
    return content["monitors"]


def _item(monitor: "Monitor") -> dict[str, Any]:
    """The monitor as `apply` reads it, without what is so by default."""
    from dataclasses import asdict

    from serving.schemas import Maintenance
    from serving.schemas.monitors import Schedule
    from urlhealth.probing.urls import registrable_domain
    from urlhealth.vocabulary import DEFAULT_OPTIONS

    target = monitor.target
    options = {
        name: value for name, value in asdict(monitor.options).items() if value != getattr(DEFAULT_OPTIONS, name)
    }
    if "headers" in options:
        options["headers"] = dict(options["headers"])
    windows = [Maintenance.of(window).model_dump(mode="json", exclude_none=True) for window in monitor.maintenance]
    item = {
        "url": target.url,
        "name": target.name,
        "interval_s": monitor.interval_s if monitor.schedule is None else None,
        "schedule": None if monitor.schedule is None else Schedule.of(monitor.schedule).model_dump(mode="json"),
        "weight": monitor.weight if monitor.weight != 1 else None,
        "group": None if target.group == registrable_domain(target.host) else target.group,
        "options": options,
        "tags": list(monitor.tags),
        "paused": monitor.paused,
        "maintenance": windows,
    }
    return {name: value for name, value in item.items() if value}


@contextmanager
def _crawl() -> "Iterator[CrawlStore]":
    from urlhealth.platform import Platform
    from urlhealth.settings import load_settings

    with closing(Platform(load_settings())) as platform:
        yield platform.open(check=False).crawl
