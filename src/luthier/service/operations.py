"""Every operation of the API and of S3, and the dispatch of a call to its implementation."""

from __future__ import annotations

import logging
from typing import Any

from luthier.api import OPERATIONS as API_OPERATIONS
from luthier.api.service import Service
from luthier.errors import ObjectStoreUnreachableError, UserError
from luthier.objects.operations import OPERATIONS as S3_OPERATIONS
from luthier.objects.store import ObjectStore
from luthier.protocol.call import Call
from luthier.service import policy

KNOWN = {**API_OPERATIONS, "s3": S3_OPERATIONS}
"""Operations by name, by service (botocore's name)."""


HAS_OUTPUT = ("CreateTrainingJob", "CreateAutoMLJobV2")
_log = logging.getLogger(__name__)


def operate(call: Call, service: Service, objects: ObjectStore) -> dict[str, Any]:
    """The output of the operation that `call` names, as botocore's model shapes it; WireError if its key may not."""
    rights = call.principal.rights
    policy.check(call, rights)
    if call.operation in HAS_OUTPUT:
        _check_output(call.parameters["OutputDataConfig"]["S3OutputPath"], objects)
    if call.service == "s3":
        answer = S3_OPERATIONS[call.operation](call, objects)
    else:
        answer = API_OPERATIONS[call.service][call.operation](call, service)
    return policy.filter_answer(call, answer, rights)


def _check_output(uri: str, objects: ObjectStore) -> None:
    """UserError if the results could not be uploaded; an object store that does not answer now may do so later."""
    if not uri.startswith("s3://"):
        return  # refused by the operation
    try:
        objects.check_bucket(uri)
    except ObjectStoreUnreachableError as error:
        _log.warning("the output bucket could not be checked: %s", error)
    except UserError as error:
        raise UserError(f"OutputDataConfig.S3OutputPath: {error}") from error
