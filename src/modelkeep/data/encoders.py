"""Fitters of the steps that make numbers of categories, text and times; and the table of all fitters."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.preprocessing import KBinsDiscretizer, OneHotEncoder, OrdinalEncoder

from modelkeep.core.errors import Invalid
from modelkeep.data.fitters import Block, Fitter, ImputeFitter, ScaleFitter, State, distinct, merge_distinct
from modelkeep.data.statistics import Moments, Values, merged_counts
from modelkeep.formats.steps import DateParts, HashBuckets, RareCategories, UserFunction
from modelkeep.spec import steps


class EncodeFitter(Fitter):
    """``OneHotEncoder`` or ``OrdinalEncoder`` from the distinct values."""

    takes = ("string", "numeric")
    counts = True

    def partial(self, block: Block) -> State:
        return distinct(block)

    def merge(self, a: State, b: State) -> State:
        return merge_distinct(a, b)

    def finish(self, state: State) -> list[Any]:
        strings = isinstance(state[0], Counter)
        if not strings and self.step.max_categories is not None:
            raise Invalid(
                f"max_categories needs strings; {self.columns[0]!r} holds numbers",
                path=f"{self.path}.max_categories",
                hint="cast it to string under data.clean, or use bin",
            )
        made: list[Any] = []
        if strings and self.step.max_categories is not None:
            rare = [_rare(found, self.step.max_categories) for found in state]
            if any(rare):
                grouping = RareCategories(rare=rare)
                grouping.n_features_in_ = len(state)
                made.append(grouping)
                state = [
                    {name for name in found if name not in set(gone)} | ({grouping.other} if gone else set())
                    for found, gone in zip(state, rare, strict=True)
                ]
        levels = [
            sorted(found) if strings else [*found.values, *[np.nan] * bool(found.missing)] for found in state
        ]
        # Short columns are padded with their first category: the distinct values are what the encoder learns.
        longest = max(len(names) for names in levels)
        kind: Any = object if strings else np.float64
        padded = np.array([names + names[:1] * (longest - len(names)) for names in levels], dtype=kind).T
        return [*made, self._encoder().fit(padded)]

    def _encoder(self) -> Any:
        if self.step.method == "onehot":
            return OneHotEncoder(handle_unknown=self.step.unseen)
        if self.step.unseen == "error":
            return OrdinalEncoder(handle_unknown="error")
        return OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)


def _rare(counts: Counter[str], keep: int) -> list[str]:
    """The categories beyond the ``keep - 1`` most frequent; none when all fit."""
    # Of equally frequent ones the smaller names stay.
    if len(counts) <= keep:
        return []
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    return sorted(ordered[max(keep - 1, 0) :])


class BinFitter(Fitter):
    """``KBinsDiscretizer`` with edges from quantiles or extremes."""

    def partial(self, block: Block) -> State:
        return distinct(block) if self.step.method == "quantile" else Moments.of(block)

    def merge(self, a: State, b: State) -> State:
        return a.merge(b) if isinstance(a, Moments) else merge_distinct(a, b)

    def finish(self, state: State) -> list[Any]:
        bins = self.step.bins
        if isinstance(state, Moments):
            if not state.count.all():
                raise self.empty(int(np.flatnonzero(state.count == 0)[0]), len(state.count))
            edges = [np.linspace(low, high, bins + 1) for low, high in zip(state.low, state.high, strict=True)]
            binner = KBinsDiscretizer(n_bins=bins, encode="ordinal", strategy="uniform", subsample=None)
        else:
            edges = [self._quantiles(found, index, len(state)) for index, found in enumerate(state)]
            binner = KBinsDiscretizer(
                n_bins=bins,
                encode="ordinal",
                strategy="quantile",
                quantile_method="averaged_inverted_cdf",
                subsample=None,
            )
        constant = [index for index, found in enumerate(edges) if found[0] == found[-1]]
        for index in constant:  # one bin that holds everything, as in scikit-learn
            edges[index] = np.array([-np.inf, np.inf])
        binner.bin_edges_ = np.empty(len(edges), dtype=object)
        binner.bin_edges_[:] = edges
        binner.n_bins_ = np.array([len(found) - 1 for found in edges])
        binner.n_features_in_ = len(edges)
        if self.step.encode == "ordinal":
            return [binner]
        widest = int(binner.n_bins_.max())
        codes = np.array(
            [[min(row, bins_ - 1) for bins_ in binner.n_bins_] for row in range(widest)], dtype=np.float64
        )
        return [binner, OneHotEncoder(handle_unknown="ignore").fit(codes)]

    def _quantiles(self, found: Values, index: int, count: int) -> npt.NDArray[np.float64]:
        if not found.total:
            raise self.empty(index, count)
        bins = self.step.bins
        edges = np.array([found.inverted_cdf(position / bins) for position in range(bins + 1)])
        # Bins too narrow to tell apart are joined, as in scikit-learn.
        return edges[np.ediff1d(edges, to_begin=np.inf) > 1e-8] if edges[0] < edges[-1] else edges


class DatePartsFitter(Fitter):
    """``DateParts``: nothing to learn."""

    takes = ("time",)

    def finish(self, state: State) -> list[Any]:
        made = DateParts(parts=list(self.step.parts))
        made.n_features_in_ = len(self.columns)
        return [made]


class HashFitter(Fitter):
    """``HashBuckets``: nothing to learn."""

    takes = ("string",)
    gives = "final"

    def finish(self, state: State) -> list[Any]:
        made = HashBuckets(buckets=self.step.buckets)
        made.n_features_in_ = len(self.columns)
        return [made]


class FunctionFitter(Fitter):
    """The user's function; only how many features it makes is learnt, from the first rows."""

    takes = ("numeric", "string", "time")
    ROWS = 20

    def partial(self, block: Any) -> State:
        """The first rows, of a DataFrame: the function sees columns by their names."""
        return block.head(self.ROWS)

    def merge(self, a: State, b: State) -> State:
        return a if len(a) >= self.ROWS else pd.concat([a, b], ignore_index=True).head(self.ROWS)

    def finish(self, state: State) -> list[Any]:
        step = UserFunction(function=self.step.function, params=dict(self.step.params), base=str(self.base))
        return [step.fit(state)]


class TfidfFitter(Fitter):
    """``TfidfVectorizer`` from document and term frequencies."""

    takes = ("string",)
    gives = "final"

    def partial(self, block: Block) -> State:
        counter = CountVectorizer(**self._words())
        try:
            matrix = counter.fit_transform(block.ravel())
        except ValueError:  # scikit-learn's way to say that no document has a word
            return len(block), Counter(), Counter()
        words = counter.get_feature_names_out()
        terms = np.asarray(matrix.sum(axis=0)).ravel()
        documents = np.bincount(matrix.indices, minlength=len(words))
        pairs = (dict(zip(words, found.tolist(), strict=True)) for found in (documents, terms))
        return len(block), *(Counter(pair) for pair in pairs)

    def merge(self, a: State, b: State) -> State:
        return a[0] + b[0], merged_counts(a[1], b[1]), merged_counts(a[2], b[2])

    def finish(self, state: State) -> list[Any]:
        rows, documents, terms = cast(tuple[int, Counter[str], Counter[str]], state)
        words = sorted(word for word, count in documents.items() if count >= self.step.min_df)
        if not words:
            raise Invalid(
                f"{self.columns[0]!r} has no word that occurs in {self.step.min_df} of {rows} rows",
                path=self.path,
                hint="lower min_df, or look at the column",
            )
        limit = self.step.max_features
        if limit is not None and len(words) > limit:
            frequent = (-np.array([terms[word] for word in words])).argsort()[:limit]
            words = sorted(words[index] for index in frequent)
        vectorizer = TfidfVectorizer(max_features=limit, min_df=self.step.min_df, **self._words())
        vectorizer.vocabulary_ = {word: index for index, word in enumerate(words)}
        vectorizer.fixed_vocabulary_ = False
        df = np.array([documents[word] for word in words], dtype=np.float64)
        vectorizer.idf_ = np.log((rows + 1) / (df + 1)) + 1.0
        return [vectorizer]

    def _words(self) -> dict[str, Any]:
        return {
            "lowercase": self.step.lowercase,
            "stop_words": self.step.stop_words,
            "ngram_range": tuple(self.step.ngrams),
        }


FITTERS: dict[type, type[Fitter]] = {
    steps.Impute: ImputeFitter,
    steps.Scale: ScaleFitter,
    steps.Encode: EncodeFitter,
    steps.Bin: BinFitter,
    steps.DateParts: DatePartsFitter,
    steps.Tfidf: TfidfFitter,
    steps.Hash: HashFitter,
    steps.Function: FunctionFitter,
}
