"""/v1/models: the names that a request's `model` may have."""

from fastapi import APIRouter

from app.api.deps import Service, ServiceDep
from app.api.errors import not_found
from app.api.schemas import ModelList, ModelObject

router = APIRouter(prefix="/v1/models")


@router.get("")
def list_models(service: ServiceDep) -> ModelList:
    """The names that requests may ask for."""
    return ModelList(data=_models(service))


@router.get("/{model_id:path}")  # the id of a hub model has a slash
def retrieve_model(service: ServiceDep, model_id: str) -> ModelObject:
    """One of these names."""
    for model in _models(service):
        if model.id == model_id:
            return model
    raise not_found(f"The model '{model_id}' does not exist.", param="model")


def _models(service: Service) -> list[ModelObject]:
    own, *aliases = service.settings.served_models
    created = service.started_at
    return [
        ModelObject(id=own, created=created),
        *(ModelObject(id=alias, created=created, alias_of=own) for alias in aliases),
    ]
