"""A custom runtime of MLServer around onnxruntime, as its documentation says to write one; for tools/bench/serving.py.

The models' settings hold `parameters.uri`, the model's path, and `parameters.extra.threads`.
"""

from __future__ import annotations

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    async def load(self) -> bool:
        parameters = self.settings.parameters
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = parameters.extra["threads"]
        self._session = onnxruntime.InferenceSession(parameters.uri, options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        first = payload.inputs[0]
        x = self.decode(first, default_codec=NumpyCodec)
        (y,) = self._session.run(None, {first.name: x})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("output", y)])
