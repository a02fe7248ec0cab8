"""The space of word vectors: clusters with their silhouette, and a map in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_samples

from whence.errors import ConfigError
from whence.tasks.words.embedding import WordEmbedding
from whence.tasks.words.measurements import ClusterMembership

__all__ = ["WordClusters", "clusters", "word_map"]

_LARGEST_SILHOUETTE = 5000
_STARTS = 4
_LARGEST_MAP = 2000


@dataclass(frozen=True, kw_only=True, eq=False)
class WordClusters:
    """Clusters of words by the direction of their vectors. Made by `clusters`.

    Args:
        embedding: The vectors.
        labels: Cluster of every word [V], from 0.
        centres: Mean of the directions of every cluster's words [k, d].
        similarity: Cosine of every word with its own centre [V].
        silhouettes: Silhouette of the most frequent words, in [−1, 1]: how much nearer a word is to its own cluster
            than to the next one.
    """

    embedding: WordEmbedding
    labels: np.ndarray = field(repr=False)
    centres: np.ndarray = field(repr=False)
    similarity: np.ndarray = field(repr=False)
    silhouettes: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        """Return the number of clusters k."""
        return len(self.centres)

    def __repr__(self) -> str:
        """Return the number of clusters and the silhouette."""
        return f"WordClusters({len(self)} of {len(self.labels):,} words, silhouette {self.silhouette:.3f})"

    @property
    def silhouette(self) -> float:
        """Mean silhouette of the most frequent words."""
        return float(self.silhouettes.mean())

    def of(self, word: str) -> int:
        """Return the cluster of a word."""
        return int(self.labels[self.embedding.vocabulary.position(word)])

    def words(self, cluster: int) -> list[str]:
        """Return the words of a cluster, the most typical first.

        Raises:
            ConfigError: There is no such cluster.
        """
        if not 0 <= cluster < len(self):
            raise ConfigError(f"cluster must lie in 0..{len(self) - 1}, got {cluster}.")
        rows = np.flatnonzero(self.labels == cluster)
        return [self.embedding.vocabulary.words[row] for row in rows[np.argsort(-self.similarity[rows], kind="stable")]]

    def to_frame(self) -> pd.DataFrame:
        """Return ``word``, ``cluster``, ``similarity`` to the centre and ``count``, a row a word."""
        words = self.embedding.vocabulary
        columns = {"cluster": self.labels, "similarity": self.similarity, "count": words.counts}
        return pd.DataFrame({"word": list(words.words), **columns})

    def membership(self, word: str, *, typical: int = 20) -> ClusterMembership:
        """Return what measures why a word is in its cluster and not in the next one.

        Args:
            word: A word of the vocabulary.
            typical: How many of the most typical words stand for either cluster.

        Raises:
            ConfigError: The word has no vector, ``typical`` is less than 1, or the word is alone in its cluster.
        """
        if typical < 1:
            raise ConfigError(f"typical must be at least 1, got {typical}.")
        own = self.of(word)
        members = [other for other in self.words(own) if other != word][:typical]
        if not members:
            raise ConfigError(f"word must share its cluster with another, got {word!r} alone. Make fewer clusters.")
        direction = self.embedding.directions[self.embedding.vocabulary.position(word)].numpy()
        nearness = self.centres @ direction / np.linalg.norm(self.centres, axis=1).clip(min=1e-12)
        nearness[own] = -np.inf
        return ClusterMembership(word, tuple(members), tuple(self.words(int(nearness.argmax()))[:typical]))


def clusters(words: WordEmbedding, k: int = 20, *, seed: int = 0) -> WordClusters:
    """Return clusters of words: k-means on the vectors at length 1.

    Args:
        words: The vectors.
        k: How many clusters, from 2 to V − 1.
        seed: Of the first centres.

    Returns:
        The clusters, numbered from the largest. The silhouette is of the 5,000 most frequent words, by cosine.

    Raises:
        ConfigError: k is out of range.

    Cost: V·k·d multiplications a round, of four starts.
    Reference: Lloyd (1982); Rousseeuw (1987) for the silhouette; scikit-learn's ``KMeans``.

    Example:
        >>> import whence as wh
        >>> corpus = wh.word_corpus(["the cat sat on the mat", "a dog lay by the door"], min_count=1, subsample=None)
        >>> len(clusters(wh.train_words(corpus, width=8, epochs=2), 3))
        3
    """
    count = len(words.vocabulary)
    if not 2 <= k < count:
        raise ConfigError(f"k must lie in 2..{count - 1} for {count} words, got {k}.")
    directions = words.directions.double().numpy()
    fitted = KMeans(k, n_init=_STARTS, random_state=seed).fit(directions)
    sizes = np.bincount(fitted.labels_, minlength=k)
    order = np.argsort(-sizes, kind="stable")
    labels = np.argsort(order)[fitted.labels_]
    centres = fitted.cluster_centers_[order]
    lengths = np.linalg.norm(centres, axis=1).clip(min=1e-12)
    similarity = (directions * centres[labels]).sum(1) / lengths[labels]
    some = _LARGEST_SILHOUETTE if len(np.unique(labels[:_LARGEST_SILHOUETTE])) > 1 else count
    found = silhouette_samples(directions[:some], labels[:some], metric="cosine")
    return WordClusters(embedding=words, labels=labels, centres=centres, similarity=similarity, silhouettes=found)


def word_map(
    words: WordEmbedding, chosen: Sequence[str] | None = None, *, perplexity: float = 30.0, seed: int = 0
) -> pd.DataFrame:
    """Return a map of words in the plane: t-SNE of the cosine distances.

    Args:
        words: The vectors.
        chosen: Words to draw; the 2,000 most frequent by default.
        perplexity: About how many neighbours count; fewer than there are words.
        seed: Of the first layout where it is drawn at random.

    Returns:
        ``word``, ``x`` and ``y``, a row a word. Neighbourhoods mean something, distances between far groups do not.

    Raises:
        ConfigError: A word has no vector, or the perplexity is out of range.

    Cost: n log n a step for n words, a thousand steps.
    Reference: van der Maaten & Hinton (2008); scikit-learn's ``TSNE``.

    Example:
        >>> import whence as wh
        >>> corpus = wh.word_corpus(["the cat sat on the mat", "a dog lay by the door"], min_count=1, subsample=None)
        >>> word_map(wh.train_words(corpus, width=8, epochs=1), perplexity=3).columns.tolist()
        ['word', 'x', 'y']
    """
    names = list(words.vocabulary.words[:_LARGEST_MAP]) if chosen is None else list(dict.fromkeys(chosen))
    if not 0 < perplexity < len(names):
        raise ConfigError(f"perplexity must lie between 0 and the number of words ({len(names)}), got {perplexity}.")
    directions = words.directions[words.vocabulary.rows(names)].double().numpy()
    places = TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=seed).fit_transform(directions)
    return pd.DataFrame({"word": names, "x": places[:, 0], "y": places[:, 1]})
