"""Model adapters, one file a model family; imported as `cachedit_cli.adapters`."""
