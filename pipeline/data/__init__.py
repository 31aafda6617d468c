"""Images: any source -> Parquet shards and a manifest; position in, batches out."""
