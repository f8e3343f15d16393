"""Boosted trees of scikit-learn in ONNX Runtime, where a call takes a tenth of the time."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from urlhealth.errors import ModelMismatch
from urlhealth.prediction.estimators import Forest, probability_of

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
#: From features, (n, k), NaN where unknown, to the probability of the second class, (n,).
Scorer = Callable[[Floats32], Floats]

#: Most by which a probability may differ once it is compiled, and the rows that are looked at.
PARITY: Final = 1e-5
_PARITY_ROWS: Final = 256
_MISSING_SHARE: Final = 0.1

#: Operators of ONNX, and of its part for classic models.
_OPSETS: Final = {"": 21, "ai.onnx.ml": 3}
_IR_VERSION: Final = 10


def scorer_of(classifier: Any) -> Scorer:
    """How a fitted binary classifier is asked: its trees compiled if that is what it is, or else itself.

    Raises:
        ModelMismatch: it has what is not compiled, or does not give a probability a row.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.utils import get_tags

    if isinstance(classifier, HistGradientBoostingClassifier):
        if classifier.is_categorical_ is not None:
            raise ModelMismatch("a HistGradientBoostingClassifier with categorical features cannot be served")
        return compiled(Forest.of(classifier), columns=classifier.n_features_in_)

    takes_all = get_tags(classifier).input_tags.allow_nan

    def ask(X: Floats32) -> Floats:
        probability = np.full(len(X), np.nan)
        # One that takes nothing missing says nothing where something is.
        rows = np.full(len(X), True) if takes_all else np.isfinite(X).all(axis=1)
        if rows.any():
            probability[rows] = np.asarray(classifier.predict_proba(X[rows]))[:, 1]
        return probability

    probability = ask(np.zeros((2, classifier.n_features_in_), np.float32))
    if probability.shape != (2,) or not ((probability >= 0) & (probability <= 1)).all():
        raise ModelMismatch("what it gives are no probabilities")
    return ask


def compiled(forest: Forest, *, columns: int) -> Scorer:
    """The probabilities of a forest over so many features. One thread: a server has one core for each of its workers.

    Raises:
        ModelMismatch: the nodes are no trees, or what was compiled says otherwise.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(_graph(forest, columns), options, providers=["CPUExecutionProvider"])

    def ask(X: Floats32) -> Floats:
        (logits,) = session.run(["logits"], {"X": X})
        return probability_of(logits[:, 0].astype(np.float64))

    X = _rows_of_all_kinds(forest, columns)
    difference = np.abs(ask(X) - probability_of(forest.logits(X.astype(np.float64)))).max()
    if not difference <= PARITY:
        raise ModelMismatch(f"compiled, its trees say otherwise by {difference:.1e}")
    return ask


def _rows_of_all_kinds(forest: Forest, columns: int) -> Floats32:
    """Rows around the thresholds of the forest, exactly on them, and with nothing in some places."""
    rng = np.random.default_rng(0)
    X = np.zeros((_PARITY_ROWS, columns), np.float32)
    leaf = forest.child[1::2] == np.arange(len(forest.value))
    for feature in range(columns):
        thresholds = forest.threshold[~leaf & (forest.feature == feature)]
        thresholds = thresholds[np.isfinite(thresholds)]
        if len(thresholds):
            X[:, feature] = rng.choice(thresholds, _PARITY_ROWS) + rng.choice([-1.0, 0.0, 1.0], _PARITY_ROWS)
    X[rng.random(X.shape) < _MISSING_SHARE] = np.nan
    return X


def _graph(forest: Forest, columns: int) -> bytes:
    """The forest as an ONNX model: X, float32 (n, k), to logits, float32 (n, 1)."""
    from onnx import TensorProto, helper

    nodes = np.arange(len(forest.value))
    # A leaf is its own child. Its tree is that of the last root before it.
    leaf = forest.child[2 * nodes + 1] == nodes
    tree = np.searchsorted(forest.root, nodes, side="right") - 1
    sides = forest.child.reshape(-1, 2)[~leaf]
    if len(sides) and not ((sides > nodes[~leaf, None]).all() and (tree[sides] == tree[~leaf, None]).all()):
        raise ModelMismatch("a node of a tree is followed by one before it, or of another tree")
    if (forest.feature[~leaf] >= columns).any() or (forest.feature < 0).any():
        raise ModelMismatch(f"a node of a tree looks at a feature that is none of the {columns}")
    within = nodes - forest.root[tree]
    below = [np.where(leaf, 0, forest.child[2 * nodes + side] - forest.root[tree]).tolist() for side in (1, 0)]
    ensemble = helper.make_node(
        "TreeEnsembleRegressor",
        ["X"],
        ["logits"],
        domain="ai.onnx.ml",
        n_targets=1,
        base_values=[float(forest.base)],
        nodes_treeids=tree.tolist(),
        nodes_nodeids=within.tolist(),
        nodes_featureids=np.where(leaf, 0, forest.feature).tolist(),
        nodes_modes=np.where(leaf, "LEAF", "BRANCH_LEQ").tolist(),
        nodes_values=_rounded_down(np.where(leaf, 0.0, forest.threshold)).tolist(),
        nodes_truenodeids=below[0],
        nodes_falsenodeids=below[1],
        nodes_missing_value_tracks_true=np.where(leaf, 0, forest.missing_left).astype(int).tolist(),
        target_treeids=tree[leaf].tolist(),
        target_nodeids=within[leaf].tolist(),
        target_ids=[0] * int(leaf.sum()),
        target_weights=forest.value[leaf].tolist(),
    )
    described = helper.make_graph(
        [ensemble],
        "forest",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [None, columns])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, 1])],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()]
    model = helper.make_model(described, opset_imports=opsets, ir_version=_IR_VERSION)
    content: bytes = model.SerializeToString()
    return content


def _rounded_down(thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The largest float32 not above each: of a float32, it is the same to be at most one or the other."""
    with np.errstate(over="ignore"):
        single = thresholds.astype(np.float32)
    above = single.astype(np.float64) > thresholds
    single[above] = np.nextafter(single[above], np.float32(-np.inf))
    return single
