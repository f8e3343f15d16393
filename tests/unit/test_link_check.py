"""Links in files, and the failures that are known already."""

from pathlib import Path

import pytest

from urlhealth.errors import InvalidRequest
from urlhealth.link_check import Baseline, links_in

A, B, C = "https://a.example/", "https://b.example/", "https://c.example/"


@pytest.mark.parametrize(
    ("line", "links"),
    [
        ("[a](https://a.example/x_(y)), and [b](https://b.example).", ["https://a.example/x_(y)", "https://b.example"]),
        ('<a href="https://a.example/?q=1&amp;r=2">https://b.example/</a>', ["https://a.example/?q=1&r=2", B]),
        ("See https://a.example/#top, (https://a.example/#end)!", [A]),
        ("`https://a.example/` **https://b.example/** <https://c.example/>", [A, B, C]),
        ("http://a.example:8000/x; ftp://b.example/ mailto:x@c.example", ["http://a.example:8000/x"]),
        ("| https://a.example/ | https://b.example/|", [A, B]),
    ],
)
def test_the_links_of_a_line(line: str, links: list[str], tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    file.write_text(f"# Title\n{line}\n")
    assert links_in([str(file)]) == dict.fromkeys(links, f"{file}:2")


def test_a_link_has_its_first_place(tmp_path: Path) -> None:
    one, two = tmp_path / "one.md", tmp_path / "two.md"
    one.write_text(f"{A}\n")
    two.write_text(f"\n{A} {B}\n")
    assert links_in([str(one), str(two)]) == {A: f"{one}:1", B: f"{two}:2"}
    with pytest.raises(InvalidRequest, match=r"cannot read .*nowhere"):
        links_in([str(tmp_path / "nowhere.md")])


def test_only_what_the_file_does_not_know_is_new(tmp_path: Path) -> None:
    baseline = Baseline(tmp_path / "known")
    with pytest.raises(InvalidRequest, match="--write-baseline makes it"):
        baseline.compare({})
    assert baseline.write({A: "ok", B: "timeout", C: "dns"}) == 2
    assert (tmp_path / "known").read_text().splitlines()[1:] == [f"timeout {B}", f"dns {C}"]

    compared = baseline.compare({A: "tls", B: "http_error", C: "ok"})
    assert (compared.new, compared.known, compared.fine_again) == ({A: "tls"}, {B: "http_error"}, {C})
    assert compared.summary() == "1 new failures, 1 known, 1 fine again"
    # What was not probed is neither fine again nor forgotten.
    assert baseline.compare({}).fine_again == frozenset()
    assert baseline.write({C: "ok", A: "tls"}) == 2
    assert (tmp_path / "known").read_text().splitlines()[1:] == [f"tls {A}", f"timeout {B}"]


def test_a_file_that_is_no_baseline_is_an_error_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "known").write_text(f"# one\n\n{A}\n")
    with pytest.raises(InvalidRequest, match="line 3"):
        Baseline(tmp_path / "known").compare({})
