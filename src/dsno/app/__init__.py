"""Models outside of the library: a diffusers pipeline, graphs for other runtimes, a page of gradio."""
