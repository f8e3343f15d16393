"""Links in continuous integration: the commands of the page, the hook and the action, as they are written there."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.acceptance.conftest import CountingWeb, install, new_python
from tests.support import environment, free_port, run
from urlhealth.settings import ROOT

PAGE = (ROOT / "docs/ci.md").read_text(encoding="utf-8")


class Project(NamedTuple):
    """A project with a document whose second link fails."""

    folder: Path
    good: str
    bad: str
    env: dict[str, str]

    def run(self, *command: str, **extra: str) -> tuple[int, str]:
        """Run a command there: its exit code, and what it says on standard error."""
        done = run(*command, env=self.env | extra, cwd=self.folder, check=False)
        return done.returncode, done.stderr

    def break_another(self) -> str:
        """Let one more link of the document fail."""
        other = f"http://127.0.0.1:{free_port()}/other"
        with (self.folder / "docs/a.md").open("a") as file:
            file.write(f"and {other}\n")
        return other


@pytest.fixture
def project(tmp_path: Path, counting_web: CountingWeb) -> Iterator[Project]:
    good, bad = counting_web.url("/fine"), f"http://127.0.0.1:{free_port()}/gone"
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.md").write_text(f"[one]({good}#top)\n[two]({bad}).\n")
    (tmp_path / "site.txt").write_text(f"{bad}\n")
    yield Project(tmp_path, good, bad, environment(tmp_path / "home"))
    assert counting_web.requests["/fine"]


def test_the_commands_of_the_page(project: Project) -> None:
    (block,) = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    checked, written, compared, listed = (("bash", "-euc", line) for line in block.splitlines())
    code, said = project.run(*compared)
    assert (code, said.count("\n")) == (1, 1)
    assert "links.known" in said
    assert project.run(*checked) == (1, f"docs/a.md:2: connect: {project.bad}\n")
    assert project.run(*written) == (0, "links.known: 1 links that fail\n")
    assert project.run(*compared) == (0, "0 new failures, 1 known, 0 fine again\n")
    assert project.run(*listed)[0] == 0
    other = project.break_another()
    assert project.run(*compared) == (
        1, f"1 new failures, 1 known, 0 fine again\ndocs/a.md:3: connect: {other}\n"
    )  # fmt: skip


@pytest.fixture
def pre_commit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment with the program pre-commit."""
    python = new_python(tmp_path_factory.mktemp("pre-commit"))
    install(python, "pre-commit")
    return python


def test_the_hook(pre_commit: Path, project: Project) -> None:
    """The program pre-commit, with the page's file, but for where the repository is and which commit."""
    (given,) = re.findall(r"^```yaml\n(repos:.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    commit = run("git", "rev-parse", "HEAD", env=project.env).stdout.strip()
    given = given.replace("https://github.com/OWNER/urlhealth", str(ROOT)).replace("REVISION", commit)
    (project.folder / ".pre-commit-config.yaml").write_text(given)
    (project.folder / "links.known").write_text(f"connect {project.bad}\n")
    for command in (("init", "--quiet"), ("add", ".")):
        run("git", *command, env=project.env, cwd=project.folder)

    env = project.env | {"PRE_COMMIT_HOME": str(pre_commit.parents[2] / "cache")}
    command = (str(pre_commit), "-m", "pre_commit", "run", "--all-files", "--color=never")
    done = run(*command, env=env, cwd=project.folder, check=False)
    assert (done.returncode, "Passed" in done.stdout) == (0, True), done.stdout + done.stderr
    other = project.break_another()
    done = run(*command, env=env, cwd=project.folder, check=False)
    assert done.returncode == 1
    assert f"docs/a.md:3: connect: {other}\n" in done.stdout


def test_the_action(project: Project) -> None:
    """The action's own script, with the inputs of the page."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    used = yaml.safe_load(re.findall(r"^```yaml\n(jobs:.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0])
    given = used["jobs"]["links"]["steps"][1]["with"]
    assert set(given) <= set(action["inputs"])
    inputs = {name: given.get(name, about["default"]) for name, about in action["inputs"].items()}
    install, probe = action["runs"]["steps"]
    assert install["run"] == 'make --directory "$GITHUB_ACTION_PATH" setup'
    values = {f"${{{{ inputs.{name} }}}}": value for name, value in inputs.items()}
    env = {name: values.get(value, "") for name, value in probe["env"].items() if name != "URLHEALTH_HOME"}
    assert all(env[name] for name in ("FILES", "BASELINE", "OPTIONS"))

    (project.folder / "README.md").write_text("nothing\n")
    (project.folder / "links.known").write_text(f"connect {project.bad}\n")
    script = ("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", probe["run"])
    at = {"GITHUB_ACTION_PATH": str(ROOT)} | env
    assert (ROOT / ".venv").exists(), "`make setup` installs the platform there, and the action uses it from there"
    assert project.run(*script, **at) == (0, "0 new failures, 1 known, 0 fine again\n")
    assert project.run(*script, **at | {"FILES": "", "URLS": "site.txt", "BASELINE": ""})[0] == 1
