"""`urlhealth monitors` as its callers meet it: a file in, a file out, and exit codes for CI."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from urlhealth import cli
from urlhealth.crawl.store import CrawlStore
from urlhealth.platform import Platform
from urlhealth.settings import Settings

FILE = """\
monitors:
  - url: https://Example.com
    interval_s: 300
  - url: https://example.com/
    name: login
    interval_s: 60
    group: acme
    tags: [prod, shop]
    options:
      expected_statuses: [200, 204]
      headers: {Accept: text/plain}
      bearer_token: secret
    paused: true
    maintenance:
      - {start: 2026-01-04T02:00:00Z, end: 2026-01-04T04:00:00Z, every: week}
      - {start: "2026-02-01T00:00:00+01:00", end: "2026-02-02T00:00:00+01:00"}
"""
EMPTY = "monitors: []\n"


class Done(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def crawl(tmp_path: Path) -> Iterator[CrawlStore]:
    """The store that the commands work on."""
    with Platform(Settings(home=tmp_path / "home", mlflow_tracking_uri="")) as platform:
        yield platform.crawl


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs `urlhealth monitors` with arguments, in this process."""
    monkeypatch.setenv("URLHEALTH_HOME", str(tmp_path / "home"))

    def run(*arguments: str) -> Done:
        monkeypatch.setattr("sys.argv", ["urlhealth", "monitors", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return Done(int(exit_.value.code or 0), *capfd.readouterr())

    return run


@pytest.fixture
def apply(command: Command, tmp_path: Path) -> Command:
    """Runs `apply` on a text."""

    def run(text: str, *arguments: str) -> Done:
        file = tmp_path / "monitors.yaml"
        file.write_text(text)
        return command("apply", "-f", str(file), *arguments)

    return run


def test_the_platform_becomes_what_the_file_says_and_stays_so(apply: Command, crawl: CrawlStore) -> None:
    dry = apply(FILE, "--dry-run")
    assert (dry.code, dry.out) == (2, "+ https://example.com/\n+ https://example.com/#login\n")
    assert list(crawl.iter_monitors()) == []

    assert apply(FILE).code == 0
    plain, login = made = list(crawl.iter_monitors())
    assert (plain.target.key, plain.interval_s) == ("https://example.com/", 300)
    assert (login.target.group, login.options.bearer_token, len(login.maintenance)) == ("acme", "secret", 2)

    for arguments in ([], ["--dry-run"], ["--dry-run", "--prune"]):
        again = apply(FILE, *arguments)
        assert (again.code, again.out) == (0, "")
        assert "2 as they are" in again.err
    assert list(crawl.iter_monitors()) == made

    changed = FILE.replace("interval_s: 60", "interval_s: 90").replace("[prod, shop]", "[prod]")
    assert apply(changed, "--dry-run") == (2, "~ https://example.com/#login: interval_s, tags\n", "0 to be created, "
        "1 to be changed, 0 to be deleted, 1 as they are\n")  # fmt: skip
    assert apply(changed).code == 0
    after = crawl.monitor(login.monitor_id)
    assert (after.interval_s, after.tags, after.options) == (90, ("prod",), login.options)


def test_what_the_file_does_not_have_goes_only_with_prune(apply: Command, crawl: CrawlStore) -> None:
    apply(FILE)
    kept = apply(EMPTY)
    assert (kept.code, kept.out) == (0, "")
    assert "--prune deletes them" in kept.err
    assert apply(EMPTY, "--prune", "--dry-run").code == 2
    assert len(list(crawl.iter_monitors())) == 2
    assert apply(EMPTY, "--prune").out == "- https://example.com/\n- https://example.com/#login\n"
    assert list(crawl.iter_monitors()) == []


def test_an_export_applies_as_it_is(apply: Command, command: Command, crawl: CrawlStore, tmp_path: Path) -> None:
    apply(FILE)
    made = list(crawl.iter_monitors())
    exported = command("export").out
    assert [list(item) for item in yaml.safe_load(exported)["monitors"]] == [
        ["url", "interval_s"],
        ["url", "name", "interval_s", "group", "options", "tags", "paused", "maintenance"],
    ]
    assert apply(exported, "--dry-run", "--prune").code == 0
    assert command("export", "-o", str(tmp_path / "out.yaml")).code == 0
    assert (tmp_path / "out.yaml").read_text() == exported
    apply(EMPTY, "--prune")
    assert apply(exported).code == 0
    for old, new in zip(made, crawl.iter_monitors(), strict=True):
        for field in ("target", "interval_s", "options", "tags", "paused", "maintenance"):
            assert getattr(old, field) == getattr(new, field)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it must have a list `monitors`"),
        ("monitors: 7", "it must have a list `monitors`"),
        ("monitors: []\nmonitor: []", "nothing else beside it"),
        ("monitors: [", "line 2: it is not YAML"),
        ("monitors: [7]", "monitors[0]: "),
        ("monitors: [{url: https://a.example, interval_s: 1}]", "monitors[0]: interval_s: "),
        ("monitors: [{url: https://a.example, interval_s: 60, colour: x}]", "monitors[0]: colour: "),
        ("monitors: [{url: a.example, interval_s: 60}]", "monitors[0]: 'a.example' has no scheme"),
        (f"{FILE}  - {{url: https://example.com, interval_s: 10}}\n  - 7", "monitors[0] already: give one of them a"),
    ],
)
def test_a_file_that_cannot_be_is_one_line_and_changes_nothing(
    apply: Command, crawl: CrawlStore, text: str, said: str
) -> None:
    done = apply(text, "--prune")
    assert (done.code, done.out) == (1, "")
    assert said in done.err
    assert done.err.count("\n") == 1
    assert list(crawl.iter_monitors()) == []


def test_a_file_that_is_not_there_is_named(command: Command) -> None:
    done = command("apply", "-f", "/nowhere/monitors.yaml")
    assert done.code == 1
    assert "cannot read /nowhere/monitors.yaml" in done.err


ADAPTIVE = """\
monitors:
  - url: https://example.com/
    schedule: {mode: adaptive, budget_per_url_hour: 2, min_interval_s: 60, max_interval_s: 7200}
    weight: 3
  - url: https://example.org/
    interval_s: 300
"""


def test_adaptive_schedules_are_applied_exported_and_changed(
    command: Command, crawl: CrawlStore, tmp_path: Path
) -> None:
    file = tmp_path / "monitors.yaml"
    file.write_text(ADAPTIVE)
    assert command("apply", "-f", str(file)).code == 0
    monitor = next(crawl.iter_monitors())
    assert monitor.schedule is not None
    assert (monitor.schedule.budget_per_url_hour, monitor.weight) == (2, 3)
    exported = command("export").out
    assert yaml.safe_load(exported)["monitors"][0]["schedule"]["mode"] == "adaptive"
    file.write_text(exported)
    assert "2 as they are" in command("apply", "-f", str(file), "--dry-run").err
    file.write_text(ADAPTIVE.replace("budget_per_url_hour: 2", "budget_per_url_hour: 4").replace("weight: 3", ""))
    assert command("apply", "-f", str(file)).out == "~ https://example.com/: schedule, weight\n"
    file.write_text(
        "monitors: [{url: https://example.com/, interval_s: 900}, {url: https://example.org/, interval_s: 300}]"
    )
    assert command("apply", "-f", str(file)).out == "~ https://example.com/: interval_s\n"
    assert next(crawl.iter_monitors()).schedule is None


def test_the_command_shows_where_budgets_went(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "monitors.yaml"
    file.write_text(ADAPTIVE)
    command("apply", "-f", str(file))

    def polling(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["urlhealth", "polling", *arguments])
        with pytest.raises(SystemExit):
            cli.main()
        return capfd.readouterr().out

    assert "60 to 7,200" in polling()
    assert "https://example.com/" in polling("--pool", "1")
    assert '"budget_per_hour":2.0' in polling("--json")
    assert '"probes":0' in polling("--pool", "1", "--json")
