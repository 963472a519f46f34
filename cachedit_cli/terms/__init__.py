"""What the engine is told and what it tells: settings, masks, patterns, block adapters, and the decision log."""
