"""The wire: SageMaker's and S3's protocols, from botocore's published service models."""
