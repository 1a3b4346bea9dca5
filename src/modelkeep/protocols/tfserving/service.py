"""The door for TensorFlow Serving over gRPC: ``PredictionService`` and the status of ``ModelService``.

https://github.com/tensorflow/serving/blob/master/tensorflow_serving/apis/prediction_service.proto
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from google.protobuf.json_format import ParseDict

from modelkeep.core.errors import Invalid, ModelkeepError
from modelkeep.protocols.grpc import encode, messages
from modelkeep.protocols.grpc.exchange import Exchange, Method
from modelkeep.protocols.grpc.hpack import literal
from modelkeep.protocols.grpc.status import Code, RpcError
from modelkeep.protocols.tfserving import answers, requests, signatures
from modelkeep.protocols.tfserving.requests import Spec
from modelkeep.serve.batching import Lane
from modelkeep.serve.calls import Batch, Call
from modelkeep.serve.columns import Rows
from modelkeep.serve.dataplane import DataPlane
from modelkeep.serve.endpoint import Endpoint

SERVICE: Final = "tensorflow.serving.PredictionService"
_MODELS: Final = "tensorflow.serving.ModelService"
_ID: Final = b"x-modelkeep-prediction-id"
_METHODS: Final = {"tensorflow/serving/classify": "classify", "tensorflow/serving/regress": "regress"}


def _with_id(call: Call) -> bytes:
    return literal(_ID, call.id.encode())


class _Predict:
    """Answers a request to predict; the sink is the exchange and the outputs it asks for."""

    def answer(self, call: Call, batch: Batch) -> None:
        exchange, wanted = call.sink
        exchange.answer(answers.prediction(call, batch, wanted), _with_id(call))

    def refuse(self, call: Call, error: ModelkeepError) -> None:
        call.sink[0].fault(error)


class _Result:
    """Answers a request to classify or regress: the result, and who gave it."""

    def __init__(self, result: Callable[[Call, Batch], bytes]) -> None:
        self._result = result

    def answer(self, call: Call, batch: Batch) -> None:
        spec = encode.sized(2, answers.model_spec(batch.lane))
        call.sink.answer(encode.sized(1, self._result(call, batch)) + spec, _with_id(call))

    def refuse(self, call: Call, error: ModelkeepError) -> None:
        call.sink.fault(error)


class _Several:
    """Answers one task of several; the sink is ``_Tasks`` and the place of the task."""

    def answer(self, call: Call, batch: Batch) -> None:
        tasks, place, verb = call.sink
        spec = encode.sized(1, answers.model_spec(batch.lane))
        if verb == "classify":
            tasks.tell(place, spec + encode.sized(2, answers.classification(call, batch)))
        else:
            tasks.tell(place, spec + encode.sized(3, answers.regression(call, batch)))

    def refuse(self, call: Call, error: ModelkeepError) -> None:
        call.sink[0].exchange.fault(error)


class _Tasks:
    """The results of one request's tasks, as they come."""

    def __init__(self, exchange: Exchange, count: int) -> None:
        self.exchange = exchange
        self._results: list[bytes | None] = [None] * count

    def tell(self, place: int, result: bytes) -> None:
        """The result of one task; the last one answers the request."""
        self._results[place] = encode.sized(1, result)
        if None not in self._results:
            self.exchange.answer(b"".join(one for one in self._results if one is not None))


_PREDICT: Final = _Predict()
_RESULTS: Final = {"classify": _Result(answers.classification), "regress": _Result(answers.regression)}
_SEVERAL: Final = _Several()


class PredictionService:
    """The door.

    Args:
        plane: What answers.
    """

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._requests = requests.Requests()
        kinds = {
            "classify": "ClassificationRequest",
            "regress": "RegressionRequest",
            "several": "MultiInferenceRequest",
            "metadata": "GetModelMetadataRequest",
            "status": "GetModelStatusRequest",
        }
        self._kinds = {key: messages.message(f"tensorflow.serving.{name}") for key, name in kinds.items()}

    def methods(self) -> dict[bytes, Method]:
        """Every method by its path."""
        served = {
            f"{SERVICE}/Predict": self._predict,
            f"{SERVICE}/Classify": lambda exchange, data: self._examples(exchange, data, "classify"),
            f"{SERVICE}/Regress": lambda exchange, data: self._examples(exchange, data, "regress"),
            f"{SERVICE}/MultiInference": self._several,
            f"{SERVICE}/GetModelMetadata": self._metadata,
            f"{_MODELS}/GetModelStatus": self._status,
            f"{_MODELS}/HandleReloadConfigRequest": _reload,
        }
        return {f"/{path}".encode(): Method(function) for path, function in served.items()}

    def _who(self, exchange: Exchange, spec: Spec, id: str, data: bytes) -> Lane:
        """Who answers. Raises ``NotFound``, ``Overloaded``, ``Unavailable``."""
        endpoint = self._endpoint(spec)
        endpoint.admit(data)
        return signatures.lane(endpoint, exchange.head.key or id, spec.version, spec.label)

    def _endpoint(self, spec: Spec) -> Endpoint:
        if not spec.name:
            raise Invalid("Missing ModelSpec", path="model_spec.name")
        return signatures.endpoint(self._plane, spec.name)

    def _predict(self, exchange: Exchange, data: bytes) -> None:
        asked, message, raw, start = self._requests.read(data)
        with self._shown(asked.spec):
            id = self._plane.new_id()
            lane = self._who(exchange, asked.spec, id, data)
            _check_outputs(lane, asked)
            rows = requests.rows(lane, asked, message, raw, start)
            sink = (exchange, asked.wanted)
            lane.submit(Call(rows, id, _PREDICT, sink, exchange.head.key, exchange.deadline))

    @contextmanager
    def _shown(self, spec: Spec) -> Iterator[None]:
        """Errors as requests for a model may see them."""
        try:
            yield
        except ModelkeepError as error:
            raise self._plane.shown(spec.name, error) from None

    def _examples(self, exchange: Exchange, data: bytes, verb: str) -> None:
        message = messages.decode(self._kinds[verb], data)
        spec = requests.spec(message.model_spec)
        with self._shown(spec):
            lane, rows, id = self._asked(exchange, spec, verb, message.input, data)
            lane.submit(Call(rows, id, _RESULTS[verb], exchange, exchange.head.key, exchange.deadline))

    def _asked(self, exchange: Exchange, spec: Spec, verb: str, given: Any, data: bytes) -> tuple[Lane, Rows, str]:
        """Who answers what of a request to classify or regress, and its id."""
        id = self._plane.new_id()
        lane = self._who(exchange, spec, id, data)
        signatures.check(verb, spec.signature, lane.loaded.signature)
        return lane, requests.example_rows(lane, given), id

    def _several(self, exchange: Exchange, data: bytes) -> None:
        """Classify and regress the same examples."""
        message = messages.decode(self._kinds["several"], data)
        if not message.tasks:
            raise Invalid("Inference request for zero tasks", path="tasks")
        calls = []
        tasks = _Tasks(exchange, len(message.tasks))
        for place, task in enumerate(message.tasks):
            verb = _METHODS.get(task.method_name)
            if verb is None:
                known = ", ".join(_METHODS)
                raise Invalid(
                    f"Unsupported signature method_name: {task.method_name[:60]}; expected {known}",
                    path=f"tasks[{place}].method_name",
                )
            spec = requests.spec(task.model_spec)
            with self._shown(spec):
                lane, rows, id = self._asked(exchange, spec, verb, message.input, data)
            sink = (tasks, place, verb)
            calls.append((lane, Call(rows, id, _SEVERAL, sink, exchange.head.key, exchange.deadline)))
        for lane, call in calls:
            lane.submit(call)

    def _metadata(self, exchange: Exchange, data: bytes) -> None:
        message = messages.decode(self._kinds["metadata"], data)
        spec = requests.spec(message.model_spec)
        endpoint = self._endpoint(spec)
        if list(message.metadata_field) != ["signature_def"]:
            shown = ", ".join(message.metadata_field)[:60] or "none"
            raise Invalid(f"Metadata field {shown} is not supported; ask for signature_def", path="metadata_field")
        named = spec.version or spec.label
        lane = signatures.lane(endpoint, "", spec.version, spec.label) if named else endpoint.lead
        made = messages.message("tensorflow.serving.SignatureDefMap")()
        ParseDict({"signature_def": signatures.definitions(lane.loaded.signature)}, made)
        found = messages.message("tensorflow.serving.GetModelMetadataResponse")()
        found.model_spec.MergeFromString(answers.model_spec(lane, ""))
        found.metadata["signature_def"].Pack(made)
        exchange.answer(found.SerializeToString())

    def _status(self, exchange: Exchange, data: bytes) -> None:
        message = messages.decode(self._kinds["status"], data)
        spec = requests.spec(message.model_spec)
        found = messages.message("tensorflow.serving.GetModelStatusResponse")()
        for one in signatures.statuses(self._endpoint(spec), spec.version, spec.label):
            found.model_version_status.add(version=int(one["version"]), state=one["state"], status={})
        exchange.answer(found.SerializeToString())


def _reload(exchange: Exchange, data: bytes) -> None:
    raise RpcError(
        Code.UNIMPLEMENTED, "what is served is declared: apply a declaration, and every serving process follows"
    )


def _check_outputs(lane: Lane, asked: requests.Asked) -> None:
    """Whether the version has the signature and the outputs. Raises ``Invalid``."""
    signature = lane.loaded.signature
    signatures.check("predict", asked.spec.signature, signature)
    names = {field.name for field in signature.outputs} if asked.wanted else set()
    for place, name in enumerate(asked.wanted):
        if name not in names:
            known = ", ".join(sorted(names))
            message = f"output tensor alias not found in signature: {name[:60]}; there are {known}"
            raise Invalid(message, path=f"output_filter[{place}]")
