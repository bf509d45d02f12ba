"""A FastAPI application around onnxruntime, as people write it; served by uvicorn for tools/bench/serving.py.

`/predict/NAME` takes and gives JSON lists, as most do. `/predict_bytes/NAME` takes and gives the tensor's bytes, as
careful people do. KEDGE_BENCH_MODELS names the models: {"NAME": {"path": "…", "threads": 1}}.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import onnxruntime
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

app = FastAPI()


def _session(path: str, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


_sessions = {name: _session(**model) for name, model in json.loads(os.environ["KEDGE_BENCH_MODELS"]).items()}


class Body(BaseModel):
    data: list[Any]


@app.get("/ready")
def ready() -> dict[str, bool]:
    return {"ready": True}


@app.post("/predict/{name}")
def predict(name: str, body: Body) -> dict[str, Any]:
    session = _sessions[name]
    x = np.array(body.data, dtype=np.float32)
    (y,) = session.run(None, {session.get_inputs()[0].name: x})
    return {"output": y.tolist()}


@app.post("/predict_bytes/{name}")
async def predict_bytes(name: str, request: Request) -> Response:
    session = _sessions[name]
    first = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else -1 for size in first.shape]
    x = np.frombuffer(await request.body(), np.float32).reshape(shape)
    (y,) = await run_in_threadpool(session.run, None, {first.name: x})
    return Response(y.tobytes(), media_type="application/octet-stream")
