"""The embedded S3: buckets and objects on local disk, their rows in the store's database."""
