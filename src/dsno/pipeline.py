"""The name that `dsno.app.pipeline` had in version 0.1, for imports of then and the index of pipelines saved then."""

from dsno.app.pipeline import DSNOModel, DSNOPipeline, DSNOPipelineOutput, FlowMapModel

__all__ = ["DSNOModel", "DSNOPipeline", "DSNOPipelineOutput", "FlowMapModel"]
