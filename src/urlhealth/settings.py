"""Every setting, in one place: this is the only module that reads the environment.

Each is set by an environment variable: `URLHEALTH_` and the field's name in capitals. Feast and MLflow are configured
by the variables that they own themselves (`FEAST_FS_YAML_FILE_PATH`, `MLFLOW_TRACKING_URI`), so that their own command
lines and this platform cannot disagree.
"""

import os
import re
from base64 import urlsafe_b64decode
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Final

from pydantic import AliasChoices, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from urlhealth.errors import ConfigurationError

#: The checkout, or the unpacked bento, that this module runs from: where the feature repository lies.
_HERE: Final = Path(__file__).resolve()
ROOT = next((folder for folder in _HERE.parents if (folder / "feature_repo").is_dir()), _HERE.parents[2])

#: What is wrong with a value, by the type of pydantic's error.
_WRONG: Final = {
    "int_parsing": "this is no whole number",
    "float_parsing": "this is no number",
    "finite_number": "this must be a finite number",
    "greater_than": "this must be more than {gt:g}",
    "greater_than_equal": "this must be {ge:g} or more",
    "less_than_equal": "this must be {le:g} or less",
    "value_error": "{error}",
}


_USERINFO: Final = re.compile(r"(://)[^/?#\s]+@")
_SECRET_IN_QUERY: Final = re.compile(r"([?&][^=&\s]*(?:pass|pwd|secret|token|key)[^=&\s]*=)[^&#\s]+", re.IGNORECASE)


class Settings(BaseSettings):
    """The platform's settings. The defaults need no server and listen to this machine only."""

    model_config = SettingsConfigDict(
        env_prefix="URLHEALTH_",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        populate_by_name=True,
        allow_inf_nan=False,
    )

    home: Path = Field(ROOT / "var", description="Folder of everything that the embedded stores keep.")
    database_url: str = Field(
        "", description="SQLAlchemy URL of tasks, probes and monitors. Empty: SQLite in the home folder.", repr=False
    )
    online_store: str = Field(
        "",
        description="Redis server of the newest features, like `redis://HOST:PORT/DB?prefix=NAME`. "
        "Empty: an LMDB file in the home folder.",
        repr=False,
    )
    host: str = Field(
        "127.0.0.1", description="Address that the server listens on; loopback only, unless there are API keys."
    )
    port: int = Field(8000, description="Port that the server listens on.", ge=0, le=65535)
    allow_addresses: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (),
        description="Networks, comma-separated, that may be probed although they are private, loopback or reserved.",
    )
    deny_addresses: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (), description="Networks, comma-separated, that must not be probed, whatever is allowed."
    )
    allow_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Hosts, comma-separated: if there are any, only these and those below them may be probed."
    )
    deny_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Hosts, comma-separated, that must not be probed, nor those below them."
    )
    allow_ports: Annotated[tuple[int, ...], NoDecode] = Field(
        (), description="Ports, comma-separated: if there are any, only these. Empty: all that browsers speak HTTP to."
    )
    deny_ports: Annotated[tuple[int, ...], NoDecode] = Field(
        (), description="Ports, comma-separated, that must not be probed."
    )
    secret_key: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Keys (Fernet), comma-separated, that credentials in options and alert channels are stored "
        "encrypted with: the first encrypts, all decrypt. Empty: one in the home folder.",
        repr=False,
    )
    user_agent: str = Field("urlhealth/0.1 (URL health monitor)", description="User-Agent header of every probe.")
    ca_file: Path | None = Field(
        None, description="File (PEM) with certificates to trust in probes, beside the machine's own."
    )
    probe_concurrency: int = Field(256, description="Probes under way at once in one process.", ge=1)
    probe_concurrency_per_host: int = Field(8, description="Probes under way at once to one host.", ge=1)
    probe_rate_per_host: float = Field(0.0, description="Probes begun in a second to one host; 0 is any number.", ge=0)
    canary: str = Field(
        "", description="URL that is always up, to tell an outage of our own network by. Empty: none is told."
    )
    broker_url: str = Field(
        "",
        description="Broker of probing workers, redis:// or amqp://. Empty: the server probes by itself.",
        repr=False,
    )
    broker_prefix: str = Field("urlhealth", description="First part of the names of the broker's queues.", min_length=1)
    max_urls_per_task: int = Field(1_000_000, description="URLs that one task may have.", ge=1)
    lease_s: float = Field(8.0, description="Time after which a silent writer's lease passes to another process.", gt=0)
    pipeline_poll_s: float = Field(0.25, description="Time between looks for probes that are not yet features.", gt=0)
    late_s: float = Field(600.0, description="Lateness up to which a probe is put in order with the others.", ge=0)
    known_for_s: float = Field(
        172_800.0, description="Time for which a state is held for known after the observation that showed it.", gt=0
    )
    keep_probes_days: int = Field(
        0, description="Days for which single probes, and logged predictions, are kept; 0 is for ever.", ge=0
    )
    keep_hours_days: int = Field(0, description="Days for which roll-ups by hour are kept; 0 is for ever.", ge=0)
    keep_days_days: int = Field(
        0, description="Days for which roll-ups by day, and incidents, are kept; 0 is for ever.", ge=0
    )
    champion_poll_s: float = Field(5.0, description="Time between two looks for a newly promoted model.", gt=0)
    rescore_s: float = Field(
        300.0, description="Time between two rounds in which the forecasts of all targets are made anew.", gt=0
    )
    shadow_share: float = Field(
        0.0,
        description="Share of the answers that the version called challenger scores too, for the log alone.",
        ge=0,
        le=1,
    )
    max_requests: int = Field(
        128, description="Requests that change or compute something at once in one process; more get 429.", ge=1
    )
    log_json: bool = Field(
        False, description="Whether the server's log is JSON lines, one for each request too, with the request's id."
    )
    otlp_endpoint: str = Field(
        "", description="OpenTelemetry collector (OTLP over HTTP) that traces of requests are sent to. Empty: none."
    )
    server: str = Field(
        "http://127.0.0.1:8000", description="Address of the running platform that the command line asks."
    )
    server_key: str = Field("", description="API key that it asks with. Empty: none.", repr=False)
    status_page: bool = Field(
        False, description="Whether there is a status page (/status, /status.rss) of the monitors, by tag."
    )
    retrain_every_h: float = Field(
        0.0, description="Hours from one retraining to the next, in a process of its own; 0 is none.", ge=0
    )
    retrain_drift_psi: float = Field(
        0.0,
        description="PSI, since training, of a feature that the champion learnt from, beyond which it is retrained, "
        "once a day at most; 0 is none.",
        ge=0,
    )
    mlflow_tracking_uri: str = Field(
        "",
        validation_alias=AliasChoices("MLFLOW_TRACKING_URI", "mlflow_tracking_uri"),
        description="MLflow's own variable. Empty: SQLite and a folder in the home folder.",
        repr=False,
    )
    mlflow_ui: str = Field(
        "", description="Address of MLflow's pages, for links. Empty: that of the tracking server, if there is one."
    )
    feast_ui: str = Field("", description="Address of Feast's pages (`feast ui`), for links. Empty: no link.")
    feast_yaml: Path = Field(
        ROOT / "feature_repo" / "feature_store.yaml",
        validation_alias=AliasChoices("FEAST_FS_YAML_FILE_PATH", "feast_yaml"),
        description="Feast's own variable: the file that names Feast's stores.",
    )

    @field_validator("allow_hosts", "deny_hosts", "allow_ports", "deny_ports", "secret_key", mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("allow_addresses", "deny_addresses", mode="before")
    @classmethod
    def _networks(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return tuple(ip_network(part.strip()) for part in value.split(",") if part.strip())
        except ValueError as error:
            raise ValueError(f"{error}; write networks like 10.0.0.0/8,::1/128") from error

    @field_validator("secret_key")
    @classmethod
    def _fernet_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for key in value:
            try:
                decoded = urlsafe_b64decode(key)
            except ValueError:
                decoded = b""
            if len(decoded) != 32:
                raise ValueError("a key is 32 bytes in URL-safe base64, as `openssl rand -base64 32 | tr +/ -_` makes")
        return value

    @field_validator("home", "feast_yaml", "ca_file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        try:
            return None if value is None else value.expanduser().absolute()
        except RuntimeError as error:  # the folder of a user that does not exist
            raise ValueError(str(error)) from error

    @cached_property
    def resolved_database_url(self) -> str:
        """`database_url`, or the SQLite file in the home folder."""
        return self.database_url or f"sqlite:///{self.home / 'urlhealth.db'}"

    @cached_property
    def resolved_tracking_uri(self) -> str:
        """`MLFLOW_TRACKING_URI`, or the SQLite file in the home folder."""
        return self.mlflow_tracking_uri or f"sqlite:///{self.home / 'mlflow' / 'mlflow.db'}"

    @property
    def mlflow_pages(self) -> str:
        """Where a browser finds MLflow's pages; empty if that is not known."""
        served = self.mlflow_tracking_uri.startswith(("http://", "https://"))
        return (self.mlflow_ui or (redacted(self.mlflow_tracking_uri) if served else "")).rstrip("/")

    @property
    def mlflow_artifacts(self) -> Path:
        """Where the embedded MLflow keeps models and plots."""
        return self.home / "mlflow" / "artifacts"

    @property
    def feast_home(self) -> Path:
        """Where the embedded Feast stores and registry are."""
        return self.home / "feast"

    @property
    def secret_key_file(self) -> Path:
        """Where the key is that credentials are encrypted with, if none is set."""
        return self.home / "secret.key"

    @property
    def drift_file(self) -> Path:
        """Where the newest comparison of training with serving is."""
        return self.home / "drift.json"

    @property
    def consistency_file(self) -> Path:
        """Where the newest comparison of the online with the offline store is."""
        return self.home / "consistency.json"

    def feast_yaml_text(self) -> str:
        """The text of `feast_yaml`, its `${VAR}` replaced from the environment, as Feast does it."""
        return os.path.expandvars(self.feast_yaml.read_text())


def load_settings() -> Settings:
    """The settings of this process, from the environment.

    Raises:
        ConfigurationError: naming each variable that cannot be used.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise ConfigurationError("; ".join(map(_problem, error.errors()))) from error


def environment(settings: Settings) -> dict[str, str]:
    """The variables by which a child process gets the same settings."""
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    return {
        variable(name): ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in values.items()
        if value is not None
    }


def variable(field: str) -> str:
    """The environment variable that sets a field of :class:`Settings`."""
    alias = Settings.model_fields[field].validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"URLHEALTH_{field.upper()}"


def _problem(found: ErrorDetails) -> str:
    """What pydantic found, with the name of the variable, and in words."""
    name = str(found["loc"][0])
    context = found.get("ctx", {})
    words = _WRONG.get(found["type"], found["msg"]).format(**context)
    shown = "***" if name == "secret_key" else found["input"]
    return f"{variable(name) if name in Settings.model_fields else name}={shown}: {words}"


def redacted(url: str) -> str:
    """A URL, or a text with URLs in it, without passwords, or user names alone, that stand in it."""
    return _SECRET_IN_QUERY.sub(r"\1***", _USERINFO.sub(r"\1***@", url))


def expanded(text: str) -> str:
    """The text, each `${NAME}` in it replaced by that environment variable.

    Raises:
        ConfigurationError: one is not set.
    """

    def value(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise ConfigurationError(f"the environment variable {found[1]} is not set")
        return os.environ[found[1]]

    return re.sub(r"\$\{(\w+)\}", value, text)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def require_loopback(host: str, *, keys: bool = False) -> None:
    """Raises `ConfigurationError` unless only this machine can reach what listens on `host`, or API keys are needed."""
    if not keys and not is_loopback(host):
        raise ConfigurationError(
            f"will not listen on {host}: without an API key there is no authentication, and only loopback (127.0.0.1, "
            "::1) is served; make one with `urlhealth keys create NAME --scope admin`"
        )


def quiet_third_parties() -> None:
    """Switch off the usage reports of BentoML, Feast and MLflow, and MLflow's bars, here and in child processes."""
    for name, value in {
        "BENTOML_DO_NOT_TRACK": "True",
        "FEAST_USAGE": "False",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }.items():
        os.environ.setdefault(name, value)
