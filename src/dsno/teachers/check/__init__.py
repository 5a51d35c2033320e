"""A teacher verified before hours are spent on it: `run.check_teacher`."""
