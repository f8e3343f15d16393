"""API keys and the audit log over REST."""

from typing import Annotated

from pydantic import BaseModel, Field

from serving.schemas.common import RequestBody, Time, rfc3339, rfc3339_or_none
from urlhealth.crawl import keys
from urlhealth.crawl.keys import Scope
from urlhealth.vocabulary import LOCAL_OWNER

_Most = Annotated[int | None, Field(ge=0, le=2**53)]


class KeyQuotas(RequestBody):
    """How much a key may do; null is any number."""

    urls_per_day: _Most = Field(None, description="URLs of tasks a day (UTC).")
    running_tasks: _Most = Field(None, description="Tasks of its owner under way at once.")
    monitors: _Most = Field(None, description="Monitors of its owner.")
    requests_per_s: float | None = Field(
        None, ge=0.01, le=1e6, allow_inf_nan=False, description="In each process that answers."
    )

    def to_domain(self) -> keys.Quotas:
        return keys.Quotas(**self.model_dump())


class KeyRequest(RequestBody):
    """A key to make."""

    name: str = Field(max_length=64, description="What it is for.", examples=["nightly"])
    scopes: list[Scope] = Field(min_length=1, max_length=4)
    owner: str = Field(LOCAL_OWNER, max_length=64, description="Whose tasks, monitors and targets it sees.")
    expires_in_s: float | None = Field(None, gt=0, le=1e10, description="Null: it does not expire.")
    quotas: KeyQuotas = Field(default_factory=KeyQuotas)


class Rotation(RequestBody):
    """How a key is rotated."""

    grace_s: float = Field(0.0, ge=0, le=1e8, description="Time for which the old secret is taken.")


class Key(BaseModel):
    """A key without its secret."""

    key_id: str
    name: str
    owner: str
    scopes: list[Scope]
    quotas: KeyQuotas
    created_at: Time
    expires_at: Time | None
    revoked_at: Time | None
    last_used_at: Time | None

    @classmethod
    def of(cls, key: keys.ApiKey) -> "Key":
        return cls(
            key_id=key.key_id,
            name=key.name,
            owner=key.owner,
            scopes=list(key.scopes),
            quotas=KeyQuotas(
                urls_per_day=key.quotas.urls_per_day,
                running_tasks=key.quotas.running_tasks,
                monitors=key.quotas.monitors,
                requests_per_s=key.quotas.requests_per_s,
            ),
            created_at=rfc3339(key.created_ms),
            expires_at=rfc3339_or_none(key.expires_ms),
            revoked_at=rfc3339_or_none(key.revoked_ms),
            last_used_at=rfc3339_or_none(key.used_ms),
        )


class KeyMade(BaseModel):
    """A key with its secret, which is shown once."""

    key_id: str
    secret: str


class AuditItem(BaseModel):
    """A change, or one that was tried."""

    timestamp: Time
    owner: str
    key_id: str | None = Field(description="Null: somebody at this machine.")
    action: str = Field(description="Method and path, or the command.")
    status: int | None
    request_id: str | None
    address: str | None

    @classmethod
    def of(cls, item: keys.Audited) -> "AuditItem":
        return cls(
            timestamp=rfc3339(item.ts_ms),
            owner=item.owner,
            key_id=item.key_id,
            action=item.action,
            status=item.status,
            request_id=item.request_id,
            address=item.address,
        )
