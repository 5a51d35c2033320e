"""Where pipelines that version 0.1 saved look for their classes."""

from dsno.app.pipeline import DSNOModel, DSNOPipeline, FlowMapModel

__all__ = ["DSNOModel", "DSNOPipeline", "FlowMapModel"]
