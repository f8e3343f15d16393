"""A bare FastAPI route before a scikit-learn model: rows of features in, probabilities out. Arguments: model, port."""

import sys

import joblib
import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
model = joblib.load(sys.argv[1])


class Rows(BaseModel):
    """Rows of 25 features."""

    rows: list[list[float]]


@app.post("/score")
def score(body: Rows) -> list[float]:
    """The probability of the second class for each row."""
    return list(model.predict_proba(np.array(body.rows, np.float32))[:, 1])


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), access_log=False)
