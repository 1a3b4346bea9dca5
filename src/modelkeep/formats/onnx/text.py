"""Words to weights: TfidfVectorizer and CountVectorizer.

Words are found by ONNX Runtime's Tokenizer, whose expressions are RE2's: its ``[\\pL\\pN_]{2,}`` finds what
Python's ``\\b\\w\\w+\\b`` does, letters of every script included. Lower case needs a UTF-8 locale that every
Linux image has.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modelkeep.formats.onnx.graph import MICROSOFT, Graph, Unconvertible

_DEFAULT_PATTERN = r"(?u)\b\w\w+\b"
_WORDS = r"[\pL\pN_]{2,}"
_LOCALE = "C.UTF-8"
_PAD = "\x00"


def term_weights(graph: Graph, step: Any, text: str) -> tuple[str, int]:
    """Weights of the vocabulary's words in each text.

    Args:
        graph: The graph.
        step: A fitted CountVectorizer or TfidfVectorizer.
        text: [rows] strings.

    Returns:
        A tensor [rows, words] and the number of words.
    """
    _supported(step)
    if step.lowercase:
        text = graph.op("StringNormalizer", text, case_change_action="LOWER", is_case_sensitive=0, locale=_LOCALE)
    words = graph.op("Tokenizer", text, domain=MICROSOFT, mark=0, mincharnum=1, pad_value=_PAD, tokenexp=_WORDS)
    counts = graph.double(_counts(graph, step, words))
    width = len(step.vocabulary_)
    if step.binary:
        counts = graph.double(graph.op("Greater", counts, graph.const(np.array(0.0))))
    if not hasattr(step, "idf_"):
        return counts, width
    if step.sublinear_tf:
        one = graph.const(np.array(1.0))
        grown = graph.op("Add", graph.op("Log", graph.op("Max", counts, one)), one)
        counts = graph.op("Where", graph.op("Greater", counts, graph.const(np.array(0.0))), grown, counts)
    if step.use_idf:
        counts = graph.op("Mul", counts, graph.const(np.asarray(step.idf_, np.float64)[None]))
    if step.norm is None:
        return counts, width
    kind = {"l2": "ReduceL2", "l1": "ReduceL1"}[step.norm]
    length = graph.op(kind, counts, graph.const(np.array([1], np.int64)), keepdims=1)
    nothing = graph.op("Equal", length, graph.const(np.array(0.0)))
    return graph.op("Div", counts, graph.op("Where", nothing, graph.const(np.array(1.0)), length)), width


def _supported(step: Any) -> None:
    if step.analyzer != "word" or step.tokenizer or step.preprocessor:
        raise Unconvertible("it has an analyser, tokeniser or preprocessor of its own")
    if step.token_pattern != _DEFAULT_PATTERN:
        raise Unconvertible(f"its token pattern is {step.token_pattern!r}")
    if step.strip_accents:
        raise Unconvertible("it strips accents")
    if not step.vocabulary_:
        raise Unconvertible("its vocabulary is empty")
    if step.stop_words is not None and step.ngram_range != (1, 1):
        raise Unconvertible("it leaves out stop words before it forms n-grams")


def _counts(graph: Graph, step: Any, words: str) -> str:
    """How often each n-gram occurs, in the vocabulary's order: float32, which is exact for counts."""
    terms = sorted(step.vocabulary_, key=lambda term: (term.count(" "), int(step.vocabulary_[term])))
    pool: list[str] = []
    starts: list[int] = []
    low, high = step.ngram_range
    for size in range(1, high + 1):
        starts.append(len(pool))
        for term in terms:
            parts = term.split(" ")
            if len(parts) == size:
                pool += parts
    return graph.op(
        "TfIdfVectorizer",
        words,
        mode="TF",
        min_gram_length=int(low),
        max_gram_length=int(high),
        max_skip_count=0,
        ngram_counts=np.array(starts),
        ngram_indexes=np.array([int(step.vocabulary_[term]) for term in terms]),
        pool_strings=pool,
    )
