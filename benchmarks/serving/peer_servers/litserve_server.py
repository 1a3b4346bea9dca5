"""LitServe over scikit-learn: MODEL_FOLDER PORT. Runs in its own environment."""

import sys
from pathlib import Path

import joblib
import litserve


class Bench(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = joblib.load(Path(sys.argv[1]) / "model.joblib")

    def decode_request(self, request: dict) -> list:
        rows = request["rows"]
        return [row[0] for row in rows] if isinstance(rows[0][0], str) else rows

    def predict(self, rows: list) -> list:
        return self.model.predict_proba(rows).tolist()

    def encode_response(self, output: list) -> dict:
        return {"probability": output}


if __name__ == "__main__":
    server = litserve.LitServer(Bench(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
