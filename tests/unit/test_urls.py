"""What is taken for a URL, what it becomes, and what is said of the rest."""

import ada_url
import pytest
import tldextract
from hypothesis import given
from hypothesis import strategies as st

from urlhealth.errors import InvalidRequest, InvalidUrls
from urlhealth.probing.urls import MAX_LENGTH, UrlLines, parse_target, parse_targets, registrable_domain


@pytest.mark.parametrize(
    ("sent", "url", "host", "group"),
    [
        ("https://example.com", "https://example.com/", "example.com", "example.com"),
        (" HTTP://Shop.Example.CO.UK:80/a b?q=ü#part ", "http://shop.example.co.uk/a%20b?q=%C3%BC",
         "shop.example.co.uk", "example.co.uk"),
        ("https://example.com:443/../x", "https://example.com/x", "example.com", "example.com"),
        ("http://example.com:8080?q", "http://example.com:8080/?q", "example.com:8080", "example.com"),
        ("http://bücher.de/", "http://xn--bcher-kva.de/", "xn--bcher-kva.de", "xn--bcher-kva.de"),
        ("http://0x7f.1/", "http://127.0.0.1/", "127.0.0.1", "127.0.0.1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/", "127.0.0.1:8000", "127.0.0.1"),
        ("http://[::1]:8000/", "http://[::1]:8000/", "[::1]:8000", "::1"),
        ("http://steady-01.shop.localhost:8080/", "http://steady-01.shop.localhost:8080/",
         "steady-01.shop.localhost:8080", "shop.localhost"),
        ("http://localhost/", "http://localhost/", "localhost", "localhost"),
        ("http://co.uk/", "http://co.uk/", "co.uk", "co.uk"),
        ("http://www.example.com./", "http://www.example.com./", "www.example.com.", "example.com"),
    ],
)  # fmt: skip
def test_a_url_becomes_a_target(sent: str, url: str, host: str, group: str) -> None:
    target = parse_target(sent)
    assert (target.url, target.host, target.group, target.key) == (url, host, group, url)


def test_a_monitor_names_its_group_and_itself() -> None:
    target = parse_target("https://example.com", group="acme", name="checkout")
    assert (target.group, target.key) == ("acme", "https://example.com/#checkout")


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("example.com", "did you mean 'https://example.com'?"),
        ("example.com:8080/x", "did you mean 'https://example.com:8080/x'?"),
        ("localhost:8000", "did you mean 'https://localhost:8000'?"),
        ("//example.com/x", "did you mean 'https://example.com/x'?"),
        ("mailto:someone@example.com", "scheme 'mailto' cannot be probed: only http and https can"),
        ("FTP://example.com/", "scheme 'ftp' cannot be probed"),
        ("file:///etc/passwd", "scheme 'file'"),
        ("http://", "has no host"),
        ("https:///", "has no host"),
        ("http://a b/", "not a valid URL"),
        ("http://example.com:99999/", "not a valid URL"),
        ("two words", "is not a URL"),
        ("http://\ud800/", "not a valid URL"),
        ("http://example.com/\0", "NUL"),
        ("http://user:secret@example.com/", "leave out what stands before '@'"),
        ("http://user@example.com/", "leave out what stands before '@'"),
        ("http://example.com/" + "a" * MAX_LENGTH, f"{MAX_LENGTH} is the most"),
        ("http://example.com/" + "ü" * 2000, "once it is percent-encoded"),
    ],
)
def test_what_is_no_url_is_told_why(sent: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_target(sent)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("sent", [None, 7, b"https://example.com", ["https://example.com"]])
def test_what_is_no_string_is_no_url(sent: object) -> None:
    with pytest.raises(InvalidRequest, match=f"must be a string, not {type(sent).__name__}"):
        parse_target(sent)  # type: ignore[arg-type]


def test_a_list_names_every_position_that_is_wrong() -> None:
    with pytest.raises(InvalidUrls) as caught:
        parse_targets(["https://example.com", "", "https://example.org", "ftp://example.net"])
    assert list(caught.value.problems) == [1, 3]
    assert str(caught.value) == "urls[1]: the URL is empty (and 1 more)"


def test_a_list_keeps_its_order() -> None:
    assert [t.url for t in parse_targets(["http://b/", "http://a", "http://b"])] == [
        "http://b/",
        "http://a/",
        "http://b/",
    ]


@given(
    st.from_regex(
        r"https?://([a-z0-9.-]|xn--){1,12}(:[0-9]{1,5})?/([a-z.%0-9/~-]|%2e){0,12}(\?[a-z.%0-9/=&+#-]{0,6})?",
        fullmatch=True,
    )
)
def test_what_needs_no_parser_is_what_the_parser_makes_of_it(url: str) -> None:
    try:
        target = parse_target(url)
    except InvalidRequest:
        with pytest.raises(ValueError, match=r".*"):
            ada_url.normalize_url(url)
        return
    parsed = ada_url.URL(ada_url.normalize_url(url))
    assert target.url == parsed.href.partition("#")[0]
    assert target.host == parsed.host


def test_who_runs_a_host_is_what_the_public_suffix_list_says() -> None:
    extract = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    for rule in extract.tlds:
        suffix = rule.lstrip("!").replace("*", "q")
        host = f"a.b.{suffix}".encode("idna").decode()
        assert registrable_domain(host) == extract(host).top_domain_under_public_suffix


def test_lines_are_numbered_as_they_stand_in_the_file() -> None:
    lines = UrlLines(["# first\n", "http://a/\n", "\n", "  http://b/ \n", "http://c/"])
    assert list(lines) == ["http://a/", "http://b/", "http://c/"]
    assert [lines.line_of(position) for position in range(3)] == [2, 4, 5]


@given(
    st.text(max_size=60) | st.text(max_size=40).map("http://".__add__) | st.text(max_size=40).map("http://a/".__add__)
)
def test_any_text_is_a_target_or_refused_and_normalising_twice_changes_nothing(text: str) -> None:
    try:
        target = parse_target(text)
    except InvalidRequest:
        return
    assert parse_target(target.url) == target
    assert target.url.startswith(("http://", "https://"))
    assert "#" not in target.url
    assert target.url.isascii()
    assert target.host
    assert target.group == registrable_domain(target.host)
