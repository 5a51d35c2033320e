"""Students: one network call from noise to the whole trajectory."""
