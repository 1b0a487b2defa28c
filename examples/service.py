"""Coupon templates over HTTP. In a copy of this repository, with COUPON_CLOCK_DATABASE_URL set:

    pip install fastapi uvicorn  # neither comes with Coupon Clock
    uvicorn examples.service:api

The URL carries the template's id and `Idempotency-Key` the command's, both made by the client before its first try, so
that a request repeated after a time-out has no second effect. `ETag` is the version; `If-Match` makes a change
conditional on it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID

import msgspec
from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse

from coupon_clock import (
    Application,
    ChangeValidity,
    CommandConflict,
    CouponClockError,
    CouponTemplateNotFound,
    CouponTemplateOver,
    CreateCouponTemplate,
    IncreaseStock,
    InvalidCommand,
    TerminateCouponTemplate,
)

STATUS: dict[type[CouponClockError], int] = {
    CouponTemplateNotFound: 404,
    CommandConflict: 409,
    CouponTemplateOver: 409,
    InvalidCommand: 422,
}
TRY_AGAIN = 503


@asynccontextmanager
async def running(api: FastAPI) -> AsyncIterator[None]:
    with Application.open() as app, app.running():
        api.state.app = app
        yield


api = FastAPI(title="Coupon Clock", lifespan=running)

Key = Annotated[UUID, Header(alias="Idempotency-Key")]
IfMatch = Annotated[str | None, Header(alias="If-Match", pattern=r'^(\*|"\d{1,9}")$')]
TEMPLATE = "/shops/{shop_number}/templates/{template_id}"


async def content(request: Request) -> dict[str, Any]:
    """Read by msgspec, which lets no half of a surrogate pair in: it could not be stored, nor shown in an answer."""
    try:
        return msgspec.json.decode(await request.body(), type=dict[str, Any])
    except RecursionError:
        raise msgspec.DecodeError("JSON is nested too deeply") from None


Content = Annotated[dict[str, Any], Depends(content)]
WITH_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}


@api.put(TEMPLATE, status_code=201, openapi_extra=WITH_BODY)
def create(request: Request, shop_number: int, template_id: UUID, key: Key, content: Content) -> Response:
    ids = {"command_id": key, "template_id": template_id, "shop_number": shop_number}
    return executed(request, msgspec.convert(content | ids, CreateCouponTemplate), status=201)


@api.post(TEMPLATE + "/stock", openapi_extra=WITH_BODY)
def increase_stock(
    request: Request, shop_number: int, template_id: UUID, key: Key, content: Content, if_match: IfMatch = None
) -> Response:
    ids = {"command_id": key, "template_id": template_id, "shop_number": shop_number}
    return executed(request, msgspec.convert(content | ids | expected(if_match), IncreaseStock))


@api.put(TEMPLATE + "/validity", openapi_extra=WITH_BODY)
def change_validity(
    request: Request, shop_number: int, template_id: UUID, key: Key, content: Content, if_match: IfMatch = None
) -> Response:
    ids = {"command_id": key, "template_id": template_id, "shop_number": shop_number}
    return executed(request, msgspec.convert(content | ids | expected(if_match), ChangeValidity))


@api.delete(TEMPLATE)
def terminate(request: Request, shop_number: int, template_id: UUID, key: Key, if_match: IfMatch = None) -> Response:
    ids = {"command_id": key, "template_id": template_id, "shop_number": shop_number}
    return executed(request, msgspec.convert(ids | expected(if_match), TerminateCouponTemplate))


@api.get(TEMPLATE)
def find(request: Request, shop_number: int, template_id: UUID, at_least: int | None = None) -> Response:
    view = request.app.state.app.find(shop_number, template_id, at_least=at_least)
    body = msgspec.json.encode({"state": view.state, "usable": view.is_usable} | msgspec.structs.asdict(view))
    return Response(body, media_type="application/json", headers={"ETag": f'"{view.version}"'})


@api.exception_handler(CouponClockError)
def refused(_: Request, error: CouponClockError) -> JSONResponse:
    content: dict[str, Any] = {"error": str(error)}
    if isinstance(error, InvalidCommand):
        content["problems"] = [{"field": problem.field, "reason": problem.reason} for problem in error.problems]
    return JSONResponse(content, STATUS.get(type(error), TRY_AGAIN))


@api.exception_handler(msgspec.DecodeError)
def malformed(_: Request, error: msgspec.DecodeError) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 422)


def executed(request: Request, command: Any, status: int = 200) -> Response:
    """`position` lets the client read its own write: `GET …?at_least=position`."""
    outcome = request.app.state.app.execute(command)
    body = {"version": outcome.version, "position": outcome.position}
    return JSONResponse(body, status, headers={"ETag": f'"{outcome.version}"'})


def expected(if_match: str | None) -> dict[str, int]:
    return {} if if_match in (None, "*") else {"expected_version": int(if_match.strip('"'))}
