"""API keys and the audit log: for `admin` only."""

from fastapi import APIRouter, Response

from serving.dependencies import CallerDep, Cursor, Limit, PlatformDep
from serving.openapi import problems
from serving.schemas import Listing
from serving.schemas.keys import AuditItem, Key, KeyMade, KeyRequest, Rotation

router = APIRouter(prefix="/api/v1", tags=["keys"])


@router.post("/keys", status_code=201, summary="Make an API key", responses=problems(401, 403, 413, 422, 503))
def create_key(body: KeyRequest, platform: PlatformDep, caller: CallerDep, response: Response) -> KeyMade:
    """Its secret is in this answer only. With the first key, each call needs one."""
    expires_ms = None if body.expires_in_s is None else platform.clock() + round(body.expires_in_s * 1000)
    key, secret = platform.keys.create(
        body.name,
        scopes=body.scopes,
        owner=body.owner,
        expires_ms=expires_ms,
        quotas=body.quotas.to_domain(),
        by=caller,
    )
    response.headers["Cache-Control"] = "no-store"
    return KeyMade(key_id=key.key_id, secret=secret)


@router.get("/keys", summary="List API keys", responses=problems(401, 403, 503))
def list_keys(platform: PlatformDep) -> list[Key]:
    """All of them, oldest first, revoked ones too; without their secrets."""
    return list(map(Key.of, platform.keys.keys()))


@router.get("/keys/{key_id}", summary="Read an API key", responses=problems(401, 403, 404, 503))
def get_key(key_id: str, platform: PlatformDep) -> Key:
    """What it is for, and when it was used last (to the minute)."""
    return Key.of(platform.keys.key(key_id))


@router.post("/keys/{key_id}/rotate", summary="Rotate an API key", responses=problems(401, 403, 404, 422, 503))
def rotate_key(key_id: str, body: Rotation, platform: PlatformDep, caller: CallerDep, response: Response) -> KeyMade:
    """Another secret for the same key."""
    secret = platform.keys.rotate(key_id, grace_s=body.grace_s, by=caller)
    response.headers["Cache-Control"] = "no-store"
    return KeyMade(key_id=key_id, secret=secret)


@router.delete("/keys/{key_id}", status_code=204, summary="Revoke an API key", responses=problems(401, 403, 404, 503))
def revoke_key(key_id: str, platform: PlatformDep, caller: CallerDep) -> None:
    """Refuse it from now on."""
    platform.keys.revoke(key_id, by=caller)


@router.get("/audit", summary="Read the audit log", responses=problems(401, 403, 422, 503))
def list_audit(platform: PlatformDep, limit: Limit = 100, cursor: Cursor = None) -> Listing[AuditItem]:
    """Changes by all owners, newest first: calls that change something, refused ones too, and commands on keys."""
    page = platform.keys.audited(limit=limit, cursor=cursor)
    return Listing(items=[AuditItem.of(item) for item in page.items], next_cursor=page.next_cursor)
