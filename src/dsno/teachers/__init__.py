"""Teachers: pretrained networks as denoisers."""
