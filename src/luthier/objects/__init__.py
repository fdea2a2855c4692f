"""The embedded S3: buckets and objects on local disk, their metadata in the service's database."""
