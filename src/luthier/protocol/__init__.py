"""AWS's wire protocols for SageMaker, S3 and their neighbours, from botocore's published service models.

From HTTP requests to validated calls, and from results and errors to HTTP responses. Knows no operation.
"""
