"""The SageMaker Python SDK v3 against a live server: its refusals; its whole way is a snippet of docs/clients.md."""

from __future__ import annotations

from wire.driver import Driver


def test_model_trainer_refuses_what_it_should(driver: Driver) -> None:
    seen = driver.script("sagemaker3", "v3_refusals.py", proxy=True)
    assert seen["role"].startswith("arn:aws:iam::123456789012:role/")
    assert "accept_eula" in seen["meta-textgeneration-llama-2-7b"]
    assert "no-such-model" in seen["no-such-model"]
    assert "no-such-job" in seen
