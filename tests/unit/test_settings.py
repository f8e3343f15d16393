"""Settings that cannot be used are said by the name of their variable, and in words."""

import re

import pytest

from urlhealth.errors import ConfigurationError
from urlhealth.settings import Settings, load_settings, require_loopback


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("URLHEALTH_PORT", "abc", "this is no whole number"),
        ("URLHEALTH_PORT", "70000", "this must be 65535 or less"),
        ("URLHEALTH_LEASE_S", "0", "this must be more than 0"),
        ("URLHEALTH_LATE_S", "nan", "this must be a finite number"),
        ("URLHEALTH_LATE_S", "-1", "this must be 0 or more"),
        ("URLHEALTH_ALLOW_ADDRESSES", "10.0.0.1/8", "10.0.0.1/8 has host bits set; write networks like 10.0.0.0/8,"),
        ("URLHEALTH_ALLOW_ADDRESSES", "::1,home", "'home' does not appear to be an IPv4 or IPv6 network; write"),
        ("FEAST_FS_YAML_FILE_PATH", "~nobody-of-that-name/f.yaml", "Could not determine home directory."),
    ],
)
def test_a_value_that_cannot_be_used_is_said(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=f"^{re.escape(f'{variable}={value}: {words}')}"):
        load_settings()


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("URLHEALTH_HOME", raising=False)
    default = load_settings()
    for variable in ("URLHEALTH_HOME", "URLHEALTH_PORT", "URLHEALTH_ALLOW_ADDRESSES", "FEAST_FS_YAML_FILE_PATH"):
        monkeypatch.setenv(variable, "")
    assert load_settings() == default == Settings()


def test_only_loopback_is_listened_on() -> None:
    for host in ("127.0.0.1", "127.8.0.1", "::1", "localhost"):
        require_loopback(host)
    for host in ("0.0.0.0", "::", "192.168.1.1", "example.com", ""):
        with pytest.raises(ConfigurationError, match="no authentication"):
            require_loopback(host)
