"""The declaration: what must stay true of one model. Frozen structs; YAML and Python load to equal objects.

Text fields with a grammar of their own (gates, triggers, durations, rates) stay text here, checked at loading;
``modelkeep.spec.expressions`` and ``modelkeep.spec.units`` parse them.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct, field

from modelkeep.spec.steps import CleanStep, Columns, FeatureStep

Names = tuple[str, ...]


class Origin(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A source that needs more than an address: a SQL query, or a Python function.

    Attributes:
        url: SQLAlchemy URL of a database; ``${NAME}`` is taken from the environment.
        query: The SELECT to run there.
        function: Import path ``module:name`` of ``f(**params) -> pyarrow.Table | pandas.DataFrame``, or an
            iterator of either.
        params: Keyword arguments for the function.
        parts: Call the function as ``f(part=0, **params)`` up to ``parts - 1``, each giving some of the rows, in
            parallel; 0 calls it once without.
    """

    url: str = ""
    query: str = ""
    function: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    parts: int = 0


class Split(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How rows are set aside for evaluation.

    Attributes:
        test: Share of rows, in (0, 1).
        by: ``key`` (hash of the row's key: stable while the table grows), ``random``, or ``time`` (the latest).
    """

    test: float = 0.2
    by: Literal["key", "random", "time"] = "key"


class Partition(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a snapshot's rows are divided into parts.

    Attributes:
        by: ``hash`` or ``range`` of the columns.
        columns: What is hashed or ordered.
        parts: How many.
    """

    by: Literal["hash", "range"] = "hash"
    columns: Names = ()
    parts: int = 8


class ColumnCheck(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What must hold for one column. Unset fields are inferred from the first snapshot; ``off`` disables all."""

    type: str | None = None
    max_missing: float | None = None
    min: float | None = None
    max: float | None = None
    categories: Names | None = None
    unique: bool | None = None
    off: bool = False


class Checks(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What must hold for the data before it may train a model.

    Attributes:
        columns: Per column, over what was inferred.
        min_rows: Fewest rows.
        max_age: Oldest the newest row may be, as a duration.
        quarantine: Largest share of failing rows that may be set aside; above it ``apply`` stops.
        infer: Whether to infer checks from the first snapshot.
    """

    columns: dict[str, ColumnCheck] = field(default_factory=dict)
    min_rows: int = 10
    max_age: str | None = None
    quarantine: float = 0.05
    infer: bool = True


class Data(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the rows come from and how they are made fit to train on.

    Attributes:
        source: File, folder, glob or object-store URL; or a SQL query; or a Python function.
        target: The column to predict; empty for an unsupervised algorithm.
        key: Column or columns that identify a row; without one the whole row does.
        time: Column that orders rows in time.
        exclude: Columns the model must not see. Key, time and target are never features by themselves.
        clean: Steps run in order over the rows.
        split: What is kept for evaluation.
        partition: How parts are cut.
        checks: What must hold.
    """

    source: str | Origin
    target: str = ""
    key: str | Names = ()
    time: str = ""
    exclude: Names = ()
    clean: tuple[CleanStep, ...] = ()
    split: Split = Split()
    partition: Partition | None = None
    checks: Checks = Checks()


class Range(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A range to search.

    Attributes:
        low: Smallest value.
        high: Largest value.
        log: Search on a logarithmic scale.
        step: Distance of the values on a grid.
        int: Whole numbers only.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    int: bool = False


class Tune(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How hyperparameters are searched (Optuna).

    Attributes:
        trials: How many to try.
        space: Per parameter the choices (a list) or a range.
        sampler: ``tpe``, ``random`` or ``grid``.
        prune: Stop hopeless trials early.
        validation: ``cv`` or ``holdout``.
        folds: Folds of the cross-validation.
        timeout: Longest total time, as a duration.
        parallel: Trials asked for at a time, whatever works on them: more keep a larger engine busy, fewer learn
            more from one another.
    """

    trials: int = 20
    space: dict[str, tuple[Any, ...] | Range] = field(default_factory=dict)
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    prune: bool = True
    validation: Literal["cv", "holdout"] = "cv"
    folds: int = 3
    timeout: str | None = None
    parallel: int = 4


class Train(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the model is fitted.

    Attributes:
        algorithm: Short name, import path of a scikit-learn compatible class, your function
            ``fit(data, params, run) -> estimator``, or ``auto``.
        params: Keyword arguments of the algorithm.
        tune: Search for better ones.
        metric: What tuning, ``auto`` and reports look at first; empty picks by task.
        task: ``auto`` decides by algorithm and target.
        seed: Of everything random.
        families: For ``auto``: the algorithms to try; empty tries a good mixture.
        time_budget: For ``auto``: longest total time, as a duration.
    """

    algorithm: str = "auto"
    params: dict[str, Any] = field(default_factory=dict)
    tune: Tune | None = None
    metric: str = ""
    task: Literal["auto", "classification", "regression", "anomaly"] = "auto"
    seed: int = 0
    families: Names = ()
    time_budget: str = "60s"


class Replicas(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many serving processes `modelkeep up` runs, by load. Of several endpoints the largest bounds count.

    Attributes:
        min: Fewest. 0 lets serving end when nothing is asked; the first request then waits for the load.
        max: Most. More than the machine has cores gains nothing.
        quiet: How long there must be little to do before one of them ends, as a duration.
    """

    min: int = 1
    max: int = 1
    quiet: str = "1m"


class MicroBatch(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How requests are answered together, and how long they may wait for it.

    Attributes:
        max_rows: Most rows that are predicted at once. A request with more is predicted alone.
        wait: How long a batch that is not full waits for more rows, as a duration. ``0ms`` never waits: a batch is
            then whatever came while the one before was predicted.
        budget: Time within which a request should be answered, as a duration. When the queue is longer than that,
            requests are refused with 429 and ``retry-after``.
    """

    max_rows: int = 16_384
    wait: str = "0ms"
    budget: str = "1s"


class Cache(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Answers kept for requests that come again with the same rows. A new version starts with none.

    Attributes:
        rows: Most rows kept; 0 keeps none.
        bytes: Most memory that inputs and answers may take.
    """

    rows: int = 0
    bytes: int = 67_108_864


class Deploy(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where and how versions take traffic.

    Attributes:
        endpoint: The stable address; empty means the model's name.
        rollout: Steps such as ``shadow 10m`` or ``canary 5% 10m``; none means at once.
        abort: Conditions that end a rollout, such as ``error_rate > 1%``.
        replicas: Bounds on serving processes.
        unknown_fields: What to do with inputs the signature does not name.
        in_range: Inputs whose values outside of the range of training are refused: ``numeric``, or names of
            numbers and times. ``min`` and ``max`` under ``data.checks.columns`` widen it. A change makes a new
            version, without training.
        errors: What errors show of what was sent and of the model: everything, or only the paths of the fields.
        batch: How requests are answered together.
        concurrency: How many batches of a version that takes long are predicted at the same time, in one process.
        cache: Answers kept.
        memory: Bytes that the process of a version may hold, when it runs in one of its own.
        versions: Which can be asked for by number or alias: those that traffic is routed to, or all of the model,
            each loaded when it is first asked.
        repeatable: Whether a request may be predicted again when its process died or its batch failed.
    """

    endpoint: str = ""
    rollout: Names = ()
    abort: Names = ()
    replicas: Replicas = Replicas()
    unknown_fields: Literal["refuse", "ignore"] = "refuse"
    in_range: Columns = ()
    errors: Literal["full", "redacted"] = "full"
    batch: MicroBatch = MicroBatch()
    concurrency: int = 1
    cache: Cache = Cache()
    memory: int = 4_294_967_296
    versions: Literal["routed", "all"] = "routed"
    repeatable: bool = True


class Drift(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When a change of the inputs counts as drift.

    Attributes:
        false_alarms: The rate you accept when nothing changed, as ``1 per 1000 windows``.
        exclude: Columns not to watch.
    """

    false_alarms: str = "1 per 1000 windows"
    exclude: Names = ()


class Log(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is kept of each prediction.

    Attributes:
        sample: Share of requests kept, in [0, 1].
        mask: Columns that never leave the request.
    """

    sample: float = 1.0
    mask: Names = ()


class Monitor(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is watched of the served model.

    Attributes:
        window: Length of a window, as a duration.
        drift: Of the inputs.
        log: What is captured.
        metric: Live metric once labels arrive; empty means ``train.metric``.
        min_labels: Fewest labels before a window's metric counts.
    """

    window: str = "1h"
    drift: Drift = Drift()
    log: Log = Log()
    metric: str = ""
    min_labels: int = 50


class Update(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When to renew.

    Attributes:
        when: Triggers: ``drift``, ``performance_drop``, ``new_rows >= N``, ``cron M H D M W``.
        cooldown: Shortest time between two renewals, as a duration.
        priority: Of its renewals, where those of several models wait: higher goes first; an hour of waiting counts
            as one.
    """

    when: Names = ()
    cooldown: str = "0s"
    priority: int = 0


class Resources(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one part of the work needs, wherever it is worked on; it bounds how many are under way at once.

    Attributes:
        cpu: Cores. Whole numbers above 1.
        memory: As ``4GB``; empty means that it is not counted.
        gpu: GPUs: a share of one below 1, whole ones above.
    """

    cpu: float = 1.0
    memory: str = ""
    gpu: float = 0.0


class Declaration(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model's promise, kept over time.

    Attributes:
        model: Registered name.
        description: One sentence for people.
        data: The rows.
        features: Fitted steps that travel with the model, in order.
        train: The algorithm.
        gates: Conditions a version must meet, such as ``roc_auc >= champion.roc_auc - 0.005``.
        deploy: The endpoint.
        monitor: What is watched.
        update: When to renew.
        engine: Where the work is done: ``local`` (this machine's cores; ``local://4``: so many processes),
            ``ray``, ``ray://host:10001``, ``dask://host:8786``, ``spark``, ``spark://host:7077``. The result is
            the same on all.
        resources: What one part of the work needs there.
        blobs: Where bytes are kept; empty means the home folder.
        trust: Digests or type names allowed to run code on load.
    """

    model: str
    data: Data
    description: str = ""
    features: tuple[FeatureStep, ...] = ()
    train: Train = Train()
    gates: Names = ()
    deploy: Deploy = Deploy()
    monitor: Monitor = Monitor()
    update: Update = Update()
    engine: str = "local"
    resources: Resources = Resources()
    blobs: str = ""
    trust: Names = ()

    @property
    def endpoint(self) -> str:
        """The endpoint's name."""
        return self.deploy.endpoint or self.model

    @property
    def keys(self) -> Names:
        """The key columns, always as a tuple."""
        return (self.data.key,) if isinstance(self.data.key, str) and self.data.key else tuple(self.data.key)
