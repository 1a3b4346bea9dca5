"""What is told of what is served, and bodies without a head, with the reference client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tritonclient.http as triton
from serving_kit import Home, Made, Worker, made_of, tensor, version_served, worker
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from tritonclient.utils import InferenceServerException

from modelkeep.registry import events
from modelkeep.store.database import Database

LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def doubling() -> Made:
    """A regression on one number: twice as much."""
    frame = pd.DataFrame({"x": np.arange(50.0)})
    return made_of(make_pipeline(LinearRegression()), frame, frame.x * 2, "regression", ())


@pytest.fixture(scope="module")
def greeting() -> Made:
    """A classification of one text."""
    words = ["ça va", "hello", "olá"] * 20
    encoded = ColumnTransformer([("word", OneHotEncoder(handle_unknown="ignore"), ["word"])])
    pipeline = make_pipeline(encoded, LogisticRegression())
    return made_of(pipeline, pd.DataFrame({"word": words}), words, "classification", sorted(set(words)))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("about"))


@pytest.fixture(scope="module")
def several(home: Home, doubling: Made, greeting: Made, tumour_model: Made) -> Iterator[Worker]:
    package = home.keep(tumour_model)
    home.serve("doubling", (1, home.keep(doubling), 1.0, "stable"))
    home.serve("greeting", (1, home.keep(greeting), 1.0, "stable"))
    home.serve("tumours", (3, package, 0.9, "stable"), (4, package, 0.1, "canary"))
    home.serve("lost", (1, "0" * 64, 1.0, "stable"))
    with worker(home) as found:
        yield found


@pytest.fixture(scope="module")
def client(several: Worker) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(several.url.removeprefix("http://")) as found:
        yield found


def test_the_server_and_its_models_are_ready(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tumours")
    assert client.is_model_ready("tumours", "4")
    assert not client.is_model_ready("tumours", "5")
    assert not client.is_model_ready("lost")


def test_the_extensions_that_are_named_are_there(client: triton.InferenceServerClient) -> None:
    found = client.get_server_metadata()
    assert found["name"] == "modelkeep"
    assert {"binary_tensor_data", "classification", "statistics", "model_repository"} <= set(found["extensions"])
    assert not {"system_shared_memory", "trace", "sequence"} & set(found["extensions"])


def test_metadata_and_configuration_agree(client: triton.InferenceServerClient, tumour_model: Made) -> None:
    about, config = client.get_model_metadata("tumours"), client.get_model_config("tumours")
    assert about["versions"] == ["3", "4"]
    assert config["version_policy"]["specific"]["versions"] == [3, 4]
    assert [one["name"] for one in config["input"]] == list(tumour_model.frame.columns)
    for told, configured in zip(about["outputs"], config["output"], strict=True):
        assert configured["data_type"] == f"TYPE_{told['datatype']}"
        assert configured["dims"] == (told["shape"][1:] or [1])
    assert config["max_batch_size"] > 0
    assert client.get_model_config("greeting", "1")["input"][0]["data_type"] == "TYPE_STRING"
    with pytest.raises(InferenceServerException, match="5"):
        client.get_model_config("tumours", "5")


def test_statistics_count_what_was_asked(
    client: triton.InferenceServerClient, several: Worker, tumour_model: Made
) -> None:
    def told(version: str = "3") -> dict[str, object]:
        (found,) = client.get_inference_statistics("tumours", version)["model_stats"]
        return dict(found)

    before = told()
    for rows in (1, 5):
        given = triton.InferInput("x", [rows, 30], "FP64")
        given.set_data_from_numpy(tumour_model.frame.iloc[:rows].to_numpy(float))
        client.infer("tumours", [given], model_version="3")
    several.client.post("/v2/models/tumours/versions/3/infer", json={"inputs": []})
    wrong = tensor(tumour_model, [0])
    wrong["inputs"][0]["data"][0] = None
    several.client.post("/v2/models/tumours/versions/3/infer", json=wrong)
    after = told()
    assert (after["name"], after["version"]) == ("tumours", "3")
    assert after["inference_count"] - before["inference_count"] == 6  # type: ignore[operator]
    assert after["execution_count"] - before["execution_count"] == 2  # type: ignore[operator]
    assert after["last_inference"] > before["last_inference"]  # type: ignore[operator]

    def runs(of: dict[str, object], rows: int) -> int:
        found: list[dict[str, Any]] = of["batch_stats"]  # type: ignore[assignment]
        return sum(one["compute_infer"]["count"] for one in found if one["batch_size"] == rows)

    assert [runs(after, rows) - runs(before, rows) for rows in (1, 5)] == [1, 1]
    stats: dict[str, dict[str, int]] = after["inference_stats"]  # type: ignore[assignment]
    assert stats["success"]["count"] == stats["compute_infer"]["count"] >= 2
    parts = sum(stats[part]["ns"] for part in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert parts == pytest.approx(stats["success"]["ns"], rel=1e-3)
    assert stats["fail"]["count"] >= 1
    everything = client.get_inference_statistics()["model_stats"]
    assert {(one["name"], one["version"]) for one in everything} == {
        ("doubling", "1"),
        ("greeting", "1"),
        ("tumours", "3"),
        ("tumours", "4"),
    }
    assert len(client.get_inference_statistics("tumours")["model_stats"]) == 2
    with pytest.raises(InferenceServerException):
        client.get_inference_statistics("nothing")


def test_the_repository_lists_what_is_wanted_and_why_it_is_not_there(
    client: triton.InferenceServerClient, several: Worker
) -> None:
    found = {(one["name"], one["version"]): one for one in client.get_model_repository_index()}
    assert found["tumours", "3"]["state"] == found["tumours", "4"]["state"] == "READY"
    assert found["lost", ""]["state"] == "UNAVAILABLE"
    assert "0000" in found["lost", ""]["reason"]
    ready = several.client.post("/v2/repository/index", json={"ready": True}).json()
    assert {one["name"] for one in ready} == {"tumours", "doubling", "greeting"}
    assert several.client.post("/v2/repository/index", json={"ready": "yes"}).status_code == 400
    assert several.client.post("/v2/repository/index").status_code == 200


def test_loading_tells_what_is_in_the_way(client: triton.InferenceServerClient) -> None:
    client.load_model("tumours")
    for name, status in (("lost", "503"), ("nothing", "404")):
        with pytest.raises(InferenceServerException) as found:
            client.load_model(name)
        assert found.value.status() == status
    with pytest.raises(InferenceServerException) as found:
        client.unload_model("nothing")
    assert found.value.status() == "404"


def test_a_model_is_unloaded_everywhere_until_it_is_loaded(
    client: triton.InferenceServerClient, several: Worker, home: Home, doubling: Made
) -> None:
    question = [triton.InferInput("x", [1, 1], "FP64").set_data_from_numpy(np.array([[2.0]]))]

    def state() -> dict[str, str]:
        return next(one for one in client.get_model_repository_index() if one["name"] == "doubling")

    with worker(home, ready=False) as other:
        other.until(lambda health: version_served(health, "doubling") == 1)
        for _ in range(2):  # again changes nothing
            client.unload_model("doubling")
            assert not client.is_model_ready("doubling")
        assert (state()["state"], state()["reason"]) == ("UNAVAILABLE", "unloaded")
        with pytest.raises(InferenceServerException, match="was unloaded") as found:
            client.infer("doubling", question)
        assert found.value.status() == "404"
        assert client.is_model_ready("tumours")
        other.until(lambda health: version_served(health, "doubling") is None)  # it is wanted so, by all
    with worker(home, ready=False) as late:  # and by those that start later
        late.until(lambda health: version_served(health, "tumours") == 3)
        assert version_served(late.health(), "doubling") is None
        client.load_model("doubling")
        assert client.is_model_ready("doubling")
        assert client.infer("doubling", question).as_numpy("prediction").tolist() == [4.0]
        late.until(lambda health: version_served(health, "doubling") == 1)
    with closing(Database.open(home.url)) as db, db.read() as conn:
        kinds = [event.kind for event in events.history(conn, subject="doubling")]
        assert events.verify(conn) == []
    assert kinds == ["endpoint.unloaded", "endpoint.loaded"]


def test_extensions_of_others_are_said_not_to_be_here(client: triton.InferenceServerClient) -> None:
    for ask in (
        client.get_trace_settings,
        client.get_log_settings,
        client.get_system_shared_memory_status,
        client.get_cuda_shared_memory_status,
        client.unregister_system_shared_memory,
    ):
        with pytest.raises(InferenceServerException, match="not supported here") as found:
            ask()
        assert found.value.status() == "501"


def bare(several: Worker, name: str, body: bytes) -> tuple[int, bytes]:
    response = several.client.post(f"/v2/models/{name}/infer", content=body, headers={LENGTH: "0"})
    if response.status_code != 200:
        return response.status_code, response.content
    return 200, response.content[int(response.headers[LENGTH]) :]


def test_a_body_without_a_head_is_the_one_input(several: Worker) -> None:
    status, raw = bare(several, "doubling", np.array([1.0, 4.0]).tobytes())
    assert status == 200
    assert np.allclose(np.frombuffer(raw), [2.0, 8.0])
    status, raw = bare(several, "greeting", "ça va".encode())
    assert status == 200
    assert raw.startswith(b"\x06\x00\x00\x00\xc3\xa7a va")


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("doubling", b"", b"0 bytes"),
        ("doubling", b"123456789", b"9 bytes"),
        ("doubling", np.array([np.nan]).tobytes(), b"missing"),
        ("greeting", b"\xff", b"not UTF-8"),
        ("tumours", b"12345678", b"this one has 30"),
    ],
)
def test_bodies_that_are_no_input(several: Worker, name: str, body: bytes, said: bytes) -> None:
    status, content = bare(several, name, body)
    assert status == 400
    assert said in content


def test_a_deadline_that_has_passed_is_504(several: Worker, tumour_model: Made) -> None:
    path, request = "/v2/models/tumours/infer", tensor(tumour_model, [0])
    late = several.client.post(path, json=request, headers={"x-modelkeep-timeout-ms": "0"})
    assert late.status_code == 504
    soon = several.client.post(path, json={**request, "parameters": {"timeout": 20_000_000, "priority": 1}})
    assert soon.status_code == 200
    assert several.client.post(path, json=request, headers={"x-modelkeep-timeout-ms": "soon"}).status_code == 400
