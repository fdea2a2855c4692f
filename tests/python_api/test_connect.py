"""`luthier.connect`: clients of its session reach the service, with the user's own key where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
from server_process import server

import luthier
from luthier.errors import UserError


@pytest.fixture
def no_aws_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.usefixtures("no_aws_files")
def test_a_session_reaches_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(tmp_path / "home") as running:
        port = running.port
        session = luthier.connect(port=port)
        assert session.client("sagemaker").list_training_jobs()["TrainingJobSummaries"] == []
        session.client("s3").create_bucket(
            Bucket="rows", CreateBucketConfiguration={"LocationConstraint": session.region_name}
        )
        assert [bucket.name for bucket in session.resource("s3").buckets.all()] == ["rows"]
        assert session.client("sts", endpoint_url="http://127.0.0.1:1").meta.endpoint_url == "http://127.0.0.1:1"
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # an explicit port wins over the environment
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", "http://127.0.0.1:2")
        assert luthier.connect(port=port).client("sagemaker").meta.endpoint_url == f"http://127.0.0.1:{port}"
        with pytest.raises(UserError, match="no service answers"):
            luthier.connect()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "MINE")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        assert luthier.connect(port=port).get_credentials().access_key == "MINE"
