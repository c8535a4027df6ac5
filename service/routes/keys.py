"""API keys: made and revoked by an admin, shown once."""

import time
from typing import Annotated

from fastapi import APIRouter, Path, Response

from service.auth import Admin, Reader
from service.context import Context
from service.ids import known_form
from service.models import CreatedKeyModel, KeyModel, MeModel, NewKeyModel, Page, key_model
from service.problems import Problem, responses

router = APIRouter(tags=["keys"])
_KEY_ID_PATTERN = r"^[a-z2-7]{8}$"
KeyId = Annotated[
    str, Path(description="a key's id", json_schema_extra={"pattern": _KEY_ID_PATTERN}),
    known_form("key", _KEY_ID_PATTERN),
]  # fmt: skip


@router.get("/me", operation_id="whoami", responses=responses(401, 403, 429))
def me(principal: Reader) -> MeModel:
    """Who this key belongs to."""
    return MeModel(tenant=principal.tenant, scopes=sorted(principal.scopes), key_id=principal.key_id)


@router.get("/keys", operation_id="list_keys", responses=responses(401, 403, 429))
def list_keys(context: Context, principal: Admin) -> Page[KeyModel]:
    """All keys of all tenants, without their text."""
    return Page(data=[key_model(key) for key in context.keys.all()], has_more=False)


@router.post("/keys", status_code=201, operation_id="create_key", responses=responses(400, 401, 403, 413, 422, 429))
def create_key(new: NewKeyModel, context: Context, principal: Admin, response: Response) -> CreatedKeyModel:
    """A new key; its text is in this answer and nowhere else."""
    expires_at = None if new.expires_in_days is None else time.time() + new.expires_in_days * 86400
    key, text = context.keys.create(new.tenant, new.name, dict.fromkeys(new.scopes), expires_at)
    response.headers["Cache-Control"] = "no-store"
    return CreatedKeyModel(**key_model(key).model_dump(), key=text)


@router.delete(
    "/keys/{key_id}", status_code=204, operation_id="revoke_key", responses=responses(401, 403, 404, 409, 422, 429)
)
def revoke_key(key_id: KeyId, context: Context, principal: Admin) -> Response:
    """End a key, and the browser sessions that it opened, at once."""
    if key_id == principal.key_id:
        raise Problem(409, "own_key", "this request was made with that key; revoke it with another admin's")
    if not context.keys.revoke(key_id):
        raise Problem(404, "no_key", f"there is no key {key_id!r}")
    return Response(status_code=204)
