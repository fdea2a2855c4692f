"""S3's error codes with their status and usual message."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import OperationalError

from luthier.protocol.errors import WireError

S3_ERRORS: dict[str, tuple[int, str]] = {
    "AccessControlListNotSupported": (400, "The bucket does not allow ACLs"),
    "AccessDenied": (403, "Access Denied"),
    "BadDigest": (400, "The Content-MD5 or checksum value that you specified did not match what the server received."),
    "BucketAlreadyExists": (409, "The requested bucket name is not available. The bucket namespace is shared by all "
                            "users of the system. Please select a different name and try again."),
    "BucketAlreadyOwnedByYou": (409,
                                "Your previous request to create the named bucket succeeded and you already own it."),
    "BucketNotEmpty": (409, "The bucket you tried to delete is not empty"),
    "EntityTooLarge": (400, "Your proposed upload exceeds the maximum allowed size"),
    "EntityTooSmall": (400, "Your proposed upload is smaller than the minimum allowed size"),
    "IncompleteBody": (400, "You did not provide the number of bytes specified by the Content-Length HTTP header"),
    "InsufficientStorage": (507, "The disk of the object store is full; free space on it and try again"),
    "InvalidArgument": (400, "Invalid Argument"),
    "InvalidBucketName": (400, "The specified bucket is not valid."),
    "InvalidDigest": (400, "The Content-MD5 you specified was invalid."),
    "InvalidLocationConstraint": (400, "The specified location-constraint is not valid"),
    "InvalidPart": (400, "One or more of the specified parts could not be found.  The part may not have been uploaded, "
                    "or the specified entity tag may not match the part's entity tag."),
    "InvalidPartNumber": (416, "The requested partnumber is not satisfiable"),
    "InvalidPartOrder": (400, "The list of parts was not in ascending order. Parts must be ordered by part number."),
    "InvalidRange": (416, "The requested range is not satisfiable"),
    "InvalidRequest": (400, "Invalid Request"),
    "InvalidStorageClass": (400, "The storage class you specified is not valid"),
    "InvalidTag": (400, "The tag provided was not a valid tag."),
    "InvalidURI": (400, "Couldn't parse the specified URI."),
    "KeyTooLongError": (400, "Your key is too long"),
    "MalformedXML": (400, "The XML you provided was not well-formed or did not validate against our published schema"),
    "MetadataTooLarge": (400, "Your metadata headers exceed the maximum allowed metadata size"),
    "MethodNotAllowed": (405, "The specified method is not allowed against this resource."),
    "NoSuchBucket": (404, "The specified bucket does not exist"),
    "NoSuchKey": (404, "The specified key does not exist."),
    "NoSuchUpload": (404, "The specified upload does not exist. The upload ID may be invalid, or the upload may have "
                     "been aborted or completed."),
    "NoSuchVersion": (404, "The specified version does not exist."),
    "NotImplemented": (501, "A header you provided implies functionality that is not implemented"),
    "NotModified": (304, "Not Modified"),
    "PreconditionFailed": (412, "At least one of the pre-conditions you specified did not hold"),
}  # fmt: skip

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def s3_error(code: str, message: str = "", status: int = 0) -> WireError:
    """The error for `code`, with S3's usual message and status unless others are given."""
    usual = S3_ERRORS.get(code, (400, code))
    return WireError(code, message or usual[1], status or usual[0])


def failed_condition(header: str) -> WireError:
    """PreconditionFailed, with the conditional header that did not hold, which clients read from the error."""
    status, message = S3_ERRORS["PreconditionFailed"]
    return WireError("PreconditionFailed", message, status, {"Condition": header})


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raise a full disk as 507 InsufficientStorage, which clients do not retry as they do 500 and 503."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise s3_error("InsufficientStorage") from error
        raise
    except OperationalError as error:
        if "disk is full" in str(error.orig) or "No space left" in str(error.orig):
            raise s3_error("InsufficientStorage") from error
        raise
