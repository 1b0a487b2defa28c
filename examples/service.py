"""Coupon templates over HTTP. In a copy of this repository, with COUPON_CLOCK_DATABASE_URL set:

    pip install fastapi uvicorn  # neither comes with Coupon Clock
    SERVICE_TOKENS=alice:a-long-secret uvicorn examples.service:api

Every request needs `Authorization: Bearer a-long-secret`, and alice is the actor of what it changes. To ask another
system who is calling, and whether that caller may work for `request.path_params["shop_number"]`, put a function in
place of `by_token`: `api.state.authenticate = …`. It returns the actor, or None for 401.

The URL carries the template's id and `Idempotency-Key` the command's, both made by the client before its first try, so
that a request repeated after a time-out has no second effect. `ETag` is the version; `If-Match` makes a change
conditional on it.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hmac import compare_digest
from typing import Annotated, Any
from uuid import UUID

import msgspec
from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from coupon_clock import (
    AsyncApplication,
    ChangeValidity,
    CommandConflict,
    CouponClockError,
    CouponTemplateNotFound,
    CouponTemplateOver,
    CreateCouponTemplate,
    IncreaseStock,
    InvalidArgument,
    TerminateCouponTemplate,
)

STATUS: dict[type[CouponClockError], int] = {
    CouponTemplateNotFound: 404,
    CommandConflict: 409,
    CouponTemplateOver: 409,
    InvalidArgument: 422,
}
TRY_AGAIN = 503
LONGEST_BODY = 64 * 1024  # bytes; a template has a few thousand characters at most


@asynccontextmanager
async def running(api: FastAPI) -> AsyncIterator[None]:
    async with AsyncApplication.open() as app, app.running():
        api.state.app = app
        yield


def by_token(request: Request) -> str | None:
    """The name of whoever holds the token, from SERVICE_TOKENS: `name:token`, more of them after spaces."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    for entry in os.environ.get("SERVICE_TOKENS", "").split():
        name, _, token = entry.partition(":")
        if token and scheme.lower() == "bearer" and compare_digest(given.strip().encode(), token.encode()):
            return name
    return None


def caller(request: Request) -> str:
    if actor := request.app.state.authenticate(request):
        return str(actor)
    raise HTTPException(401, "who is calling is not known", {"WWW-Authenticate": "Bearer"})


api = FastAPI(title="Coupon Clock", lifespan=running, dependencies=[Depends(caller)])
api.state.authenticate = by_token

Actor = Annotated[str, Depends(caller)]

Key = Annotated[UUID, Header(alias="Idempotency-Key")]
IfMatch = Annotated[str | None, Header(alias="If-Match", pattern=r'^(\*|"\d{1,9}")$')]
TEMPLATE = "/shops/{shop_number}/templates/{template_id}"


async def content(request: Request) -> dict[str, Any]:
    """Read by msgspec, which lets no half of a surrogate pair in: it could not be stored, nor shown in an answer."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LONGEST_BODY:
            raise HTTPException(413, f"a body has at most {LONGEST_BODY} bytes")
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except RecursionError:
        raise msgspec.DecodeError("JSON is nested too deeply") from None
    except UnicodeDecodeError:
        raise msgspec.DecodeError("JSON is not UTF-8") from None


Content = Annotated[dict[str, Any], Depends(content)]
WITH_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}


@api.put(TEMPLATE, status_code=201, openapi_extra=WITH_BODY)
async def create(
    request: Request, shop_number: int, template_id: UUID, actor: Actor, key: Key, content: Content
) -> Response:
    ids = {"command_id": key, "template_id": template_id, "shop_number": shop_number, "actor": actor}
    return await executed(request, command(content | ids, CreateCouponTemplate), status=201)


@api.post(TEMPLATE + "/stock", openapi_extra=WITH_BODY)
async def increase_stock(
    request: Request,
    shop_number: int,
    template_id: UUID,
    actor: Actor,
    key: Key,
    content: Content,
    if_match: IfMatch = None,
) -> Response:
    ids = {"command_id": key, "template_id": template_id, "shop_number": shop_number, "actor": actor}
    return await executed(request, command(content | ids | expected(if_match), IncreaseStock))


@api.put(TEMPLATE + "/validity", openapi_extra=WITH_BODY)
async def change_validity(
    request: Request,
    shop_number: int,
    template_id: UUID,
    actor: Actor,
    key: Key,
    content: Content,
    if_match: IfMatch = None,
) -> Response:
    ids = {"command_id": key, "template_id": template_id, "shop_number": shop_number, "actor": actor}
    return await executed(request, command(content | ids | expected(if_match), ChangeValidity))


@api.delete(TEMPLATE)
async def terminate(
    request: Request, shop_number: int, template_id: UUID, actor: Actor, key: Key, if_match: IfMatch = None
) -> Response:
    ids = {"command_id": key, "template_id": template_id, "shop_number": shop_number, "actor": actor}
    return await executed(request, command(ids | expected(if_match), TerminateCouponTemplate))


@api.get(TEMPLATE)
async def find(request: Request, shop_number: int, template_id: UUID, at_least: int | None = None) -> Response:
    view = await request.app.state.app.find(shop_number, template_id, at_least=at_least)
    body = msgspec.json.encode({"state": view.state, "usable": view.is_usable} | msgspec.structs.asdict(view))
    return Response(body, media_type="application/json", headers={"ETag": f'"{view.version}"'})


@api.exception_handler(CouponClockError)
def refused(_: Request, error: CouponClockError) -> JSONResponse:
    content: dict[str, Any] = {"error": str(error)}
    if isinstance(error, InvalidArgument):
        content["problems"] = [{"field": problem.field, "reason": problem.reason} for problem in error.problems]
    return JSONResponse(
        content, next((status for kind, status in STATUS.items() if isinstance(error, kind)), TRY_AGAIN)
    )


@api.exception_handler(msgspec.DecodeError)
def malformed(_: Request, error: msgspec.DecodeError) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 422)


def command(values: dict[str, Any], kind: type[Any]) -> Any:
    try:
        return msgspec.convert(values, kind)
    except (ArithmeticError, RecursionError, ValueError) as failure:  # a time before the year 1 in UTC, for one
        raise msgspec.ValidationError(str(failure)) from failure


async def executed(request: Request, command: Any, status: int = 200) -> Response:
    """`position` lets the client read its own write: `GET …?at_least=position`."""
    outcome = await request.app.state.app.execute(command)
    body = {"version": outcome.version, "position": outcome.position}
    return JSONResponse(body, status, headers={"ETag": f'"{outcome.version}"'})


def expected(if_match: str | None) -> dict[str, int]:
    return {} if if_match in (None, "*") else {"expected_version": int(if_match.strip('"'))}
