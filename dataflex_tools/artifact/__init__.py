"""Folders of Parquet files with a manifest: signals, plans and models as they lie on disk."""
