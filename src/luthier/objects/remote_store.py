"""Objects in a remote S3, through boto3 with the credentials of the server's environment."""

from __future__ import annotations

from pathlib import Path

from luthier import storage
from luthier.errors import UserError
from luthier.objects.names import parse_uri


class RemoteObjectStore:
    """An ObjectStore for the S3 at the URL `endpoint`."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def exists(self, uri: str) -> bool:
        bucket, key = parse_uri(uri)
        with storage.s3(uri, self.endpoint) as client:
            try:
                client.head_object(Bucket=bucket, Key=key)
            except client.exceptions.ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return False
                raise
        return True

    def read(self, uri: str, limit: int) -> bytes:
        bucket, key = parse_uri(uri)
        with storage.s3(uri, self.endpoint) as client, client.get_object(Bucket=bucket, Key=key)["Body"] as body:
            data: bytes = body.read(limit + 1)
        if len(data) > limit:
            raise UserError(f"{uri}: more than {limit:,} bytes, expected at most that many")
        return data

    def names(self, uri: str) -> list[str]:
        parse_uri(uri)
        return storage.names(uri, self.endpoint)

    def download_prefix(self, uri: str, folder: Path) -> Path:
        parse_uri(uri)
        return storage.download(uri, folder, self.endpoint)

    def upload_file(self, path: Path, uri: str) -> None:
        bucket, key = parse_uri(uri)
        with storage.s3(uri, self.endpoint) as client:
            client.upload_file(str(path), bucket, key)

    def check_bucket(self, uri: str) -> None:
        bucket, _ = parse_uri(uri)
        with storage.s3(uri, self.endpoint) as client:
            try:
                client.head_bucket(Bucket=bucket)
            except client.exceptions.ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                if status == 404:
                    raise UserError(f"{uri}: The specified bucket does not exist") from error
                if status != 403:  # who may only write objects may not ask for the bucket
                    raise

    def close(self) -> None:
        """No connection is kept between calls."""
