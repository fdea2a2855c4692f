"""Real clients against a server with access keys, and through the HTTPS proxy alone."""

from __future__ import annotations

from pathlib import Path

from wire.driver import Driver


def test_boto3_signs_and_is_refused_as_by_aws(signing_driver: Driver) -> None:
    seen = signing_driver.script("sagemaker3", "boto3_signed.py")
    assert seen["caller"].endswith("/admin")
    assert seen["large"]
    assert (seen["s3"], seen["s3v4"]) == ("by address", "by address")
    assert (seen["s3-changed"], seen["s3v4-changed"]) == (403, 403)
    assert seen["unknown"] == ["InvalidAccessKeyId", "UnrecognizedClientException"]
    assert seen["wrong"] == ["SignatureDoesNotMatch", "InvalidSignatureException"]
    assert seen["unsigned"] == ["AccessDenied", "MissingAuthenticationTokenException"]


def test_the_proxy_alone_leads_everything_here(signing_driver: Driver, tmp_path: Path) -> None:
    (tmp_path / "large.bin").write_bytes(b"0123456789abcdef" * 600_000)
    said = signing_driver.shell("awscli", """
        for name in $(env | sed -n 's/^\\(AWS_ENDPOINT_URL[A-Z_0-9]*\\)=.*/\\1/p'); do unset $name; done
        aws s3 mb s3://wire-proxy
        aws s3 cp large.bin s3://wire-proxy/a/large.bin --no-progress
        aws s3 ls s3://wire-proxy/a/
        aws s3 cp s3://wire-proxy/a/large.bin back.bin --no-progress
        aws sagemaker list-models --name-contains none-has-this --query 'length(Models)'
        aws sts get-caller-identity --query Account --output text
    """, proxy=True)  # fmt: skip
    assert "9600000 large.bin" in said
    assert said.split()[-2:] == ["0", "123456789012"]
    assert (tmp_path / "back.bin").read_bytes() == (tmp_path / "large.bin").read_bytes()
