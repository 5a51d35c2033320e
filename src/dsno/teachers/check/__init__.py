"""A teacher verified before hours are spent."""
