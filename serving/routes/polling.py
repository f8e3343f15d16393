"""Polling under a budget: where it went, and what that gained."""

from typing import Annotated

from fastapi import APIRouter, Path

from serving.dependencies import Cursor, Limit, Owner, PlatformDep
from serving.openapi import problems
from serving.schemas import Listing, Polled, Pool

router = APIRouter(prefix="/api/v1/polling", tags=["polling"])

PoolId = Annotated[int, Path(ge=1, lt=2**63)]


@router.get("", summary="List polling budgets", responses=problems(422, 503))
def list_pools(platform: PlatformDep, owner: Owner, limit: Limit = 100, cursor: Cursor = None) -> Listing[Pool]:
    """Each pool of monitors that share a budget: what it is, where it went, and the gain over equal intervals."""
    page = platform.crawl.pools(limit=limit, cursor=cursor, owner=owner)
    return Listing(items=[Pool.of(pool) for pool in page.items], next_cursor=page.next_cursor)


@router.get("/{pool_id}/monitors", summary="Where a budget went", responses=problems(404, 422, 503))
def list_pool_monitors(pool_id: PoolId, platform: PlatformDep, owner: Owner, limit: Limit = 100) -> Listing[Polled]:
    """The monitors of a pool that were probed most, with the probes of each."""
    found = platform.crawl.pool_monitors(pool_id, limit=limit, owner=owner)
    return Listing(items=[Polled.of(monitor) for monitor in found], next_cursor=None)
