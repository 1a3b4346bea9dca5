"""Trees and ensembles of trees as TreeEnsemble-5 in float64.

ONNX Runtime evaluates that operator without leaving C++; in float64 every threshold is compared exactly as
scikit-learn compares it. https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsemble.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from modelkeep.formats.onnx.graph import FLOAT, INT64, ML, Graph, Unconvertible, tensor
from modelkeep.formats.onnx.scores import Scores, both, sigmoid, softmax

Array = npt.NDArray[Any]
_BRANCH_LEQ, _BRANCH_MEMBER = 0, 6


@dataclass(frozen=True, slots=True)
class Tree:
    """One tree as arrays over its nodes; node 0 is the root.

    Attributes:
        left: Index of the left child, taken when the feature is at most the threshold.
        right: Index of the right child.
        leaf: Whether the node is a leaf.
        feature: Column compared.
        threshold: float64.
        missing_left: Whether NaN goes left.
        value: What a leaf gives.
        members: Per node with a set of categories instead of a threshold: the categories that go left.
    """

    left: Array
    right: Array
    leaf: Array
    feature: Array
    threshold: Array
    missing_left: Array
    value: Array
    members: dict[int, Array]


def ensemble(graph: Graph, x: str, trees: Sequence[Tree], targets: Array, count: int) -> str:
    """Sum of the trees' leaves per target: [rows, count] float64.

    Args:
        graph: The graph.
        x: [rows, features] float64.
        trees: In order of summation.
        targets: The target of each tree.
        count: How many targets.
    """
    trees = [_with_root(tree) for tree in trees]
    inner = [np.flatnonzero(~tree.leaf) for tree in trees]
    leaves = [np.flatnonzero(tree.leaf) for tree in trees]
    roots = np.concatenate([[0], np.cumsum([len(nodes) for nodes in inner])])
    first_leaf = np.concatenate([[0], np.cumsum([len(nodes) for nodes in leaves])])
    fields: dict[str, list[Array]] = {name: [] for name in ("true", "true_leaf", "false", "false_leaf")}
    members: list[Array] = []
    modes: list[Array] = []
    for tree, nodes, ends, root, leaf in zip(trees, inner, leaves, roots, first_leaf, strict=False):
        position = np.empty(len(tree.leaf), np.int64)
        position[nodes] = np.arange(len(nodes)) + root
        position[ends] = np.arange(len(ends)) + leaf
        left, right = tree.left[nodes], tree.right[nodes]
        fields["true"].append(position[left])
        fields["true_leaf"].append(tree.leaf[left])
        fields["false"].append(position[right])
        fields["false_leaf"].append(tree.leaf[right])
        mode = np.full(len(nodes), _BRANCH_LEQ, np.uint8)
        for where in (np.searchsorted(nodes, node) for node in sorted(tree.members)):
            mode[where] = _BRANCH_MEMBER
            members += [tree.members[int(nodes[where])].astype(np.float64), np.array([np.nan])]
        modes.append(mode)
    sets = {"membership_values": tensor(np.concatenate(members))} if members else {}
    return graph.op(
        "TreeEnsemble",
        x,
        domain=ML,
        n_targets=count,
        aggregate_function=1,  # SUM
        post_transform=0,
        tree_roots=roots[:-1],
        nodes_modes=tensor(np.concatenate(modes)),
        nodes_splits=tensor(_gather(trees, inner, "threshold").astype(np.float64)),
        nodes_featureids=_gather(trees, inner, "feature"),
        nodes_missing_value_tracks_true=_gather(trees, inner, "missing_left"),
        nodes_truenodeids=np.concatenate(fields["true"]),
        nodes_trueleafs=np.concatenate(fields["true_leaf"]),
        nodes_falsenodeids=np.concatenate(fields["false"]),
        nodes_falseleafs=np.concatenate(fields["false_leaf"]),
        leaf_weights=tensor(_gather(trees, leaves, "value").astype(np.float64)),
        leaf_targetids=np.repeat(targets, [len(nodes) for nodes in leaves]),
        **sets,
    )


def _gather(trees: Sequence[Tree], nodes: Sequence[Array], name: str) -> Array:
    return np.concatenate([getattr(tree, name)[index] for tree, index in zip(trees, nodes, strict=True)])


def _with_root(tree: Tree) -> Tree:
    """A lone leaf becomes a split with two equal leaves: the operator has no tree without a split."""
    if not tree.leaf[0]:
        return tree
    value = np.array([0.0, tree.value[0], tree.value[0]])
    leaf = np.array([False, True, True])
    zero, left, right = np.zeros(3, np.int64), np.array([1, 0, 0]), np.array([2, 0, 0])
    return Tree(left, right, leaf, zero, np.zeros(3), np.zeros(3, bool), value, {})


def of_sklearn(fitted: Any, value: Array, features: Array | None = None) -> Tree:
    """A ``sklearn.tree._tree.Tree``.

    Args:
        fitted: The ``tree_`` of an estimator.
        value: One number per node, used at the leaves.
        features: The columns the tree saw, when not all in order.
    """
    leaf = fitted.children_left == -1
    feature = np.where(leaf, 0, fitted.feature)
    return Tree(
        fitted.children_left,
        fitted.children_right,
        leaf,
        feature if features is None else features[feature],
        fitted.threshold,
        fitted.missing_go_to_left.astype(bool),
        value,
        {},
    )


def single(graph: Graph, x: str) -> str:
    """What scikit-learn's trees see: values rounded to float32, compared with float64 thresholds."""
    return graph.double(graph.op("Cast", x, to=FLOAT))


def decision_tree(graph: Graph, model: Any, x: str) -> Scores:
    """DecisionTree and ExtraTree, classifier or regressor."""
    return _averaged(graph, model, [model], x)


def forest(graph: Graph, model: Any, x: str) -> Scores:
    """RandomForest and ExtraTrees, classifier or regressor: the mean of the trees."""
    return _averaged(graph, model, model.estimators_, x)


def _averaged(graph: Graph, model: Any, members: Sequence[Any], x: str) -> Scores:
    if model.n_outputs_ != 1:
        raise Unconvertible(f"it predicts {model.n_outputs_} outputs at once")
    x = single(graph, x)
    share = graph.scalar(len(members))
    if not hasattr(model, "classes_"):
        trees = [of_sklearn(member.tree_, member.tree_.value[:, 0, 0]) for member in members]
        return Scores(value=graph.op("Div", ensemble(graph, x, trees, _zeros(trees), 1), share))
    proportions = [_proportions(member.tree_.value[:, 0, :]) for member in members]
    if len(model.classes_) == 2:
        trees = [of_sklearn(member.tree_, p[:, 1]) for member, p in zip(members, proportions, strict=True)]
        positive = graph.op("Div", ensemble(graph, x, trees, _zeros(trees), 1), share)
        return Scores(probability=both(graph, positive))
    # A leaf of many classes: the ensemble finds each tree's leaf, a table has what the leaf says.
    starts = np.concatenate([[0], np.cumsum([len(p) for p in proportions])])
    trees = [
        of_sklearn(member.tree_, np.arange(len(p)) + start)
        for member, p, start in zip(members, proportions, starts, strict=False)
    ]
    found = graph.op("Cast", ensemble(graph, x, trees, np.arange(len(trees)), len(trees)), to=INT64)
    said = graph.op("Gather", graph.const(np.concatenate(proportions)), found, axis=0)
    return Scores(probability=graph.op("Div", graph.sum_rows(said, keep=False), share))


def _proportions(value: Array) -> Array:
    total = value.sum(axis=1, keepdims=True)
    return np.asarray(value / np.where(total == 0, 1, total))


def _zeros(trees: Sequence[Tree]) -> Array:
    return np.zeros(len(trees), np.int64)


def gradient_boosting(graph: Graph, model: Any, x: str) -> Scores:
    """GradientBoosting, classifier or regressor, from its constant start."""
    width = model.n_features_in_
    if not isinstance(model.init_, str) and type(model.init_).__name__ not in (
        "DummyClassifier",
        "DummyRegressor",
    ):
        raise Unconvertible("it starts from an estimator of its own (init)")
    start = np.asarray(model._raw_predict_init(np.zeros((1, width), np.float32)), np.float64)
    rounds, count = model.estimators_.shape
    trees = [
        of_sklearn(member.tree_, member.tree_.value[:, 0, 0] * model.learning_rate)
        for member in model.estimators_.ravel()
    ]
    total = ensemble(graph, single(graph, x), trees, np.tile(np.arange(count), rounds), count)
    raw = graph.op("Add", total, graph.const(start))
    if not hasattr(model, "classes_"):
        return Scores(value=raw)
    if type(model._loss).__name__ == "ExponentialLoss":  # its link is half the log odds
        odds = graph.op("Mul", raw, graph.scalar(2.0))
        return Scores(decision=raw, probability=sigmoid(graph, odds))
    return Scores(decision=raw, probability=_boosted(graph, raw, count))


def hist_gradient_boosting(graph: Graph, model: Any, x: str) -> Scores:
    """HistGradientBoosting, classifier or regressor; missing values and categories included."""
    if model._preprocessor is not None:
        x = _categories_first(graph, model, x)
    count = model.n_trees_per_iteration_
    trees = [_of_predictor(predictor) for round_ in model._predictors for predictor in round_]
    targets = np.tile(np.arange(count), len(model._predictors))
    baseline = graph.const(np.asarray(model._baseline_prediction, np.float64).reshape(1, -1))
    raw = graph.op("Add", ensemble(graph, x, trees, targets, count), baseline)
    if hasattr(model, "classes_"):
        return Scores(decision=raw, probability=_boosted(graph, raw, count))
    link = type(model._loss.link).__name__
    if link == "LogLink":
        return Scores(value=graph.op("Exp", raw))
    if link != "IdentityLink":
        raise Unconvertible(f"its loss has the link {link}")
    return Scores(value=raw)


def _boosted(graph: Graph, raw: str, count: int) -> str:
    return sigmoid(graph, raw) if count == 1 else softmax(graph, raw)


def _of_predictor(predictor: Any) -> Tree:
    nodes = predictor.nodes
    categorical = np.flatnonzero((nodes["is_categorical"] != 0) & (nodes["is_leaf"] == 0))
    members = {int(node): _bits(predictor.raw_left_cat_bitsets[nodes["bitset_idx"][node]]) for node in categorical}
    threshold = nodes["num_threshold"].copy()
    threshold[categorical] = 0.0
    return Tree(
        nodes["left"].astype(np.int64),
        nodes["right"].astype(np.int64),
        nodes["is_leaf"].astype(bool),
        nodes["feature_idx"].astype(np.int64),
        threshold,
        nodes["missing_go_to_left"].astype(bool),
        nodes["value"],
        members,
    )


def _bits(words: Array) -> Array:
    """The positions of the bits set in eight words of 32."""
    return np.flatnonzero((words[:, None] >> np.arange(32, dtype=np.uint32)) & 1)


def _categories_first(graph: Graph, model: Any, x: str) -> str:
    """Its own preprocessor: categorical columns to ordinals (unknown to NaN), put before the others."""
    encoder = model._preprocessor.named_transformers_["encoder"]
    where = np.flatnonzero(model.is_categorical_)
    parts: list[str] = []
    for index, categories in zip(where, encoder.categories_, strict=True):
        known = np.asarray(categories, np.float64)
        known = known[~np.isnan(known)]
        column = graph.columns(x, [int(index)])
        parts.append(
            graph.op(
                "LabelEncoder",
                column,
                domain=ML,
                keys_tensor=tensor(known),
                values_tensor=tensor(np.arange(len(known), dtype=np.float64)),
                default_tensor=tensor(np.array([np.nan])),
            )
        )
    rest = np.flatnonzero(~model.is_categorical_)
    if len(rest):
        parts.append(graph.columns(x, rest.tolist()))
    return graph.concat(parts)


def isolation_forest(graph: Graph, model: Any, x: str) -> Scores:
    """Anomaly score 2^(-mean depth / expected depth) of Liu, Ting and Zhou (ICDM 2008)."""
    from sklearn.ensemble._iforest import _average_path_length

    lengths = list(zip(model._decision_path_lengths, model._average_path_length_per_tree, strict=True))
    trees = [
        of_sklearn(member.tree_, depths + extra - 1.0, np.asarray(columns))
        for member, columns, (depths, extra) in zip(
            model.estimators_, model.estimators_features_, lengths, strict=True
        )
    ]
    depth = ensemble(graph, single(graph, x), trees, _zeros(trees), 1)
    scale = len(trees) * float(_average_path_length([model._max_samples])[0])
    if scale == 0:
        raise Unconvertible("it was fitted on a single row")
    power = graph.op("Div", depth, graph.scalar(-scale))
    return Scores(anomaly=graph.op("Pow", graph.scalar(2.0), power), offset=-float(model.offset_))
