"""/healthz: the process answers. /readyz: it can also do its work."""

from fastapi import APIRouter
from sqlalchemy.exc import SQLAlchemyError

from app.api.deps import WholeServiceDep
from app.api.errors import unavailable
from app.db.schema import schema_is_current

router = APIRouter()


@router.get("/healthz")
@router.head("/healthz", include_in_schema=False)
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
@router.head("/readyz", include_in_schema=False)
def readyz(service: WholeServiceDep) -> dict[str, str]:
    """503 with the reason until the database can be reached and has the schema of this version."""
    try:
        is_current = schema_is_current(service.database)
    except SQLAlchemyError as error:
        raise unavailable(f"The database cannot be reached: {type(error).__name__}.") from error
    if not is_current:
        raise unavailable("The database's schema is not this version's: the keeper has to migrate it.")
    return {"status": "ready"}
